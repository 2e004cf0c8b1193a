"""`/_ping`, `/version`, `/info`, `/system/df`, `/auth`: what a client asks first. They answer whatever the state of the swarm."""

from __future__ import annotations

from aiohttp import web

from skep.api.context import Cluster
from skep.api.routes.containers import summary
from skep.api.routing import Call, Routes, answer
from skep.api.wire.cluster import swarm_info
from skep.api.wire.images import image_summary
from skep.errors import Invalid, NotImplementedHere, SkepError

ROUTES = Routes()


def _ping_headers(call: Call) -> dict[str, str]:
    info = call.context.swarm.info()
    swarm = info.state
    if swarm == "active":
        swarm = "active/manager" if info.control_available else "active/worker"
    return {
        "Builder-Version": "1",
        "Swarm": swarm,
        "Cache-Control": "no-cache, no-store, must-revalidate",
        "Pragma": "no-cache",
        "Content-Type": "text/plain; charset=utf-8",
    }


@ROUTES.add("GET", "/_ping")
async def ping(call: Call) -> web.StreamResponse:
    return web.Response(body=b"OK", headers=_ping_headers(call))


@ROUTES.add("HEAD", "/_ping")
async def ping_head(call: Call) -> web.StreamResponse:
    return web.Response(headers={**_ping_headers(call), "Content-Length": "0"})


@ROUTES.add("GET", "/version")
async def version(call: Call) -> web.StreamResponse:
    return answer(call.context.host.version())


@ROUTES.add("GET", "/info")
async def info(call: Call) -> web.StreamResponse:
    shown = call.context.host.info()
    control: Cluster | None = None
    swarm = call.context.swarm.info()
    if swarm.control_available:
        try:
            control = call.cluster
        except SkepError:
            control = None
    shown["Swarm"] = swarm_info(swarm, control)
    return answer(shown)


_DISK_KINDS = ("container", "image", "volume", "build-cache")


@ROUTES.add("GET", "/system/df", refuses={"verbose": "GET /system/df?verbose is newer than API 1.50"})
async def disk_usage(call: Call) -> web.StreamResponse:
    """Images by their unpacked sizes; containers' own layers are not measured, so SizeRw is left out."""
    wanted = set(call.request.query.getall("type", _DISK_KINDS))
    for kind in wanted:
        if kind not in _DISK_KINDS:
            raise Invalid(f"unknown object type: {kind}")
    engine = call.context.engine
    images = list(engine.images.all()) if "image" in wanted else []
    users: dict[str, int] = {}
    for container in engine.all():
        users[container.config.image] = users.get(container.config.image, 0) + 1
    shown = {
        "LayersSize": _layers_size(call) if "image" in wanted else 0,
        "Images": [image_summary(i) | {"Containers": users.get(i.id, 0), "SharedSize": 0} for i in images],
        "Containers": [summary(call, c) for c in engine.all()] if "container" in wanted else [],
        "Volumes": [],
        "BuildCache": [],
    }
    return answer(shown)


def _layers_size(call: Call) -> int:
    """Sum over images with the same layers counted once as a whole (sizes of single layers are not kept)."""
    return sum({image.layers: image.size for image in call.context.engine.images.all()}.values())


@ROUTES.add("POST", "/auth")
async def auth(call: Call) -> web.StreamResponse:
    raise NotImplementedHere("skep does not check registry logins: credentials are used, and checked, when an image is pulled")
