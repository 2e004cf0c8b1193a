"""Rolling updates that fail: pause, continue, automatic and manual rollback; and managers that come and go meanwhile."""

from __future__ import annotations

import msgspec
import pytest
from world import World, image, service_spec, started, status

from skep.clock import SECOND
from skep.model.enums import TaskState
from skep.model.service import Service
from skep.model.spec import Replicated, RestartPolicy, UpdateConfig
from skep.plan.ops import Change
from skep.plan.service import plan_service

S = TaskState


# failure


def test_pause_after_two_of_five_failed() -> None:
    config = UpdateConfig(parallelism=1, failure_action="pause", max_failure_ratio=0.25)
    world = started(update=config)
    world.update(service_spec("bad:2", 5, update=config))
    world.run_until(lambda: world.state() == "paused")
    failed = status(world).failed
    assert len(failed) == 2
    assert status(world).message == f"update paused due to failure or early termination of task {failed[-1]}"
    world.run(300)
    assert world.images() == {"app:1": 3} and world.state() == "paused"
    world.rollback()
    world.run(1)
    assert status(world).message == "manually requested rollback"
    world.run(10)
    assert world.images() == {"app:1": 5} and world.state() == "rollback_completed"
    assert status(world).message == "rollback completed"


def test_a_share_of_failures_just_allowed_does_not_pause() -> None:
    config = UpdateConfig(parallelism=1, max_failure_ratio=0.2)
    world = started(update=config)
    world.update(service_spec("bad:2", 5, update=config))
    world.run_until(lambda: world.state() == "paused")
    assert len(status(world).failed) == 2


@pytest.mark.parametrize("name", ["bad:2", "crash:2", "brief:2", "once:2"])
@pytest.mark.parametrize("order", ["stop-first", "start-first"])
def test_the_default_is_to_pause_at_the_first_failure(name: str, order: str) -> None:
    config = UpdateConfig(parallelism=1, order=order, delay=3 * SECOND)
    world = started(update=config)
    world.update(service_spec(name, 5, update=config))
    world.run_until(lambda: world.state() == "paused")
    assert len(status(world).failed) == 1 and world.images()["app:1"] >= 4


def test_a_failure_after_the_monitor_time_does_not_count() -> None:
    config = UpdateConfig(parallelism=1, delay=10 * SECOND, monitor=1 * SECOND)
    world = started(replicas=2, update=config)
    world.update(service_spec("brief:2", 2, update=config))
    world.run_until(lambda: world.state() == "completed")
    assert status(world).failed == ()


def test_a_failure_while_the_last_slot_is_watched_counts() -> None:
    world = started(replicas=1)
    world.update(service_spec("app:2", 1))
    world.run(4)
    assert world.state() == "updating" and status(world).last_slot_at
    world.kill(world.running()[0])
    world.settle()
    assert world.state() == "paused"


def test_continue_goes_on_to_the_end() -> None:
    config = UpdateConfig(parallelism=2, failure_action="continue")
    world = started(update=config)
    world.update(service_spec("crash:2", 5, update=config))
    assert world.run_until(lambda: world.state() == "completed") == 5
    assert not any(image(task) == "app:1" for task in world.live()) and status(world).failed == ()


def test_a_failed_update_rolls_back_by_itself() -> None:
    config = UpdateConfig(parallelism=1, failure_action="rollback")
    world = started(update=config)
    before = world.service()
    world.update(service_spec("crash:2", 5, update=config))
    seen = []
    for _ in range(100):
        version = world.store.version
        world._decide([])
        world._allocate_and_schedule()
        for task in world.tasks():
            world._step_task(task, [])
        if not seen or seen[-1] != world.state():
            seen.append(world.state())
        if world.store.version == version:
            break
    assert seen == ["updating", "rollback_started"]
    culprit = next(task for task in world.tasks() if image(task) == "crash:2")
    assert status(world).message == f"update rolled back due to failure or early termination of task {culprit.id}"
    world.run(10)
    after = world.service()
    assert (after.spec, after.spec_version, after.previous_spec) == (before.spec, before.spec_version, None)
    assert world.images() == {"app:1": 5} and status(world).message == "rollback completed"
    assert len([task for task in world.tasks() if image(task) == "crash:2"]) == 1, "what had not been begun was left alone"


def test_a_rollback_keeps_its_pace_where_the_update_failed_at_once() -> None:
    """Update and rollback begin at the same instant here, so that `started_at` alone does not tell their tasks apart."""
    update = UpdateConfig(parallelism=0, failure_action="rollback")
    world = World()
    world.create(service_spec("slow:1", 3, update=update, rollback=UpdateConfig(parallelism=1)))
    world.run(10)
    world.update(service_spec("bad:2", 3, update=update, rollback=UpdateConfig(parallelism=1)))
    world.settle()
    assert world.state() == "rollback_started"
    assert [image(task) for task in world.live()] == ["slow:1"], "one at a time"
    world.run(60)
    assert world.images() == {"slow:1": 3} and world.state() == "rollback_completed"


def test_the_previous_credentials_come_back_with_the_previous_spec() -> None:
    config = UpdateConfig(parallelism=1, failure_action="rollback")
    world = started(replicas=1, update=config)
    world.change(world.service(), registry_auth="old")
    world.update(service_spec("bad:2", 1, update=config))
    world.change(world.service(), registry_auth="new", previous_registry_auth="old")
    world.run(30)
    assert (world.service().registry_auth, world.service().previous_registry_auth) == ("old", "")


