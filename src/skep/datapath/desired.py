"""What ought to be in this node's kernel: a pure function from the cluster's snapshot and the places of this node's containers to a set of
facts.

A fact is one thing that the kernel holds (a route, a neighbour, an element of an nft map). Facts are values, so what is to be done is the
difference of two sets (skep.datapath.diff), and a restart compares with what it reads back. Facts name links, never interface indexes.

The layout (docs/network.md): one router namespace; a VXLAN device, a device group and a pair in `samenet` per network, all numbered by
the VNI; a /32 route per endpoint, local or by way of the link address of its node. Only IPv4: IPv6 subnets and endpoints are left out.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

import msgspec

from skep.datapath.base import Snapshot
from skep.datapath.facts import (
    FIRST_PORT,
    HOST,
    KEPT,
    MAIN,
    PORTS_END,
    PROTOCOLS,
    ROUTER,
    WAYS,
    Address,
    Chain,
    Element,
    Fact,
    Forwarding,
    Group,
    Neighbour,
    Route,
    Rule,
    Vxlan,
)
from skep.datapath.vip import own_facts, self_facts, vip_facts
from skep.model.assignment import EndpointItem, PeerItem
from skep.model.network import Network

MTU_OPTION = "com.docker.network.driver.mtu"
VNI_OPTION = "com.docker.network.driver.overlay.vxlanid_list"
OVERHEAD = 50
"""Outer Ethernet, IP, UDP and VXLAN headers."""
LEAST_MTU = 68
"""IPv4's."""


class LocalPlace(msgspec.Struct, frozen=True, kw_only=True):
    """A container's end on this node."""

    sandbox_id: str
    network_id: str
    address: str
    """Without prefix length."""
    link: str
    """Its link in the router."""
    group: int = 0
    """The network's group when it was attached; 0: not known then, nothing passes until it is."""
    name: str = ""
    """Of the interface inside."""
    mtu: int = 0
    internal: bool = False
    """A network without a way out: no default route."""
    network_name: str = ""


class LocalPort(msgspec.Struct, frozen=True, kw_only=True):
    """A port published on this node only."""

    sandbox_id: str
    protocol: str
    port: int
    address: str
    target: int
    at: str = ""
    """Only at this address of the host."""


class Here(msgspec.Struct, frozen=True, kw_only=True):
    """What the node knows of itself."""

    address: str
    """Of its underlay; empty: the one its peer item says."""
    mtu: int = 1500
    """Of the underlay."""


class Wanted(msgspec.Struct, frozen=True):
    facts: frozenset[Fact] = frozenset()
    present: frozenset[str] = frozenset()
    """Addresses of all endpoints there are, serving or not: connections to one that leaves this set are reset."""
    datagrams: frozenset[str] = frozenset()
    """Addresses in the maps of published UDP ports and of virtual addresses: flows to one that leaves this set are forgotten."""


def link_address(index: int) -> str:
    """A node's address on each overlay: 169.254 and its 16-bit index."""
    return f"169.254.{index >> 8 & 255}.{index & 255}"


def link_mac(index: int) -> str:
    return f"02:fe:00:00:{index >> 8 & 255:02x}:{index & 255:02x}"


def container_mac(address: str) -> str:
    """Docker's: 02:42 and the address."""
    return "02:42:" + ":".join(f"{int(part):02x}" for part in address.split("."))


def is_ipv4(address: str) -> bool:
    return "." in address and ":" not in address


def vni_of(network: Network) -> int:
    """0 when it has none."""
    text = network.options.get(VNI_OPTION, "").partition(",")[0]
    return network.vni or (int(text) if text.isdigit() else 0)


def usable(network: Network) -> bool:
    """Whether it can be laid: an overlay with a VNI and an IPv4 subnet."""
    return network.driver == "overlay" and vni_of(network) > 0 and any(is_ipv4(c.subnet) for c in network.ipam)


def mtu_of(network: Network, underlay: int) -> int:
    """Of its links on a node whose underlay has this one: what fits, or less where the network's option says so."""
    asked = network.options.get(MTU_OPTION, "")
    fits = underlay - OVERHEAD
    return min(fits, int(asked)) if asked.isdigit() and int(asked) >= LEAST_MTU else fits


def narrow(peer: PeerItem, network: Network, here: Here) -> int:
    """The MTU of the way to a node whose underlay is narrower than ours; else 0. Its containers have links that fit it, so they say what
    TCP may send them; this is for all else."""
    mtu = mtu_of(network, peer.mtu) if peer.mtu else 0
    return mtu if mtu < mtu_of(network, here.mtu) else 0


def source_ports(index: int, nodes: int) -> tuple[int, int]:
    """The source ports that connections through the ingress node `index` get, when the highest index is `nodes`.

    Disjoint between nodes: one client's address and port reaching one backend through two nodes stays two connections. The range is cut
    into a power of two of parts, at least four, so that a cluster that grows seldom moves its ranges.
    """
    parts = 4
    while parts < min(max(index, nodes), KEPT):
        parts *= 2
    size = (PORTS_END - FIRST_PORT) // parts
    first = FIRST_PORT + (index - 1) % parts * size
    return first, first + size - 1


