"""The enforcer and the role of a node."""

from __future__ import annotations

import msgspec
import pytest
from world import World, changes, service_spec

from skep.model.enums import NodeState, Role, TaskState
from skep.model.node import Node, NodeDescription, Resources
from skep.model.spec import (
    DiscreteGenericResource,
    GenericResource,
    NamedGenericResource,
    NodeSpec,
    Reservations,
    ResourceRequirements,
)
from skep.plan.enforce import ERR, MESSAGE, plan_enforce
from skep.plan.ops import NOTHING, Plan
from skep.plan.roles import plan_role

S = TaskState
GIB = 1 << 30


def describe(world: World, id: str, cpus: int = 4, memory: int = 4 * GIB, generic: tuple[GenericResource, ...] | None = None) -> None:
    resources = Resources(nano_cpus=cpus * 10**9, memory_bytes=memory, generic_resources=generic)
    world.change(world.node(id), "dispatcher", description=NodeDescription(hostname=id, resources=resources))


def reserve(cpus: int = 0, memory: int = 0) -> ResourceRequirements:
    return ResourceRequirements(reservations=Reservations(nano_cpus=cpus * 10**9, memory_bytes=memory))


def labelled(world: World) -> None:
    for id in ("n1", "n2"):
        world.set_node(id, labels={"zone": "a"})
    world.set_node("n3", availability="pause")


def test_a_label_that_goes_takes_the_task_with_it() -> None:
    world = World()
    labelled(world)
    world.create(service_spec(replicas=1, constraints=("node.labels.zone == a",)))
    world.run(1)
    task = world.running()[0]
    world.set_node(task.node_id, labels={"zone": "b"})
    plan = plan_enforce(world.store, task.node_id, world.now)
    status = changes(plan.ops, "status")[task.id]
    assert (status.state, status.message, status.err, status.applied_at) == (S.REJECTED, MESSAGE, ERR, world.now)
    assert plan.ops[0].because == f"node {task.node_id} does not meet the constraint node.labels.zone==a any more"
    world.set_node(task.node_id, availability="drain")
    assert plan_enforce(world.store, task.node_id, world.now) == NOTHING


def test_the_restart_policy_replaces_it() -> None:
    world = World(nodes=2)
    world.set_node("n1", labels={"zone": "a"})
    world.create(service_spec(replicas=1, constraints=("node.labels.zone == a",)))
    world.run(1)
    world.set_node("n1", labels={})
    world.settle()
    old, new = world.tasks()
    assert (old.state, old.desired_state) == (S.REJECTED, S.SHUTDOWN)
    assert new.desired_state is S.READY and new.restarts[0].failed


@pytest.mark.parametrize("availability", ["pause", "drain"])
def test_a_paused_or_drained_node_is_left_alone(availability: str) -> None:
    world = World(nodes=1)
    world.set_node("n1", labels={"zone": "a"})
    world.create(service_spec(replicas=1, constraints=("node.labels.zone == a",)))
    world.run(1)
    world.set_node("n1", availability=availability, labels={})
    assert plan_enforce(world.store, "n1", world.now) == NOTHING


def test_a_task_goes_when_neither_its_own_constraints_nor_those_of_today_are_met() -> None:
    world = World(nodes=1)
    world.set_node("n1", labels={"zone": "a"})
    world.create(service_spec(replicas=1, constraints=("node.labels.zone == a",)))
    world.run(1)
    world.update(service_spec(replicas=1, constraints=("node.id == elsewhere",)))
    assert plan_enforce(world.store, "n1", world.now) == NOTHING, "the rollout replaces it, at the update's pace"
    world.set_node("n1", labels={})
    assert list(changes(plan_enforce(world.store, "n1", world.now).ops, "status")) == [world.tasks()[0].id]


