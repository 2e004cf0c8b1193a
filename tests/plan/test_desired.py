"""What ought to be in a node's kernel, for given snapshots."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skep.datapath.base import Snapshot
from skep.datapath.desired import Here, LocalPlace, LocalPort, Wanted, container_mac, desired, link_address, link_mac, source_ports
from skep.datapath.facts import HOST, KEPT, MAIN, ROUTER, Address, Chain, Element, Fact, Forwarding, Group, Neighbour, Route, Rule, Vxlan
from skep.model.assignment import DiscoveryItem, EndpointItem, NetworkItem, PeerItem, ServiceItem
from skep.model.network import Network
from skep.model.spec import IPAMConfig, NetworkSpec, PortConfig

HERE = Here(address="192.168.1.1", mtu=1500)


def net(id: str = "ingress", vni: int = 4096, subnet: str = "10.0.0.0/24", gateway: str = "10.0.0.1", **spec: bool) -> NetworkItem:
    return NetworkItem(
        network=Network(id=id, spec=NetworkSpec(name=id, **spec), ipam=(IPAMConfig(subnet=subnet, gateway=gateway),), vni=vni)
    )


INGRESS = net(ingress=True)
OVERLAY = net("net1", 4097, "10.0.1.0/24", "10.0.1.1")


def peer(index: int) -> PeerItem:
    return PeerItem(node_id=f"n{index}", index=index, address=f"192.168.1.{index}")


def endpoint(node: str, address: str, *, service: str = "web", network: str = "ingress", serving: bool = True) -> EndpointItem:
    return EndpointItem(task_id=f"t-{address}", service_id=service, network_id=network, node_id=node, address=address, serving=serving)


def discovery(service: str = "web", vip: str = "10.0.0.200", *, network: str = "ingress") -> DiscoveryItem:
    return DiscoveryItem(service_id=service, network_id=network, name=service, vip=vip)


def web(*ports: PortConfig) -> ServiceItem:
    return ServiceItem(service_id="web", name="web", ports=ports or (PortConfig(protocol="tcp", target_port=80, published_port=8080),))


def snap(
    networks: tuple[NetworkItem, ...] = (INGRESS,),
    peers: tuple[PeerItem, ...] = (peer(1), peer(2)),
    endpoints: tuple[EndpointItem, ...] = (),
    services: tuple[ServiceItem, ...] = (),
    known: tuple[DiscoveryItem, ...] = (),
) -> Snapshot:
    return Snapshot(
        node_id="n1",
        networks={n.key: n for n in networks},
        peers={p.key: p for p in peers},
        endpoints={e.key: e for e in endpoints},
        services={s.key: s for s in services},
        discovery={d.key: d for d in known},
    )


def place(address: str, network: str = "ingress", group: int = 0) -> LocalPlace:
    return LocalPlace(sandbox_id=f"s-{address}", network_id=network, address=address, link=f"v-{address[-3:]}", group=group)


def want(snapshot: Snapshot, *places: LocalPlace, ports: tuple[LocalPort, ...] = ()) -> Wanted:
    return desired(snapshot, HERE, places, ports)


def test_one_network_and_one_other_node() -> None:
    assert want(snap()).facts == {
        Vxlan("vx4096", 4096, 4096, "02:fe:00:00:00:01", 4789, "192.168.1.1", 1450),
        Address("vx4096", "169.254.0.1"),
        Address("lo", "10.0.0.1"),
        Neighbour("vx4096", "169.254.0.2", "02:fe:00:00:00:02"),
        Forwarding("vx4096", "02:fe:00:00:00:02", "192.168.1.2"),
        Route(MAIN, "169.254.0.2", "", "vx4096"),
        Route(102, "", "169.254.0.2", "vx4096"),
        Rule(0, MAIN),
        Rule(2, 102),
        Element(ROUTER, "samenet", "4096 . 4096"),
        Element(ROUTER, "egress", "4096"),
        Element(ROUTER, "ovl", "10.0.0.0/24"),
        Element(ROUTER, "own", "4096 . 10.0.0.1"),
        Element(ROUTER, "mesh", "vx4096"),
        Element(ROUTER, "ways", "02:fe:00:00:00:02", "2"),
        Chain(ROUTER, "ports", ("meta l4proto { tcp, udp } snat to :1024-17151",)),
    }


def test_only_ingress_is_meshed_and_internal_networks_have_no_egress() -> None:
    facts = want(snap(networks=(OVERLAY,))).facts
    assert not [f for f in facts if isinstance(f, Rule) or isinstance(f, Element) and f.set in ("mesh", "ways")]
    assert Element(ROUTER, "egress", "4097") in facts
    inside = net("net1", 4097, "10.0.1.0/24", "10.0.1.1", internal=True)
    assert want(snap(networks=(inside,))).facts == facts - {Element(ROUTER, "egress", "4097")}


def test_networks_are_joined_with_themselves_only() -> None:
    pairs = {f.key for f in want(snap(networks=(INGRESS, OVERLAY))).facts if isinstance(f, Element) and f.set == "samenet"}
    assert pairs == {"4096 . 4096", "4097 . 4097"}


def test_remote_and_local_endpoints() -> None:
    both = (endpoint("n2", "10.0.0.6"), endpoint("n1", "10.0.0.5"))
    wanted = want(snap(endpoints=both, services=(web(),)), place("10.0.0.5"))
    assert Route(MAIN, "10.0.0.6", "169.254.0.2", "vx4096") in wanted.facts
    assert Route(MAIN, "10.0.0.5", "", "v-0.5") in wanted.facts
    assert Group("v-0.5", 4096) in wanted.facts
    chain = next(f for f in wanted.facts if isinstance(f, Chain) and f.name == "p_tcp_8080")
    assert chain.body == (
        "meta l4proto tcp dnat ip to numgen random mod 2 map { 0 : 10.0.0.5 . 80, 1 : 10.0.0.6 . 80 }",
        "meta l4proto tcp dnat to 10.0.0.5:80",
    )
    assert Element(ROUTER, "pub", "tcp . 8080", "goto p_tcp_8080") in wanted.facts
    assert Element(HOST, "pub", "tcp . 8080") in wanted.facts
    assert wanted.present == {"10.0.0.5", "10.0.0.6"}


def test_a_backend_that_cannot_be_reached_is_not_in_the_map() -> None:
    """Its node is not known yet, or it is ours and its container is gone."""
    for one in (endpoint("n9", "10.0.0.9"), endpoint("n1", "10.0.0.9"), endpoint("n2", "10.0.0.9", network="nowhere")):
        facts = want(snap(endpoints=(one,), services=(web(),))).facts
        assert not [f for f in facts if isinstance(f, Element) and f.where == ROUTER and f.set == "pub"]


def test_one_that_does_not_serve_keeps_its_route_and_leaves_the_map() -> None:
    serving, leaving = endpoint("n2", "10.0.0.6"), endpoint("n2", "10.0.0.6", serving=False)
    before, after = (want(snap(endpoints=(e,), services=(web(),))) for e in (serving, leaving))
    assert before.facts - after.facts == {
        Element(ROUTER, "pub", "tcp . 8080", "goto p_tcp_8080"),
        Chain(ROUTER, "p_tcp_8080", ("meta l4proto tcp dnat to 10.0.0.6:80",)),
    }
    assert after.present == before.present


def test_endpoints_of_other_networks_are_no_backends_of_ingress() -> None:
    other = endpoint("n2", "10.0.1.6", network="net1")
    facts = want(snap(networks=(INGRESS, OVERLAY), endpoints=(other,), services=(web(),))).facts
    assert not [f for f in facts if isinstance(f, Chain) and f.name.startswith("p_")]
    assert Route(MAIN, "10.0.1.6", "169.254.0.2", "vx4097") in facts


def test_ports_in_host_mode_of_services_are_not_meshed() -> None:
    ports = (PortConfig(target_port=80, published_port=8080, publish_mode="host"), PortConfig(target_port=81))
    facts = want(snap(endpoints=(endpoint("n2", "10.0.0.6"),), services=(web(*ports),))).facts
    assert not [f for f in facts if isinstance(f, Element) and f.set == "pub"]


def test_a_port_of_this_node() -> None:
    port = LocalPort(sandbox_id="s", protocol="udp", port=53, address="10.0.0.5", target=5353)
    assert want(snap(), ports=(port,)).facts - want(snap()).facts == {
        Element(HOST, "pub", "udp . 53"),
        Element(ROUTER, "hostpub", "udp . 53", "goto h_udp_53"),
        Chain(ROUTER, "h_udp_53", ("meta l4proto udp dnat to 10.0.0.5:5353",)),
    }


def test_datagrams_are_forgotten_for_udp_services_only() -> None:
    one = (endpoint("n2", "10.0.0.6"),)
    assert want(snap(endpoints=one, services=(web(),))).datagrams == set()
    udp = web(PortConfig(protocol="udp", target_port=53, published_port=53))
    assert want(snap(endpoints=one, services=(udp,))).datagrams == {"10.0.0.6"}


def test_a_node_without_an_index_has_its_containers_alone() -> None:
    facts = want(snap(peers=(peer(2),), endpoints=(endpoint("n2", "10.0.0.6"),)), place("10.0.0.5", group=4096)).facts
    assert facts == {Group("v-0.5", 4096), Route(MAIN, "10.0.0.5", "", "v-0.5")}


def test_a_place_keeps_its_group_until_its_network_is_known() -> None:
    assert want(Snapshot(), place("10.0.0.5", group=7)).facts == {Group("v-0.5", 7), Route(MAIN, "10.0.0.5", "", "v-0.5")}


def test_nodes_beyond_the_kept_rewrite_the_source() -> None:
    far = PeerItem(node_id="n1", index=KEPT + 1, address="192.168.1.1")
    facts = want(snap(peers=(far, peer(2)))).facts
    assert Chain(ROUTER, "ports", ('oifname "vx4096" snat to 169.254.0.65',)) in facts
    # and the others need no way back by it
    facts = want(snap(peers=(peer(1), PeerItem(node_id="n65", index=KEPT + 1, address="192.168.1.65")))).facts
    assert not [f for f in facts if isinstance(f, Rule)]
    assert Route(MAIN, "169.254.0.65", "", "vx4096") in facts


@pytest.mark.parametrize(
    "network",
    [
        net(vni=0),
        NetworkItem(network=Network(id="x", spec=NetworkSpec(name="x"), vni=4099)),
        NetworkItem(
            network=Network(id="x", spec=NetworkSpec(name="x"), vni=4099, driver="bridge", ipam=(IPAMConfig(subnet="10.9.0.0/24"),))
        ),
        net(subnet="fd00::/64", gateway="fd00::1"),
    ],
)
def test_networks_that_cannot_be_laid_are_left_out(network: NetworkItem) -> None:
    assert want(snap(networks=(network,), endpoints=(endpoint("n2", "10.0.0.6", network=network.network.id),))).facts == set()


def test_ipv6_beside_ipv4_is_left_out() -> None:
    both = NetworkItem(
        network=Network(
            id="ingress",
            spec=NetworkSpec(name="ingress", ingress=True),
            ipam=(IPAMConfig(subnet="10.0.0.0/24", gateway="10.0.0.1"), IPAMConfig(subnet="fd00::/64", gateway="fd00::1")),
            options={"com.docker.network.driver.overlay.vxlanid_list": "4096,4100"},
        )
    )
    assert want(snap(networks=(both,), endpoints=(endpoint("n2", "fd00::6"),))) == want(snap())


def test_names_and_numbers() -> None:
    assert link_address(258) == "169.254.1.2"
    assert link_mac(65535) == "02:fe:00:00:ff:ff"
    assert container_mac("10.0.1.255") == "02:42:0a:00:01:ff"


@given(st.integers(1, KEPT))
def test_source_ports_of_all_nodes_are_disjoint(nodes: int) -> None:
    used: set[int] = set()
    for index in range(1, nodes + 1):
        low, high = source_ports(index, nodes)
        assert 1024 <= low <= high <= 65535
        mine = set(range(low, high + 1))
        assert len(mine) >= 1000 and not mine & used
        used |= mine


def test_a_virtual_address_leads_to_those_that_serve() -> None:
    """Of this service on this network; whoever of them is here may be sent to itself."""
    everyone = (
        endpoint("n2", "10.0.1.6", network="net1"),
        endpoint("n1", "10.0.1.5", network="net1"),
        endpoint("n2", "10.0.1.7", network="net1", serving=False),
        endpoint("n2", "10.0.1.8", network="net1", service="other"),
        endpoint("n2", "10.0.0.9"),
    )
    local = place("10.0.1.5", "net1")
    without = want(snap((INGRESS, OVERLAY), endpoints=everyone), local)
    wanted = want(snap((INGRESS, OVERLAY), endpoints=everyone, known=(discovery(vip="10.0.1.2", network="net1"),)), local)
    assert wanted.facts - without.facts == {
        Address("lo", "10.0.1.2"),
        Element(ROUTER, "own", "4097 . 10.0.1.2"),
        Element(ROUTER, "vip", "4097 . 10.0.1.2", "goto v_10_0_1_2"),
        Element(ROUTER, "self", "10.0.1.5 . 10.0.1.5", "10.0.1.1"),
        Chain(ROUTER, "v_10_0_1_2", ("dnat to numgen random mod 2 map { 0 : 10.0.1.5, 1 : 10.0.1.6 }", "dnat to 10.0.1.5")),
    }
    assert wanted.datagrams == {"10.0.1.5", "10.0.1.6"}


@pytest.mark.parametrize(
    ("known", "more"),
    [
        (discovery(vip="10.0.1.2", network="net1"), {Address("lo", "10.0.1.2"), Element(ROUTER, "own", "4097 . 10.0.1.2")}),
        (discovery(vip="", network="net1"), set()),
        (discovery(vip="fd00::2", network="net1"), set()),
        (discovery(vip="10.0.7.2", network="elsewhere"), set()),
    ],
)
def test_a_virtual_address_without_tasks_answers_for_itself_and_what_cannot_be_laid_is_left_out(
    known: DiscoveryItem, more: set[Fact]
) -> None:
    assert want(snap((INGRESS, OVERLAY), known=(known,))).facts - want(snap((INGRESS, OVERLAY))).facts == more


def test_local_delivery_is_to_own_tasks_only() -> None:
    import msgspec

    both = (endpoint("n2", "10.0.0.6"), endpoint("n1", "10.0.0.5"))
    only = msgspec.structs.replace(web(), local_only=True)
    facts = want(snap(endpoints=both, services=(only,)), place("10.0.0.5")).facts
    assert Chain(ROUTER, "p_tcp_8080", ("meta l4proto tcp dnat to 10.0.0.5:80",)) in facts
    facts = want(snap(endpoints=both[:1], services=(only,))).facts
    assert not [f for f in facts if isinstance(f, Element) and f.where == ROUTER and f.set == "pub"]
    assert Element(HOST, "pub", "tcp . 8080") in facts


def test_a_container_of_a_network_that_is_gone_is_not_on_the_next_one_with_its_number() -> None:
    again = net("net2", 4097, "10.0.1.0/24", "10.0.1.1")
    assert Group("v-1.5", 0) in want(snap(networks=(INGRESS, again)), place("10.0.1.5", "net1", group=4097)).facts
