"""Leaving before dying, the manager's part: a task is stopped when nobody sends to it any more, and nobody waits without need."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from leaving_world import Cluster
from link_world import node, service, status, task

from skep.link.messages import Applied, Assignments, Heartbeat, Hello, Left, Welcome
from skep.model.assignment import DiscoveryItem, EndpointItem
from skep.model.enums import NodeState
from skep.model.enums import TaskState as S
from skep.model.node import Node, NodeDescription, NodeStatus
from skep.model.task import Task


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
