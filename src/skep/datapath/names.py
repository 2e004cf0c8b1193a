"""What a name means to a container: pure, from the tables of the networks (tables.py) to the answer to one question.

A container sees the tables of its own networks and nothing of any other. What it asks for ends in one of three ways: an Answer; MISSING
(a name of the cluster that means nothing to this container now: said here, never asked elsewhere); FORWARD (not ours: other servers may
know). The rules are in docs/discovery.md. Names are lower case and without a last dot everywhere in here.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from skep.datapath.base import Resolving
from skep.datapath.tables import TASKS, Table, plain

REVERSE = ".in-addr.arpa"
_ID = re.compile("[a-z0-9]{25}")


class Fate(enum.Enum):
    MISSING = 1
    FORWARD = 2


class Answer(NamedTuple):
    """Addresses, or a name (of an address), or neither: the name is known, and has nothing of the kind asked for."""

    addresses: tuple[str, ...] = ()
    pointer: str = ""


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What is particular to one container."""

    networks: tuple[str, ...] = ()
    """In order of asking."""
    own_names: tuple[str, ...] = ()
    aliases: Mapping[str, tuple[str, ...]] = {}
    """By network: likewise, there only."""
    title: str = ""
    """The first of them as it is written."""
    links: Mapping[str, str] = {}
    servers: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    """Its own, in the order of its interfaces."""


def view_of(networks: tuple[str, ...], resolving: Resolving, addresses: tuple[str, ...]) -> View:
    return View(
        networks=networks,
        own_names=tuple(plain(name) for name in resolving.own_names),
        aliases={id: tuple(map(plain, names)) for id, names in resolving.aliases.items()},
        title=next(iter(resolving.own_names), ""),
        links={plain(name): address for name, address in resolving.links.items()},
        servers=resolving.servers,
        addresses=addresses,
    )


def look_up(tables: Mapping[str, Table], view: View, name: str) -> Answer | Fate:
    """What `name` (lower case, no last dot) means to this container."""
    if name.endswith(REVERSE) and (address := _reversed(name)):
        return _look_up_address(tables, view, address)
    if (linked := view.links.get(name, "")) and _number(linked) >= 0:
        return Answer((linked,))
    name = linked or name
    for index, table in _asked(tables, view):
        if found := _on(table, view, index, name):
            return Answer(found)
    for head, tail in _splits(name):
        for index, table in _asked(tables, view):
            if table.name == tail and (found := _on(table, view, index, head)):
                return Answer(found)
    return Fate.MISSING if linked or _is_ours(tables, view, name) else _otherwise(tables, view)


def _asked(tables: Mapping[str, Table], view: View) -> list[tuple[int, Table]]:
    """The container's networks that are known here, ingress and those without names of others last, each with its place among the
    container's."""
    known = [(i, tables.get(id) or Table(id)) for i, id in enumerate(view.networks)]
    return sorted(known, key=lambda it: it[1].ingress or not it[1].resolves)


def _on(table: Table, view: View, index: int, name: str) -> tuple[str, ...]:
    """Addresses of a name on one network; the container's own among them, announced or not."""
    found = table.entries.get(name, ()) if table.resolves else ()
    if name in view.own_names or name in view.aliases.get(table.id, ()):
        own = _own_address(table, view, index)
        if own and own not in found:
            return (*found, own)
    return found


def _own_address(table: Table, view: View, index: int) -> str:
    """The one of its addresses that is in the network's subnet; where no subnet is known, that of the interface in this place."""
    if not table.subnets:
        return view.addresses[index] if len(view.addresses) == len(view.networks) else ""
    return next((a for a in view.addresses if _within(table, a)), "")


def _number(address: str) -> int:
    """Of an IPv4 address; -1 for anything else."""
    parts = address.split(".")
    if len(parts) != 4 or not all(part.isascii() and part.isdigit() and len(part) < 4 and int(part) < 256 for part in parts):
        return -1
    return int.from_bytes(map(int, parts), "big")


def _within(table: Table, address: str) -> bool:
    number = _number(address)
    return any(low <= number <= high for low, high in table.subnets)


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """`a.b.c` -> (a.b, c), (a, b.c): a name qualified by its network's, either with dots of its own."""
    at = name.rfind(".")
    while at > 0:
        yield name[:at], name[at + 1 :]
        at = name.rfind(".", 0, at)


def _is_ours(tables: Mapping[str, Table], view: View, name: str) -> bool:
    """A name of the cluster or the node, whether or not it means something to this container: not to be told to anybody outside."""
    if name.startswith(TASKS) and "." not in name[len(TASKS) :]:
        return True
    mine = set(view.networks)
    service = _of_task(name)
    for table in tables.values():
        if table.guards(name) or table.id in mine and table.knows(name) or service and table.guards(service):
            return True
    names = {table.name for table in tables.values() if table.name}
    for head, tail in _splits(name):
        if tail not in names:
            continue
        if head.startswith(TASKS):
            return True
        if any(table.name == tail and table.knows(head) for table in tables.values()):
            return True
    return False


def _of_task(name: str) -> str:
    """The service that a name is formed after: `SLOT.SERVICE`, `NODE-ID.SERVICE`, `SERVICE.ANY.TASK-ID`; also of a task that has gone.
    Nothing else, since a service may well be called `dev` or `app`, and what ends in that is the world's."""
    labels = name.split(".")
    if len(labels) == 2 and (labels[0].isdigit() or _ID.fullmatch(labels[0])):
        return labels[1]
    return labels[0] if len(labels) == 3 and _ID.fullmatch(labels[2]) else ""


def _otherwise(tables: Mapping[str, Table], view: View) -> Fate:
    """Not ours. A container that has servers of its own asks them from where it is, so it reaches what it may reach; the node's
    resolvers are not for one that has no way out."""
    if view.servers or not view.networks:
        return Fate.FORWARD
    inside = all((table := tables.get(id)) is not None and table.internal for id in view.networks)
    return Fate.MISSING if inside else Fate.FORWARD


def _reversed(name: str) -> str:
    """`4.3.2.1.in-addr.arpa` -> `1.2.3.4`; empty for anything else."""
    address = ".".join(reversed(name[: -len(REVERSE)].split(".")))
    return address if _number(address) >= 0 else ""


def _look_up_address(tables: Mapping[str, Table], view: View, address: str) -> Answer | Fate:
    asked = _asked(tables, view)
    for _, table in asked:
        if table.resolves and (found := table.reverse.get(address)):
            return Answer(pointer=f"{found}.{table.title}" if table.title else found)
    for index, table in asked:
        if view.title and _own_address(table, view, index) == address:
            return Answer(pointer=f"{view.title}.{table.title}" if table.title else view.title)
    for name, linked in view.links.items():
        if linked == address:
            return Answer(pointer=name)
    if any(_within(table, address) for table in tables.values()):
        return Fate.MISSING
    return _otherwise(tables, view)
