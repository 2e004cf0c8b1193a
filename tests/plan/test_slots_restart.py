"""Slots: the restart policy, nodes that go away, global services."""

from __future__ import annotations

import msgspec
import pytest
from world import World, service_spec

from skep.clock import MILLISECOND, SECOND
from skep.model.enums import NodeState, TaskState
from skep.model.spec import (
    RestartPolicy,
    TaskSpec,
)
from skep.model.task import Restart, Task, TaskStatus
from skep.plan.ops import NOTHING
from skep.plan.restart import KEPT, history, refusal
from skep.plan.service import plan_service

S = TaskState
NONE = RestartPolicy(condition="none")
ON_FAILURE = RestartPolicy(condition="on-failure")


# restart policy


def test_a_failed_task_is_replaced_after_the_delay_and_stays_in_the_history() -> None:
    world = World()
    world.create(service_spec(replicas=1))
    world.run(1)
    old = world.running()[0]
    world.kill(old)
    failed_at = world.now
    world.settle()
    new = world.live()[0]
    assert new.slot == old.slot and new.desired_state is S.READY and new.start_at == failed_at + 5 * SECOND
    assert new.state is S.READY, "it is prepared while it waits"
    assert new.restarts == (Restart(at=failed_at, node_id=old.node_id, failed=True),) and new.attempts == 1
    assert world.run_until(lambda: bool(world.running())) == 5
    dead = world.store.get(Task, old.id)
    assert dead is not None and (dead.state, dead.desired_state) == (S.FAILED, S.SHUTDOWN)


def test_a_delay_of_its_own_is_kept_and_counted_from_the_failure() -> None:
    world = World()
    world.create(service_spec(restart=RestartPolicy(delay=100 * MILLISECOND)))
    world.run(1)
    world.kill(world.running()[0])
    assert world.run_until(lambda: bool(world.running())) == 0.1
    world.kill(world.running()[0])
    world.clock.time += SECOND  # nobody led meanwhile
    world.restart_manager()
    world.settle()
    assert len(world.running()) == 1


@pytest.mark.parametrize(
    ("restart", "name", "replaced"),
    [
        (None, "once:1", True),
        (None, "brief:1", True),
        (ON_FAILURE, "once:1", False),
        (ON_FAILURE, "brief:1", True),
        (ON_FAILURE, "bad:1", True),
        (NONE, "once:1", False),
        (NONE, "brief:1", False),
        (NONE, "bad:1", False),
    ],
)
def test_the_condition(restart: RestartPolicy | None, name: str, replaced: bool) -> None:
    world = World()
    world.create(service_spec(name, restart=restart))
    world.run(4)
    assert len(world.tasks()) == (2 if replaced else 1)
    assert world.tasks()[0].desired_state is S.SHUTDOWN
    if not replaced:
        world.run(100)
        world.restart_manager()
        world.run(100)
        assert len(world.tasks()) == 1


def test_max_attempts_without_a_window() -> None:
    world = World()
    world.create(service_spec("crash:1", restart=RestartPolicy(max_attempts=3, delay=SECOND)))
    world.run(300)
    assert [task.attempts for task in world.tasks()] == [0, 1, 2, 3]
    assert all(task.desired_state is S.SHUTDOWN for task in world.tasks())
    assert plan_service(world.store, "s", world.now, world.rng) == NOTHING


def test_max_attempts_within_a_window() -> None:
    """Two restarts in 20 s are allowed: fails every 8 s (2 s running, 6 s delay) are too many, every 12 s are not."""
    fast = World(history=-1)
    fast.create(service_spec("brief:1", restart=RestartPolicy(max_attempts=2, delay=6 * SECOND, window=20 * SECOND)))
    fast.run(300)
    assert len(fast.tasks()) == 3
    slow = World(history=-1)
    slow.create(service_spec("brief:1", restart=RestartPolicy(max_attempts=2, delay=10 * SECOND, window=20 * SECOND)))
    slow.run(300)
    assert slow.live() and slow.live()[0].attempts > 20


def lost(restart: RestartPolicy, ended: int, state: TaskState = S.FAILED, attempts: int = 0, restarts: tuple[int, ...] = ()) -> Task:
    status = TaskStatus(state=state, applied_at=ended * SECOND)
    made = tuple(Restart(at=at * SECOND, failed=True) for at in restarts)
    return Task(id="t", spec=TaskSpec(restart_policy=restart), status=status, attempts=attempts, restarts=made, running_at=1)


