"""How a changed spec reaches the slots: which may be replaced now, what failed, and when it is over (SwarmKit orchestrator/update).

A rollout is a reading of the store, not a process. Its progress is `service.update_status`; a slot it has begun holds a task with
`task.rollout` = `started_at`; delays run from that task's `running_at`. So any leader can go on with it at any time, and a rollout that is
replaced by another leaves nothing behind. Proposes only: `skep.plan.service` decides. See docs/tasks.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from skep.clock import SECOND
from skep.model.defaults import Rollout, rollout
from skep.model.enums import FailureAction, TaskState, UpdateState
from skep.model.service import Service, UpdateStatus
from skep.model.task import Task
from skep.plan.ownership import swap
from skep.plan.slots import Slot, ended_at

ROLLING_BACK = (UpdateState.ROLLBACK_STARTED, UpdateState.ROLLBACK_PAUSED, UpdateState.ROLLBACK_COMPLETED)
RESTING = (UpdateState.PAUSED, UpdateState.ROLLBACK_PAUSED)
RUNNING = (UpdateState.UPDATING, UpdateState.ROLLBACK_STARTED)
OWN_ENDS = (TaskState.COMPLETE, TaskState.FAILED, TaskState.REJECTED)
"""A task that was not told to stop ends in one of these."""

IsDirty = Callable[[Task], bool]


class Step(msgspec.Struct):
    """What the rollout proposes now."""

    status: UpdateStatus | None
    """`update_status` as it is to be."""
    because: str = ""
    """Of a changed status."""
    turn: frozenset[int | str] = frozenset()
    """Slots whose turn it is."""
    mark: int = 0
    """`task.rollout` of what is made now."""
    rolling: bool = False
    """Under way: a slot that is out of date may get its turn any moment."""
    resting: bool = False
    """Paused: what has begun goes on, nothing begins."""
    config: Rollout = msgspec.field(default_factory=lambda: rollout(None))
    look_again: int | None = None
    rollback: dict[str, Any] | None = None
    """Control's operation that it asks for: nothing else is to be done with this spec."""


class _Progress(msgspec.Struct):
    """Where one slot stands."""

    slot: Slot
    waits: bool
    """To be replaced, and not begun."""
    under_way: bool
    """Begun, and its new task has neither run nor ended."""
    overlap: bool
    """Old and new live side by side."""
    done_at: int
    """When its new task first ran, or ended without; 0 = not yet, or not by this rollout."""


def propose(service: Service, slots: Sequence[Slot], dirty: IsDirty, now: int) -> Step:
    """`slots` are those that stay, in order. Only the service and its tasks are read; `now` decides the rest."""
    status = service.update_status
    rolling_back = status is not None and status.state in ROLLING_BACK
    step = Step(status, config=rollout(service.spec.rollback_config if rolling_back else service.spec.update_config))
    if status is not None and status.state in RESTING:
        step.resting, step.mark = True, status.started_at
        return step
    mark = status.started_at if status else 0
    progress = [_look(slot, dirty, mark, service.spec_version) for slot in slots if not slot.frozen]
    unfinished = [p for p in progress if p.waits or p.under_way]
    step.status = status = _begun(status, progress, now)
    if status is None:
        return step
    step.mark = status.started_at
    if status is not service.update_status:
        step.because = status.message
    if status.state in RUNNING:
        step.rolling = True
        _count_failures(service, step, slots, dirty, now)
        if step.rollback is not None or step.resting:
            return step
        if not unfinished:
            _finish(step, now)
        elif step.status is not None and step.status.last_slot_at:
            step.status = _replace(step.status, last_slot_at=0)
            step.because = step.because or "a slot is not done after all"
    _hand_out_turns(step, progress, now)
    return step


def _look(slot: Slot, dirty: IsDirty, mark: int, version: int) -> _Progress:
    if len(slot.tasks) == 1 == len(slot.live) and not slot.tasks[0].rollout and not dirty(slot.tasks[0]):
        return _Progress(slot, False, False, False, 0)  # most slots, most of the time
    clean = [task for task in slot.live if not dirty(task)]
    stale = len(clean) < len(slot.live)
    shown = slot.lost or slot.tasks[-1:]
    begun = [task for task in slot.tasks if mark and task.rollout == mark and task.spec_version == version]
    waits = not clean and not begun and (stale or (not slot.live and bool(shown) and dirty(shown[-1])))
    under_way = bool(clean) and (stale or clean[-1].rollout != 0) and not _arrived(slot, clean[-1])
    done = [at for task in begun if (at := _arrived_at(task))]
    return _Progress(slot, waits, under_way, stale and bool(clean), min(done, default=0))


