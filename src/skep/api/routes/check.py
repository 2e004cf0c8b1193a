"""`/skep/network/check`: is the network well? Our own, below a prefix of our own: Docker has nothing like it. JSON lines.

GET looks; POST with `repair=1` also mends. `network`: id or name; without it all networks.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from aiohttp import web

from skep.api.query import go_bool
from skep.api.routing import ENCODER, Call, Routes
from skep.api.streams import begin, send_lines
from skep.errors import Invalid

ROUTES = Routes()


@ROUTES.add("GET", "/skep/network/check")
async def look(call: Call) -> web.StreamResponse:
    if go_bool(call.query, "repair"):
        raise Invalid("repair changes something: POST /skep/network/check?repair=1")
    return await _check(call, repair=False)


@ROUTES.add("POST", "/skep/network/check")
async def look_and_mend(call: Call) -> web.StreamResponse:
    return await _check(call, repair=go_bool(call.query, "repair"))


async def _check(call: Call, *, repair: bool) -> web.StreamResponse:
    async def lines() -> AsyncGenerator[bytes, None]:
        async with aclosing(events):
            async for event in events:
                yield ENCODER.encode(event) + b"\n"

    events = call.cluster.check(call.query.get("network", ""), repair)
    response = await begin(call, "application/json")
    await send_lines(response, lines())
    return response
