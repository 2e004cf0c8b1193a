"""Answers that do not end at once: JSON lines, log frames, and connections taken over for a process' streams (hijack).

A log line is one frame `[1|2 0 0 0, length as big-endian uint32]` + payload, unless the container has a tty. A taken-over connection
leaves HTTP after the 101: it is read and written as it is, and the client's half-close is the process' end of file, not the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import struct
from collections.abc import AsyncGenerator, Mapping
from typing import Any
from urllib.parse import quote_plus

from aiohttp import web

from skep.api.routing import Call
from skep.api.wire.times import padded
from skep.engine.base import Streams
from skep.errors import SkepError

MULTIPLEXED = "application/vnd.docker.multiplexed-stream"
RAW = "application/vnd.docker.raw-stream"
CHUNK = 32 << 10
FLUSH_AT = 64 << 10
LAST_INPUT = 1.0
"""Seconds in which a client that was told of the end may go on sending before it is cut off."""
GONE_WITHIN = 0.5
"""Seconds after which it is noticed that a client has gone that neither reads nor writes."""
DETACH_KEYS = b"\x10\x11"
"""ctrl-p, ctrl-q."""


_HEAD = struct.Struct(">BxxxI")


def frame(stream: int, data: bytes) -> bytes:
    return _HEAD.pack(stream, len(data)) + data


def stream_type(call: Call, tty: bool) -> str:
    """Before 1.42 every stream was labelled raw, with the same bytes in it."""
    return RAW if tty or call.version < (1, 42) else MULTIPLEXED


async def begin(call: Call, content_type: str) -> web.StreamResponse:
    """Headers at once, chunked body to follow."""
    response = web.StreamResponse(headers={"Content-Type": content_type})
    call.state.dress(response)
    await response.prepare(call.request)
    call.begun = response
    return response


class LogText:
    """Renders log lines: frame or plain, time stamp, details."""

    def __init__(self, *, tty: bool, timestamps: bool) -> None:
        self.tty = tty
        self.timestamps = timestamps

    def render(self, at: int, stream: int, data: bytes, details: str | None) -> bytes:
        text = data
        if details is not None:
            text = f"{details} ".encode() + text
        if self.timestamps:
            text = f"{padded(at)} ".encode() + text
        return text if self.tty else frame(stream, text)

    def failure(self, message: str) -> bytes:
        """What went wrong after the headers: stream 3, which clients report as the daemon's error."""
        text = f"Error grabbing logs: {message}\n".encode()
        return text if self.tty else frame(3, text)


async def send_lines(response: web.StreamResponse, pieces: AsyncGenerator[bytes, None]) -> None:
    """Write what has come, at once; what comes while a write is under way goes out together. Returns when the client has gone, too."""
    buffer = bytearray()
    filled, emptied = asyncio.Event(), asyncio.Event()
    ended = False

    async def collect() -> None:
        nonlocal ended
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                buffer.extend(piece)
                if not filled.is_set():
                    filled.set()
                while len(buffer) >= FLUSH_AT:
                    emptied.clear()
                    await emptied.wait()
        ended = True
        filled.set()

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(collect())
            while not ended or buffer:
                await filled.wait()
                filled.clear()
                data = bytes(buffer)
                buffer.clear()
                emptied.set()
                if data:
                    await response.write(data)
                if ended and not buffer:
                    break
    except* ConnectionError:
        pass


class Hijacked(web.StreamResponse):
    """Stands for an answer that was written by hand on a connection that is no longer aiohttp's."""

    async def prepare(self, request: Any) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


class _TakenOver(asyncio.StreamReaderProtocol):
    """Stream reader and writer on the connection; tells aiohttp when it is gone. A half-close keeps the other way open."""

    def __init__(self, reader: asyncio.StreamReader, before: asyncio.BaseProtocol) -> None:
        super().__init__(reader)
        self.before = before

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.before.connection_lost(exc)

    def eof_received(self) -> bool:
        """Over TLS too, where asyncio's would end both ways (skep.api.tls)."""
        super().eof_received()
        return True


