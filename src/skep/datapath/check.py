"""Is this node's network well? What is in its kernel and in its resolver against the snapshot in force, and who answers its tasks.

`examine` changes nothing unless it is to repair, and takes so many seconds at most. It asks from inside the node's own tasks: every pair of
tasks while there are few, else from one task per network. What it cannot judge alone (whether the snapshot is what the store says, which
of two nodes is to blame) is for the manager: skep.manager.check. See docs/network.md.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

from skep.datapath import netns
from skep.datapath.base import LocalState, Snapshot
from skep.datapath.desired import Here, LocalPlace, is_ipv4, link_address, mtu_of, narrow, usable
from skep.datapath.path import Standing
from skep.datapath.probes import Answer, Target, reach
from skep.datapath.tables import Table, entries_of, tables
from skep.errors import SkepError
from skep.model.assignment import Item
from skep.model.check import OVERLAY, TASK, UNDERLAY, VIP, WIDE, NodeReport, Reached, fingerprint
from skep.model.network import Network

PAIRS = 1000
"""Up to so many pairs of tasks on a network each is tried."""
MOST = 5000
"""What one node tries in one check."""
PROBE_SECONDS = 4.0
"""The first retransmission of a connection comes after one second, the next two seconds later."""
SETTLE, SETTLE_STEP = 3.0, 0.1
SENTENCES = 200


class Kernel(Protocol):
    """`KernelDatapath`."""

    async def standing(self) -> Standing: ...

    async def explain(self) -> list[str]: ...

    async def compare(self) -> list[str]: ...

    async def refused(self) -> list[str]: ...


class Names(Protocol):
    """`ResolverNames`."""

    async def entries(self, network_id: str) -> tuple[str, ...]: ...

    async def explain(self) -> list[str]: ...

    async def compare(self) -> list[str]: ...

    async def renew(self) -> None: ...


class Attempt:
    """What is to be tried, and what it means."""

    def __init__(self, namespace: Path | None, target: Target, meaning: Reached) -> None:
        self.namespace, self.target, self.meaning = namespace, target, meaning

    def answered(self, answer: Answer) -> Reached:
        target, meaning = self.target, self.meaning
        return Reached(
            what=meaning.what,
            source=meaning.source,
            node_id=meaning.node_id,
            network_id=meaning.network_id,
            address=target.address,
            subject=meaning.subject,
            ping=answer.ping if target.ping else None,
            tcp=answer.tcp if target.tcp else None,
            size=answer.size,
        )


async def examine(kernel: Kernel, names: Names, networks: Collection[str], repair: bool) -> NodeReport:
    """`networks`: ids; none: all of them."""
    began = time.monotonic()
    try:
        standing = await kernel.standing()
        if standing.snapshot is None:
            return NodeReport(error="it has heard nothing of the cluster's network since it was started")
        said = await (kernel.compare() if repair else kernel.explain())
        refused = await kernel.refused()
        wrong = await _names(kernel, names, repair)
        reached, skipped = await _reach(kernel, networks)
        snapshot = (await kernel.standing()).snapshot or standing.snapshot
    except (SkepError, OSError) as error:
        return NodeReport(error=str(error), milliseconds=_since(began))
    return NodeReport(
        version=snapshot.version,
        items={item.key: fingerprint(item) for table in _tables_of(snapshot) for item in table.values()},
        kernel=tuple(said[:SENTENCES]),
        refused=tuple(refused[:SENTENCES]),
        names=tuple(wrong[:SENTENCES]),
        repaired=repair,
        reached=tuple(reached),
        skipped=skipped,
        milliseconds=_since(began),
    )


def _since(began: float) -> int:
    return int((time.monotonic() - began) * 1000)


def _tables_of(snapshot: Snapshot) -> tuple[Mapping[str, Item], ...]:
    return (snapshot.networks, snapshot.peers, snapshot.endpoints, snapshot.services, snapshot.discovery)


# names


async def _names(kernel: Kernel, names: Names, repair: bool) -> list[str]:
    said = await (names.compare() if repair else names.explain())
    end = time.monotonic() + SETTLE
    while True:
        # the kernel hears of a change before the resolver does: only what stays different is wrong
        snapshot = (await kernel.standing()).snapshot or Snapshot()
        wrong = await _differences(names, tables(snapshot, LocalState()), [n.network.id for n in snapshot.networks.values()])
        if not wrong or (time.monotonic() > end and (await kernel.standing()).snapshot is snapshot):
            break
        await asyncio.sleep(SETTLE_STEP)
    if wrong and repair:
        await names.renew()
    return said + wrong


async def _differences(names: Names, wanted: Mapping[str, Table], networks: list[str]) -> list[str]:
    out = []
    for id in networks:
        table = wanted[id]
        there, ought = set(await names.entries(id)), set(entries_of(table))
        found = dict(entry.split(" ", 1) for entry in there)
        for entry in sorted(ought - there):
            name, addresses = entry.split(" ", 1)
            out.append(f"the name {name} on network {table.title} means {found.get(name, 'nothing')}, not {addresses}")
        known = {entry.split(" ", 1)[0] for entry in ought}
        out += [
            f"the name {e.split(' ', 1)[0]} on network {table.title} is known, and ought not to be"
            for e in sorted(there)
            if e.split(" ", 1)[0] not in known
        ]
    return out


# who answers


async def _reach(kernel: Kernel, networks: Collection[str]) -> tuple[list[Reached], int]:
    standing = await kernel.standing()
    attempts = plan(standing, networks)
    chosen = attempts[:MOST]
    by_namespace: dict[Path | None, list[Attempt]] = {}
    for attempt in chosen:
        by_namespace.setdefault(attempt.namespace, []).append(attempt)
    found = await asyncio.gather(*(_try(where, some) for where, some in by_namespace.items()))
    after = await kernel.standing()
    return [one for some in found for one in some if one.ok or _still_there(one, after)], len(attempts) - len(chosen)


async def _try(namespace: Path | None, attempts: list[Attempt]) -> list[Reached]:
    try:
        answers = await asyncio.to_thread(reach, namespace, [a.target for a in attempts], PROBE_SECONDS)
    except OSError:
        if namespace is None or netns.pinned(namespace):
            raise
        return []
    return [attempt.answered(answer) for attempt, answer in zip(attempts, answers, strict=True)]


def _still_there(one: Reached, standing: Standing) -> bool:
    """Who has left while he was being asked, or whom nobody asks from any more, is no fault."""
    snapshot = standing.snapshot or Snapshot()
    if one.source and not any(p.address == one.source and p.network_id == one.network_id for p, _ in standing.places):
        return False
    if one.what == VIP:
        item = snapshot.discovery.get(one.subject)
        return item is not None and item.vip == one.address
    if one.subject:
        endpoint = snapshot.endpoints.get(one.subject)
        return endpoint is not None and endpoint.serving
    return any(peer.node_id == one.node_id for peer in snapshot.peers.values())


def plan(standing: Standing, networks: Collection[str]) -> list[Attempt]:
    """All that is to be tried, what matters most first. Pure."""
    snapshot, here = standing.snapshot or Snapshot(), standing.here
    known = {n.network.id: n.network for n in snapshot.networks.values() if usable(n.network) and n.network.id not in standing.refused}
    chosen = [network for id, network in sorted(known.items()) if not networks or id in networks]
    attempts = _nodes(snapshot, here, standing.router, [n for n in known.values() if n.spec.ingress])
    for network in chosen:
        places = sorted((it for it in standing.places if it[0].network_id == network.id), key=lambda it: it[0].address)
        attempts += _network(snapshot, here, network, [(p, path) for p, path in places if is_ipv4(p.address)])
    return attempts


def _nodes(snapshot: Snapshot, here: Here, router: Path, ingress: list[Network]) -> list[Attempt]:
    """Each node's address, and its end of the one overlay that every node is on."""
    out = []
    for peer in snapshot.peers.values():
        if peer.node_id == snapshot.node_id or not is_ipv4(peer.address):
            continue
        out.append(Attempt(None, Target(address=peer.address, tcp=True), Reached(what=UNDERLAY, node_id=peer.node_id)))
        for network in ingress:
            to = link_address(peer.index)
            size = narrow(peer, network, here) or mtu_of(network, here.mtu)
            out.append(Attempt(router, Target(address=to), Reached(what=OVERLAY, node_id=peer.node_id, network_id=network.id)))
            out.append(Attempt(router, Target(address=to, size=size), Reached(what=WIDE, node_id=peer.node_id, network_id=network.id)))
    return out


