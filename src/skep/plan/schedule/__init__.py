"""The scheduler: gives every pending task a node, or says in Docker's words why it cannot. See docs/scheduling.md.

Tasks with the same spec are placed as one group on one tree, so that 10,000 tasks cost 10,000 heap steps and not 10,000 walks over the
nodes. Nothing is remembered between plans: failures are read from the tasks, loads from the store's indexes. No filter depends on the
time, so a plan never asks to be looked at again: whatever frees a place is a change in the store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from skep.ids import Random
from skep.model.defaults import FAILURE_WINDOW, MAX_FAILURES
from skep.model.enums import TaskState
from skep.model.tables import TASK_BY_SERVICE, TASK_UNASSIGNED
from skep.model.task import Task, TaskStatus
from skep.plan.ops import NOTHING, Change, Op, Plan
from skep.plan.schedule.constraint import BadConstraint, node_matches, validate_constraints
from skep.plan.schedule.filters import Filter, explanation, filters_for, room_for, turned_down
from skep.plan.schedule.place import Place, Places, Wants, wants_of
from skep.plan.schedule.spread import descriptors, grow
from skep.plan.view import View

__all__ = ["BadConstraint", "explain", "node_matches", "plan_schedule", "validate_constraints"]

ASSIGNED = "scheduler assigned task to node"
CONFIRMED = "scheduler confirmed task can run on preassigned node"


def plan_schedule(view: View, now: int, rng: Random) -> Plan:
    """Tasks that already have a node (global services, attachments) are confirmed first; then the groups, oldest task first."""
    preassigned: list[Task] = []
    groups: dict[tuple[str, int], list[Task]] = {}
    for task in view.find(TASK_UNASSIGNED, ""):
        if task.node_id:
            preassigned.append(task)
        else:
            groups.setdefault((task.service_id, task.spec_version) if task.service_id else (task.id, 0), []).append(task)
    if not preassigned and not groups:
        return NOTHING
    places = Places(view)
    ops: list[Op] = []
    _confirm(preassigned, places, view, now, ops)
    for group in groups.values():
        _place(group, places, view, now, rng, ops)
    return Plan(tuple(ops))


def _confirm(tasks: Sequence[Task], places: Places, view: View, now: int, ops: list[Op]) -> None:
    """A global service's tasks share their spec, and so their filters."""
    known: dict[tuple[str, int], tuple[Wants, tuple[Filter, ...]]] = {}
    confirmed = TaskStatus(timestamp=now, applied_at=now, state=TaskState.ASSIGNED, message=CONFIRMED)
    for task in tasks:
        place = places.get(task.node_id)
        if place is None:
            continue
        key = (task.service_id or task.id, task.spec_version)
        if key not in known:
            wants = wants_of(task)
            # a plain container is there already, and takes nothing but an address
            plain = task.spec.network_attachment_spec is not None
            known[key] = wants, () if plain else filters_for(task, wants, view)
        wants, filters = known[key]
        filter_ = turned_down(filters, place)
        if filter_ is not None:
            _leave_pending([task], filter_.explain(1), ops)
            continue
        given = place.put(wants)
        fields: dict[str, object] = {"status": confirmed}
        if given:
            fields["generic_resources"] = given
        ops.append(Change(Task, task.id, fields, f"node {place.node.hostname or place.node.id} can run it"))


def _place(group: Sequence[Task], places: Places, view: View, now: int, rng: Random, ops: list[Op]) -> None:
    first = group[0]
    wants = wants_of(first)
    filters = filters_for(first, wants, view)
    placement = first.spec.placement
    levels = descriptors(placement.preferences if placement else None)
    penalties = recent_failures(view, first, now)
    everywhere = places.all()
    tree = grow(levels, [(place, room_for(filters, place)) for place in everywhere], first.service_id, penalties, rng)
    assigned = TaskStatus(timestamp=now, applied_at=now, state=TaskState.ASSIGNED, message=ASSIGNED)
    for done, task in enumerate(group):
        place = tree.take()
        if place is None:
            words = explanation(filters, everywhere)
            _leave_pending(group[done:], f"no suitable node ({words})" if words else "no suitable node", ops)
            return
        given = place.put(wants)
        fields: dict[str, object] = {"node_id": place.node.id, "status": assigned}
        if given:
            fields["generic_resources"] = given
        ops.append(Change(Task, task.id, fields, _because(place, task, levels)))


def _because(place: Place, task: Task, levels: Sequence[str]) -> str:
    name = place.node.hostname or place.node.id
    over = f" of its branch of {', '.join(levels)}" if levels else ""
    return f"placed on {name}, the least loaded node{over}: now task {place.count(task.service_id)} of the service, {place.tasks} in all"


def _leave_pending(tasks: Sequence[Task], err: str, ops: list[Op]) -> None:
    """The state stays, and with it the time since when it is pending; written only when the text is another one."""
    for task in tasks:
        old = task.status
        if old.err != err:
            status = TaskStatus(timestamp=old.timestamp, applied_at=old.applied_at, state=old.state, message=old.message, err=err)
            ops.append(Change(Task, task.id, {"status": status}, err))


def recent_failures(view: View, task: Task, now: int) -> Mapping[str, int]:
    """Nodes on which this spec of the service failed at least MAX_FAILURES times within FAILURE_WINDOW, with the number.

    A failure is found in the failed task itself while history keeps it, and in the `restarts` of its successors: both name the same
    (slot, node, time), so it counts once.
    """
    if not task.service_id:
        return {}
    since = now - FAILURE_WINDOW
    failures: set[tuple[int, str, int]] = set()
    for other in view.find(TASK_BY_SERVICE, task.service_id):
        state = other.status.state
        dead = state is TaskState.FAILED or state is TaskState.REJECTED
        if not (dead or other.restarts) or other.spec_version != task.spec_version:
            continue
        for restart in other.restarts:
            if restart.failed and restart.at > since:
                failures.add((other.slot, restart.node_id, restart.at))
        ended = other.status.applied_at or other.status.timestamp
        if dead and other.node_id and ended > since:
            failures.add((other.slot, other.node_id, ended))
    if len(failures) < MAX_FAILURES:
        return {}
    counts: dict[str, int] = {}
    for _, node_id, _ in failures:
        counts[node_id] = counts.get(node_id, 0) + 1
    return {node_id: number for node_id, number in counts.items() if number >= MAX_FAILURES}


def explain(view: View, task: Task) -> str:
    """One line per node: what each filter makes of it for this task, or how it ranks. For `skep explain`."""
    wants = wants_of(task)
    filters = filters_for(task, wants, view)
    places = Places(view)
    lines = []
    for place in places.all():
        if task.node_id and place.node.id != task.node_id:
            continue
        filter_ = turned_down(filters, place)
        verdict = (
            filter_.reason(place) if filter_ else f"suitable: {place.count(task.service_id)} tasks of this service, {place.tasks} in all"
        )
        lines.append(f"{place.node.hostname or place.node.id}: {verdict}")
    return "\n".join(lines) or "no node in the cluster"
