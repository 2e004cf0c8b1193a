"""`KernelDatapath`: the contract of skep.datapath.base over a router namespace, packed netlink and nft. See docs/network.md.

Decisions are desired.py and diff.py, pure; the kernel is touched by one thread, one call after another, so there is nothing to lock. What
was last applied is kept in memory; after a start, an error, and every few minutes the next `apply` compares with the kernel itself and
mends what differs. Between a start and the first `apply` nothing of the cluster's is touched: containers go on talking.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import shutil
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from skep.clock import MINUTE, Clock
from skep.datapath import netns
from skep.datapath.base import Place, Sandbox, Snapshot
from skep.datapath.desired import OVERHEAD, Here, LocalPort, Wanted, desired, is_ipv4, local_port_facts, place_facts, usable, vni_of
from skep.datapath.diff import diff
from skep.datapath.facts import KEPT, PROTOCOLS, Group
from skep.datapath.kernel import Kernel
from skep.datapath.router import Router
from skep.datapath.sandbox import Record, Sandboxes
from skep.errors import Conflict, Invalid, NotFound
from skep.model.spec import PortConfig

log = logging.getLogger(__name__)
COMPARE_EVERY = 5 * MINUTE
HOST_PORTS = range(32768, 61000)
"""Where a host-mode port without a number comes from, as Docker's."""
T = TypeVar("T")


