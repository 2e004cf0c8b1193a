"""A process in a node, with its streams: what `docker exec` on the host socket and `skep cluster` itself start there."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import struct
import sys
import termios
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from skep.local.layout import Layout

NODEINIT = str(Path(__file__).with_name("nodeinit.py"))


def command(
    layout: Layout,
    node: str,
    argv: Sequence[str],
    *,
    part: str,
    cwd: str = "/",
    env: Mapping[str, str] | None = None,
    ctty: bool = False,
    detach: bool = False,
) -> list[str]:
    """The command line that becomes `argv` inside a node, in the cgroup `<node>/<part>`."""
    job = {
        "cgroups": [str(p) for p in layout.cgroups(f"{node}/{part}")],
        "ns": [str(layout.namespace(node, kind)) for kind in ("net", "uts", "mnt")],
        "cwd": cwd,
        "env": dict(env) if env is not None else None,
        "argv": list(argv),
        "ctty": ctty,
        "detach": detach,
    }
    return [sys.executable, "-I", "-S", NODEINIT, json.dumps(job)]


class ProcessStreams:
    """Pipes, or a pty, of one process. Output starts with the process and ends when it has ended and all was read."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue(64)
        self._open = 0
        self._stdin: asyncio.StreamWriter | None = None
        self._master: int | None = None

    def output(self) -> AsyncIterator[tuple[int, bytes]]:
        return self._read()

    async def _read(self) -> AsyncIterator[tuple[int, bytes]]:
        while (item := await self._queue.get()) is not None:
            yield item

    async def _pump(self, number: int, reader: asyncio.StreamReader) -> None:
        self._open += 1
        try:
            # a pty whose other end is gone reads as EIO
            with contextlib.suppress(OSError):
                while data := await reader.read(65536):
                    await self._queue.put((number, data))
        finally:
            self._open -= 1
            if not self._open:
                await self._queue.put(None)

    async def write(self, data: bytes) -> None:
        if self._stdin is None:
            return
        with contextlib.suppress(ConnectionError, OSError):
            self._stdin.write(data)
            await self._stdin.drain()

    async def close_stdin(self) -> None:
        if self._stdin is None:
            return
        if self._master is not None:
            await self.write(b"\x04")
            return
        self._stdin.close()

    async def close(self) -> None:
        if self._stdin is not None and self._master is None:
            self._stdin.close()


class NodeProcess:
    """An `skep.engine.base.Exec` over a local process. Runs in the task group of its owner."""

    def __init__(self) -> None:
        self.streams = ProcessStreams()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    async def start(
        self, group: asyncio.TaskGroup, argv: Sequence[str], *, tty: bool, stdin: bool, rows: int = 0, columns: int = 0
    ) -> None:
        loop = asyncio.get_running_loop()
        s = self.streams
        if tty:
            master, slave = pty.openpty()
            if rows and columns:
                fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            try:
                self._process = await asyncio.create_subprocess_exec(*argv, stdin=slave, stdout=slave, stderr=slave)
            finally:
                os.close(slave)
            s._master = master
            reader = asyncio.StreamReader()
            await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(master), "rb", 0))
            transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(master, "wb", 0))
            s._stdin = asyncio.StreamWriter(transport, protocol, None, loop)
            group.create_task(s._pump(1, reader))
            return
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *argv, stdin=pipe if stdin else asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
        )
        s._stdin = self._process.stdin
        assert self._process.stdout and self._process.stderr
        s._open += 1
        group.create_task(s._pump(1, self._process.stdout))
        group.create_task(s._pump(2, self._process.stderr))
        s._open -= 1

    async def wait(self) -> int:
        assert self._process
        code = await self._process.wait()
        return 128 - code if code < 0 else code

    async def resize(self, rows: int, columns: int) -> None:
        if self.streams._master is not None and self._process and self._process.returncode is None:
            fcntl.ioctl(self.streams._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def run(layout: Layout, node: str, argv: Sequence[str], *, part: str = "exec") -> int:
    """Run a command in a node with this terminal; returns its exit code."""
    environment = node_environment()
    line = command(layout, node, argv, part=part, cwd="/", env=environment)
    return os.spawnv(os.P_WAIT, line[0], line)


def node_environment() -> dict[str, str]:
    """The environment of a shell in a node: this host's PATH, with skep's and docker's commands on it."""
    here = str(Path(sys.executable).parent)
    tools = os.environ.get("SKEP_DOCKER_BIN", "")
    path = ":".join(p for p in (here, tools, os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")) if p)
    keep = {k: v for k, v in os.environ.items() if k in ("TERM", "LANG", "LC_ALL", "HOME", "TZ", "COLUMNS", "LINES")}
    return {"PATH": path, "HOME": "/root"} | keep
