"""Whatever happens, a new leader finds nothing to do: no change went by a controller it concerned.

A cluster lives through random events (users, nodes, agents, time). After each, once the loop has come to rest, all controllers look at
everything afresh, and must not want a single operation.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import pytest

from skep.clock import SECOND
from skep.errors import SkepError
from skep.manager.control import Control, bootstrap_cluster
from skep.manager.controllers import controllers
from skep.manager.loop import Loop
from skep.model.cluster import Cluster, RootCA
from skep.model.enums import NodeState, TaskState
from skep.model.node import EngineDescription, Node, NodeDescription, NodeStatus, Resources
from skep.model.service import Service
from skep.model.spec import (
    ContainerSpec,
    EndpointSpec,
    Global,
    Mode,
    NodeSpec,
    OrchestrationConfig,
    Placement,
    PortConfig,
    Replicated,
    Reservations,
    ResourceRequirements,
    RestartPolicy,
    ServiceSpec,
    TaskSpec,
    UpdateConfig,
)
from skep.model.task import Task
from skep.plan.ops import Change, Create
from skep.plan.ownership import OWNERS, TABLE, refuse
from skep.store.memory import MemoryBackend, MemoryStore

PROGRESS = (TaskState.ACCEPTED, TaskState.PREPARING, TaskState.READY, TaskState.STARTING, TaskState.RUNNING)


class Clock:
    def __init__(self) -> None:
        self.time = 1_700_000_000 * SECOND

    def now(self) -> int:
        return self.time

    async def sleep(self, ns: int) -> None:
        raise NotImplementedError


class World:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.clock = Clock()
        self.store = MemoryStore(MemoryBackend(), self.clock, refuse)
        self.store.apply(
            bootstrap_cluster(self.store, cluster_id="c", node_id="n0", root_ca=RootCA(digest="d" * 50), rng=self.rng, address="10.9.0.1"),
            by="control",
        )
        self.control = Control(self.store, self.clock, self.rng, "n0")
        self.loop = self.new_loop()
        self.node_up("n0")
        for n in range(1, 4):
            self.store.apply([Create(Node(id=f"n{n}", spec=NodeSpec(role="worker", availability="active")), "joins")], by="ca")
            self.node_up(f"n{n}")

    def new_loop(self) -> Loop:
        return Loop(self.store, self.clock, random.Random(self.rng.random()), controllers())

    def node_up(self, id: str, cpus: int = 4) -> None:
        description = NodeDescription(
            hostname=f"host-{id}", resources=Resources(nano_cpus=cpus * 10**9, memory_bytes=1 << 33), engine=EngineDescription()
        )
        status = NodeStatus(state=NodeState.READY, addr=f"10.9.0.{id[1:]}", since=self.clock.time)
        self.store.apply([Change(Node, id, {"status": status, "description": description}, "session")], by="dispatcher")

    # events

    def any_event(self) -> str:
        event = self.rng.choice(
            [self.user_creates] * 3
            + [self.user_updates, self.user_updates, self.user_removes, self.user_nodes, self.user_removes_node]
            + [self.user_cluster, self.node_comes_or_goes, self.node_shrinks, self.manager_dies]
            + [self.agents] * 8
            + [self.time_passes] * 3
        )
        try:
            return f"{event.__name__}: {event()}"
        except SkepError as error:
            return f"{event.__name__}: refused: {error.message}"

    def spec(self, name: str, old: ServiceSpec | None = None) -> ServiceSpec:
        r = self.rng
        mode = old.mode if old else Mode(global_=Global()) if r.random() < 0.3 else Mode(replicated=Replicated(replicas=r.randrange(6)))
        if old and mode.replicated and r.random() < 0.5:
            mode = Mode(replicated=Replicated(replicas=r.randrange(7)))
        ports: tuple[PortConfig, ...] = ()
        if r.random() < 0.3:
            ports = (PortConfig(target_port=80, published_port=r.choice([0, 0, 8080]), publish_mode=r.choice(["ingress", "host"])),)
        constraint = r.choice([None, None, ("node.labels.zone==a",), ("node.role==worker",), ("node.hostname!=host-n2",)])
        return ServiceSpec(
            name=name,
            labels={"turn": str(r.random())},
            mode=mode,
            task_template=TaskSpec(
                container_spec=ContainerSpec(image=r.choice(["app:1", "app:2"])),
                resources=ResourceRequirements(reservations=Reservations(nano_cpus=r.choice([0, 10**9]))),
                restart_policy=RestartPolicy(
                    condition=r.choice(["", "none", "on-failure"]), delay=r.choice([None, 0]), max_attempts=r.choice([0, 2])
                ),
                placement=Placement(constraints=constraint, max_replicas=r.choice([0, 0, 2])),
            ),
            update_config=UpdateConfig(
                parallelism=r.randrange(3),
                order=r.choice(["stop-first", "start-first"]),
                failure_action=r.choice(["pause", "continue", "rollback"]),
            ),
            endpoint_spec=EndpointSpec(ports=ports) if r.random() < 0.8 else None,
        )

    def user_creates(self) -> Any:
        if len(self.store.all(Service)) >= 4:
            return "enough"
        return asyncio.run(self.control.create_service(self.spec(f"s{self.rng.randrange(5)}")))[0].spec.name

    def user_updates(self) -> Any:
        for service in self.rng.sample([*self.store.all(Service)], min(1, len(self.store.all(Service)))):
            rollback = "previous" if self.rng.random() < 0.2 else ""
            asyncio.run(self.control.update_service(service.id, service.version, self.spec(service.name, service.spec), rollback=rollback))

    def user_removes(self) -> Any:
        if self.rng.random() < 0.3:
            asyncio.run(self.control.remove_service(f"s{self.rng.randrange(5)}"))

    def user_nodes(self) -> Any:
        node = self.rng.choice([*self.store.all(Node)])
        labels = {"zone": self.rng.choice("ab")}
        availability = self.rng.choice(["active", "active", "pause", "drain"])
        spec = msgspec.structs.replace(node.spec, availability=availability, labels=labels)
        asyncio.run(self.control.update_node(node.id, node.version, spec))
        return node.id, availability, labels

    def user_removes_node(self) -> Any:
        if len(self.store.all(Node)) > 3:
            id = self.rng.choice([*self.store.all(Node)]).id
            asyncio.run(self.control.remove_node(id, True))
            return id
        id = f"n{self.rng.randrange(10, 200)}"
        self.store.apply([Create(Node(id=id, spec=NodeSpec(role="worker", availability="active")), "joins")], by="ca")
        self.node_up(id)
        return f"{id} joins"

    def user_cluster(self) -> Any:
        cluster = self.control.cluster()
        spec = msgspec.structs.replace(
            cluster.spec, orchestration=OrchestrationConfig(task_history_retention_limit=self.rng.choice([1, 2, 5]))
        )
        asyncio.run(self.control.update_cluster(cluster.version, spec))

    def node_comes_or_goes(self) -> Any:
        node = self.rng.choice([*self.store.all(Node)])
        if node.status.state is NodeState.READY:
            state = self.rng.choice([NodeState.DOWN, NodeState.UNKNOWN, NodeState.DISCONNECTED])
            status = msgspec.structs.replace(node.status, state=state, since=self.clock.time)
            self.store.apply([Change(Node, node.id, {"status": status}, "lost")], by="dispatcher")
        else:
            self.node_up(node.id)
        return node.id

    def node_shrinks(self) -> Any:
        node = self.rng.choice([*self.store.all(Node)])
        self.node_up(node.id, self.rng.choice([1, 4]))
        return node.id

    def agents(self) -> Any:
        ops = []
        for task in self.store.all(Task):
            state = task.status.state
            if not TaskState.ASSIGNED <= state <= TaskState.RUNNING or self.rng.random() < 0.4:
                continue
            if task.desired_state > TaskState.COMPLETE:
                state = TaskState.SHUTDOWN
            elif self.rng.random() < 0.1:
                state = self.rng.choice([TaskState.FAILED, TaskState.COMPLETE]) if state >= TaskState.STARTING else TaskState.REJECTED
            else:
                state = next(
                    (step for step in PROGRESS if step > state and (step < TaskState.STARTING or step <= task.desired_state)), state
                )
            if state != task.status.state:
                status = msgspec.structs.replace(task.status, state=state, applied_at=self.clock.time, timestamp=self.clock.time)
                fields: dict[str, Any] = {"status": status}
                if state is TaskState.RUNNING:
                    fields["running_at"] = self.clock.time
                ops.append(Change(Task, task.id, fields, "reported"))
        self.store.apply(ops, by="dispatcher")
        return len(ops)

    def time_passes(self) -> Any:
        seconds = self.rng.choice([1, 5, 70, 100_000])
        self.clock.time += seconds * SECOND
        return seconds

    def manager_dies(self) -> Any:
        self.store.flush()
        self.loop.close()
        self.loop = self.new_loop()

    # what must hold

    def check(self, story: str) -> None:
        for controller in controllers():
            keys = list(dict.fromkeys(controller.start(self.store)))
            for group in [[key] for key in keys] if controller.apart else [keys]:
                plan = controller.plan(self.store, group, self.clock.time, random.Random(0))
                assert not plan.ops, f"{story}\n{controller.name} was not asked about {group}: {[op.because for op in plan.ops]}"


@pytest.mark.parametrize("seed", range(40))
def test_a_new_leader_finds_nothing_to_do(seed: int) -> None:
    world = World(seed)
    story = []
    world.loop.step(world.clock.time)
    for _ in range(80):
        story.append(world.any_event())
        again = world.loop.step(world.clock.time)
        assert again is None or again > world.clock.time
        world.check("\n".join(story))
    assert any(line.startswith("agents") for line in story)


def test_a_controller_fails_no_plan_of_its_own_and_none_is_refused() -> None:
    """All that the table's controllers wrote above was theirs to write: `refuse` was on. Here: their names are owners."""
    names = [controller.name for controller in controllers()]
    assert set(names) <= OWNERS.keys()
    assert {row.owner for row in TABLE} - set(names) == {"control", "dispatcher", "ca"}
    assert len(names) == len(set(names))


def test_a_new_service_is_placed_in_one_step() -> None:
    world = World(1)
    world.loop.step(world.clock.time)
    spec = ServiceSpec(
        name="web",
        mode=Mode(replicated=Replicated(replicas=8)),
        task_template=TaskSpec(container_spec=ContainerSpec(image="app")),
        endpoint_spec=EndpointSpec(ports=(PortConfig(target_port=80),)),
    )
    asyncio.run(world.control.create_service(spec))
    world.loop.step(world.clock.time)
    tasks = world.store.all(Task)
    assert [task.status.state for task in tasks] == [TaskState.ASSIGNED] * 8
    assert sorted(task.node_id for task in tasks) == sorted(["n0", "n1", "n2", "n3"] * 2)
    assert next(iter(world.store.all(Service))).endpoint.ports[0].published_port == 30000  # type: ignore[union-attr]
    assert next(iter(world.store.all(Cluster))).node_cursor == 4
    assert {decision.by for decision in world.loop.decisions} == {"allocator", "services", "scheduler"}
