"""Spread preferences: counts are evened out level by level."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from placing_world import World

from skep.model.enums import TaskState
from skep.model.task import Task


def test_racks_get_the_same_though_one_has_more_nodes() -> None:
    w = World()
    w.node("a1", labels={"rack": "a"})
    w.node("b1", labels={"rack": "b"})
    w.node("b2", labels={"rack": "b"})
    w.service("web", spread=["node.labels.rack"])
    w.tasks("web", 4)
    w.schedule()
    assert w.spread("web") == {"a1": 2, "b1": 1, "b2": 1}


def test_without_the_label_a_node_is_in_a_branch_of_its_own() -> None:
    w = World()
    w.node("a1", labels={"rack": "a"})
    w.node("x1")
    w.node("x2")
    w.service("web", spread=["node.labels.rack"])
    w.tasks("web", 4)
    w.schedule()
    assert w.spread("web") == {"a1": 2, "x1": 1, "x2": 1}


def test_levels_nest_and_engine_labels_count() -> None:
    w = World()
    for zone in "ab":
        for rack in "123"[: 1 if zone == "a" else 3]:
            w.node(f"{zone}{rack}", labels={"zone": zone}, engine_labels={"rack": rack})
    w.service("web", spread=["node.labels.zone", "engine.labels.rack", "node.color"])
    w.tasks("web", 12)
    w.schedule()
    assert w.spread("web") == {"a1": 6, "b1": 2, "b2": 2, "b3": 2}


def test_a_full_branch_drops_out() -> None:
    w = World()
    w.node("a1", labels={"rack": "a"}, cpus=1)
    w.node("b1", labels={"rack": "b"}, cpus=8)
    w.service("web", spread=["node.labels.rack"], cpus=1)
    w.tasks("web", 6)
    w.schedule()
    assert w.spread("web") == {"a1": 1, "b1": 5}


def test_running_tasks_count_also_on_nodes_that_take_no_more() -> None:
    w = World()
    w.node("a1", labels={"rack": "a"}, availability="pause")
    w.node("a2", labels={"rack": "a"})
    w.node("b1", labels={"rack": "b"})
    w.service("web", spread=["node.labels.rack"])
    for n in range(3):
        w.task(f"r{n}", "web", TaskState.RUNNING, node_id="a1")
    w.tasks("web", 3)
    w.schedule()
    assert w.spread("web") == {"a1": 3, "b1": 3}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1, max_size=8),
    st.integers(0, 30),
    st.lists(st.integers(0, 7), max_size=6),
    st.integers(0, 1 << 30),
)
def test_no_branch_gets_a_task_while_another_has_two_less(racks: list[str], number: int, running: list[int], seed: int) -> None:
    w = World(seed)
    for n, rack in enumerate(racks):
        w.node(f"n{n}", labels={"rack": rack} if rack else {})
    w.service("web", spread=["node.labels.rack"])
    before: dict[str, int] = dict.fromkeys(racks, 0)
    for n, where in enumerate(running):
        node = where % len(racks)
        w.task(f"r{n}", "web", TaskState.RUNNING, node_id=f"n{node}")
        before[racks[node]] += 1
    w.tasks("web", number)
    w.schedule()
    after: dict[str, int] = dict.fromkeys(racks, 0)
    for task in w.store.all(Task):
        assert task.node_id
        after[racks[int(task.node_id[1:])]] += 1
    grown = [after[rack] for rack in after if after[rack] > before[rack]]
    assert sum(after.values()) == number + len(running)
    assert not grown or max(grown) - min(after.values()) <= 1
    for rack in set(racks):
        here = [sum(t.node_id == f"n{n}" for t in w.store.all(Task)) for n, r in enumerate(racks) if r == rack]
        had = [sum(where % len(racks) == n for where in running) for n, r in enumerate(racks) if r == rack]
        raised = [now for now, then in zip(here, had, strict=True) if now > then]
        assert not raised or max(raised) - min(here) <= 1
