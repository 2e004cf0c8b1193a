"""The scheduler and nodes on which tasks failed: they are avoided for a while, and used when there is no other."""

from __future__ import annotations

import pytest
from placing_world import make_node, world

from skep.clock import SECOND
from skep.model.defaults import FAILURE_WINDOW, MAX_FAILURES
from skep.model.enums import TaskState
from skep.model.task import Restart, Task


def test_a_node_where_this_spec_failed_often_is_avoided_for_a_while() -> None:
    w = world(make_node("bad"), make_node("good"))
    w.service("web")
    for n in range(MAX_FAILURES):
        w.task(f"f{n}", "web", TaskState.FAILED, node_id="bad", desired_state=TaskState.SHUTDOWN, at=w.clock.time + n)
    for n in range(3):
        w.task(f"g{n}", "web", TaskState.RUNNING, node_id="good")
    w.tasks("web", 2)
    w.schedule()
    assert w.spread("web") == {"bad": MAX_FAILURES, "good": 5}
    w.clock.time += FAILURE_WINDOW + SECOND
    w.tasks("web", 2)
    w.schedule()
    assert w.spread("web") == {"bad": MAX_FAILURES + 2, "good": 5}


def test_failures_are_read_from_restarts_too_and_counted_once() -> None:
    w = world(make_node("bad"), make_node("good"))
    w.service("web")
    times = [w.clock.time - n * SECOND for n in range(MAX_FAILURES)]
    restarts = tuple(Restart(at=at, node_id="bad", failed=True) for at in times)
    w.task("dead", "web", TaskState.FAILED, node_id="bad", slot=1, at=times[0], desired_state=TaskState.SHUTDOWN)
    for n in range(3):
        w.task(f"g{n}", "web", TaskState.RUNNING, node_id="good", slot=2 + n)
    w.task("web1", "web", TaskState.PENDING, slot=1, restarts=restarts[:-1])
    w.schedule()
    assert w.get(Task, "web1").node_id == "bad", "four failures are not five, though one is seen in two places"
    w.task("web9", "web", TaskState.PENDING, slot=9, restarts=restarts)
    w.schedule()
    assert w.get(Task, "web9").node_id == "good"


@pytest.mark.parametrize("restart", [{"failed": False}, {"failed": True, "old": True}])
def test_clean_or_old_restarts_do_not_count(restart: dict[str, bool]) -> None:
    w = world(make_node("n1"), make_node("n2"))
    w.service("web")
    at = w.clock.time - (FAILURE_WINDOW + SECOND if restart.get("old") else 0)
    w.task("run", "web", TaskState.RUNNING, node_id="n2")
    w.task("web1", "web", TaskState.PENDING, restarts=tuple(Restart(at=at - n, node_id="n1", failed=restart["failed"]) for n in range(9)))
    w.schedule()
    assert w.get(Task, "web1").node_id == "n1"


def test_failures_of_another_version_do_not_count() -> None:
    w = world(make_node("n1"), make_node("n2"))
    w.service("web")
    w.task("run", "web", TaskState.RUNNING, node_id="n2", spec_version=2)
    for n in range(9):
        w.task(f"f{n}", "web", TaskState.FAILED, node_id="n1", desired_state=TaskState.SHUTDOWN, at=w.clock.time + n)
    w.task("web1", "web", TaskState.PENDING, spec_version=2)
    w.schedule()
    assert w.get(Task, "web1").node_id == "n1"


def test_a_node_that_failed_is_used_when_there_is_no_other() -> None:
    w = world(make_node("bad"))
    w.service("web")
    for n in range(9):
        w.task(f"f{n}", "web", TaskState.REJECTED, node_id="bad", desired_state=TaskState.SHUTDOWN, at=w.clock.time + n)
    w.tasks("web", 1)
    w.schedule()
    assert w.get(Task, "web10").node_id == "bad"
