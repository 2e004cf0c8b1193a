"""`/images…`: list, inspect, history, pull, remove. Building, tagging, pushing, saving and loading are refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from skep.api.filters import Filters
from skep.api.query import loose_bool
from skep.api.routing import ENCODER, Call, Routes, answer
from skep.api.streams import begin, send_lines
from skep.api.wire import images as wire
from skep.engine.base import Image
from skep.errors import Invalid, NotFound, NotImplementedHere, SkepError

ROUTES = Routes()
NO_MANIFESTS = "skep keeps one platform of an image: the manifests of others cannot be shown"


def find(call: Call, name: str) -> Image:
    image = call.context.engine.images.get(name)
    if image is None:
        raise NotFound(f"No such image: {wire.tagged(name)}")
    return image


def _passes(call: Call, wanted: Filters, image: Image) -> bool:
    dangling = wanted.truth("dangling")
    for key, later in (("before", False), ("since", True)):
        for name in wanted.get(key):
            other = find(call, name)
            if image.id == other.id or (image.created > other.created) != later:
                return False
    references = wanted.get("reference")
    if references and not any(_like(pattern, tag) for pattern in references for tag in (*image.tags, *image.digests)):
        return False
    return (dangling is None or dangling == (not image.tags)) and wanted.labels("label", image.config.labels)


def _like(pattern: str, tag: str) -> bool:
    """As `docker images --filter reference=`: shell patterns over the name, or over name and tag where the pattern has one."""
    from fnmatch import fnmatchcase

    name = tag.partition("@")[0].rpartition(":")[0] if "@" not in tag else tag.partition("@")[0]
    return fnmatchcase(tag, pattern) or fnmatchcase(name, pattern)


@ROUTES.add("GET", "/images/json", refuses={"manifests": NO_MANIFESTS})
async def ls(call: Call) -> web.StreamResponse:
    """`all` and `digests` change nothing: there are no intermediate images, and digests are always given."""
    wanted = call.filters("before", "dangling", "label", "reference", "since", "until")
    if wanted.get("until"):
        raise NotImplementedHere("skep does not filter images by until: use before=IMAGE")
    images = [i for i in call.context.engine.images.all() if _passes(call, wanted, i)]
    shown = [wire.image_summary(i) for i in sorted(images, key=lambda i: -i.created)]
    if loose_bool(call.query, "shared-size"):
        shown = [s | {"SharedSize": 0} for s in shown]
    return answer(shown)


@ROUTES.add("GET", "/images/search")
async def search(call: Call) -> web.StreamResponse:
    raise NotImplementedHere("skep does not search registries")


@ROUTES.add("GET", "/images/get")
async def export_all(call: Call) -> web.StreamResponse:
    raise NotImplementedHere("skep does not save images to archives: push them to a registry instead")


@ROUTES.add("GET", "/images/{name*}/json", refuses={"manifests": NO_MANIFESTS})
async def inspect(call: Call) -> web.StreamResponse:
    driver = str(call.context.host.info().get("Driver", ""))
    return answer(wire.image_details(find(call, call.path["name"]), driver))


@ROUTES.add("GET", "/images/{name*}/history", refuses={"platform": "skep keeps one platform of an image"})
async def history(call: Call) -> web.StreamResponse:
    return answer(wire.history(find(call, call.path["name"])))


@ROUTES.add("GET", "/images/{name*}/get")
async def export(call: Call) -> web.StreamResponse:
    raise NotImplementedHere("skep does not save images to archives: push them to a registry instead")


@ROUTES.add("POST", "/images/create", refuses={"fromSrc": "skep does not import archives as images: build them elsewhere and pull"})
async def pull(call: Call) -> web.StreamResponse:
    """Progress as JSON lines. An error before the first line is a status of its own, later it is a line of the stream."""
    name, tag = call.query.get("fromImage", ""), call.query.get("tag", "")
    if not name:
        raise Invalid("either fromImage or fromSrc must be given")
    if tag:
        name = f"{name}@{tag}" if ":" in tag else f"{name}:{tag}"
    wire.split_reference(name)
    name = wire.tagged(name)
    lines: asyncio.Queue[dict[str, Any] | SkepError | None] = asyncio.Queue()
    auth = call.request.headers.get("X-Registry-Auth", "")

    async def work() -> None:
        try:
            await call.context.engine.images.pull(
                name,
                auth=auth,
                platform=call.query.get("platform", ""),
                on_progress=lambda step: lines.put_nowait(wire.progress_line(step)),
            )
            lines.put_nowait(None)
        except SkepError as error:
            lines.put_nowait(error)

    response: web.StreamResponse | None = None
    async with asyncio.TaskGroup() as group:
        pulling = group.create_task(work())
        first = await lines.get()
        if not isinstance(first, SkepError):
            response = await begin(call, "application/json")
            await send_lines(response, _progress(first, lines))
        pulling.cancel()
    if response is None:
        assert isinstance(first, SkepError)
        raise first
    return response


async def _progress(first: dict[str, Any] | None, lines: asyncio.Queue[dict[str, Any] | SkepError | None]) -> AsyncIterator[bytes]:
    line: dict[str, Any] | SkepError | None = first
    while line is not None:
        if isinstance(line, SkepError):
            yield ENCODER.encode({"errorDetail": {"message": line.message}, "error": line.message}) + b"\r\n"
            return
        yield ENCODER.encode(line) + b"\r\n"
        line = await lines.get()


@ROUTES.add("DELETE", "/images/{name*}", refuses={"platforms": "skep keeps one platform of an image"})
async def remove(call: Call) -> web.StreamResponse:
    """`noprune` changes nothing: there are no parent images to prune."""
    find(call, call.path["name"])
    return answer(await call.context.engine.images.remove(call.path["name"], force=loose_bool(call.query, "force")))


def _refuse(method: str, path: str, sentence: str) -> None:
    async def refused(call: Call) -> web.StreamResponse:
        raise NotImplementedHere(sentence)

    ROUTES.add(method, path)(refused)


_refuse("POST", "/images/load", "skep does not load images from archives: pull them from a registry")
_refuse("POST", "/images/prune", "skep does not prune images yet: remove them by name")
_refuse("POST", "/images/{name*}/push", "skep does not push images")
_refuse("POST", "/images/{name*}/tag", "skep does not tag images yet")
