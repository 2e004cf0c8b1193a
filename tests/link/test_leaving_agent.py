"""Leaving before dying, the agent's part: when it stops what is to go."""

from __future__ import annotations

import random
from typing import Any

import msgspec
from leaving_world import ON_OV, Cluster
from link_world import START, network, task

from skep.agent.session import Session as AgentSession
from skep.agent.state import MemoryState
from skep.agent.worker import Apply, Cancel, Do, Worker
from skep.clock import MILLISECOND, SECOND
from skep.link.messages import Applied, Assignments, Left, Welcome
from skep.manager.session import Session
from skep.model.assignment import DiscoveryItem, EndpointItem, NetworkItem, TaskItem
from skep.model.enums import TaskState as S
from skep.model.node import NodeDescription
from skep.model.spec import NodeSpec
from skep.plan.workload import RETURN_LIMIT, Call, Ended

# the node


class Host:
    """A worker and its session; `t` runs on it and has an address."""

    def __init__(self, drain: str = "", *, address: bool = True) -> None:
        self.now = START
        self.labels = {"skep.drain": drain} if drain else {}
        self.places = (ON_OV,) if address else ()
        self.state = MemoryState()
        self.begin()
        self.assign(S.RUNNING, complete=True)
        self.applied()
        self.finish(Call.PREPARE)
        self.finish(Call.START)
        self.now += RETURN_LIMIT

    def begin(self) -> None:
        self.worker = Worker(self.state, self.now, ("t",))
        self.session = AgentSession(self.worker, NodeDescription, random.Random(1), self.now)
        self.greet()

    def greet(self) -> None:
        self.session.connecting()
        self.session.connected(self.now)
        self.session.received(Welcome(session_id="s", node_id="n1", heartbeat_period=60 * SECOND, spec=NodeSpec()), self.now)
        self.sequence = 0

    def assign(self, desired: S, *, complete: bool = False, acknowledge: bool = False) -> None:
        ov = NetworkItem(network=network("ov", "10.0.1.0/24"))
        item = TaskItem(task=task("t", "n1", S.ASSIGNED, *self.places, desired_state=desired), service_labels=self.labels)
        known = EndpointItem(task_id="t", service_id="web", network_id="ov", node_id="n1", address="10.0.1.3", serving=desired is S.RUNNING)
        self.sequence += 1
        self.session.received(
            Assignments(
                complete=complete,
                applies_to=0 if complete else self.sequence - 1,
                results_in=self.sequence,
                version=self.sequence * 10,
                set=(ov, item, known),
                acknowledge=acknowledge,
            ),
            self.now,
        )

    def applied(self) -> None:
        for instruction in self.worker.take():
            if isinstance(instruction, Apply):
                self.worker.network_applied(instruction.snapshot.version, "", self.now)

    def finish(self, call: Call, **ended: Any) -> list[Any]:
        self.worker.finished("t", call, Ended(**ended), None, self.now)
        return self.take()

    def take(self) -> list[Any]:
        return [i.call if isinstance(i, Do) else i for i in self.worker.take() if not isinstance(i, Apply)]

    def pass_time(self, ns: int) -> list[Any]:
        """What is done then, and nothing a moment before."""
        self.worker.tick(self.now + ns - 1)
        assert self.take() == []
        self.now += ns
        self.worker.tick(self.now)
        return self.take()

    def left(self) -> list[Any]:
        self.session.received(Left(tasks=("t",)), self.now)
        return self.take()


def test_it_is_stopped_when_the_manager_says_that_it_has_left() -> None:
    host = Host()
    host.assign(S.SHUTDOWN)
    assert host.take() == []
    host.now += 30 * MILLISECOND
    assert host.left() == [Cancel("t")]
    assert host.finish(Call.WAIT, cancelled=True) == [Call.SHUTDOWN]


def test_after_two_seconds_it_waits_for_nobody() -> None:
    host = Host()
    host.assign(S.SHUTDOWN)
    assert host.worker.tick(host.now) == host.now + 2 * SECOND
    host.session.lost(host.now, "the manager is gone")
    assert host.pass_time(2 * SECOND) == [Cancel("t")]
    assert host.worker.tick(host.now) is None


def test_it_drains_when_it_has_left() -> None:
    host = Host("5s")
    host.assign(S.SHUTDOWN)
    host.now += SECOND
    assert host.left() == []
    assert host.pass_time(5 * SECOND) == [Cancel("t")]


def test_without_an_address_it_waits_for_nothing() -> None:
    host = Host("5s", address=False)
    host.assign(S.SHUTDOWN)
    assert host.take() == [Cancel("t")]


def test_it_may_be_said_before_it_is_told_to_stop() -> None:
    host = Host()
    assert host.left() == []
    host.assign(S.SHUTDOWN)
    assert host.take() == [Cancel("t")]


def test_one_that_ends_by_itself_meanwhile_has_ended_by_itself() -> None:
    host = Host("5s")
    host.assign(S.SHUTDOWN)
    assert host.finish(Call.WAIT, code=3) == []
    found = host.worker.status("t")
    assert found is not None and (found.state, found.err) == (S.FAILED, "task: non-zero exit (3)")
    assert host.worker.tick(host.now) is None


