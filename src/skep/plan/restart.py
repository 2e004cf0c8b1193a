"""Restart policy: whether a task that ended gets a successor, when that may start, and what it remembers (SwarmKit orchestrator/restart).

Nothing here waits. The delay is the successor's `start_at`; the history of a slot travels in its tasks (`restarts`, `attempts`), so a new
leader knows as much as the old one. See docs/tasks.md.
"""

from __future__ import annotations

from skep.model.defaults import restarting
from skep.model.enums import Condition, TaskState
from skep.model.task import Restart, Task
from skep.plan.slots import Nodes, ended_at

KEPT = 32
"""Restarts remembered in any case: the scheduler counts failures of the last minutes by node."""
KEPT_AT_MOST = 1000
"""A policy that allows more than this many restarts within its window allows any number."""


def runs_once(task: Task) -> str:
    """Why the policy's condition alone gives it no successor; "" = it gives one."""
    policy = restarting(task.spec)
    if policy.condition is Condition.NONE:
        return "its restart policy says never"
    if policy.condition is Condition.ON_FAILURE and task.status.state is TaskState.COMPLETE:
        return "it finished, and its restart policy is on-failure"
    return ""


def refusal(task: Task) -> str:
    """Why the policy gives this task no successor; "" = it gives one. The answer does not change while the task does not."""
    policy = restarting(task.spec)
    if because := runs_once(task):
        return because
    if not policy.max_attempts:
        return ""
    used = task.attempts
    if policy.window:
        end = ended_at(task)
        used = sum(1 for restart in task.restarts if end - policy.window < restart.at < end)
    return f"its restart policy allows {policy.max_attempts} attempts and {used} were made" if used >= policy.max_attempts else ""


def waits_for_itself(task: Task, now: int) -> bool:
    """Ended before its own delay was over (an image that cannot be had): its successor is decided on when the delay ends, so that a
    task which fails at once does not become a tight loop."""
    return task.terminal and task.desired_state is TaskState.READY and now < task.start_at


def start_at(task: Task, nodes: Nodes, now: int) -> int:
    """When a successor may start: the policy's delay after the task's end, or after its own delay if it ended before that was over; at
    once when its node is drained."""
    held_until = task.start_at if task.desired_state is TaskState.READY else 0
    delay = restarting(task.spec).delay
    if not task.terminal:
        return max(now if nodes.drained(task.node_id) else now + delay, held_until)
    return now if nodes.drained(task.node_id) else max(min(ended_at(task), now), held_until) + delay


def history(task: Task, now: int) -> tuple[tuple[Restart, ...], int]:
    """(`restarts`, `attempts`) of a successor of the same spec version. A task lost with its node before it ever ran was no attempt."""
    if not task.terminal and not task.running_at:
        return task.restarts, task.attempts
    failed = task.status.state in (TaskState.FAILED, TaskState.REJECTED)
    entry = Restart(at=ended_at(task) if task.terminal else now, node_id=task.node_id, failed=failed)
    policy = restarting(task.spec)
    kept = min(max(KEPT, policy.max_attempts), KEPT_AT_MOST) if policy.window else KEPT
    return (*task.restarts, entry)[-kept:], task.attempts + 1
