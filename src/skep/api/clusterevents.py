"""The cluster's changes as events of `docker events` (scope swarm), where this node is a manager.

There are no task events, as in Docker. The time of a message is the object's own time of creation or change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from skep.api.context import Cluster, Context
from skep.api.localevents import message
from skep.clock import SECOND
from skep.errors import SkepError, Unavailable
from skep.model.base import Object
from skep.model.network import Network
from skep.model.node import Node
from skep.model.service import Service
from skep.store.base import Event

LOOK = 2 * SECOND
"""How often a node that is no manager looks whether it has become one; joining and initialising here tell at once."""


async def run(context: Context, changed: asyncio.Event) -> None:
    """Publish the cluster's events to the node's, for as long as it runs. `changed` is set when the node joined or left a cluster."""
    while True:
        changed.clear()
        try:
            cluster = context.cluster
        except SkepError:
            await _pause(context, changed)
            continue
        await _follow(context, cluster, changed)


async def _pause(context: Context, changed: asyncio.Event) -> None:
    async with asyncio.TaskGroup() as group:
        sleeping = group.create_task(context.clock.sleep(LOOK))
        waiting = group.create_task(changed.wait())
        await asyncio.wait((sleeping, waiting), return_when=asyncio.FIRST_COMPLETED)
        sleeping.cancel()
        waiting.cancel()


async def _follow(context: Context, cluster: Cluster, changed: asyncio.Event) -> None:
    """Until the cluster is another one, or its watch ends."""
    watch = cluster.watch()

    async def end_on_change() -> None:
        while True:
            await changed.wait()
            changed.clear()
            try:
                same = context.cluster is cluster
            except SkepError:
                same = False
            if not same:
                watch.close()
                return

    try:
        async with asyncio.TaskGroup() as group:
            guard = group.create_task(end_on_change())
            try:
                async for batch in watch:
                    for event in batch:
                        told = translate(event)
                        if told is not None:
                            context.events.publish(told)
            except Unavailable:
                pass
            guard.cancel()
    finally:
        watch.close()
    changed.set()


def translate(event: Event) -> dict[str, Any] | None:
    """None for what Docker does not tell of."""
    known = _KINDS.get(event.kind)
    subject = event.new or event.old
    if known is None or subject is None:
        return None
    kind, attributes = known
    action = "remove" if event.action == "delete" else event.action
    shown = attributes(event.old, event.new)
    if event.action == "update" and shown is None:
        return None
    at = subject.created_at if action == "create" else subject.updated_at
    return message(kind, action, event.id, shown or {}, at, scope="swarm")


def _changes(shown: dict[str, str], name: str, old: str, new: str) -> None:
    if old != new:
        if old:
            shown[f"{name}.old"] = old
        if new:
            shown[f"{name}.new"] = new


def _service(old: Object | None, new: Object | None) -> dict[str, str] | None:
    subject = new or old
    assert isinstance(subject, Service)
    shown = {"name": subject.name}
    if isinstance(old, Service) and isinstance(new, Service):
        _changes(shown, "image", _image(old), _image(new))
        _changes(shown, "replicas", _replicas(old), _replicas(new))
        _changes(shown, "updatestate", _state(old), _state(new))
        if len(shown) == 1 and old.spec == new.spec and old.endpoint == new.endpoint and old.update_status != new.update_status:
            return None
    return shown


def _image(service: Service) -> str:
    container = service.spec.task_template.container_spec
    return container.image if container is not None else ""


def _replicas(service: Service) -> str:
    mode = service.spec.mode.replicated
    return str(mode.replicas) if mode is not None and mode.replicas is not None else ""


def _state(service: Service) -> str:
    return service.update_status.state.value if service.update_status is not None else ""


def _node(old: Object | None, new: Object | None) -> dict[str, str] | None:
    subject = new or old
    assert isinstance(subject, Node)
    shown = {"name": subject.hostname}
    if isinstance(old, Node) and isinstance(new, Node):
        _changes(shown, "availability", old.availability.value, new.availability.value)
        _changes(shown, "role", old.spec.role or old.role.value, new.spec.role or new.role.value)
        _changes(shown, "state", old.status.state.value, new.status.state.value)
        if len(shown) == 1 and old.spec == new.spec and old.description == new.description:
            return None
    return shown


def _network(old: Object | None, new: Object | None) -> dict[str, str] | None:
    subject = new or old
    assert isinstance(subject, Network)
    if isinstance(old, Network) and isinstance(new, Network) and old.spec == new.spec and old.ipam == new.ipam:
        return None
    return {"name": subject.name}


_KINDS: Mapping[type[Object], tuple[str, Callable[[Object | None, Object | None], dict[str, str] | None]]] = {
    Service: ("service", _service),
    Node: ("node", _node),
    Network: ("network", _network),
}
"""What is told, and what of it. An update that shows nothing a user can see (a heartbeat, an allocator's cursor) is not told."""
