"""History: which tasks are deleted (SwarmKit manager/orchestrator/taskreaper).

A slot keeps its last tasks for people to look at (`task_history_retention_limit`, the living one included); the node keeps the stopped
container as long. The newest task of a slot is never taken: it tells that a finished slot is not to be filled again.

Of a removed service a stopped task is shown for a moment longer: who waits for its end (`docker stack rm --detach=false` counts stopped
tasks as it sees them, and waits for ever for those that it missed) must get to see it. Nothing is held by it meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable

from skep.model.cluster import Cluster
from skep.model.defaults import HISTORY_LIMIT, STOPPED_TASK_SHOWN, restarting
from skep.model.enums import TaskState, UpdateState
from skep.model.service import Service
from skep.model.tables import TASK_BY_SLOT, slot_key
from skep.model.task import Task
from skep.plan.ops import Delete, Op, Plan
from skep.plan.view import View


def plan_reap(view: View, task_ids: Iterable[str], now: int) -> Plan:
    """Looks at the slots of these tasks (those that were created or changed) and at nothing else."""
    ops: list[Op] = []
    shown: list[int] = []
    slots: dict[tuple[str, int, str], None] = {}
    for id in task_ids:
        task = view.get(Task, id)
        if task is None:
            continue
        if task.service_id:
            slots[slot_key(task)] = None
        elif because := _useless(task, None) or ("the container has left the network" if task.terminal else ""):
            ops.append(Delete(Task, task.id, because))
    for key in slots:
        ops.extend(_reap_slot(view, key, now, shown))
    return Plan(tuple(ops), min(shown, default=None))


def retention(view: View, service: Service) -> int:
    """How many tasks a slot of the service keeps; negative = all. A policy with limited attempts keeps them all, and the first."""
    attempts = restarting(service.spec.task_template).max_attempts
    if attempts > 0:
        return attempts + 1
    for cluster in view.all(Cluster):
        limit = cluster.spec.orchestration.task_history_retention_limit
        return HISTORY_LIMIT if limit is None else limit
    return HISTORY_LIMIT


def _reap_slot(view: View, key: tuple[str, int, str], now: int, shown: list[int]) -> Iterable[Op]:
    """`shown`: gets the times until which tasks are still shown."""
    tasks = list(view.find(TASK_BY_SLOT, key))
    service = view.get(Service, key[0])
    kept: list[Task] = []
    for task in tasks:
        because = _useless(task, service)
        if because and service is None and task.terminal and now < (until := task.status.applied_at + STOPPED_TASK_SHOWN):
            shown.append(until)
        elif because:
            yield Delete(Task, task.id, because)
        else:
            kept.append(task)
    if service is None:
        return
    limit = retention(view, service)
    surplus = len(kept) - limit
    if limit < 0:
        return
    for task in kept[:-1]:
        if surplus <= 0:
            return
        if _past(task) and not _watched(task, service):
            surplus -= 1
            yield Delete(Task, task.id, f"the slot keeps its last {limit} tasks")


def _useless(task: Task, service: Service | None) -> str:
    ended = task.terminal or task.status.state < TaskState.ASSIGNED
    if task.desired_state is TaskState.REMOVE and ended:
        return "it was to be removed, and has stopped" if task.terminal else "it was to be removed, and never began"
    if task.status.state is TaskState.ORPHANED and service is None:
        return "its node is lost, and it has no service"
    return ""


def _past(task: Task) -> bool:
    """Decided about, and not running: no policy has to look at it any more."""
    return task.desired_state > TaskState.RUNNING and (task.terminal or task.status.state < TaskState.ASSIGNED)


def _watched(task: Task, service: Service) -> bool:
    """The first task that a running rollout made in a slot: the rollout's delays and failures are read from it."""
    status = service.update_status
    running = status is not None and status.state in (UpdateState.UPDATING, UpdateState.ROLLBACK_STARTED)
    return running and status is not None and task.rollout == status.started_at and not task.attempts
