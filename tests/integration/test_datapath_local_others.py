"""The node's own networks beside what is not theirs: a cluster's networks, the host's routes, other programs' rules, and damage."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from local_world import ALL, CLIENT, RED, lay, lone_node, put, refused, restarted
from netlab import Lab, Node, apply_all, ask, attach, connect, line, ping, shell, within
from netlab_objects import endpoint, network, service

from skep.datapath import netlink, netns
from skep.datapath.base import HostPort, LocalNetwork, Place
from skep.errors import Conflict, SkepError

pytestmark = pytest.mark.root


@pytest.fixture(params=["plain", "aside"])
def one(request: pytest.FixtureRequest) -> Iterator[tuple[Lab, Node]]:
    with lone_node(request.param == "aside") as made:
        yield made


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
