"""`/containers…`: what runs on this node, for looking at and into; task containers live and die by their service."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

from aiohttp import web

from skep.api.filters import Filters
from skep.api.logs import NO_STREAM, options
from skep.api.processes import top_table
from skep.api.query import loose_bool, number
from skep.api.routing import ENCODER, Call, Routes, answer, nothing
from skep.api.streams import Hijacked, LogText, begin, close_writer, detach_keys, pump, send_lines, stream_type, take_over
from skep.api.wire import containers as wire
from skep.clock import SECOND
from skep.engine.base import Container, Exit, Image
from skep.errors import Conflict, Invalid, NotFound, NotImplementedHere, SkepError
from skep.model.network import Network
from skep.node.containers import Described

ROUTES = Routes()
NO_SIZE = "skep does not measure the size of containers"
NO_CREATE = "skep does not create plain containers yet: create a service"
_STATES = ("created", "restarting", "running", "removing", "paused", "exited", "dead")
_SIGNAL = re.compile(r"(?:SIG)?[A-Z0-9+-]{2,12}|[0-9]{1,2}")


def find(call: Call, reference: str = "") -> Container:
    reference = reference or call.path["id"]
    container = call.context.engine.get(reference.removeprefix("/"))
    if container is None:
        raise NotFound(f"No such container: {reference}")
    return container


def _names(call: Call, described: Described) -> Mapping[str, str]:
    """Names of the container's networks, where this node is a manager and knows them."""
    if not described.networks or not call.context.swarm.info().control_available:
        return {}
    try:
        view = call.cluster.view
    except SkepError:
        return {}
    return {n.id: n.name for place in described.networks if (n := view.get(Network, place.network_id)) is not None}


def _image(call: Call, container: Container) -> Image | None:
    return call.context.engine.images.get(container.config.image)


def summary(call: Call, container: Container) -> dict[str, Any]:
    described = call.state.containers.describe(container)
    return wire.list_form(described, _image(call, container), _names(call, described), call.context.clock.now())


_FILTERS = (
    "ancestor", "before", "exited", "expose", "health", "id", "is-task", "isolation", "label", "name", "network", "publish", "since",
    "status", "volume",
)  # fmt: skip


@ROUTES.add("GET", "/containers/json", refuses={"size": NO_SIZE})
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
    found = sorted(call.context.engine.all(), key=lambda c: -c.created_at)
    passing = [
        c for c in found if (everything or c.running) and _passes(wanted, c, neighbours, ancestors) and _health_passes(call, wanted, c)
    ]
    shown = [s for c in passing if _shown_passes(wanted, s := summary(call, c))]
    return answer(shown[:limit] if limit > 0 else shown)


def _passes(wanted: Filters, container: Container, neighbours: Mapping[str, list[Container]], ancestors: set[str]) -> bool:
    config = container.config
    is_task = wanted.truth("is-task")
    if any(container.created_at >= other.created_at for other in neighbours["before"]):
        return False
    if any(container.created_at <= other.created_at for other in neighbours["since"]):
        return False
    if wanted.get("exited") and (container.exit is None or str(container.exit.code) not in wanted.get("exited")):
        return False
    return (
        wanted.matches("id", config.id)
        and wanted.matches("name", config.name, f"/{config.name}")
        and wanted.labels("label", config.labels)
        and wanted.exact("status", wire.state(container))
        and wanted.exact("isolation", "default", "")
        and (is_task is None or is_task == (wire.TASK_ID in config.labels))
        and (not wanted.get("ancestor") or config.image in ancestors)
        and wanted.exact("volume", *(m.target for m in config.mounts), *(m.source for m in config.mounts))
    )


def _health_passes(call: Call, wanted: Filters, container: Container) -> bool:
    if not wanted.get("health"):
        return True
    health = call.state.containers.describe(container).health
    return wanted.exact("health", health.status if health is not None else "none")


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


