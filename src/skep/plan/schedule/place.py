"""The nodes as one plan sees them: what each carries by the store, and what this plan has put on it so far."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from skep.model.enums import NodeState
from skep.model.node import Node
from skep.model.spec import GenericResource
from skep.model.task import Task
from skep.plan.schedule.generic import Stock
from skep.plan.view import Load, View


class Wants(msgspec.Struct, frozen=True):
    """What every task of a group takes from the node it is put on."""

    service_id: str
    nano_cpus: int = 0
    memory_bytes: int = 0
    generic: tuple[GenericResource, ...] = ()
    host_ports: tuple[tuple[str, int], ...] = ()
    """(protocol, port) published in host mode with a number of the user's."""

    @property
    def nothing(self) -> bool:
        return not (self.nano_cpus or self.memory_bytes or self.generic or self.host_ports)


def wants_of(task: Task) -> Wants:
    reserved = task.spec.resources.reservations if task.spec.resources else None
    ports = (task.endpoint.ports if task.endpoint else None) or ()
    return Wants(
        task.service_id,
        reserved.nano_cpus if reserved else 0,
        reserved.memory_bytes if reserved else 0,
        (reserved.generic_resources if reserved else None) or (),
        tuple((port.protocol or "tcp", port.published_port) for port in ports if port.publish_mode == "host" and port.published_port),
    )


class Place:
    """One node. `nano_cpus` and `memory_bytes` are what is free."""

    __slots__ = ("added", "load", "memory_bytes", "nano_cpus", "node", "ready", "stock", "taken", "tasks")

    def __init__(self, node: Node, load: Load) -> None:
        self.node = node
        self.load = load
        self.tasks = load.tasks
        resources = node.description.resources if node.description else None
        self.nano_cpus = (resources.nano_cpus if resources else 0) - load.nano_cpus
        self.memory_bytes = (resources.memory_bytes if resources else 0) - load.memory_bytes
        self.ready = node.status.state is NodeState.READY and node.spec.availability in ("", "active")
        self.added: dict[str, int] | None = None
        """Service id -> tasks put here by this plan."""
        self.taken: set[tuple[str, int]] | None = None
        """Host ports taken by this plan."""
        self.stock: Stock | None = None

    def count(self, service_id: str) -> int:
        """Active tasks of the service."""
        here = self.load.by_service.get(service_id, 0)
        return here + self.added.get(service_id, 0) if self.added else here

    def generic(self) -> Stock:
        if self.stock is None:
            self.stock = Stock(self.node, self.load)
        return self.stock

    def port_taken(self, port: tuple[str, int]) -> bool:
        return self.load.host_ports.get(port, 0) > 0 or (self.taken is not None and port in self.taken)

    def put(self, wants: Wants) -> tuple[GenericResource, ...]:
        """One task of the group goes here; the generic resources it is given."""
        self.tasks += 1
        if self.added is None:
            self.added = {}
        self.added[wants.service_id] = self.added.get(wants.service_id, 0) + 1
        self.nano_cpus -= wants.nano_cpus
        self.memory_bytes -= wants.memory_bytes
        if wants.host_ports:
            self.taken = (self.taken or set()) | set(wants.host_ports)
        return self.generic().claim(wants.generic) if wants.generic else ()


class Places:
    """All nodes, each looked at when it is first needed: confirming one preassigned task does not cost a walk over the cluster."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._known: dict[str, Place] = {}
        self._all: list[Place] | None = None

    def get(self, node_id: str) -> Place | None:
        place = self._known.get(node_id)
        if place is None and self._all is None:
            node = self._view.get(Node, node_id)
            if node is not None:
                place = self._known[node_id] = Place(node, self._view.load(node_id))
        return place

    def all(self) -> Iterable[Place]:
        """In order of creation."""
        if self._all is None:
            known, load = self._known, self._view.load
            for node in self._view.all(Node):
                if node.id not in known:
                    known[node.id] = Place(node, load(node.id))
            self._all = [known[node.id] for node in self._view.all(Node)]
        return self._all
