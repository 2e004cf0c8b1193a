"""What a node does next with one of its tasks: one pure function of what is wanted, what was observed, and what is under way.

Docker's state machine (SwarmKit agent/exec `Do`): NEW, ASSIGNED -> ACCEPTED -> PREPARING -> READY -> STARTING -> RUNNING -> COMPLETE or
FAILED; REJECTED for what fails before STARTING, FAILED from there on; SHUTDOWN when it was told to stop. READY waits while READY is what
is desired. Messages and errors are Docker's own (`docker service ps` shows them and scripts look for them). See docs/tasks.md.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from skep.clock import SECOND
from skep.model.enums import TaskState
from skep.model.task import Task, TaskStatus


class Call(StrEnum):
    """A call of `skep.node.base.Tasks`."""

    PREPARE = "prepare"
    START = "start"
    WAIT = "wait"
    SHUTDOWN = "shutdown"
    REMOVE = "remove"


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How a call ended. Neither error nor cancelled: well; `code` and the rest are of WAIT alone."""

    error: str = ""
    cancelled: bool = False
    code: int = 0
    known: bool = True
    """False: the container ended while nobody watched, the code means nothing."""
    oom: bool = False
    detail: str = ""
    """What the runtime says about the exit."""


class Situation(msgspec.Struct, frozen=True, kw_only=True):
    desired: TaskState
    status: TaskStatus
    busy: Call | None = None
    """The call under way."""
    withdrawn: bool = False
    """The manager no longer assigns it: everything of it is to go."""
    at_once: bool = False
    """With `withdrawn`: it is killed, and not asked to end."""
    stopped: bool = False
    """A shutdown has ended since the task was last told to run (or there is nothing that could run)."""
    failure: str = ""
    """START or WAIT failed with this; the container must be down before the task may be called failed."""
    exit_code: int = 0
    """Of its container, once it is down."""
    network_ready: bool = True
    """This node's network has what the task needs."""
    leaving: bool = False
    """It is to stop, and others may still send to it: it is not stopped before they have heard, and open connections had time to end."""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What to do next: record a status, and then look again; or make a call; or cancel the one under way; or nothing."""

    state: TaskState | None = None
    message: str = ""
    error: str = ""
    call: Call | None = None
    cancel: bool = False


IDLE = Step()
LEAVE_LIMIT = 2 * SECOND
RETURN_LIMIT = 10 * SECOND
"""When the manager was away, the other nodes come back within this: an agent tries again after 8 s at the latest."""
UNHEALTHY = "unhealthy container"
"""What `Tasks.wait` and `Tasks.start` raise when a health check fails for good."""
_ADVANCE = {
    TaskState.ACCEPTED: Step(state=TaskState.PREPARING, message="preparing"),
    TaskState.READY: Step(state=TaskState.STARTING, message="starting"),
}
_WORK = {TaskState.PREPARING: Call.PREPARE, TaskState.STARTING: Call.START, TaskState.RUNNING: Call.WAIT}
_DONE = {
    Call.PREPARE: Step(state=TaskState.READY, message="prepared"),
    Call.START: Step(state=TaskState.RUNNING, message="started"),
}


def next_step(now: Situation) -> Step:
    """Never two calls at once for a task: one that is in the way is cancelled, and its end awaited."""
    state = now.status.state
    if now.withdrawn:
        if now.busy is not None:
            waits = now.busy is Call.REMOVE or (now.busy is Call.SHUTDOWN and not now.at_once)
            return IDLE if waits else Step(cancel=True)
        return Step(call=Call.REMOVE if now.stopped or now.at_once else Call.SHUTDOWN)
    if state >= TaskState.COMPLETE:
        return IDLE if now.busy is not None or now.stopped else Step(call=Call.SHUTDOWN)
    if now.failure:
        return _failing(now)
    if now.desired >= TaskState.SHUTDOWN:
        return _stopping(now)
    return _running(now)


def _failing(now: Situation) -> Step:
    if now.busy is not None:
        return IDLE
    if not now.stopped:
        return Step(call=Call.SHUTDOWN)
    return Step(state=TaskState.FAILED, message=now.status.message, error=_failure(now))


def _stopping(now: Situation) -> Step:
    """A task that leaves goes on as it is, and is watched: it may end by itself."""
    if now.leaving and not now.stopped:
        return IDLE
    if now.busy is not None:
        return IDLE if now.busy in (Call.SHUTDOWN, Call.REMOVE) else Step(cancel=True)
    if now.stopped or now.status.state < TaskState.PREPARING:
        return Step(state=TaskState.SHUTDOWN, message="shutdown")
    return Step(call=Call.SHUTDOWN)


def _running(now: Situation) -> Step:
    state = now.status.state
    if now.busy is not None:
        return IDLE
    if state < TaskState.ACCEPTED:
        return Step(state=TaskState.ACCEPTED, message="accepted")
    if state in _ADVANCE and state < now.desired:
        return _ADVANCE[state]
    if state is TaskState.PREPARING and not now.network_ready:
        return IDLE
    return Step(call=_WORK[state]) if state in _WORK else IDLE


def serves(task: Task, status: TaskStatus) -> bool:
    """Others may know it as somebody to send to: it runs, and has an address. By its node's own status, which is ahead of the manager's."""
    return status.state is TaskState.RUNNING and any(place.addresses for place in task.attachments)


def stop_time(told_at: int, left_at: int, drain: int, since: int) -> int:
    """When a task that serves may be stopped: when all nodes know that it leaves (`left_at`, 0 = not known), which is waited for no longer
    than `LEAVE_LIMIT` from when it was told to stop, or `RETURN_LIMIT` from when this node's session began (`since`): others may not be
    back yet from where it was; and then `drain` later. Sessions that begin over and over do not put it off for ever."""
    limit = max(told_at + LEAVE_LIMIT, min(since, told_at + LEAVE_LIMIT) + RETURN_LIMIT)
    return (min(max(left_at, told_at), limit) if left_at else limit) + drain


def after(call: Call, ended: Ended, status: TaskStatus) -> Step:
    """What the end of a call means for the task's state. A step with only `error`: START or WAIT failed, stop the container first."""
    if ended.cancelled or call in (Call.SHUTDOWN, Call.REMOVE):
        return IDLE
    if ended.error:
        if call is Call.PREPARE:
            return Step(state=TaskState.REJECTED, message=status.message, error=ended.error)
        return Step(error=ended.error)
    if call is Call.WAIT:
        if error := exit_error(ended):
            return Step(state=TaskState.FAILED, message=status.message, error=error)
        return Step(state=TaskState.COMPLETE, message="finished")
    return _DONE[call]


def exit_error(ended: Ended) -> str:
    """Docker's sentence for an exit that is a failure; empty for a good one."""
    if not ended.known:
        return "task: exit code unknown: the container ended while nobody watched it"
    if ended.oom:
        return f"task: non-zero exit ({ended.code or 137}): OOM"
    if not ended.code:
        return ""
    return f"task: non-zero exit ({ended.code})" + (f": {ended.detail}" if ended.detail else "")


def _failure(now: Situation) -> str:
    if now.failure != UNHEALTHY:
        return now.failure
    return f"task: non-zero exit ({now.exit_code or 137}): dockerexec: {UNHEALTHY}"