@pytest.mark.parametrize(
    ("task", "refused"),
    [
        (lost(RestartPolicy(max_attempts=0), 100, attempts=1000), False),
        (lost(RestartPolicy(max_attempts=2), 100, attempts=1), False),
        (lost(RestartPolicy(max_attempts=2), 100, attempts=2), True),
        (lost(RestartPolicy(max_attempts=2, window=50 * SECOND), 100, attempts=9, restarts=(10, 20, 90)), False),
        (lost(RestartPolicy(max_attempts=2, window=50 * SECOND), 100, attempts=9, restarts=(10, 60, 90)), True),
        (lost(RestartPolicy(max_attempts=2, window=50 * SECOND), 100, restarts=(50, 90)), False),
        (lost(RestartPolicy(max_attempts=2, window=50 * SECOND), 100, restarts=(51, 99)), True),
        (lost(RestartPolicy(max_attempts=2, window=50 * SECOND), 100, restarts=(51, 100)), False),
        (lost(NONE, 100), True),
        (lost(ON_FAILURE, 100, S.COMPLETE), True),
        (lost(ON_FAILURE, 100, S.REJECTED), False),
        (lost(ON_FAILURE, 100, S.RUNNING), False),
        (lost(RestartPolicy(condition="any"), 100, S.COMPLETE), False),
    ],
)
def test_when_a_successor_is_refused(task: Task, refused: bool) -> None:
    assert bool(refusal(task)) is refused


def test_the_history_is_bounded() -> None:
    task = lost(RestartPolicy(), 100)
    for second in range(3 * KEPT):
        restarts, attempts = history(task, 0)
        task = msgspec.structs.replace(
            task, restarts=restarts, attempts=attempts, status=TaskStatus(state=S.FAILED, applied_at=(100 + second) * SECOND)
        )
    assert len(task.restarts) == KEPT and task.attempts == 3 * KEPT
    assert task.restarts[-1].at > task.restarts[0].at


def test_an_image_that_cannot_be_had_is_no_tight_loop() -> None:
    world = World(history=-1)
    world.create(service_spec("bad:1"))
    world.run(60)
    assert 12 <= len(world.tasks()) <= 14
    made = [task.created_at for task in world.tasks()]
    assert min(b - a for a, b in zip(made[1:], made[2:], strict=False)) >= 5 * SECOND


def test_a_successor_waits_for_the_last_task_to_stop_and_a_minute_at_most() -> None:
    world = World(nodes=2)
    world.create(service_spec("stubborn:1"))
    world.run(1)
    node_id = world.running()[0].node_id
    world.set_node(node_id, availability="drain")
    world.run(59)
    assert world.live()[0].desired_state is S.READY
    assert world.run_until(lambda: len(world.running()) == 1) == 1


# nodes


def test_a_drained_node_gives_its_tasks_away_at_once() -> None:
    world = World(nodes=2)
    world.create(service_spec(replicas=2))
    world.run(1)
    world.set_node("n1", availability="drain")
    world.run(0)
    assert [task.node_id for task in world.running()] == ["n2", "n2"]
    world.set_node("n1", availability="active")
    world.run(60)
    assert [task.node_id for task in world.running()] == ["n2", "n2"], "nothing moves back"


def test_a_node_that_is_down_loses_its_tasks_after_the_delay() -> None:
    world = World(nodes=2)
    world.create(service_spec("stubborn:1", replicas=2))
    world.run(1)
    world.set_node("n1", NodeState.DOWN)
    assert world.run_until(lambda: len(world.running()) == 2) == 5, "nobody waits for a node that is down"
    old = next(task for task in world.tasks() if task.node_id == "n1")
    assert (old.state, old.desired_state) == (S.RUNNING, S.SHUTDOWN)
    world.set_node("n1", NodeState.READY)
    world.run(100)
    assert [task.node_id for task in world.running()] == ["n2", "n2"]
    stopped = world.store.get(Task, old.id)
    assert stopped is not None and stopped.state is S.SHUTDOWN


@pytest.mark.parametrize("state", [NodeState.UNKNOWN, NodeState.DISCONNECTED])
def test_a_node_out_of_touch_keeps_its_tasks(state: NodeState) -> None:
    world = World(nodes=2)
    world.create(service_spec(replicas=2))
    world.run(1)
    world.set_node("n1", state)
    world.run(60)
    assert len(world.tasks()) == 2


