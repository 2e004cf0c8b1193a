"""`/containers/{id}/archive`, `export`, `changes`, `stats`: a container's files and what it uses."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager

import msgspec
from aiohttp import web

from skep.api.query import loose_bool
from skep.api.routes.containers import find
from skep.api.routing import ENCODER, Call, Routes, answer, nothing
from skep.api.streams import begin, send_lines
from skep.api.wire import stats as wire
from skep.api.wire.times import stamp
from skep.clock import SECOND
from skep.engine.base import PathStat, Stats
from skep.errors import Invalid, NotFound

ROUTES = Routes()
STAT = "X-Docker-Container-Path-Stat"
CHUNK = 256 << 10


def _path(call: Call) -> str:
    path = call.query.get("path", "")
    if not path:
        raise Invalid("invalid parameter: path cannot be empty")
    if "\0" in path:
        raise Invalid("invalid parameter: path holds a null byte")
    return path


def _stat(stat: PathStat) -> str:
    shown = {"name": stat.name, "size": stat.size, "mode": stat.mode, "mtime": stamp(stat.mtime), "linkTarget": stat.link_target}
    return base64.b64encode(msgspec.json.encode(shown)).decode()


@contextmanager
def _named(call: Call, id: str) -> Iterator[None]:
    """What is not found is told with the container's name as it was asked for."""
    try:
        yield
    except NotFound as error:
        raise NotFound(error.text.replace(id, call.path["id"])) from None


async def _find_path(call: Call, path: str) -> PathStat:
    id = find(call).config.id
    with _named(call, id):
        return await call.context.engine.stat_path(id, path)


@ROUTES.add("HEAD", "/containers/{id}/archive")
async def head(call: Call) -> web.StreamResponse:
    found = await _find_path(call, _path(call))
    response = nothing()
    response.headers[STAT] = _stat(found)
    return response


@ROUTES.add("GET", "/containers/{id}/archive")
async def read(call: Call) -> web.StreamResponse:
    path, container = _path(call), find(call)
    engine = call.context.engine
    found = await _find_path(call, path)
    call.context.events.container("archive-path", container, {})
    return await _send(call, engine.read_archive(container.config.id, path), {STAT: _stat(found)})


@ROUTES.add("PUT", "/containers/{id}/archive")
async def write(call: Call) -> web.StreamResponse:
    path, container = _path(call), find(call)
    keep, owner = loose_bool(call.query, "noOverwriteDirNonDir"), loose_bool(call.query, "copyUIDGID")
    data = call.request.content.iter_chunked(CHUNK)
    with _named(call, container.config.id):
        await call.context.engine.write_archive(container.config.id, path, data, keep_type=keep, copy_owner=owner)
    call.context.events.container("extract-to-dir", container, {})
    return nothing()


@ROUTES.add("GET", "/containers/{id}/export")
async def export(call: Call) -> web.StreamResponse:
    container = find(call)
    call.context.events.container("export", container, {})
    return await _send(call, call.context.engine.export(container.config.id), {}, "application/octet-stream")


async def _send(
    call: Call, data: AsyncGenerator[bytes, None], headers: dict[str, str], kind: str = "application/x-tar"
) -> web.StreamResponse:
    """What goes wrong before the first piece is an answer of its own; what goes wrong later cuts the connection."""
    async with aclosing(data):
        first = await anext(data, b"")
        response = web.StreamResponse(headers={"Content-Type": kind, **headers})
        call.state.dress(response)
        await response.prepare(call.request)
        call.begun = response
        await response.write(first)
        async for piece in data:
            await response.write(piece)
        return response


@ROUTES.add("GET", "/containers/{id}/changes")
async def changes(call: Call) -> web.StreamResponse:
    found = await call.context.engine.changes(find(call).config.id)
    return answer([{"Path": path, "Kind": kind} for kind, path in found] or None)


@ROUTES.add("GET", "/containers/{id}/stats")
async def stats(call: Call) -> web.StreamResponse:
    """`stream` is on unless it is said not to be. One answer alone takes two samples, a second apart, but for `one-shot`."""
    container = find(call)
    id, name = container.config.id, container.config.name
    engine, clock = call.context.engine, call.context.clock
    streaming = "stream" not in call.query or loose_bool(call.query, "stream")
    once = loose_bool(call.query, "one-shot")
    if once and streaming:
        raise Invalid("cannot have stream=true and one-shot=true")
    before = Stats(at=0)
    if not streaming:
        if not once and container.running:
            before = await engine.stats(id)
            await clock.sleep(SECOND)
        return answer(wire.stats_form(id, name, await engine.stats(id), before))
    response = await begin(call, "application/json")

    async def lines() -> AsyncGenerator[bytes, None]:
        last = before
        while True:
            try:
                now = await engine.stats(id)
            except NotFound:
                return
            yield ENCODER.encode(wire.stats_form(id, name, now, last)) + b"\n"
            last = now
            await clock.sleep(SECOND)

    await send_lines(response, lines())
    return response
