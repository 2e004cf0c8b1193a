"""Networks beside each other, sandboxes, ports of one node: real namespaces, real packets."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from netlab import Lab, Node, apply_all, ask, ask_udp, attach, bound, lab, lone, ping, shell, within
from netlab_objects import endpoint, network, service, snapshot

from skep.datapath.base import HostPort, Place
from skep.errors import Conflict, Invalid, NotFound, SkepError

pytestmark = pytest.mark.root
CLIENT = "192.168.77.99"
NETWORKS = [network(), network(1, ingress=False), network(2, ingress=False, internal=True)]


@pytest.fixture
def pair() -> Iterator[Lab]:
    """Two nodes, each with a task `10.0.N.<node>0` on each of the three networks; ingress, net1, net2 (internal)."""
    with lab(2) as it:
        it.client = it.namespace("client", CLIENT)
        apply_all(it, networks=NETWORKS)
        for node in it.nodes:
            for number, item in enumerate(NETWORKS):
                address = f"10.0.{number}.{node.index}0"
                attach(node, address, item.network.id)
                it.serve(node.sandbox(address.replace(".", "-")), 80, address)
                it.endpoints.append(endpoint(f"s{number}", node.id, address, network_id=item.network.id))
        apply_all(it, networks=NETWORKS, endpoints=it.endpoints)
        yield it


def test_a_network_reaches_across_nodes_and_no_other_network_is_reached(pair: Lab) -> None:
    for node in pair.nodes:
        for number in range(3):
            source = node.sandbox(f"10-0-{number}-{node.index}0")
            for other in pair.nodes:
                for target in range(3):
                    address = f"10.0.{target}.{other.index}0"
                    if target == number:
                        assert ask(source, address, 80) == (address, f"10.0.{number}.{node.index}0")
                    else:
                        with pytest.raises(OSError):
                            ask(source, address, 80, timeout=0.3)
            assert within(source, lambda number=number: ping(f"10.0.{number}.1")), "the gateway answers"


def test_egress_has_the_node_s_address_and_internal_networks_have_none(pair: Lab) -> None:
    pair.serve(pair.client, 90, "client")
    for node in pair.nodes:
        for number in (0, 1):
            assert ask(node.sandbox(f"10-0-{number}-{node.index}0"), CLIENT, 90) == ("client", node.address)
        with pytest.raises(OSError):
            ask(node.sandbox(f"10-0-2-{node.index}0"), CLIENT, 90, timeout=0.5)


def test_a_spoofed_source_is_dropped(pair: Lab) -> None:
    """A container that takes its neighbour's address sends, and nothing arrives; its own address does."""
    node = pair.nodes[0]
    source, target = node.sandbox("10-0-1-10"), pair.nodes[1].sandbox("10-0-1-20")
    listener = within(target, lambda: bound(70, "udp"))
    listener.settimeout(0.5)

    def send(address: str) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.setsockopt(socket.IPPROTO_IP, 19, 1)  # IP_TRANSPARENT: any source address
            s.bind((address, 0))
            s.sendto(address.encode(), ("10.0.1.20", 70))

    with listener:
        for spoofed in ("10.0.1.20", "10.0.0.10", "8.8.8.8"):
            within(source, lambda spoofed=spoofed: send(spoofed))
            with pytest.raises(TimeoutError):
                listener.recv(100)
        within(source, lambda: send("10.0.1.10"))
        assert listener.recv(100) == b"10.0.1.10"


def test_an_address_that_nobody_has_is_refused_at_once(pair: Lab) -> None:
    with pytest.raises(OSError, match="No route to host|Host is unreachable"):
        ask(pair.nodes[0].sandbox("10-0-1-10"), "10.0.1.77", 80)


def test_a_container_on_two_networks(pair: Lab) -> None:
    """It is reached on each by its address there; what it begins goes out by the first."""
    node, other = pair.nodes
    places = (
        Place(network_id="ingress", address="10.0.0.50/24", gateway="10.0.0.1"),
        Place(network_id="net1", address="10.0.1.50/24", gateway="10.0.1.1"),
    )
    node.run(node.datapath.attach("both", places))
    pair.serve(node.sandbox("both"), 80, "both")
    pair.serve(node.sandbox("both"), 53, "both", "udp")
    more = [*pair.endpoints, endpoint("both", node.id, "10.0.0.50"), endpoint("both", node.id, "10.0.1.50", network_id="net1")]
    apply_all(pair, networks=NETWORKS, endpoints=more, services=[service("both", (8080, 80, "tcp"), (8053, 53, "udp"))])
    assert ask(other.sandbox("10-0-1-20"), "10.0.1.50", 80) == ("both", "10.0.1.20")
    assert ask(other.sandbox("10-0-0-20"), "10.0.0.50", 80) == ("both", "10.0.0.20")
    assert ask(pair.client, other.address, 8080) == ("both", CLIENT)
    assert ask_udp(pair.client, other.address, 8053) == ("both", CLIENT)
    assert ask(node.sandbox("both"), "10.0.1.20", 80) == ("10.0.1.20", "10.0.1.50")


