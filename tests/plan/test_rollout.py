"""Rolling updates and rollbacks, each as Docker's own tests have them where there is one, over virtual time."""

from __future__ import annotations

import msgspec
import pytest
from world import World, ids, image, service_spec, started, status

from skep.clock import SECOND
from skep.model.enums import NodeState, TaskState
from skep.model.service import Service
from skep.model.spec import EndpointSpec, Placement, PortConfig, RestartPolicy, TaskSpec, UpdateConfig
from skep.model.task import Task
from skep.plan.dirty import is_task_dirty
from skep.plan.ops import NOTHING
from skep.plan.service import plan_service

S = TaskState


# what is replaced at all


def test_a_new_service_has_no_update_status() -> None:
    assert started().service().update_status is None


@pytest.mark.parametrize("change", ["labels", "replicas", "update config", "rollback config"])
def test_what_replaces_no_task(change: str) -> None:
    world = started(replicas=3)
    before = ids(world.tasks())
    spec = {
        "labels": service_spec(replicas=3, labels={"a": "b"}),
        "replicas": service_spec(replicas=4),
        "update config": service_spec(replicas=3, update=UpdateConfig(parallelism=7)),
        "rollback config": service_spec(replicas=3, rollback=UpdateConfig(parallelism=7)),
    }[change]
    world.update(spec)
    world.change(world.service(), spec_version=world.store.version + 1)  # even if control takes it for a replacing one
    world.run(60)
    assert ids(world.tasks())[:3] == before and len(world.running()) == len(world.tasks())
    assert world.service().update_status is None


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(service_spec("app:2", 2), id="image"),
        pytest.param(service_spec(replicas=2, force=1), id="force"),
        pytest.param(service_spec(replicas=2, restart=RestartPolicy(condition="none")), id="restart policy"),
        pytest.param(
            msgspec.structs.replace(service_spec(replicas=2), endpoint_spec=EndpointSpec(ports=(PortConfig(target_port=80),))), id="ports"
        ),
    ],
)
def test_what_replaces_all_tasks(spec: object) -> None:
    world = started(replicas=2)
    before = set(ids(world.tasks()))
    world.update(spec)  # type: ignore[arg-type]
    assert world.run_until(lambda: world.state() == "completed") == 5
    assert len(world.running()) == 2 and not before & set(ids(world.running()))
    assert status(world).message == "update completed"
    assert plan_service(world.store, "s", world.now, world.rng) == NOTHING


def test_a_constraint_that_nodes_meet_replaces_only_elsewhere() -> None:
    world = started(replicas=3)
    world.set_node("n1", labels={"zone": "a"})
    world.set_node("n2", labels={"zone": "a"})
    before = {task.node_id: task.id for task in world.running()}
    world.set_node("n3", availability="pause")  # the enforcer leaves a paused node alone: the rollout does the work
    world.update(service_spec(replicas=3, constraints=("node.labels.zone == a",)))
    world.run(30)
    after = {task.id: task.node_id for task in world.running()}
    assert after[before["n1"]] == "n1" and after[before["n2"]] == "n2"
    assert "n3" not in after.values() and len(after) == 3
    assert (world.state(), status(world).total) == ("completed", 1)


@pytest.mark.parametrize(
    ("task", "dirty"),
    [
        (Task(id="t", spec=TaskSpec(), spec_version=1), False),
        (Task(id="t", spec=TaskSpec(force_update=1), spec_version=2), False),
        (Task(id="t", spec=TaskSpec(force_update=1), spec_version=1), True),
        (Task(id="t", spec=TaskSpec(placement=Placement(max_replicas=1)), spec_version=1), True),
        (Task(id="t", spec=TaskSpec(), endpoint=EndpointSpec(mode="dnsrr"), spec_version=1), True),
        (Task(id="t", spec=TaskSpec(), endpoint=EndpointSpec(), spec_version=1), False),
    ],
)
def test_dirty(task: Task, dirty: bool) -> None:
    service = Service(id="s", spec=msgspec.structs.replace(service_spec(), task_template=TaskSpec(runtime="container")), spec_version=2)
    assert is_task_dirty(service, task, None) is dirty


