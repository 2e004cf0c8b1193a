"""The node's own networks and its published ports: real namespaces, real packets, through the host's forwarding and past it."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from netlab import (
    Lab,
    Node,
    SystemClock,
    apply_all,
    ask,
    ask_udp,
    attach,
    bound,
    connect,
    endpoint,
    lab,
    line,
    network,
    ping,
    service,
    within,
)

from skep.datapath import netlink, netns
from skep.datapath.base import HostPort, LocalNetwork, LocalState, Place
from skep.datapath.router import host_networks
from skep.errors import Conflict, Forbidden, Invalid, NotFound, SkepError
from skep.model.spec import IPAMConfig
from skep.node.networks import Networks

pytestmark = pytest.mark.root
CLIENT = "192.168.77.99"
RED = LocalNetwork(id="red", name="red", group=17, subnet="172.18.0.0/16", gateway="172.18.0.1")
BLUE = LocalNetwork(id="blue", name="blue", group=18, subnet="172.19.0.0/16", gateway="172.19.0.1", mtu=1400)
INSIDE = LocalNetwork(id="inside", name="inside", group=19, subnet="172.20.0.0/16", gateway="172.20.0.1", internal=True)
LONE = LocalNetwork(id="lone", name="lone", group=20, subnet="172.21.0.0/16", gateway="172.21.0.1", isolated=True)
ALL = (RED, BLUE, INSIDE, LONE)


def shell(namespace: Path, *command: str) -> str:
    return within(namespace, lambda: subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def lay(node: Node, *networks: LocalNetwork) -> None:
    node.run(node.datapath.apply_local(LocalState(networks={n.id: n for n in networks})))


def put(it: Lab, node: Node, name: str, *places: tuple[LocalNetwork, int]) -> Path:
    """A container `name` with an address on each network, which answers on port 80 with its name; gives back its namespace."""
    made = tuple(Place(network_id=n.id, address=f"{n.subnet.removesuffix('.0.0/16')}.0.{last}/16") for n, last in places)
    path = Path(node.run(node.datapath.attach(name, made)).path)
    it.serve(path, 80, name)
    return path


def refused(source: Path, address: str, port: int = 80) -> None:
    with pytest.raises(OSError):
        ask(source, address, port, timeout=0.3)


@pytest.fixture(params=["plain", "aside"])
def one(request: pytest.FixtureRequest) -> Iterator[tuple[Lab, Node]]:
    """A node by itself, in no cluster; with `aside` its FORWARD chain drops, as after dockerd."""
    with lab() as it:
        it.client = it.namespace("client", CLIENT)
        it.serve(it.client, 90, "client")
        node = Node(it, 1)
        it.nodes.append(node)
        if request.param == "aside":
            iptables = shutil.which("iptables-legacy") or shutil.which("iptables") or pytest.skip("no iptables")
            shell(node.path, iptables, "-P", "FORWARD", "DROP")
            node.datapath = node.new_datapath(aside=True)
        node.run(node.datapath.start_up())
        lay(node, *ALL)
        yield it, node


def test_containers_of_one_network_reach_each_other_and_nobody_else(one: tuple[Lab, Node]) -> None:
    it, node = one
    inside = {n.id: (put(it, node, f"{n.id}-a", (n, 2)), put(it, node, f"{n.id}-b", (n, 3))) for n in ALL}
    for here in ALL:
        source = inside[here.id][0]
        for there in ALL:
            address = there.gateway[:-1] + "3"
            if here is there and not here.isolated:
                assert ask(source, address, 80) == (f"{there.id}-b", here.gateway[:-1] + "2")
                assert within(source, lambda address=address: ping(address))
            else:
                refused(source, address)
        assert within(source, lambda here=here: ping(here.gateway)), "its own gateway answers"
    assert not within(inside["red"][0], lambda: ping(BLUE.gateway))
    with pytest.raises(OSError, match="No route to host|Host is unreachable"):
        ask(inside["red"][0], "172.18.0.77", 80)


def test_a_spoofed_source_is_dropped(one: tuple[Lab, Node]) -> None:
    it, node = one
    source, target = put(it, node, "a", (RED, 2)), put(it, node, "b", (RED, 3))
    put(it, node, "c", (RED, 4))
    listener = within(target, lambda: bound(70, "udp"))
    listener.settimeout(0.3)

    def send(address: str) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.setsockopt(socket.IPPROTO_IP, 19, 1)  # IP_TRANSPARENT: any source address
            s.bind((address, 0))
            s.sendto(address.encode(), ("172.18.0.3", 70))

    with listener:
        for spoofed in ("172.18.0.4", "172.18.0.1", "172.19.0.2", "172.31.255.1", "8.8.8.8"):
            within(source, lambda spoofed=spoofed: send(spoofed))
            with pytest.raises(TimeoutError):
                listener.recv(100)
        within(source, lambda: send("172.18.0.2"))
        assert listener.recv(100) == b"172.18.0.2"


def test_the_way_out(one: tuple[Lab, Node]) -> None:
    it, node = one
    for number, net in enumerate((RED, BLUE, LONE)):
        source = put(it, node, net.id, (net, 2))
        assert ask(source, CLIENT, 90) == ("client", node.address), number
        assert within(source, lambda: ping(CLIENT))
    source = put(it, node, "shut", (INSIDE, 2))
    with pytest.raises(OSError, match="unreachable"):
        ask(source, CLIENT, 90)
    shell(source, "ip", "route", "add", "default", "via", INSIDE.gateway)
    refused(source, CLIENT, 90)


def test_the_host_and_its_containers(one: tuple[Lab, Node]) -> None:
    """The host reaches them by their addresses and appears as the gateway; they reach it there; the world reaches nobody so."""
    it, node = one
    it.serve(node.path, 5000, "host")
    it.serve(node.path, 5001, "host", "udp")
    shell(it.client, "ip", "route", "add", "172.16.0.0/12", "via", node.address)
    for net in ALL:
        address = net.gateway[:-1] + "2"
        source = put(it, node, net.id, (net, 2))
        assert ask(node.path, address, 80) == (net.id, net.gateway)
        assert within(node.path, lambda address=address: ping(address))
        assert ask(source, net.gateway, 5000) == ("host", address)
        assert ask_udp(source, net.gateway, 5001) == ("host", address)
        with pytest.raises(ConnectionRefusedError):
            ask(source, net.gateway, 5999)
        refused(it.client, address)
        assert not within(it.client, lambda address=address: ping(address))
    assert ask(Path(node.sandbox("red")), node.address, 5000)[0] == "host"


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


def test_interfaces_come_and_go_in_a_running_container(one: tuple[Lab, Node]) -> None:
    it, node = one
    inside = put(it, node, "c", (RED, 2))
    put(it, node, "red", (RED, 3))
    put(it, node, "blue", (BLUE, 3))
    held = connect(inside, "172.18.0.3", 80)
    refused(inside, "172.19.0.3")
    node.run(node.datapath.connect("c", Place(network_id="blue", address="172.19.0.2/16", mac="02:00:00:00:00:07")))
    assert node.datapath.networks_of("c") == ("red", "blue")
    assert ask(inside, "172.19.0.3", 80) == ("blue", "172.19.0.2")
    assert ask(node.sandbox("red"), "172.18.0.2", 80)[0] == ask(node.sandbox("blue"), "172.19.0.2", 80)[0] == "c"
    assert ask(node.path, "172.19.0.2", 80) == ("c", BLUE.gateway), "an answer leaves by the interface it was asked at"
    assert "02:00:00:00:00:07" in shell(inside, "ip", "link", "show", "eth1")
    assert "mtu 1400" in shell(inside, "ip", "link", "show", "eth1")
    assert "mtu 1500" in shell(inside, "ip", "link", "show", "eth0")
    # Docker's rule: the first by name
    assert "default via 172.19.0.1 dev eth1" in shell(inside, "ip", "route")
    assert line(held).endswith("172.18.0.2:" + str(held.getsockname()[1]))
    held.sendall(b"on\n")
    assert line(held) == "on"
    held.close()
    with pytest.raises(Conflict, match="endpoint with name c already exists in network blue"):
        node.run(node.datapath.connect("c", Place(network_id="blue", address="172.19.0.9/16")))
    with pytest.raises(Conflict, match=r"Address already in use: 172\.20\.0\.2/16"):
        put(it, node, "inside", (INSIDE, 2))
        node.run(node.datapath.connect("c", Place(network_id="inside", address="172.20.0.2/16")))
    with pytest.raises(Invalid, match="invalid MAC address: zz"):
        node.run(node.datapath.connect("c", Place(network_id="lone", address="172.21.0.2/16", mac="zz")))
    with pytest.raises(NotFound):
        node.run(node.datapath.connect("nobody", Place(network_id="lone", address="172.21.0.2/16")))
    node.run(node.datapath.publish("c", "172.18.0.2", (HostPort(target=80, published=8080),)))
    for _ in range(2):
        node.run(node.datapath.disconnect("c", "red"))
    assert node.datapath.networks_of("c") == ("blue",)
    refused(it.client, node.address, 8080)
    assert "eth0" not in shell(inside, "ip", "link") and "172.18" not in shell(inside, "ip", "route", "show", "table", "all")
    assert shell(inside, "ip", "rule").count("\n") == 3, "one interface needs no rules of its own"
    assert ask(inside, CLIENT, 90) == ("client", node.address)
    node.run(node.datapath.connect("c", Place(network_id="inside", address="172.20.0.9/16")))
    assert "eth0" in shell(inside, "ip", "link") and "default via 172.19.0.1 dev eth1" in shell(inside, "ip", "route")
    for name in ("blue", "inside"):
        node.run(node.datapath.disconnect("c", name))
    assert shell(inside, "ip", "-o", "link").count("\n") == 1
    node.run(node.datapath.connect("c", Place(network_id="red", address="172.18.0.9/16", priority=1)))
    assert ask(node.sandbox("red"), "172.18.0.9", 80) == ("c", "172.18.0.3")
    assert ask(inside, CLIENT, 90) == ("client", node.address)


def restarted(node: Node, **more: bool) -> None:
    aside = node.datapath._router.aside
    node.run(node.datapath.shut_down())
    node.datapath = node.new_datapath(aside=aside, **more)
    node.run(node.datapath.start_up())


def test_a_restart_keeps_everything(one: tuple[Lab, Node]) -> None:
    it, node = one
    put(it, node, "c", (RED, 2), (BLUE, 2))
    put(it, node, "red", (RED, 3))
    ports = (HostPort(target=80, published=8080), HostPort(target=80, published=8081, address=node.address))
    node.run(node.datapath.publish("c", "172.18.0.2", ports))
    held = connect(it.client, node.address, 8080)
    line(held)
    before = [shell(node.path, "ip", "route"), shell(node.path, "nft", "list", "ruleset")]
    restarted(node)
    # before anybody tells of the networks again, what was there works, also for newcomers
    put(it, node, "new", (RED, 4))
    assert ask(node.sandbox("new"), "172.18.0.2", 80) == ("c", "172.18.0.4")
    held.sendall(b"on\n")
    assert line(held) == "on"
    held.close()
    for port in (8080, 8081):
        assert ask(it.client, node.address, port) == ("c", CLIENT)
    lay(node, *ALL)
    assert [shell(node.path, "ip", "route"), shell(node.path, "nft", "list", "ruleset")] == before
    assert node.datapath.networks_of("c") == ("red", "blue")
    # what was taken away while it was not looking
    lay(node, RED)
    assert "172.19" not in shell(node.path, "ip", "route")
    refused(node.sandbox("c"), "172.19.0.3")


def test_a_reboot_begins_anew(one: tuple[Lab, Node]) -> None:
    it, node = one
    put(it, node, "c", (RED, 2))
    node.run(node.datapath.publish("c", "172.18.0.2", (HostPort(target=80, published=8080),)))
    node.run(node.datapath.destroy())
    assert "172." not in shell(node.path, "ip", "route")
    node.run(node.datapath.start_up())
    assert node.run(node.datapath.sandboxes()) == []
    lay(node, *ALL)
    put(it, node, "again", (RED, 2))
    node.run(node.datapath.publish("again", "172.18.0.2", (HostPort(target=80, published=8080),)))
    assert ask(it.client, node.address, 8080) == ("again", CLIENT)


def test_a_cluster_comes_and_goes_and_the_node_s_own_networks_stay(one: tuple[Lab, Node]) -> None:
    it, node = one
    put(it, node, "c", (RED, 2))
    node.run(node.datapath.publish("c", "172.18.0.2", (HostPort(target=80, published=8080),)))
    held = connect(it.client, node.address, 8080)
    line(held)
    node.run(node.datapath.join(node.address))
    # the network is not known yet: it is let in with the snapshot
    task = node.sandbox(attach(node, "10.0.0.5"))
    web = service("web", (8090, 80, "tcp"))
    apply_all(it, networks=[network()], services=[web], endpoints=[endpoint("web", node.id, "10.0.0.5")])
    it.serve(task, 80, "task")
    assert ask(it.client, node.address, 8090) == ("task", CLIENT)
    refused(node.sandbox("c"), "10.0.0.5")
    refused(task, "172.18.0.2")
    with pytest.raises(Conflict, match="port is already allocated"):
        node.run(node.datapath.publish("c", "172.18.0.2", (HostPort(target=80, published=8090),)))
    # on both
    node.run(node.datapath.connect("c", Place(network_id="ingress", address="10.0.0.6/24")))
    assert ask(node.sandbox("c"), "10.0.0.5", 80) == ("task", "10.0.0.6")
    restarted(node)
    lay(node, *ALL)
    assert ask(it.client, node.address, 8090) == ("task", CLIENT), "the cluster's part is left alone until the cluster speaks"
    assert ask(it.client, node.address, 8080) == ("c", CLIENT)
    node.run(node.datapath.join(node.address))
    apply_all(it, networks=[network()], services=[web], endpoints=[endpoint("web", node.id, "10.0.0.5")])
    node.run(node.datapath.leave())
    refused(it.client, node.address, 8090)
    assert "vx4096" not in shell(node.run_root / "router", "ip", "link")
    assert ask(it.client, node.address, 8080) == ("c", CLIENT)
    held.sendall(b"on\n")
    assert line(held) == "on"
    held.close()
    restarted(node)
    assert ask(it.client, node.address, 8080) == ("c", CLIENT)
    assert node.run(node.datapath.compare()) == []


def test_without_masquerading_the_world_sees_the_container_s_address() -> None:
    with lab(1) as it:
        node = it.nodes[0]
        it.client = it.namespace("client", CLIENT)
        it.serve(it.client, 90, "client")
        shell(it.client, "ip", "route", "add", RED.subnet, "via", node.address)
        lay(node, msgspec.structs.replace(RED, masquerade=False), BLUE)
        assert ask(put(it, node, "a", (RED, 2)), CLIENT, 90) == ("client", "172.18.0.2")
        assert ask(put(it, node, "b", (BLUE, 2)), CLIENT, 90) == ("client", node.address)
        refused(it.client, "172.18.0.2")
        node.run(node.datapath.destroy())
        node.datapath = node.new_datapath(aside=True)
        node.run(node.datapath.start_up())
        with pytest.raises(Invalid, match="^network red: without masquerading its packets need the host's forwarding"):
            lay(node, msgspec.structs.replace(RED, masquerade=False))


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


def test_others_rules_come_and_go_and_are_not_touched(one: tuple[Lab, Node]) -> None:
    """As firewalld does when it is reloaded: its own table goes and comes back; ours does not depend on it, and nor does it on ours."""
    it, node = one
    put(it, node, "c", (RED, 2))
    node.run(node.datapath.publish("c", "172.18.0.2", (HostPort(target=80, published=8080),)))
    theirs = "table inet theirs { chain f { type filter hook forward priority 10; policy accept; }; }"
    for _ in range(2):
        shell(node.path, "nft", f"add {theirs}")
        assert ask(it.client, node.address, 8080) == ("c", CLIENT)
        assert ask(node.sandbox("c"), CLIENT, 90) == ("client", node.address)
        before = shell(node.path, "nft", "list", "table", "inet", "theirs")
        restarted(node)
        lay(node, *ALL)
        node.run(node.datapath.compare())
        assert shell(node.path, "nft", "list", "table", "inet", "theirs") == before
        shell(node.path, "nft", "delete", "table", "inet", "theirs")
        assert ask(it.client, node.address, 8080) == ("c", CLIENT)
    others = {row for row in shell(node.path, "nft", "list", "tables").splitlines() if row != f"table ip {node.datapath._router.table}"}
    assert others <= {"table ip filter", "table ip nat"}


def test_an_overlay_that_comes_over_a_network_of_the_node_s_own_is_refused_there(
    one: tuple[Lab, Node], caplog: pytest.LogCaptureFixture
) -> None:
    it, node = one
    a = put(it, node, "a", (RED, 2))
    put(it, node, "b", (RED, 3))
    over = network(1, ingress=False, subnet="172.18.0.0/24", gateway="172.18.0.1")
    far = endpoint("web", "node2", "172.18.0.3", network_id="net1")
    said = (
        "network net1 cannot be laid on this node: its subnet 172.18.0.0/24 overlaps 172.18.0.0/16 of the node's own network red, which "
        "keeps it: remove that network, or make one of the two again with another subnet"
    )
    node.run(node.datapath.join(node.address))

    def works() -> None:
        assert ask(a, "172.18.0.3", 80) == ("b", "172.18.0.2") and ask(node.path, "172.18.0.3", 80)[0] == "b"
        assert within(node.sandbox("c"), lambda: ping("10.0.2.11"))
        assert node.run(node.datapath.compare()) == [] and node.run(node.datapath.refused()) == [said]
        assert node.run(node.datapath.standing()).refused == {"net1"}

    for _ in range(2):
        apply_all(it, networks=[over, network(2, ingress=False)], endpoints=[far])
    for name, address in (("c", "10.0.2.10"), ("d", "10.0.2.11")):
        node.run(node.datapath.attach(name, (Place(network_id="net2", address=f"{address}/24"),)))
    works()
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and "net1" in r.getMessage()] == [said]
    with pytest.raises(SkepError) as found:
        attach(node, "172.18.0.9", "net1")
    assert found.value.message == said and node.run(node.datapath.sandboxes()) == ["a", "b", "c", "d"]
    restarted(node)
    apply_all(it, networks=[over, network(2, ingress=False)], endpoints=[far])
    works()
    # the bridge goes: the overlay has its place
    for name in ("a", "b"):
        node.run(node.datapath.detach(name))
    lay(node)
    assert node.run(node.datapath.refused()) == [] == node.run(node.datapath.compare())
    attach(node, "172.18.0.9", "net1")
    attach(node, "172.18.0.10", "net1")
    assert within(node.sandbox("172-18-0-9"), lambda: ping("172.18.0.10"))


def test_an_overlay_over_the_node_s_way_to_its_router_is_refused_there(one: tuple[Lab, Node]) -> None:
    it, node = one
    a = put(it, node, "a", (RED, 2))
    subnet = node.datapath._router.uplink
    over = network(1, ingress=False, subnet=subnet, gateway=subnet.replace(".0/30", ".1"))
    far = endpoint("web", "node2", node.datapath._router.address, network_id="net1")
    node.run(node.datapath.join(node.address))
    apply_all(it, networks=[over, network(2, ingress=False)], endpoints=[far])
    said = (
        f"network net1 cannot be laid on this node: its subnet {subnet} overlaps {subnet} between the node and its router: make it again "
        "with another subnet, or set the node's `uplink`"
    )
    assert node.run(node.datapath.refused()) == [said] and node.run(node.datapath.compare()) == []
    assert ask(a, CLIENT, 90) == ("client", node.address)
    with pytest.raises(SkepError) as found:
        attach(node, node.datapath._router.address, "net1")
    assert found.value.message == said


def test_a_route_of_the_host_s_is_never_replaced(one: tuple[Lab, Node]) -> None:
    _, node = one
    shell(node.path, "ip", "route", "add", "172.25.0.0/16", "via", CLIENT)
    taken = LocalNetwork(id="taken", name="taken", group=22, subnet="172.25.0.0/16", gateway="172.25.0.1")
    lay(node, *ALL, taken)
    assert f"172.25.0.0/16 via {CLIENT}" in shell(node.path, "ip", "route")
    lay(node, *ALL)
    assert f"172.25.0.0/16 via {CLIENT}" in shell(node.path, "ip", "route")


def test_the_user_s_chain_is_asked_for_local_networks_too(one: tuple[Lab, Node]) -> None:
    it, node = one
    put(it, node, "c", (RED, 2))
    node.run(node.datapath.publish("c", "172.18.0.2", (HostPort(target=80, published=8080),)))
    shell(node.run_root / "router", "nft", "add", "rule", "ip", node.datapath._router.table, "user", "ip", "saddr", CLIENT, "drop")
    refused(it.client, node.address, 8080)
    restarted(node)
    lay(node, *ALL)
    refused(it.client, node.address, 8080)
    assert ask(node.path, node.address, 8080)[0] == "c"


def test_what_is_lost_in_the_kernel_is_mended(one: tuple[Lab, Node]) -> None:
    it, node = one
    put(it, node, "c", (RED, 2))
    node.run(node.datapath.publish("c", "172.18.0.2", (HostPort(target=80, published=8080),)))
    shell(node.path, "ip", "route", "del", RED.subnet)
    shell(node.run_root / "router", "ip", "route", "del", "172.18.0.2")
    assert len(node.run(node.datapath.compare())) >= 2
    assert ask(node.path, "172.18.0.2", 80) == ("c", RED.gateway)
    assert ask(it.client, node.address, 8080) == ("c", CLIENT)
    assert node.run(node.datapath.compare()) == []
    assert netns.pinned(node.run_root / "router")
    with netlink.Socket() as here:
        assert not here.index(node.datapath._router.link), "nothing of it is in this machine's own namespace"


def test_when_everything_is_flushed_a_comparison_brings_ours_back(one: tuple[Lab, Node]) -> None:
    it, node = one
    put(it, node, "c", (RED, 2))
    ports = (HostPort(target=80, published=8080), HostPort(target=80, published=8081, address="127.0.0.1"))
    node.run(node.datapath.publish("c", "172.18.0.2", ports))
    shell(node.path, "nft", "flush", "ruleset")
    refused(it.client, node.address, 8080)
    shell(node.run_root / "router", "nft", "flush", "ruleset")
    assert node.run(node.datapath.compare())
    assert ask(it.client, node.address, 8080) == ("c", CLIENT)
    assert ask(node.path, "127.0.0.1", 8081) == ("c", RED.gateway)
    refused(it.client, "172.18.0.2")


def test_networks_made_by_the_user(one: tuple[Lab, Node]) -> None:
    """From the record on disk to the wire, and over a restart and a reboot."""
    it, node = one
    folder = it.folder / "networks"

    def networks() -> Networks:
        name = node.datapath._router.name
        made = Networks(folder, node.datapath, SystemClock(), random.Random(), host=lambda: host_networks(name))
        node.run(made.start_up())
        return made

    async def begin(kept: Networks, reference: str, name: str) -> str:
        network = kept.get(reference)
        assert network is not None
        place = await kept.reserve(network.id, name, names=(name,))
        await node.datapath.attach(name, (Place(network_id=network.id, address=place.address, gateway=place.gateway, mac=place.mac),))
        return place.address.partition("/")[0]

    shell(node.path, "ip", "link", "add", "docker0", "type", "bridge")
    shell(node.path, "ip", "addr", "add", "172.17.0.1/16", "dev", "docker0")
    kept = networks()
    assert [n.subnet for n in kept.state().networks.values()] == ["172.18.0.0/16"], "what another engine has is left to it"
    mine = node.run(kept.create("mine"))
    assert mine.ipam[0].subnet == "172.19.0.0/16"
    first, second = (node.run(begin(kept, "mine", name)) for name in ("first", "second"))
    alone = node.run(begin(kept, "bridge", "alone"))
    it.serve(node.sandbox("second"), 80, "second")
    assert ask(node.sandbox("first"), second, 80) == ("second", first)
    refused(node.sandbox("alone"), second)
    assert alone == "172.18.0.2" and ask(node.sandbox("alone"), CLIENT, 90) == ("client", node.address)
    with pytest.raises(Forbidden, match="Pool overlaps with other one on this address space: this host has an address in 192.168.77.0/24"):
        node.run(kept.create("lan", ipam=(IPAMConfig(subnet="192.168.77.0/24"),)))
    restarted(node)
    again = networks()
    assert {n.name for n in again.all()} == {n.name for n in kept.all()}
    assert ask(node.sandbox("first"), second, 80) == ("second", first)
    assert {e.sandbox_id for e in again.endpoints(mine.id)} == {"first", "second"}
    node.run(node.datapath.destroy())
    node.run(node.datapath.start_up())
    last = networks()
    assert last.endpoints(mine.id) == []
    node.run(begin(last, "mine", "third"))
    it.serve(node.sandbox("third"), 80, "third")
    node.run(begin(last, "mine", "fourth"))
    assert ask(node.sandbox("fourth"), last.endpoints_of("third")[0].address.partition("/")[0], 80)[0] == "third"
    for name in ("third", "fourth"):
        node.run(node.datapath.detach(name))
        node.run(last.release(name))
    node.run(last.remove("mine"))
    assert "172.19" not in shell(node.path, "ip", "route") + shell(node.path, "nft", "list", "ruleset")
    assert "172.19" not in shell(node.run_root / "router", "nft", "list", "ruleset") + shell(node.run_root / "router", "ip", "addr")
