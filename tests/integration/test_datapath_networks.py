"""Networks beside each other, sandboxes, ports of one node, and what destroy leaves: real namespaces, real packets."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from netlab import Lab, Node, apply_all, ask, ask_udp, attach, bound, endpoint, lab, network, ping, service, snapshot, within

from skep.datapath import netlink, netns
from skep.datapath.base import HostPort, Place
from skep.errors import Conflict, Invalid, NotFound, SkepError

pytestmark = pytest.mark.root
CLIENT = "192.168.77.99"
NETWORKS = [network(), network(1, ingress=False), network(2, ingress=False, internal=True)]


def shell(namespace: Path, *command: str) -> str:
    return within(namespace, lambda: subprocess.run(command, capture_output=True, text=True, check=True).stdout)


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
    with lab(1) as it:
        it.client = it.namespace("client", CLIENT)
        apply_all(it)
        yield it, it.nodes[0]


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


# -- the whole


def test_the_user_s_chain_is_asked_and_kept(alone: tuple[Lab, Node]) -> None:
    it, node = alone
    it.serve(node.sandbox(attach(node, "10.0.0.5")), 80, "c5")
    web = {"services": [service("web", (8080, 80, "tcp"))], "endpoints": [endpoint("web", node.id, "10.0.0.5")]}
    apply_all(it, **web)
    table = node.datapath._router.table
    shell(node.run_root / "router", "nft", "add", "rule", "ip", table, "user", "ip", "saddr", CLIENT, "reject")
    with pytest.raises(ConnectionRefusedError):
        ask(it.client, node.address, 8080)
    node.run(node.datapath.shut_down())
    node.datapath = node.new_datapath()
    node.run(node.datapath.start_up())
    apply_all(it, **web)
    with pytest.raises(ConnectionRefusedError):
        ask(it.client, node.address, 8080)


def test_destroy_leaves_nothing_and_touches_nothing_of_others() -> None:
    with lab() as it:
        it.client = it.namespace("client", CLIENT)
        it.add_nodes(1)
        node = it.nodes[0]
        shell(node.path, "nft", "add table ip theirs { chain c { type filter hook forward priority 0; }; }")
        before = [shell(node.path, *c) for c in (("nft", "list", "ruleset"), ("ip", "-o", "link"), ("ip", "route"), ("ip", "rule"))]
        mounts = Path("/proc/self/mountinfo").read_text()
        node.run(node.datapath.destroy())
        for round in range(2):
            node.datapath = node.new_datapath()
            node.run(node.datapath.start_up())
            apply_all(it, services=[service("web", (8080, 80, "tcp"))])
            it.serve(node.sandbox(attach(node, "10.0.0.5")), 80, "c5")
            apply_all(it, services=[service("web", (8080, 80, "tcp"))], endpoints=[endpoint("web", node.id, "10.0.0.5")])
            assert ask(it.client, node.address, 8080) == ("c5", CLIENT)
            if round:
                # as after a kill -9: another object, nothing open
                node.run(node.datapath.shut_down())
                node.datapath = node.new_datapath()
            node.run(node.datapath.destroy())
            node.run(node.datapath.destroy())
            after = [shell(node.path, *c) for c in (("nft", "list", "ruleset"), ("ip", "-o", "link"), ("ip", "route"), ("ip", "rule"))]
            assert "skep" not in after[0] and "theirs" in after[0]
            assert after[1].count("\n") == 2 and "172.31" not in after[2] and after[3] == before[3]
            assert list(node.run_root.iterdir()) == []
        left = set(Path("/proc/self/mountinfo").read_text().splitlines()) - set(mounts.splitlines())
        assert not [m for m in left if str(node.run_root) in m]


def test_a_node_whose_pins_are_lost_begins_anew(alone: tuple[Lab, Node]) -> None:
    """Its mount namespace died with it, its network namespace did not: what is left is swept up, and the VNI is had again."""
    it, node = alone
    web = {"services": [service("web", (8080, 80, "tcp"))], "endpoints": [endpoint("web", node.id, "10.0.0.5")]}
    attach(node, "10.0.0.5")
    apply_all(it, **web)
    node.run(node.datapath.shut_down())
    for pin in (node.run_root / "router", node.sandbox("10-0-0-5")):
        netns.remove(pin)
        pin.touch()
    node.datapath = node.new_datapath()
    node.run(node.datapath.start_up())
    assert node.run(node.datapath.sandboxes()) == []
    it.serve(node.sandbox(attach(node, "10.0.0.5")), 80, "again")
    apply_all(it, **web)
    assert ask(it.client, node.address, 8080) == ("again", CLIENT)


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


TAKEN = (
    "network net1 cannot be laid on this node: VXLAN id 4097 on UDP port 4789 is taken on this host by another program "
    "(dockerd with a swarm, say): end what has it, or make the network again with another id"
)


def test_a_network_whose_vni_another_holds_fails_alone(
    alone: tuple[Lab, Node], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from skep.datapath import kernel

    monkeypatch.setattr(kernel, "VNI_WAIT", 0.0)
    it, node = alone
    shell(node.path, "ip", "link", "add", "theirs", "type", "vxlan", "id", "4097", "dstport", "4789", "nolearning")
    for _ in range(3):
        apply_all(it, networks=NETWORKS)
        assert node.run(node.datapath.compare()) == [] and node.run(node.datapath.explain()) == []
    assert [r.getMessage()[: len(TAKEN)] for r in caplog.records if r.levelname == "WARNING"] == [TAKEN], "said once"
    assert [sentence[: len(TAKEN)] for sentence in node.run(node.datapath.refused())] == [TAKEN]
    # everything else: the other networks, ports of this node
    a = attach(node, "10.0.2.10", "net2")
    attach(node, "10.0.2.11", "net2")
    assert within(node.sandbox(a), lambda: ping("10.0.2.11"))
    it.serve(node.sandbox(attach(node, "10.0.0.9")), 80, "published")
    node.run(node.datapath.publish("10-0-0-9", "10.0.0.9", (HostPort(target=80, published=8088),)))
    assert ask(it.client, node.address, 8088)[0] == "published"
    # who asks for it is told why, and nothing of him is left
    for _ in range(2):
        with pytest.raises(SkepError, match="^" + re.escape(TAKEN)):
            attach(node, "10.0.1.10", "net1")
    with pytest.raises(SkepError, match="^" + re.escape(TAKEN)):
        node.run(node.datapath.connect(a, Place(network_id="net1", address="10.0.1.10/24")))
    assert node.run(node.datapath.sandboxes()) == ["10-0-0-9", "10-0-2-10", "10-0-2-11"]
    # another start finds the same
    node.run(node.datapath.shut_down())
    node.datapath = node.new_datapath()
    node.run(node.datapath.start_up())
    apply_all(it, networks=NETWORKS)
    assert ask(it.client, node.address, 8088)[0] == "published" and len(node.run(node.datapath.refused())) == 1
    shell(node.path, "ip", "link", "del", "theirs")
    assert node.run(node.datapath.compare()) == [] == node.run(node.datapath.refused())
    attach(node, "10.0.1.10", "net1")
    attach(node, "10.0.1.11", "net1")
    assert within(node.sandbox("10-0-1-10"), lambda: ping("10.0.1.11"))
    assert "vx4097" in shell(node.run_root / "router", "ip", "-o", "link")


def test_a_udp_port_that_another_program_has_leaves_the_node_s_own_ports(alone: tuple[Lab, Node]) -> None:
    it, node = alone
    sandbox = attach(node, "10.0.0.9")
    it.serve(node.sandbox(sandbox), 80, "published")
    apply_all(it, networks=[])
    with within(node.path, lambda: bound(4789, "udp")):
        apply_all(it)
        node.run(node.datapath.publish(sandbox, "10.0.0.9", (HostPort(target=80, published=8088),)))
        assert "UDP port 4789 is taken on this host" in node.run(node.datapath.refused())[0]
        assert ask(node.path, node.address, 8088)[0] == "published"
    assert node.run(node.datapath.compare()) == [] == node.run(node.datapath.refused())
    assert node.run(node.datapath.explain()) == []


def test_a_forward_chain_that_drops_is_passed_by_aside() -> None:
    """A host on which dockerd has set FORWARD to DROP: with `aside` published ports and egress work all the same."""
    with lab() as it:
        it.client = it.namespace("client", CLIENT)
        it.serve(it.client, 90, "client")
        iptables = shutil.which("iptables-legacy") or shutil.which("iptables") or pytest.skip("no iptables")
        for number in (1, 2):
            node = Node(it, number)
            it.nodes.append(node)
            shell(node.path, iptables, "-P", "FORWARD", "DROP")
            if Path("/proc/sys/net/bridge").exists():
                within(node.path, lambda: netns.set_sysctls({"net.bridge.bridge-nf-call-iptables": "1"}))
            node.datapath = node.new_datapath(aside=True)
            node.run(node.datapath.start_up())
        one, two = it.nodes
        apply_all(it)
        it.serve(one.sandbox(attach(one, "10.0.0.5")), 80, "c5")
        it.serve(one.sandbox("10-0-0-5"), 53, "c5", "udp")
        web = service("web", (8080, 80, "tcp"), (8053, 53, "udp"))
        apply_all(it, services=[web], endpoints=[endpoint("web", one.id, "10.0.0.5")])
        for node in (one, two):
            assert ask(it.client, node.address, 8080) == ("c5", CLIENT)
            assert ask_udp(it.client, node.address, 8053) == ("c5", CLIENT)
            assert ask(node.path, node.address, 8080) == ("c5", node.address)
            assert ask(node.path, "127.0.0.1", 8080)[0] == "c5"
        assert ask(one.sandbox("10-0-0-5"), CLIENT, 90) == ("client", one.address)
        assert within(one.sandbox("10-0-0-5"), lambda: ping(CLIENT))
        # the plain way does not: else this test would prove nothing
        two.run(two.datapath.destroy())
        two.datapath = two.new_datapath()
        two.run(two.datapath.start_up())
        apply_all(it, services=[web], endpoints=[endpoint("web", one.id, "10.0.0.5")])
        with pytest.raises(TimeoutError):
            ask(it.client, two.address, 8080, timeout=1)


def test_the_kernel_s_and_nft_s_own_words_come_back(alone: tuple[Lab, Node]) -> None:
    _, node = alone
    from skep.datapath import nft

    def wrong(library: bool) -> str:
        fd = netns.opened()
        handle = nft.rules(fd, library=library)
        with pytest.raises(nft.NftError) as caught:
            handle.run("add table ip ok\nadd rule ip nowhere c accept\n")
        handle.close()
        assert "^" in caught.value.details
        assert "ok" not in subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
        return caught.value.message

    for library in (True, False):
        message = within(node.path, lambda library=library: wrong(library))
        assert "\n" not in message and message.startswith("nft: ") and "nowhere" in message

    def refused() -> None:
        with netlink.Socket() as net:
            net.send([netlink.route("10.1.1.1", 32, index=999)])

    with pytest.raises(netlink.NetlinkError, match=r"route replace 10.1.1.1/32 table 254: .+"):
        within(node.path, refused)


def test_everything_works_with_the_nft_program_alone() -> None:
    """Where libnftables is missing."""
    from skep.datapath import nft

    with lab(1) as it:
        node = it.nodes[0]
        router = node.datapath._router

        def swap() -> None:
            router.host_rules, router.net_rules = nft.rules(router.host_fd, library=False), nft.rules(router.fd, library=False)

        swap()
        it.client = it.namespace("client", CLIENT)
        it.serve(node.sandbox(attach(node, "10.0.0.5")), 80, "c5")
        for _ in range(2):
            apply_all(it, services=[service("web", (8080, 80, "tcp"))], endpoints=[endpoint("web", node.id, "10.0.0.5")])
            assert ask(it.client, node.address, 8080) == ("c5", CLIENT)
            apply_all(it)
