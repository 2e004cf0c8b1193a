"""The one-machine cluster's wire, on a host played by a namespace: FORWARD at DROP, bridge-nf-call-iptables at 1."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from netlab import Lab, Node, apply_all, ask, ask_udp, attach, lab, ping, within
from netlab_objects import endpoint, service

from skep.datapath import netlink, netns
from skep.errors import Invalid
from skep.local.underlay import Underlay, subnets_in_use

pytestmark = pytest.mark.root
SUBNET = "10.231.7.0"
OUTSIDE = "192.168.77.9"
HOST = "192.168.77.2"
NODE = "10.231.7.10"


def run(namespace: Path, *command: str) -> str:
    def call() -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return within(namespace, call)


class World:
    def __init__(self, it: Lab) -> None:
        self.lab = it
        self.host = it.namespace("host", HOST, "192.168.77.1")
        self.outside = it.namespace("outside", OUTSIDE)
        self.world = it.namespace("world", "192.168.77.1")
        # the world's gateway has an address of its own behind it
        within(self.world, lambda: _address("lo", "203.0.113.1"))
        self.underlay = Underlay(f"t{os.getpid()}", it.folder / "underlay")

    def on_host(self, call: object) -> object:
        return within(self.host, call)  # type: ignore[arg-type]


def _address(link: str, address: str) -> None:
    with netlink.Socket() as net:
        net.send([netlink.address(net.index(link), address, 32)])


@pytest.fixture(params=["iptables-nft", "iptables-legacy"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with lab() as it:
        w = World(it)
        iptables = shutil.which(request.param) or pytest.skip(f"no {request.param}")
        run(w.host, iptables, "-P", "FORWARD", "DROP")
        bridge = "net.bridge.bridge-nf-call-iptables"
        if Path(netns.sysctl_path(bridge)).exists():
            w.on_host(lambda: netns.set_sysctls({bridge: "1"}))
        try:
            w.on_host(lambda: w.underlay.create(SUBNET))
            yield w
        finally:
            w.on_host(w.underlay.destroy)


def node(w: World, name: str = "manager", address: str = NODE) -> Path:
    return w.on_host(lambda: w.underlay.add_node(name, address))  # type: ignore[return-value]


def test_a_published_port_keeps_the_client_s_address_where_forward_drops(world: World) -> None:
    path = node(world)
    world.lab.serve(path, 80, "manager")
    world.lab.serve(path, 53, "manager", "udp")
    world.on_host(lambda: world.underlay.publish(8000, NODE, 80))
    world.on_host(lambda: world.underlay.publish(8053, NODE, 53, "udp"))
    assert ask(world.outside, HOST, 8000) == ("manager", OUTSIDE)
    assert ask_udp(world.outside, HOST, 8053) == ("manager", OUTSIDE)
    assert ask(world.host, HOST, 8000) == ("manager", HOST)
    assert ask(world.host, "127.0.0.1", 8000) == ("manager", "10.231.7.254")
    assert ask_udp(world.host, "127.0.0.1", 8053) == ("manager", "10.231.7.254")
    # not a port that nobody published
    with pytest.raises(OSError):
        ask(world.outside, HOST, 80, timeout=1)


def test_large_transfers_pass_both_ways(world: World) -> None:
    from netlab import connect, line

    path = node(world)
    world.lab.serve(path, 80, "manager")
    world.on_host(lambda: world.underlay.publish(8000, NODE, 80))
    data = os.urandom(1 << 20)
    with connect(world.outside, HOST, 8000, timeout=10) as s:
        assert line(s).startswith("manager ")
        got = b""
        for start in range(0, len(data), 1 << 15):
            s.sendall(data[start : start + (1 << 15)])
            while len(got) < min(start + (1 << 15), len(data)):
                got += s.recv(1 << 16)
        assert got == data


def test_host_and_nodes_reach_each_other_with_their_own_addresses(world: World) -> None:
    one, two = node(world), node(world, "worker01", "10.231.7.11")
    world.lab.serve(one, 80, "one")
    world.lab.serve(two, 80, "two")
    world.lab.serve(world.host, 81, "host")
    world.on_host(lambda: world.underlay.publish(80, NODE, 80))
    assert ask(one, "10.231.7.11", 80) == ("two", NODE)
    assert ask(world.host, "10.231.7.11", 80) == ("two", "10.231.7.254")
    assert ask(two, "10.231.7.254", 81) == ("host", "10.231.7.11")
    assert ask(two, HOST, 81)[0] == "host"


def test_nodes_reach_the_world_where_forward_drops_and_forwarding_is_off(world: World) -> None:
    # a new namespace begins with what this machine has
    within(world.host, lambda: netns.set_sysctls({"net.ipv4.ip_forward": "0"}))
    path = node(world)
    world.lab.serve(world.world, 80, "world")
    world.lab.serve(world.world, 53, "world", "udp")
    forward = within(world.host, lambda: Path("/proc/sys/net/ipv4/ip_forward").read_text().strip())
    assert forward == "0"
    assert ask(path, "203.0.113.1", 80) == ("world", HOST)
    assert ask(path, "192.168.77.1", 80) == ("world", HOST)
    assert ask_udp(path, "192.168.77.1", 53) == ("world", HOST)
    assert within(path, lambda: ping("203.0.113.1"))
    # the host's own connections to the same place are still its own
    assert ask(world.host, "203.0.113.1", 80) == ("world", HOST)


def test_publishing_again_moves_the_port_and_unpublish_gives_it_back(world: World) -> None:
    one, two = node(world), node(world, "worker01", "10.231.7.11")
    world.lab.serve(one, 80, "one")
    world.lab.serve(two, 81, "two")
    world.on_host(lambda: world.underlay.publish(8000, NODE, 80))
    world.on_host(lambda: world.underlay.publish(8000, "10.231.7.11", 81))
    assert ask(world.outside, HOST, 8000) == ("two", OUTSIDE)
    world.on_host(lambda: world.underlay.unpublish(8000))
    world.on_host(lambda: world.underlay.unpublish(8000))
    world.lab.serve(world.host, 8000, "host")
    assert ask(world.outside, HOST, 8000) == ("host", OUTSIDE)


def test_others_rules_are_left_as_they_are_and_destroy_leaves_nothing(world: World) -> None:
    run(world.host, "nft", "add table ip theirs { chain c { type filter hook input priority 0; }; }")
    node(world)
    world.on_host(lambda: world.underlay.publish(8000, NODE, 80))
    before = run(world.host, "nft", "list table ip theirs")
    world.on_host(world.underlay.destroy)
    world.on_host(world.underlay.destroy)
    assert run(world.host, "nft", "list table ip theirs") == before
    assert world.underlay.table not in run(world.host, "nft", "list tables")
    assert world.underlay.link not in run(world.host, "ip", "-o", "link")
    assert "10.231.7." not in run(world.host, "ip", "route")
    assert not (world.lab.folder / "underlay").exists()
    assert str(world.lab.folder / "underlay") not in Path("/proc/self/mountinfo").read_text()


def test_another_object_of_the_same_name_removes_it_all(world: World) -> None:
    node(world)
    world.on_host(Underlay(f"t{os.getpid()}", world.lab.folder / "underlay").destroy)
    assert world.underlay.link not in run(world.host, "ip", "-o", "link")
    assert not (world.lab.folder / "underlay").exists()


def test_a_node_is_made_anew_and_two_clusters_live_side_by_side(world: World) -> None:
    other = Underlay(f"u{os.getpid()}", world.lab.folder / "other")
    world.on_host(lambda: other.create("10.231.8.0/24"))
    try:
        world.lab.serve(node(world), 80, "first")
        path = world.on_host(lambda: other.add_node("manager", "10.231.8.10"))
        world.lab.serve(path, 80, "second")  # type: ignore[arg-type]
        world.on_host(lambda: world.underlay.publish(8000, NODE, 80))
        world.on_host(lambda: other.publish(8001, "10.231.8.10", 80))
        assert ask(world.outside, HOST, 8000) == ("first", OUTSIDE)
        assert ask(world.outside, HOST, 8001) == ("second", OUTSIDE)
        again = node(world)
        world.lab.serve(again, 80, "again")
        assert ask(world.outside, HOST, 8000) == ("again", OUTSIDE)
    finally:
        world.on_host(other.destroy)


def test_a_subnet_in_use_is_refused(world: World) -> None:
    assert SUBNET in world.on_host(subnets_in_use)  # type: ignore[operator]
    other = Underlay(f"u{os.getpid()}", world.lab.folder / "other")
    for subnet, words in ((SUBNET, "this host uses"), ("10.231.0.0/16", "must be a /24"), ("nonsense", "subnet 'nonsense'")):
        with pytest.raises(Invalid, match=words):
            world.on_host(lambda subnet=subnet: other.create(subnet))
    with pytest.raises(Invalid, match="must be between"):
        node(world, "n", "10.231.7.254")


def test_from_outside_to_a_container_on_another_node_with_the_client_s_address(world: World) -> None:
    """The whole way of `skep cluster up --publish 8000:8080`: host, wire, ingress node, overlay, container; and what a container asks of
    the world."""
    it = world.lab
    for number, name in ((1, "manager"), (2, "worker01")):
        path = node(world, name, f"10.231.7.1{number}")
        it.nodes.append(Node(it, number, path=path, address=f"10.231.7.1{number}"))
    try:
        manager, worker = it.nodes
        for n in it.nodes:
            n.run(n.datapath.start_up())
        apply_all(it)
        sandbox = worker.sandbox(attach(worker, "10.0.0.5"))
        it.serve(sandbox, 80, "web")
        it.serve(sandbox, 53, "web", "udp")
        web = service("web", (8080, 80, "tcp"), (8053, 53, "udp"))
        apply_all(it, services=[web], endpoints=[endpoint("web", worker.id, "10.0.0.5")])
        world.on_host(lambda: world.underlay.publish(8000, manager.address, 8080))
        world.on_host(lambda: world.underlay.publish(8053, manager.address, 8053, "udp"))
        for _ in range(4):
            assert ask(world.outside, HOST, 8000) == ("web", OUTSIDE)
            assert ask_udp(world.outside, HOST, 8053) == ("web", OUTSIDE)
        assert ask(world.host, HOST, 8000) == ("web", HOST)
        assert ask(world.host, "127.0.0.1", 8000) == ("web", "10.231.7.254")
        it.serve(world.world, 80, "world")
        assert ask(sandbox, "203.0.113.1", 80) == ("world", HOST)
    finally:
        for n in it.nodes:
            n.run(n.datapath.destroy())
            n.loop.close()
        it.nodes.clear()


def test_forwarding_alone_would_not_do() -> None:
    """That the played host does drop: routed the plain way, nothing passes. Without this the others would prove nothing."""
    with lab() as it:
        w = World(it)
        inner = it.pins / "inner"
        netns.make(inner)

        def plug() -> None:
            fd = netns.opened(inner)
            with netlink.Socket() as net:
                net.send([netlink.new_veth("in0", peer="eth0", peer_namespace=fd)])
                net.send([netlink.address(net.index("in0"), "10.9.9.1", 24)])
            os.close(fd)
            netns.set_sysctls({"net.ipv4.ip_forward": "1"})

        within(w.host, plug)
        within(inner, lambda: Lab._address("10.9.9.2", "10.9.9.1"))
        it.serve(inner, 80, "inner")
        run(w.host, "nft", "add table ip t { chain c { type nat hook prerouting priority -100; tcp dport 8000 dnat to 10.9.9.2:80; }; }")
        assert ask(w.outside, HOST, 8000) == ("inner", OUTSIDE)
        run(w.host, "iptables-legacy" if shutil.which("iptables-legacy") else "iptables", "-P", "FORWARD", "DROP")
        with pytest.raises(socket.timeout):
            ask(w.outside, HOST, 8000, timeout=1)
