"""The agent's session without a transport: what it says and when, and when it begins anew."""

from __future__ import annotations

import random

import pytest
from link_world import START, complete, item

from skep.agent.session import Session
from skep.agent.state import MemoryState
from skep.agent.worker import Worker
from skep.clock import MILLISECOND, SECOND
from skep.link.messages import Assignments, Beaten, Closing, Described, Heartbeat, Hello, Leave, LogsWanted, Report, Reported, Welcome
from skep.model.enums import TaskState as S
from skep.model.node import NodeDescription
from skep.model.spec import NodeSpec
from skep.plan.workload import Call, Ended


class Talk:
    def __init__(self, state: MemoryState | None = None) -> None:
        self.now = START
        self.description = NodeDescription(hostname="h")
        self.worker = Worker(state or MemoryState(), self.now)
        self.session = Session(self.worker, lambda: self.description, random.Random(3), self.now, address="192.0.2.1")

    def welcome(self) -> None:
        self.session.connecting()
        self.session.connected(self.now)
        self.session.received(
            Welcome(session_id="s", node_id="n1", heartbeat_period=5 * SECOND, spec=NodeSpec(), managers=("m:1",)), self.now
        )

    def tick(self, ns: int) -> list[object]:
        self.now += ns
        return list(self.session.tick(self.now))


def test_a_session_begins_with_all_statuses() -> None:
    talk = Talk()
    talk.worker.assign(complete(item("t1")), talk.now)
    assert talk.session.connect_at == talk.now
    talk.session.connecting()
    assert talk.session.connect_at is None
    (hello,) = talk.session.connected(talk.now)
    assert isinstance(hello, Hello)
    assert (hello.address, hello.description.hostname, list(hello.statuses)) == ("192.0.2.1", "h", ["t1"])
    assert talk.tick(4 * SECOND) == []
    talk.tick(SECOND)
    assert talk.session.broken == "the manager does not answer"


def test_reports_are_batched_only_the_latest_counts_and_they_are_repeated() -> None:
    talk = Talk()
    talk.welcome()
    talk.session.received(complete(item("t1"), item("t2")), talk.now)
    assert talk.tick(0) == []
    talk.worker.finished("t1", Call.PREPARE, Ended(), None, talk.now)
    (report,) = talk.tick(5 * MILLISECOND)
    assert isinstance(report, Report)
    assert (report.sequence, report.statuses["t1"].state, report.statuses["t2"].state) == (1, S.STARTING, S.PREPARING)
    assert talk.tick(SECOND) == []
    talk.worker.finished("t2", Call.PREPARE, Ended(), None, talk.now)
    talk.tick(0)
    (second,) = talk.tick(5 * MILLISECOND)
    assert isinstance(second, Report) and list(second.statuses) == ["t2"] and second.sequence == 2
    talk.session.received(Reported(sequence=1), talk.now)
    talk.session._beat_at = None  # heartbeats are another test's
    repeated = [message for message in talk.tick(10 * SECOND) + talk.tick(5 * MILLISECOND) if isinstance(message, Report)]
    assert [(message.sequence, list(message.statuses)) for message in repeated] == [(3, ["t2"])]
    talk.session.received(Reported(sequence=3), talk.now)
    assert not [message for message in talk.tick(11 * SECOND) if isinstance(message, Report)]


def test_heartbeats_come_when_the_manager_said_and_must_be_answered() -> None:
    talk = Talk()
    talk.welcome()
    talk.session.received(complete(version=7), talk.now)
    talk.worker.network_applied(7, "", talk.now)
    assert talk.tick(5 * SECOND - 1) == []
    assert talk.tick(1) == [Heartbeat(applied_version=7)]
    talk.session.received(Beaten(period=2 * SECOND), talk.now)
    assert talk.session.next_time() == talk.now + 5 * SECOND
    assert talk.tick(5 * SECOND) == [Heartbeat(applied_version=7)]
    talk.session.received(Beaten(period=2 * SECOND), talk.now)
    assert talk.tick(2 * SECOND) == [Heartbeat(applied_version=7)]
    assert talk.tick(5 * SECOND) == [] and talk.session.broken == "the manager does not answer"


def test_a_gap_in_the_assignments_begins_a_new_session() -> None:
    talk = Talk()
    talk.welcome()
    talk.session.received(complete(item("t1")), talk.now)
    talk.session.received(Assignments(applies_to=2, results_in=3, set=(item("t2"),)), talk.now)
    assert talk.session.broken == "assignments 2 are missing"
    assert talk.worker.status("t2") is None
    talk.session.lost(talk.now)
    assert talk.session.connect_at is not None and talk.session.broken == ""


def test_backoff_grows_with_jitter_to_eight_seconds_and_ends_with_a_welcome() -> None:
    talk = Talk()
    waits = []
    for _ in range(40):
        talk.session.connecting()
        talk.session.lost(talk.now, "nobody there")
        assert talk.session.connect_at is not None
        waits.append(talk.session.connect_at - talk.now)
    limits = [100, 300, 700, 1500, 3100, 6300] + 34 * [8000]
    assert all(wait < limit * MILLISECOND for wait, limit in zip(waits, limits, strict=True))
    assert max(waits) > 6 * SECOND and min(waits[6:]) < 2 * SECOND
    assert talk.session.reason == "nobody there"
    talk.welcome()
    assert talk.session.reason == ""
    talk.session.lost(talk.now)
    assert talk.session.connect_at is not None and talk.session.connect_at - talk.now < 100 * MILLISECOND


def test_a_removed_node_does_not_come_back() -> None:
    talk = Talk()
    talk.welcome()
    talk.session.received(Closing(reason="removed", removed=True), talk.now)
    assert talk.session.broken == "removed"
    talk.session.lost(talk.now)
    assert talk.session.removed and talk.session.connect_at is None and talk.session.next_time() is None


def test_a_changed_description_is_told_within_five_seconds() -> None:
    talk = Talk()
    talk.welcome()
    talk.description = NodeDescription(hostname="other")
    talk.session._beat_at = None
    assert talk.tick(5 * SECOND) == [Described(description=talk.description)]
    assert talk.tick(5 * SECOND) == []


@pytest.mark.parametrize("message", [Beaten(period=1), complete(), LogsWanted(stream="s", task_ids=())])
def test_a_manager_that_does_not_greet_is_left(message: object) -> None:
    talk = Talk()
    talk.session.connecting()
    talk.session.connected(talk.now)
    talk.session.received(message, talk.now)  # type: ignore[arg-type]
    assert talk.session.broken == "the manager did not greet"


def test_log_streams_are_handed_on_and_leaving_is_said() -> None:
    talk = Talk()
    talk.welcome()
    wanted = LogsWanted(stream="s", task_ids=("t1",))
    talk.session.received(wanted, talk.now)
    assert talk.session.logs == [wanted]
    assert talk.session.leave() == [Leave()]
    assert talk.session.removed
