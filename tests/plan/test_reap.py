"""History: what is kept of a slot, and what goes at once."""

from __future__ import annotations

import msgspec
import pytest
from world import World, changes, ids, service_spec

from skep.clock import DAY, SECOND
from skep.manager.nodes import down
from skep.model.cluster import Cluster
from skep.model.enums import NodeState, TaskState
from skep.model.spec import RestartPolicy, UpdateConfig
from skep.model.task import Task, TaskStatus
from skep.plan.liveness import REMOVED, plan_liveness
from skep.plan.ops import NOTHING, Create, Delete, Plan
from skep.plan.reap import plan_reap

S = TaskState


def failing(history: int | None, seconds: float = 98, restart: RestartPolicy | None = None) -> World:
    world = World(history=history)
    world.create(service_spec("crash:1", 2, restart=restart))
    world.run(seconds)
    return world


@pytest.mark.parametrize(("limit", "kept"), [(None, 5), (5, 5), (2, 2), (1, 1), (0, 1), (-1, 21)])
def test_a_slot_keeps_its_last_tasks_the_living_one_included(limit: int | None, kept: int) -> None:
    world = failing(limit)
    for slot in (1, 2):
        tasks = [task for task in world.tasks() if task.slot == slot]
        assert len(tasks) == kept
        assert tasks[-1].live and [task.attempts for task in tasks] == list(range(20 - kept + 1, 21)), "the oldest go"


def test_limited_attempts_are_kept_all() -> None:
    world = failing(1, restart=RestartPolicy(max_attempts=7, delay=SECOND))
    assert [task.attempts for task in world.tasks() if task.slot == 1] == list(range(8))


def test_a_finished_task_stays_so_that_its_slot_stays_filled() -> None:
    world = World(history=0)
    world.create(service_spec("once:1", 1, restart=RestartPolicy(condition="none")))
    world.run(60)
    assert len(world.tasks()) == 1 and world.tasks()[0].state is S.COMPLETE


def test_a_task_nobody_has_decided_about_is_no_history() -> None:
    world = World(history=0)
    world.create(service_spec(replicas=1))
    world.run(1)
    task = world.running()[0]
    world.kill(task)
    assert plan_reap(world.store, [task.id], world.now) == NOTHING


def test_only_the_slots_of_changed_tasks_are_looked_at() -> None:
    world = failing(-1)
    slot_one = [task.id for task in world.tasks() if task.slot == 1]
    cluster = next(iter(world.store.all(Cluster)))
    orchestration = msgspec.structs.replace(cluster.spec.orchestration, task_history_retention_limit=3)
    world.change(cluster, spec=msgspec.structs.replace(cluster.spec, orchestration=orchestration))
    plan = plan_reap(world.store, [slot_one[0], slot_one[1], "gone"], world.now)
    assert [op.id for op in plan.ops if isinstance(op, Delete)] == slot_one[:-3]


def test_a_task_to_be_removed_goes_when_it_has_stopped_or_never_began() -> None:
    world = World(nodes=1)
    world.create(service_spec("stubborn:1", 1))
    world.create(msgspec.structs.replace(service_spec(constraints=("node.id == x",)), name="p"), "p")
    world.run(1)
    world.set_node("n1", availability="pause")
    world.create(msgspec.structs.replace(service_spec(), name="q"), "q")
    world.run(1)
    assert world.tasks("q")[0].state is S.PENDING
    for id in ("s", "q"):
        world.remove(world.service(id))
    world.run(1)
    assert world.tasks("q") == []
    assert [task.desired_state for task in world.tasks("s")] == [S.REMOVE]
    world.run(100)
    assert world.tasks("s") == []


def test_a_stopped_task_of_a_removed_service_is_seen_for_a_moment() -> None:
    world = World(nodes=1)
    world.create(service_spec("good:1", 3))
    world.run(10)
    world.remove(world.service())
    world.run_until(lambda: any(task.terminal for task in world.tasks()))
    stopped = next(task for task in world.tasks() if task.terminal)
    until = stopped.status.applied_at + SECOND
    assert plan_reap(world.store, [stopped.id], until - 1) == Plan(look_again=until)
    assert [type(op) for op in plan_reap(world.store, [stopped.id], until).ops] == [Delete]
    world.run(60)
    assert world.tasks() == []