def test_a_paused_node_keeps_its_tasks() -> None:
    world = World(nodes=2)
    world.create(service_spec(replicas=2))
    world.run(1)
    world.set_node("n1", availability="pause")
    world.run(60)
    assert len(world.tasks()) == 2


def test_a_removed_node_loses_its_tasks() -> None:
    world = World(nodes=2)
    world.create(service_spec(replicas=2))
    world.run(1)
    world.set_node("n1", NodeState.DOWN)
    world.remove(world.node("n1"))
    world.run(10)
    assert [task.node_id for task in world.running()] == ["n2", "n2"]
    assert next(task for task in world.tasks() if task.node_id == "n1").state is S.ORPHANED


def test_the_policy_holds_for_lost_nodes_too() -> None:
    world = World(nodes=2)
    world.create(service_spec(restart=NONE))
    world.run(1)
    world.set_node(world.running()[0].node_id, NodeState.DOWN)
    world.run(60)
    assert len(world.tasks()) == 1 and world.live() == []


def test_a_task_lost_before_it_ran_was_no_attempt() -> None:
    world = World(nodes=2)
    world.create(service_spec("slow:1", restart=RestartPolicy(max_attempts=1)))
    world.run(1)
    world.set_node(world.live()[0].node_id, availability="drain")
    world.run(10)
    assert world.running()[0].attempts == 0


# global services


def test_a_global_service_has_one_task_on_each_node() -> None:
    world = World(nodes=3)
    world.create(service_spec(replicas=None))
    world.run(1)
    assert sorted(task.node_id for task in world.running()) == ["n1", "n2", "n3"]
    assert {task.slot for task in world.tasks()} == {0}
    world.add_node("n4")
    world.run(1)
    assert len(world.running()) == 4


def test_a_global_service_follows_nodes_and_constraints() -> None:
    world = World(nodes=3)
    world.set_node("n1", labels={"zone": "a"})
    world.create(service_spec(replicas=None, constraints=("node.labels.zone == a",)))
    world.run(1)
    assert [task.node_id for task in world.running()] == ["n1"]
    world.set_node("n2", labels={"zone": "a"})
    world.set_node("n1", labels={})
    world.run(1)
    assert [task.node_id for task in world.running()] == ["n2"]
    assert next(task for task in world.tasks() if task.node_id == "n1").desired_state is S.SHUTDOWN


@pytest.mark.parametrize("gone", [NodeState.DOWN, "drain"])
def test_a_global_task_comes_back_with_its_node(gone: NodeState | str) -> None:
    world = World(nodes=2)
    world.create(service_spec(replicas=None))
    world.run(1)
    if gone is NodeState.DOWN:
        world.set_node("n1", NodeState.DOWN)
    else:
        world.set_node("n1", availability="drain")
    world.run(30)
    assert [task.node_id for task in world.running()] == ["n2"]
    world.set_node("n1", NodeState.READY, "active")
    world.run(1)
    assert len(world.running()) == 2 and len(world.tasks()) == 3


def test_a_paused_node_gets_no_global_task_and_no_replacement() -> None:
    world = World(nodes=2)
    world.set_node("n2", availability="pause")
    world.create(service_spec(replicas=None))
    world.run(1)
    assert [task.node_id for task in world.tasks()] == ["n1"]
    world.set_node("n1", availability="pause")
    world.kill(world.running()[0])
    world.run(60)
    assert world.live() == []
    world.set_node("n1", availability="active")
    world.run(1)
    assert [task.node_id for task in world.running()] == ["n1"]


def test_a_removed_node_takes_its_global_tasks_with_it() -> None:
    world = World(nodes=2)
    world.create(service_spec(replicas=None))
    world.run(1)
    world.remove(world.node("n1"))
    world.run(1)
    assert [task.node_id for task in world.tasks()] == ["n2"]


def test_a_failed_global_task_is_restarted_on_its_node() -> None:
    world = World(nodes=2)
    world.create(service_spec(replicas=None))
    world.run(1)
    world.kill(world.tasks()[0])
    world.run(5)
    assert sorted(task.node_id for task in world.running()) == ["n1", "n2"]
    assert len(world.tasks()) == 3