def port_chain(prefix: str, protocol: str, port: int) -> str:
    return f"{prefix}_{protocol}_{port}"


class Memo:
    """What was found for networks as long as they, the nodes and this node's own settings are the same objects: most of what there is,
    where there are many networks. Leaving it out changes no result."""

    def __init__(self) -> None:
        self._setting: tuple[object, ...] = ()
        self._facts: dict[str, tuple[Network, frozenset[Fact]]] = {}

    def network_facts(self, networks: Iterable[Network], own: PeerItem, peers: list[PeerItem], here: Here, port: int) -> set[Fact]:
        setting = (own, peers, here, port)
        if self._setting != setting:
            self._setting, self._facts = setting, {}
        before, self._facts = self._facts, {}
        out: set[Fact] = set()
        for network in networks:
            known = before.get(network.id)
            if known is None or known[0] is not network:
                known = (network, frozenset(network_facts(network, own, peers, here, port)))
            self._facts[network.id] = known
            out |= known[1]
        return out


def desired(
    snapshot: Snapshot,
    here: Here,
    places: Iterable[LocalPlace],
    ports: Iterable[LocalPort],
    memo: Memo | None = None,
    without: Container[str] = (),
) -> Wanted:
    """Everything that ought to be there. `places` and `ports` are this node's own, whatever the snapshot says. `without`: ids of networks
    that this node refuses."""
    places = tuple(places)
    facts: set[Fact] = set()
    own = next((p for p in snapshot.peers.values() if p.node_id == snapshot.node_id), None)
    networks = {n.network.id: n.network for n in snapshot.networks.values() if usable(n.network) and n.network.id not in without}
    peers = {p.node_id: p for p in snapshot.peers.values() if p.node_id != snapshot.node_id and p.index > 0 and is_ipv4(p.address)}
    if own is not None and own.index > 0:
        facts = (memo or Memo()).network_facts(networks.values(), own, list(peers.values()), here, snapshot.data_path_port)
    else:
        # without an index of its own the node has no place on any overlay
        peers = {}
    groups = {id: vni_of(network) for id, network in networks.items()}
    for place in places:
        facts |= place_facts(place, group_of(place, groups))
    reachable = {(p.network_id, p.address) for p in places}
    present = {p.address for p in places}
    serving: dict[tuple[str, str], list[EndpointItem]] = {}
    for endpoint in snapshot.endpoints.values():
        home = networks.get(endpoint.network_id)
        if home is None or not is_ipv4(endpoint.address):
            continue
        present.add(endpoint.address)
        if endpoint.node_id != snapshot.node_id:
            peer = peers.get(endpoint.node_id)
            if peer is None:
                continue
            facts.add(Route(MAIN, endpoint.address, link_address(peer.index), vxlan_name(home), narrow(peer, home, here)))
        elif (endpoint.network_id, endpoint.address) not in reachable:
            continue
        if endpoint.serving:
            serving.setdefault((endpoint.service_id, endpoint.network_id), []).append(endpoint)
    backends = ingress_backends(snapshot, serving, {n.id for n in networks.values() if n.spec.ingress})
    facts |= published_facts(snapshot, backends)
    facts |= local_port_facts(ports)
    udp = {s.service_id for s in snapshot.services.values() if any(p.protocol == "udp" for p in s.ports)}
    datagrams = {a for s in udp & backends.keys() for a in backends[s]}
    if own is not None and own.index > 0:
        facts |= discovered_facts(snapshot, networks, serving, datagrams)
    return Wanted(frozenset(facts), frozenset(present), frozenset(datagrams))


def group_of(place: LocalPlace, groups: Mapping[str, int]) -> int:
    """The device group of its network; until its network is known the one it was attached with, unless another network has that now."""
    known = groups.get(place.network_id)
    if known is not None:
        return known
    return place.group if place.group not in groups.values() else 0


def ingress_backends(snapshot: Snapshot, serving: Mapping[tuple[str, str], list[EndpointItem]], ingress: set[str]) -> dict[str, list[str]]:
    """By service: where what comes in by its published ports is sent to by this node."""
    out: dict[str, list[str]] = {}
    local_only = {s.service_id for s in snapshot.services.values() if s.local_only}
    for (service_id, network_id), endpoints in serving.items():
        if network_id in ingress:
            found = [e.address for e in endpoints if service_id not in local_only or e.node_id == snapshot.node_id]
            if found:
                out.setdefault(service_id, []).extend(found)
    return out


