"""Tasks of nodes that are gone: nobody will ever report on them, so they become ORPHANED and let go of what they hold.

A node that is down may come back; its tasks are orphaned after 24 h, counted from `node.status.since`. Those of a node that was removed, or
has left the cluster by itself, at once.
Their replacement does not wait for this: `skep.plan.service` sees the node itself.
"""

from __future__ import annotations

from skep.clock import HOUR
from skep.model.defaults import ORPHAN_AFTER
from skep.model.enums import NodeState, TaskState
from skep.model.node import Node
from skep.model.tables import TASK_BY_NODE
from skep.model.task import Task, TaskStatus
from skep.plan.ops import NOTHING, Change, Op, Plan
from skep.plan.view import View

REMOVED = "Task belonged to a node that has been deleted"


def plan_liveness(view: View, node_id: str, now: int) -> Plan:
    """To be asked when a node's state has changed, when it has been removed, and when a task comes to a node that is not there."""
    held = [task for task in view.find(TASK_BY_NODE, node_id) if task.holds_resources]
    if not held:
        return NOTHING
    node = view.get(Node, node_id)
    if node is None:
        return Plan(tuple(_orphan(task, now, REMOVED) for task in held))
    if node.status.state is not NodeState.DOWN:
        return NOTHING
    if node.status.left:
        return Plan(tuple(_orphan(task, now, f"node {node.hostname or node.id} has left the cluster") for task in held))
    due = node.status.since + ORPHAN_AFTER
    if now < due:
        return Plan(look_again=due)
    reason = f"node {node.hostname or node.id} has been down for {ORPHAN_AFTER // HOUR} h"
    return Plan(tuple(_orphan(task, now, reason) for task in held))


def _orphan(task: Task, now: int, reason: str) -> Op:
    old = task.status
    status = TaskStatus(timestamp=now, applied_at=now, state=TaskState.ORPHANED, message=reason, container=old.container)
    return Change(Task, task.id, {"status": status}, reason)
