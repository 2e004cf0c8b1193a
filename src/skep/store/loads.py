"""What each node carries, kept up to date with each write to a task: the planner reads sums and counts and never adds up tasks.

A task counts as active from its assignment until it has ended, if it is not to be stopped; it holds its reservations, host ports and
generic resources from its assignment until it has ended, whatever is desired of it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

import msgspec

from skep.model.task import Task
from skep.plan.view import Load

K = TypeVar("K", bound=Hashable)


class Share(msgspec.Struct, frozen=True):
    """What one task adds to its node's load."""

    node_id: str
    active: bool
    service_id: str
    nano_cpus: int
    memory_bytes: int
    ports: tuple[tuple[str, int], ...]
    generic: tuple[tuple[str, int], ...]
    named: tuple[tuple[str, str], ...]


def share(task: Task) -> Share | None:
    """None: it adds nothing (not assigned yet, or ended)."""
    if not task.node_id or not task.holds_resources:
        return None
    reserved = task.spec.resources.reservations if task.spec.resources else None
    ports = task.endpoint.ports if task.endpoint else None
    resources = task.generic_resources
    return Share(
        task.node_id,
        task.live,
        task.service_id,
        reserved.nano_cpus if reserved else 0,
        reserved.memory_bytes if reserved else 0,
        tuple((p.protocol or "tcp", p.published_port) for p in ports or () if p.publish_mode == "host" and p.published_port),
        tuple((r.discrete_resource_spec.kind, r.discrete_resource_spec.value) for r in resources if r.discrete_resource_spec),
        tuple((r.named_resource_spec.kind, r.named_resource_spec.value) for r in resources if r.named_resource_spec),
    )


def _same_share(old: Task, new: Task) -> bool:
    """The cheap test for most writes: a status that neither begins nor ends the holding."""
    return (
        old.node_id == new.node_id
        and old.holds_resources == new.holds_resources
        and old.live == new.live
        and old.spec is new.spec
        and old.endpoint is new.endpoint
        and old.generic_resources is new.generic_resources
    )


def _add(counts: dict[K, int], key: K, by: int) -> None:
    total = counts.get(key, 0) + by
    if total:
        counts[key] = total
    else:
        counts.pop(key, None)


class Loads:
    """The loads of all nodes that have tasks."""

    def __init__(self) -> None:
        self._loads: dict[str, Load] = {}
        self._named: dict[tuple[str, str, str], int] = {}
        """(node, kind, name) -> holders: one, but two must not make one release free it for both."""
        self._shares: dict[str, int] = {}
        """Node -> tasks that add to it."""

    def of(self, node_id: str) -> Load:
        return self._loads.get(node_id) or Load()

    def all(self) -> Mapping[str, Load]:
        return self._loads

    def change(self, old: Task | None, new: Task | None) -> None:
        if old is not None and new is not None and _same_share(old, new):
            return
        before = share(old) if old is not None else None
        after = share(new) if new is not None else None
        if before == after:
            return
        if before is not None:
            self._count(before, -1)
        if after is not None:
            self._count(after, 1)

    def _count(self, share: Share, by: int) -> None:
        node_id = share.node_id
        load = self._loads.get(node_id)
        if load is None:
            load = self._loads[node_id] = Load()
        if share.active:
            load.tasks += by
            if share.service_id:
                _add(load.by_service, share.service_id, by)
        load.nano_cpus += by * share.nano_cpus
        load.memory_bytes += by * share.memory_bytes
        for port in share.ports:
            _add(load.host_ports, port, by)
        for kind, value in share.generic:
            _add(load.generic, kind, by * value)
        for kind, name in share.named:
            self._hold(load, node_id, kind, name, by)
        _add(self._shares, node_id, by)
        if node_id not in self._shares:
            del self._loads[node_id]

    def _hold(self, load: Load, node_id: str, kind: str, name: str, by: int) -> None:
        _add(self._named, (node_id, kind, name), by)
        names = load.named.get(kind, frozenset()) - {name}
        if (node_id, kind, name) in self._named:
            names |= {name}
        if names:
            load.named[kind] = names
        else:
            load.named.pop(kind, None)
