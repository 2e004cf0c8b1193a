"""What is given away: derived from the store, kept between plans so that a change costs what changed.

Nothing here is the truth. Every object that was marked is read again from the view before the next plan, and so is all that the last plan
touched: a mark that comes late, twice or for nothing does no harm, a plan that was never applied is forgotten by itself, and one built from
scratch (`Allocation()`) gives the same answers.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from skep.model.base import Object
from skep.model.enums import TaskState
from skep.model.network import Network
from skep.model.node import Node
from skep.model.service import Service
from skep.model.tables import TASK_BY_NETWORK
from skep.model.task import Task
from skep.plan.allocate.addresses import Space, number
from skep.plan.allocate.ports import Port, host_ports, ingress_ports
from skep.plan.view import View


class Held(msgspec.Struct, frozen=True):
    """What one object holds."""

    addresses: tuple[tuple[str, int], ...] = ()
    """(network id, offset)."""
    ports: tuple[Port, ...] = ()
    host_ports: tuple[Port, ...] = ()
    index: int = 0
    stray: tuple[int, ...] = ()
    """Addresses on networks that are gone: the task has them until it has stopped, and a new network may have the same subnet."""


NOTHING_HELD = Held()


class Allocation:
    """Mark what changed, plan, apply; the owner is the loop that calls `plan_allocate`.

    `mark` takes the kind and id of any changed object (others than networks, nodes, services and tasks are ignored).
    """

    def __init__(self) -> None:
        self.spaces: dict[str, Space] = {}
        self.ingress = ""
        """Id of the ingress network once it has addresses."""
        self.vnis: dict[int, str] = {}
        self.ports: dict[Port, set[str]] = {}
        self.host_ports: dict[Port, set[str]] = {}
        self.indexes: dict[int, str] = {}
        self.stray: dict[int, int] = {}
        """Address -> tasks that still have it from a network that is gone: not given again, on whatever network, before they have ended."""
        self.networks: set[str] = set()
        """To be looked at by the next plan; so too `nodes` and `services`. What could not be given stays."""
        self.nodes: set[str] = set()
        self.services: set[str] = set()
        self._held: dict[tuple[type[Object], str], Held] = {}
        self._vni_of: dict[str, int] = {}
        self._dirty: dict[type[Object], set[str]] | None = None

    def mark(self, kind: type[Object], id: str) -> None:
        if self._dirty is not None and kind in self._dirty:
            self._dirty[kind].add(id)

    def read(self, view: View) -> None:
        """Bring it up to date with the view: networks first, for they give offsets their meaning."""
        dirty, self._dirty = self._dirty, {Network: set(), Node: set(), Service: set(), Task: set()}
        if dirty is None:
            for network in view.all(Network):
                self._read_network(view, network.id)
            for node in view.all(Node):
                self._read_object(view, Node, node.id)
            for service in view.all(Service):
                self._read_object(view, Service, service.id)
            for task in view.all(Task):
                if task.attachments:
                    self._read_object(view, Task, task.id)
            return
        for id in dirty[Network]:
            self._read_network(view, id)
        for id in dirty[Node]:
            self._read_object(view, Node, id)
        for id in dirty[Service]:
            self._read_object(view, Service, id)
        for id in dirty[Task]:
            self._read_object(view, Task, id)

    def _read_network(self, view: View, id: str) -> None:
        network = view.get(Network, id)
        if network is None:
            self.networks.discard(id)
            if self.spaces.pop(id, None) is not None or id == self.ingress:
                self.services.update(service.id for service in view.all(Service))
                for task in view.find(TASK_BY_NETWORK, id):
                    self._read_object(view, Task, task.id)
            if id == self.ingress:
                self.ingress = ""
            self._hold_vni(id, 0)
            return
        if network.driver != "overlay":
            return
        if network.ipam:
            self.add_network(view, network)
        elif id not in self.spaces:
            self.networks.add(id)
        else:
            # a plan that gave it addresses was never applied
            del self.spaces[id]
            self.ingress = "" if id == self.ingress else self.ingress
            self._hold_vni(id, 0)
            self.networks.add(id)

    def add_network(self, view: View, network: Network) -> None:
        """The network has its subnets (in the store, or by the plan under way)."""
        self._hold_vni(network.id, network.vni)
        self.networks.discard(network.id)
        if network.id in self.spaces:
            return
        self.spaces[network.id] = Space(network.ipam)
        if network.spec.ingress:
            self.ingress = network.id
            self.services.update(service.id for service in view.all(Service))

    def _hold_vni(self, id: str, vni: int) -> None:
        old = self._vni_of.pop(id, 0)
        if old and self.vnis.get(old) == id:
            del self.vnis[old]
        if vni:
            self._vni_of[id] = vni
            self.vnis[vni] = id

    def _read_object(self, view: View, kind: type[Node] | type[Service] | type[Task], id: str) -> None:
        object = view.get(kind, id)
        if kind is Node:
            self._still_to_do(self.nodes, id, object is not None)
        elif kind is Service:
            self._still_to_do(self.services, id, object is not None)
        self.hold(kind, id, self.held_by(object))

    @staticmethod
    def _still_to_do(waiting: set[str], id: str, there: bool) -> None:
        if there:
            waiting.add(id)
        else:
            waiting.discard(id)

    def held_by(self, object: Node | Service | Task | None) -> Held:
        """What the object holds by its own word. A task holds from the allocator's own step on until it has ended."""
        if object is None:
            return NOTHING_HELD
        if isinstance(object, Task):
            if not object.attachments or not TaskState.PENDING <= object.status.state <= TaskState.RUNNING:
                return NOTHING_HELD
            addresses = self._offsets((a.network_id, address) for a in object.attachments for address in a.addresses)
            stray = tuple(
                value
                for attachment in object.attachments
                if attachment.network_id not in self.spaces
                for address in attachment.addresses
                if (value := number(address)) is not None
            )
            return Held(addresses=addresses, stray=stray)
        if isinstance(object, Service):
            endpoint = object.endpoint
            if endpoint is None:
                return NOTHING_HELD
            return Held(
                addresses=self._offsets((vip.network_id, vip.address) for vip in endpoint.vips),
                ports=ingress_ports(endpoint.ports),
                host_ports=host_ports(endpoint.ports),
            )
        return Held(index=object.index)

    def _offsets(self, places: Iterable[tuple[str, str]]) -> tuple[tuple[str, int], ...]:
        found = []
        for network_id, address in places:
            space = self.spaces.get(network_id)
            offset = space.offset(address) if space is not None else None
            if offset is not None:
                found.append((network_id, offset))
        return tuple(found)

    def hold(self, kind: type[Object], id: str, held: Held) -> None:
        """From now on the object holds this and nothing else."""
        old = self._held.get((kind, id), NOTHING_HELD)
        if held == old:
            return
        if held is NOTHING_HELD:
            del self._held[kind, id]
        else:
            self._held[kind, id] = held
        for network_id, offset in held.addresses:
            if network_id in self.spaces:
                self.spaces[network_id].hold(offset)
        for network_id, offset in old.addresses:
            if network_id in self.spaces:
                self.spaces[network_id].release(offset)
        for value in held.stray:
            self.stray[value] = self.stray.get(value, 0) + 1
        for value in old.stray:
            self.stray[value] -= 1
            if not self.stray[value]:
                del self.stray[value]
        for book, before, after in ((self.ports, old.ports, held.ports), (self.host_ports, old.host_ports, held.host_ports)):
            for port in before:
                book[port].discard(id)
                if not book[port]:
                    del book[port]
            for port in after:
                book.setdefault(port, set()).add(id)
        if old.index and self.indexes.get(old.index) == id:
            del self.indexes[old.index]
        if held.index:
            self.indexes[held.index] = id

    def holder_of_port(self, port: Port, besides: str) -> str | None:
        """Id of another service that has it."""
        return min((id for id in self.ports.get(port, ()) if id != besides), default=None)
