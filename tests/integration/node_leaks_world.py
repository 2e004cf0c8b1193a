"""A node whose daemon tells what it holds: descriptors, threads, children, tasks, mount namespaces. Its collector of garbage is off:
what is held until that comes by is held for good.

`python node_leaks_world.py FOLDER` is the daemon.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import plain_world
from plain_world import World

POOLS = ("skep-files", "skep-runtime", "skep-layer", "asyncio", "ThreadPool")
"""Threads that stay, as many as were needed at once."""


def held(folder: Path) -> list[str]:
    """In words, sorted: one for each descriptor, thread, child and task."""
    found: list[str] = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.append(f"fd {os.readlink(f'/proc/self/fd/{name}').partition(':[')[0]}")
    found += [f"thread {thread.name.rstrip('0123456789')}" for thread in threading.enumerate() if not thread.name.startswith(POOLS)]
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                if int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1]) == os.getpid():
                    found.append(f"child {Path(f'/proc/{name}/cmdline').read_text().replace(chr(0), ' ')[:120]}")
    for task in asyncio.all_tasks():
        found.append(f"task {getattr(task.get_coro(), '__qualname__', task.get_coro())}")
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found += [f"mount {line.split()[4]}" for line in mounts if f"{folder}/r/c/" in line]
    return sorted(found)


async def serve(folder: Path) -> None:
    gc.disable()

    def tell() -> None:
        made = folder / "held.new"
        made.write_text(json.dumps(held(folder)))
        made.rename(folder / "held")

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, tell)
    await plain_world.serve(folder)


class LeaksWorld(World):
    def start(self) -> None:
        (self.folder / "ready").unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.daemon = subprocess.Popen(self.inside(sys.executable, __file__, str(self.folder)), stdout=log, stderr=log)
        self.until((self.folder / "ready").exists, "the daemon is ready", 300)

    def held(self) -> list[str]:
        assert self.daemon is not None
        file = self.folder / "held"
        file.unlink(missing_ok=True)
        self.daemon.send_signal(signal.SIGUSR1)
        self.until(file.exists, "the daemon tells what it holds")
        told: list[str] = json.loads(file.read_text())
        return told

    def at_rest(self) -> list[str]:
        """What it holds when nobody is connected and nothing is under way. The daemon learns later than a client that its connection
        is closed, and a wait that ends is for a moment not there.
        """

        def told() -> list[str] | None:
            first = self.held()
            time.sleep(0.2)
            quiet = not any("RequestHandler" in line for line in first) and self.held() == first
            return first if quiet else None

        found: list[str] = self.until(told, "nobody is connected")
        return found

    def send(self, head: str, body: bytes = b"", *, length: int | None = None, more: str = "") -> socket.socket:
        """A request, and no wait for its answer. `length`: what is said of the body, if not the truth."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(60)
        connection.connect(str(self.socket))
        said = len(body) if length is None else length
        lines = f"{head} HTTP/1.1\r\nHost: docker\r\nContent-Length: {said}\r\n{more}\r\n"
        connection.sendall(lines.encode() + body)
        return connection

    def settle_tasks(self, before: list[str], beside: str = "_guarded") -> None:
        """No request is under way any more; what goes on `beside` may."""

        def tasks(told: list[str]) -> list[str]:
            return [line for line in told if line.startswith("task ") and beside not in line]

        self.until(lambda: tasks(self.held()) == tasks(before), "no request is under way")

    def settle(self, before: list[str], what: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while (now := self.held()) != before:
            if time.monotonic() > end:
                left, gone = Counter(now) - Counter(before), Counter(before) - Counter(now)
                raise AssertionError(f"{what}: left behind {dict(left)}, missing {dict(gone)}\n{self.log.read_text()[-3000:]}")
            time.sleep(0.05)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