@ROUTES.add("GET", "/containers/{id}/json", refuses={"size": NO_SIZE})
async def inspect(call: Call) -> web.StreamResponse:
    container = find(call)
    described = call.state.containers.describe(container)
    driver = str(call.context.host.info().get("Driver", ""))
    execs = call.state.execs.of(container.config.id)
    return answer(wire.inspect_form(described, _image(call, container), _names(call, described), driver, execs))


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
    details = "" if loose_bool(call.query, "details") else None
    records = call.context.engine.logs(
        config.id,
        follow=chosen.follow,
        since=chosen.since,
        until=chosen.until,
        tail=chosen.tail,
        stdout=chosen.stdout,
        stderr=chosen.stderr,
    )

    async def lines() -> AsyncIterator[bytes]:
        try:
            async for record in records:
                yield text.render(record.at, record.stream, record.data, details)
        except SkepError as error:
            yield text.failure(error.message)

    response = await begin(call, stream_type(call, config.tty))
    await send_lines(response, lines())
    return response


@ROUTES.add("POST", "/containers/{id}/wait")
async def wait(call: Call) -> web.StreamResponse:
    """Headers at once: `docker run` opens this before it starts the container."""
    condition = call.query.get("condition", "") or "not-running"
    if condition not in ("not-running", "next-exit", "removed"):
        raise Invalid(f'invalid condition: "{condition}"')
    container = find(call)
    waiting = _Waiting(call, container, condition)
    try:
        response = await begin(call, "application/json")
        try:
            ended = await waiting.result()
        except SkepError as error:
            shown: dict[str, Any] = {"StatusCode": 0, "Error": {"Message": error.message}}
        else:
            shown = {"StatusCode": ended.code}
            if ended.error:
                shown["Error"] = {"Message": ended.error}
        await response.write(ENCODER.encode(shown) + b"\n")
    finally:
        waiting.close()
    return response


class _Waiting:
    """Subscribed before the headers go out, so that nothing is missed between the two."""

    def __init__(self, call: Call, container: Container, condition: str) -> None:
        self.engine = call.context.engine
        self.id = container.config.id
        self.condition = condition
        self.container = container
        self.queue = self.engine.subscribe()

    def close(self) -> None:
        self.engine.unsubscribe(self.queue)

    async def result(self) -> Exit:
        if self.condition == "not-running" and not self.container.running:
            return self.container.exit or Exit(code=0, at=0)
        last = self.container.exit
        while True:
            action, id, ended = await self.queue.get()
            if id != self.id:
                continue
            if action == "die" and ended is not None:
                last = ended
                if self.condition != "removed":
                    return ended
            elif action == "destroy":
                if last is None and self.condition != "removed":
                    raise SkepError(f"container {self.id} was removed")
                return last or Exit(code=0, at=0)


@ROUTES.add("GET", "/containers/{id}/top")
async def top(call: Call) -> web.StreamResponse:
    container = find(call)
    if not container.running:
        raise Conflict(f"container {container.config.id} is not running")
    return answer(await top_table(container.pid, call.query.get("ps_args", "") or "-ef"))


@ROUTES.add("POST", "/containers/{id}/start", refuses={"checkpoint": "skep does not start from checkpoints"})
async def start(call: Call) -> web.StreamResponse:
    container = find(call)
    if container.running:
        return nothing(304)
    if wire.TASK_ID in container.config.labels:
        raise NotImplementedHere(
            f"container {container.config.name} is a task's: a task is started once, its service starts a new one in its place"
        )
    await call.context.engine.start(container.config.id)
    return nothing(204)


@ROUTES.add("POST", "/containers/{id}/restart")
async def restart(call: Call) -> web.StreamResponse:
    container = find(call)
    signal = _signal(call.query.get("signal", ""))
    grace = number(call.query, "t", call.state.containers.describe(container).stop_timeout)
    if wire.TASK_ID in container.config.labels:
        raise NotImplementedHere(f"container {container.config.name} is a task's: skep does not restart those, change the service instead")
    if container.running:
        await call.context.engine.stop(container.config.id, signal=signal, grace=grace * SECOND if grace >= 0 else 1 << 62)
    await call.context.engine.start(container.config.id)
    return nothing(204)


def _signal(text: str) -> str:
    if text and not _SIGNAL.fullmatch(text.upper()):
        raise Invalid(f"Invalid signal: {text}")
    return text.upper()


