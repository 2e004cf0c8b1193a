"""`/volumes…`: this node's. Cluster volumes (CSI) are refused."""

from __future__ import annotations

from aiohttp import web

from skep.api.filters import Filters, has_label
from skep.api.localevents import message
from skep.api.query import loose_bool
from skep.api.routing import Call, Routes, answer, nothing
from skep.api.wire import volumes as wire
from skep.errors import NotFound, NotImplementedHere
from skep.node.volumes import Volume

ROUTES = Routes()
NO_CLUSTER_VOLUMES = "skep does not keep cluster volumes (CSI): create a local volume on each node, or mount a shared file system"


def _form(call: Call, volume: Volume) -> dict[str, object]:
    return wire.volume_form(volume, call.context.volumes.mountpoint(volume))


def _labelled(wanted: Filters, volume: Volume) -> bool:
    return wanted.labels("label", volume.labels) and not any(has_label(volume.labels, item) for item in wanted.get("label!"))


def _no_such(call: Call, name: str) -> NotFound:
    """A manager looks among cluster volumes too, and says so differently."""
    if call.version >= (1, 42) and call.context.swarm.info().control_available:
        return NotFound(f"volume {name} not found")
    return NotFound(f"get {name}: no such volume")


def _event(call: Call, action: str, name: str, **attributes: str) -> None:
    call.context.events.publish(message("volume", action, name, attributes, call.context.clock.now()))


@ROUTES.add("GET", "/volumes")
async def ls(call: Call) -> web.StreamResponse:
    wanted = call.filters("dangling", "driver", "label", "name")
    dangling = wanted.truth("dangling")
    volumes = call.context.volumes
    used = {mount.volume for container in call.context.engine.all() for mount in container.config.mounts}
    shown = [
        _form(call, volume)
        for volume in volumes.all()
        if wanted.exact("driver", volume.driver)
        and wanted.matches("name", volume.name)
        and wanted.labels("label", volume.labels)
        and (dangling is None or dangling == (volume.name not in used))
    ]
    return answer({"Volumes": shown, "Warnings": None})


@ROUTES.add("POST", "/volumes/create")
async def create(call: Call) -> web.StreamResponse:
    asked = await call.body(wire.CreateRequest)
    if asked.cluster_volume is not None:
        raise NotImplementedHere(NO_CLUSTER_VOLUMES)
    volumes = call.context.volumes
    new = not (asked.name and volumes.has(asked.name))
    volume = await volumes.create(asked.name, driver=asked.driver, options=asked.options, labels=asked.labels)
    if new:
        _event(call, "create", volume.name, driver=volume.driver)
    return answer(_form(call, volume), 201)


@ROUTES.add("POST", "/volumes/prune")
async def prune(call: Call) -> web.StreamResponse:
    """Anonymous ones only, unless `all` is asked for (before 1.42: always all)."""
    wanted = call.filters("all", "label", "label!")
    every = call.version < (1, 42) or bool(wanted.truth("all"))
    gone, reclaimed = await call.context.volumes.prune(all=every, wanted=lambda volume: _labelled(wanted, volume))
    for name in gone:
        _event(call, "destroy", name, driver="local")
    _event(call, "prune", "", reclaimed=str(reclaimed))
    return answer({"VolumesDeleted": gone, "SpaceReclaimed": reclaimed})


@ROUTES.add("GET", "/volumes/{name*}")
async def inspect(call: Call) -> web.StreamResponse:
    name = call.path["name"]
    if not call.context.volumes.has(name):
        raise _no_such(call, name)
    return answer(_form(call, call.context.volumes.get(name)))


@ROUTES.add("PUT", "/volumes/{name*}")
async def update(call: Call) -> web.StreamResponse:
    _ = call.cluster
    raise NotImplementedHere(NO_CLUSTER_VOLUMES)


@ROUTES.add("DELETE", "/volumes/{name*}")
async def remove(call: Call) -> web.StreamResponse:
    """`force` only makes it fine that there is none, as in Docker."""
    name = call.path["name"]
    force = loose_bool(call.query, "force")
    if not force and not call.context.volumes.has(name):
        raise _no_such(call, name)
    if await call.context.volumes.remove(name, force=force):
        _event(call, "destroy", name, driver="local")
    return nothing(204)