class KernelDatapath:
    """`name` tells instances on one host apart (link and table names follow from it); `run_root` holds pins and records and must not
    outlive a reboot; `node_address` is the address the overlays use (empty: what the cluster says of this node). `aside`: stay clear of
    the host's forwarding, for hosts whose FORWARD chain drops (docs/network.md has its limits)."""

    def __init__(
        self, name: str, run_root: Path, node_address: str, *, clock: Clock, uplink: str = "172.31.255.0/30", aside: bool = False
    ) -> None:
        if node_address and not is_ipv4(node_address):
            raise Invalid(f"data path address {node_address}: IPv6 is not supported by this data path yet")
        self._clock, self._address = clock, node_address
        self._router = Router(name, run_root, uplink=uplink, aside=aside)
        self._kernel = Kernel(self._router)
        self._sandboxes = Sandboxes(self._router)
        self._thread: ThreadPoolExecutor | None = None
        self._snapshot: Snapshot | None = None
        self._applied = Wanted()
        self._dead: set[str] = set()
        """Addresses we have declared dead since the last comparison; the kernel may have let them go since."""
        self._trusted = False
        self._compared_at = 0
        self._next_port = HOST_PORTS.start
        self._mtu = 1500

    async def _run(self, call: Callable[[], T]) -> T:
        """In the one thread. A cancelled caller leaves the call to finish: it is one whole step."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="datapath")
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    # -- the contract

    async def start_up(self) -> None:
        await self._run(self._start_up)

    async def shut_down(self) -> None:
        await self._run(self._router.close)
        self._end_thread()

    async def destroy(self) -> None:
        await self._run(self._destroy)
        self._end_thread()

    async def attach(self, sandbox_id: str, places: tuple[Place, ...], sysctls: Mapping[str, str] | None = None) -> Sandbox:
        return await self._run(lambda: self._attach(sandbox_id, places, sysctls))

    async def detach(self, sandbox_id: str) -> None:
        await self._run(lambda: self._detach(sandbox_id))

    async def sandboxes(self) -> list[str]:
        return await self._run(lambda: sorted(self._sandboxes.records))

    async def publish(self, sandbox_id: str, address: str, ports: tuple[PortConfig, ...]) -> tuple[PortConfig, ...]:
        return await self._run(lambda: self._publish(sandbox_id, address, ports))

    async def unpublish(self, sandbox_id: str) -> None:
        await self._run(lambda: self._unpublish(sandbox_id))

    async def apply(self, snapshot: Snapshot) -> None:
        await self._run(lambda: self._apply(snapshot))

    # -- in the thread

    def _end_thread(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=False)
            self._thread = None

    def _start_up(self) -> None:
        if not self._router.is_open:
            self._router.open()
        self._mtu = self._router.underlay_mtu(self._address)
        self._sandboxes.load()
        # until the first snapshot we answer for our own containers only
        facts = {f for r in self._sandboxes.records.values() for p in r.places for f in place_facts(p, p.group)}
        self._applied = Wanted(frozenset(facts | local_port_facts(self._ports())))
        self._snapshot, self._trusted = None, False

    def _destroy(self) -> None:
        for folder in (self._router.pins, self._router.run_root / "places"):
            for entry in list(folder.iterdir()) if folder.is_dir() else []:
                netns.remove(entry)
        self._router.destroy()
        netns.unshare(self._router.pins)
        for folder in (self._router.pins, self._router.run_root / "places"):
            shutil.rmtree(folder, ignore_errors=True)
        self._sandboxes.records = {}
        self._applied, self._snapshot, self._trusted = Wanted(), None, False

    def _ports(self) -> list[LocalPort]:
        return [p for r in self._sandboxes.records.values() for p in r.ports]

    def _wanted(self, snapshot: Snapshot) -> Wanted:
        places = [p for r in self._sandboxes.records.values() for p in r.places]
        return desired(snapshot, Here(address=self._address, mtu=self._mtu), places, self._ports())

    def _apply(self, snapshot: Snapshot) -> None:
        now = self._clock.now()
        if not self._trusted or now - self._compared_at > COMPARE_EVERY:
            self._compare(self._wanted(snapshot), snapshot, first=self._snapshot is None)
            self._compared_at = now
        else:
            self._change(self._wanted(snapshot))
        own = next((p for p in snapshot.peers.values() if p.node_id == snapshot.node_id), None)
        if own is not None and own.index > KEPT and self._snapshot is None:
            log.warning(
                "this node's index is %d: clients that come in here show this node's link address to tasks elsewhere, not their own",
                own.index,
            )
        self._snapshot = snapshot
        self._regroup()

    def _compare(self, wanted: Wanted, snapshot: Snapshot, *, first: bool) -> None:
        """Against the kernel itself. nft's sets are filled anew in one transaction; no connection notices."""
        found = self._kernel.read_back()
        change = diff(found, wanted, self._router.table, leftovers=self._kernel.port_chains())
        if not first and self._trusted and (change.add or change.remove or change.replace):
            log.warning("the router had lost its way: mending %s", ", ".join(map(str, [*change.replace, *change.add, *change.remove][:5])))
        self._trusted = False
        self._kernel.apply(change)
        self._applied, self._trusted, self._dead = wanted, True, set(found.present - wanted.present)

    def _change(self, wanted: Wanted) -> None:
        change = diff(self._applied, wanted, self._router.table, dead=self._dead)
        if not change.empty:
            trusted, self._trusted = self._trusted, False
            self._kernel.apply(change)
            self._trusted = trusted
        self._dead = self._dead | self._applied.present - wanted.present
        self._dead -= wanted.present
        self._applied = wanted

    def _regroup(self) -> None:
        """Keep in the records which group each place is in: a restart must not take a container off its network."""
        if self._snapshot is None:
            return
        groups = self._groups()
        for record in list(self._sandboxes.records.values()):
            if any(p.network_id in groups and p.group != groups[p.network_id] for p in record.places):
                wired = tuple((a, msgspec.structs.replace(p, group=groups.get(p.network_id, p.group))) for a, p in record.wired)
                self._sandboxes.save(msgspec.structs.replace(record, wired=wired))

    def _groups(self) -> dict[str, int]:
        """Network id -> device group."""
        if self._snapshot is None:
            return {}
        return {n.network.id: vni_of(n.network) for n in self._snapshot.networks.values() if usable(n.network)}

    def _attach(self, sandbox_id: str, places: tuple[Place, ...], sysctls: Mapping[str, str] | None) -> Sandbox:
        path = self._sandboxes.path(sandbox_id)
        if sandbox_id not in self._sandboxes.records:
            taken = {p.address: r.id for r in self._sandboxes.records.values() for p in r.places}
            for place in places:
                holder = taken.get(place.address.partition("/")[0])
                if holder:
                    raise Conflict(f"Address already in use: {place.address} is held by {holder}")
            places = tuple(self._with_gateway(place) for place in places)
            record = self._sandboxes.make(sandbox_id, places, self._groups(), self._mtu - OVERHEAD, sysctls)
            facts = {f for p in record.places for f in place_facts(p, p.group)}
            # the links were made in their groups
            done = {f for f in facts if isinstance(f, Group)}
            old = self._applied
            self._applied = Wanted(old.facts | done, old.present, old.datagrams)
            try:
                self._change(Wanted(old.facts | facts, old.present | {p.address for p in record.places}, old.datagrams))
            except BaseException:
                self._sandboxes.remove(sandbox_id)
                raise
        return Sandbox(id=sandbox_id, path=str(path))

    def _with_gateway(self, place: Place) -> Place:
        """Where none is given it is the network's own, as the cluster says."""
        network = self._snapshot.networks.get(f"network/{place.network_id}") if self._snapshot and not place.gateway else None
        gateway = next((config.gateway for config in network.network.ipam if is_ipv4(config.gateway)), "") if network else ""
        return msgspec.structs.replace(place, gateway=gateway) if gateway else place

    def _detach(self, sandbox_id: str) -> None:
        self._unpublish(sandbox_id)
        record = self._sandboxes.remove(sandbox_id)
        if record is None:
            return
        old = self._applied
        # who still talks to it is told so by the next snapshot; its own kernel has closed its connections already
        gone = {f for p in record.places for f in place_facts(p, p.group)}
        self._change(Wanted(old.facts - gone, old.present, old.datagrams))
        for place in record.places:
            self._kernel.forget_link(place.link)

    # -- ports published on this node

    def _publish(self, sandbox_id: str, address: str, ports: tuple[PortConfig, ...]) -> tuple[PortConfig, ...]:
        record = self._sandboxes.records.get(sandbox_id)
        if record is None:
            raise NotFound(f"No such sandbox: {sandbox_id}")
        if not is_ipv4(address):
            raise Invalid(f"address {address}: IPv6 is not supported by this data path yet")
        taken = {(p.protocol, p.port) for p in self._ports() if p.sandbox_id != sandbox_id} | self._ingress_ports()
        held = {(p.protocol, p.target): p.port for p in record.ports}
        mine = {(p.protocol, p.port) for p in record.ports}
        out, local = [], []
        for port in ports:
            protocol = port.protocol or "tcp"
            if protocol not in PROTOCOLS:
                raise Invalid(f"invalid proto: {protocol}")
            number = port.published_port or held.get((protocol, port.target_port)) or self._free_port(protocol, taken)
            if (protocol, number) in taken:
                raise Conflict(f"Bind for 0.0.0.0:{number} failed: port is already allocated")
            if (protocol, number) not in mine and not _bindable(protocol, number):
                raise Conflict(
                    f"failed to bind host port for 0.0.0.0:{number}:{address}:{port.target_port}/{protocol}: address already in use"
                )
            taken.add((protocol, number))
            local.append(LocalPort(sandbox_id=sandbox_id, protocol=protocol, port=number, address=address, target=port.target_port))
            out.append(msgspec.structs.replace(port, protocol=protocol, published_port=number))
        self._set_ports(record, tuple(local))
        return tuple(out)

    def _unpublish(self, sandbox_id: str) -> None:
        record = self._sandboxes.records.get(sandbox_id)
        if record is not None and record.ports:
            self._set_ports(record, ())

    def _set_ports(self, record: Record, ports: tuple[LocalPort, ...]) -> None:
        before = local_port_facts(self._ports())
        self._sandboxes.save(msgspec.structs.replace(record, ports=ports))
        if self._snapshot is not None:
            self._change(self._wanted(self._snapshot))
            return
        old = self._applied
        self._change(Wanted(old.facts - before | local_port_facts(self._ports()), old.present, old.datagrams))

    def _ingress_ports(self) -> set[tuple[str, int]]:
        if self._snapshot is None:
            return set()
        services = self._snapshot.services.values()
        return {(p.protocol or "tcp", p.published_port) for s in services for p in s.ports if p.publish_mode != "host"}

    def _free_port(self, protocol: str, taken: set[tuple[str, int]]) -> int:
        for _ in HOST_PORTS:
            number = self._next_port
            self._next_port = number + 1 if number + 1 in HOST_PORTS else HOST_PORTS.start
            if (protocol, number) not in taken and _bindable(protocol, number):
                return number
        raise Conflict("all ports are allocated")


def _bindable(protocol: str, port: int) -> bool:
    """Whether no process of the host listens there: our rules would take its clients away."""
    kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}.get(protocol)
    if kind is None:
        return True
    with socket.socket(socket.AF_INET, kind) as probe:
        if protocol == "tcp":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as e:
            if e.errno == errno.EADDRINUSE:
                return False
            raise Conflict(f"cannot publish port {port}/{protocol}: {e.strerror}") from None
    return True