def test_a_restarted_daemon_waits_anew_and_no_longer() -> None:
    host = Host("1s")
    host.assign(S.SHUTDOWN)
    host.now += SECOND
    host.begin()
    assert host.take() == []
    assert host.pass_time(11 * SECOND) == [Call.SHUTDOWN]


def test_when_the_manager_was_away_those_that_come_back_later_are_waited_for() -> None:
    for answered in (True, False):
        host = Host()
        host.session.lost(host.now, "the manager is gone")
        host.now += SECOND
        host.greet()
        host.now += 4 * SECOND
        host.assign(S.SHUTDOWN, complete=True)
        host.now += 3 * SECOND
        host.worker.tick(host.now)
        assert host.take() == []
        assert (host.left() if answered else host.pass_time(3 * SECOND)) == [Cancel("t")]


def test_what_is_taken_away_waits_for_nothing() -> None:
    host = Host("5s")
    host.assign(S.SHUTDOWN)
    host.worker.withdraw_all(host.now)
    assert host.take() == [Cancel("t")]


def test_a_clock_that_is_set_changes_nothing() -> None:
    host = Host("1s")
    host.assign(S.SHUTDOWN)
    host.worker.shift(3600 * SECOND)
    host.now += 3600 * SECOND
    assert host.pass_time(3 * SECOND) == [Cancel("t")]


def test_a_node_says_when_its_network_stands_without_it_if_it_is_asked() -> None:
    host = Host()
    host.session.tick(host.now)
    host.assign(S.SHUTDOWN, acknowledge=True)
    assert not any(isinstance(m, Applied) for m in host.session.tick(host.now))
    host.applied()
    assert [m for m in host.session.tick(host.now) if isinstance(m, Applied)] == [Applied(version=20)]
    assert not any(isinstance(m, Applied) for m in host.session.tick(host.now))
    host.assign(S.SHUTDOWN)
    host.applied()
    assert not any(isinstance(m, Applied) for m in host.session.tick(host.now))


def test_a_network_that_cannot_be_changed_is_not_said_to_be() -> None:
    host = Host()
    host.assign(S.SHUTDOWN, acknowledge=True)
    (apply,) = [i for i in host.worker.take() if isinstance(i, Apply)]
    host.worker.network_applied(apply.snapshot.version, "no such device", host.now)
    assert not any(isinstance(m, Applied) for m in host.session.tick(host.now))


# garbage


def test_a_complete_set_corrects_a_node_that_knows_garbage() -> None:
    """Whatever a node has in its memory and in its kernel: the next session's set is what it applies."""
    host = Host()
    garbage = [
        EndpointItem(task_id="ghost", service_id="web", network_id="ov", node_id="n9", address="10.0.1.66"),
        EndpointItem(task_id="t", service_id="web", network_id="ov", node_id="n9", address="10.0.1.66"),
        DiscoveryItem(service_id="ghost", network_id="ov", name="ghost", vip="10.0.1.99"),
        NetworkItem(network=network("lost", "10.9.0.0/24")),
    ]
    for item in garbage:
        host.worker._network[item.key.partition("/")[0]][item.key] = item
        host.state.put_item(item.key, item)
    host.session.lost(host.now, "reset")
    host.begin()
    host.applied()
    host.assign(S.RUNNING, complete=True)
    (apply,) = [i for i in host.worker.take() if isinstance(i, Apply)]
    shown = apply.snapshot
    assert (shown.networks.keys(), shown.endpoints.keys(), shown.discovery) == ({"network/ov"}, {"endpoint/t/ov"}, {})
    assert shown.endpoints["endpoint/t/ov"].address == "10.0.1.3"
    assert host.state.items.keys() == {"network/ov", "endpoint/t/ov", "task/t"}


def test_a_gap_makes_the_node_begin_anew_with_the_whole() -> None:
    cluster = Cluster()
    worker = Worker(MemoryState(), START)
    session = AgentSession(worker, NodeDescription, random.Random(1), START)

    def follow(manager_side: Session, *, lose: int = -1) -> None:
        for number, message in enumerate(cluster.hear(manager_side)):
            if number != lose:
                session.received(message, cluster.clock.now())

    session.connecting()
    session.connected(START)
    cluster.nodes["n2"] = cluster.connect("n2")
    follow(cluster.nodes["n2"])
    for number in range(2):
        cluster.put(task(f"new{number}", "n1", S.RUNNING, ("ov", f"10.0.1.{20 + number}/24")))
        follow(cluster.nodes["n2"], lose=0 if number == 0 else -1)
    assert session.broken == "assignments 2 are missing"
    session.lost(cluster.clock.now())
    session.connecting()
    session.connected(cluster.clock.now())
    cluster.nodes["n2"] = cluster.connect("n2")
    follow(cluster.nodes["n2"])
    known = {key for table in worker._network.values() for key in table}
    assert {"endpoint/new0/ov", "endpoint/new1/ov", "endpoint/t/ov"} <= known
    assert msgspec.structs.asdict(worker._network["endpoint"]["endpoint/new0/ov"])["address"] == "10.0.1.20"
