"""One plan of the allocator under way: what it has given so far, and the operations that come of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from ipaddress import IPv4Network
from typing import TypeVar

import msgspec

from skep.model.base import Object
from skep.model.cluster import Cluster
from skep.model.enums import TaskState
from skep.model.network import Network
from skep.model.node import Node
from skep.model.service import Endpoint, Service, VirtualIP
from skep.model.spec import IPAMConfig
from skep.model.tables import TASK_UNALLOCATED
from skep.model.task import Attachment, Task, TaskStatus
from skep.plan.allocate.networks import NoSubnet, asked, given_subnets, pool_subnet, subnets_in_use
from skep.plan.allocate.nodes import next_index
from skep.plan.allocate.ports import Port, PortsTaken, give_ports, own_ports, publishes_ingress
from skep.plan.allocate.state import Allocation
from skep.plan.allocate.vni import OPTION, asked_vni, next_vni
from skep.plan.ops import Change, Op, Plan
from skep.plan.view import View

T = TypeVar("T", bound=Object)

PENDING = "pending task scheduling"


class Lacking(Exception):
    """What is missing, as a sentence for the task's error."""


class Work:
    def __init__(self, view: View, now: int, state: Allocation) -> None:
        self.view = view
        self.now = now
        self.state = state
        self.cluster: Cluster | None = next(iter(view.all(Cluster)), None)
        self.cluster_changes: dict[str, int] = {}
        self.port_cursors = dict(self.cluster.port_cursor) if self.cluster else {}
        self.networks: dict[str, Network] = {}
        """Those whose subnets this plan gives."""
        self.network_changes: dict[str, dict[str, object]] = {}
        self.node_changes: dict[str, dict[str, object]] = {}
        self.service_ops: list[Op] = []
        self.task_ops: list[Op] = []
        self.lacking: dict[str, str] = {}
        """Id of a network or service -> what it is waiting for."""

    def plan(self) -> Plan:
        ops: list[Op] = []
        for id, fields in self.network_changes.items():
            ops.append(Change(Network, id, fields, "its subnet and VNI" if "ipam" in fields else "its addresses are given in turn"))
        for id, fields in self.node_changes.items():
            ops.append(Change(Node, id, fields, "its index"))
        ops += self.service_ops
        ops += self.task_ops
        changes: dict[str, object] = dict(self.cluster_changes)
        if self.cluster is not None and self.port_cursors != self.cluster.port_cursor:
            changes["port_cursor"] = self.port_cursors
        if self.cluster is not None and changes:
            ops.append(Change(Cluster, self.cluster.id, changes, "numbers are given in turn"))
        return Plan(tuple(ops))

    # networks

    def give_networks(self) -> None:
        waiting = [network for id in self.state.networks if (network := self.view.get(Network, id)) is not None]
        if not waiting:
            return
        used = subnets_in_use(self.view.all(Network))
        for network in sorted(waiting, key=lambda n: (not n.spec.ingress, n.created_at, n.id)):
            try:
                given = self._subnet_and_vni(network, used)
            except NoSubnet as reason:
                self.lacking[network.id] = f"network {network.name}: {reason}"
                continue
            self.networks[network.id] = given
            self.state.add_network(self.view, given)
            self.state.mark(Network, network.id)
            used += subnets_in_use([given])

    def _subnet_and_vni(self, network: Network, used: list[IPv4Network]) -> Network:
        driver = network.spec.driver_configuration
        options = {**((driver.options if driver else None) or {}), **network.options}
        vni = asked_vni(options)
        if vni is not None and vni in self.state.vnis:
            raise NoSubnet(f"vni {vni} is already in use")
        serial = vni is None
        if vni is None:
            vni = next_vni(self._number("vni_cursor"), self.state.vnis)
            if vni is None:
                raise NoSubnet("no VNI is left")
        if asked(network.spec):
            ipam = given_subnets(network.spec, used)
        else:
            after, subnet = pool_subnet(self.cluster, self._number("subnet_cursor"), used, self.view.all(Node))
            ipam = (IPAMConfig(subnet=str(subnet), gateway=str(subnet.network_address + 1)),)
            self.cluster_changes["subnet_cursor"] = after
        if serial:
            self.cluster_changes["vni_cursor"] = vni
        options[OPTION] = str(vni)
        self.network_changes[network.id] = {"ipam": ipam, "vni": vni, "options": options}
        return msgspec.structs.replace(network, ipam=ipam, vni=vni, options=options)

    def _number(self, cursor: str) -> int:
        if cursor in self.cluster_changes:
            return self.cluster_changes[cursor]
        return int(getattr(self.cluster, cursor)) if self.cluster is not None else 0

    # addresses

    def _network(self, id: str) -> Network | None:
        return self.networks.get(id) or self.view.get(Network, id)

    def _pick(self, network: Network, what: str) -> int:
        """The next address, not held yet: a set that cannot be had in full leaves no trace. Raises Lacking."""
        space = self.state.spaces.get(network.id)
        if space is None:
            raise Lacking(self.lacking.get(network.id) or f"network {network.name} has no subnet yet")
        fields = self.network_changes.get(network.id)
        cursor = fields["cursor"] if fields and "cursor" in fields else network.cursor
        offset = space.next(cursor, self.state.stray)  # type: ignore[arg-type]
        if offset is None:
            raise Lacking(f"could not find an available IP while allocating {what} in network {network.name} ({space.text})")
        return offset

    def _hold(self, kind: type[Object], new: Node | Service | Task, picked: Iterable[tuple[str, int]]) -> None:
        for network_id, offset in picked:
            self.network_changes.setdefault(network_id, {})["cursor"] = offset
        self.state.hold(kind, new.id, self.state.held_by(new))
        self.state.mark(kind, new.id)

    # nodes

    def give_nodes(self) -> None:
        state = self.state
        waiting = [node for id in state.nodes if (node := self.view.get(Node, id)) is not None]
        for node in sorted(waiting, key=lambda n: (n.created_at, n.id)):
            index = node.index or next_index(self._number("node_cursor"), state.indexes)
            if index is None:
                continue
            state.nodes.discard(node.id)
            if index != node.index:
                self.cluster_changes["node_cursor"] = index
                self.node_changes[node.id] = {"index": index}
                self._hold(Node, msgspec.structs.replace(node, index=index), ())

    # services

    def give_services(self) -> None:
        waiting = [service for id in self.state.services if (service := self.view.get(Service, id)) is not None]
        for service in sorted(waiting, key=lambda s: (s.created_at, s.id)):
            try:
                wanted = self._vip_networks(service)
                if not is_current(service, wanted):
                    self._give_endpoint(service, wanted)
            except (Lacking, PortsTaken) as reason:
                self.lacking[service.id] = str(reason)
            else:
                self.state.services.discard(service.id)

    def _vip_networks(self, service: Service) -> list[Network]:
        """The networks on which it has a VIP: ingress first. Raises Lacking."""
        spec = service.spec.endpoint_spec
        if spec is not None and spec.mode == "dnsrr":
            return []
        networks = []
        if publishes_ingress(spec):
            networks.append(self._ingress())
        for target in dict.fromkeys(a.target for a in service.spec.task_template.networks or service.spec.networks or ()):
            network = self._target(target)
            if network.driver == "overlay":
                networks.append(network)
        return networks

    def _ingress(self) -> Network:
        network = self._network(self.state.ingress) if self.state.ingress else None
        if network is None:
            waiting = [n for n in self.view.all(Network) if n.spec.ingress and n.id in self.lacking]
            raise Lacking(self.lacking[waiting[0].id] if waiting else "no ingress network is available")
        return network

    def _target(self, id: str) -> Network:
        network = self._network(id)
        if network is None:
            raise Lacking(f"network {id} not found")
        return network

    def _give_endpoint(self, service: Service, wanted: Sequence[Network]) -> None:
        spec, before, state = service.spec.endpoint_spec, service.endpoint, self.state
        ids = {network.id for network in wanted}
        kept = {vip.network_id: vip for vip in (before.vips if before else ()) if vip.network_id in ids}
        picked = [(network.id, self._pick(network, "VIP")) for network in wanted if network.id not in kept]

        def owner(port: Port) -> str | None:
            other = state.holder_of_port(port, service.id)
            known = self.view.get(Service, other) if other else None
            return f"service '{known.name if known else ''}' ({other})" if other else None

        ports, moved = give_ports(
            (spec.ports if spec else None) or (),
            before.ports if before else (),
            owner,
            lambda port: port in state.host_ports or port in self.own_ports,
            self.port_cursors,
        )
        self.port_cursors.update(moved)
        new = {id: VirtualIP(network_id=id, address=state.spaces[id].address(offset)) for id, offset in picked}
        vips = tuple(kept.get(network.id) or new[network.id] for network in wanted)
        endpoint = Endpoint(spec=spec, ports=ports, vips=vips)
        self.service_ops.append(Change(Service, service.id, {"endpoint": endpoint}, "its ports and virtual addresses"))
        self._hold(Service, msgspec.structs.replace(service, endpoint=endpoint), picked)

    @cached_property
    def own_ports(self) -> frozenset[Port]:
        return own_ports(self.view)

    # tasks

    def give_tasks(self) -> None:
        """Most tasks have no network: one status is made for all of them."""
        pending = TaskStatus(timestamp=self.now, applied_at=self.now, state=TaskState.PENDING, message=PENDING)
        services: dict[str, Service | None] = {}
        for task in self.view.find(TASK_UNALLOCATED, ""):
            id = task.service_id
            if id not in services:
                services[id] = self.view.get(Service, id) if id else None
            service = services[id]
            if id and service is None:
                continue
            try:
                if id in self.state.services:
                    raise Lacking(self.lacking.get(id, ""))
                attachments = self._attachments(task, service)
                if not attachments:
                    self.task_ops.append(Change(Task, task.id, {"status": pending}, "it needs no network"))
                    continue
                self._give_addresses(task, attachments, pending)
            except Lacking as reason:
                self._keep_new(task, str(reason))

    def _attachments(self, task: Task, service: Service | None) -> tuple[Attachment, ...]:
        """What it asks for, without addresses but for those the task was created with. Raises Lacking."""
        if task.attachments:
            return task.attachments
        ingress = service is not None and publishes_ingress(service.spec.endpoint_spec)
        targets = task.spec.networks or (service.spec.networks if service is not None else None) or ()
        if not ingress and not targets:
            return ()
        wanted = {self.state.ingress: Attachment(network_id=self._ingress().id)} if ingress else {}
        for target in targets:
            wanted.setdefault(
                target.target,
                Attachment(network_id=target.target, aliases=target.aliases or (), driver_opts=target.driver_opts or {}),
            )
        return tuple(wanted.values())

    def _give_addresses(self, task: Task, wanted: Sequence[Attachment], pending: TaskStatus) -> None:
        """All or nothing."""
        given: list[Attachment] = []
        picked: list[tuple[str, int]] = []
        for attachment in wanted:
            network = self._target(attachment.network_id)
            if network.driver != "overlay":
                given.append(attachment)
                continue
            if attachment.addresses:
                address = self._fixed(network, attachment.addresses[0])
            else:
                offset = self._pick(network, "the task's address")
                picked.append((network.id, offset))
                address = self.state.spaces[network.id].address(offset)
            given.append(
                Attachment(network_id=network.id, addresses=(address,), aliases=attachment.aliases, driver_opts=attachment.driver_opts)
            )
        attachments = tuple(given)
        fields: dict[str, object] = {"status": pending, "attachments": attachments}
        self.task_ops.append(Change(Task, task.id, fields, "it has its addresses"))
        self._hold(Task, msgspec.structs.replace(task, status=pending, attachments=attachments), picked)

    def _fixed(self, network: Network, address: str) -> str:
        """An address the user chose for a plain container."""
        space = self.state.spaces.get(network.id)
        if space is None:
            raise Lacking(self.lacking.get(network.id) or f"network {network.name} has no subnet yet")
        offset = space.offset(address)
        if offset is None:
            raise Lacking(f"address {address} is not in network {network.name} ({space.text})")
        if not space.free(offset) or space.number(offset) in self.state.stray:
            raise Lacking("Address already in use")
        return space.address(offset)

    def _keep_new(self, task: Task, err: str) -> None:
        """Written only when the text is another one: each plan tries again."""
        old = task.status
        if old.err != err:
            status = TaskStatus(timestamp=old.timestamp, applied_at=old.applied_at, state=old.state, message=old.message, err=err)
            self.task_ops.append(Change(Task, task.id, {"status": status}, err))


def is_current(service: Service, wanted: Sequence[Network]) -> bool:
    """Was its endpoint given for this very spec and these networks?"""
    endpoint = service.endpoint
    return (
        endpoint is not None
        and endpoint.spec == service.spec.endpoint_spec
        and [vip.network_id for vip in endpoint.vips] == [network.id for network in wanted]
    )
