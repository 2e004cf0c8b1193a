"""Every (field, transition) has one owner, and the table says so completely."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from world import START, World, service_spec

from skep.model.base import Object
from skep.model.enums import TaskState, UpdateState
from skep.model.network import Network
from skep.model.node import Node, NodeStatus
from skep.model.service import Endpoint, Service, UpdateStatus
from skep.model.tables import TABLES
from skep.model.task import Task, TaskStatus
from skep.plan.ops import Change, Create, Delete
from skep.plan.ownership import CREATE, DELETE, OWNERS, TABLE, Trespass, refuse, swap, violations

S = TaskState
STAMPED = {"id", "version", "spec_index", "created_at", "updated_at"}
"""Written by the store."""
FIXED = {
    Task: {
        "service_id",
        "service_name",
        "slot",
        "spec",
        "spec_version",
        "endpoint",
        "log_driver",
        "job_iteration",
        "start_at",
        "starts_after",
        "restarts",
        "attempts",
        "rollout",
    },
    Network: {"predefined"},
}
"""Set at creation and never again."""


def test_every_field_has_an_owner_or_is_never_written() -> None:
    for kind in TABLES.values():
        listed = {row.field for row in TABLE if row.kind is kind} - {CREATE, DELETE}
        fields = set(kind.__struct_fields__) - STAMPED
        assert listed <= fields, f"{kind.__name__} has no {sorted(listed - fields)}"
        assert fields - listed == FIXED.get(kind, set()), f"{kind.__name__}: nobody owns {sorted(fields - listed - FIXED.get(kind, set()))}"
        for action in (CREATE, DELETE):
            assert any(row.kind is kind and row.field == action for row in TABLE), f"nobody may do {action} {kind.__name__}"


def test_every_owner_is_named_and_owns_something() -> None:
    assert {row.owner for row in TABLE} == set(OWNERS)


def test_the_page_shows_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "ownership.md").read_text()
    shown = [line for line in page.splitlines() if line.startswith("| `")]
    assert shown == [f"| `{row.kind.__name__}.{row.field}` | {row.owner} | {row.transition} |" for row in TABLE]


def task(state: TaskState = S.NEW, desired: TaskState = S.RUNNING, **fields: Any) -> Task:
    return Task(**{"id": "t", "service_id": "s", "desired_state": desired, "status": TaskStatus(state=state), **fields})


def status(state: TaskState, **fields: Any) -> dict[str, Any]:
    return {"status": TaskStatus(state=state, **fields)}


STEPS = [
    ("allocator", S.NEW, S.PENDING),
    ("scheduler", S.PENDING, S.ASSIGNED),
    ("dispatcher", S.ASSIGNED, S.ACCEPTED),
    ("dispatcher", S.ASSIGNED, S.REJECTED),
    ("dispatcher", S.STARTING, S.RUNNING),
    ("dispatcher", S.RUNNING, S.COMPLETE),
    ("dispatcher", S.RUNNING, S.FAILED),
    ("dispatcher", S.SHUTDOWN, S.FAILED),
    ("enforcer", S.RUNNING, S.REJECTED),
    ("enforcer", S.ASSIGNED, S.REJECTED),
    ("liveness", S.RUNNING, S.ORPHANED),
    ("liveness", S.ASSIGNED, S.ORPHANED),
]


@pytest.mark.parametrize(("owner", "before", "after"), STEPS)
def test_who_makes_which_step(owner: str, before: TaskState, after: TaskState) -> None:
    change = Change(Task, "t", status(after), "why")
    allowed = {by for by in OWNERS if not violations(by, change, task(before))}
    enforced = {"enforcer", "dispatcher"} if after is S.REJECTED else {owner}
    assert allowed == enforced


@pytest.mark.parametrize("before", list(S))
@pytest.mark.parametrize("by", list(OWNERS))
def test_no_state_ever_goes_back(by: str, before: TaskState) -> None:
    for after in S:
        if after < before:
            assert violations(by, Change(Task, "t", status(after), "why"), task(before))


@pytest.mark.parametrize(
    ("by", "state", "allowed"),
    [
        ("allocator", S.NEW, True),
        ("scheduler", S.NEW, False),
        ("scheduler", S.PENDING, True),
        ("allocator", S.PENDING, False),
        ("dispatcher", S.RUNNING, True),
        ("services", S.RUNNING, False),
    ],
)
def test_the_text_of_a_state_belongs_to_the_next_step(by: str, state: TaskState, allowed: bool) -> None:
    change = Change(Task, "t", status(state, err="no suitable node"), "why")
    assert (not violations(by, change, task(state))) is allowed


def test_desired_states_only_rise() -> None:
    up = Change(Task, "t", {"desired_state": S.SHUTDOWN}, "why")
    down = Change(Task, "t", {"desired_state": S.RUNNING}, "why")
    assert violations("services", up, task(desired=S.RUNNING)) == []
    assert violations("services", down, task(desired=S.SHUTDOWN))
    for by in OWNERS.keys() - {"services"}:
        assert violations(by, up, task(desired=S.RUNNING))
    assert violations("control", up, task(desired=S.RUNNING, service_id="")) == []
    assert violations("services", up, task(desired=S.RUNNING, service_id=""))


def test_what_is_not_changed_is_not_written() -> None:
    assert violations("reaper", Change(Task, "t", {"desired_state": S.RUNNING}, "why"), task()) == []


def test_creation_and_deletion() -> None:
    assert violations("services", Create(task(), "why"), None) == []
    assert violations("control", Create(task(), "why"), None)
    assert violations("control", Create(task(service_id=""), "why"), None) == []
    assert violations("services", Create(task(S.RUNNING), "why"), None)
    assert violations("reaper", Delete(Task, "t", "why"), task(S.FAILED)) == []
    assert violations("reaper", Delete(Task, "t", "why"), task(S.PENDING, S.REMOVE)) == []
    assert violations("reaper", Delete(Task, "t", "why"), task(S.RUNNING, S.REMOVE))
    assert violations("services", Delete(Task, "t", "why"), task(S.FAILED))
    assert violations("reaper", Delete(Task, "t", "why"), None) == ["reaper: there is no Task t"]


@pytest.mark.parametrize(
    ("kind", "field", "value", "owner"),
    [
        (Task, "node_id", "n", "scheduler"),
        (Task, "running_at", 1, "dispatcher"),
        (Service, "endpoint", None, "allocator"),
        (Node, "index", 7, "allocator"),
        (Node, "status", NodeStatus(addr="1.2.3.4"), "dispatcher"),
        (Task, "start_at", 5, None),
        (Task, "spec_version", 5, None),
    ],
)
def test_single_fields(kind: type[Object], field: str, value: Any, owner: str | None) -> None:
    old: Object = task() if kind is Task else Node(id="t", spec=World().node("n1").spec)
    if kind is Service:
        old = Service(id="t", spec=service_spec(), endpoint=Endpoint())
    allowed = {by for by in OWNERS if not violations(by, Change(kind, "t", {field: value}, "why"), old)}
    assert allowed == ({owner} if owner else set())


def updating(state: UpdateState = UpdateState.UPDATING) -> Service:
    return Service(
        id="s",
        spec=service_spec("app:2"),
        spec_version=9,
        previous_spec=service_spec("app:1"),
        previous_spec_version=4,
        update_status=UpdateStatus(state=state, started_at=START),
        registry_auth="new",
        previous_registry_auth="old",
    )


def test_a_rollout_carries_controls_rollback_and_nothing_else() -> None:
    old = updating()
    back = {**swap(old), "update_status": UpdateStatus(state=UpdateState.ROLLBACK_STARTED)}
    assert violations("services", Change(Service, "s", back, "why"), old) == []
    for field in ("spec", "spec_version", "registry_auth"):
        other = {**back, field: {"spec": service_spec("app:3"), "spec_version": 5, "registry_auth": "mine"}[field]}
        assert violations("services", Change(Service, "s", other, "why"), old)
    assert violations("services", Change(Service, "s", swap(old), "why"), old), "not without its status"
    assert violations("services", Change(Service, "s", back, "why"), updating(UpdateState.PAUSED))
    half = {name: value for name, value in back.items() if name != "spec_version"}
    assert violations("services", Change(Service, "s", half, "why"), old)
    assert violations("control", Change(Service, "s", swap(old), "why"), old) == []


def test_control_clears_a_status_or_begins_a_rollback() -> None:
    for status_, allowed in [
        (None, True),
        (UpdateStatus(state=UpdateState.ROLLBACK_STARTED), True),
        (UpdateStatus(state=UpdateState.COMPLETED), False),
    ]:
        change = Change(Service, "s", {"update_status": status_}, "why")
        assert (not violations("control", change, updating())) is allowed
        assert violations("services", change, updating()) == []


def test_strangers_are_refused_and_the_unnamed_are_not_checked() -> None:
    change = Change(Task, "t", {"start_at": 5}, "why")
    assert violations("nobody", change, task()) == ["nobody is called 'nobody'"]
    assert violations("", change, task()) == []


def test_the_guard_names_owner_field_and_step() -> None:
    with pytest.raises(Trespass, match=r"^services may not write Task.status of t \(NEW to RUNNING\): it belongs to .*allocator.*"):
        refuse("services", Change(Task, "t", status(S.RUNNING), "why"), task())
    with pytest.raises(Trespass, match="only from ASSIGNED on, never back"):
        refuse("dispatcher", Change(Task, "t", status(S.RUNNING), "why"), task())


def test_the_store_refuses_a_trespass_as_a_whole() -> None:
    world = World()
    world.create(service_spec())
    world.run(1)
    first = world.running()[0]
    with pytest.raises(Trespass):
        world.store.apply(
            [Change(Task, first.id, {"desired_state": S.SHUTDOWN}, "why"), Change(Task, first.id, {"node_id": "n2"}, "why")], by="services"
        )
    assert world.store.get(Task, first.id) == first
