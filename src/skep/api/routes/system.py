"""`/_ping`, `/version`, `/info`, `/auth`: what a client asks first. They answer whatever the state of the swarm."""

from __future__ import annotations

import base64

import msgspec
from aiohttp import web

from skep.api.context import Cluster
from skep.api.routing import Call, Routes, answer
from skep.api.wire.cluster import swarm_info
from skep.errors import SkepError
from skep.model.base import Spec

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


class AuthConfig(Spec, frozen=True, kw_only=True):
    username: str = msgspec.field(default="", name="username")
    password: str = msgspec.field(default="", name="password")
    auth: str = msgspec.field(default="", name="auth")
    serveraddress: str = msgspec.field(default="", name="serveraddress")
    identitytoken: str = msgspec.field(default="", name="identitytoken")
    registrytoken: str = msgspec.field(default="", name="registrytoken")

    def __repr__(self) -> str:
        return "AuthConfig(...)"


@ROUTES.add("POST", "/auth")
async def auth(call: Call) -> web.StreamResponse:
    """`docker login`: the client keeps the credentials, if the registry takes them. No refresh token is asked for."""
    body = await call.body(AuthConfig)
    encoded = base64.urlsafe_b64encode(msgspec.json.encode(body)).decode()
    await call.context.engine.images.login(body.serveraddress, encoded)
    return answer({"Status": "Login Succeeded", "IdentityToken": ""})