@ROUTES.add("POST", "/containers/{id}/stop")
async def stop(call: Call) -> web.StreamResponse:
    container = find(call)
    signal = _signal(call.query.get("signal", ""))
    grace = number(call.query, "t", call.state.containers.describe(container).stop_timeout)
    if not container.running:
        return nothing(304)
    await call.context.engine.stop(container.config.id, signal=signal, grace=grace * SECOND if grace >= 0 else 1 << 62)
    return nothing(204)


@ROUTES.add("POST", "/containers/{id}/kill")
async def kill(call: Call) -> web.StreamResponse:
    container = find(call)
    signal = _signal(call.query.get("signal", "")) or "SIGKILL"
    if not container.running:
        raise Conflict(f"cannot kill container: {call.path['id']}: container {container.config.id} is not running")
    await call.context.engine.kill(container.config.id, signal)
    return nothing(204)


@ROUTES.add("DELETE", "/containers/{id}", refuses={"link": "skep has no links between containers"})
async def remove(call: Call) -> web.StreamResponse:
    """`v` (anonymous volumes too) changes nothing: there are none."""
    container = find(call)
    force = loose_bool(call.query, "force")
    if container.running and not force:
        raise Conflict(
            f'cannot remove container "{call.path["id"]}": container is running: stop the container before removing or force remove'
        )
    await call.context.engine.remove(container.config.id, force=force)
    return nothing(204)


@ROUTES.add("POST", "/containers/{id}/resize")
async def resize(call: Call) -> web.StreamResponse:
    container = find(call)
    if not container.running:
        raise Conflict(f"container {container.config.id} is not running")
    await call.context.engine.resize(container.config.id, number(call.query, "h"), number(call.query, "w"))
    return nothing()


@ROUTES.add("POST", "/containers/{id}/attach", refuses={"logs": "skep does not replay logs on attach: read them with docker logs"})
async def attach(call: Call) -> web.StreamResponse:
    container = find(call)
    config = container.config
    if container.paused:
        raise Conflict(f"container {config.id} is paused, unpause the container before attach")
    if container.exit is not None:
        raise Conflict(f"container {config.id} is not running")
    try:
        keys = detach_keys(call.query.get("detachKeys", ""))
    except ValueError as error:
        raise Invalid(f"Invalid escape keys ({call.query.get('detachKeys', '')}) provided: {error}") from None
    live = loose_bool(call.query, "stream")
    chosen = {name: loose_bool(call.query, name) for name in ("stdin", "stdout", "stderr")}
    streams = await call.context.engine.attach(config.id)
    try:
        reader, writer = await take_over(call, stream_type(call, config.tty))
        try:
            if live:
                stdin = chosen["stdin"] and config.stdin
                await pump(
                    streams, reader, writer, tty=config.tty, stdin=stdin, stdout=chosen["stdout"], stderr=chosen["stderr"], keys=keys
                )
        finally:
            await close_writer(reader, writer)
    finally:
        await streams.close()
    return Hijacked()


def _refuse(method: str, path: str, sentence: str) -> None:
    async def refused(call: Call) -> web.StreamResponse:
        if "id" in call.path:
            find(call)
        raise NotImplementedHere(sentence)

    ROUTES.add(method, path)(refused)


_refuse("POST", "/containers/create", NO_CREATE)
_refuse("POST", "/containers/prune", "skep does not prune containers: those of tasks go with their tasks")
for _verb in ("pause", "unpause", "rename", "update"):
    _refuse("POST", f"/containers/{{id}}/{_verb}", f"skep does not {_verb} containers yet: change the service instead")
_refuse("GET", "/containers/{id}/stats", "skep does not measure containers yet")
_refuse("GET", "/containers/{id}/changes", "skep does not list changed files of containers yet")
_refuse("GET", "/containers/{id}/export", "skep does not export containers")
for _method in ("HEAD", "GET", "PUT"):
    _refuse(_method, "/containers/{id}/archive", "skep does not copy files into or out of containers yet")
_refuse("GET", "/containers/{id}/attach/ws", "skep does not attach over WebSocket: use POST .../attach")
