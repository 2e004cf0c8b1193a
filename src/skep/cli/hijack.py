"""A terminal, or a pipe, joined to a connection that was taken over: `skep exec -it`."""

from __future__ import annotations

import os
import select
import signal
import socket

from skep.cli.service_logs import frames, write
from skep.errors import SkepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from skep.cli.shell import Shell
    from skep.client.calls import Call
    from skep.client.unix import Answer


def attach(shell: Shell, answer: Answer, *, tty: bool, interactive: bool, resize: Callable[[int, int], Call]) -> None:
    """Until the other side closes. The end of the input is told by closing our half."""
    restore = _raw(shell) if tty and interactive else None
    follow = _follow_size(shell, resize) if tty else None
    try:
        blocks = _blocks(shell, answer, interactive)
        if tty:
            for block in blocks:
                write(shell, 1, block)
        else:
            for stream, data in frames(blocks):
                write(shell, stream, data)
    finally:
        if restore is not None:
            restore()
        if follow is not None:
            signal.signal(signal.SIGWINCH, follow)
        answer.close()


def _blocks(shell: Shell, answer: Answer, interactive: bool) -> Iterator[bytes]:
    """What comes in; on the way the input is sent."""
    connection = answer.connection
    sock = connection.sock
    if connection.rest:
        yield connection.some()
    source = _source(shell, sock) if interactive else -1
    while True:
        watched = [sock.fileno()] if source < 0 else [sock.fileno(), source]
        ready, _, _ = select.select(watched, [], [])
        if sock.fileno() in ready:
            data = sock.recv(1 << 16)
            if not data:
                return
            yield data
        if source >= 0 and source in ready and not _pass_on(sock, os.read(source, 1 << 16)):
            source = -1


def _pass_on(sock: socket.socket, data: bytes) -> bool:
    """False when there is no more to send: the input has ended (the other side is told), or nobody listens any more."""
    try:
        if data:
            sock.sendall(data)
            return True
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass
    return False


def _source(shell: Shell, sock: socket.socket) -> int:
    """What the input can be waited for by; what has no descriptor is sent at once."""
    try:
        return shell.input.fileno()
    except (OSError, ValueError):
        _pass_on(sock, shell.input.read().encode())
        _pass_on(sock, b"")
        return -1


def _raw(shell: Shell) -> Callable[[], None] | None:
    """Keys go to the container as they are. The way back, None where there is no terminal."""
    import termios
    import tty

    try:
        source = shell.input.fileno()
        before = termios.tcgetattr(source)
    except (termios.error, OSError, ValueError):
        return None
    tty.setraw(source)
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
