"""What the engine's tests share: a busybox image without a registry, an engine on its own directories, proof that nothing is left."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from skep.engine.base import ContainerConfig, Engine, Image, ImageConfig, Progress
from skep.engine.oci import kernel
from skep.engine.oci.bundle import remove_cgroups
from skep.engine.oci.engine import OciEngine
from skep.errors import NotFound

BUSYBOX = "/bin/busybox"
IMAGE = "sha256:" + "0" * 64
RUNTIMES = ["auto", "runc"]
_numbers = itertools.count(1)


class SystemClock:
    def now(self) -> int:
        return time.time_ns()

    async def sleep(self, ns: int) -> None:
        await asyncio.sleep(ns / 1e9)


def make_rootfs(folder: Path) -> Path:
    """busybox, a passwd file, nothing else."""
    root = folder / "layer"
    for name in ("bin", "etc", "tmp", "proc", "sys", "dev", "home"):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    shutil.copy(BUSYBOX, root / "bin" / "busybox")
    for applet in subprocess.check_output([BUSYBOX, "--list"], text=True).split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nweb:x:101:102:web:/home/web:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nweb:x:102:\nlog:x:200:web\nextra:x:300:\n")
    return root


class StubImages:
    """One image, unpacked already."""

    def __init__(self, layers: list[str]) -> None:
        self._layers = layers
        self.image = Image(id=IMAGE, tags=("busybox:latest",), config=ImageConfig(cmd=("sh",)))

    async def pull(
        self, reference: str, *, auth: str = "", platform: str = "", on_progress: Callable[[Progress], None] | None = None
    ) -> Image:
        raise NotFound("no registry here")

    async def resolve(self, reference: str, *, auth: str = "") -> tuple[dict[str, Any], list[dict[str, str]]]:
        raise NotFound("no registry here")

    def get(self, reference: str) -> Image | None:
        return self.image if reference in (IMAGE, "busybox", "busybox:latest") else None

    def all(self) -> Collection[Image]:
        return [self.image]

    async def remove(self, reference: str, *, force: bool = False) -> list[dict[str, str]]:
        return []

    def rootfs_layers(self, image_id: str) -> list[str]:
        return self._layers


class Bench:
    """An engine's directories; engines come and go on them."""

    def __init__(self, runtime: str = "auto") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"skt{os.getpid()}-", dir="/tmp"))
        self.cgroup = f"/{self.folder.name}"
        self.data, self.run = self.folder / "d", self.folder / "r"
        self.layers = [str(make_rootfs(self.folder))]
        self.runtime = runtime

    def engine(self, clock: SystemClock | None = None) -> OciEngine:
        rng = random.SystemRandom()
        return OciEngine(self.data, self.run, StubImages(self.layers), clock or SystemClock(), rng, self.cgroup, self.runtime)

    def play(self, main: Callable[[OciEngine], Coroutine[Any, Any, None]]) -> None:
        """`main` with an engine, which it destroys; nothing is left then."""
        try:
            asyncio.run(main(self.engine()))
            assert self.left() == []
        finally:
            self.clear()

    def left(self) -> list[str]:
        """Processes, mounts and cgroups of ours that are still there."""
        name = self.folder.name
        found = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if name in line]
        for pid in os.listdir("/proc"):
            if pid.isdigit() and int(pid) != os.getpid() and kernel.start_ticks(int(pid)):
                try:
                    command = Path(f"/proc/{pid}/cmdline").read_bytes()
                    groups = Path(f"/proc/{pid}/cgroup").read_text()
                except OSError:
                    continue
                if name.encode() in command or name in groups:
                    found.append(f"process {pid}: {command!r}")
        found += subprocess.run(["find", "/sys/fs/cgroup", "-name", name], capture_output=True, text=True, check=False).stdout.split()
        return found

    def wipe(self) -> None:
        """End every process of ours, take every mount and cgroup of ours down: a boot, or what a failed test leaves."""
        deadline = time.monotonic() + 10
        for freezer in Path(f"/sys/fs/cgroup/freezer{self.cgroup}").glob("*/freezer.state"):
            freezer.write_text("THAWED")
        while pids := [int(line.split()[1].rstrip(":")) for line in self.left() if line.startswith("process")]:
            assert time.monotonic() < deadline, self.left()
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        for point in reversed([one.path for one in kernel.mounts() if self.folder.name in one.path]):
            kernel.umount(point)
        remove_cgroups(self.cgroup)

    def clear(self) -> None:
        if self.left():
            self.wipe()
        shutil.rmtree(self.folder, ignore_errors=True)


@asynccontextmanager
async def running_engine(runtime: str = "auto") -> AsyncIterator[OciEngine]:
    """An engine, and afterwards proof that it has left nothing behind."""
    bench = Bench(runtime)
    engine = bench.engine()
    try:
        await engine.start_up()
        try:
            yield engine
        finally:
            await engine.destroy()
        await until(lambda: not bench.left(), bench.left)
    finally:
        bench.clear()


async def started(engine: Engine, *args: str, **fields: Any) -> str:
    """The id of a container that runs."""
    made = config(*args, **fields)
    await engine.create(made)
    await engine.start(made.id)
    return made.id


def config(*args: str, **fields: Any) -> ContainerConfig:
    number = next(_numbers)
    id = f"{os.getpid():032x}{number:032x}"
    return ContainerConfig(id=id, name=fields.pop("name", f"c{number}"), image=IMAGE, args=args, **fields)


async def until(true: Callable[[], Any], story: Callable[[], Any] = lambda: "", seconds: float = 10.0) -> None:
    """Wait for something outside this process that tells nobody when it happens."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"did not happen: {story()}"
        await asyncio.sleep(0.02)


async def run(engine: OciEngine, *args: str, **fields: Any) -> tuple[int, str, str]:
    """Run to the end: (exit code, stdout, stderr) as its log has them."""
    made = config(*args, **fields)
    await engine.create(made)
    await engine.start(made.id)
    exit = await engine.wait(made.id)
    out = {1: b"", 2: b""}
    async for record in engine.logs(made.id):
        out[record.stream] += record.data
    await engine.remove(made.id)
    return exit.code, out[1].decode(), out[2].decode()
