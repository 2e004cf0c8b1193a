"""Tasks that their node no longer suits: its labels or its resources have changed (SwarmKit orchestrator/constraintenforcer).

The task's *observed* state becomes REJECTED, so that the ordinary restart policy replaces it; what is desired is not touched here.
"""

from __future__ import annotations

from skep.model.enums import Availability, TaskState
from skep.model.node import Node
from skep.model.service import Service
from skep.model.spec import Reservations, TaskSpec
from skep.model.tables import TASK_BY_NODE
from skep.model.task import Task, TaskStatus
from skep.plan.ops import NOTHING, Change, Op, Plan
from skep.plan.schedule.constraint import broken
from skep.plan.schedule.generic import Stock
from skep.plan.view import Load, View

MESSAGE = "task rejected by constraint enforcer"
ERR = "assigned node no longer meets constraints"


def plan_enforce(view: View, node_id: str, now: int) -> Plan:
    """To be asked when a node's spec, description, address or role has changed. A node that is paused or drained is left alone.
    Older tasks are served first where not all fit."""
    node = view.get(Node, node_id)
    if node is None or node.availability is not Availability.ACTIVE:
        return NOTHING
    room = _Room(node)
    ops: list[Op] = []
    for task in view.find(TASK_BY_NODE, node_id):
        if not (task.holds_resources and TaskState.ASSIGNED <= task.desired_state <= TaskState.COMPLETE):
            continue
        if (unmet := _unmet(view, task, node)) is not None:
            ops.append(_reject(task, now, f"node {node.hostname or node.id} does not meet the constraint {unmet} any more"))
        elif (short := room.take(task)) is not None:
            ops.append(_reject(task, now, f"node {node.hostname or node.id} has not enough {short} any more"))
    return Plan(tuple(ops))


class _Room:
    """What of the node is left while its tasks are gone through."""

    def __init__(self, node: Node) -> None:
        resources = node.description.resources if node.description else None
        self._nano_cpus = resources.nano_cpus if resources else 0
        self._memory = resources.memory_bytes if resources else 0
        self._stock = Stock(node, Load())
        self._known = resources is not None

    def take(self, task: Task) -> str | None:
        """None = it fits, and has its share; else what is short. A node that has not yet said what it has is not judged."""
        reserved = task.spec.resources.reservations if task.spec.resources else None
        reserved = reserved or Reservations()
        if not self._known:
            return None
        if reserved.nano_cpus > self._nano_cpus:
            return "CPU"
        if reserved.memory_bytes > self._memory:
            return "memory"
        if task.generic_resources and not self._stock.room(task.generic_resources):
            return "generic resources"
        self._nano_cpus -= reserved.nano_cpus
        self._memory -= reserved.memory_bytes
        self._stock.claim(task.generic_resources)
        return None


def _unmet(view: View, task: Task, node: Node) -> str | None:
    """A constraint that the node breaks, of the task's own and of its service's of today. A task that keeps either is not judged here:
    what an update of the constraints replaces, and how fast, is the rollout's to say."""
    service = view.get(Service, task.service_id) if task.service_id else None
    own = broken(_constraints(task.spec), node)
    if own is None or service is None:
        return own
    return broken(_constraints(service.spec.task_template), node)


def _constraints(spec: TaskSpec) -> tuple[str, ...]:
    return (spec.placement.constraints if spec.placement else None) or ()


def _reject(task: Task, now: int, because: str) -> Op:
    old = task.status
    status = TaskStatus(
        timestamp=now, applied_at=now, state=TaskState.REJECTED, message=MESSAGE, err=ERR, container=old.container, ports=old.ports
    )
    return Change(Task, task.id, {"status": status}, because)