def test_a_changed_placement_is_not_dirty_where_the_node_meets_it() -> None:
    world = World(nodes=1)
    template = TaskSpec(placement=Placement(constraints=("node.hostname == n1",)))
    service = Service(id="s", spec=msgspec.structs.replace(service_spec(), task_template=template), spec_version=2)
    task = Task(id="t", spec=TaskSpec(), spec_version=1, node_id="n1")
    assert not is_task_dirty(service, task, world.node("n1"))
    elsewhere = msgspec.structs.replace(template, placement=Placement(constraints=("node.hostname == n2",)))
    service = msgspec.structs.replace(service, spec=msgspec.structs.replace(service.spec, task_template=elsewhere))
    assert is_task_dirty(service, task, world.node("n1"))


# order and pace


def test_parallelism_two_and_a_delay_of_four_seconds_over_five() -> None:
    config = UpdateConfig(parallelism=2, delay=4 * SECOND)
    world = started(update=config)
    world.update(service_spec("app:2", 5, update=config))
    seen = []
    for _ in range(16):
        world.run(1)
        if not seen or seen[-1] != world.images():
            seen.append(world.images())
        assert len(world.running()) == 5
    assert seen == [{"app:1": 3, "app:2": 2}, {"app:1": 1, "app:2": 4}, {"app:2": 5}]
    assert (world.state(), status(world).message) == ("completed", "update completed")
    # three batches, two delays, and the monitor time after the last
    assert status(world).completed_at - status(world).started_at == (4 + 4 + 5) * SECOND


def test_one_at_a_time_without_a_config() -> None:
    world = started("slow:1", 3)
    world.update(service_spec("slow:2", 3))
    for _ in range(12):
        assert len(world.running()) >= 2
        assert sum(1 for task in world.live() if image(task) == "slow:2" and task.state is not S.RUNNING) <= 1
        world.run(1)
    assert world.images() == {"slow:2": 3}
    assert world.state() == "updating"
    world.run(5)
    assert world.state() == "completed"


def test_parallelism_zero_is_all_at_once() -> None:
    config = UpdateConfig(parallelism=0)
    world = started("slow:1", 4, update=config)
    world.update(service_spec("slow:2", 4, update=config))
    world.run(1)
    assert [image(task) for task in world.live()] == ["slow:2"] * 4
    assert world.run_until(lambda: world.state() == "completed") == 3 + 5


def test_the_monitor_time_is_as_long_as_the_delay_at_least() -> None:
    config = UpdateConfig(parallelism=1, delay=10 * SECOND)
    world = started(replicas=1, update=config)
    world.update(service_spec("app:2", 1, update=config))
    assert world.run_until(lambda: world.state() == "completed") == 11


def test_stop_first_waits_until_the_old_task_has_stopped() -> None:
    world = started("stubborn:1", 1)
    world.update(service_spec("app:2", 1))
    world.run(1)
    old, new = world.tasks()
    assert (old.desired_state, old.state) == (S.SHUTDOWN, S.RUNNING)
    assert (new.desired_state, new.state, new.starts_after) == (S.READY, S.READY, old.id)
    world.run_until(lambda: bool(world.running()))
    assert world.running()[0].running_at == new.created_at + 60 * SECOND


