"""kill -9 at any time loses no acknowledged write: a process commits under load, prints what was acknowledged, and is killed, many times.

Every life works on the same file. After each, everything acknowledged so far must be there, no transaction may be there in part, and the
version must not have gone back. `SKEP_KILLS` sets the number of kills. The lives are forks of one warm process: starting an interpreter
takes longer than most of them live.
"""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from skep.model.service import Service
from skep.model.task import Task
from skep.store.memory import MemoryStore
from skep.store.sqlite import SqliteBackend

KILLS = int(os.environ.get("SKEP_KILLS", "300"))
LIVES_OF_A_FILE = 50

PARENT = """
import asyncio, os, sys, time
from skep.model.service import Service
from skep.model.spec import ServiceSpec
from skep.model.task import Task
from skep.plan.ops import Change, Create, Delete
from skep.store.memory import MemoryStore
from skep.store.sqlite import SqliteBackend

class Clock:
    now = staticmethod(time.time_ns)
    async def sleep(self, ns): await asyncio.sleep(ns / 1e9)

def say(text):
    os.write(1, (text + "\\n").encode())

async def work(store, life, worker):
    n = 0
    while True:
        name = f"l{life}w{worker}n{n}"
        pair = [Create(Service(id=name, spec=ServiceSpec(name=name, labels={"pad": "x" * 200})), "t"), Create(Task(id=name), "t")]
        version = await store.commit(pair)
        say(f"+ {name} {version}")
        version = await store.commit([Change(Service, name, {"spec_version": n + 1}, "t")])
        say(f"~ {name} {version} {n + 1}")
        if n % 8:
            version = await store.commit([Delete(Service, name, "t"), Delete(Task, name, "t")])
            say(f"- {name} {version}")
        n += 1

async def main(path, life):
    store = MemoryStore(SqliteBackend(path), Clock())
    async with asyncio.TaskGroup() as group:
        group.create_task(store.run())
        await asyncio.sleep(0)
        say("ready")
        for worker in range(8):
            group.create_task(work(store, life, worker))

for line in sys.stdin:
    pid = os.fork()
    if not pid:
        asyncio.run(main(sys.argv[1], int(line)))
    say(f"pid {pid}")
    os.waitpid(pid, 0)
    say("dead")
"""


class Clock:
    def now(self) -> int:
        return 1

    async def sleep(self, ns: int) -> None:
        raise NotImplementedError


class Known:
    """What a client was told."""

    def __init__(self) -> None:
        self.alive: dict[str, int] = {}
        self.gone: set[str] = set()
        self.uncertain: set[str] = set()
        """The last thing a worker was told of: its next step may have been written without a word."""
        self.version = 0
        self.acknowledged = 0

    def hear(self, lines: list[str]) -> None:
        last: dict[str, str] = {}
        for line in lines:
            sign, name, version, *rest = line.split()
            self.version = max(self.version, int(version))
            self.acknowledged += 1
            if sign == "-":
                self.alive.pop(name)
                self.gone.add(name)
            else:
                self.alive[name] = int(rest[0]) if rest else 0
            last[name.partition("n")[0]] = name
        self.uncertain.update(last.values())

    def check(self, store: MemoryStore) -> None:
        assert store.version >= self.version
        services = {service.id: service for service in store.all(Service)}
        assert services.keys() == {task.id for task in store.all(Task)}, "half a transaction"
        for name, number in self.alive.items():
            if name in self.uncertain:
                assert name not in services or services[name].spec_version >= number
            else:
                assert services[name].spec_version == number, f"{name} was acknowledged and is lost"
        assert not self.gone & services.keys(), "deleted, acknowledged, and back"
        # From here on, what the dead worker left is what it is.
        for name in self.uncertain:
            if name in services:
                self.alive[name] = services[name].spec_version
            else:
                self.alive.pop(name, None)
                self.gone.add(name)
        self.uncertain.clear()


class Lives:
    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self._buffer = b""

    def live(self, life: int, seconds: float) -> list[str]:
        """One life: what it acknowledged. Short writes to a pipe are whole: no line is cut."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{life}\n".encode())
        pid = 0
        heard: list[str] = []
        ready = False
        end = 0.0
        killed = False
        while True:
            if ready and pid and not killed and time.monotonic() >= end:
                os.kill(pid, signal.SIGKILL)
                killed = True
            line = self._line(max(0.0, end - time.monotonic()) if ready and not killed else 30.0)
            if line is None:
                assert ready and not killed, "the child does not start, or does not die"
            elif line.startswith("pid "):
                pid = int(line[4:])
            elif line == "ready":
                ready = True
                end = time.monotonic() + seconds
            elif line == "dead":
                assert killed, "the child died by itself"
                return heard
            else:
                heard.append(line)

    def _line(self, seconds: float) -> str | None:
        """None: nothing came in this time."""
        assert self._process.stdout is not None
        if b"\n" not in self._buffer:
            if not select.select([self._process.stdout], [], [], seconds)[0]:
                return None
            chunk = os.read(self._process.stdout.fileno(), 1 << 16)
            assert chunk, "the parent died"
            self._buffer += chunk
        line, newline, rest = self._buffer.partition(b"\n")
        assert newline
        self._buffer = rest
        return line.decode()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()


def test_no_acknowledged_write_is_lost(tmp_path: Path) -> None:
    rng = random.Random(4711)
    for first in range(0, KILLS, LIVES_OF_A_FILE):
        path = tmp_path / f"{first}.db"
        known = Known()
        lives = Lives(path)
        try:
            for life in range(first, min(first + LIVES_OF_A_FILE, KILLS)):
                known.hear(lives.live(life, rng.uniform(0.0, 0.06)))
                store = MemoryStore(SqliteBackend(path), Clock())
                known.check(store)
                known.version = store.version
                store.close()
        finally:
            lives.close()
        assert known.acknowledged > 0
