"""Leaving before dying: a task is stopped when nobody sends to it any more, and nobody waits without need."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from link_world import START, World, network, node, ready, service, status, task

from skep.agent.session import Session as AgentSession
from skep.agent.state import MemoryState
from skep.agent.worker import Apply, Cancel, Do, Worker
from skep.clock import MILLISECOND, SECOND
from skep.link.messages import Applied, Assignments, Heartbeat, Hello, Left, Welcome
from skep.manager.session import Session
from skep.model.assignment import DiscoveryItem, EndpointItem, NetworkItem, TaskItem
from skep.model.enums import NodeState
from skep.model.enums import TaskState as S
from skep.model.node import Node, NodeDescription, NodeStatus
from skep.model.spec import NodeSpec
from skep.model.task import Task
from skep.plan.workload import Call, Ended

ON_OV = ("ov", "10.0.1.3/24")


# the manager


class Cluster(World):
    """n1 runs `t`, n2 and n3 have tasks on its network, n4 does not. Every session has heard all there is."""

    def __init__(self, *, ingress: bool = False) -> None:
        super().__init__()
        self.put(*(ready(f"n{n}", n) for n in range(1, 5)), network("ov", "10.0.1.0/24", ingress=ingress), network("x", "10.0.2.0/24"))
        self.put(task("t", "n1", S.RUNNING, ON_OV), task("plain", "n1", S.RUNNING, service="db"))
        self.put(task("u", "n2", S.RUNNING, ("ov", "10.0.1.4/24")), task("v", "n3", S.RUNNING, ("ov", "10.0.1.5/24")))
        self.put(task("w", "n4", S.RUNNING, ("x", "10.0.2.3/24")))
        self.nodes = {f"n{n}": self.connect(f"n{n}") for n in range(1, 5)}
        self.hear_all()

    def hear_all(self) -> dict[str, list[Any]]:
        self.pass_time(60 * MILLISECOND)
        return {id: self.dispatcher.pending_messages(session) for id, session in self.nodes.items()}

    def stop(self, id: str = "t") -> dict[str, Assignments]:
        """Tell it to stop; who is told what."""
        self.change(Task, id, desired_state=S.SHUTDOWN)
        heard = self.hear_all()
        assert not any(isinstance(m, Left) for messages in heard.values() for m in messages)
        return {id: m for id, messages in heard.items() for m in messages if isinstance(m, Assignments)}

    def applies(self, id: str, message: Assignments, how: type[Any] = Applied) -> None:
        said = Applied(version=message.version) if how is Applied else Heartbeat(applied_version=message.version)
        self.say(self.nodes[id], said)

    def left(self) -> list[str]:
        """What n1 is told of who has left."""
        return [id for m in self.hear_all()["n1"] if isinstance(m, Left) for id in m.tasks]


@pytest.mark.parametrize("how", [Applied, Heartbeat])
def test_it_has_left_when_every_node_that_knew_it_has_said_so(how: type[Any]) -> None:
    cluster = Cluster()
    told = cluster.stop()
    assert told.keys() == {"n1", "n2", "n3"} and all(message.acknowledge for message in told.values())
    assert [item.serving for item in told["n2"].set if isinstance(item, EndpointItem)] == [False]
    for id in ("n3", "n1"):
        cluster.applies(id, told[id], how)
        assert cluster.left() == []
    cluster.applies("n2", told["n2"], how)
    assert cluster.left() == ["t"] and cluster.left() == []


def test_all_nodes_are_asked_about_what_the_mesh_sends_to() -> None:
    cluster = Cluster(ingress=True)
    told = cluster.stop()
    assert told.keys() == {"n1", "n2", "n3", "n4"}
    for id, message in told.items():
        cluster.applies(id, message)
    assert cluster.left() == ["t"]


def test_nobody_is_asked_about_a_task_without_addresses_or_about_anything_else() -> None:
    cluster = Cluster()
    told = cluster.stop("plain")
    assert told.keys() == {"n1"} and not told["n1"].acknowledge
    cluster.put(task("z", "n2", S.RUNNING, ("ov", "10.0.1.9/24")))
    assert not any(m.acknowledge for messages in cluster.hear_all().values() for m in messages if isinstance(m, Assignments))


def test_a_task_that_never_served_waits_for_nobody() -> None:
    cluster = Cluster()
    cluster.put(task("s", "n1", S.STARTING, ("ov", "10.0.1.7/24")))
    cluster.hear_all()
    cluster.change(Task, "s", desired_state=S.SHUTDOWN)
    heard = cluster.hear_all()["n1"]
    assert [m.tasks for m in heard if isinstance(m, Left)] == [("s",)] and not any(getattr(m, "acknowledge", False) for m in heard)


def test_one_wave_for_all_that_leave_together() -> None:
    cluster = Cluster()
    cluster.put(*(task(f"a{n}", "n1", S.RUNNING, ("ov", f"10.0.1.{10 + n}/24")) for n in range(20)))
    cluster.hear_all()
    for n in range(20):
        cluster.change(Task, f"a{n}", desired_state=S.REMOVE)
    heard = cluster.hear_all()
    told = {id: m for id, messages in heard.items() for m in messages if isinstance(m, Assignments)}
    assert len(cluster.dispatcher._departures._waves) == 1
    for id, message in told.items():
        cluster.applies(id, message)
    assert len(cluster.left()) == 20


def test_a_node_that_comes_back_is_waited_for_though_the_others_were_done_while_it_greeted() -> None:
    """Its session is there, and not welcomed yet, when the last of those that were asked without it answers."""
    cluster = Cluster()
    down = msgspec.structs.replace(cluster.node("n1").status, state=NodeState.DOWN)
    cluster.dispatcher.disconnect(cluster.nodes.pop("n1"))
    cluster.change(Node, "n1", status=down)
    cluster.hear_all()
    told = cluster.stop()
    assert told.keys() == {"n2", "n3"}
    cluster.applies("n3", told["n3"])
    hello = Hello(description=NodeDescription(hostname="n1"))
    cluster.nodes["n1"] = cluster.dispatcher.connect("n1", hello, cluster.clock.now(), "192.0.2.1")
    cluster.applies("n2", told["n2"])
    heard = cluster.hear_all()
    assert any(isinstance(m, Welcome) for m in heard["n1"]) and not any(isinstance(m, Left) for m in heard["n1"])
    for id, messages in heard.items():
        for message in messages:
            if isinstance(message, Assignments) and message.acknowledge:
                assert cluster.left() == []
                cluster.applies(id, message)
    assert cluster.left() == ["t"]


@pytest.mark.parametrize("gone", ["down", "removed"])
def test_a_node_that_is_gone_is_not_waited_for(gone: str) -> None:
    cluster = Cluster()
    told = cluster.stop()
    cluster.applies("n1", told["n1"])
    cluster.applies("n3", told["n3"])
    if gone == "down":
        cluster.change(Node, "n2", status=NodeStatus(state=NodeState.DOWN))
    else:
        cluster.delete(Node, "n2")
    assert cluster.left() == ["t"]


def test_a_node_whose_connection_broke_is_waited_for_and_asked_in_its_next_session() -> None:
    cluster = Cluster()
    cluster.dispatcher.disconnect(cluster.nodes["n2"])
    told = cluster.stop()
    cluster.applies("n1", told["n1"])
    cluster.applies("n3", told["n3"])
    assert cluster.left() == []
    cluster.nodes["n2"] = cluster.connect("n2")
    (whole,) = [m for m in cluster.hear_all()["n2"] if isinstance(m, Assignments)]
    assert whole.complete and whole.acknowledge
    cluster.applies("n2", whole)
    assert cluster.left() == ["t"]


def test_a_new_manager_asks_everybody_anew() -> None:
    cluster = Cluster()
    cluster.stop()
    cluster.settle()
    cluster.crash()
    cluster.nodes = {f"n{n}": cluster.connect(f"n{n}") for n in range(1, 5)}
    heard = cluster.hear_all()
    told = {id: m for id, messages in heard.items() for m in messages if isinstance(m, Assignments)}
    assert all(told[id].acknowledge for id in ("n1", "n2", "n3"))
    for id, message in told.items():
        cluster.applies(id, message)
    assert cluster.left() == ["t"]


def test_its_own_node_hears_it_again_in_a_new_session() -> None:
    cluster = Cluster()
    for id, message in cluster.stop().items():
        cluster.applies(id, message)
    assert cluster.left() == ["t"]
    cluster.nodes["n1"] = cluster.connect("n1")
    heard = cluster.hear_all()
    assert not any(isinstance(m, Left) for m in heard["n1"])
    for id, messages in heard.items():
        for message in messages:
            if isinstance(message, Assignments):
                assert message.acknowledge
                cluster.applies(id, message)
    assert cluster.left() == ["t"]


def test_what_has_stopped_is_forgotten() -> None:
    cluster = Cluster()
    told = cluster.stop()
    cluster.change(Task, "t", status=status(S.SHUTDOWN))
    cluster.hear_all()
    for id, message in told.items():
        cluster.applies(id, message)
    assert cluster.left() == []
    departures = cluster.dispatcher._departures
    assert (departures._leaving, departures._left, departures._waves, departures._of_node) == ({}, {}, {}, {})


def test_a_node_of_the_protocol_before_is_neither_told_nor_asked_what_it_does_not_know() -> None:
    cluster = Cluster()
    cluster.put(service("web", networks={"ov": ()}))
    cluster.nodes["n1"], cluster.nodes["n2"] = cluster.connect("n1", protocol=1), cluster.connect("n2")
    heard = cluster.hear_all()
    assert any(isinstance(item, DiscoveryItem) for m in heard["n2"] if isinstance(m, Assignments) for item in m.set)
    assert not any(isinstance(item, DiscoveryItem) for m in heard["n1"] if isinstance(m, Assignments) for item in m.set)
    told = cluster.stop()
    assert not told["n1"].acknowledge
    for id in ("n2", "n3"):
        cluster.applies(id, told[id])
    assert cluster.left() == []


def test_a_node_without_a_session_ever_is_not_waited_for() -> None:
    cluster = Cluster(ingress=True)
    cluster.put(node("n5", 5))
    cluster.hear_all()
    for id, message in cluster.stop().items():
        cluster.applies(id, message)
    assert cluster.left() == ["t"]


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

    def begin(self) -> None:
        self.worker = Worker(self.state, self.now, ("t",))
        self.session = AgentSession(self.worker, NodeDescription, random.Random(1), self.now)
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
    assert host.pass_time(3 * SECOND) == [Call.SHUTDOWN]


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
