"""The dispatcher's promises to nodes: who is there, since when, and what a session hears at once."""

from __future__ import annotations

import pytest
from link_world import START, World, node, of, one, ready

from skep.clock import MILLISECOND, SECOND
from skep.link.channel import Refused
from skep.link.messages import (
    PROTOCOL,
    Assignments,
    Beaten,
    Closing,
    Described,
    Heartbeat,
    Leave,
    NodeChanged,
    Welcome,
)
from skep.model.assignment import PeerItem
from skep.model.cluster import Cluster
from skep.model.enums import NodeState
from skep.model.node import Node, NodeDescription
from skep.model.spec import ClusterSpec, DispatcherConfig, NodeSpec


def test_a_node_is_ready_when_that_is_durable_and_not_before() -> None:
    world = World()
    world.put(node("n1"))
    world.settle()
    session = world.dispatcher.connect("n1", _hello(), world.clock.now(), "192.0.2.9")
    assert world.dispatcher.pending_messages(session) == []
    world.settle()
    messages = world.hear(session)
    welcome = one(messages, Welcome)
    assert (welcome.node_id, welcome.session_id, welcome.spec.availability) == ("n1", session.id, "active")
    assert 4.5 * SECOND <= welcome.heartbeat_period <= 5.5 * SECOND
    assert world.node("n1").status.state is NodeState.READY
    assert world.node("n1").status.addr == "192.0.2.9"
    assert world.node("n1").hostname == "n1"


def _hello(**fields):
    from skep.link.messages import Hello

    return Hello(description=NodeDescription(hostname="n1"), **fields)


def test_an_unknown_node_is_refused() -> None:
    world = World()
    with pytest.raises(Refused, match="node nobody is not part of this cluster") as caught:
        world.connect("nobody")
    assert not caught.value.removed


def test_a_node_of_the_next_protocol_is_told_to_wait_for_the_managers() -> None:
    world = World()
    world.put(node("n1"))
    with pytest.raises(Refused, match="upgrade managers before workers"):
        world.dispatcher.connect("n1", _hello(protocol=PROTOCOL + 1), world.clock.now())
    world.dispatcher.connect("n1", _hello(protocol=PROTOCOL - 1), world.clock.now())


def test_the_fourth_registration_within_eight_seconds_is_refused() -> None:
    world = World()
    world.put(node("n1"))
    for _ in range(3):
        world.connect("n1")
    with pytest.raises(Refused, match="exceeded rate limit count of registrations"):
        world.connect("n1")
    world.pass_time(8 * SECOND)
    assert not world.connect("n1").closed


def test_a_new_session_ends_the_old_one() -> None:
    world = World()
    world.put(node("n1"))
    old = world.connect("n1")
    new = world.connect("n1")
    assert old.closed and not new.closed
    assert one(world.dispatcher.pending_messages(old), Closing).removed is False
    world.dispatcher.disconnect(old)
    assert world.dispatcher.sessions == {"n1": new}


def test_a_node_without_heartbeats_is_down_after_three_periods_and_not_before() -> None:
    world = World()
    world.put(node("n1"))
    session = world.connect("n1")
    period = one(world.hear(session, 0), Welcome).heartbeat_period
    world.pass_time(3 * period - MILLISECOND)
    assert world.node("n1").status.state is NodeState.READY
    world.pass_time(2 * MILLISECOND)
    down = world.node("n1").status
    assert (down.state, down.message) == (NodeState.DOWN, "heartbeat failure")
    assert START + 3 * period <= down.since <= START + 3 * period + 2 * MILLISECOND
    assert one(world.dispatcher.pending_messages(session), Closing).reason == "heartbeat failure"


def test_heartbeats_keep_a_node_ready_and_name_the_next_period() -> None:
    world = World()
    world.put(node("n1"))
    session = world.connect("n1")
    periods = set()
    for _ in range(20):
        world.pass_time(5 * SECOND)
        world.say(session, Heartbeat(applied_version=3))
        periods.add(one(of(world.hear(session), Beaten), Beaten).period)
    assert world.node("n1").status.state is NodeState.READY
    assert world.dispatcher.applied["n1"] == 3
    assert len(periods) > 10 and all(4.5 * SECOND <= period <= 5.5 * SECOND for period in periods)