@pytest.mark.parametrize("rolled_back", [False, True])
def test_start_first_keeps_the_old_ones_until_the_new_are_healthy(rolled_back: bool) -> None:
    config = UpdateConfig(parallelism=2, order="start-first")
    world = started("slow:1", 4, update=config, rollback=config)
    world.update(service_spec("slow:2", 4, update=config, rollback=config))
    target = "slow:2"
    if rolled_back:
        world.run_until(lambda: world.state() == "completed")
        world.rollback()
        target = "slow:1"
    for begun in (2, 4):
        world.run(0)
        young = [task for task in world.live() if image(task) == target and task.state is S.STARTING]
        assert len(young) == 2 and len(world.running()) == 4
        world.run(3.9)
        assert len(world.running()) == 4 and len(world.live()) == 6
        world.run(0.1)
        assert world.images()[target] == begun
    world.run(5)
    assert world.images() == {target: 4} and world.state() == ("rollback_completed" if rolled_back else "completed")


def test_what_does_not_run_gets_its_turn_first() -> None:
    world = started("app:1", 3)
    world.kill(world.tasks()[2])
    world.update(service_spec("slow:2", 3))
    world.run(1)
    assert [task.slot for task in world.live() if image(task) == "slow:2"] == [3]


def test_a_finished_task_is_updated_too() -> None:
    none = RestartPolicy(condition="none")
    world = World()
    world.create(service_spec("once:1", 2, restart=none))
    world.run(10)
    assert world.live() == [] and len(world.tasks()) == 2
    world.update(service_spec("app:2", 2, restart=none))
    world.run(10)
    assert world.images() == {"app:2": 2} and world.state() == "completed"


def test_an_update_that_waits_for_a_node_waits() -> None:
    world = started(replicas=2, nodes=1)
    world.update(service_spec("app:2", 2))
    world.set_node("n1", availability="pause")
    world.run(1000)
    assert (world.state(), world.images()) == ("updating", {"app:1": 1})
    world.set_node("n1", availability="active")
    world.run(10)
    assert world.images() == {"app:2": 2} and world.state() == "completed"


def test_a_node_that_dies_under_an_update_does_not_hold_it_up_nor_count() -> None:
    world = started("slow:1", 2, nodes=2)
    world.update(service_spec("slow:2", 2))
    world.run(1)
    new = next(task for task in world.live() if image(task) == "slow:2")
    world.set_node(new.node_id, NodeState.DOWN)
    world.run(60)
    assert world.images() == {"slow:2": 2} and (world.state(), status(world).failed) == ("completed", ())


def test_a_slot_whose_turn_is_far_off_is_mended_all_the_same() -> None:
    config = UpdateConfig(parallelism=1, delay=1000 * SECOND)
    world = started(replicas=3, update=config)
    world.update(service_spec("app:2", 3, update=config))
    world.run(1)
    assert world.images() == {"app:1": 2, "app:2": 1}
    failed, lost = (task for task in world.running() if image(task) == "app:1")
    world.kill(failed)
    world.set_node(lost.node_id, NodeState.DOWN)
    world.run(11)
    assert world.images() == {"app:2": 3}


# one update after another


def test_an_update_replaces_the_one_that_runs() -> None:
    world = started("slow:1", 5)
    world.update(service_spec("slow:2", 5))
    world.run(5)
    assert {image(task) for task in world.live()} == {"slow:1", "slow:2"}
    world.update(service_spec("slow:3", 5))
    world.settle()
    assert world.state() == "updating"
    world.run(60)
    assert world.images() == {"slow:3": 5} and world.state() == "completed"


def test_an_update_in_the_overlap_of_another_leaves_two_tasks_at_most() -> None:
    config = UpdateConfig(parallelism=0, order="start-first")
    world = started("slow:1", 2, update=config)
    world.update(service_spec("slow:2", 2, update=config))
    world.run(1)
    assert len(world.live()) == 4
    world.update(service_spec("slow:3", 2, update=config))
    world.settle()
    assert sorted(image(task) for task in world.live()) == ["slow:1", "slow:1", "slow:3", "slow:3"]
    assert len(world.running()) == 2
    world.run(10)
    assert world.images() == {"slow:3": 2}


