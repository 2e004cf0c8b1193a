"""What a node does next with a task, as tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skep.clock import SECOND
from skep.model.enums import TaskState as S
from skep.model.task import TaskStatus
from skep.plan.workload import IDLE, Call, Ended, Situation, Step, after, exit_error, next_step, stop_time

RUN, STOP = S.RUNNING, S.SHUTDOWN


def situation(desired: S, state: S, **fields: object) -> Situation:
    return Situation(desired=desired, status=TaskStatus(state=state, message=state.word), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("now", "step"),
    [
        (situation(RUN, S.ASSIGNED), Step(state=S.ACCEPTED, message="accepted")),
        (situation(RUN, S.ACCEPTED), Step(state=S.PREPARING, message="preparing")),
        (situation(RUN, S.PREPARING), Step(call=Call.PREPARE)),
        (situation(RUN, S.PREPARING, busy=Call.PREPARE), IDLE),
        (situation(RUN, S.PREPARING, network_ready=False), IDLE),
        (situation(RUN, S.READY), Step(state=S.STARTING, message="starting")),
        (situation(S.COMPLETE, S.READY), Step(state=S.STARTING, message="starting")),
        (situation(RUN, S.STARTING), Step(call=Call.START)),
        (situation(RUN, S.RUNNING), Step(call=Call.WAIT)),
        (situation(S.COMPLETE, S.RUNNING), Step(call=Call.WAIT)),
        # a replacement is prepared, and waits to be let go
        (situation(S.READY, S.ASSIGNED), Step(state=S.ACCEPTED, message="accepted")),
        (situation(S.READY, S.PREPARING), Step(call=Call.PREPARE)),
        (situation(S.READY, S.READY), IDLE),
        # told to stop
        (situation(STOP, S.ASSIGNED), Step(state=S.SHUTDOWN, message="shutdown")),
        (situation(STOP, S.PREPARING, busy=Call.PREPARE), Step(cancel=True)),
        (situation(STOP, S.RUNNING, busy=Call.WAIT), Step(cancel=True)),
        (situation(STOP, S.RUNNING), Step(call=Call.SHUTDOWN)),
        (situation(S.REMOVE, S.RUNNING), Step(call=Call.SHUTDOWN)),
        (situation(STOP, S.RUNNING, busy=Call.SHUTDOWN), IDLE),
        (situation(STOP, S.RUNNING, stopped=True), Step(state=S.SHUTDOWN, message="shutdown")),
        # told to stop, and others still send to it
        (situation(STOP, S.RUNNING, busy=Call.WAIT, leaving=True), IDLE),
        (situation(STOP, S.RUNNING, leaving=True), IDLE),
        (situation(STOP, S.RUNNING, stopped=True, leaving=True), Step(state=S.SHUTDOWN, message="shutdown")),
        (situation(STOP, S.RUNNING, failure="unhealthy container", leaving=True), Step(call=Call.SHUTDOWN)),
        (situation(STOP, S.RUNNING, withdrawn=True, busy=Call.WAIT, leaving=True), Step(cancel=True)),
        # taken away without time to end
        (situation(RUN, S.RUNNING, withdrawn=True, at_once=True, busy=Call.WAIT), Step(cancel=True)),
        (situation(RUN, S.RUNNING, withdrawn=True, at_once=True, busy=Call.SHUTDOWN), Step(cancel=True)),
        (situation(RUN, S.RUNNING, withdrawn=True, at_once=True, busy=Call.REMOVE), IDLE),
        (situation(RUN, S.RUNNING, withdrawn=True, at_once=True), Step(call=Call.REMOVE)),
        # ended
        (situation(STOP, S.FAILED, stopped=True), IDLE),
        (situation(RUN, S.COMPLETE, stopped=True), IDLE),
        (situation(RUN, S.ORPHANED), Step(call=Call.SHUTDOWN)),
        # failed, but perhaps still running
        (situation(RUN, S.RUNNING, failure="boom"), Step(call=Call.SHUTDOWN)),
        (situation(RUN, S.RUNNING, failure="boom", stopped=True), Step(state=S.FAILED, message="running", error="boom")),
        (
            situation(RUN, S.STARTING, failure="unhealthy container", stopped=True, exit_code=143),
            Step(state=S.FAILED, message="starting", error="task: non-zero exit (143): dockerexec: unhealthy container"),
        ),
        # no longer ours
        (situation(RUN, S.RUNNING, withdrawn=True, busy=Call.WAIT), Step(cancel=True)),
        (situation(RUN, S.RUNNING, withdrawn=True), Step(call=Call.SHUTDOWN)),
        (situation(RUN, S.RUNNING, withdrawn=True, busy=Call.SHUTDOWN), IDLE),
        (situation(RUN, S.RUNNING, withdrawn=True, stopped=True), Step(call=Call.REMOVE)),
        (situation(RUN, S.FAILED, withdrawn=True, stopped=True), Step(call=Call.REMOVE)),
    ],
)
def test_the_next_step(now: Situation, step: Step) -> None:
    assert next_step(now) == step


STARTED = TaskStatus(state=S.RUNNING, message="started")


@pytest.mark.parametrize(
    ("call", "ended", "step"),
    [
        (Call.PREPARE, Ended(), Step(state=S.READY, message="prepared")),
        (Call.PREPARE, Ended(error="No such image: x:1"), Step(state=S.REJECTED, message="started", error="No such image: x:1")),
        (Call.PREPARE, Ended(cancelled=True), IDLE),
        (Call.START, Ended(), Step(state=S.RUNNING, message="started")),
        (Call.START, Ended(error="starting container failed: x"), Step(error="starting container failed: x")),
        (Call.WAIT, Ended(), Step(state=S.COMPLETE, message="finished")),
        (Call.WAIT, Ended(code=1), Step(state=S.FAILED, message="started", error="task: non-zero exit (1)")),
        (Call.WAIT, Ended(code=137, oom=True), Step(state=S.FAILED, message="started", error="task: non-zero exit (137): OOM")),
        (Call.WAIT, Ended(error="unhealthy container"), Step(error="unhealthy container")),
        (Call.SHUTDOWN, Ended(error="x"), IDLE),
    ],
)
def test_what_the_end_of_a_call_means(call: Call, ended: Ended, step: Step) -> None:
    assert after(call, ended, STARTED) == step


def test_an_end_that_nobody_saw_is_a_failure() -> None:
    assert "exit code unknown" in exit_error(Ended(known=False))


@pytest.mark.parametrize(
    ("left_at", "drain", "since", "stop_at"),
    [
        (0, 0, 0, 12),
        (11, 0, 0, 11),
        (9, 0, 0, 10),  # it was known before it was told
        (15, 0, 0, 12),  # too late: two seconds are enough
        (11, 5, 0, 16),
        (0, 5, 0, 17),
        (0, 0, 2, 12),
        (0, 0, 10, 20),  # the session is new: others may not be back yet
        (15, 0, 10, 15),
        (0, 0, 11, 21),  # a session that began while it waited
        (0, 0, 19, 22),  # and another: no longer than that
        (0, 5, 10, 25),
    ],
)
def test_it_stops_when_it_has_left_or_after_two_seconds_and_then_drains(left_at: int, drain: int, since: int, stop_at: int) -> None:
    assert stop_time(10 * SECOND, left_at * SECOND, drain * SECOND, since * SECOND) == stop_at * SECOND


@given(
    desired=st.sampled_from([S.READY, S.RUNNING, S.COMPLETE, S.SHUTDOWN, S.REMOVE]),
    state=st.sampled_from(list(S)),
    busy=st.none() | st.sampled_from(list(Call)),
    withdrawn=st.booleans(),
    stopped=st.booleans(),
    failure=st.sampled_from(["", "x"]),
    network_ready=st.booleans(),
    leaving=st.booleans(),
)
def test_no_step_goes_back_and_no_two_calls_run_at_once(
    desired: S, state: S, busy: Call | None, withdrawn: bool, stopped: bool, failure: str, network_ready: bool, leaving: bool
) -> None:
    fields = {"busy": busy, "withdrawn": withdrawn, "stopped": stopped, "failure": failure}
    now = situation(desired, state, network_ready=network_ready, leaving=leaving, **fields)
    step = next_step(now)
    assert step.state is None or step.state > state
    assert busy is None or (step.call is None and step.state is None)
    assert not step.cancel or busy not in (None, Call.SHUTDOWN, Call.REMOVE)
    assert step.state is not S.STARTING or desired > S.READY
