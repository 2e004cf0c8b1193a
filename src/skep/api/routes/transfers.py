"""Images that come and go: pull, import, push, load, save. Progress goes out as JSON lines while the engine works."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from aiohttp import web

from skep.api.routes.images import ONE_PLATFORM, event, find
from skep.api.routing import ENCODER, Call, Routes
from skep.api.streams import begin, send_lines
from skep.api.wire import images as wire
from skep.engine.base import Progress
from skep.errors import Invalid, NotFound, NotImplementedHere, SkepError

ROUTES = Routes()
LOG = logging.getLogger("skep.api")
CHUNK = 256 << 10
NO_FETCHING = "skep does not fetch archives from elsewhere: curl -L URL | docker import -"

Line = dict[str, Any]
Work = Callable[[Callable[[Line], None]], Awaitable[None]]


async def _streamed(call: Call, work: Work) -> web.StreamResponse:
    """What `work` says, a line each. An error before the first line is a status of its own, later it is a line of the stream."""
    lines: asyncio.Queue[Line | SkepError | None] = asyncio.Queue()

    async def run() -> None:
        try:
            await work(lines.put_nowait)
            lines.put_nowait(None)
        except SkepError as error:
            lines.put_nowait(error)

    response: web.StreamResponse | None = None
    async with asyncio.TaskGroup() as group:
        running = group.create_task(run())
        first = await lines.get()
        if not isinstance(first, SkepError):
            response = await begin(call, "application/json")
            await send_lines(response, _encoded(first, lines))
        running.cancel()
    if response is None:
        assert isinstance(first, SkepError)
        raise first
    return response


async def _encoded(first: Line | None, lines: asyncio.Queue[Line | SkepError | None]) -> AsyncGenerator[bytes, None]:
    line: Line | SkepError | None = first
    while line is not None:
        if isinstance(line, SkepError):
            yield ENCODER.encode({"errorDetail": {"message": line.message}, "error": line.message}) + b"\r\n"
            return
        yield ENCODER.encode(line) + b"\r\n"
        line = await lines.get()


def _auth(call: Call) -> str:
    return call.request.headers.get("X-Registry-Auth", "")


@ROUTES.add("POST", "/images/create")
async def create(call: Call) -> web.StreamResponse:
    """A pull (`fromImage`) or an import (`fromSrc`)."""
    if call.query.get("fromImage"):
        return await _pull(call)
    if call.query.get("fromSrc"):
        return await _import(call)
    raise Invalid("either fromImage or fromSrc must be given")


async def _pull(call: Call) -> web.StreamResponse:
    name, tag = call.query.get("fromImage", ""), call.query.get("tag", "")
    if tag:
        name = f"{name}@{tag}" if ":" in tag else f"{name}:{tag}"
    wire.split_reference(name)
    name = wire.tagged(name)

    async def work(say: Callable[[Line], None]) -> None:
        image = await call.context.engine.images.pull(
            name, auth=_auth(call), platform=call.query.get("platform", ""), on_progress=lambda step: say(wire.progress_line(step))
        )
        shown = wire.familiar(name)
        event(call, "pull", shown, wire.split_reference(shown)[0], image)

    return await _streamed(call, work)


async def _import(call: Call) -> web.StreamResponse:
    if call.query["fromSrc"] != "-":
        raise NotImplementedHere(NO_FETCHING)
    if call.query.get("platform"):
        raise NotImplementedHere("skep imports archives for this node's own platform only")
    repository, tag = call.query.get("repo", ""), call.query.get("tag", "")
    name = f"{repository}:{tag}" if repository and tag else repository
    if name:
        wire.split_reference(name)

    async def work(say: Callable[[Line], None]) -> None:
        id = await call.context.engine.images.import_archive(
            call.request.content.iter_chunked(CHUNK),
            reference=name,
            message=call.query.get("message", ""),
            changes=call.request.query.getall("changes", []),
        )
        event(call, "import", id, wire.familiar(wire.tagged(name)) if name else id, find(call, id))
        say({"status": id})

    return await _streamed(call, work)


@ROUTES.add("POST", "/images/{name*}/push", refuses={"platform": ONE_PLATFORM})
async def push(call: Call) -> web.StreamResponse:
    """One tag, or all of the repository."""
    name, _, digest = wire.split_reference(call.path["name"])
    if digest:
        raise Invalid("cannot push a digest reference")
    images = call.context.engine.images
    shown = wire.familiar(name)
    tags = [call.query["tag"]] if call.query.get("tag") else _tags(call, shown)

    async def work(say: Callable[[Line], None]) -> None:
        for number, tag in enumerate(tags or ["latest"]):

            def report(step: Progress, first: bool = number == 0) -> None:
                if first or not step.status.startswith("The push refers"):
                    say(wire.progress_line(step))

            done = await images.push(f"{name}:{tag}", auth=_auth(call), on_progress=report)
            event(call, "push", f"{shown}:{tag}", shown, images.get(f"{name}:{tag}"))
            say({"progressDetail": {}, "aux": done})

    return await _streamed(call, work)


def _tags(call: Call, name: str) -> list[str]:
    return sorted(
        tag.rpartition(":")[2] for image in call.context.engine.images.all() for tag in image.tags if tag.rpartition(":")[0] == name
    )


@ROUTES.add("POST", "/images/load", refuses={"platform": ONE_PLATFORM})
async def load(call: Call) -> web.StreamResponse:
    """`quiet` changes nothing: there is no progress to show."""

    async def work(say: Callable[[Line], None]) -> None:
        for line in await call.context.engine.images.load(call.request.content.iter_chunked(CHUNK)):
            if line.startswith("Loaded image"):
                image = call.context.engine.images.get(line.partition(": ")[2])
                if image is not None:
                    event(call, "load", image.id, image.id, image)
            say({"stream": f"{line}\n"})

    return await _streamed(call, work)


@ROUTES.add("GET", "/images/get", refuses={"platform": ONE_PLATFORM})
async def save_all(call: Call) -> web.StreamResponse:
    names = call.request.query.getall("names", [])
    if not names:
        raise Invalid("no image names were given")
    return await _save(call, names)


@ROUTES.add("GET", "/images/{name*}/get", refuses={"platform": ONE_PLATFORM})
async def save(call: Call) -> web.StreamResponse:
    return await _save(call, [call.path["name"]])


async def _save(call: Call, names: list[str]) -> web.StreamResponse:
    """An error on the way can only cut the connection: half an archive is none."""
    images = call.context.engine.images
    for name in names:
        if images.get(name) is None and not _tags(call, name):
            raise NotFound(f"No such image: {wire.tagged(name)}")
    async with contextlib.aclosing(images.save(names)) as pieces:
        first = await anext(pieces, b"")
        response = await begin(call, "application/x-tar")
        with contextlib.suppress(ConnectionError):
            try:
                await response.write(first)
                async for piece in pieces:
                    await response.write(piece)
            except SkepError as error:
                LOG.warning("saving %s broke off: %s", ", ".join(names), error.message)
                if call.request.transport is not None:
                    call.request.transport.abort()
                return response
    for name in names:
        if (image := images.get(name)) is not None:
            event(call, "save", image.id, image.id, image)
    return response