def test_a_rollback_in_the_overlap_keeps_the_old_task_that_runs() -> None:
    config = UpdateConfig(parallelism=0, order="start-first")
    world = started("slow:1", 2, update=config)
    before = ids(world.running())
    world.update(service_spec("slow:2", 2, update=config))
    world.run(1)
    world.rollback()
    world.settle()
    assert ids(world.live()) == before and world.state() == "rollback_started"
    world.run(5)
    assert ids(world.live()) == before and world.state() == "rollback_completed"


def test_a_second_rollback_undoes_the_first() -> None:
    world = started(replicas=2)
    world.update(service_spec("app:2", 2))
    world.run(20)
    world.rollback()
    world.run(20)
    assert world.images() == {"app:1": 2}
    world.rollback()
    world.run(20)
    assert world.images() == {"app:2": 2} and world.state() == "rollback_completed"


def test_a_manual_rollback_uses_the_rollback_config() -> None:
    slow, quick = UpdateConfig(parallelism=1, delay=100 * SECOND), UpdateConfig(parallelism=3)
    world = started(update=quick, rollback=quick)
    world.update(service_spec("app:2", 5, update=slow, rollback=quick))
    world.run(150)
    assert world.images() == {"app:1": 3, "app:2": 2}
    world.rollback()
    world.run(5)
    assert world.images() == {"app:1": 5} and world.state() == "rollback_completed"


def test_rolling_back_three_at_a_time() -> None:
    config = UpdateConfig(parallelism=3)
    world = started("slow:1", 5, update=config, rollback=config)
    world.update(service_spec("slow:2", 5, update=config, rollback=config))
    world.run(30)
    world.rollback()
    world.run(4)
    assert world.images() == {"slow:1": 3, "slow:2": 2} or world.images() == {"slow:1": 3}
    world.run(4)
    assert world.images() == {"slow:1": 5}


def test_a_rollback_with_nothing_to_replace_is_over_at_once() -> None:
    world = started(replicas=2)
    world.update(service_spec(replicas=2, labels={"a": "b"}))
    world.run(1)
    world.rollback()
    world.settle()
    assert world.state() == "rollback_completed"


def test_scaling_in_an_update_goes_on_with_it() -> None:
    world = started("slow:1", 4)
    world.update(service_spec("slow:2", 4))
    world.run(1)
    world.update(service_spec("slow:2", 6))
    world.run(1)
    assert world.state() == "updating"
    assert sum(1 for task in world.live() if task.rollout and task.state is not S.RUNNING) == 1, "still one at a time"
    world.run(60)
    assert world.images() == {"slow:2": 6} and world.state() == "completed"


# global services


def test_a_global_service_is_updated_node_by_node() -> None:
    world = started("slow:1", None, nodes=3)
    world.update(service_spec("slow:2", None))
    world.run(1)
    assert len(world.running()) == 2
    world.set_node("n3", availability="pause")
    world.run(30)
    assert world.images() == {"slow:2": 2, "slow:1": 1}, "a paused node is left as it is"
    assert world.state() == "completed"
    world.set_node("n3", availability="active")
    world.run(30)
    assert world.images() == {"slow:2": 3} and world.state() == "completed"


def test_a_slot_that_comes_late_is_watched_as_long_as_the_others() -> None:
    world = started("slow:1", None, nodes=2)
    world.set_node("n2", availability="pause")
    world.update(service_spec("slow:2", None))
    world.run(6)
    assert world.state() == "updating" and status(world).last_slot_at
    world.set_node("n2", availability="active")
    world.run_until(lambda: world.state() == "completed")
    late = next(task for task in world.running() if task.node_id == "n2")
    assert image(late) == "slow:2" and world.now == late.running_at + 5 * SECOND


def test_a_global_start_first_update_overlaps_on_each_node() -> None:
    config = UpdateConfig(parallelism=1, order="start-first")
    world = started("slow:1", None, nodes=2, update=config)
    world.update(service_spec("slow:2", None, update=config))
    while world.state() != "completed":
        world.run(1)
        assert len(world.running()) == 2 and len(world.live()) <= 3
    assert world.images() == {"slow:2": 2}
