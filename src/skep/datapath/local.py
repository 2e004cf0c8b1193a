"""What this node's own networks (driver bridge) and its host ports ought to hold in the kernel. Pure.

A network of a node is a device group in the router, as an overlay is, without a VXLAN device: 16 is `bridge`, those that users make follow.
The host reaches its containers by their addresses: it has a route to each subnet by way of the router, and lets nobody else take it
(`guard`). A container reaches the host at its gateway's address. See docs/network.md.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

import msgspec

from skep.datapath.base import LocalNetwork, LocalState
from skep.datapath.desired import LocalPort, balance, is_ipv4
from skep.datapath.facts import HOST, ROUTER, UPLINK_GROUP, Chain, Element, Fact, HostRoute
from skep.datapath.vip import own_facts, self_facts

FIRST_GROUP, LAST_GROUP = 16, 4095


class HostNetwork(msgspec.Struct, frozen=True, kw_only=True):
    """What this host has an address in (`connected`), or only a route to."""

    network: ipaddress.IPv4Network
    connected: bool


def local_facts(state: LocalState, ports: Iterable[LocalPort], addresses: Iterable[str]) -> set[Fact]:
    """`addresses`: the host's own. Ports that are published at all of them: see `desired.local_port_facts`."""
    facts: set[Fact] = {Element(ROUTER, "here", address) for address in addresses}
    networks = [n for n in state.networks.values() if is_ipv4(n.subnet)]
    for network in networks:
        facts |= network_facts(network)
    for port in ports:
        home = home_of(port.address, networks)
        if home is not None:
            facts |= self_facts([port.address], home.gateway)
        if port.at:
            facts |= bound_facts(port, "" if home is not None else f"{port.address}/32")
    return facts


def network_facts(network: LocalNetwork) -> set[Fact]:
    group = network.group
    facts = own_facts(group, network.gateway)
    facts |= {
        Element(ROUTER, "own", f"{UPLINK_GROUP} . {network.gateway}"),
        Element(ROUTER, "bridges", network.subnet),
        Element(ROUTER, "gateways", network.subnet, network.gateway),
        HostRoute(network.subnet),
        Element(HOST, "guard", network.subnet),
    }
    if not network.isolated:
        facts.add(Element(ROUTER, "samenet", f"{group} . {group}"))
    if not network.internal:
        facts.add(Element(ROUTER, "egress", str(group)))
    if not network.masquerade:
        facts.add(Element(ROUTER, "asis", network.subnet))
    return facts


def bound_facts(port: LocalPort, route: str) -> set[Fact]:
    """A port at one address of the host. Where the host translates (not `aside`, and for its own clients) it leads straight to the
    container, so that the router need not know which address was asked; `route`: that the host has no way to yet."""
    key = f"{port.at} . {port.protocol} . {port.port}"
    name = f"h_{port.protocol}_{port.port}_{port.at.replace('.', '_')}"
    facts: set[Fact] = {
        Chain(ROUTER, name, balance(port.protocol, [port.address], port.target)),
        Element(ROUTER, "hostat", key, f"goto {name}"),
        Element(ROUTER, "open", f"{port.address} . {port.protocol} . {port.target}"),
        Element(HOST, "at", key, f"{port.address} . {port.target}"),
        Element(HOST, "atpub", key),
    }
    if route:
        facts |= {HostRoute(route), Element(HOST, "guard", route.removesuffix("/32"))}
    return facts


def home_of(address: str, networks: Iterable[LocalNetwork]) -> LocalNetwork | None:
    """The network of this node that the address is in."""
    number = ipaddress.IPv4Address(address)
    return next((n for n in networks if number in ipaddress.IPv4Network(n.subnet)), None)