def _network(snapshot: Snapshot, here: Here, network: Network, places: list[tuple[LocalPlace, Path]]) -> list[Attempt]:
    peers = {p.node_id: p for p in snapshot.peers.values()}
    endpoints = sorted(
        ((key, e) for key, e in snapshot.endpoints.items() if e.network_id == network.id and e.serving and is_ipv4(e.address)),
        key=lambda it: it[1].address,
    )
    serving = {e.address for _, e in endpoints}
    places = sorted(places, key=lambda it: it[0].address not in serving)
    if len(places) * len(endpoints) > PAIRS:
        places = places[:1]
    out: list[Attempt] = []
    for place, path in places:
        seen: set[str] = set()
        for key, endpoint in endpoints:
            if endpoint.address == place.address:
                continue
            meaning = Reached(what=TASK, source=place.address, node_id=endpoint.node_id, network_id=network.id, subject=key)
            out.append(Attempt(path, Target(address=endpoint.address, tcp=True), meaning))
            if endpoint.node_id != snapshot.node_id and endpoint.node_id not in seen and (peer := peers.get(endpoint.node_id)):
                seen.add(endpoint.node_id)
                size = min(place.mtu or 65535, narrow(peer, network, here) or mtu_of(network, here.mtu))
                wide = Reached(what=WIDE, source=place.address, node_id=peer.node_id, network_id=network.id, subject=key)
                out.append(Attempt(path, Target(address=endpoint.address, size=size), wide))
        out += [
            Attempt(
                path,
                Target(address=item.vip, ping=False, tcp=True),
                Reached(what=VIP, source=place.address, network_id=network.id, subject=key),
            )
            for key, item in sorted(snapshot.discovery.items())
            if item.network_id == network.id and is_ipv4(item.vip)
        ]
    return out
