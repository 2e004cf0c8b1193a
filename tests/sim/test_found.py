"""What simulated clusters have found in our own code, each as a small test of its own: what a seed means changes, these do not."""

from __future__ import annotations

import random

import pytest

from skep.agent.session import Session
from skep.agent.state import MemoryState
from skep.agent.worker import Do, Worker
from skep.clock import SECOND
from skep.link.messages import Assignments, Beaten, Welcome
from skep.model.assignment import TaskItem
from skep.model.enums import NodeState, TaskState
from skep.model.node import Node, NodeDescription, NodeStatus
from skep.model.spec import NodeSpec, RestartPolicy, TaskSpec
from skep.model.task import Task, TaskStatus
from skep.plan.scale import filled_here
from skep.plan.slots import Nodes, Slot
from skep.plan.workload import Call, Ended
from skep.store.memory import MemoryStore, NullBackend
from skep.testing.virtual import Agenda, VirtualClock

S = TaskState


def item(id: str, desired: TaskState = S.RUNNING) -> TaskItem:
    return TaskItem(task=Task(id=id, service_id="s", node_id="n", desired_state=desired, status=TaskStatus(state=S.ASSIGNED)))


def test_a_late_call_of_a_task_that_was_taken_away_leaves_no_status() -> None:
    """Its PREPARE ended well after all: the status that came of it stayed in the node's memory for ever."""
    state = MemoryState()
    worker = Worker(state, 1)
    worker.assign(Assignments(complete=True, results_in=1, version=1, set=(item("t"),)), 1)
    worker.network_applied(1, "", 2)
    worker.take()
    worker.assign(Assignments(applies_to=1, results_in=2, version=2, remove=("task/t",)), 3)
    worker.finished("t", Call.PREPARE, Ended(), None, 4)
    for call in (Call.SHUTDOWN, Call.REMOVE):
        assert [step.call for step in worker.take() if isinstance(step, Do)] == [call]
        worker.finished("t", call, Ended(), None, 5)
    assert worker.empty and state.items == {} and state.statuses == {} and worker.changed == {}


def test_a_status_whose_task_a_power_cut_took_is_forgotten() -> None:
    state = MemoryState()
    state.put_status("gone", TaskStatus(state=S.FAILED))
    assert Worker(state, 1).statuses() == {} and state.statuses == {}


@pytest.mark.parametrize(("sent", "broken"), [(2, "assignments 2 are missing"), (1, "")])
def test_assignments_lost_at_the_end_are_missed_with_the_next_heartbeat(sent: int, broken: str) -> None:
    """No later one came to show the gap: the node went on with what it had."""
    session = Session(Worker(MemoryState(), 0), NodeDescription, random.Random(1), 0)
    session.connecting()
    session.connected(0)
    session.received(Welcome(session_id="s", node_id="n", heartbeat_period=SECOND, spec=NodeSpec()), 0)
    session.received(Assignments(complete=True, results_in=1, version=1), 0)
    session.received(Beaten(period=SECOND, sequence=sent), SECOND)
    assert session.broken == broken


@pytest.mark.parametrize(
    ("state", "desired", "filled"),
    [
        (S.PENDING, S.SHUTDOWN, False),
        (S.RUNNING, S.SHUTDOWN, False),
        (S.SHUTDOWN, S.SHUTDOWN, False),
        (S.ORPHANED, S.SHUTDOWN, False),
        (S.FAILED, S.SHUTDOWN, True),
        (S.REJECTED, S.SHUTDOWN, True),
        (S.FAILED, S.REMOVE, False),
        (S.RUNNING, S.RUNNING, True),
    ],
)
def test_a_global_task_comes_back_with_its_node_though_its_attempts_are_used(state: TaskState, desired: TaskState, filled: bool) -> None:
    """Its node was down for a moment, and it never came back: its slot was taken for finished. What failed by itself is finished."""
    agenda = Agenda()
    store = MemoryStore(NullBackend(), VirtualClock(agenda))
    node = Node(id="n", spec=NodeSpec(availability="active"), status=NodeStatus(state=NodeState.READY))
    spec = TaskSpec(restart_policy=RestartPolicy(condition="any", max_attempts=2))
    task = Task(id="t", service_id="s", node_id=node.id, spec=spec, attempts=2, desired_state=desired, status=TaskStatus(state=state))
    slot = Slot("n")
    slot.put(task, Nodes(store))
    assert filled_here(slot) is filled
