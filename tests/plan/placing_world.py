"""A cluster for the tests of the scheduler and the allocator: the real store in memory, and short words for its objects."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import msgspec

from skep.clock import SECOND
from skep.model.cluster import Cluster
from skep.model.enums import NodeState, TaskState
from skep.model.network import Network
from skep.model.node import EngineDescription, Node, NodeDescription, NodeStatus, Plugin
from skep.model.node import Resources as NodeResources
from skep.model.service import Service
from skep.model.spec import (
    ClusterSpec,
    DiscreteGenericResource,
    EndpointSpec,
    GenericResource,
    Mode,
    NamedGenericResource,
    NetworkAttachmentConfig,
    NetworkSpec,
    NodeSpec,
    Placement,
    PlacementPreference,
    Platform,
    PortConfig,
    Replicated,
    Reservations,
    ResourceRequirements,
    ServiceSpec,
    SpreadOver,
    TaskSpec,
)
from skep.model.task import Task, TaskStatus
from skep.plan.allocate import Allocation, plan_allocate
from skep.plan.ops import Change, Create, Delete, Plan
from skep.plan.ownership import refuse
from skep.plan.schedule import plan_schedule
from skep.store.memory import MemoryStore, NullBackend

START = 1_800_000_000 * SECOND


class StillClock:
    """Moves only when told."""

    def __init__(self) -> None:
        self.time = START

    def now(self) -> int:
        return self.time

    async def sleep(self, ns: int) -> None:
        self.time += ns


class World:
    """One store, one allocator with its memory, one scheduler."""

    def __init__(self, seed: int = 1) -> None:
        self.clock = StillClock()
        self.store = MemoryStore(NullBackend(), self.clock, refuse)
        self.rng = random.Random(seed)
        self.watch = self.store.watch(applied=True)
        self.allocation = Allocation()

    # making things

    def cluster(self, **fields: Any) -> None:
        self.store.apply([Create(Cluster(id="cluster", spec=ClusterSpec(name="default"), **fields), "test")])

    def node(self, id: str, **fields: Any) -> Node:
        self.store.apply([Create(make_node(id, **fields), "test")])
        return self.get(Node, id)

    def network(self, id: str, driver: str = "overlay", **spec: Any) -> None:
        self.store.apply([Create(Network(id=id, driver=driver, spec=NetworkSpec(name=id, **spec)), "test")])

    def service(
        self, id: str, *, ports: Iterable[PortConfig] = (), networks: Iterable[str] = (), mode: str = "", **template: Any
    ) -> Service:
        endpoint = EndpointSpec(mode=mode, ports=tuple(ports)) if ports or mode else None
        spec = ServiceSpec(
            name=id, mode=Mode(replicated=Replicated(replicas=1)), task_template=task_spec(networks, **template), endpoint_spec=endpoint
        )
        self.store.apply([Create(Service(id=id, spec=spec, spec_version=1), "test")])
        return self.get(Service, id)

    def respec(self, id: str, **fields: Any) -> None:
        service = self.get(Service, id)
        self.store.apply([Change(Service, id, {"spec": msgspec.structs.replace(service.spec, **fields)}, "test")])

    def task(self, id: str, service_id: str = "", state: TaskState = TaskState.NEW, err: str = "", at: int = 0, **fields: Any) -> Task:
        service = self.store.get(Service, service_id)
        fields.setdefault("spec", service.spec.task_template if service else TaskSpec())
        fields.setdefault("endpoint", service.spec.endpoint_spec if service else None)
        fields.setdefault("spec_version", 1)
        fields.setdefault("slot", int("".join(filter(str.isdigit, id)) or 1))
        status = TaskStatus(state=state, message="created", err=err, timestamp=at or self.clock.time, applied_at=at or self.clock.time)
        self.store.apply([Create(Task(id=id, service_id=service_id, service_name=service_id, status=status, **fields), "test")])
        return self.get(Task, id)

    def tasks(self, service_id: str, number: int, state: TaskState = TaskState.PENDING, **fields: Any) -> None:
        first = len(self.store.all(Task)) + 1
        for n in range(first, first + number):
            self.task(f"{service_id}{n}", service_id, state, **fields)

    def change(self, kind: type[Any], id: str, **fields: Any) -> None:
        self.store.apply([Change(kind, id, fields, "test")])

    def state(self, id: str, state: TaskState, **fields: Any) -> None:
        self.change(Task, id, status=TaskStatus(state=state, timestamp=self.clock.time, applied_at=self.clock.time), **fields)

    def delete(self, kind: type[Any], id: str) -> None:
        self.store.apply([Delete(kind, id, "test")])

    # deciding

    def schedule(self) -> Plan:
        plan = plan_schedule(self.store, self.clock.time, self.rng)
        self.store.apply(plan.ops, by="scheduler")
        return plan

    def mark(self) -> None:
        for event in self.watch.take():
            self.allocation.mark(event.kind, event.id)

    def allocate(self) -> Plan:
        self.mark()
        plan = plan_allocate(self.store, self.clock.time, self.allocation)
        self.store.apply(plan.ops, by="allocator")
        return plan

    # looking

    def get(self, kind: type[Any], id: str) -> Any:
        found = self.store.get(kind, id)
        assert found is not None, id
        return found

    def err(self, id: str) -> str:
        return self.get(Task, id).status.err

    def addresses(self, id: str) -> list[str]:
        return [address for a in self.get(Task, id).attachments for address in a.addresses]

    def spread(self, service_id: str) -> dict[str, int]:
        """Node -> tasks of the service."""
        counts: dict[str, int] = {}
        for task in self.store.all(Task):
            if task.service_id == service_id and task.node_id:
                counts[task.node_id] = counts.get(task.node_id, 0) + 1
        return counts


def make_node(
    id: str,
    *,
    cpus: float = 4,
    memory: int = 8 << 30,
    state: NodeState = NodeState.READY,
    availability: str = "active",
    labels: dict[str, str] | None = None,
    engine_labels: dict[str, str] | None = None,
    plugins: Iterable[tuple[str, str]] = (),
    generic: Iterable[GenericResource] = (),
    arch: str = "x86_64",
    addr: str = "",
    **fields: Any,
) -> Node:
    description = NodeDescription(
        hostname=id,
        platform=Platform(architecture=arch, os="linux"),
        resources=NodeResources(nano_cpus=int(cpus * 1e9), memory_bytes=memory, generic_resources=tuple(generic) or None),
        engine=EngineDescription(labels=engine_labels, plugins=tuple(Plugin(type=t, name=n) for t, n in plugins) or None),
    )
    spec = NodeSpec(labels=labels or {}, role="worker", availability=availability)
    return Node(id=id, spec=spec, description=description, status=NodeStatus(state=state, addr=addr), **fields)


def task_spec(
    networks: Iterable[str] = (),
    *,
    cpus: float = 0,
    memory: int = 0,
    generic: Iterable[GenericResource] = (),
    constraints: Iterable[str] = (),
    spread: Iterable[str] = (),
    max_replicas: int = 0,
    platforms: Iterable[Platform] = (),
    **fields: Any,
) -> TaskSpec:
    reservations = Reservations(nano_cpus=int(cpus * 1e9), memory_bytes=memory, generic_resources=tuple(generic) or None)
    placement = Placement(
        constraints=tuple(constraints) or None,
        preferences=tuple(PlacementPreference(spread=SpreadOver(spread_descriptor=text)) for text in spread) or None,
        max_replicas=max_replicas,
        platforms=tuple(platforms) or None,
    )
    return TaskSpec(
        networks=tuple(NetworkAttachmentConfig(target=n) for n in networks) or None,
        resources=ResourceRequirements(reservations=reservations),
        placement=placement,
        **fields,
    )


def discrete(kind: str, value: int) -> GenericResource:
    return GenericResource(discrete_resource_spec=DiscreteGenericResource(kind=kind, value=value))


def named(kind: str, *names: str) -> tuple[GenericResource, ...]:
    return tuple(GenericResource(named_resource_spec=NamedGenericResource(kind=kind, value=name)) for name in names)


def port(target: int, published: int = 0, mode: str = "ingress", protocol: str = "tcp") -> PortConfig:
    return PortConfig(target_port=target, published_port=published, publish_mode=mode, protocol=protocol)


def world(*nodes: Node, seed: int = 1) -> World:
    made = World(seed)
    for n in nodes:
        made.store.apply([create(n)])
    return made


def create(node: Node) -> Create:
    return Create(node, "test")