def test_a_network_that_goes_takes_its_device_along(pair: Lab) -> None:
    node = pair.nodes[0]
    node.run(node.datapath.detach("10-0-1-10"))
    apply_all(pair, networks=NETWORKS[:1], endpoints=pair.endpoints[::3])
    names = shell(node.run_root / "router", "ip", "-o", "link")
    assert "vx4097" not in names and "vx4098" not in names and "vx4096" in names
    apply_all(pair, networks=NETWORKS, endpoints=pair.endpoints)
    assert ask(node.sandbox("10-0-2-10"), "10.0.2.20", 80) == ("10.0.2.20", "10.0.2.10")


def test_another_data_path_port_and_address(pair: Lab) -> None:
    """The device is made anew, and all that hung on it."""
    import msgspec

    from skep.model.assignment import PeerItem

    peers = [PeerItem(node_id=n.id, index=n.index, address=n.address) for n in pair.nodes]
    for node in pair.nodes:
        wanted = snapshot(node.id, peers, networks=NETWORKS, endpoints=pair.endpoints)
        node.run(node.datapath.apply(msgspec.structs.replace(wanted, data_path_port=7789)))
    assert "dstport 7789" in shell(pair.nodes[0].run_root / "router", "ip", "-d", "link", "show", "vx4097")
    for number in range(3):
        address = f"10.0.{number}.20"
        assert ask(pair.nodes[0].sandbox(f"10-0-{number}-10"), address, 80)[0] == address


# -- sandboxes


@pytest.fixture
def alone() -> Iterator[tuple[Lab, Node]]:
    with lone(CLIENT) as made:
        yield made


def test_attach_and_detach_are_idempotent(alone: tuple[Lab, Node]) -> None:
    _, node = alone
    place = (Place(network_id="ingress", address="10.0.0.5/24", gateway="10.0.0.1"),)
    first = node.run(node.datapath.attach("a" * 64, place))
    assert first == node.run(node.datapath.attach("a" * 64, place))
    assert node.run(node.datapath.sandboxes()) == ["a" * 64]
    shown = shell(Path(first.path), "ip", "-o", "-4", "addr")
    assert "inet 10.0.0.5/24" in shown and "inet 127.0.0.1/8" in shown
    assert "02:42:0a:00:00:05" in shell(Path(first.path), "ip", "link")
    assert "mtu 1450" in shell(Path(first.path), "ip", "link", "show", "eth0")
    with pytest.raises(Conflict, match=r"Address already in use: 10\.0\.0\.5/24"):
        node.run(node.datapath.attach("b" * 64, place))
    for _ in range(2):
        node.run(node.datapath.detach("a" * 64))
    assert node.run(node.datapath.sandboxes()) == []
    assert not Path(first.path).exists()
    end = time.monotonic() + 10
    while "v-" in shell(node.run_root / "router", "ip", "-o", "link"):
        assert time.monotonic() < end, "the link goes with its namespace"
    node.run(node.datapath.attach("b" * 64, place))


def test_a_sandbox_without_places_has_loopback_alone(alone: tuple[Lab, Node]) -> None:
    _, node = alone
    made = node.run(node.datapath.attach("none", ()))
    assert shell(Path(made.path), "ip", "-o", "link").count("\n") == 1
    assert "UP" in shell(Path(made.path), "ip", "-o", "link")


