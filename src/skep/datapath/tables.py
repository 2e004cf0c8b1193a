"""The names of each network, from what the cluster and this node tell. Pure; a change costs what it changes, not what is there.

Whoever is told of (an endpoint, a service, a container of this node) claims names: each for its addresses, or for none while it does not
serve. What several claim means the addresses of all of them. A service's claim follows its serving tasks. See docs/discovery.md.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from skep.datapath.base import LocalName, LocalNetwork, LocalState, Snapshot
from skep.model.assignment import DiscoveryItem, EndpointItem, NetworkItem
from skep.model.network import Network

Told = NetworkItem | EndpointItem | DiscoveryItem
"""The items of a snapshot that names come from."""
TASKS = "tasks."
HOST = "host/"
"""How the keys of weak claims begin: they count for a name that nobody claims otherwise."""


def plain(name: str) -> str:
    """Lower case, without the last dot: as names are compared."""
    return name.rstrip(".").lower()


class Claim(NamedTuple):
    names: dict[str, tuple[str, ...]]
    pointer: tuple[str, str] = ("", "")
    """An address and its name in reverse, as it is written."""
    task: bool = False
    """Names of our own making, dots and all: guarded."""


def claim_of_endpoint(item: EndpointItem) -> Claim:
    addresses = (item.address,) if item.serving else ()
    pointer = (item.address, item.names[0]) if item.serving and item.names else ("", "")
    return Claim(dict.fromkeys(map(plain, item.names), addresses), pointer, bool(item.service_id))


def claim_of_hostname(item: EndpointItem) -> Claim:
    return Claim({plain(item.hostname): (item.address,) if item.serving else ()})


def claim_of_service(item: DiscoveryItem, tasks: tuple[str, ...]) -> Claim:
    names: dict[str, tuple[str, ...]] = {}
    for name in (item.name, *item.aliases):
        names[plain(name)] = (item.vip,) if item.vip else tasks
        names[TASKS + plain(name)] = tasks
    return Claim(names, (item.vip, item.name) if item.vip else ("", ""))


def claim_of_local(item: LocalName) -> Claim:
    pointer = (item.address, item.names[0]) if item.names else ("", "")
    return Claim(dict.fromkeys(map(plain, item.names), (item.address,)), pointer)


class Table:
    """One network. `entries`: name -> addresses; `reverse`: address -> name."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.name, self.title = "", ""
        """The network's own, for comparing and as it is written; empty where it is not known."""
        self.internal = self.ingress = False
        self.resolves = True
        self.subnets: tuple[tuple[int, int], ...] = ()
        """First and last address of each, as numbers."""
        self.entries: dict[str, tuple[str, ...]] = {}
        self.reverse: dict[str, str] = {}
        self._claims: dict[str, Claim] = {}
        self._by_name: dict[str, dict[str, tuple[str, ...]]] = {}
        self._by_address: dict[str, dict[str, str]] = {}
        self._of_tasks: dict[str, int] = {}

    def knows(self, name: str) -> bool:
        """Somebody has this name, serving or not: a container on this network asks nobody else for it."""
        return self.resolves and name in self._by_name

    def guards(self, name: str) -> bool:
        """Nor does a container on another network. Other names with dots (an alias `api.example.com`) may be the world's there."""
        return self.resolves and name in self._by_name and ("." not in name or name in self._of_tasks)

    @property
    def claimed(self) -> bool:
        return bool(self._claims)

    def describe(self, network: Network | LocalNetwork | None) -> None:
        if isinstance(network, LocalNetwork):
            self.title, self.internal, self.ingress, self.resolves = network.name, network.internal, False, network.resolves
            self.subnets = _ranges([network.subnet])
        elif network is not None:
            self.title, self.internal, self.ingress, self.resolves = network.name, network.spec.internal, network.spec.ingress, True
            self.subnets = _ranges(c.subnet for c in network.ipam)
        else:
            self.title, self.internal, self.ingress, self.resolves, self.subnets = "", False, False, True, ()
        self.name = plain(self.title)

    def put(self, key: str, claim: Claim | None) -> None:
        """What `key` claims from now on."""
        old = self._claims.pop(key, None)
        if old is not None:
            self._take_back(key, old)
        if claim is not None:
            self._claims[key] = claim
            for name, addresses in claim.names.items():
                if name and name != TASKS:
                    self._by_name.setdefault(name, {})[key] = addresses
                    if claim.task:
                        self._of_tasks[name] = self._of_tasks.get(name, 0) + 1
            if claim.pointer[0]:
                self._by_address.setdefault(claim.pointer[0], {})[key] = claim.pointer[1]
        for name in (old.names if old else {}) | (claim.names if claim else {}):
            self._settle(name)
        for address in {c.pointer[0] for c in (old, claim) if c is not None}:
            names = self._by_address.get(address)
            if names:
                self.reverse[address] = names[min(names)]
            else:
                self.reverse.pop(address, None)

    def _take_back(self, key: str, old: Claim) -> None:
        for name in old.names:
            claims = self._by_name.get(name, {})
            claims.pop(key, None)
            if not claims:
                self._by_name.pop(name, None)
            if old.task and name in self._of_tasks:
                self._of_tasks[name] -= 1
                if not self._of_tasks[name]:
                    del self._of_tasks[name]
        names = self._by_address.get(old.pointer[0], {})
        names.pop(key, None)
        if not names:
            self._by_address.pop(old.pointer[0], None)

    def _settle(self, name: str) -> None:
        claims = self._by_name.get(name, {})
        if len(claims) == 1:
            (addresses,) = claims.values()
        else:
            claims = {key: claim for key, claim in claims.items() if not key.startswith(HOST)} or claims
            addresses = tuple(dict.fromkeys(a for claim in claims.values() for a in claim))
        if addresses:
            self.entries[name] = addresses
        else:
            self.entries.pop(name, None)

    def contents(self) -> dict[str, Any]:
        """All of it, the same for tables that mean the same."""
        return {
            "network": (self.id, self.title, self.internal, self.ingress, self.resolves, self.subnets),
            "entries": {name: sorted(addresses) for name, addresses in self.entries.items()},
            "reverse": dict(self.reverse),
            "known": {name: self.guards(name) for name in self._by_name},
        }


