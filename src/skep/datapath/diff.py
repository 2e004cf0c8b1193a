"""From what was last applied to what is wanted: the fewest steps, in an order in which no packet meets half a change. Pure.

First comes what packets will need (links, addresses, neighbours, routes), then one nft transaction per namespace that sends them that way,
then what nothing uses any more goes. So a backend is out of the maps before its route goes, and has its route before it is in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

import msgspec

from skep.datapath.desired import Wanted
from skep.datapath.facts import HOST, ROUTER, Address, Chain, Element, Fact, Forwarding, Group, HostRoute, Neighbour, Route, Rule, Vxlan
from skep.datapath.rules import marks

LOCAL = ("bridges", "gateways", "asis", "here", "hostat", "open")
SETS = {
    ROUTER: ("samenet", "egress", "ovl", "mesh", "ways", "pub", "hostpub", "own", "vip", "self", *LOCAL),
    HOST: ("pub", "guard", "atpub", "at"),
}
"""Sets and maps that only facts fill. `dead` has timeouts of its own."""
FIXED_CHAINS = frozenset({"ports"})
"""Chains with a body of ours that the fixed rules jump to: they are emptied, never deleted."""
_ORDER: tuple[type[Fact], ...] = (Vxlan, Group, Address, Neighbour, Forwarding, Route, HostRoute, Rule)
_RANK = {kind: i for i, kind in enumerate(_ORDER)}
_LINKED = (Address, Neighbour, Forwarding, Route)


class Change(msgspec.Struct, frozen=True):
    """Steps, in the order of the fields."""

    replace: tuple[Vxlan, ...] = ()
    """Links to delete first, because they come again with other settings; all that hung on them is in `add`."""
    resize: tuple[Vxlan, ...] = ()
    """Links that get another MTU and stay: whoever asks for a connection meanwhile has a way."""
    add: tuple[Fact, ...] = ()
    router: str = ""
    """One transaction; empty: nothing."""
    host: str = ""
    remove: tuple[Fact, ...] = ()
    forget: tuple[str, ...] = ()
    """Backends whose UDP flows are to be forgotten."""
    ports: tuple[int, ...] = ()
    """Published UDP ports that come or go: a flow that began before would stay where it was led then."""
    at: tuple[str, ...] = ()
    """Of `forget`, to which the host itself leads."""

    @property
    def empty(self) -> bool:
        return self == Change()


def diff(applied: Wanted, wanted: Wanted, table: str, *, dead: Set[str] = frozenset()) -> Change:
    """`dead`: addresses declared dead before; those that are present again are revived."""
    added = wanted.facts - applied.facts
    removed = applied.facts - wanted.facts
    resize = {f for f in added if isinstance(f, Vxlan) and any(_but_for_mtu(f, old) for old in removed)}
    added = added - resize
    removed = frozenset(f for f in removed if not any(_but_for_mtu(f, new) for new in resize))
    lost = {f.link for f in removed if isinstance(f, Vxlan)}
    replace: tuple[Vxlan, ...] = ()
    if lost:
        coming = {f.link for f in added if isinstance(f, Vxlan)}
        replace = tuple(f for f in removed if isinstance(f, Vxlan) and f.link in coming)
        # what hangs on a link goes with it, and has to be put on its successor
        added = added | {f for f in wanted.facts if isinstance(f, _LINKED) and f.link in coming & lost}
        removed = frozenset(f for f in removed if not (isinstance(f, _LINKED) and f.link in lost) and f not in replace)
    settled = {key(f) for f in added}
    kernel = sorted((f for f in added if type(f) in _RANK), key=_sort)
    gone = sorted((f for f in removed if type(f) in _RANK and not isinstance(f, Group) and key(f) not in settled), key=_sort, reverse=True)
    return Change(
        replace=tuple(sorted(replace, key=_sort)),
        resize=tuple(sorted(resize, key=_sort)),
        add=tuple(kernel),
        router=script(ROUTER, table, added, removed, applied.present - wanted.present, dead & wanted.present),
        host=script(HOST, table, added, removed),
        remove=tuple(gone),
        forget=tuple(sorted(applied.datagrams - wanted.datagrams)),
        at=tuple(sorted({f.value.split()[0] for f in removed if isinstance(f, Element) and (f.where, f.set) == (HOST, "at")})),
        ports=tuple(sorted({port for f in added ^ removed if (port := _udp_port(f))})),
    )


def _but_for_mtu(one: Fact, other: Fact) -> bool:
    return isinstance(one, Vxlan) and isinstance(other, Vxlan) and msgspec.structs.replace(one, mtu=other.mtu) == other


def _udp_port(fact: Fact) -> int:
    """0: not a published UDP port."""
    if isinstance(fact, Element) and fact.where == HOST and fact.set in ("pub", "atpub"):
        protocol, port = fact.key.split(" . ")[-2:]
        return int(port) if protocol == "udp" else 0
    return 0


def key(fact: Fact) -> tuple[object, ...]:
    """What the kernel tells a thing by: adding another of the same key replaces it."""
    if isinstance(fact, Route):
        return (Route, fact.table, fact.destination)
    if isinstance(fact, Neighbour):
        return (Neighbour, fact.link, fact.address)
    if isinstance(fact, Forwarding):
        return (Forwarding, fact.link, fact.mac)
    if isinstance(fact, Vxlan | Group):
        return (type(fact), fact.link)
    return (type(fact), fact)


def _sort(fact: Fact) -> tuple[int, str]:
    return (_RANK[type(fact)], repr(fact))


def script(
    where: str,
    table: str,
    added: Iterable[Fact],
    removed: Iterable[Fact],
    dead: Iterable[str] = (),
    alive: Iterable[str] = (),
) -> str:
    """The nft text of the change in one namespace. Lines are in an order that nft accepts within one transaction."""
    bodies = {f.name: f.body for f in added if isinstance(f, Chain) and f.where == where}
    old = {f.name for f in removed if isinstance(f, Chain) and f.where == where}
    lines = _elements("delete", where, table, removed)
    for name in sorted(bodies):
        lines += [f"add chain ip {table} {name}", f"flush chain ip {table} {name}"]
        marked = zip(bodies[name], marks(bodies[name]), strict=True)
        lines += [f'add rule ip {table} {name} {line} comment "{mark}"' for line, mark in marked]
    lines += _elements("add", where, table, added)
    for name in sorted(old - bodies.keys()):
        lines.append(f"flush chain ip {table} {name}")
        if name not in FIXED_CHAINS:
            lines.append(f"delete chain ip {table} {name}")
    back = ", ".join(sorted(alive))
    if back:
        # an element may have timed out: added, it can be deleted for certain
        lines += [f"add element ip {table} dead {{ {back} }}", f"delete element ip {table} dead {{ {back} }}"]
    gone = ", ".join(sorted(dead))
    if gone:
        lines.append(f"add element ip {table} dead {{ {gone} }}")
    return "\n".join(lines) + "\n" if lines else ""


def _elements(verb: str, where: str, table: str, facts: Iterable[Fact]) -> list[str]:
    by_set: dict[str, list[str]] = {}
    for f in facts:
        if isinstance(f, Element) and f.where == where:
            text = f'"{f.key}"' if f.set == "mesh" else f.key
            by_set.setdefault(f.set, []).append(f"{text} : {f.value}" if f.value and verb == "add" else text)
    return [f"{verb} element ip {table} {name} {{ {', '.join(sorted(by_set[name]))} }}" for name in sorted(by_set)]
