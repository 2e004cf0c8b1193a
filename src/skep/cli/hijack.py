"""A terminal, or a pipe, joined to a connection that was taken over: `skep exec -it`, `skep run`."""

from __future__ import annotations

import os
import select
import signal
import socket

from skep.cli.service_logs import frames, write
from skep.cli.shell import Failed
from skep.errors import SkepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from skep.cli.shell import Shell
    from skep.client.calls import Call
    from skep.client.unix import Answer


KEYS = "ctrl-p,ctrl-q"
"""What detaches where nothing else was chosen."""


def detach_keys(text: str) -> bytes:
    """`ctrl-p,ctrl-q` -> the bytes a terminal sends for it. Raises Failed."""
    found = bytearray()
    for part in text.split(","):
        name = part.removeprefix("ctrl-")
        if len(part) == 1:
            found += part.encode()
        elif part.startswith("ctrl-") and len(name) == 1 and ("a" <= name <= "z" or name in "@[\\]^_"):
            found.append(ord(name.upper()) & 0x1F)
        else:
            raise Failed(f"Unknown character: '{part}'")
    return bytes(found)


class Keyboard:
    """Looks for the keys that detach; what may be their beginning is held back until it is known."""

    def __init__(self, keys: bytes) -> None:
        self.keys = keys
        self.held = b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """(what goes on to the container, are the keys there)."""
        out = bytearray()
        for n in range(len(data)):
            self.held += data[n : n + 1]
            if self.held == self.keys:
                self.held = b""
                return bytes(out), True
            while self.held and not self.keys.startswith(self.held):
                out += self.held[:1]
                self.held = self.held[1:]
        return bytes(out), False


class Detached(Exception):
    """The keys were pressed."""


def attach(
    shell: Shell,
    answer: Answer,
    *,
    tty: bool,
    interactive: bool,
    resize: Callable[[int, int], Call],
    keys: str = "",
    ends: Answer | None = None,
) -> bool:
    """Until the other side closes; True when the user has detached. The end of the input is told by closing our half.

    `ends` is for a container whose output is not looked at: it ends when that has something to read, or when the input has ended.
    """
    restore = _raw(shell) if tty and interactive else None
    follow = _follow_size(shell, resize) if tty and shell.out.isatty() else None
    keyboard = Keyboard(detach_keys(keys or KEYS)) if tty and interactive and shell.input.isatty() else None
    try:
        blocks = _blocks(shell, answer, interactive, keyboard, ends)
        if tty:
            for block in blocks:
                write(shell, 1, block)
        else:
            for stream, data in frames(blocks):
                write(shell, stream, data)
    except Detached:
        return True
    finally:
        if restore is not None:
            restore()
        if follow is not None:
            signal.signal(signal.SIGWINCH, follow)
        answer.close()
    return False


def ready_blocks(answer: Answer) -> Iterator[bytes]:
    """What has come in already."""
    connection = answer.connection
    if connection.rest:
        yield connection.some()
    while unread(connection.sock) or select.select([connection.sock], [], [], 0)[0]:
        data = connection.sock.recv(1 << 16)
        if not data:
            return
        yield data


def _blocks(
    shell: Shell, answer: Answer, interactive: bool, keyboard: Keyboard | None = None, ends: Answer | None = None
) -> Iterator[bytes]:
    """What comes in; on the way the input is sent, but no more of it than is taken: who waits to send must go on reading."""
    connection = answer.connection
    sock = connection.sock
    if connection.rest:
        yield connection.some()
    source = Input(shell, keyboard) if interactive else None
    other = [ends.connection.sock] if ends is not None else []
    sock.setblocking(False)
    while True:
        reading: list[Any] = [sock, *other]
        if source is not None and source.wanted:
            reading.append(source.descriptor)
        writing = [sock] if source is not None and source.pending else []
        ready, free, _ = ([sock], writing, []) if unread(sock) else select.select(reading, writing, [])
        if sock in ready:
            data = _received(sock)
            if data == b"":
                return
            if data:
                yield data
        if other and other[0] in ready:
            return
        if source is None:
            continue
        if source.descriptor in ready:
            source.read()
        if (free or source.pending or source.ended) and not source.send(sock):
            source = None
            if ends is not None:
                return


def _received(sock: socket.socket) -> bytes | None:
    """None when there is nothing yet, b"" at the end."""
    try:
        return sock.recv(1 << 16)
    except BlockingIOError:
        return None


class Input:
    """What is typed or piped, on its way to the container. What has no descriptor is read at once."""

    def __init__(self, shell: Shell, keyboard: Keyboard | None) -> None:
        self.keyboard = keyboard
        self.pending = b""
        self.ended = False
        self.descriptor = -1
        try:
            self.descriptor = shell.input.fileno()
        except (OSError, ValueError):
            self.pending = shell.input.read().encode()
            self.ended = True

    @property
    def wanted(self) -> bool:
        return not self.pending and not self.ended

    def read(self) -> None:
        """Raises Detached."""
        data = os.read(self.descriptor, 1 << 16)
        self.ended = not data
        if self.keyboard is not None:
            data, detached = self.keyboard.feed(data)
            if detached:
                raise Detached
        self.pending = data

    def send(self, sock: socket.socket) -> bool:
        """False when there is no more to send: the input has ended (the other side is told), or nobody listens any more."""
        try:
            if self.pending:
                self.pending = self.pending[sock.send(self.pending) :]
            if self.ended and not self.pending:
                sock.shutdown(socket.SHUT_WR)
                return False
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


def unread(sock: socket.socket) -> bool:
    """Over TLS more may have come than was read, which select does not see."""
    pending: Callable[[], int] | None = getattr(sock, "pending", None)
    return bool(pending and pending())


def _raw(shell: Shell) -> Callable[[], None] | None:
    """Keys go to the container as they are. The way back, None where there is no terminal."""
    import termios
    import tty

    try:
        source = shell.input.fileno()
        before = termios.tcgetattr(source)
    except (termios.error, OSError, ValueError):
        return None
    tty.setraw(source, termios.TCSANOW)  # what was typed already is for the container
    return lambda: termios.tcsetattr(source, termios.TCSADRAIN, before)


def _follow_size(shell: Shell, resize: Callable[[int, int], Call]) -> signal.Handlers | Callable[..., object] | int | None:
    """The window's size, now and whenever it changes; the handler that was there before."""
    from skep.client.unix import Engine

    def tell(*_: object) -> None:
        try:
            size = os.get_terminal_size(shell.out.fileno())
            engine = Engine(shell.address)
            engine.call(resize(size.lines, size.columns))
            engine.close()
        except (OSError, ValueError, SkepError):
            pass

    tell()
    return signal.signal(signal.SIGWINCH, tell)