def discovered_facts(
    snapshot: Snapshot, networks: Mapping[str, Network], serving: Mapping[tuple[str, str], list[EndpointItem]], datagrams: set[str]
) -> set[Fact]:
    """Virtual addresses. What they lead to is added to `datagrams`."""
    facts: set[Fact] = set()
    for item in snapshot.discovery.values():
        network = networks.get(item.network_id)
        if network is None or not is_ipv4(item.vip):
            continue
        found = serving.get((item.service_id, item.network_id), ())
        facts |= vip_facts(vni_of(network), item.vip, [e.address for e in found])
        datagrams.update(e.address for e in found)
        gateway = next((c.gateway for c in network.ipam if is_ipv4(c.gateway)), "")
        if gateway:
            facts |= self_facts([e.address for e in found if e.node_id == snapshot.node_id], gateway)
    return facts


def vxlan_name(network: Network) -> str:
    return f"vx{vni_of(network)}"


def place_facts(place: LocalPlace, group: int) -> set[Fact]:
    return {Group(place.link, group), Route(MAIN, place.address, "", place.link)}


def network_facts(network: Network, own: PeerItem, peers: Iterable[PeerItem], here: Here, port: int) -> set[Fact]:
    """One overlay on this node: its device, its group, and the way to the other nodes."""
    vni, link = vni_of(network), vxlan_name(network)
    facts: set[Fact] = {
        Vxlan(link, vni, vni, link_mac(own.index), port, here.address or own.address, mtu_of(network, here.mtu)),
        Address(link, link_address(own.index)),
        Element(ROUTER, "samenet", f"{vni} . {vni}"),
    }
    for config in network.ipam:
        if is_ipv4(config.subnet):
            facts.add(Element(ROUTER, "ovl", config.subnet))
            if is_ipv4(config.gateway):
                facts |= own_facts(vni, config.gateway)
    if not network.spec.internal:
        facts.add(Element(ROUTER, "egress", str(vni)))
    peers = list(peers)
    for peer in peers:
        to, mac = link_address(peer.index), link_mac(peer.index)
        facts.add(Neighbour(link, to, mac))
        facts.add(Forwarding(link, mac, peer.address))
    if network.spec.ingress:
        facts |= _mesh_facts(link, own, peers, {p.index: narrow(p, network, here) for p in peers})
    return facts


def _mesh_facts(link: str, own: PeerItem, peers: list[PeerItem], mtus: Mapping[int, int]) -> set[Fact]:
    """What keeps the client's address across nodes: the way back, and this node's range of source ports."""
    facts: set[Fact] = {Element(ROUTER, "mesh", link)}
    for peer in peers:
        to = link_address(peer.index)
        facts.add(Route(MAIN, to, "", link))
        if peer.index <= KEPT:
            facts.add(Element(ROUTER, "ways", link_mac(peer.index), str(peer.index)))
            facts |= {Rule(0, MAIN), Rule(peer.index, WAYS + peer.index)}
            facts.add(Route(WAYS + peer.index, "", to, link, mtus[peer.index]))
    if own.index <= KEPT:
        low, high = source_ports(own.index, max([own.index, *(p.index for p in peers)]))
        body = f"meta l4proto {{ tcp, udp }} snat to :{low}-{high}"
    else:
        body = f'oifname "{link}" snat to {link_address(own.index)}'
    facts.add(Chain(ROUTER, "ports", (body,)))
    return facts


def published_facts(snapshot: Snapshot, backends: Mapping[str, list[str]]) -> set[Fact]:
    """Ports published in ingress mode. One without backends stays ours on the host, and is refused by the router, which has no listener."""
    facts: set[Fact] = set()
    for service in snapshot.services.values():
        addresses = sorted(backends.get(service.service_id, ()))
        for port in service.ports:
            protocol = port.protocol or "tcp"
            if port.publish_mode == "host" or not port.published_port or protocol not in PROTOCOLS:
                continue
            key = f"{protocol} . {port.published_port}"
            facts.add(Element(HOST, "pub", key))
            if addresses:
                name = port_chain("p", protocol, port.published_port)
                facts.add(Chain(ROUTER, name, balance(protocol, addresses, port.target_port)))
                facts.add(Element(ROUTER, "pub", key, f"goto {name}"))
    return facts


def balance(protocol: str, addresses: list[str], port: int) -> tuple[str, ...]:
    """Rules that send a connection to one of the backends by chance.

    The last rule needs no map: a packet that is in this chain while the next version of it comes into force may find the old rule's map
    empty already (seen once in some 100,000 connections), and would be refused.
    """
    first = f"meta l4proto {protocol} dnat to {addresses[0]}:{port}"
    if len(addresses) == 1:
        return (first,)
    choices = ", ".join(f"{i} : {a} . {port}" for i, a in enumerate(addresses))
    return (f"meta l4proto {protocol} dnat ip to numgen random mod {len(addresses)} map {{ {choices} }}", first)


def local_port_facts(ports: Iterable[LocalPort]) -> set[Fact]:
    facts: set[Fact] = set()
    for p in ports:
        if p.at:
            continue
        key, name = f"{p.protocol} . {p.port}", port_chain("h", p.protocol, p.port)
        facts.add(Element(HOST, "pub", key))
        facts.add(Chain(ROUTER, name, balance(p.protocol, [p.address], p.target)))
        facts.add(Element(ROUTER, "hostpub", key, f"goto {name}"))
    return facts
