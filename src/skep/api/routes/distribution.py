"""`/distribution/{name}/json`: what a registry has under a name, asked by the CLI before each service create."""

from __future__ import annotations

from aiohttp import web

from skep.api.routing import Call, Routes, answer
from skep.api.wire.images import split_reference
from skep.errors import NotFound

ROUTES = Routes()


@ROUTES.add("GET", "/distribution/{name*}/json")
async def inspect(call: Call) -> web.StreamResponse:
    split_reference(call.path["name"])
    auth = call.request.headers.get("X-Registry-Auth", "")
    try:
        descriptor, platforms = await call.context.engine.images.resolve(call.path["name"], auth=auth)
    except NotFound as error:
        _, unknown, rest = error.text.partition("manifest unknown")
        raise NotFound(unknown + rest if unknown else error.text) from None
    return answer({"Descriptor": descriptor, "Platforms": platforms})
