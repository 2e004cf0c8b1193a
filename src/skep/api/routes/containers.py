"""`/containers…` for looking: list, inspect, logs, top. Those of tasks and plain ones alike."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import msgspec
from aiohttp import web

from skep.api.filters import Filters
from skep.api.logs import NO_STREAM, options
from skep.api.networks import cluster_of
from skep.api.processes import top_table
from skep.api.query import loose_bool, number
from skep.api.routing import Call, Routes, answer
from skep.api.streams import LogText, begin, log_details, send_lines, stream_type
from skep.api.wire import containers as wire
from skep.engine.base import Container, Image
from skep.errors import Conflict, Invalid, NotFound, SkepError
from skep.model.network import Network
from skep.node.containers import Described
from skep.node.logattributes import log_attributes

ROUTES = Routes()
_STATES = ("created", "restarting", "running", "removing", "paused", "exited", "dead")


def find(call: Call, reference: str = "") -> Container:
    reference = reference or call.path["id"]
    container = call.context.engine.get(reference.removeprefix("/"))
    if container is None:
        raise NotFound(f"No such container: {reference}")
    return container


def _described(call: Call, container: Container) -> Described:
    """A task's place on `host` has that name for an id, on every node; who asks for the network finds this node's own."""
    described = call.state.containers.describe(container)
    host = call.context.networks.get("host")
    if host is None or described.plain is not None:
        return described
    places = tuple(msgspec.structs.replace(p, network_id=host.id) if p.network_id == "host" else p for p in described.networks)
    return msgspec.structs.replace(described, networks=places)


def _names(call: Call, described: Described) -> Mapping[str, str]:
    """Names of the container's networks: a manager knows them all, a worker those it takes part in."""
    if not described.networks:
        return {}
    own = {one.id: one.name for place in described.networks if (one := call.context.networks.get(place.network_id)) is not None}
    cluster = cluster_of(call)
    if cluster is not None:
        return own | {n.id: n.name for place in described.networks if (n := cluster.view.get(Network, place.network_id)) is not None}
    return own | {network.id: network.name for network in call.context.attachments.networks()}


def _image(call: Call, container: Container) -> Image | None:
    return call.context.engine.images.get(container.config.image)


def summary(call: Call, container: Container) -> dict[str, Any]:
    return _summary(call, _described(call, container))


def _summary(call: Call, described: Described) -> dict[str, Any]:
    image = _image(call, described.container)
    form = wire.list_form(described, image, _names(call, described), call.context.clock.now())
    meant = call.context.engine.images.get(form["Image"])
    if image is not None and (meant is None or meant.id != image.id):
        form["Image"] = image.id  # the name is another image's by now, or nobody's
    return form


_FILTERS = (
    "ancestor", "before", "exited", "expose", "health", "id", "is-task", "isolation", "label", "name", "network", "publish", "since",
    "status", "volume",
)  # fmt: skip


@ROUTES.add("GET", "/containers/json")
async def ls(call: Call) -> web.StreamResponse:
    wanted = call.filters(*_FILTERS)
    limit = number(call.query, "limit")
    for value in wanted.get("status"):
        if value not in _STATES:
            raise Invalid(f"invalid filter 'status={value}'")
    for code in wanted.get("exited"):
        if not re.fullmatch(r"-?[0-9]{1,9}", code):
            raise Invalid(f"invalid filter 'exited={code}'")
    wanted.truth("is-task")
    everything = loose_bool(call.query, "all") or limit > 0 or bool(wanted.get("status") or wanted.get("exited"))
    neighbours = {key: [find(call, name) for name in wanted.get(key)] for key in ("before", "since")}
    ancestors = {image.id for name in wanted.get("ancestor") if (image := call.context.engine.images.get(name)) is not None}
    shown: list[dict[str, Any]] = []
    for container in sorted(call.context.engine.all(), key=lambda c: -c.created_at):
        if 0 < limit <= len(shown):
            break
        described = _described(call, container)
        if not (everything or container.running or described.restarting):
            continue
        if _passes(wanted, described, neighbours, ancestors) and _shown_passes(wanted, form := _summary(call, described)):
            shown.append(form)
    if loose_bool(call.query, "size"):
        for form in shown:
            form["SizeRw"], form["SizeRootFs"] = await call.context.engine.size(form["Id"])
    return answer(shown)


