"""A process' standard streams in the event loop: over conmon's attach socket, or over pipes.

Nothing is lost: what nobody has read yet is kept up to a limit, beyond it we stop reading, conmon's (or the pipe's) buffer fills, and the
process waits, as it would on a terminal nobody looks at.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import AsyncGenerator, Callable

from skep.errors import SkepError

LIMIT = 1 << 20
_CHUNK = 1 << 16
_PACKET = 8192
"""conmon reads its attach socket in pieces of this size and drops what is beyond."""


class Outflow:
    """Output on its way from descriptors to one reader."""

    def __init__(self) -> None:
        self._chunks: deque[tuple[int, bytes]] = deque()
        self._size = 0
        self._news = asyncio.Event()
        self._ended = False
        self.pause: Callable[[], None] = lambda: None
        self.resume: Callable[[], None] = lambda: None
        self._paused = False
        self._unwanted = False

    def discard(self) -> None:
        """Nobody will read it: what comes is thrown away, and the process does not wait for a reader."""
        self._unwanted = True
        self._chunks.clear()
        self._size = 0
        if self._paused:
            self._paused = False
            self.resume()

    def add(self, stream: int, data: bytes) -> None:
        if self._unwanted:
            return
        self._chunks.append((stream, data))
        self._size += len(data)
        self._news.set()
        if self._size > LIMIT and not self._paused:
            self._paused = True
            self.pause()

    def end(self) -> None:
        self._ended = True
        self._news.set()

    async def output(self) -> AsyncGenerator[tuple[int, bytes], None]:
        while True:
            while self._chunks:
                stream, data = self._chunks.popleft()
                self._size -= len(data)
                if self._paused and self._size < LIMIT // 2:
                    self._paused = False
                    self.resume()
                yield stream, data
            if self._ended:
                return
            self._news.clear()
            if not self._chunks and not self._ended:
                await self._news.wait()


class Sizes:
    """The size of a terminal, told to conmon. It takes messages one at a time and forgets those that come with another: so what is asked
    soon after the last one waits, and only the latest is told."""

    GAP = 0.05

    def __init__(self, loop: asyncio.AbstractEventLoop, tell: Callable[[int, int], None]) -> None:
        self._loop = loop
        self._tell = tell
        self._timer: asyncio.TimerHandle | None = None
        self._latest: tuple[int, int] | None = None

    def set(self, rows: int, columns: int) -> None:
        """Raises SkepError when there is nobody to tell."""
        if self._timer is not None:
            self._latest = (rows, columns)
            return
        self._tell(rows, columns)
        self._timer = self._loop.call_later(self.GAP, self._again)

    def _again(self) -> None:
        self._timer = None
        if self._latest is not None:
            latest, self._latest = self._latest, None
            try:
                self.set(*latest)
            except SkepError:
                pass  # it has ended

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class AttachStreams:
    """Streams over conmon's attach socket. Made before the container starts, it is connected before the process runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._flow = Outflow()
        self._flow.pause = self._pause
        self._flow.resume = self._resume
        self._socket: socket.socket | None = None
        self._connected = asyncio.Event()
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def connected(self) -> bool:
        return self._socket is not None

    def connect(self, connection: socket.socket) -> None:
        if self._closed:
            connection.close()
            return
        self._socket = connection
        self._connected.set()
        self._resume()

    def append(self, data: bytes) -> None:
        """Put something of our own into the output."""
        self._flow.add(1, data)

    def end(self) -> None:
        """No more output will come."""
        self._pause()
        self._flow.end()
        self._connected.set()

    def _resume(self) -> None:
        if self._socket is not None and not self._closed:
            self._loop.add_reader(self._socket.fileno(), self._read)

    def _pause(self) -> None:
        if self._socket is not None and self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())

    def _read(self) -> None:
        assert self._socket is not None
        try:
            packet = self._socket.recv(_CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            packet = b""
        if not packet:
            self.end()
            self._closed = True
            self._socket.close()
        elif len(packet) > 1:
            self._flow.add(2 if packet[0] == 3 else 1, packet[1:])

    def output(self) -> AsyncGenerator[tuple[int, bytes], None]:
        return self._flow.output()

    async def write(self, data: bytes) -> None:
        await self._connected.wait()
        if self._socket is None or self._closed:
            raise SkepError("the process has ended")
        try:
            for at in range(0, len(data), _PACKET):
                await self._loop.sock_sendall(self._socket, data[at : at + _PACKET])
        except OSError as error:
            raise SkepError(f"cannot write to the process: {error.strerror}") from None

    async def close_stdin(self) -> None:
        await self._connected.wait()
        if self._socket is not None and not self._closed:
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it has ended already

    async def close(self) -> None:
        self.release()

    def discard(self) -> None:
        """Nobody reads or writes any more; the process goes on."""
        self._flow.discard()

    def release(self) -> None:
        self.end()
        self._closed = True
        if self._socket is not None:
            self._socket.close()


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


class PipeStreams:
    """Streams over three pipes, ours at the other end. `filtered` may hold back or change what comes on stderr."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stdin: int, stdout: int, stderr: int) -> None:
        self._loop = loop
        self._flow = Outflow()
        self._flow.pause = self._pause
        self._flow.resume = self._resume
        self._stdin = stdin
        self._sources = {stdout: 1, stderr: 2}
        self.filtered: Callable[[bytes], bytes] = lambda data: data
        for fd in (stdout, stderr):
            os.set_blocking(fd, False)
        if stdin >= 0:
            os.set_blocking(stdin, False)
        self._resume()

    def _resume(self) -> None:
        for fd in self._sources:
            self._loop.add_reader(fd, self._read, fd)

    def _pause(self) -> None:
        for fd in self._sources:
            self._loop.remove_reader(fd)

    def _read(self, fd: int) -> bool:
        """Whether anything was read."""
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(fd)
            del self._sources[fd]
            os.close(fd)
            return False
        stream = self._sources[fd]
        if stream == 2:
            data = self.filtered(data)
        if data:
            self._flow.add(stream, data)
        return True

    def finish(self, last: Callable[[], bytes] = lambda: b"") -> None:
        """The process has ended: take what is still in the pipes, then `last`, then end, even if a child of it holds them open."""
        for fd in list(self._sources):
            for _ in range(32):  # a pipe holds less; a child of the process that goes on writing shall not keep us
                if fd not in self._sources or not self._read(fd):
                    break
        rest = last()
        if rest:
            self._flow.add(2, rest)
        self._pause()
        self._flow.end()
        for fd in self._sources:
            os.close(fd)
        self._sources.clear()

    def output(self) -> AsyncGenerator[tuple[int, bytes], None]:
        return self._flow.output()

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            if self._stdin < 0:
                raise SkepError("the process' standard input is closed")
            try:
                view = view[os.write(self._stdin, view) :]
            except BlockingIOError:
                await self._writable()
            except OSError as error:
                raise SkepError(f"cannot write to the process: {error.strerror}") from None

    async def _writable(self) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        fd = self._stdin
        self._loop.add_writer(fd, _resolve, ready)
        try:
            await ready
        finally:
            self._loop.remove_writer(fd)

    async def close_stdin(self) -> None:
        self._close_stdin()

    def _close_stdin(self) -> None:
        if self._stdin >= 0:
            self._loop.remove_writer(self._stdin)
            os.close(self._stdin)
            self._stdin = -1

    def discard(self) -> None:
        """Nobody reads or writes any more; the process goes on."""
        self._close_stdin()
        self._flow.discard()

    async def close(self) -> None:
        """Whoever holds the process closes the pipes when it has ended (`finish`): closed now, they would end it."""
        self.discard()
