"""A node without a cluster for the tests of plain containers: a daemon's parts in a process of their own, in a network and a mount
namespace of their own, spoken to by the docker command and over its socket. It can be killed and started again; the namespaces stay.

`python plain_world.py FOLDER` is the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from skep.api.context import InitRequest, JoinRequest, SwarmInfo
from skep.api.host import HostInfo
from skep.api.localevents import LocalEvents
from skep.api.server import make_app, serve_unix
from skep.datapath.node import NodeNetwork
from skep.datapath.path import KernelDatapath
from skep.datapath.resolving import ResolverNames
from skep.engine.oci import bundle
from skep.engine.oci.engine import OciEngine
from skep.engine.oci.images import OciImages
from skep.engine.oci.kernel import make_shared_root
from skep.errors import Unavailable
from skep.local.build import Entry, directory, layer, link, program, text
from skep.node.bare import NoAttachments
from skep.node.container import NodeFacts
from skep.node.networks import Networks
from skep.node.plain import Plain
from skep.node.volumes import Volumes
from skep.system import SystemClock, system_random

BUSYBOX = "/bin/busybox"
IMAGE = "box:1"
HOSTNAME = "testnode"
SLOWNESS = float(os.environ.get("SKEP_TEST_SLOWNESS", "1"))
"""What patience is multiplied by where everything is slower, as in a virtual machine without KVM."""


class _NoSwarm:
    def info(self) -> SwarmInfo:
        return SwarmInfo()

    async def init(self, request: InitRequest) -> str:
        raise Unavailable("no swarm here")

    async def join(self, request: JoinRequest) -> None:
        raise Unavailable("no swarm here")

    async def leave(self, force: bool) -> None:
        raise Unavailable("This node is not part of a swarm")


class Node:
    """`skep.api.context.Context` of a node in no cluster, as skepd puts it together."""

    def __init__(self, folder: Path) -> None:
        self.data, self.run_root = folder / "d", folder / "r"
        self.clock = SystemClock()
        rng = system_random()
        images = OciImages(self.data / "images", clock=self.clock)
        self.engine = self.oci = OciEngine(self.data, self.run_root, images, self.clock, rng, f"/{folder.name}")
        self.volumes = Volumes(self.data / "volumes", self.clock, rng, containers=self.engine.all, mounts=self.run_root / "volumes")
        kernel = KernelDatapath(folder.name[:8], self.run_root / "network", clock=self.clock)
        self.datapath = NodeNetwork(kernel, ResolverNames(self.run_root / "network"))
        self.networks = self.own_networks = Networks(self.data / "networks", self.datapath, self.clock, rng)
        self.attachments = NoAttachments()
        self.events = LocalEvents(self.engine, self.clock)
        self.host = HostInfo(self.engine, self.clock, id="0" * 32, root=str(self.data), hostname=HOSTNAME)
        self.swarm = _NoSwarm()
        facts = NodeFacts(hostname=HOSTNAME, resolv_conf="nameserver 192.0.2.53\nsearch example.test\n")
        self.plain = Plain(self.engine, self.datapath, self.networks, self.volumes, self.clock, rng, facts, self.attachments)

    @property
    def cluster(self) -> Any:
        raise Unavailable("This node is not a swarm manager.")


async def serve(folder: Path) -> None:
    node = Node(folder)
    node.run_root.mkdir(exist_ok=True)
    make_shared_root(str(node.run_root))
    await node.oci.start_up()
    await node.datapath.start_up()
    await node.own_networks.start_up()
    await node.plain.start_up()
    if node.engine.images.get(IMAGE) is None:
        await import_image(node)
    ended, ready = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(node.events.run()),
            group.create_task(node.plain.run()),
            group.create_task(serve_unix(make_app(node), str(folder / "s.sock"), ready=ready)),
        ]
        await ready.wait()
        (folder / "ready").touch()
        await ended.wait()
        for task in tasks:
            task.cancel()
    await node.datapath.shut_down()
    await node.oci.shut_down()


def image_layer() -> bytes:
    files: dict[str, Entry] = {"bin/busybox": program(Path(BUSYBOX).read_bytes())}
    for applet in subprocess.check_output([BUSYBOX, "--list"], text=True).split():
        if applet != "busybox":
            files[f"bin/{applet}"] = link("busybox")
    files |= {
        "etc/passwd": text("root:x:0:0:root:/root:/bin/sh\nweb:x:101:102:web:/home/web:/bin/sh\n"),
        "etc/group": text("root:x:0:\nweb:x:102:\nlog:x:200:web\nextra:x:300:\n"),
        "etc/plain": text("not a program\n"),
        "root": directory(),
        "tmp": directory(0o1777),
        "home/web": directory(),
        "seeded": directory(),
        "seeded/file": text("from the image\n"),
    }
    return layer(files)


async def import_image(node: Node) -> None:
    whole = await asyncio.to_thread(image_layer)

    async def data() -> Any:
        yield whole

    changes = ['CMD ["sh"]', "ENV FROM_IMAGE=yes", "LABEL of=image", "EXPOSE 80/tcp"]
    await node.engine.images.import_archive(data(), reference=IMAGE, changes=changes)


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("docker", timeout=60 * SLOWNESS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


class World:
    """The test's side: namespaces held by a process, the daemon in them, the docker command outside."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"skt{os.getpid()}-", dir="/tmp"))
        self.socket = self.folder / "s.sock"
        self.docker_program = shutil.which("docker") or ""
        self.log = self.folder / "log"
        self.holder = self._hold()
        self.daemon: subprocess.Popen[bytes] | None = None

    def _hold(self) -> subprocess.Popen[bytes]:
        """The process whose namespaces are the node's."""
        script = "ip link set lo up; echo; exec sleep infinity"
        holder = subprocess.Popen(["unshare", "-n", "-m", "sh", "-c", script], stdout=subprocess.PIPE)
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.stdout.close()
        return holder

    def reboot(self) -> None:
        """All processes end at once, run state and namespaces are gone; then the daemon starts."""
        self.stop(signal.SIGKILL)
        self._kill_all()
        shutil.rmtree(self.folder / "r", ignore_errors=True)
        self.holder = self._hold()
        self.start()

    def _kill_all(self) -> None:
        while left := self.left():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        self.holder.kill()
        self.holder.wait()

    def inside(self, *argv: str) -> list[str]:
        """The command that runs something as the node's host would."""
        return ["nsenter", "-t", str(self.holder.pid), "-n", "-m", *argv]

    def start(self) -> None:
        (self.folder / "ready").unlink(missing_ok=True)
        with self.log.open("ab") as log:
            command = self.inside(sys.executable, __file__, str(self.folder))
            self.daemon = subprocess.Popen(command, stdout=log, stderr=log)
        end = time.monotonic() + 60 * SLOWNESS
        while not (self.folder / "ready").exists():
            if self.daemon.poll() is not None or time.monotonic() > end:
                raise AssertionError(self.log.read_text())
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.daemon is not None:
            self.daemon.send_signal(number)
            self.daemon.wait()
            self.daemon = None

    def docker(
        self, *argv: str, check: bool = True, input: str | None = None, seconds: float = 60 * SLOWNESS
    ) -> subprocess.CompletedProcess[str]:
        command = [self.docker_program, "-H", f"unix://{self.socket}", *argv]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, input=input)
        if check and done.returncode:
            raise AssertionError(f"docker {' '.join(argv)}: {done.returncode}: {done.stderr}\n{self.log.read_text()[-2000:]}")
        return done

    def out(self, *argv: str, **more: Any) -> str:
        return self.docker(*argv, **more).stdout.strip()

    @contextlib.contextmanager
    def asking(self, method: str, target: str) -> Iterator[http.client.HTTPResponse]:
        """An answer that has begun."""
        with contextlib.closing(_Unix(str(self.socket))) as connection:
            connection.request(method, target)
            yield connection.getresponse()

    def api(self, method: str, target: str, body: Any = None) -> tuple[int, Any]:
        """(status, JSON or bytes)."""
        with contextlib.closing(_Unix(str(self.socket))) as connection:
            data = json.dumps(body).encode() if body is not None else None
            connection.request(method, target, data, {"Content-Type": "application/json"} if data else {})
            answer = connection.getresponse()
            raw = answer.read()
        try:
            return answer.status, json.loads(raw) if raw else None
        except ValueError:
            return answer.status, raw

    def inspect(self, name: str) -> Any:
        return json.loads(self.out("inspect", name))[0]

    def kept(self) -> list[str]:
        """Sandboxes, and mounts of containers, that are there."""
        listed = self.folder / "r" / "network" / "places"
        found = [file.name for file in listed.iterdir()] if listed.is_dir() else []
        mounts = subprocess.run(self.inside("cat", "/proc/self/mountinfo"), capture_output=True, text=True, check=True).stdout
        return found + [line.split()[4] for line in mounts.splitlines() if f"{self.folder}/r/c/" in line]

    def until(self, holds: Callable[[], Any], what: str, seconds: float = 20) -> Any:
        """Wait for something that tells nobody when it happens."""
        end = time.monotonic() + seconds
        while not (found := holds()):
            assert time.monotonic() < end, f"still not so: {what}\n{self.log.read_text()[-3000:]}"
            time.sleep(0.02)
        return found

    def tidy(self) -> None:
        """Takes away what a test made, which leaves no sandbox, mount or address behind."""
        if ids := self.out("ps", "-aq").split():
            self.docker("rm", "-f", "-v", *ids)
        if own := self.out("network", "ls", "-q", "--filter", "type=custom").split():
            self.docker("network", "rm", *own)
        self.docker("volume", "prune", "-af")
        self.until(lambda: self.kept() == [], f"nothing is kept: {self.kept()}")

    def clear(self) -> None:
        with contextlib.suppress(Exception):
            if self.daemon is not None and (ids := self.out("ps", "-aq").split()):
                self.docker("rm", "-f", *ids)
        self.stop()
        self._kill_all()
        for name in (self.folder.name, f"{self.folder.name}x"):  # the second: a test's `--cgroup-parent`
            bundle.remove_cgroups(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.clear()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def left(self) -> list[int]:
        """Processes that have to do with this world."""
        found = []
        for pid in os.listdir("/proc"):
            if pid.isdigit() and int(pid) not in (os.getpid(), self.holder.pid):
                try:
                    told = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace") + Path(f"/proc/{pid}/cgroup").read_text()
                except OSError:
                    continue
                if self.folder.name in told:
                    found.append(int(pid))
        return found


@contextlib.contextmanager
def docker_world() -> Iterator[World]:
    """One that the docker command drives."""
    import pytest  # not at the top: the daemon is this file too

    with World() as found:
        if not found.docker_program:
            pytest.skip("no docker command")
        yield found


def quoted(value: Any) -> str:
    return urllib.parse.quote(json.dumps(value))


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
