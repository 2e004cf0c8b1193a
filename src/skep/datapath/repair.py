"""What differs between the kernel and what is wanted, and how to say it. Pure. See docs/network.md."""

from __future__ import annotations

from collections.abc import Set

from skep.datapath.desired import Wanted
from skep.datapath.diff import FIXED_CHAINS, SETS, key
from skep.datapath.facts import MAIN, Address, Chain, Element, Fact, Forwarding, Group, HostRoute, Neighbour, Route, Rule, Vxlan
from skep.datapath.rules import marks
from skep.datapath.ruleset import TableSeen

FOREIGN = "user"
"""The chain that is the user's own."""


def changing(chain: str) -> bool:
    """Whether its body comes from facts: `p_...`, `v_...`, and those that the fixed rules jump to."""
    return chain[1:2] == "_" or chain in FIXED_CHAINS


def rule_facts(seen: TableSeen, where: str, wanted: Wanted) -> set[Fact]:
    """What of a table comes from facts. A chain whose marks are those of the wanted one has its body."""
    bodies = {f.name: f for f in wanted.facts if isinstance(f, Chain) and f.where == where}
    facts: set[Fact] = {Element(where, s, k, v) for s, k, v in seen.elements if s in SETS[where]}
    for chain in seen.chains.values():
        if not changing(chain.name):
            continue
        one = bodies.get(chain.name)
        if one is not None and marks(one.body) == chain.marks:
            facts.add(one)
        elif chain.marks or chain.name not in FIXED_CHAINS:
            facts.add(Chain(where, chain.name, chain.marks or ("",)))
    return facts


def dead_in(seen: TableSeen) -> set[str]:
    return {k for s, k, _ in seen.elements if s == "dead"}


def fixed(seen: TableSeen) -> object:
    """The fixed part of a table, to be compared with itself: written by the same text it is the same again."""
    chains = sorted((c.name, c.hook, c.rules) for c in seen.chains.values() if not changing(c.name) and c.name != FOREIGN)
    return chains, sorted((s.name, s.flags, s.key, s.value) for s in seen.sets.values()), FOREIGN in seen.chains


def sentences(found: Wanted, wanted: Wanted, *, was: str = "was", lost: Set[str] = frozenset(), empty: Set[str] = frozenset()) -> list[str]:
    """A sentence for each thing that is not as it should be. What goes with a link that is missing (one of ours, or in `lost`) is not
    said again, nor what goes with a table (`empty`)."""
    missing, strange = wanted.facts - found.facts, found.facts - wanted.facts
    devices = {f.link for f in missing if isinstance(f, Vxlan)} | lost
    before = {slot(f): f for f in strange}
    replaced = set()
    out = []
    for fact in sorted(missing, key=repr):
        if _goes_with(fact, devices, empty):
            continue
        other = before.get(slot(fact))
        if other is not None:
            replaced.add(other)
            out.append(f"{name(fact)} {was} {_other(other)}")
        else:
            out.append(f"{name(fact)} {was} missing")
    for fact in sorted(strange, key=repr):
        if not isinstance(fact, Group) and fact not in replaced and not _goes_with(fact, devices, empty):
            out.append(f"{name(fact)} {was} there, and nothing of ours")
    return out


def slot(fact: Fact) -> tuple[object, ...]:
    """Where it is: two facts in one slot cannot both be there."""
    if isinstance(fact, Chain):
        return (Chain, fact.where, fact.name)
    if isinstance(fact, Element):
        return (Element, fact.where, fact.set, fact.key)
    return key(fact)


def in_the_way(found: Wanted, wanted: Wanted) -> Wanted:
    """Of what was found that which is in a slot that is wanted: the rest is for somebody else to judge."""
    slots = {slot(f) for f in wanted.facts}
    return Wanted(frozenset(f for f in found.facts if slot(f) in slots))


def _goes_with(fact: Fact, devices: Set[str], empty: Set[str]) -> bool:
    if isinstance(fact, Address | Neighbour | Forwarding | Route | Group):
        return fact.link in devices
    return isinstance(fact, Chain | Element) and fact.where in empty


def _other(fact: Fact) -> str:
    if isinstance(fact, Route):
        return f"another: via {fact.via or 'no node'} dev {fact.link}"
    if isinstance(fact, Neighbour):
        return f"another: {fact.mac}"
    if isinstance(fact, Forwarding):
        return f"another: {fact.address}"
    if isinstance(fact, Group):
        return f"another: {fact.group}"
    return "changed"


def name(fact: Fact) -> str:
    """In the words of ip(8) and nft(8)."""
    if isinstance(fact, Vxlan):
        return f"device {fact.link} (VXLAN id {fact.vni}, port {fact.port}, mtu {fact.mtu})"
    if isinstance(fact, Group):
        return f"group {fact.group} of link {fact.link}"
    if isinstance(fact, Address):
        return f"address {fact.address} on {fact.link}"
    if isinstance(fact, Neighbour):
        return f"neighbour {fact.address} on {fact.link}"
    if isinstance(fact, Forwarding):
        return f"forwarding entry {fact.mac} to {fact.address} on {fact.link}"
    if isinstance(fact, HostRoute):
        return f"route {fact.destination} of the host to the router"
    if isinstance(fact, Route):
        table = "" if fact.table == MAIN else f" table {fact.table}"
        return f"route {fact.destination or 'default'} via {fact.via or 'no node'} dev {fact.link}{table}"
    if isinstance(fact, Rule):
        return f"rule fwmark {fact.mark} lookup {'main' if fact.table == MAIN else fact.table}"
    if isinstance(fact, Chain):
        return f"nft chain {fact.name} ({fact.where})"
    if isinstance(fact, Element):
        return f"nft element {fact.key} of {fact.set} ({fact.where})"
    return repr(fact)