def test_a_rollout_under_way_keeps_the_tasks_it_is_read_from() -> None:
    config = UpdateConfig(parallelism=1, delay=300 * SECOND, failure_action="continue")
    world = World(history=2)
    world.create(service_spec("app:1", 2, update=config))
    world.run(1)
    world.update(service_spec("bad:2", 2, update=config))
    world.run(100)
    first = [task for task in world.tasks() if task.rollout and not task.attempts]
    assert len(first) == 1 and len(world.tasks()) == 2 + 1, "the first and the last of slot 1, and what slot 2 has"
    world.run(1000)
    assert world.state() == "completed"
    world.run(20)
    assert len(world.tasks()) == 4


def test_attachments_go_when_they_are_to_or_their_node_is_lost() -> None:
    world = World(nodes=1)
    for number, (desired, state) in enumerate(
        [(S.RUNNING, S.RUNNING), (S.REMOVE, S.RUNNING), (S.REMOVE, S.SHUTDOWN), (S.REMOVE, S.PENDING), (S.RUNNING, S.ORPHANED)]
    ):
        made = Task(id=f"a{number}", desired_state=desired, status=TaskStatus(state=state), node_id="n1")
        world.store.apply([Create(made, "test")])
    plan = plan_reap(world.store, [f"a{number}" for number in range(5)], world.now)
    assert [op.id for op in plan.ops if isinstance(op, Delete)] == ["a2", "a3", "a4"]


# liveness


def test_tasks_of_a_node_that_is_down_are_orphaned_after_a_day() -> None:
    world = World(nodes=2)
    world.create(service_spec(replicas=2))
    world.run(10)
    lost = next(task for task in world.running() if task.node_id == "n1")
    world.set_node("n1", NodeState.DOWN)
    down = world.now
    assert plan_liveness(world.store, "n1", world.now) == Plan(look_again=down + DAY)
    world.restart_manager()
    world.run(DAY / SECOND - 1)
    assert world.store.get(Task, lost.id).state is S.RUNNING  # type: ignore[union-attr]
    world.run(1)
    orphan = world.store.get(Task, lost.id)
    assert orphan is not None and orphan.state is S.ORPHANED and orphan.status.message == "node n1 has been down for 24 h"
    assert len(world.running()) == 2


def test_a_node_that_came_back_in_time_loses_nothing_more() -> None:
    world = World(nodes=1)
    world.create(service_spec(replicas=None))
    world.run(1)
    world.set_node("n1", NodeState.DOWN)
    world.run(DAY / SECOND - 10)
    world.set_node("n1", NodeState.READY)
    world.run(100)
    assert [task.state for task in world.tasks()] == [S.SHUTDOWN, S.RUNNING]


def test_tasks_of_a_removed_node_are_orphaned_at_once() -> None:
    world = World(nodes=2)
    world.create(service_spec(replicas=2))
    world.run(1)
    lost = [task.id for task in world.running() if task.node_id == "n1"]
    world.remove(world.node("n1"))
    plan = plan_liveness(world.store, "n1", world.now)
    assert list(changes(plan.ops, "status")) == lost
    assert all(status.state is S.ORPHANED and status.message == REMOVED for status in changes(plan.ops, "status").values())
    world.run(10)
    assert len(world.running()) == 2 and not set(lost) & set(ids(world.running()))


def test_tasks_of_a_node_that_has_left_the_cluster_are_orphaned_at_once() -> None:
    world = World(nodes=2)
    world.create(service_spec(replicas=2))
    world.run(10)
    (lost,) = [task for task in world.running() if task.node_id == "n1"]
    (operation,) = down(world.node("n1"), "the node left the cluster", world.now, left=True)
    world.store.apply([operation])
    plan = plan_liveness(world.store, "n1", world.now)
    status = changes(plan.ops, "status")[lost.id]
    assert (status.state, status.message) == (S.ORPHANED, "node n1 has left the cluster") and plan.look_again is None
    world.run(10)
    assert len(world.running()) == 2 and lost.id not in ids(world.running())


def test_a_ready_node_is_left_alone() -> None:
    world = World(nodes=1)
    world.create(service_spec())
    world.run(1)
    assert plan_liveness(world.store, "n1", world.now) == NOTHING
    assert plan_liveness(world.store, "unknown", world.now) == NOTHING
