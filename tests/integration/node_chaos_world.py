"""A node for chaos: skepd's own parts in a process of their own, its data on a small disk that can be full, a registry beside it, and a
boot id that a reboot changes. What the kernel and the disk hold is read from outside, by node_chaos_truth.

`python node_chaos_world.py FOLDER` is the daemon: all of it but the reading of settings. It also tells what only it knows (`truth.sock`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from plain_world import World, image_layer

from skep.api.server import make_app, serve_unix
from skep.config import Settings
from skep.daemon import Node
from skep.datapath import netns
from skep.engine.oci import bundle
from skep.engine.oci.kernel import make_shared_root
from skep.local.build import Built, Entry, image, layer, push_image
from skep.local.registry import RegistryServer
from skep.system import lock, start_logging

IMAGES = 3
DISK = 1 << 30
"""Bytes: more than a pull wants to see free (docs/images.md)."""
PORT = 5000


def settings(folder: Path) -> Settings:
    return Settings(
        data_root=str(folder / "d"),
        run_root=str(folder / "r"),
        host=(f"unix://{folder}/s.sock",),
        docker_socket="",
        socket_group="",
        hostname="chaos",
        cgroup_parent=folder.name,
        image_gc_high="100",
        image_gc_low="100",
    )


# the daemon


async def tell(node: Node) -> dict[str, Any]:
    """What only the daemon knows: whether the kernel is as it believes, and what it has in memory."""
    return {
        "explain": await node.kernel.explain(),
        "names": await node.names.explain(),
        "tasks": len(asyncio.all_tasks()),
        "locks": len(node.containers._locks),
        "placed": sorted(node.containers._placed),
        "watched": len(node.oci._inotify._paths),
    }


async def serve(folder: Path) -> None:
    start_logging("info", "text")
    (folder / "d").mkdir(exist_ok=True)
    (folder / "r").mkdir(exist_ok=True)
    lock(folder / "d" / "skepd.lock")
    node = Node(settings(folder))
    make_shared_root(str(folder / "r"))
    await node.start_up()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(json.dumps(await tell(node)).encode())
            await writer.drain()
        writer.close()

    ended, ready = asyncio.Event(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    (folder / "truth.sock").unlink(missing_ok=True)
    async with await asyncio.start_unix_server(answer, folder / "truth.sock"), asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(node.node_events.run()),
            group.create_task(node.membership.run()),
            group.create_task(node.containers.run()),
            group.create_task(node.image_garbage.run()),
            group.create_task(node.keep_comparing()),
            group.create_task(serve_unix(make_app(node, health=node.health), str(folder / "s.sock"), ready=ready)),
        ]
        await ready.wait()
        (folder / "ready").touch()
        await ended.wait()
        for task in tasks:
            task.cancel()
    await node.shut_down()


# the test's side


def kill_exactly(pid: int, *signs: str) -> bool:
    """SIGKILL, if that process still is one of ours: its command or its cgroup names one of `signs`. Pids are given to others soon."""
    try:
        fd = os.pidfd_open(pid)
    except (OSError, ValueError):
        return False
    try:
        known = b"".join(Path(f"/proc/{pid}/{file}").read_bytes() for file in ("cmdline", "cgroup")).decode(errors="replace")
        if not any(sign in known for sign in signs):
            return False
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def built(number: int) -> Built:
    """Image `number`: a box with a layer of its own, large enough that a pull can be interrupted."""
    return image([image_layer(), layer({"noise": Entry(random.Random(number).randbytes(4 << 20))})], cmd=["sh"])


class ChaosWorld(World):
    """Beside World: a disk of its own, a registry, a new boot id after a reboot, and everything killed without one."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = self.folder / "disk"
        self.registry = RegistryServer(self.folder / "registry", port=PORT)
        self.starts = 0

    def _hold(self) -> subprocess.Popen[bytes]:
        """With a disk for the data, made the first time, and a boot id that is new each time."""
        data, boot = self.folder / "d", self.folder / "boot_id"
        if not data.exists():
            data.mkdir()
            with (self.folder / "disk").open("wb") as file:
                file.truncate(DISK)
            subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(self.folder / "disk")], check=True)
            subprocess.run(["mount", "-o", "loop", str(self.folder / "disk"), str(data)], check=True)
        boot.write_text(f"{uuid.uuid4()}\n")
        script = f"ip link set lo up; mount --bind {boot} /proc/sys/kernel/random/boot_id && echo; exec sleep infinity"
        holder = subprocess.Popen(["unshare", "-n", "-m", "sh", "-c", script], stdout=subprocess.PIPE)
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"\n", "no namespaces"
        holder.stdout.close()
        return holder

    def start(self) -> None:
        if not self.registry.pid:
            self._start_registry()
        (self.folder / "ready").unlink(missing_ok=True)
        with self.log.open("ab") as log:
            command = self.inside(sys.executable, __file__, str(self.folder))
            self.daemon = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "PYTHONWARNINGS": "error,ignore:subprocess"})
        self.starts += 1
        end = time.monotonic() + 60
        while not (self.folder / "ready").exists():
            if self.daemon.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"skepd does not start:\n{self.log.read_text()[-6000:]}")
            time.sleep(0.02)

    def _start_registry(self) -> None:
        fresh = not (self.folder / "registry").exists()
        home = os.open(f"/proc/{self.holder.pid}/ns/net", os.O_RDONLY)
        try:
            with netns.entered(home):
                self.registry.start()
                for number in range(IMAGES if fresh else 0):
                    push_image(self.registry.url, f"app{number}", "1", built(number))
        finally:
            os.close(home)

    def _kill_all(self) -> None:
        """What is frozen would not die."""
        for state in Path("/sys/fs/cgroup/freezer").glob(f"{self.folder.name}/*/freezer.state"):
            with contextlib.suppress(OSError):
                state.write_text("THAWED")
        super()._kill_all()

    def power_off(self) -> None:
        """All processes end at once; run state, namespaces and cgroups are gone. What follows is a new boot."""
        self.stop(signal.SIGKILL)
        self._kill_all()
        self.registry.stop()
        shutil.rmtree(self.folder / "r", ignore_errors=True)
        bundle.remove_cgroups(self.folder.name)
        self.holder = self._hold()

    def reboot(self) -> None:
        self.power_off()
        self.start()

    def kill_everything(self) -> None:
        """Daemon, conmons, containers, resolver: all at once; the kernel's namespaces and RUN stay."""
        if self.daemon is not None:
            self.daemon.kill()
        spared = {self.registry.pid}
        for pid in [pid for pid in self.left() if pid not in spared]:
            kill_exactly(pid, self.folder.name)
        self.stop(signal.SIGKILL)

    def truth(self) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(30)
            line.connect(str(self.folder / "truth.sock"))
            said = b""
            while chunk := line.recv(1 << 16):
                said += chunk
        found: dict[str, Any] = json.loads(said)
        return found

    def run_inside(self, *argv: str) -> str:
        return subprocess.run(self.inside(*argv), capture_output=True, text=True, check=True).stdout

    def run_in_router(self, *argv: str) -> str:
        return self.run_inside("nsenter", f"--net={self.folder}/r/network/router", *argv)

    @contextlib.contextmanager
    def full_disk(self) -> Iterator[None]:
        """The data's disk has no room while it lasts."""
        filler = self.folder / "d" / "filler"
        free = os.statvfs(filler.parent)
        try:
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, max(1, free.f_bavail * free.f_frsize - (4 << 20)))
                file.seek(0, os.SEEK_END)
                while file.write(b"x" * 4096):
                    pass
            yield
        finally:
            filler.unlink(missing_ok=True)

    def clear(self) -> None:
        with contextlib.suppress(Exception):
            if self.daemon is not None and (ids := self.out("ps", "-aq").split()):
                self.docker("rm", "-f", *ids)
        self.stop()
        self._kill_all()
        self.registry.stop()
        bundle.remove_cgroups(self.folder.name)
        subprocess.run(["umount", "-l", str(self.folder / "d")], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def until_none(self, wrong: Callable[[], list[str]], seconds: float) -> list[str]:
        """What is still wrong when patience ends."""
        end = time.monotonic() + seconds
        while found := wrong():
            if time.monotonic() > end:
                return found
            time.sleep(0.1)
        return []


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
