"""Several overlays at once in real namespaces: apart on a node and across nodes, as wide as the way is, gone and made again at once."""

from __future__ import annotations

import hashlib
import itertools
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from netlab import Lab, Node, apply_all, ask, attach, bound, connect, lab, line, ping, within
from netlab_objects import endpoint, network

from skep.datapath import netlink, netns
from skep.datapath.base import Place
from skep.model.assignment import EndpointItem, NetworkItem

pytestmark = pytest.mark.root
ONE, TWO, INNER = network(1, ingress=False), network(2, ingress=False), network(3, ingress=False, internal=True)
NETWORKS = [network(), ONE, TWO, INNER]
CLIENT = "192.168.77.99"
MEGABYTE = 1 << 20


def ends(it: Lab, networks: list[NetworkItem], *, serve: bool = True) -> list[EndpointItem]:
    """A container of each network on each node: 10.0.<network>.<node>0, answering at 80."""
    out = []
    for node in it.nodes:
        for item in networks:
            prefix = item.network.ipam[0].gateway.rpartition(".")[0]
            address = f"{prefix}.{node.index}0"
            sandbox = attach(node, address, item.network.id)
            if serve:
                it.serve(node.sandbox(sandbox), 80, address)
            out.append(endpoint("web", node.id, address, network_id=item.network.id))
    return out


def at(node: Node, address: str) -> Path:
    return node.sandbox(address.replace(".", "-"))


@pytest.fixture
def pair() -> Iterator[Lab]:
    with lab(2) as it:
        it.client = it.namespace("client", CLIENT)
        apply_all(it, networks=NETWORKS)
        it.endpoints = ends(it, NETWORKS[1:])
        apply_all(it, networks=NETWORKS, endpoints=it.endpoints)
        yield it


def test_overlays_are_apart_on_a_node_and_across_nodes_whatever_is_tried(pair: Lab) -> None:
    """The default route, routes of the container's own (by the gateway and straight onto its link), another source."""
    for node, number in itertools.product(pair.nodes, (1, 2, 3)):
        source = at(node, f"10.0.{number}.{node.index}0")
        strange = [n for n in (1, 2, 3) if n != number]
        for attempt in ("as it is", "by the gateway", "on the link"):
            for other, target in itertools.product(pair.nodes, strange):
                prefix = f"10.0.{target}.0"
                if attempt != "as it is":
                    via = f"10.0.{number}.1" if attempt == "by the gateway" else ""
                    within(source, lambda prefix=prefix, via=via: _lay(prefix, via))
                with pytest.raises(OSError):
                    connect(source, f"10.0.{target}.{other.index}0", 80, timeout=0.15).close()
                assert not within(source, lambda t=target: ping(f"10.0.{t}.1", 0.1)), "not even the other network's gateway"
        for other in pair.nodes:
            address = f"10.0.{number}.{other.index}0"
            assert ask(source, address, 80) == (address, f"10.0.{number}.{node.index}0")


def _lay(prefix: str, via: str) -> None:
    with netlink.Socket() as net:
        net.send([netlink.route(prefix, 24, index=net.index("eth0"), via=via)])


def test_a_source_that_is_not_one_s_own_is_dropped_also_the_gateway_s_and_another_network_s(pair: Lab) -> None:
    for node, other in ((pair.nodes[0], pair.nodes[1]), (pair.nodes[0], pair.nodes[0])):
        target = f"10.0.1.{other.index}0"
        listener = within(at(other, target), lambda: bound(70, "udp"))
        listener.settimeout(0.2)

        def send(source: str, target: str = target) -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
                s.setsockopt(socket.IPPROTO_IP, 19, 1)  # IP_TRANSPARENT: any source address
                s.bind((source, 0))
                s.sendto(source.encode(), (target, 70))

        with listener:
            for number in (2, 3):
                for spoofed in ("10.0.1.20", "10.0.1.1", "10.0.2.10", "169.254.0.1", "8.8.8.8"):
                    within(at(node, f"10.0.{number}.{node.index}0"), lambda spoofed=spoofed: send(spoofed))
            with pytest.raises(TimeoutError):
                listener.recv(100)
            if other is not node:
                within(at(node, "10.0.1.10"), lambda: send("10.0.1.10"))
                assert listener.recv(100) == b"10.0.1.10"


