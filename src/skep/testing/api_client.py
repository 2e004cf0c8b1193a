"""A plain HTTP client over a unix socket, which shows what is on the wire; and the server under test beside it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from skep.api.server import make_app, serve_unix
from skep.testing.fake_context import FakeContext


class Answer(msgspec.Struct):
    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        """JSON, or text where it is none; None when empty."""
        if not self.raw:
            return None
        try:
            return msgspec.json.decode(self.raw)
        except msgspec.DecodeError:
            return self.raw.decode("latin-1")


class Client:
    def __init__(self, path: str) -> None:
        self.path = path

    async def open(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], asyncio.StreamReader, asyncio.StreamWriter]:
        """Status, headers, and the open connection."""
        reader, writer = await asyncio.open_unix_connection(self.path)
        given = {"Host": "api.moby.localhost", "User-Agent": "test", **(headers or {})}
        data = b""
        if body is not None:
            data = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else msgspec.json.encode(body)
            given.setdefault("Content-Type", "application/json")
            given["Content-Length"] = str(len(data))
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in given.items())
        writer.write(head.encode() + b"\r\n" + data)
        await writer.drain()
        line = (await reader.readline()).decode()
        answered: dict[str, str] = {}
        while (text := (await reader.readline()).decode().rstrip("\r\n")) != "":
            name, _, value = text.partition(":")
            answered[name.strip().title()] = value.strip()
        return int(line.split()[1]), answered, reader, writer

    async def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        status, answered, reader, writer = await self.open(method, path, body, {"Connection": "close", **(headers or {})})
        raw = b""
        if method != "HEAD" and status != 304:
            raw = await (chunked(reader) if answered.get("Transfer-Encoding") == "chunked" else reader.read())
        writer.close()
        await writer.wait_closed()
        return Answer(status, answered, raw)


async def chunked(reader: asyncio.StreamReader) -> bytes:
    whole = bytearray()
    while chunk := await next_chunk(reader):
        whole += chunk
    return bytes(whole)


async def next_chunk(reader: asyncio.StreamReader) -> bytes:
    """Empty at the end of the body."""
    size = int((await reader.readline()).strip() or b"0", 16)
    data = await reader.readexactly(size)
    await reader.readline()
    return data


async def _plain(context: FakeContext) -> None:
    await context.plain.start_up()
    await context.plain.run()


@contextlib.asynccontextmanager
async def serving(context: FakeContext, *, answered: Callable[[], None] = lambda: None) -> AsyncIterator[Client]:
    """A server over `context` on a socket of its own, with what a daemon runs beside it. `answered` is called with each answer."""
    app = make_app(context)

    async def answers(request: web.Request, response: web.StreamResponse) -> None:
        answered()

    app.on_response_prepare.append(answers)
    with tempfile.TemporaryDirectory(prefix=f"skt{os.getpid()}") as folder:
        path = os.path.join(folder, "api.sock")
        ready = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            beside = [
                group.create_task(context.events.run()),
                group.create_task(context.engine.run()),
                group.create_task(_plain(context)),
                group.create_task(serve_unix(app, path, ready=ready)),
            ]
            await ready.wait()
            try:
                yield Client(path)
            finally:
                for task in beside:
                    task.cancel()
