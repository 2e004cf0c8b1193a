"""`/events`: what happened (the last 256), then what happens, one JSON object a line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from aiohttp import web

from skep.api.filters import Filters, parse
from skep.api.query import when
from skep.api.routing import ENCODER, Call, Routes
from skep.api.streams import begin, send_lines
from skep.errors import Invalid

ROUTES = Routes()
_NAMED = ("container", "image", "volume", "network", "daemon", "plugin", "node", "service", "secret", "config")


def passes(wanted: Filters, event: Mapping[str, Any]) -> bool:
    """Docker's rules: exact action (`health_status` and `exec_*` match without what follows the colon), exact type and scope; objects by
    id, id prefix or name; a label must be among the attributes."""
    attributes = event["Actor"]["Attributes"]
    action = str(event["Action"])
    if not wanted.exact("event", action, action.partition(":")[0]) or not wanted.exact("type", event["Type"]):
        return False
    if not wanted.exact("scope", event["scope"]) or not wanted.labels("label", attributes):
        return False
    return all(_names(wanted.get(kind), kind, event, attributes) for kind in _NAMED if wanted.get(kind))


def _names(values: tuple[str, ...], kind: str, event: Mapping[str, Any], attributes: Mapping[str, str]) -> bool:
    if event["Type"] == kind:
        id, name = event["Actor"]["ID"], attributes.get("name", "")
        return any(v in (id, name) or (kind != "image" and id.startswith(v)) or _untagged(name) == v or _untagged(id) == v for v in values)
    if kind == "image" and event["Type"] == "container":
        image = attributes.get("image", "")
        return any(v in (image, _untagged(image)) for v in values)
    return False


def _untagged(name: str) -> str:
    rest = name.partition("@")[0]
    head, colon, tag = rest.rpartition(":")
    return head if colon and "/" not in tag else rest


@ROUTES.add("GET", "/events")
async def events(call: Call) -> web.StreamResponse:
    wanted = parse(call.query.get("filters", ""), None)
    since, until = when(call.query, "since"), when(call.query, "until")
    if since and until and since > until:
        raise Invalid(f"`since` time ({call.query['since']}) cannot be after `until` time ({call.query['until']})")
    context = call.context
    now = context.clock.now()
    live = not until or until > now
    hub = context.events
    queue = hub.subscribe() if live else None
    past = [e for e in hub.past() if since and since <= e["timeNano"] and (not until or e["timeNano"] <= until)] if since or until else []

    async def lines() -> AsyncGenerator[bytes, None]:
        for event in past:
            if passes(wanted, event):
                yield ENCODER.encode(event) + b"\n"
        if queue is None:
            return
        try:
            async with asyncio.timeout((until - now) / 1e9 if until else None):
                while (event := await queue.get()) is not None:
                    if passes(wanted, event):
                        yield ENCODER.encode(event) + b"\n"
        except TimeoutError:
            return

    try:
        response = await begin(call, "application/json")
        await send_lines(response, lines())
    finally:
        if queue is not None:
            hub.unsubscribe(queue)
    return response
