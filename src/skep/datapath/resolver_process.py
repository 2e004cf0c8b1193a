"""The resolver's process as skepd sees it: a line to one that runs, and how one is started. Synchronous. See docs/discovery.md."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path

import msgspec

from skep.datapath import orders
from skep.errors import SkepError

START_PATIENCE, PATIENCE, END_PATIENCE = 60.0, 10.0, 3.0
"""Seconds."""
LOG_SIZE = 1 << 20


class Gone(Exception):
    """The process has died, or does not answer."""


class Line:
    """A connection to a resolver that runs; `pid` is as the kernel says."""

    def __init__(self, path: Path, patience: float) -> None:
        self._patience = patience
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(patience)
            self._socket.connect(str(path))
            credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            self.pid, owner, _ = struct.unpack("3i", credentials)
            if owner not in (0, os.getuid()):
                raise ConnectionRefusedError
            self.pidfd = os.pidfd_open(self.pid)
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()
        os.close(self.pidfd)

    def ask(self, order: orders.Any, patience: float = 0.0) -> orders.Done:
        """Raises Gone."""
        try:
            self._socket.settimeout(patience or self._patience)
            self._socket.sendall(orders.packed(order))
            size = orders.LENGTH.unpack(self._exactly(orders.LENGTH.size))[0]
            return msgspec.msgpack.decode(self._exactly(size), type=orders.Done)
        except (OSError, msgspec.MsgspecError) as e:
            raise Gone(str(e)) from None

    def _exactly(self, size: int) -> bytes:
        out = bytearray()
        while len(out) < size:
            part = self._socket.recv(size - len(out))
            if not part:
                raise ConnectionResetError("closed")
            out += part
        return bytes(out)

    def end(self, number: int, patience: float = END_PATIENCE) -> None:
        """Signal it, and see it gone: killed where it takes longer."""
        for sent in (number, signal.SIGKILL):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, sent)
            if readable(self.pidfd, patience):
                break
        self.reap()

    def reap(self) -> None:
        with suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)


def readable(fd: int, patience: float) -> bool:
    """Within so many seconds. Not by select(), which knows no descriptor above 1023."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(patience * 1000))


def connected(folder: Path, patience: float) -> Line | None:
    """To the one that runs; None where there is none."""
    try:
        return Line(folder / orders.SOCKET, patience)
    except OSError:
        return None


def started(folder: Path, resolvers: Path, build: str, patience: float, *, hold: bool = False) -> tuple[Line, orders.Done]:
    """A new process, ready: it serves what its files say; `hold`: once it is told of the cluster. Raises SkepError."""
    heard, ready = os.pipe()
    try:
        pid = _spawned(
            [str(folder), "--resolvers", str(resolvers), "--build", build, *(["--hold"] if hold else [])], folder / orders.LOG, ready
        )
        os.close(ready)
        ready = -1
        word = os.read(heard, 1) if readable(heard, START_PATIENCE) else b""
    finally:
        os.close(heard)
        if ready >= 0:
            os.close(ready)
    line = connected(folder, patience) if word else None
    if line is None or line.pid != pid:
        if line is not None:
            line.close()
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
        raise SkepError(f"the resolver does not start: {last_words(folder)}")
    try:
        return line, line.ask(orders.Hello())
    except Gone as e:
        line.end(signal.SIGKILL)
        line.close()
        raise SkepError(f"the resolver does not start: {e}") from None


def _spawned(arguments: list[str], log: Path, ready: int) -> int:
    """The pid. A session of its own; it says that it is ready on its descriptor 3, and nothing else of ours is open in it."""
    with suppress(FileNotFoundError):
        if log.stat().st_size > LOG_SIZE:
            log.unlink()
    errors = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    # a copy of a descriptor onto itself would stay close-on-exec
    copy = os.dup(ready) if ready == 3 else ready
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, errors, 1),
        (os.POSIX_SPAWN_DUP2, errors, 2),
        (os.POSIX_SPAWN_DUP2, copy, 3),
    ]
    command = [sys.executable, "-m", "skep.datapath.resolver", *arguments, "--ready", "3"]
    try:
        return os.posix_spawn(sys.executable, command, dict(os.environ), file_actions=actions, setsid=True, setsigmask=[])
    finally:
        os.close(errors)
        if copy != ready:
            os.close(copy)


def last_words(folder: Path) -> str:
    try:
        lines = (folder / orders.LOG).read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else "it said nothing"
