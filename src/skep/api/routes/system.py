"""`/_ping`, `/version`, `/info`, `/auth`: what a client asks first. They answer whatever the state of the swarm."""

from __future__ import annotations

from aiohttp import web

from skep.api.context import Cluster
from skep.api.routing import Call, Routes, answer
from skep.api.wire.cluster import swarm_info
from skep.errors import NotImplementedHere, SkepError

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


@ROUTES.add("POST", "/auth")
async def auth(call: Call) -> web.StreamResponse:
    raise NotImplementedHere("skep does not check registry logins: credentials are used, and checked, when an image is pulled")
