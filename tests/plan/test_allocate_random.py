"""The allocator under random histories: nothing given twice, nothing leaked, and a fresh one always answers as the one that remembers.

Hypothesis finds and shrinks short histories; the walks are long ones, in which the spaces fill up and wrap around.
"""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from placing_world import World, port, task_spec

from skep.model.enums import TaskState
from skep.model.network import Network
from skep.model.node import Node
from skep.model.service import Service
from skep.model.spec import EndpointSpec, IPAMConfig, IPAMOptions, NetworkAttachmentConfig
from skep.model.task import Task
from skep.plan.allocate import Allocation, plan_allocate
from skep.plan.allocate.addresses import number

PICK = st.integers(0, 1 << 16)


class Allocating(RuleBasedStateMachine):
    """Marks may be late: the allocator's memory is brought up to date only at `allocate`."""

    @initialize()
    def begin(self) -> None:
        self.w = World()
        self.w.cluster()
        self.made = 0
        self.create_ingress()
        self.create_network(True)
        self.create_node()
        self.create_service([0], [1], "vip")
        self.create_tasks(0, 2)
        self.allocate()

    def _name(self, kind: str) -> str:
        self.made += 1
        return f"{kind}{self.made}"

    def _one(self, kind: type[Service] | type[Task] | type[Node] | type[Network], pick: int) -> str | None:
        found = [o.id for o in self.w.store.all(kind)]
        return found[pick % len(found)] if found else None

    @rule()
    def create_ingress(self) -> None:
        if self._ingress() is None:
            self.w.network(self._name("in"), ingress=True, ipam_options=IPAMOptions(configs=(IPAMConfig(subnet="10.77.0.0/27"),)))

    def _ingress(self) -> str | None:
        return next((n.id for n in self.w.store.all(Network) if n.spec.ingress), None)

    @rule(tiny=st.booleans())
    def create_network(self, tiny: bool) -> None:
        options = IPAMOptions(configs=(IPAMConfig(subnet="10.88.0.0/29"),)) if tiny else None
        self.w.network(self._name("net"), ipam_options=options)

    @rule(pick=PICK)
    def remove_network(self, pick: int) -> None:
        """Its services are gone; their tasks may still be on their way down, with its addresses."""
        id = self._one(Network, pick)
        users = [s for s in self.w.store.all(Service) if id in {n.target for n in s.spec.task_template.networks or ()}]
        if id and id != self._ingress() and not users:
            self.w.delete(Network, id)

    @rule()
    def remove_ingress(self) -> None:
        """Control would refuse while services need it; the books must be right all the same."""
        if id := self._ingress():
            self.w.delete(Network, id)

    @rule()
    def create_node(self) -> None:
        self.w.node(self._name("node"))

    @rule(pick=PICK)
    def remove_node(self, pick: int) -> None:
        id = self._one(Node, pick)
        if id:
            self.w.delete(Node, id)
            for task in list(self.w.store.all(Task)):
                if task.node_id == id and not task.terminal:
                    self.w.state(task.id, TaskState.ORPHANED)

    def _endpoint(self, ports: list[int], mode: str) -> EndpointSpec | None:
        made = tuple(port(80 + n, published) for n, published in enumerate(dict.fromkeys(ports) if all(ports) else ports[:1]))
        return EndpointSpec(mode=mode, ports=made) if made or mode else None

    @rule(
        ports=st.lists(st.sampled_from([0, 8080, 8081, 30000]), max_size=3),
        nets=st.lists(PICK, max_size=2),
        mode=st.sampled_from(["", "vip"]),
    )
    def create_service(self, ports: list[int], nets: list[int], mode: str) -> None:
        targets = [id for pick in nets if (id := self._one(Network, pick)) and id != self._ingress()]
        id = self._name("svc")
        self.w.service(id, networks=targets)
        self.w.respec(id, endpoint_spec=self._endpoint(ports, mode))

    @rule(
        pick=PICK,
        ports=st.lists(st.sampled_from([0, 8080, 30000]), max_size=2),
        nets=st.lists(PICK, max_size=2),
        mode=st.sampled_from(["", "dnsrr"]),
    )
    def update_service(self, pick: int, ports: list[int], nets: list[int], mode: str) -> None:
        id = self._one(Service, pick)
        if id:
            targets = [net for n in nets if (net := self._one(Network, n)) and net != self._ingress()]
            template = msgspec.structs.replace(task_spec(), networks=tuple(NetworkAttachmentConfig(target=t) for t in targets) or None)
            self.w.respec(id, endpoint_spec=None if mode == "dnsrr" else self._endpoint(ports, mode), task_template=template)

    @rule(pick=PICK)
    def remove_service(self, pick: int) -> None:
        id = self._one(Service, pick)
        if id:
            self.w.delete(Service, id)

    @rule(pick=PICK, number_=st.integers(1, 6))
    def create_tasks(self, pick: int, number_: int) -> None:
        id = self._one(Service, pick)
        for _ in range(number_ if id else 0):
            self.w.task(self._name("task"), id or "")

    @rule(pick=PICK, node=PICK)
    def assign_task(self, pick: int, node: int) -> None:
        id, where = self._one(Task, pick), self._one(Node, node)
        if id and where and self.w.get(Task, id).status.state is TaskState.PENDING:
            self.w.state(id, TaskState.ASSIGNED, node_id=where)

    @rule(pick=PICK, state=st.sampled_from([TaskState.RUNNING, TaskState.FAILED, TaskState.SHUTDOWN, TaskState.COMPLETE]))
    def move_task(self, pick: int, state: TaskState) -> None:
        id = self._one(Task, pick)
        if id and TaskState.ASSIGNED <= self.w.get(Task, id).status.state < state:
            self.w.state(id, state, desired_state=TaskState.SHUTDOWN if state > TaskState.RUNNING else TaskState.RUNNING)

    @rule(pick=PICK)
    def remove_task(self, pick: int) -> None:
        id = self._one(Task, pick)
        if id:
            self.w.delete(Task, id)

    @rule()
    def allocate(self) -> None:
        self.w.mark()
        remembers = plan_allocate(self.w.store, self.w.clock.time, self.w.allocation)
        fresh = plan_allocate(self.w.store, self.w.clock.time, Allocation())
        assert fresh == remembers
        self.w.store.apply(remembers.ops, by="allocator")
        for _ in range(4):
            if not self.w.allocate().ops:
                break
        else:
            raise AssertionError("what one plan frees the next one gives; then there is rest")
        self._nothing_lacks()
        self._books_agree()

    @rule()
    def lose_a_plan(self) -> None:
        """Worked out, never applied: the leader was replaced, or the store refused it."""
        self.w.mark()
        plan_allocate(self.w.store, self.w.clock.time, self.w.allocation)

    def _books_agree(self) -> None:
        """What the allocator believes given is what live objects carry: no more, no less."""
        store, books = self.w.store, self.w.allocation
        networks = {network.id: network for network in store.all(Network) if network.ipam}
        assert books.vnis == {network.vni: network.id for network in networks.values()}
        assert books.indexes == {node.index: node.id for node in store.all(Node)}
        endpoints = {service.id: service.endpoint for service in store.all(Service) if service.endpoint}
        assert {port: sorted(ids) for port, ids in books.ports.items()} == {
            (p.protocol, p.published_port): [id] for id, e in endpoints.items() for p in e.ports if p.publish_mode == "ingress"
        }
        carried = [(vip.network_id, vip.address) for e in endpoints.values() for vip in e.vips]
        tasks = [task for task in store.all(Task) if not task.terminal]
        carried += [(a.network_id, x) for task in tasks for a in task.attachments for x in a.addresses]
        assert books.spaces.keys() == networks.keys()
        strays = [number(x) for task in tasks for a in task.attachments if a.network_id not in networks for x in a.addresses]
        assert books.stray == {address: strays.count(address) for address in strays}
        for id, space in books.spaces.items():
            assert sorted(space.address(offset) for offset in space.used) == sorted(x for network, x in carried if network == id)
            assert set(space.used.values()) <= {1}

    def _nothing_lacks(self) -> None:
        store = self.w.store
        for task in store.all(Task):
            if task.status.state is TaskState.NEW and store.get(Service, task.service_id):
                assert task.status.err
        assert all(node.index for node in store.all(Node))

    @invariant()
    def nothing_is_given_twice(self) -> None:
        if not hasattr(self, "w"):
            return
        store = self.w.store
        held: list[int | None] = []
        """Addresses, on whatever network: two that have them meet on a node."""
        for network in store.all(Network):
            held += [number(config.gateway) for config in network.ipam]
        known = {network.id for network in store.all(Network)}
        for task in store.all(Task):
            if not task.terminal:
                held += [number(address) for a in task.attachments for address in a.addresses]
        for service in store.all(Service):
            held += [number(v.address) for v in (service.endpoint.vips if service.endpoint else ()) if v.network_id in known]
        assert len(held) == len(set(held))
        ports = [
            (p.protocol, p.published_port)
            for service in store.all(Service)
            for p in (service.endpoint.ports if service.endpoint else ())
            if p.publish_mode == "ingress"
        ]
        assert len(ports) == len(set(ports))
        indexes = [node.index for node in store.all(Node) if node.index]
        assert len(indexes) == len(set(indexes))
        vnis = [network.vni for network in store.all(Network) if network.vni]
        assert len(vnis) == len(set(vnis))
        subnets = [config.subnet for network in store.all(Network) for config in network.ipam]
        assert len(subnets) == len(set(subnets))

    def teardown(self) -> None:
        """Everything goes: nothing may be left held, but the gateways."""
        if not hasattr(self, "w"):
            return
        for kind in (Task, Service, Node):
            for object in list(self.w.store.all(kind)):
                self.w.delete(kind, object.id)
        self.w.allocate()
        allocation = self.w.allocation
        assert not any(space.used for space in allocation.spaces.values())
        assert not (allocation.ports or allocation.host_ports or allocation.indexes or allocation.stray)


