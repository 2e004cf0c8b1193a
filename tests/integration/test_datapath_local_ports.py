"""Ports of containers on the node's own networks: real namespaces, real packets, through the host's forwarding and past it."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from local_world import ALL, BLUE, CLIENT, INSIDE, RED, lay, lone_node, put, refused
from netlab import (
    Lab,
    Node,
    ask,
    ask_udp,
    shell,
    within,
)

from skep.datapath.base import HostPort, LocalNetwork
from skep.errors import Conflict, Invalid

pytestmark = pytest.mark.root


@pytest.fixture(params=["plain", "aside"])
def one(request: pytest.FixtureRequest) -> Iterator[tuple[Lab, Node]]:
    with lone_node(request.param == "aside") as made:
        yield made


def test_ports(one: tuple[Lab, Node]) -> None:
    it, node = one
    web, other, far = put(it, node, "web", (RED, 2)), put(it, node, "other", (RED, 3)), put(it, node, "far", (BLUE, 2))
    it.serve(web, 53, "web", "udp")
    wanted = (HostPort(target=80, published=8080), HostPort(target=53, protocol="udp", published=5353), HostPort(target=80))
    given = node.run(node.datapath.publish("web", "172.18.0.2", wanted))
    assert given[:2] == wanted[:2] and 32768 <= given[2].published < 61000
    for port in (8080, given[2].published):
        assert ask(it.client, node.address, port) == ("web", CLIENT), "from outside"
        assert ask(node.path, node.address, port) == ("web", node.address), "from the host"
        assert ask(node.path, "127.0.0.1", port) == ("web", RED.gateway), "from the host's loopback"
        assert ask(other, node.address, port) == ("web", "172.18.0.3"), "from a neighbour"
        assert ask(far, node.address, port) == ("web", "172.19.0.2"), "from another network"
        assert ask(other, RED.gateway, port) == ("web", "172.18.0.3"), "at the gateway"
        assert ask(web, node.address, port) == ("web", RED.gateway), "from itself"
        assert ask(web, RED.gateway, port) == ("web", RED.gateway), "from itself at the gateway"
    assert ask_udp(it.client, node.address, 5353) == ("web", CLIENT)
    assert ask_udp(node.path, "127.0.0.1", 5353)[0] == "web"
    assert ask_udp(other, node.address, 5353) == ("web", "172.18.0.3")
    assert ask_udp(web, node.address, 5353) == ("web", RED.gateway)
    shut = put(it, node, "shut", (INSIDE, 2))
    refused(shut, INSIDE.gateway, 8080)
    node.run(node.datapath.unpublish("web"))
    for source, address in ((it.client, node.address), (node.path, "127.0.0.1"), (other, RED.gateway)):
        with pytest.raises(ConnectionRefusedError):
            ask(source, address, 8080)


def test_ports_at_one_address_of_the_host(one: tuple[Lab, Node]) -> None:
    it, node = one
    second = "192.168.77.201"
    shell(node.path, "ip", "addr", "add", f"{second}/24", "dev", "eth0")
    for last, at in ((2, "127.0.0.1"), (3, node.address), (4, second), (5, RED.gateway)):
        put(it, node, f"c{last}", (RED, last))
        it.serve(node.sandbox(f"c{last}"), 53, f"c{last}", "udp")
        ports = (HostPort(target=80, published=8080, address=at), HostPort(target=53, protocol="udp", published=5353, address=at))
        assert node.run(node.datapath.publish(f"c{last}", f"172.18.0.{last}", ports)) == ports
    assert ask(it.client, node.address, 8080) == ("c3", CLIENT)
    assert ask(it.client, second, 8080) == ("c4", CLIENT)
    assert ask_udp(it.client, second, 5353) == ("c4", CLIENT)
    assert ask(node.path, "127.0.0.1", 8080) == ("c2", RED.gateway)
    assert ask(node.path, node.address, 8080)[0] == "c3"
    assert ask(node.path, second, 8080)[0] == "c4"
    assert ask_udp(node.path, "127.0.0.1", 5353)[0] == "c2"
    neighbour = put(it, node, "neighbour", (RED, 9))
    assert ask(neighbour, node.address, 8080) == ("c3", "172.18.0.9")
    assert ask(neighbour, RED.gateway, 8080) == ("c5", "172.18.0.9")
    assert ask(node.sandbox("c4"), second, 8080) == ("c4", RED.gateway), "from itself"
    with pytest.raises(Conflict, match=r"^failed to bind host port for 0\.0\.0\.0:8080:172\.18\.0\.9:80/tcp: address already in use$"):
        node.run(node.datapath.publish("neighbour", "172.18.0.9", (HostPort(target=80, published=8080),)))
    with pytest.raises(Conflict, match=r"^Bind for 127\.0\.0\.1:8080 failed: port is already allocated$"):
        node.run(node.datapath.publish("neighbour", "172.18.0.9", (HostPort(target=80, published=8080, address="127.0.0.1"),)))
    with pytest.raises(Conflict, match="cannot assign requested address"):
        node.run(node.datapath.publish("neighbour", "172.18.0.9", (HostPort(target=80, published=8080, address="192.0.2.1"),)))
    node.run(node.datapath.detach("c4"))
    refused(it.client, second, 8080)


def test_what_is_taken_is_said_and_nothing_is_half_published(one: tuple[Lab, Node]) -> None:
    it, node = one
    put(it, node, "a", (RED, 2))
    put(it, node, "b", (RED, 3))
    it.serve(node.path, 8082, "host")

    def publish(name: str, last: int, *ports: HostPort) -> tuple[HostPort, ...]:
        return node.run(node.datapath.publish(name, f"172.18.0.{last}", ports))

    publish("a", 2, HostPort(target=80, published=8080))
    with pytest.raises(Conflict, match=r"^Bind for 0\.0\.0\.0:8080 failed: port is already allocated$"):
        publish("b", 3, HostPort(target=80, published=8081), HostPort(target=80, published=8080))
    with pytest.raises(Conflict, match=r"^failed to bind host port for 0\.0\.0\.0:8082:172\.18\.0\.3:80/tcp: address already in use$"):
        publish("b", 3, HostPort(target=80, published=8081), HostPort(target=80, published=8082))
    refused(it.client, node.address, 8081)
    range_of = HostPort(target=80, published=8080, last=8084)
    assert [p.published for p in publish("b", 3, range_of, range_of, range_of)] == [8081, 8083, 8084]
    with pytest.raises(Conflict, match="^all ports are allocated$"):
        publish("a", 2, HostPort(target=80, published=8081, last=8084))
    assert ask(it.client, node.address, 8080) == ("a", CLIENT), "what it had it keeps"
    assert ask(it.client, node.address, 8084) == ("b", CLIENT)
    for wrong, words in (
        (HostPort(target=80, protocol="icmp"), "invalid proto: icmp"),
        (HostPort(target=80, published=70000), "invalid port: 70000"),
        (HostPort(target=80, published=80, address="::1"), "IPv4 addresses only"),
    ):
        with pytest.raises(Invalid, match=words):
            publish("b", 3, wrong)
    put(it, node, "shut", (INSIDE, 2))
    with pytest.raises(Invalid, match="^port 80 cannot be published at 172.20.0.2: its network is internal$"):
        node.run(node.datapath.publish("shut", "172.20.0.2", (HostPort(target=80, published=9000),)))


def test_a_network_s_own_binding(one: tuple[Lab, Node]) -> None:
    it, node = one
    lay(node, *ALL, LocalNetwork(id="own", name="own", group=21, subnet="172.22.0.0/16", gateway="172.22.0.1", binding="127.0.0.1"))
    put(it, node, "a", (LocalNetwork(id="own", group=21, subnet="172.22.0.0/16", gateway="172.22.0.1"), 2))
    given = node.run(node.datapath.publish("a", "172.22.0.2", (HostPort(target=80, published=8080),)))
    assert given == (HostPort(target=80, published=8080, address="127.0.0.1"),)
    assert ask(node.path, "127.0.0.1", 8080)[0] == "a"
    refused(it.client, node.address, 8080)
    open_to_all = HostPort(target=80, published=8081, address="0.0.0.0")
    assert node.run(node.datapath.publish("a", "172.22.0.2", (open_to_all,)))[0].published == 8081
    assert ask(it.client, node.address, 8081) == ("a", CLIENT)


def test_sctp(one: tuple[Lab, Node]) -> None:
    it, node = one
    put(it, node, "a", (RED, 2))
    try:
        listener = within(node.sandbox("a"), lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132))
    except OSError:
        pytest.skip("this kernel has no SCTP")
    with listener:
        listener.bind(("", 80))
        listener.listen()
        node.run(node.datapath.publish("a", "172.18.0.2", (HostPort(target=80, protocol="sctp", published=8080),)))
        for source, address in ((it.client, node.address), (node.path, "127.0.0.1")):
            with within(source, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)) as s:
                s.settimeout(3)
                s.connect((address, 8080))
                connection, _ = listener.accept()
                connection.close()


def test_a_udp_flow_follows_its_port_to_the_next_container(one: tuple[Lab, Node]) -> None:
    it, node = one
    for at in ("", node.address):
        flow = within(it.client, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with flow:
            flow.settimeout(3)
            flow.connect((node.address, 53))
            # one that goes nowhere yet, and would go on doing so
            flow.send(b"x")
            with pytest.raises(ConnectionRefusedError):
                flow.recv(100)
            for name, last in (("a", 2), ("b", 3)):
                put(it, node, name, (RED, last))
                it.serve(node.sandbox(name), 53, name, "udp")
                node.run(node.datapath.publish(name, f"172.18.0.{last}", (HostPort(target=53, protocol="udp", published=53, address=at),)))
                flow.send(b"x")
                assert flow.recv(100).startswith(name.encode()), at
                node.run(node.datapath.detach(name))