def test_sysctls(alone: tuple[Lab, Node]) -> None:
    _, node = alone
    attach(node, "10.0.0.5", sysctls={"net.ipv4.ip_unprivileged_port_start": "0"})
    inside = within(node.sandbox("10-0-0-5"), lambda: Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    assert inside.strip() == "0"
    for name, words in (
        ("kernel.msgmax", "only settings below net."),
        ("net.ipv4.nonsense", "there is no such setting"),
        ("net/../kernel/msgmax", "only settings below net."),
    ):
        with pytest.raises(Invalid, match=words):
            attach(node, "10.0.0.6", sysctls={name: "1"})
    with pytest.raises(SkepError, match="Invalid argument"):
        attach(node, "10.0.0.6", sysctls={"net.ipv4.ip_unprivileged_port_start": "x"})
    assert node.run(node.datapath.sandboxes()) == ["10-0-0-5"], "what failed left nothing"
    assert not node.sandbox("10-0-0-6").exists()


def test_bad_input(alone: tuple[Lab, Node]) -> None:
    _, node = alone
    for address, words in (("fd00::5/64", "IPv6 is not supported"), ("10.0.0/24", "not an IPv4 address"), ("10.0.0.5/99", "not an IPv4")):
        with pytest.raises(Invalid, match=words):
            node.run(node.datapath.attach("x", (Place(network_id="ingress", address=address),)))
    for name in ("", "..", "a/b"):
        with pytest.raises(Invalid, match="must be a plain file name"):
            node.run(node.datapath.attach(name, ()))
    with pytest.raises(Invalid, match="IPv6 is not supported"):
        type(node.datapath)("x", node.run_root, "fd00::1", clock=None)  # type: ignore[arg-type]


# -- ports of one node


def host_port(target: int, published: int = 0, protocol: str = "tcp") -> HostPort:
    return HostPort(target=target, published=published, protocol=protocol)


def test_ports_in_host_mode(alone: tuple[Lab, Node]) -> None:
    it, node = alone
    for last in (5, 6):
        it.serve(node.sandbox(attach(node, f"10.0.0.{last}")), 80, f"c{last}")
    given = node.run(node.datapath.publish("10-0-0-5", "10.0.0.5", (host_port(80, 8080), host_port(80), host_port(53, 8053, "udp"))))
    assert [p.published for p in given[::2]] == [8080, 8053]
    assert 32768 <= given[1].published < 61000
    again = node.run(node.datapath.publish("10-0-0-5", "10.0.0.5", (host_port(80, 8080), host_port(53, 8053, "udp"))))
    assert again == (given[0], given[2])
    assert ask(it.client, node.address, 8080) == ("c5", CLIENT)
    assert ask(node.path, "127.0.0.1", 8080)[0] == "c5"
    with pytest.raises(ConnectionRefusedError):
        ask(it.client, node.address, given[1].published)
    with pytest.raises(Conflict, match=r"^Bind for 0.0.0.0:8080 failed: port is already allocated$"):
        node.run(node.datapath.publish("10-0-0-6", "10.0.0.6", (host_port(80, 8080),)))
    with pytest.raises(NotFound, match="No such sandbox: nobody"):
        node.run(node.datapath.publish("nobody", "10.0.0.6", ()))
    it.serve(node.path, 8081, "host")
    with pytest.raises(Conflict, match="address already in use"):
        node.run(node.datapath.publish("10-0-0-6", "10.0.0.6", (host_port(80, 8081),)))
    node.run(node.datapath.unpublish("10-0-0-5"))
    node.run(node.datapath.unpublish("10-0-0-5"))
    node.run(node.datapath.publish("10-0-0-6", "10.0.0.6", (host_port(80, 8080),)))
    assert ask(it.client, node.address, 8080) == ("c6", CLIENT)
    node.run(node.datapath.detach("10-0-0-6"))
    with pytest.raises(ConnectionRefusedError):
        ask(it.client, node.address, 8080)


def test_host_ports_and_the_mesh_do_not_share_a_port_and_survive_a_restart(alone: tuple[Lab, Node]) -> None:
    it, node = alone
    it.serve(node.sandbox(attach(node, "10.0.0.5")), 80, "c5")
    web = service("web", (8080, 80, "tcp"))
    apply_all(it, services=[web], endpoints=[endpoint("web", node.id, "10.0.0.5")])
    with pytest.raises(Conflict, match="port is already allocated"):
        node.run(node.datapath.publish("10-0-0-5", "10.0.0.5", (host_port(80, 8080),)))
    node.run(node.datapath.publish("10-0-0-5", "10.0.0.5", (host_port(80, 8081),)))
    node.run(node.datapath.shut_down())
    node.datapath = node.new_datapath()
    node.run(node.datapath.start_up())
    assert ask(it.client, node.address, 8081) == ("c5", CLIENT)
    with pytest.raises(Conflict):
        attach(node, "10.0.0.6")
        node.run(node.datapath.publish("10-0-0-6", "10.0.0.6", (host_port(80, 8081),)))
    node.run(node.datapath.publish("10-0-0-6", "10.0.0.6", (host_port(80, 8082),)))
    it.serve(node.sandbox("10-0-0-6"), 80, "c6")
    assert ask(it.client, node.address, 8082) == ("c6", CLIENT)
    node.run(node.datapath.unpublish("10-0-0-5"))
    apply_all(it, services=[web], endpoints=[endpoint("web", node.id, "10.0.0.5")])
    assert ask(it.client, node.address, 8080) == ("c5", CLIENT)
    with pytest.raises(ConnectionRefusedError):
        ask(it.client, node.address, 8081)


def test_a_port_of_the_mesh_that_a_container_of_the_node_has_is_said(pair: Lab, caplog: pytest.LogCaptureFixture) -> None:
    node, other = pair.nodes
    place = attach(node, "10.0.1.15", "net1")
    pair.serve(node.sandbox(place), 80, "own")
    node.run(node.datapath.publish(place, "10.0.1.15", (HostPort(target=80, published=8080),)))
    served = [service("s0", (8080, 80, "tcp"), (8081, 80, "tcp"))]
    for _ in range(2):
        apply_all(pair, networks=NETWORKS, endpoints=pair.endpoints, services=served)
    assert ask(pair.client, node.address, 8080)[0] == "own" and ask(pair.client, other.address, 8080)[0].startswith("10.0.0.")
    said = (
        f"port 8080/tcp of service s0 leads to container {place} on this node, which has published it too: other nodes lead to the "
        "service; remove the container, or publish another port"
    )
    assert node.run(node.datapath.refused()) == [said] and other.run(other.datapath.refused()) == []
    assert [r.getMessage() for r in caplog.records if "8080" in r.getMessage()] == [said], "once"
    node.run(node.datapath.unpublish(place))
    assert node.run(node.datapath.compare()) == [] == node.run(node.datapath.refused())
    assert ask(pair.client, node.address, 8080)[0].startswith("10.0.0.")
