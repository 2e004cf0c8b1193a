"""Whatever is written, in whatever order: indexes and loads are what would be computed anew, and a reload gives the same store."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from skep.errors import SkepError
from skep.model.enums import TaskState
from skep.model.service import Service
from skep.model.spec import (
    DiscreteGenericResource,
    EndpointSpec,
    GenericResource,
    NamedGenericResource,
    NetworkAttachmentConfig,
    PortConfig,
    Reservations,
    ResourceRequirements,
    ServiceSpec,
    TaskSpec,
)
from skep.model.tables import INDEXES, TABLES
from skep.model.task import Attachment, Task, TaskStatus
from skep.plan.ops import Change, Create, Delete, Op
from skep.plan.view import Load
from skep.store.memory import MemoryBackend, MemoryStore


class Clock:
    def now(self) -> int:
        return 1

    async def sleep(self, ns: int) -> None:
        raise NotImplementedError


IDS = st.sampled_from("abcdefgh")
NODES = st.sampled_from(["", "n1", "n2"])
STATES = st.sampled_from(list(TaskState))
PORTS = st.lists(
    st.builds(
        PortConfig,
        protocol=st.sampled_from(["", "tcp", "udp"]),
        published_port=st.sampled_from([0, 80, 81]),
        publish_mode=st.sampled_from(["host", "ingress"]),
    ),
    max_size=2,
).map(tuple)
RESERVED = st.builds(
    lambda cpus, memory: ResourceRequirements(reservations=Reservations(nano_cpus=cpus, memory_bytes=memory)),
    st.integers(0, 3),
    st.integers(0, 3),
)
GENERIC = st.lists(
    st.one_of(
        st.builds(
            lambda kind, n: GenericResource(discrete_resource_spec=DiscreteGenericResource(kind=kind, value=n)),
            st.sampled_from(["ssd", "fpga"]),
            st.integers(1, 3),
        ),
        st.builds(
            lambda kind, name: GenericResource(named_resource_spec=NamedGenericResource(kind=kind, value=name)),
            st.sampled_from(["gpu"]),
            st.sampled_from(["u1", "u2"]),
        ),
    ),
    max_size=2,
).map(tuple)
TASK_FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "node_id": NODES,
        "service_id": st.sampled_from(["", "s1", "s2"]),
        "slot": st.integers(0, 2),
        "desired_state": STATES,
        "status": STATES.map(lambda state: TaskStatus(state=state)),
        "spec": st.builds(lambda r: TaskSpec(resources=r), st.one_of(st.none(), RESERVED)),
        "endpoint": st.one_of(st.none(), PORTS.map(lambda ports: EndpointSpec(ports=ports))),
        "generic_resources": GENERIC,
        "attachments": st.lists(st.sampled_from(["net1", "net2"]), unique=True, max_size=2).map(
            lambda ids: tuple(Attachment(network_id=id) for id in ids)
        ),
    },
)
SPECS = st.builds(
    lambda name, networks: ServiceSpec(
        name=name, task_template=TaskSpec(networks=tuple(NetworkAttachmentConfig(target=target) for target in networks))
    ),
    st.sampled_from(["web", "Web", "db", "api"]),
    st.lists(st.sampled_from(["net1", "net2"]), max_size=3),
)
OPS: st.SearchStrategy[Op] = st.one_of(
    st.builds(lambda id, fields: Create(Task(id=id, **fields), "t"), IDS, TASK_FIELDS),
    st.builds(lambda id, fields: Change(Task, id, fields, "t"), IDS, TASK_FIELDS),
    st.builds(lambda id, fields: Change(Task, id, fields, "t"), IDS, TASK_FIELDS),
    st.builds(lambda id: Delete(Task, id, "t"), IDS),
    st.builds(lambda id, spec: Create(Service(id=id, spec=spec), "t"), IDS, SPECS),
    st.builds(lambda id, spec: Change(Service, id, {"spec": spec}, "t"), IDS, SPECS),
    st.builds(lambda id: Delete(Service, id, "t"), IDS),
)


def computed_loads(tasks: list[Task]) -> dict[str, Load]:
    """Added up anew, from the contract's words."""
    loads: dict[str, Load] = {}
    for task in tasks:
        if not task.node_id or not TaskState.ASSIGNED <= task.status.state <= TaskState.RUNNING:
            continue
        load = loads.setdefault(task.node_id, Load())
        if task.desired_state <= TaskState.COMPLETE:
            load.tasks += 1
            if task.service_id:
                load.by_service[task.service_id] = load.by_service.get(task.service_id, 0) + 1
        if task.spec.resources and task.spec.resources.reservations:
            load.nano_cpus += task.spec.resources.reservations.nano_cpus
            load.memory_bytes += task.spec.resources.reservations.memory_bytes
        for port in (task.endpoint.ports if task.endpoint else None) or ():
            if port.publish_mode == "host" and port.published_port:
                key = (port.protocol or "tcp", port.published_port)
                load.host_ports[key] = load.host_ports.get(key, 0) + 1
        for generic in task.generic_resources:
            if generic.discrete_resource_spec:
                d = generic.discrete_resource_spec
                load.generic[d.kind] = load.generic.get(d.kind, 0) + d.value
            elif generic.named_resource_spec:
                n = generic.named_resource_spec
                load.named[n.kind] = load.named.get(n.kind, frozenset()) | {n.value}
    return loads


def check(store: MemoryStore) -> None:
    for index in INDEXES:
        wanted: dict[Hashable, list[Any]] = {}
        for object in store.all(index.kind):
            for key in set(index.keys(object)):  # type: ignore[arg-type]
                wanted.setdefault(key, []).append(object)
        for key, objects in wanted.items():
            assert list(store.find(index, key)) == objects, index.name  # type: ignore[arg-type]
            assert len(objects) == 1 or not index.unique
        held = store._tables[index.kind].buckets[index.name]._buckets
        assert held.keys() == wanted.keys(), index.name
    assert dict(store.loads()) == computed_loads(list(store.all(Task)))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(OPS, min_size=1, max_size=5), max_size=15))
def test_indexes_and_loads_are_what_is_computed_anew(transactions: list[list[Op]]) -> None:
    backend = MemoryBackend()
    store = MemoryStore(backend, Clock())
    for ops in transactions:
        before = {kind: list(store.all(kind)) for kind in TABLES.values()}
        version = store.version
        try:
            store.apply(ops)
        except SkepError:
            assert {kind: list(store.all(kind)) for kind in TABLES.values()} == before
            assert store.version == version
        check(store)
    store.flush()
    again = MemoryStore(backend, Clock())
    check(again)
    assert again.version == store.version
    for kind in TABLES.values():
        assert {o.id: o for o in again.all(kind)} == {o.id: o for o in store.all(kind)}


def test_equal_but_not_identical_specs_do_not_upset_the_loads() -> None:
    store = MemoryStore(MemoryBackend(), Clock())
    spec = TaskSpec(resources=ResourceRequirements(reservations=Reservations(nano_cpus=5)))
    store.apply([Create(Task(id="a", node_id="n", spec=spec, status=TaskStatus(state=TaskState.RUNNING)), "t")])
    copy = msgspec.json.decode(msgspec.json.encode(spec), type=TaskSpec)
    store.apply([Change(Task, "a", {"spec": copy, "status": TaskStatus(state=TaskState.RUNNING, message="x")}, "t")])
    assert store.load("n").nano_cpus == 5
    store.apply([Delete(Task, "a", "t")])
    assert store.load("n") == Load()
    assert not store.loads()