def _passes(wanted: Filters, described: Described, neighbours: Mapping[str, list[Container]], ancestors: set[str]) -> bool:
    container = described.container
    config = container.config
    is_task = wanted.truth("is-task")
    if any(container.created_at >= other.created_at for other in neighbours["before"]):
        return False
    if any(container.created_at <= other.created_at for other in neighbours["since"]):
        return False
    if wanted.get("exited") and (container.running or container.exit is None or str(container.exit.code) not in wanted.get("exited")):
        return False
    health = described.health.status if described.health is not None else "none"
    return (
        wanted.matches("id", config.id)
        and wanted.matches("name", config.name, f"/{config.name}")
        and wanted.labels("label", config.labels)
        and wanted.exact("status", wire.state(described))
        and wanted.exact("health", health)
        and wanted.exact("isolation", "default", "")
        and (is_task is None or is_task == (wire.TASK_ID in config.labels))
        and (not wanted.get("ancestor") or config.image in ancestors)
        and wanted.exact(
            "volume", *(m.target for m in config.mounts), *(m.source for m in config.mounts), *(m.volume for m in config.mounts)
        )
    )


def _shown_passes(wanted: Filters, shown: dict[str, Any]) -> bool:
    """What only the rendered form knows: networks and ports."""
    places = shown["NetworkSettings"]["Networks"]
    ports = shown["Ports"]
    return (
        wanted.exact("network", *places, *(p["NetworkID"] for p in places.values()))
        and _port_passes(wanted, "expose", {(p["PrivatePort"], p["Type"]) for p in ports})
        and _port_passes(wanted, "publish", {(p["PublicPort"], p["Type"]) for p in ports if "PublicPort" in p})
    )


def _port_passes(wanted: Filters, key: str, held: set[tuple[int, str]]) -> bool:
    values = wanted.get(key)
    if not values:
        return True
    for value in values:
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(\w+))?", value)
        if match is None:
            raise Invalid(f"invalid filter '{key}={value}'")
        first, last = int(match[1]), int(match[2] or match[1])
        if any(first <= port <= last and protocol == (match[3] or "tcp") for port, protocol in held):
            return True
    return False


@ROUTES.add("GET", "/containers/{id}/json")
async def inspect(call: Call) -> web.StreamResponse:
    container = find(call)
    described = _described(call, container)
    driver = str(call.context.engine.describe().get("storage_driver", "overlay2"))
    execs = call.state.execs.of(container.config.id)
    shown = wire.inspect_form(described, _image(call, container), _names(call, described), driver, execs)
    if loose_bool(call.query, "size"):
        shown["SizeRw"], shown["SizeRootFs"] = await call.context.engine.size(container.config.id)
    return answer(shown)


@ROUTES.add("GET", "/containers/{id}/logs")
async def logs(call: Call) -> web.StreamResponse:
    chosen = options(call)
    if chosen is None:
        raise Invalid(NO_STREAM)
    container = find(call)
    config = container.config
    if config.log_driver == "none":
        raise SkepError("configured logging driver does not support reading")
    text = LogText(tty=config.tty, timestamps=loose_bool(call.query, "timestamps"))
    details = None
    if loose_bool(call.query, "details"):
        chosen_options = call.state.containers.describe(container).log_options
        details = log_details(log_attributes(config, chosen_options, wire.image_name(config, _image(call, container))))
    records = call.context.engine.logs(
        config.id,
        follow=chosen.follow,
        since=chosen.since,
        until=chosen.until,
        tail=chosen.tail,
        stdout=chosen.stdout,
        stderr=chosen.stderr,
    )

    async def lines() -> AsyncGenerator[bytes, None]:
        try:
            async for record in records:
                yield text.render(record.at, record.stream, record.data, details)
        except SkepError as error:
            yield text.failure(error.message)

    async with contextlib.aclosing(records):  # it holds the log's files from the first moment on
        response = await begin(call, stream_type(call, config.tty))
        await send_lines(response, lines())
    return response


@ROUTES.add("GET", "/containers/{id}/top")
async def top(call: Call) -> web.StreamResponse:
    container = find(call)
    if not container.running:
        raise Conflict(f"container {container.config.id} is not running")
    table = await top_table(container.pid, call.query.get("ps_args", "") or "-ef")
    call.context.events.container("top", container, {})
    return answer(table)