def _arrived(slot: Slot, task: Task) -> bool:
    """Has it, or one before it in the same rollout, run or ended by itself?"""
    if task.running_at:
        return True
    mark, version = task.rollout, task.spec_version
    return mark != 0 and any(_arrived_at(t) for t in slot.tasks if t.rollout == mark and t.spec_version == version)


def _arrived_at(task: Task) -> int:
    """When it first ran, or ended by itself without; 0 = neither."""
    return task.running_at or (ended_at(task) if task.status.state in OWN_ENDS else 0)


def _begun(status: UpdateStatus | None, progress: Sequence[_Progress], now: int) -> UpdateStatus | None:
    """An update begins when the first task is found to be out of date; a rollback that control asked for gets its divisor here."""
    total = sum(1 for p in progress if p.waits or p.overlap)
    if status is None:
        return UpdateStatus(state=UpdateState.UPDATING, started_at=now, message="update in progress", total=total) if total else None
    if status.state in RUNNING and not status.total and total:
        return _replace(status, started_at=status.started_at or now, total=total)
    return status


def _count_failures(service: Service, step: Step, slots: Sequence[Slot], dirty: IsDirty, now: int) -> None:
    """A task that this rollout made counts once, when it ends by itself before it has run for the monitor time."""
    status, config = step.status, step.config
    if status is None or config.failure_action is FailureAction.CONTINUE:
        return
    known = set(status.failed)
    fresh = [
        task.id for slot in slots for task in slot.lost if task.id not in known and _failed(task, step.mark, config) and not dirty(task)
    ]
    if fresh:
        status = step.status = _replace(status, failed=(*status.failed, *fresh))
        step.because = f"task {fresh[-1]} failed: {len(status.failed)} of {status.total} slots"
    if not status.failed or len(status.failed) / max(status.total, 1) <= config.max_failure_ratio:
        return
    culprit = f"due to failure or early termination of task {status.failed[-1]}"
    if status.state is UpdateState.ROLLBACK_STARTED:
        step.status = _replace(status, state=UpdateState.ROLLBACK_PAUSED, message=f"rollback paused {culprit}")
    elif config.failure_action is FailureAction.ROLLBACK and service.previous_spec is not None:
        step.rollback = swap(service)
        step.status = UpdateStatus(state=UpdateState.ROLLBACK_STARTED, started_at=now, message=f"update rolled back {culprit}")
    else:
        step.status = _replace(status, state=UpdateState.PAUSED, message=f"update paused {culprit}")
    step.because = step.status.message
    step.resting = step.rollback is None
    step.rolling = False


def _failed(task: Task, mark: int, config: Rollout) -> bool:
    if not task.terminal or task.rollout != mark or task.attempts:
        return False
    return not task.running_at or ended_at(task) - task.running_at <= config.monitor


def _finish(step: Step, now: int) -> None:
    """All slots are done: keep watching for the monitor time, then it is over. A rollback that finds nothing to do is over at once."""
    status, config = step.status, step.config
    if status is None:
        return
    if not status.last_slot_at and status.total:
        status = step.status = _replace(status, last_slot_at=now)
        step.because = step.because or "the last slot is done"
    watch = config.monitor if config.delay < config.monitor else config.delay + SECOND
    if status.total and now < status.last_slot_at + watch:
        step.look_again = status.last_slot_at + watch
        return
    back = status.state is UpdateState.ROLLBACK_STARTED
    step.status = _replace(
        status,
        state=UpdateState.ROLLBACK_COMPLETED if back else UpdateState.COMPLETED,
        completed_at=now,
        message="rollback completed" if back else "update completed",
    )
    step.because = step.status.message


def _hand_out_turns(step: Step, progress: Sequence[_Progress], now: int) -> None:
    """Each of `parallelism` hands takes a slot, waits until its new task runs or ends, then for the delay. What does not run goes first."""
    waiting = [p.slot for p in progress if p.waits]
    if not waiting:
        return
    rests = [at for p in progress if p.done_at and (at := p.done_at + step.config.delay) > now]
    free = len(waiting)
    if step.config.parallelism:
        free = step.config.parallelism - sum(1 for p in progress if p.under_way) - len(rests)
    waiting.sort(key=lambda slot: slot.running)
    step.turn = frozenset(slot.key for slot in waiting[: max(free, 0)])
    if rests and len(step.turn) < len(waiting):
        again = min(rests)
        step.look_again = again if step.look_again is None else min(again, step.look_again)


def _replace(status: UpdateStatus, **fields: Any) -> UpdateStatus:
    return msgspec.structs.replace(status, **fields)
