"""What packets are spared, and that nothing is lost by it: the rules that are asked first, and those that moved to where fewer pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from netlab import Lab, Node, apply_all, ask, ask_udp, attach, lab, ping, shell, within
from netlab_objects import endpoint, network, service

from skep.datapath import netlink
from skep.datapath.base import HostPort, LocalNetwork, LocalState, Place

pytestmark = pytest.mark.root
CLIENT = "192.168.77.99"
RED = LocalNetwork(id="red", name="red", group=17, subnet="172.18.0.0/16", gateway="172.18.0.1")
WEB = service("web", (8080, 80, "tcp"))
EARLIER = """add chain ip {table} guarded {{ type filter hook prerouting priority mangle; policy accept; }}
add rule ip {table} guarded iifname != "lo" ip daddr @guard ct state new,invalid,untracked drop
"""
"""What an earlier version had in the host's namespace."""
UNTRACKED = """table ip others {
 chain first { type filter hook prerouting priority raw; policy accept; ip daddr 172.16.0.0/12 notrack; }
}
"""


@pytest.fixture
def one() -> Iterator[tuple[Lab, Node]]:
    """A node with a container of its own network, and a client beside it that has been told a way to all such networks."""
    with lab(1) as it:
        node = it.nodes[0]
        it.client = it.namespace("client", CLIENT)
        shell(it.client, "ip", "route", "add", "172.16.0.0/12", "via", node.address)
        node.run(node.datapath.apply_local(LocalState(networks={"red": RED})))
        for last in (2, 9):
            path = node.run(node.datapath.attach(f"c{last}", (Place(network_id="red", address=f"172.18.0.{last}/16"),))).path
            it.serve(Path(path), 80, f"c{last}")
            it.serve(Path(path), 53, f"c{last}", "udp")
        ports = (
            HostPort(target=80, published=8080, address=RED.gateway),
            HostPort(target=53, protocol="udp", published=5353, address=RED.gateway),
            HostPort(target=80, published=8081, address=node.address),
            HostPort(target=80, published=8082),
        )
        node.run(node.datapath.publish("c2", "172.18.0.2", ports))
        yield it, node


def strangers_are_kept_out(it: Lab, node: Node) -> None:
    for address, port, datagrams in (("172.18.0.2", 80, 53), (RED.gateway, 8080, 5353)):
        with pytest.raises(TimeoutError):
            ask(it.client, address, port, timeout=0.3)
        with pytest.raises(TimeoutError):
            ask_udp(it.client, address, datagrams, timeout=0.3)
        assert not within(it.client, lambda address=address: ping(address, 0.3))
    assert ask(it.client, node.address, 8081) == ("c2", CLIENT), "by what is published all come in"
    assert ask(it.client, node.address, 8082) == ("c2", CLIENT)
    assert ask(node.path, "172.18.0.2", 80) == ("c2", RED.gateway), "the host itself does too"
    assert ask(node.sandbox("c9"), RED.gateway, 8080) == ("c2", "172.18.0.9"), "and a neighbour"


def test_a_stranger_reaches_no_container_by_its_address_nor_a_port_at_its_gateway(one: tuple[Lab, Node]) -> None:
    strangers_are_kept_out(*one)


def test_a_stranger_whose_packets_nobody_tracks_neither(one: tuple[Lab, Node]) -> None:
    it, node = one
    shell(node.path, "nft", "-f", "-", said=UNTRACKED)
    for address, port in (("172.18.0.2", 80), (RED.gateway, 8080)):
        with pytest.raises(TimeoutError):
            ask(it.client, address, port, timeout=0.3)
    listener = shell(node.path, "nft", "list", "ruleset")
    assert "notrack" in listener, "somebody else's rules stay"


def test_what_an_earlier_version_laid_goes_when_this_one_starts(one: tuple[Lab, Node]) -> None:
    it, node = one
    table = node.datapath._router.table
    before = shell(node.path, "nft", "list", "table", "ip", table)
    shell(node.path, "nft", "-f", "-", said=EARLIER.format(table=table))
    node.run(node.datapath.shut_down())
    node.datapath = node.new_datapath()
    node.run(node.datapath.start_up())
    assert shell(node.path, "nft", "list", "table", "ip", table) == before
    strangers_are_kept_out(it, node)


def test_a_source_is_looked_up_at_the_container_s_link_and_not_again_over_the_overlay() -> None:
    with lab(2) as it:
        apply_all(it)
        node = it.nodes[0]
        attach(node, "10.0.0.5")
        link = node.datapath._sandboxes.records["10-0-0-5"].places[0].link
        for device, filtered, any_source in ((link, "1", "0"), ("vx4096", "0", "1"), ("up0", "0", "0")):
            keys = [f"net/ipv4/conf/{device}/{key}" for key in ("rp_filter", "accept_local")]
            assert shell(node.run_root / "router", "sysctl", "-n", *keys).split() == [filtered, any_source], device


# -- ways back


@pytest.fixture
def mesh() -> Iterator[Lab]:
    """Three nodes; the task of the published port is on the first."""
    with lab(3) as it:
        it.client = it.namespace("client", CLIENT)
        apply_all(it, services=[WEB])
        node = it.nodes[0]
        it.serve(node.sandbox(attach(node, "10.0.0.5")), 80, "web")
        it.endpoints = [endpoint("web", node.id, "10.0.0.5")]
        apply_all(it, services=[WEB], endpoints=it.endpoints)
        yield it


def marks(node: Node) -> list[tuple[int, int]]:
    """Rules by mark, in the order in which they are asked: the mark, and the table it leads to."""

    def read() -> list[tuple[int, int]]:
        with netlink.Socket() as net:
            return [(r.mark, r.table) for r in net.rules()]

    return within(node.run_root / "router", read)


def test_a_packet_without_a_mark_is_not_compared_with_every_node_s(mesh: Lab) -> None:
    first = mesh.nodes[0]
    assert marks(first) == [(0, netlink.MAIN_TABLE), (2, 102), (3, 103)]
    for node in mesh.nodes:
        assert ask(mesh.client, node.address, 8080) == ("web", CLIENT), "answers go back by the node that was asked"


def test_the_rules_of_an_earlier_version_come_behind_and_go_with_their_network(mesh: Lab) -> None:
    """It gave no priorities, so that the kernel put each new rule before those that were there."""
    first = mesh.nodes[0]
    router = first.run_root / "router"
    first.run(first.datapath.shut_down())
    shell(router, "ip", "rule", "del", "fwmark", "0/0xffffffff", "lookup", "main")
    for index in (2, 3):
        shell(router, "ip", "rule", "del", "fwmark", str(index))
        shell(router, "ip", "rule", "add", "fwmark", str(index), "lookup", str(100 + index))
    assert [mark for mark, _ in marks(first)] == [3, 2]
    first.datapath = first.new_datapath()
    first.run(first.datapath.start_up())
    apply_all(mesh, services=[WEB], endpoints=mesh.endpoints)
    assert marks(first) == [(0, netlink.MAIN_TABLE), (3, 103), (2, 102)]
    for node in mesh.nodes:
        assert ask(mesh.client, node.address, 8080) == ("web", CLIENT)
    apply_all(mesh, networks=[network(1, ingress=False)])
    assert marks(first) == []
    assert "lookup main" in shell(router, "ip", "rule"), "the kernel's own rule stays"
