"""A process in a node, with its streams: what `docker exec` on the host socket and `skep cluster exec` start there."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import shutil
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from skep.errors import NotFound
from skep.local.layout import REGISTRY, Layout

NODEINIT = str(Path(__file__).with_name("nodeinit.py"))
CHUNK = 65536
LINGER = 0.5
"""Seconds without output after which a process that has ended is done, though a child of its own still holds the pipe."""
GRACE = 2.0
"""Seconds between the hang-up and the SIGKILL of a process whose client has gone."""
KEPT = ("TERM", "LANG", "LC_ALL", "HOME", "TZ", "COLUMNS", "LINES")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR")


def command(
    layout: Layout,
    node: str,
    argv: Sequence[str],
    *,
    part: str,
    cwd: str = "/",
    env: Mapping[str, str] | None = None,
    ctty: bool = False,
    daemon: bool = False,
    user: tuple[int, int, list[int]] | None = None,
) -> list[str]:
    """The command line that becomes `argv` inside a node, in the cgroup `<node>/<part>`; `daemon`: it leaves its starter."""
    kinds = ("net",) if node == REGISTRY else ("net", "uts", "mnt")
    pins = [layout.namespace(node, kind) for kind in kinds]
    if not all(pin.exists() for pin in pins):
        raise NotFound(f"node {node!r} of cluster {layout.name!r} does not run: `skep cluster start --name {layout.name} {node}` starts it")
    job: dict[str, Any] = {
        "cgroups": [str(p) for p in layout.cgroups(REGISTRY if node == REGISTRY else f"{node}/{part}")],
        "ns": [str(pin) for pin in pins],
        "cwd": cwd,
        "env": dict(env) if env is not None else None,
        "argv": list(argv),
        "ctty": ctty,
        "daemon": daemon,
        "detach": daemon,
        "user": user,
    }
    return [sys.executable, "-I", "-S", NODEINIT, json.dumps(job)]


def node_environment() -> dict[str, str]:
    """The environment of a shell in a node: this host's PATH, with skep's and docker's commands on it, and the node's own socket."""
    path = [str(Path(sys.executable).parent), os.environ.get("SKEP_DOCKER_BIN", ""), os.environ.get("PATH", "")]
    if not path[2]:
        path[2] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    if not path[1] and shutil.which("docker", path=path[2]) is None:
        path[1] = _docker_folder()
    keep = {k: v for k, v in os.environ.items() if k in KEPT + PROXIES}
    # a docker context that is chosen on this host must not lead out of the node
    own = {"PATH": ":".join(p for p in path if p), "HOME": "/root", "DOCKER_HOST": "unix:///run/skep/docker.sock"}
    return own | keep


def _docker_folder() -> str:
    """Where `make setup` has unpacked a docker client, if it has."""
    from skep.local.registry import find_tool

    with contextlib.suppress(NotFound):
        return str(find_tool("docker").parent)
    return ""


def daemon_environment() -> dict[str, str]:
    """Of skepd and of what serves the host socket."""
    own = node_environment()
    del own["DOCKER_HOST"]
    for name in ("TERM", "COLUMNS", "LINES"):
        own.pop(name, None)
    return own | {k: v for k, v in os.environ.items() if k.startswith("SKEP_") or k == "PYTHONPATH"}


class ProcessStreams:
    """Pipes, or a pty, of one process. Output starts with the process and ends when it has ended and all was read."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue(16)
        self._stdin: asyncio.StreamWriter | None = None
        self.master: int | None = None
        self.abandoned = asyncio.Event()
        """Nobody reads what still comes."""
        self.over = False
        """All output was handed over, or there will be no more."""

    def output(self) -> AsyncIterator[tuple[int, bytes]]:
        return self._read()

    async def _read(self) -> AsyncIterator[tuple[int, bytes]]:
        while (item := await self._queue.get()) is not None:
            yield item
        self.over = True

    async def carry(self, readers: Mapping[int, asyncio.StreamReader], ended: asyncio.Event) -> None:
        """Bring what the process says to whoever reads, until it has ended and all was read."""
        try:
            async with asyncio.TaskGroup() as group:
                for number, reader in readers.items():
                    group.create_task(self._carry(number, reader, ended))
        finally:
            if self.abandoned.is_set():
                self._make_room()
            await self._queue.put(None)

    def _make_room(self) -> None:
        while not self._queue.empty():
            self._queue.get_nowait()

    async def _carry(self, number: int, reader: asyncio.StreamReader, ended: asyncio.Event) -> None:
        while data := await self._next(reader, ended):
            if self.abandoned.is_set():
                self._make_room()
            await self._queue.put((number, data))

    async def _next(self, reader: asyncio.StreamReader, ended: asyncio.Event) -> bytes:
        # a pty whose other end is gone reads as EIO
        with contextlib.suppress(OSError):
            reading = asyncio.ensure_future(reader.read(CHUNK))
            ending = asyncio.ensure_future(ended.wait())
            try:
                await asyncio.wait((reading, ending), return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    await asyncio.wait((reading,), timeout=LINGER)
                if reading.done():
                    return reading.result()
            finally:
                ending.cancel()
                reading.cancel()
        return b""

    async def write(self, data: bytes) -> None:
        if self._stdin is None:
            return
        with contextlib.suppress(ConnectionError, OSError):
            self._stdin.write(data)
            await self._stdin.drain()

    async def close_stdin(self) -> None:
        if self._stdin is None:
            return
        if self.master is not None:
            await self.write(b"\x04")
            return
        self._stdin.close()

    async def close(self) -> None:
        """Who was attached has gone. A process that still runs is hung up, as by closing a terminal."""
        self.abandoned.set()
        if self._queue.full():
            self._make_room()
        if self._stdin is not None and self.master is None:
            self._stdin.close()


class NodeProcess:
    """An `skep.engine.base.Exec` over a local process. Runs in the task group of its owner; `close` of its streams hangs it up."""

    def __init__(self) -> None:
        self.streams = ProcessStreams()
        self._process: asyncio.subprocess.Process | None = None
        self._ended = asyncio.Event()
        self._reading: asyncio.BaseTransport | None = None
        """Of the pipes or the pty: closed at the end though a child that goes on in the background may hold the other side."""

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    async def start(
        self, group: asyncio.TaskGroup, argv: Sequence[str], *, tty: bool, stdin: bool, rows: int = 0, columns: int = 0
    ) -> None:
        pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        if tty:
            readers = await self._start_tty(argv, rows, columns)
        else:
            # a session of its own: a hang-up reaches it with its children
            self._process = await asyncio.create_subprocess_exec(
                *argv, stdin=pipe if stdin else null, stdout=pipe, stderr=pipe, start_new_session=True, cwd="/"
            )
            self._reading = self._process._transport  # type: ignore[attr-defined]
            self.streams._stdin = self._process.stdin
            assert self._process.stdout and self._process.stderr
            readers = {1: self._process.stdout, 2: self._process.stderr}
        group.create_task(self._watch(readers))

    async def _start_tty(self, argv: Sequence[str], rows: int, columns: int) -> dict[int, asyncio.StreamReader]:
        loop = asyncio.get_running_loop()
        master, slave = pty.openpty()
        try:
            if rows and columns:
                fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            self._process = await asyncio.create_subprocess_exec(*argv, stdin=slave, stdout=slave, stderr=slave, cwd="/")
        except BaseException:
            os.close(master)
            raise
        finally:
            os.close(slave)
        s = self.streams
        s.master = master
        reader = asyncio.StreamReader()
        self._reading, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(master), "rb", 0))
        transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(master, "wb", 0))
        s._stdin = asyncio.StreamWriter(transport, protocol, None, loop)
        return {1: reader}

    async def _watch(self, readers: Mapping[int, asyncio.StreamReader]) -> None:
        """From its start to its end, and all that is to be tidied up then."""
        assert self._process
        process = self._process
        try:
            async with asyncio.TaskGroup() as group:
                carrying = group.create_task(self.streams.carry(readers, self._ended))
                hanging = group.create_task(self._hang_up_when_abandoned())
                await process.wait()
                self._ended.set()
                await asyncio.wait((carrying,))
                hanging.cancel()
        finally:
            if not self._ended.is_set():
                self._signal(signal.SIGKILL)
            if self.streams._stdin is not None:
                self.streams._stdin.close()
            if self._reading is not None:
                self._reading.close()

    async def _hang_up_when_abandoned(self) -> None:
        await self.streams.abandoned.wait()
        if self.streams.over:
            return  # it has closed its output and goes on by itself
        self._signal(signal.SIGHUP)
        try:
            async with asyncio.timeout(GRACE):
                await self._ended.wait()
        except TimeoutError:
            self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._process is None or self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(self._process.pid) == self._process.pid:
                os.killpg(self._process.pid, number)
            else:
                os.kill(self._process.pid, number)

    async def wait(self) -> int:
        assert self._process
        code = await self._process.wait()
        return 128 - code if code < 0 else code

    async def resize(self, rows: int, columns: int) -> None:
        if self.streams.master is not None and self._process and self._process.returncode is None:
            fcntl.ioctl(self.streams.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def kill(self) -> None:
        self._signal(signal.SIGKILL)


def run(layout: Layout, node: str, argv: Sequence[str], *, part: str = "exec") -> int:
    """Run a command in a node with this process' streams; returns its exit code (negative: the signal it died of)."""
    line = command(layout, node, argv, part=part, cwd="/", env=node_environment())
    return os.spawnv(os.P_WAIT, line[0], line)


def become(layout: Layout, node: str, argv: Sequence[str]) -> None:
    """This process becomes the command: its streams, its terminal, its job control, its exit code. Does not return."""
    line = command(layout, node, argv, part="exec", cwd="/", env=node_environment())
    os.execv(line[0], line)
