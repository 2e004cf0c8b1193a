"""Slots: creation and scale; the rule that one function decides, proven on its classic failure."""

from __future__ import annotations

from random import Random

import msgspec
import pytest
from world import World, changes, ids, image, service_spec

from skep.model.cluster import Cluster
from skep.model.enums import NodeState, TaskState
from skep.model.service import Service
from skep.model.spec import (
    ClusterSpec,
    Driver,
    EndpointSpec,
    GlobalJob,
    Mode,
    PortConfig,
    Replicated,
    TaskDefaults,
    UpdateConfig,
)
from skep.model.task import Task, TaskStatus
from skep.plan.ops import NOTHING, Change, Create, Plan
from skep.plan.scale import in_order_of_worth, scale
from skep.plan.service import plan_service
from skep.plan.slots import Slot
from skep.plan.view import View

S = TaskState


# creation


def test_a_new_service_fills_its_slots_from_one() -> None:
    world = World()
    world.create(service_spec(replicas=3))
    plan = plan_service(world.store, "s", world.now, world.rng)
    tasks = [op.object for op in plan.ops if isinstance(op, Create)]
    assert [task.slot for task in tasks if isinstance(task, Task)] == [1, 2, 3]
    first = tasks[0]
    assert isinstance(first, Task)
    service = world.service()
    assert first.desired_state is S.RUNNING
    assert first.status == TaskStatus(timestamp=world.now, applied_at=world.now, state=S.NEW, message="created")
    assert first.service_name == "web" and first.spec_version == service.spec_version and first.node_id == ""
    assert service.spec.task_template.runtime == "container" and first.spec.runtime == ""
    assert (first.start_at, first.starts_after, first.restarts, first.attempts, first.rollout) == (0, "", (), 0, 0)
    assert all(op.because for op in plan.ops)


def test_a_task_carries_endpoint_and_log_driver() -> None:
    world = World()
    cluster = world.store.get(Cluster, "default")
    assert cluster is not None
    defaults = ClusterSpec(task_defaults=TaskDefaults(log_driver=Driver(name="journald")))
    world.change(cluster, spec=defaults)
    endpoint = EndpointSpec(mode="vip", ports=(PortConfig(target_port=80),))
    world.create(msgspec.structs.replace(service_spec(), endpoint_spec=endpoint))
    world.create(msgspec.structs.replace(service_spec(log_driver=Driver(name="none")), name="quiet"), "q")
    world.settle()
    assert world.tasks()[0].endpoint == endpoint
    assert world.tasks()[0].log_driver == Driver(name="journald")
    assert world.tasks("q")[0].log_driver == Driver(name="none")


def test_nothing_to_do_is_nothing() -> None:
    world = World()
    world.create(service_spec(replicas=3))
    world.run(10)
    assert plan_service(world.store, "s", world.now, world.rng) == NOTHING
    assert plan_service(world.store, "unknown", world.now, world.rng) == NOTHING
    assert plan_service(world.store, "", world.now, world.rng) == NOTHING


def test_a_service_that_is_gone_has_its_tasks_removed() -> None:
    world = World()
    world.create(service_spec(replicas=3))
    world.run(1)
    world.remove(world.service())
    plan = plan_service(world.store, "s", world.now, world.rng)
    assert list(changes(plan.ops, "desired_state").values()) == [S.REMOVE] * 3
    world.run(1)
    assert world.tasks() == []


def test_jobs_are_left_alone() -> None:
    world = World()
    world.create(msgspec.structs.replace(service_spec(), mode=Mode(global_job=GlobalJob())))
    assert plan_service(world.store, "s", world.now, world.rng) == NOTHING


# scale


def test_scaling_up_keeps_what_runs_and_takes_the_lowest_free_numbers() -> None:
    world = World(nodes=1)
    world.create(service_spec(replicas=3))
    world.run(1)
    before = set(ids(world.tasks()))
    world.kill(world.tasks()[1])
    world.update(service_spec(replicas=1, restart=None))
    world.settle()
    assert [task.slot for task in world.live()] == [1]
    world.update(service_spec(replicas=4))
    world.run(1)
    assert [task.slot for task in world.running()] == [1, 2, 3, 4]
    assert world.running()[0].id in before
    assert world.state() == ""


