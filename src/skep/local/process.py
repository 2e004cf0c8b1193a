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
import subprocess
import sys
import termios
from collections.abc import AsyncGenerator, Mapping, Sequence
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
        self.stdin: asyncio.StreamWriter | None = None
        self.master: int | None = None
        self.abandoned = asyncio.Event()
        """Nobody reads what still comes."""
        self.over = False
        """All output was handed over, or there will be no more."""

    def output(self) -> AsyncGenerator[tuple[int, bytes], None]:
        return self._read()

    async def _read(self) -> AsyncGenerator[tuple[int, bytes], None]:
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
        if self.stdin is None:
            return
        with contextlib.suppress(ConnectionError, OSError):
            self.stdin.write(data)
            await self.stdin.drain()

    async def close_stdin(self) -> None:
        if self.stdin is None:
            return
        if self.master is not None:
            await self.write(b"\x04")
            return
        self.stdin.close()

    async def close(self) -> None:
        """Who was attached has gone. A process that still runs is hung up, as by closing a terminal."""
        self.abandoned.set()
        if self._queue.full():
            self._make_room()
        if self.stdin is not None and self.master is None:
            self.stdin.close()


class _UntilItsEnd(asyncio.StreamReaderProtocol):
    """A pty whose other end is gone reads as EIO: its end. To a stream reader an error would take the place of what was not read yet."""

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(None)


class NodeProcess:
    """An `skep.engine.base.Exec` over a local process. Runs in the task group of its owner; `close` of its streams hangs it up.

    It has ended when the kernel says so, whoever still holds its pipes: hence no asyncio subprocess, which waits for those.
    """

    def __init__(self) -> None:
        self.streams = ProcessStreams()
        self.pid = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = asyncio.Event()
        self._transports: list[asyncio.BaseTransport] = []

    async def start(
        self, group: asyncio.TaskGroup, argv: Sequence[str], *, tty: bool, stdin: bool, rows: int = 0, columns: int = 0
    ) -> None:
        outputs, entry = self._spawn_tty(argv, rows, columns) if tty else self._spawn_pipes(argv, stdin)
        readers = {number: await self._reader(fd) for number, fd in outputs.items()}
        if entry >= 0:
            self.streams.stdin = await self._writer(entry)
        group.create_task(self._watch(readers))

    def _spawn_pipes(self, argv: Sequence[str], stdin: bool) -> tuple[dict[int, int], int]:
        pipe = subprocess.PIPE
        # a session of its own: a hang-up reaches it with its children
        p = subprocess.Popen(
            argv, stdin=pipe if stdin else subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True, cwd="/", bufsize=0
        )
        self._process, self.pid = p, p.pid
        assert p.stdout and p.stderr
        kept = {1: os.dup(p.stdout.fileno()), 2: os.dup(p.stderr.fileno())}
        entry = os.dup(p.stdin.fileno()) if p.stdin else -1
        for stream in (p.stdin, p.stdout, p.stderr):
            if stream is not None:
                stream.close()
        return kept, entry

    def _spawn_tty(self, argv: Sequence[str], rows: int, columns: int) -> tuple[dict[int, int], int]:
        master, slave = pty.openpty()
        try:
            if rows and columns:
                fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            self._process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, cwd="/")
        except BaseException:
            os.close(master)
            raise
        finally:
            os.close(slave)
        self.pid = self._process.pid
        self.streams.master = master
        return {1: os.dup(master)}, master

    async def _reader(self, fd: int) -> asyncio.StreamReader:
        reader = asyncio.StreamReader()
        protocol = _UntilItsEnd(reader)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(fd, "rb", 0))
        self._transports.append(transport)
        return reader

    async def _writer(self, fd: int) -> asyncio.StreamWriter:
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(fd, "wb", 0))
        self._transports.append(transport)
        return asyncio.StreamWriter(transport, protocol, None, loop)

    async def _watch(self, readers: Mapping[int, asyncio.StreamReader]) -> None:
        """From its start to its end, and all that is to be tidied up then."""
        try:
            async with asyncio.TaskGroup() as group:
                carrying = group.create_task(self.streams.carry(readers, self._ended))
                hanging = group.create_task(self._hang_up_when_abandoned())
                await self._exit()
                self._ended.set()
                await asyncio.wait((carrying,))
                hanging.cancel()
        finally:
            self._signal(signal.SIGKILL)
            self.streams.master = None
            for transport in self._transports:
                transport.close()

    async def _exit(self) -> None:
        """Until it has ended."""
        assert self._process
        loop, gone = asyncio.get_running_loop(), asyncio.Event()
        fd = os.pidfd_open(self.pid)
        loop.add_reader(fd, gone.set)
        try:
            await gone.wait()
        finally:
            loop.remove_reader(fd)
            os.close(fd)
        self._process.wait()

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
        if self._process is None or self._process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)

    async def begun(self) -> str:
        return ""

    async def wait(self) -> int:
        await self._ended.wait()
        assert self._process and self._process.returncode is not None
        code = self._process.returncode
        return 128 - code if code < 0 else code

    async def resize(self, rows: int, columns: int) -> None:
        if self.streams.master is not None:
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