async def take_over(call: Call, content_type: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Answer 101 (200 for a client that did not ask for an upgrade) and leave HTTP. The caller closes the writer."""
    request = call.request
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client has gone")
    await request.read()
    upgrade = request.headers.get("Upgrade", "")
    if upgrade:
        head = f"HTTP/1.1 101 UPGRADED\r\nContent-Type: {content_type}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
    else:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in call.state.headers.items())
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=CHUNK, loop=loop)
    protocol = _TakenOver(reader, transport.get_protocol())
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    writer.write(head.encode() + b"\r\n")
    await writer.drain()
    return reader, writer


def detach_keys(text: str) -> bytes:
    """`ctrl-p,ctrl-q` -> bytes; empty = the default. Letters a-z and @ [ \\ ] ^ _ after `ctrl-`, else single characters."""
    if not text:
        return DETACH_KEYS
    keys = bytearray()
    for key in text.split(","):
        if len(key) == 1 and ord(key) < 128:
            keys.append(ord(key))
        elif key.startswith("ctrl-") and len(key) == 6 and (key[5].isalpha() or key[5] in "@[\\]^_") and ord(key[5]) < 128:
            keys.append(ord(key[5].upper()) - 64)
        else:
            raise ValueError(f"Unknown character: '{key}'")
    return bytes(keys)


class Detached(Exception):
    """The user typed the detach keys."""


class KeyWatch:
    """Passes typed bytes on until the detach keys were typed one after the other (`detached`); a started sequence is held back."""

    def __init__(self, keys: bytes) -> None:
        self.keys = keys
        self.held = 0
        self.detached = False

    def feed(self, data: bytes) -> bytes:
        if not self.held and self.keys[:1] not in data:
            return data
        out = bytearray()
        for byte in data:
            if byte == self.keys[self.held]:
                self.held += 1
                if self.held == len(self.keys):
                    self.detached = True
                    return bytes(out)
                continue
            out += self.keys[: self.held]
            self.held = 0
            if byte == self.keys[0]:
                self.held = 1
            else:
                out.append(byte)
        return bytes(out)


async def pump(
    streams: Streams,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    *,
    tty: bool,
    stdin: bool,
    stdout: bool = True,
    stderr: bool = True,
    keys: bytes = DETACH_KEYS,
) -> bool:
    """Carry bytes both ways until the process has ended and all its output was sent, the client has gone, or (tty) it detached.

    Returns False when the client went or detached while the process was still running.
    """
    watch = KeyWatch(keys) if tty else None
    ended = True

    async def send_input() -> None:
        while data := await reader.read(CHUNK):
            if stdin:
                await streams.write(watch.feed(data) if watch else data)
            if watch is not None and watch.detached:
                raise Detached
        if stdin and tty:  # Docker: there is no end of input on a terminal, but somebody who has left it
            raise Detached
        if stdin:
            await streams.close_stdin()

    async def send_output() -> None:
        async with contextlib.aclosing(streams.output()) as output:
            async for stream, data in output:
                if (stream == 1 and not stdout) or (stream == 2 and not stderr):
                    continue
                writer.write(data if tty else frame(stream, data))
                await writer.drain()

    try:
        async with asyncio.TaskGroup() as group:
            feeding = group.create_task(_quiet(send_input()))
            watching = group.create_task(_watch(writer))
            await send_output()
            feeding.cancel()
            watching.cancel()
    except* (ConnectionError, Detached):
        ended = False
    return ended


async def _watch(writer: asyncio.StreamWriter) -> None:
    """Raise ConnectionResetError when the client has gone. Reading alone cannot tell: a client that half-closes reads the same way, and
    nothing is read at all while the process does not take its input."""
    connection = writer.get_extra_info("socket")
    if connection is None:
        return
    hung_up = select.poll()
    hung_up.register(connection.fileno(), 0)
    while True:
        if hung_up.poll(0):
            raise ConnectionResetError("the client has gone")
        await asyncio.sleep(GONE_WITHIN)


async def _quiet(feeding: Any) -> None:
    """Input may end badly (the process closed its stdin, the client went): the output decides when all is over. Detaching is passed on."""
    try:
        await feeding
    except (ConnectionError, SkepError):
        pass


async def close_writer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say that nothing more comes, and only then close: closing while input is still unread would reset the connection, and with it take
    from the client what it has not read yet."""
    with contextlib.suppress(ConnectionError, OSError, RuntimeError, TimeoutError):
        if writer.can_write_eof():
            writer.write_eof()
            async with asyncio.timeout(LAST_INPUT):
                while await reader.read(CHUNK):
                    pass
    writer.close()
    try:
        await writer.wait_closed()
    except ConnectionError:
        pass


def log_details(details: Mapping[str, str]) -> str:
    """`k=v,k=v`, sorted, URL-escaped as Go's url.QueryEscape does."""
    return ",".join(f"{quote_plus(k, safe='')}={quote_plus(v, safe='')}" for k, v in sorted(details.items()))