def test_the_heartbeat_period_is_the_clusters() -> None:
    world = World()
    world.put(node("n1"))
    world.change(Cluster, "cluster", spec=ClusterSpec(name="default", dispatcher=DispatcherConfig(heartbeat_period=11 * SECOND)))
    session = world.connect("n1")
    assert 9.9 * SECOND <= one(world.hear(session), Welcome).heartbeat_period <= 12.1 * SECOND


def test_idle_heartbeats_write_nothing() -> None:
    world = World()
    world.put(node("n1"))
    session = world.connect("n1")
    world.hear(session)
    before = world.store.version
    for version in range(10):
        world.pass_time(4 * SECOND)
        world.say(session, Heartbeat(applied_version=version))
    assert world.store.version == before


def test_a_lost_connection_alone_does_not_make_a_node_down() -> None:
    world = World()
    world.put(node("n1"))
    world.dispatcher.disconnect(world.connect("n1"))
    world.pass_time(10 * SECOND)
    assert world.node("n1").status.state is NodeState.READY
    world.pass_time(7 * SECOND)
    assert world.node("n1").status.state is NodeState.DOWN
    world.connect("n1")
    assert world.node("n1").status.state is NodeState.READY


def test_leaving_makes_a_node_down_at_once() -> None:
    world = World()
    world.put(node("n1"))
    session = world.connect("n1")
    world.say(session, Leave())
    assert world.node("n1").status.state is NodeState.DOWN
    assert session.closed


def test_a_new_manager_knows_nothing_of_the_nodes_and_gives_them_twice_the_grace() -> None:
    world = World()
    world.put(ready("n1", 1), ready("n2", 2), node("new", 3))
    world.change(Node, "n2", status=world.node("n2").status.__class__(state=NodeState.DOWN, addr="192.0.2.2"))
    world.settle()
    world.crash()
    assert world.node("n1").status.state is NodeState.UNKNOWN
    assert world.node("n2").status.state is NodeState.DOWN
    world.pass_time(30 * SECOND - MILLISECOND)
    assert world.node("n1").status.state is NodeState.UNKNOWN
    world.pass_time(2 * MILLISECOND)
    assert world.node("n1").status.state is NodeState.DOWN
    assert world.node("new").status.state is NodeState.UNKNOWN


def test_a_removed_node_is_told_so() -> None:
    world = World()
    world.put(node("n1"))
    session = world.connect("n1")
    world.delete(Node, "n1")
    closing = one(world.hear(session), Closing)
    assert closing.removed
    with pytest.raises(Refused):
        world.connect("n1")


def test_a_node_hears_of_its_own_spec_and_of_managers() -> None:
    world = World()
    world.put(node("n1"), node("n2"))
    one_session, other = world.connect("n1"), world.connect("n2")
    world.hear(one_session), world.hear(other)
    world.change(Node, "n1", spec=NodeSpec(role="worker", availability="drain"))
    assert one(world.hear(one_session), NodeChanged).spec.availability == "drain"
    assert world.hear(other) == []
    world.change(Node, "n2", manager_addr="192.0.2.2:2377")
    assert one(world.hear(one_session), NodeChanged).managers == ("192.0.2.2:2377",)


def test_a_changed_description_is_stored() -> None:
    world = World()
    world.put(node("n1"))
    session = world.connect("n1")
    world.say(session, Heartbeat(applied_version=5))
    world.say(session, Described(description=NodeDescription(hostname="other")))
    assert world.node("n1").hostname == "other"
    assert world.node("n1").applied_version == 5
    assert world.node("n1").status.state is NodeState.READY


def test_how_wide_a_node_s_underlay_is_reaches_the_others_when_it_changes() -> None:
    world = World()
    world.put(ready("n1", 1), ready("n2", 2))
    session, other = world.connect("n1"), world.connect("n2")
    world.hear(session), world.hear(other)
    for mtu in (1400, 1500):
        world.pass_time(2 * SECOND)
        world.hear(other)
        world.say(session, Described(description=NodeDescription(hostname="n1", underlay_mtu=mtu)))
        (item,) = one(world.hear(other), Assignments).set
        assert isinstance(item, PeerItem) and (item.node_id, item.mtu) == ("n1", mtu)


def test_a_manager_that_stops_says_so() -> None:
    world = World()
    world.put(node("n1"))
    session = world.connect("n1")
    world.dispatcher.stop()
    assert one(world.dispatcher.pending_messages(session), Closing).removed is False
