"""The data path as a whole: what it leaves when it goes, what others have taken, the nft program alone. Real namespaces and packets."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from netlab import Lab, Node, apply_all, ask, ask_udp, attach, bound, lab, lone, ping, shell, within
from netlab_objects import endpoint, network, service

from skep.datapath import netlink, netns
from skep.datapath.base import HostPort, Place
from skep.errors import SkepError

pytestmark = pytest.mark.root
CLIENT = "192.168.77.99"
NETWORKS = [network(), network(1, ingress=False), network(2, ingress=False, internal=True)]


@pytest.fixture
def alone() -> Iterator[tuple[Lab, Node]]:
    with lone(CLIENT) as made:
        yield made


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