TestAllocating = Allocating.TestCase
TestAllocating.settings = settings(max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("seed", range(20))
def test_a_long_walk(seed: int) -> None:
    rng = random.Random(seed)
    m = Allocating()
    m.begin()

    def picks(most: int) -> list[int]:
        return [rng.randrange(1 << 16) for _ in range(rng.randrange(most + 1))]

    def ports() -> list[int]:
        return [rng.choice([0, 0, 8080, 8081, 30000]) for _ in range(rng.randrange(4))]

    steps = [
        (2, lambda: m.create_network(rng.random() < 0.5)),
        (1, lambda: m.remove_network(rng.randrange(99))),
        (1, m.create_ingress),
        (1, lambda: rng.random() < 0.3 and m.remove_ingress()),
        (2, m.create_node),
        (1, lambda: m.remove_node(rng.randrange(99))),
        (3, lambda: m.create_service(ports(), picks(2), rng.choice(["", "vip"]))),
        (3, lambda: m.update_service(rng.randrange(99), ports(), picks(2), rng.choice(["", "dnsrr"]))),
        (2, lambda: m.remove_service(rng.randrange(99))),
        (8, lambda: m.create_tasks(rng.randrange(99), rng.randrange(1, 7))),
        (12, lambda: m.assign_task(rng.randrange(99), rng.randrange(99))),
        (6, lambda: m.move_task(rng.randrange(99), rng.choice([TaskState.RUNNING, TaskState.FAILED]))),
        (8, lambda: m.remove_task(rng.randrange(99))),
        (1, m.lose_a_plan),
        (8, m.allocate),
    ]
    weights = [weight for weight, _ in steps]
    for _ in range(250):
        rng.choices(steps, weights)[0][1]()
        m.nothing_is_given_twice()
    m.teardown()
