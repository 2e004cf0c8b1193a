"""`/containers…` that change something: create, start, stop, and all that `docker container` does to one.

Plain containers are `skep.node.plain`'s. A task's container can be stopped and killed, the rest its service does; the nodes that the host
socket shows are the engine's own affair.
"""

from __future__ import annotations

from aiohttp import web

from skep.api.filters import has_label
from skep.api.query import cutoff, loose_bool, number
from skep.api.routes.containers import find
from skep.api.routing import Call, Routes, answer, nothing
from skep.clock import SECOND
from skep.engine.base import Container
from skep.errors import Conflict, NotImplementedHere
from skep.node.containers import task_of
from skep.node.plain import Plain
from skep.node.plain_config import CreateRequest, UpdateRequest, record_of
from skep.plan.container import signal_number

ROUTES = Routes()
NOT_HERE = "the host socket shows the nodes of a one-machine cluster: run containers through a node's own socket"


def plain_of(call: Call) -> Plain:
    if call.context.plain is None:
        raise NotImplementedHere(NOT_HERE)
    return call.context.plain


def owned(call: Call, container: Container) -> Plain | None:
    """`skep.node.plain` where the container is its; None: a task's, or a node."""
    return call.context.plain if record_of(container.config) is not None else None


def refuse_task(container: Container, what: str) -> None:
    if task_of(container.config):
        raise NotImplementedHere(f"container {container.config.name} is a task's: {what}")


@ROUTES.add("POST", "/containers/create")
async def create(call: Call) -> web.StreamResponse:
    request = await call.body(CreateRequest)
    made = plain_of(call).create(request, call.query.get("name", ""), call.query.get("platform", ""))
    id, warnings = await call.state.finish(made)
    return answer({"Id": id, "Warnings": warnings}, 201)


@ROUTES.add("POST", "/containers/{id}/start", refuses={"checkpoint": "skep does not start from checkpoints"})
async def start(call: Call) -> web.StreamResponse:
    container = find(call)
    plain = owned(call, container)
    if plain is not None:
        return nothing(204 if await call.state.finish(plain.start(container.config.id)) else 304)
    if container.running:
        return nothing(304)
    refuse_task(container, "a task is started once, its service starts a new one in its place")
    await call.context.engine.start(container.config.id)
    return nothing(204)


def _patience(call: Call) -> int | None:
    """Seconds; None: the container's own."""
    return number(call.query, "t") if call.query.get("t", "") else None


def _signal(call: Call) -> str:
    text = call.query.get("signal", "")
    if text:
        signal_number(text)
    return text.upper()


@ROUTES.add("POST", "/containers/{id}/stop")
async def stop(call: Call) -> web.StreamResponse:
    container = find(call)
    signal, seconds = _signal(call), _patience(call)
    plain = owned(call, container)
    if plain is not None:
        stopped = await call.state.finish(plain.stop(container.config.id, signal=signal, seconds=seconds))
        return nothing(204 if stopped else 304)
    if not container.running:
        return nothing(304)
    await _stop(call, container, signal, seconds)
    return nothing(204)


async def _stop(call: Call, container: Container, signal: str, seconds: int | None) -> None:
    grace = seconds if seconds is not None else call.state.containers.describe(container).stop_timeout
    await call.context.engine.stop(container.config.id, signal=signal, grace=grace * SECOND if grace >= 0 else 1 << 62)


@ROUTES.add("POST", "/containers/{id}/restart")
async def restart(call: Call) -> web.StreamResponse:
    container = find(call)
    signal, seconds = _signal(call), _patience(call)
    plain = owned(call, container)
    if plain is not None:
        await call.state.finish(plain.restart(container.config.id, signal=signal, seconds=seconds))
        return nothing(204)
    refuse_task(container, "skep does not restart those, change the service instead")
    if container.running:
        await _stop(call, container, signal, seconds)
    await call.context.engine.start(container.config.id)
    return nothing(204)


@ROUTES.add("POST", "/containers/{id}/kill")
async def kill(call: Call) -> web.StreamResponse:
    container = find(call)
    signal = _signal(call) or "SIGKILL"
    reference = call.path["id"]
    plain = owned(call, container)
    if plain is not None:
        await call.state.finish(plain.kill(reference, signal))
        return nothing(204)
    if not container.running:
        raise Conflict(f"cannot kill container: {reference}: container {container.config.id} is not running")
    await call.context.engine.kill(container.config.id, signal)
    return nothing(204)


@ROUTES.add("POST", "/containers/{id}/pause")
async def pause(call: Call) -> web.StreamResponse:
    container = find(call)
    refuse_task(container, "its service would take a paused task for a running one")
    plain = owned(call, container)
    await (plain.pause(container.config.id) if plain is not None else call.context.engine.pause(container.config.id))
    return nothing(204)


@ROUTES.add("POST", "/containers/{id}/unpause")
async def unpause(call: Call) -> web.StreamResponse:
    await call.context.engine.unpause(find(call).config.id)
    return nothing(204)


@ROUTES.add("POST", "/containers/{id}/rename")
async def rename(call: Call) -> web.StreamResponse:
    container = find(call)
    refuse_task(container, "its name is its slot's")
    await call.state.finish(plain_of(call).rename(container.config.id, call.query.get("name", "")))
    return nothing(204)


@ROUTES.add("POST", "/containers/{id}/update")
async def update(call: Call) -> web.StreamResponse:
    request = await call.body(UpdateRequest)
    container = find(call)
    refuse_task(container, "update its service (docker service update --limit-memory ...)")
    warnings = await call.state.finish(plain_of(call).update(container.config.id, request))
    return answer({"Warnings": warnings})


@ROUTES.add("DELETE", "/containers/{id}")
async def remove(call: Call) -> web.StreamResponse:
    container = find(call)
    force, reference = loose_bool(call.query, "force"), call.path["id"]
    plain = owned(call, container)
    if loose_bool(call.query, "link"):
        raise NotImplementedHere("skep does not remove links of containers by themselves: remove the container that has them")
    if plain is not None:
        await call.state.finish(plain.remove(reference, force=force, volumes=loose_bool(call.query, "v")))
        return nothing(204)
    if container.running and not force:
        raise Conflict(f'cannot remove container "{reference}": container is running: stop the container before removing or force remove')
    await call.context.engine.remove(container.config.id, force=force)
    return nothing(204)


@ROUTES.add("POST", "/containers/prune")
async def prune(call: Call) -> web.StreamResponse:
    """Stopped plain containers; those of tasks go with their tasks."""
    wanted = call.filters("label", "label!", "until")
    limit = cutoff(wanted.get("until"), call.context.clock.now())

    def passes(container: Container) -> bool:
        labels = container.config.labels
        if limit and container.created_at >= limit:
            return False
        return wanted.labels("label", labels) and not any(has_label(labels, item) for item in wanted.get("label!"))

    gone, freed = await call.state.finish(plain_of(call).prune(passes))
    if gone:
        call.context.events.tell("container", "prune", "", {"reclaimed": str(freed)})
    return answer({"ContainersDeleted": gone or None, "SpaceReclaimed": freed})