def test_a_number_that_is_used_again_waits_for_its_last_task_to_stop() -> None:
    world = World()
    world.create(service_spec("stubborn:1", replicas=2))
    world.run(1)
    world.update(service_spec("stubborn:1", replicas=1))
    world.run(1)
    going = world.tasks()[1]
    assert going.desired_state is S.REMOVE
    world.update(service_spec("stubborn:1", replicas=2))
    world.run(1)
    new = world.live()[-1]
    assert (new.slot, new.desired_state, new.starts_after) == (2, S.READY, going.id)
    world.run(70)
    assert [task.slot for task in world.running()] == [1, 2], "a minute is waited at most"


def standing(number: int, *tasks: tuple[str, TaskState]) -> Slot:
    slot = Slot(number)
    for index, (node_id, state) in enumerate(tasks):
        task = Task(id=f"{number}.{index}", slot=number, node_id=node_id, status=TaskStatus(state=state))
        slot.tasks.append(task)
        slot.wanted.append(task)
        slot.live.append(task)
    return slot


RUN, PEND, START = S.RUNNING, S.PENDING, S.STARTING


@pytest.mark.parametrize(
    ("slots", "last_to_first"),
    [
        pytest.param([(1, "a", RUN), (2, "b", RUN), (3, "c", RUN)], [3, 2, 1], id="all alike: the highest number goes first"),
        pytest.param([(1, "a", START), (2, "b", RUN), (3, "c", RUN)], [1, 3, 2], id="what does not run goes first"),
        pytest.param([(1, "a", RUN), (2, "a", RUN), (3, "b", RUN)], [2, 3, 1], id="then the second on its node"),
        pytest.param(
            [(1, "a", RUN), (2, "a", RUN), (3, "a", RUN), (4, "b", RUN), (5, "b", RUN), (6, "c", RUN)],
            [3, 5, 2, 6, 4, 1],
            id="nodes with the most copies first",
        ),
        pytest.param([(1, "", PEND), (2, "a", RUN), (3, "a", RUN), (4, "", PEND)], [4, 1, 3, 2], id="without a node before all others"),
        pytest.param([(1, "a", START), (2, "b", RUN), (3, "b", RUN)], [3, 1, 2], id="a copy too many goes before one that starts"),
        pytest.param([(1, "a", START), (2, "a", RUN)], [1, 2], id="the running one is the first copy"),
    ],
)
def test_the_order_of_scaling_down(slots: list[tuple[int, str, TaskState]], last_to_first: list[int]) -> None:
    made = [standing(number, (node, state)) for number, node, state in slots]
    assert [slot.key for slot in in_order_of_worth(made)] == last_to_first[::-1]
    for replicas in range(len(made) + 1):
        sized = scale(made, replicas)
        assert [slot.key for slot in sized.surplus] == last_to_first[: len(made) - replicas]
        assert [slot.key for slot in sized.kept] == sorted(last_to_first[len(made) - replicas :])


def test_a_slot_with_two_tasks_goes_before_others() -> None:
    slots = [standing(1, ("a", RUN), ("b", START)), standing(2, ("c", RUN)), standing(3, ("d", RUN))]
    assert [slot.key for slot in scale(slots, 2).surplus] == [1]


def test_scaling_down_removes_tasks_and_their_history() -> None:
    world = World()
    world.create(service_spec(replicas=3))
    world.run(1)
    for task in world.live():
        world.kill(task)
    world.run(6)
    assert len(world.tasks()) == 6
    world.update(service_spec(replicas=1))
    world.run(1)
    assert [task.slot for task in world.tasks()] == [1, 1]
    world.update(service_spec(replicas=0))
    world.run(1)
    assert world.tasks() == []


# one function decides


START_FIRST = UpdateConfig(parallelism=1, order="start-first")


def in_the_middle_of_start_first(world: World) -> tuple[Task, Task]:
    world.create(service_spec("slow:1", update=START_FIRST))
    world.run(10)
    world.update(service_spec("slow:2", update=START_FIRST))
    world.run(1)
    old, new = world.live()
    assert (image(old), old.state) == ("slow:1", S.RUNNING) and (image(new), new.state) == ("slow:2", S.STARTING)
    return old, new


