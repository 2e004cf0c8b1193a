"""Virtual addresses: what the router holds so that one address of a network stands for all serving tasks of a service. Pure.

A connection from a container of the network to the address gets one of the tasks by chance, at the router of the caller's own node; the
caller's address stays as it is. The address itself is the router's: it answers to ping, and refuses at once when nobody serves. Other
networks neither reach it nor learn that it is there. A task that is sent to itself sees the gateway: its own address could not come in
from outside. See docs/network.md.
"""

from __future__ import annotations

from collections.abc import Iterable

from skep.datapath.facts import ROUTER, Address, Chain, Element, Fact


def vip_chain(address: str) -> str:
    return "v_" + address.replace(".", "_")


def own_facts(group: int, address: str) -> set[Fact]:
    """An address of the router's that this network may speak to: its gateway, a virtual address."""
    return {Address("lo", address), Element(ROUTER, "own", f"{group} . {address}")}


def vip_facts(group: int, address: str, backends: Iterable[str]) -> set[Fact]:
    """One virtual address on the network of this device group."""
    facts = own_facts(group, address)
    backends = sorted(backends)
    if backends:
        name = vip_chain(address)
        facts.add(Chain(ROUTER, name, spread(backends)))
        facts.add(Element(ROUTER, "vip", f"{group} . {address}", f"goto {name}"))
    return facts


def self_facts(addresses: Iterable[str], gateway: str) -> set[Fact]:
    """For tasks of this node that may be sent to themselves."""
    return {Element(ROUTER, "self", f"{a} . {a}", gateway) for a in addresses}


def spread(addresses: list[str]) -> tuple[str, ...]:
    """Rules that send a connection to one of these, the port as it is. The last one needs no map: see `desired.balance`."""
    first = f"dnat to {addresses[0]}"
    if len(addresses) == 1:
        return (first,)
    choices = ", ".join(f"{i} : {a}" for i, a in enumerate(addresses))
    return (f"dnat to numgen random mod {len(addresses)} map {{ {choices} }}", first)