def test_an_internal_network_reaches_its_own_and_nothing_else(pair: Lab) -> None:
    pair.serve(pair.client, 90, "client")
    for node in pair.nodes:
        pair.serve(node.path, 91, node.id)
        inside = at(node, f"10.0.3.{node.index}0")
        assert ask(inside, "10.0.3.10", 80)[0] == "10.0.3.10"
        for target, port in ((CLIENT, 90), (node.address, 91), ("172.31.255.1", 91)):
            with pytest.raises(OSError):
                connect(inside, target, port, timeout=0.3).close()
        assert ask(at(node, f"10.0.1.{node.index}0"), CLIENT, 90) == ("client", node.address)


# -- the width of the way


def pumped(it: Lab, source: Path, node: Node, address: str, port: int) -> bytes:
    """The digest of a megabyte that is sent there and comes back; both must be the same."""
    with connect(source, address, port, timeout=20) as s:
        line(s)
        data = hashlib.sha256(address.encode()).digest() * (MEGABYTE // 32)
        failed: list[BaseException] = []

        def send() -> None:
            try:
                s.sendall(data)
            except OSError as e:
                failed.append(e)

        sender = threading.Thread(target=send)
        sender.start()
        got = hashlib.sha256()
        left = MEGABYTE
        while left:
            chunk = s.recv(min(left, 1 << 16))
            assert chunk, "cut off"
            got.update(chunk)
            left -= len(chunk)
        sender.join()
        assert not failed and got.digest() == hashlib.sha256(data).digest()
        return got.digest()


def mtu_inside(sandbox: Path) -> int:
    def call() -> int:
        with netlink.Socket() as net:
            return net.links()["eth0"].mtu

    return within(sandbox, call)


@pytest.mark.parametrize("mtus", [(1500, 1500), (1400, 1400), (1500, 1400)], ids=str)
@pytest.mark.parametrize("known", [True, False], ids=["told", "untold"])
def test_a_megabyte_passes_between_every_pair(mtus: tuple[int, int], known: bool) -> None:
    with lab(2, mtus) as it:
        if not known:
            for node in it.nodes:
                node.mtu = 0
        apply_all(it, networks=NETWORKS)
        it.endpoints = ends(it, NETWORKS[1:2])
        apply_all(it, networks=NETWORKS, endpoints=it.endpoints)
        for node, other in itertools.product(it.nodes, it.nodes):
            assert mtu_inside(at(node, f"10.0.1.{node.index}0")) == mtus[node.index - 1] - 50
            pumped(it, at(node, f"10.0.1.{node.index}0"), other, f"10.0.1.{other.index}0", 80)


def test_a_sender_of_datagrams_is_told_that_the_other_end_is_narrower() -> None:
    """TCP knows by itself what the other end takes; a datagram that may not be cut is refused with the width of the way."""
    with lab(2, (1500, 1400)) as it:
        apply_all(it, networks=NETWORKS)
        it.endpoints = ends(it, NETWORKS[1:2], serve=False)
        apply_all(it, networks=NETWORKS, endpoints=it.endpoints)
        listener = within(at(it.nodes[1], "10.0.1.20"), lambda: bound(70, "udp"))
        listener.settimeout(3)

        def send() -> socket.socket:
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            s.setsockopt(socket.IPPROTO_IP, 10, 1)  # IP_MTU_DISCOVER: as most do, no cutting on the way
            s.connect(("10.0.1.20", 70))
            s.settimeout(3)
            s.send(b"x" * 1400)
            with pytest.raises(OSError, match="Message too long"):
                s.recv(10)
            s.send(b"x" * 1400)
            return s

        with listener, within(at(it.nodes[0], "10.0.1.10"), send) as s:
            assert len(listener.recv(2000)) == 1400, "cut by the sender, as it knows now"
            assert s.getsockopt(socket.IPPROTO_IP, 14) == 1350  # IP_MTU


def test_an_underlay_that_is_set_narrower_while_all_runs_is_noticed_by_the_next_comparison(pair: Lab) -> None:
    """What is there stays: connections live on, containers keep their links, new ones fit."""
    node, other = pair.nodes
    held = connect(at(other, "10.0.1.20"), "10.0.1.10", 80)
    line(held)
    device = within(node.run_root / "router", lambda: socket.if_nametoindex("vx4097"))
    assert (node.datapath.underlay_mtu, other.datapath.underlay_mtu) == (1500, 1500)
    for mtu in (1400, 1500):
        within(pair.wire, lambda mtu=mtu: pair._narrow("n1", mtu))
        within(node.path, lambda mtu=mtu: pair._narrow("eth0", mtu))
        assert node.run(node.datapath.explain()) == []
        assert node.run(node.datapath.compare()) == [], "nothing was broken"
        node.mtu = node.datapath.underlay_mtu
        assert (node.mtu, other.datapath.underlay_mtu) == (mtu, 1500)
        apply_all(pair, networks=NETWORKS, endpoints=pair.endpoints)
        assert within(node.run_root / "router", _links)["vx4097"] == mtu - 50
        assert within(node.run_root / "router", lambda: socket.if_nametoindex("vx4097")) == device, "no moment without a way"
        assert node.run(node.datapath.compare()) == []
        held.sendall(b"still here\n")
        assert line(held) == "still here"
        for one, two in ((node, other), (other, node)):
            pumped(pair, at(one, f"10.0.1.{one.index}0"), two, f"10.0.1.{two.index}0", 80)
        fresh = attach(node, f"10.0.1.{mtu - 1290}", "net1")
        assert mtu_inside(node.sandbox(fresh)) == mtu - 50
    held.close()
    assert node.datapath.mended == 0


def test_the_mtu_option_of_a_network(pair: Lab) -> None:
    slim = network(4, ingress=False, options={"com.docker.network.driver.mtu": "1200"})
    wide = network(5, ingress=False, options={"com.docker.network.driver.mtu": "9000"})
    nets = [*NETWORKS, slim, wide]
    apply_all(pair, networks=nets, endpoints=pair.endpoints)
    more = ends(pair, [slim, wide])
    apply_all(pair, networks=nets, endpoints=[*pair.endpoints, *more])
    node, other = pair.nodes
    assert mtu_inside(at(node, "10.0.4.10")) == 1200
    assert mtu_inside(at(node, "10.0.5.10")) == 1450, "more than fits is no use to anyone"
    assert mtu_inside(at(node, "10.0.1.10")) == 1450
    shown = within(node.run_root / "router", lambda: _links())
    assert shown["vx4100"] == 1200 and shown["vx4101"] == 1450
    for number in (4, 5):
        pumped(pair, at(node, f"10.0.{number}.10"), other, f"10.0.{number}.20", 80)


def _links() -> dict[str, int]:
    with netlink.Socket() as net:
        return {name: link.mtu for name, link in net.links().items()}


# -- removed and made again


@pytest.mark.parametrize("vni", [4097, 4177], ids=["with the same number", "with another number"])
@pytest.mark.parametrize("subnet", ["10.0.1", "10.0.9"], ids=["the same subnet", "another subnet"])
def test_a_network_that_is_removed_and_made_again_at_once(pair: Lab, vni: int, subnet: str) -> None:
    """In one snapshot: other containers, another id, perhaps the same name and number."""
    again = network(1, ingress=False, subnet=f"{subnet}.0/24", gateway=f"{subnet}.1", vni=vni)
    again = msgspec.structs.replace(again, network=msgspec.structs.replace(again.network, id="again"))
    rest = [e for e in pair.endpoints if e.network_id != "net1"]
    # a container of the old network that is slow to go is not on the new one
    late = at(pair.nodes[1], "10.0.1.20")
    pair.nodes[0].run(pair.nodes[0].datapath.detach("10-0-1-10"))
    nets = [network(), again, TWO, INNER]
    apply_all(pair, networks=nets, endpoints=rest)
    fresh = []
    for node in pair.nodes:
        address = f"{subnet}.{node.index}5"
        place = Place(network_id="again", address=f"{address}/24", gateway=f"{subnet}.1")
        node.run(node.datapath.attach(address.replace(".", "-"), (place,)))
        pair.serve(at(node, address), 80, address)
        fresh.append(endpoint("web", node.id, address, network_id="again"))
    apply_all(pair, networks=nets, endpoints=[*rest, *fresh])
    for node, other in itertools.product(pair.nodes, pair.nodes):
        answer = ask(at(node, f"{subnet}.{node.index}5"), f"{subnet}.{other.index}5", 80)
        assert answer == (f"{subnet}.{other.index}5", f"{subnet}.{node.index}5")
        with pytest.raises(OSError):
            connect(late, f"{subnet}.{other.index}5", 80, timeout=0.2).close()
    assert ask(at(pair.nodes[0], "10.0.2.10"), "10.0.2.20", 80)[0] == "10.0.2.20"
    names = within(pair.nodes[0].run_root / "router", _links)
    assert f"vx{vni}" in names and (vni == 4097 or "vx4097" not in names)
    for node in pair.nodes:
        assert node.run(node.datapath.compare()) == []


def test_a_network_gets_another_number(pair: Lab) -> None:
    """The containers stay and go on talking; who was connected still is."""
    node = pair.nodes[0]
    held = connect(at(node, "10.0.1.10"), "10.0.1.20", 80)
    line(held)
    moved = network(1, ingress=False, vni=5000)
    apply_all(pair, networks=[network(), moved, TWO, INNER], endpoints=pair.endpoints)
    held.sendall(b"still here\n")
    assert line(held) == "still here"
    held.close()
    assert ask(at(node, "10.0.1.10"), "10.0.1.20", 80) == ("10.0.1.20", "10.0.1.10")
    with pytest.raises(OSError):
        connect(at(node, "10.0.2.10"), "10.0.1.20", 80, timeout=0.2).close()
    assert node.run(node.datapath.compare()) == []


def test_fifty_networks_come_and_go(pair: Lab) -> None:
    node = pair.nodes[0]
    many = [network(n, ingress=False) for n in range(10, 60)]
    for _ in range(2):
        apply_all(pair, networks=[*NETWORKS, *many], endpoints=pair.endpoints)
        links = within(node.run_root / "router", _links)
        assert sum(name.startswith("vx") for name in links) == 54
        apply_all(pair, networks=NETWORKS, endpoints=pair.endpoints)
        links = within(node.run_root / "router", _links)
        assert sum(name.startswith("vx") for name in links) == 4
    assert ask(at(node, "10.0.1.10"), "10.0.1.20", 80)[0] == "10.0.1.20"
    assert node.run(node.datapath.compare()) == []


def test_a_routed_underlay_that_is_narrower_than_its_ends_cuts_and_joins() -> None:
    """Between two nodes stands a router with ways of 1300 bytes: what the overlay sends is cut there, and whole again at the end."""
    with lab(1) as it:
        between = it.namespace("between", "192.168.77.254")
        behind = it.namespace("n2", "192.168.77.200")
        fd = netns.opened(behind)

        def split() -> None:
            with netlink.Socket() as net:
                net.send([netlink.new_veth("far", peer="far0", peer_namespace=fd)])
                near, far = net.index("eth0"), net.index("far")
                net.send([netlink.address(far, "192.168.78.254", 24)])
                net.send([netlink.route("192.168.78.0", 24, index=far, mtu=1300), netlink.route("192.168.77.0", 24, index=near, mtu=1300)])
            netns.set_sysctls({"net.ipv4.ip_forward": "1"})

        def move() -> None:
            with netlink.Socket() as net:
                index = net.index("far0")
                net.send([netlink.del_link("eth0"), netlink.set_link(index, "far0", up=True)])
                net.send([netlink.address(index, "192.168.78.2", 24)])
                net.send([netlink.route("0.0.0.0", 0, index=index, via="192.168.78.254")])

        def lead() -> None:
            with netlink.Socket() as net:
                net.send([netlink.route("192.168.78.0", 24, index=net.index("eth0"), via="192.168.77.254")])

        within(between, split)
        os.close(fd)
        within(behind, move)
        within(it.nodes[0].path, lead)
        far = Node(it, 2, path=behind, address="192.168.78.2")
        it.nodes.append(far)
        far.run(far.datapath.start_up())
        apply_all(it, networks=NETWORKS)
        it.endpoints = ends(it, NETWORKS[1:2])
        apply_all(it, networks=NETWORKS, endpoints=it.endpoints)
        pumped(it, at(it.nodes[0], "10.0.1.10"), far, "10.0.1.20", 80)
        pumped(it, at(far, "10.0.1.20"), it.nodes[0], "10.0.1.10", 80)
        cut = within(between, lambda: Path("/proc/thread-self/net/snmp").read_text()).splitlines()
        names, values = (row.split() for row in cut if row.startswith("Ip: "))
        assert int(dict(zip(names[1:], values[1:], strict=True))["FragCreates"]) > 500