def test_the_old_task_of_a_start_first_update_dies_while_the_new_one_starts() -> None:
    """SwarmKit issue 2242: there the old one is restarted beside the new one, and the slot has two tasks."""
    world = World()
    old, new = in_the_middle_of_start_first(world)
    world.kill(old)
    world.settle()
    assert ids(world.live()) == [new.id]
    assert world.store.get(Task, old.id).desired_state is S.SHUTDOWN  # type: ignore[union-attr]
    world.run(60)
    assert ids(world.running()) == [new.id] and len(world.tasks()) == 2
    assert world.state() == "completed"


def test_the_same_when_its_node_goes_down() -> None:
    world = World()
    old, new = in_the_middle_of_start_first(world)
    world.set_node(old.node_id, NodeState.DOWN)
    world.run(60)
    assert ids(world.running()) == [new.id] and len(world.tasks()) == 2


def two_deciders(view: View, service_id: str, now: int, rng: Random) -> Plan:
    """A planted mistake, SwarmKit's own: restarting looks at the task alone, not at its slot."""
    plan = plan_service(view, service_id, now, rng)
    shut = changes(plan.ops, "desired_state")
    extra = [
        Create(msgspec.structs.replace(task, id=f"{task.id}-again", status=TaskStatus(), spec_version=task.spec_version, node_id=""), "x")
        for task in view.all(Task)
        if task.id in shut and task.terminal
    ]
    return Plan((*plan.ops, *extra), plan.look_again)


def no_waiting(view: View, service_id: str, now: int, rng: Random) -> Plan:
    """A planted mistake: replacements are let go at once."""
    plan = plan_service(view, service_id, now, rng)
    ops = tuple(
        Create(msgspec.structs.replace(op.object, desired_state=S.RUNNING), op.because) if isinstance(op, Create) else op for op in plan.ops
    )
    return Plan(ops, plan.look_again)


def downwards(view: View, service_id: str, now: int, rng: Random) -> Plan:
    """A planted mistake: a task that was shut down is wanted again."""
    plan = plan_service(view, service_id, now, rng)
    revived = tuple(Change(Task, task.id, {"desired_state": S.RUNNING}, "x") for task in view.all(Task) if task.desired_state is S.SHUTDOWN)
    return Plan((*plan.ops, *revived), plan.look_again)


@pytest.mark.parametrize(("mistake", "found"), [(two_deciders, "slot 1 has"), (no_waiting, "was let go"), (downwards, "only upwards")])
def test_planted_mistakes_are_found(mistake: object, found: str) -> None:
    world = World()
    old, _ = in_the_middle_of_start_first(world)
    world.plan = mistake  # type: ignore[assignment]
    world.kill(old)
    with pytest.raises(Exception, match=found):
        world.run(5)
        world.update(service_spec("app:3"))
        world.run(60)
        world.kill(world.running()[0])
        world.run(60)


def test_two_tasks_of_one_spec_are_made_one() -> None:
    """It cannot come about, and mends itself all the same."""
    world = World()
    world.create(service_spec())
    world.run(1)
    first = world.running()[0]
    twin = msgspec.structs.replace(first, id="twin", status=TaskStatus(state=S.NEW), node_id="", running_at=0)
    world.store.apply([Create(twin, "test")], by="")
    plan = plan_service(world.store, "s", world.now, world.rng)
    assert changes(plan.ops, "desired_state") == {"twin": S.SHUTDOWN}


# cost


class Counting:
    """A view that counts what is asked of it."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.asked = 0

    def __getattr__(self, name: str) -> object:
        self.asked += 1
        return getattr(self.view, name)


def test_a_decision_asks_the_store_once_for_each_node_not_for_each_task() -> None:
    world = World(nodes=3)
    world.create(service_spec(replicas=500))
    asked = []
    for _ in range(2):
        view = Counting(world.store)
        plan = plan_service(view, "s", world.now, world.rng)  # type: ignore[arg-type]
        asked.append(view.asked)
        world.run(1)
    assert len(plan.ops) == 0 and max(asked) <= 3 + 5


def test_replicas_default_to_one() -> None:
    world = World()
    spec = msgspec.structs.replace(service_spec(), mode=Mode(replicated=Replicated()))
    world.put(Service(id="s", spec=spec, spec_version=1))
    world.run(1)
    assert len(world.running()) == 1