@pytest.mark.parametrize(
    ("cpus", "memory", "victims", "short"),
    [(4, 4 * GIB, 0, ""), (3, 4 * GIB, 0, ""), (2, 4 * GIB, 1, "CPU"), (4, 2 * GIB, 1, "memory"), (0, 4 * GIB, 3, "CPU")],
)
def test_who_came_last_goes_first_when_a_node_shrinks(cpus: int, memory: int, victims: int, short: str) -> None:
    world = World(nodes=1)
    describe(world, "n1")
    world.create(service_spec(replicas=3, resources=reserve(1, GIB)))
    world.run(1)
    describe(world, "n1", cpus, memory)
    plan = plan_enforce(world.store, "n1", world.now)
    ids = [task.id for task in world.tasks()]
    assert list(changes(plan.ops, "status")) == ids[len(ids) - victims :]
    assert all(f"not enough {short}" in op.because for op in plan.ops)


def test_a_victim_does_not_take_from_the_others() -> None:
    """SwarmKit stops at the first generic resource that is missing; here the rest is looked at all the same."""
    world = World(nodes=1)
    world.create(service_spec(replicas=3))
    world.run(1)
    gpu = [GenericResource(named_resource_spec=NamedGenericResource(kind="gpu", value=f"g{i}")) for i in range(3)]
    ssd = GenericResource(discrete_resource_spec=DiscreteGenericResource(kind="ssd", value=2))
    for task, held in zip(world.tasks(), [(gpu[0],), (gpu[1], ssd), (gpu[2], ssd)], strict=True):
        world.change(task, "scheduler", generic_resources=held)
    describe(world, "n1", generic=(gpu[0], gpu[2], ssd))
    plan = plan_enforce(world.store, "n1", world.now)
    assert list(changes(plan.ops, "status")) == [world.tasks()[1].id]


def test_a_node_that_has_said_nothing_is_not_judged() -> None:
    world = World(nodes=1)
    world.create(service_spec(replicas=1, resources=reserve(1)))
    describe(world, "n1")
    world.run(1)
    world.change(world.node("n1"), "dispatcher", description=None)
    assert plan_enforce(world.store, "n1", world.now) == NOTHING


def test_tasks_that_are_to_stop_anyway_do_not_count() -> None:
    world = World(nodes=1)
    world.create(service_spec("stubborn:1", replicas=2, resources=reserve(1)))
    describe(world, "n1", cpus=2)
    world.run(1)
    describe(world, "n1", cpus=1)
    world.update(service_spec("stubborn:1", replicas=1, resources=reserve(1)))
    plan = world.plan(world.store, "s", world.now, world.rng)
    world.store.apply(plan.ops, by="services")
    assert plan_enforce(world.store, "n1", world.now) == NOTHING


# roles


def managers(world: World, *ids: str) -> None:
    for id in ids:
        spec = NodeSpec(role="manager", availability="active")
        world.put(Node(id=id, spec=spec, role=Role.MANAGER))


def test_a_role_follows_the_spec() -> None:
    world = World(nodes=1)
    managers(world, "m1", "m2")
    assert plan_role(world.store, "m1") == NOTHING
    node = world.node("m2")
    world.change(node, spec=msgspec.structs.replace(node.spec, role="worker"))
    assert changes(plan_role(world.store, "m2").ops, "role") == {"m2": Role.WORKER}
    world.change(world.node("n1"), spec=msgspec.structs.replace(world.node("n1").spec, role="manager"))
    assert changes(plan_role(world.store, "n1").ops, "role") == {"n1": Role.MANAGER}


def test_the_last_manager_keeps_its_role() -> None:
    world = World(nodes=1)
    managers(world, "m1")
    world.change(world.node("m1"), spec=msgspec.structs.replace(world.node("m1").spec, role="worker"))
    assert plan_role(world.store, "m1") == Plan()
    assert plan_role(world.store, "unknown") == NOTHING


def test_a_node_of_unknown_state_is_still_enforced() -> None:
    world = World(nodes=1)
    world.set_node("n1", labels={"zone": "a"})
    world.create(service_spec(replicas=1, constraints=("node.labels.zone == a",)))
    world.run(1)
    world.set_node("n1", NodeState.UNKNOWN, labels={})
    assert plan_enforce(world.store, "n1", world.now).ops