class Facts:
    """Everything told, and the tables that follow from it."""

    def __init__(self) -> None:
        self.tables: dict[str, Table] = {}
        self.local = LocalState()
        self._items: dict[str, Told] = {}
        self._serving: dict[tuple[str, str], dict[str, str]] = {}
        """(network, service) -> key of a serving task -> its address."""
        self._services: dict[tuple[str, str], DiscoveryItem] = {}

    def items(self) -> Iterator[Told]:
        yield from self._items.values()

    def change(self, put: Iterable[Told], drop: Iterable[str] = (), *, whole: bool = False) -> set[str]:
        """Returns the ids of the networks whose tables may have changed. `drop`: keys; `whole`: what is not in `put` goes."""
        put = tuple(put)
        if whole:
            drop = self._items.keys() - {item.key for item in put}
        touched: set[str] = set()
        services: set[tuple[str, str]] = set()
        for key in tuple(drop):
            old = self._items.pop(key, None)
            if old is not None:
                self._change_one(key, old, None, touched, services)
        for item in put:
            key = item.key
            old = self._items.get(key)
            if old != item:
                self._items[key] = item
                self._change_one(key, old, item, touched, services)
        for place in services:
            self._renew_service(*place)
        self._describe(touched)
        return touched

    def _change_one(self, key: str, old: Told | None, new: Told | None, touched: set[str], services: set[tuple[str, str]]) -> None:
        """`old` and `new` have the same key, so they are of one kind and on one network."""
        item = new or old
        if isinstance(item, NetworkItem):
            touched.add(item.network.id)
        elif isinstance(item, DiscoveryItem):
            touched.add(item.network_id)
            place = item.network_id, item.service_id
            services.add(place)
            if new is None:
                self._services.pop(place, None)
            else:
                self._services[place] = item
        elif item is not None:
            touched.add(item.network_id)
            for other in (old, new):
                if isinstance(other, EndpointItem) and other.service_id:
                    services.add((other.network_id, other.service_id))
            if isinstance(old, EndpointItem):
                serving = self._serving.get((old.network_id, old.service_id), {})
                serving.pop(key, None)
                if not serving:
                    self._serving.pop((old.network_id, old.service_id), None)
            if isinstance(new, EndpointItem) and new.serving and new.service_id:
                self._serving.setdefault((new.network_id, new.service_id), {})[key] = new.address
            table = self._table(item.network_id)
            table.put(key, claim_of_endpoint(new) if isinstance(new, EndpointItem) else None)
            if any(isinstance(other, EndpointItem) and other.hostname for other in (old, new)):
                table.put(HOST + key, claim_of_hostname(new) if isinstance(new, EndpointItem) and new.hostname else None)

    def _renew_service(self, network_id: str, service_id: str) -> None:
        item = self._services.get((network_id, service_id))
        key = f"discovery/{service_id}/{network_id}"
        if item is None:
            self._table(network_id).put(key, None)
        else:
            tasks = tuple(dict.fromkeys(self._serving.get((network_id, service_id), {}).values()))
            self._table(network_id).put(key, claim_of_service(item, tasks))

    def change_local(self, state: LocalState) -> set[str]:
        """As `change`, for this node's own."""
        before, self.local = self.local, state
        touched = {id for id in before.networks.keys() | state.networks.keys() if before.networks.get(id) != state.networks.get(id)}
        old, new = {_local_key(n): n for n in before.names}, {_local_key(n): n for n in state.names}
        for key in old.keys() | new.keys():
            item = new.get(key) or old[key]
            if old.get(key) != new.get(key):
                touched.add(item.network_id)
                self._table(item.network_id).put(key, claim_of_local(item) if key in new else None)
        self._describe(touched)
        return touched

    def _table(self, id: str) -> Table:
        table = self.tables.get(id)
        if table is None:
            table = self.tables[id] = Table(id)
        return table

    def _describe(self, touched: Iterable[str]) -> None:
        for id in touched:
            known = self._items.get(f"network/{id}")
            network = known.network if isinstance(known, NetworkItem) else self.local.networks.get(id)
            table = self._table(id)
            table.describe(network)
            if network is None and not table.claimed:
                del self.tables[id]


def _local_key(item: LocalName) -> str:
    return f"local/{item.network_id}/{item.address}/{' '.join(item.names)}"


def entries_of(table: Table) -> tuple[str, ...]:
    """Every name and its addresses, as `orders.Entries` gives them: the same for tables that mean the same."""
    return tuple(f"{name} {' '.join(sorted(addresses))}" for name, addresses in sorted(table.entries.items()))


def tables(snapshot: Snapshot, local: LocalState) -> Mapping[str, Table]:
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


def _ranges(subnets: Iterable[str]) -> tuple[tuple[int, int], ...]:
    out = []
    for text in subnets:
        try:
            subnet = ipaddress.IPv4Network(text, strict=False)
        except ValueError:
            continue
        out.append((int(subnet.network_address), int(subnet.broadcast_address)))
    return tuple(out)
