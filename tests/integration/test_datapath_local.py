"""The node's own networks: real namespaces, real packets, through the host's forwarding and past it."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from local_world import ALL, BLUE, CLIENT, INSIDE, LONE, RED, lay, lone_node, put, refused, restarted
from netlab import (
    Lab,
    Node,
    SystemClock,
    ask,
    ask_udp,
    bound,
    connect,
    lab,
    line,
    ping,
    shell,
    within,
)

from skep.datapath.base import HostPort, Place
from skep.datapath.router import host_networks
from skep.errors import Conflict, Forbidden, Invalid, NotFound
from skep.model.spec import IPAMConfig
from skep.node.networks import Networks

pytestmark = pytest.mark.root


@pytest.fixture(params=["plain", "aside"])
def one(request: pytest.FixtureRequest) -> Iterator[tuple[Lab, Node]]:
    with lone_node(request.param == "aside") as made:
        yield made


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
        listener.settimeout(3)
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