def test_a_rollback_that_fails_is_paused() -> None:
    config = UpdateConfig(parallelism=1, failure_action="rollback")
    world = World()
    world.create(service_spec("app:1", 3, update=config, rollback=config))
    world.run(10)
    world.update(service_spec("app:2", 3, update=config, rollback=config))
    world.run_until(lambda: world.state() == "completed")
    service = world.service()
    previous = msgspec.structs.replace(service_spec("crash:1", 3, update=config, rollback=config))
    world.change(service, previous_spec=previous, previous_spec_version=world.store.version + 1)
    world.rollback()
    world.run_until(lambda: world.state() == "rollback_paused")
    assert status(world).message.startswith("rollback paused due to failure or early termination of task ")
    world.run(100)
    assert world.state() == "rollback_paused" and world.images() == {"app:2": 2}


def test_a_failed_start_first_task_leaves_the_old_one_running() -> None:
    config = UpdateConfig(parallelism=1, order="start-first", failure_action="pause")
    world = started(replicas=2, update=config)
    world.update(service_spec("bad:2", 2, update=config))
    world.run(300)
    assert world.images() == {"app:1": 2} and world.state() == "paused"
    assert len([task for task in world.tasks() if image(task) == "bad:2"]) == 1, "a paused update rests"


def test_a_failed_start_first_task_is_tried_again_where_the_update_goes_on() -> None:
    restart = RestartPolicy(max_attempts=3)
    config = UpdateConfig(parallelism=1, order="start-first", failure_action="continue")
    world = started(replicas=2, update=config, restart=restart)
    world.update(service_spec("bad:2", 2, update=config, restart=restart))
    world.run(300)
    assert world.images() == {"app:1": 2} and world.state() == "completed"
    tried = [task for task in world.tasks() if image(task) == "bad:2" and task.slot == 1]
    assert [task.attempts for task in tried] == [1, 2, 3], "and the first is history"


def test_a_slot_that_fails_for_ever_does_not_stop_the_others() -> None:
    """Its first task is out of the history long before the delay is over."""
    config = UpdateConfig(parallelism=1, delay=120 * SECOND, failure_action="continue")
    world = started(replicas=3, update=config)
    world.update(service_spec("bad:2", 3, update=config))
    world.run(119)
    assert world.images() == {"app:1": 2}
    world.run(2)
    assert world.images() == {"app:1": 1}
    world.run(120)
    assert world.images() == {}


def test_a_paused_update_goes_on_with_the_next_one() -> None:
    config = UpdateConfig(parallelism=1, order="start-first")
    world = started(replicas=3, update=config)
    world.update(service_spec("bad:2", 3, update=config))
    world.run(30)
    assert world.state() == "paused"
    world.update(service_spec("bad:2", 3, update=config, labels={"try": "again"}))
    world.run(1)
    assert world.state() == "paused" and len([t for t in world.tasks() if image(t) == "bad:2"]) == 2
    world.update(service_spec("app:3", 3, update=config))
    world.run(30)
    assert world.images() == {"app:3": 3} and world.state() == "completed"


def test_a_task_of_the_old_spec_that_dies_in_a_paused_update_gets_the_new_spec() -> None:
    world = started(replicas=3)
    world.update(service_spec("crash:2", 3))
    world.run_until(lambda: world.state() == "paused")
    running = world.running()
    assert len(running) == 2
    world.kill(running[0])
    world.settle()
    replacement = next(task for task in world.live() if task.slot == running[0].slot)
    assert image(replacement) == "crash:2" and replacement.start_at == world.now + 5 * SECOND


# nothing but the store


def test_every_manager_goes_on_where_the_last_one_stopped() -> None:
    config = UpdateConfig(parallelism=2, delay=4 * SECOND)

    def history(restarts: bool) -> list[tuple[float, str, dict[str, int]]]:
        world = started("slow:1", 5, update=config)
        world.update(service_spec("slow:2", 5, update=config))
        seen = []
        for step in range(40):
            world.run(1)
            if restarts:
                world.restart_manager()
            seen.append((step, world.state(), world.images()))
        return seen

    assert history(True) == history(False)


def test_a_new_manager_sees_a_failure_that_ended_the_old_one() -> None:
    world = started(replicas=2)
    world.update(service_spec("app:2", 2))
    world.run(1)
    world.kill(next(task for task in world.running() if image(task) == "app:2"))
    world.restart_manager()
    world.settle()
    assert world.state() == "paused"


def test_the_automatic_rollback_is_one_operation() -> None:
    """Whatever is written of it is all of it: no task of the failing spec is made beside it."""
    config = UpdateConfig(parallelism=1, failure_action="rollback")
    world = started(replicas=2, update=config)
    world.update(service_spec("app:2", 2, update=config))
    world.run(1)
    world.kill(next(task for task in world.running() if image(task) == "app:2"))
    plan = plan_service(world.store, "s", world.now, world.rng)
    assert len(plan.ops) == 1
    (op,) = plan.ops
    assert isinstance(op, Change) and op.kind is Service
    assert op.fields["spec"] == service_spec("app:1", 2, update=config)


def test_without_a_previous_spec_a_failing_update_is_paused() -> None:
    config = UpdateConfig(parallelism=1, failure_action="rollback")
    world = started(replicas=1, update=config)
    world.update(service_spec("bad:2", 1, update=config))
    world.change(world.service(), previous_spec=None, previous_spec_version=0)
    world.run(10)
    assert world.state() == "paused"


def test_the_replicas_of_the_previous_spec_come_back_too() -> None:
    config = UpdateConfig(parallelism=1, failure_action="rollback")
    world = started(replicas=2, update=config)
    assert world.service().spec.mode.replicated == Replicated(replicas=2)
    world.update(service_spec("bad:2", 4, update=config))
    world.run(30)
    assert world.images() == {"app:1": 2}
