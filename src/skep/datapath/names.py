"""What a name means to a container: pure, from what the cluster and this node tell, to tables per network, to the answer to one question.

A container sees the tables of its own networks and nothing of any other. What it asks for ends in one of three ways: an Answer; MISSING
(a name of the cluster that means nothing to this container now: said here, never asked elsewhere); FORWARD (not ours: other servers may
know). The rules are in docs/discovery.md. Names are lower case and without a last dot everywhere in here.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from skep.datapath.base import LocalName, LocalNetwork, LocalState, Resolving, Snapshot
from skep.model.assignment import DiscoveryItem, EndpointItem, NetworkItem
from skep.model.network import Network

Told = NetworkItem | EndpointItem | DiscoveryItem
"""The items of a snapshot that names come from."""
TASKS = "tasks."
REVERSE = ".in-addr.arpa"
_ID = re.compile("[a-z0-9]{25}")


class Fate(enum.Enum):
    MISSING = 1
    FORWARD = 2


class Answer(NamedTuple):
    """Addresses, or a name (of an address), or neither: the name is known, and has nothing of the kind asked for."""

    addresses: tuple[str, ...] = ()
    pointer: str = ""


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """The names of one network."""

    id: str
    name: str = ""
    """The network's own, lower case; empty where it is not known."""
    title: str = ""
    """The same as it is written."""
    internal: bool = False
    ingress: bool = False
    resolves: bool = True
    entries: Mapping[str, tuple[str, ...]] = {}
    """Name -> addresses, in order."""
    reverse: Mapping[str, str] = {}
    known: frozenset[str] = frozenset()
    """All names, also of what does not serve now: never asked of anybody else by a container on this network."""
    guarded: frozenset[str] = frozenset()
    """Those of `known` that containers on other networks do not ask of anybody else either."""
    subnets: tuple[tuple[int, int], ...] = ()
    """First and last address of each, as numbers."""


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What is particular to one container."""

    networks: tuple[str, ...] = ()
    """In order of asking."""
    own_names: tuple[str, ...] = ()
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
        title=next(iter(resolving.own_names), ""),
        links={plain(name): address for name, address in resolving.links.items()},
        servers=resolving.servers,
        addresses=addresses,
    )


def plain(name: str) -> str:
    return name.rstrip(".").lower()


class Facts:
    """Everything told, by network; `tables` follows each change, at the cost of the networks it touches."""

    def __init__(self) -> None:
        self.tables: dict[str, Table] = {}
        self._networks: dict[str, NetworkItem] = {}
        self._endpoints: dict[str, dict[str, EndpointItem]] = {}
        self._discovery: dict[str, dict[str, DiscoveryItem]] = {}
        self.local = LocalState()

    def items(self) -> Iterator[Told]:
        yield from self._networks.values()
        for endpoints in self._endpoints.values():
            yield from endpoints.values()
        for discovery in self._discovery.values():
            yield from discovery.values()

    def change(self, put: Iterable[Told], drop: Iterable[str] = (), *, whole: bool = False) -> set[str]:
        """Returns the ids of the networks whose tables have changed. `drop`: keys; `whole`: what is not in `put` goes."""
        touched: set[str] = set()
        if whole:
            touched |= self._networks.keys() | self._endpoints.keys() | self._discovery.keys()
            self._networks, self._endpoints, self._discovery = {}, {}, {}
        for key in drop:
            kind, _, rest = key.partition("/")
            network_id = rest.rpartition("/")[2]
            touched.add(network_id)
            if kind == "network":
                self._networks.pop(network_id, None)
            elif kind == "endpoint":
                self._endpoints.get(network_id, {}).pop(key, None)
            elif kind == "discovery":
                self._discovery.get(network_id, {}).pop(key, None)
        for item in put:
            if isinstance(item, NetworkItem):
                self._networks[item.network.id] = item
                touched.add(item.network.id)
            elif isinstance(item, EndpointItem):
                self._endpoints.setdefault(item.network_id, {})[item.key] = item
                touched.add(item.network_id)
            else:
                self._discovery.setdefault(item.network_id, {})[item.key] = item
                touched.add(item.network_id)
        return self._renew(touched)

    def change_local(self, state: LocalState) -> set[str]:
        before, self.local = self.local, state
        touched = {id for id in before.networks.keys() | state.networks.keys() if before.networks.get(id) != state.networks.get(id)}
        return self._renew(touched | {name.network_id for name in set(before.names) ^ set(state.names)})

    def _renew(self, touched: set[str]) -> set[str]:
        names: dict[str, list[LocalName]] = {}
        for name in self.local.names:
            if name.network_id in touched:
                names.setdefault(name.network_id, []).append(name)
        for id in touched:
            known = self._networks.get(id)
            network = known.network if known is not None else self.local.networks.get(id)
            endpoints, discovery = self._endpoints.get(id, {}), self._discovery.get(id, {})
            if not endpoints:
                self._endpoints.pop(id, None)
            if not discovery:
                self._discovery.pop(id, None)
            if network is None and not endpoints and not discovery and id not in names:
                self.tables.pop(id, None)
            else:
                self.tables[id] = table_of(id, network, endpoints.values(), discovery.values(), names.get(id, ()))
        return touched


def tables(snapshot: Snapshot, local: LocalState) -> dict[str, Table]:
    """All of them, from all there is."""
    facts = Facts()
    facts.change(told(snapshot).values())
    facts.change_local(local)
    return facts.tables


def told(snapshot: Snapshot) -> dict[str, Told]:
    """By key. The keys of the snapshot's own mappings are its maker's business."""
    out: dict[str, Told] = {}
    for group in (snapshot.networks, snapshot.endpoints, snapshot.discovery):
        for item in group.values():
            out[item.key] = item
    return out


def table_of(
    id: str,
    network: Network | LocalNetwork | None,
    endpoints: Iterable[EndpointItem],
    discovery: Iterable[DiscoveryItem],
    names: Iterable[LocalName],
) -> Table:
    """One name may mean several things at once (an alias that several containers have): it gives the addresses of all of them."""
    entries: dict[str, dict[str, None]] = {}
    reverse: dict[str, str] = {}
    known: set[str] = set()
    guarded: set[str] = set()
    serving: dict[str, list[str]] = {}

    def mean(name: str, addresses: Iterable[str]) -> None:
        name = plain(name)
        if not name:
            return
        known.add(name)
        if "." not in name:
            guarded.add(name)
        if addresses:
            entries.setdefault(name, {}).update(dict.fromkeys(addresses))

    for endpoint in endpoints:
        address = (endpoint.address,) if endpoint.serving else ()
        for name in endpoint.names:
            mean(name, address)
        if endpoint.service_id:
            # the names of tasks are of our own making, dots and all
            guarded.update(plain(name) for name in endpoint.names)
            if endpoint.serving:
                serving.setdefault(endpoint.service_id, []).append(endpoint.address)
        if endpoint.serving and endpoint.names:
            reverse.setdefault(endpoint.address, endpoint.names[0])
    for service in discovery:
        tasks = sorted(serving.get(service.service_id, ()))
        for name in (service.name, *service.aliases):
            mean(name, (service.vip,) if service.vip else tasks)
            mean(TASKS + name, tasks)
        if service.vip:
            reverse.setdefault(service.vip, service.name)
    for local in names:
        for name in local.names:
            mean(name, (local.address,))
        if local.names:
            reverse.setdefault(local.address, local.names[0])
    own, internal, ingress, resolves, subnets = _network_facts(network)
    if not resolves:
        entries, reverse, known, guarded = {}, {}, set(), set()
    return Table(
        id=id,
        name=plain(own),
        title=own,
        internal=internal,
        ingress=ingress,
        resolves=resolves,
        entries={name: tuple(addresses) for name, addresses in entries.items()},
        reverse={address: f"{name}.{own}" if own else name for address, name in reverse.items()},
        known=frozenset(known),
        guarded=frozenset(guarded),
        subnets=subnets,
    )


def _network_facts(network: Network | LocalNetwork | None) -> tuple[str, bool, bool, bool, tuple[tuple[int, int], ...]]:
    if network is None:
        return "", False, False, True, ()
    if isinstance(network, LocalNetwork):
        return network.name, network.internal, False, network.resolves, _ranges([network.subnet])
    return network.name, network.spec.internal, network.spec.ingress, True, _ranges(c.subnet for c in network.ipam)


def _ranges(subnets: Iterable[str]) -> tuple[tuple[int, int], ...]:
    out = []
    for text in subnets:
        try:
            subnet = ipaddress.IPv4Network(text, strict=False)
        except ValueError:
            continue
        out.append((int(subnet.network_address), int(subnet.broadcast_address)))
    return tuple(out)


# -- one question


def look_up(tables: Mapping[str, Table], view: View, name: str) -> Answer | Fate:
    """What `name` (lower case, no last dot) means to this container."""
    if name.endswith(REVERSE) and (address := _reversed(name)):
        return _look_up_address(tables, view, address)
    if name in view.links:
        return Answer((view.links[name],))
    for index, table in _asked(tables, view):
        if found := _on(table, view, index, name):
            return Answer(found)
    for head, tail in _splits(name):
        for index, table in _asked(tables, view):
            if table.name == tail and (found := _on(table, view, index, head)):
                return Answer(found)
    return Fate.MISSING if _is_ours(tables, view, name) else _otherwise(tables, view)


def _asked(tables: Mapping[str, Table], view: View) -> list[tuple[int, Table]]:
    """The container's networks that are known here, ingress last, each with its place among the container's."""
    known = [(i, tables.get(id) or Table(id=id)) for i, id in enumerate(view.networks)]
    return sorted(known, key=lambda it: it[1].ingress)


def _on(table: Table, view: View, index: int, name: str) -> tuple[str, ...]:
    """Addresses of a name on one network; the container's own among them, announced or not."""
    found = table.entries.get(name, ())
    if name in view.own_names:
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
        if name in (table.known if table.id in mine else table.guarded) or service and service in table.guarded:
            return True
    names = {table.name for table in tables.values() if table.name}
    for head, tail in _splits(name):
        if tail not in names:
            continue
        if head.startswith(TASKS):
            return True
        if any(table.name == tail and head in table.known for table in tables.values()):
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
        if found := table.reverse.get(address):
            return Answer(pointer=found)
    for index, table in asked:
        if view.title and _own_address(table, view, index) == address:
            return Answer(pointer=f"{view.title}.{table.title}" if table.title else view.title)
    for name, linked in view.links.items():
        if linked == address:
            return Answer(pointer=name)
    if any(_within(table, address) for table in tables.values()):
        return Fate.MISSING
    return _otherwise(tables, view)
