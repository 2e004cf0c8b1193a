"""What is in this node's kernel, and bringing it to what is wanted: sandboxes, snapshot, the node's own networks, published ports.

Synchronous; the data path's one thread calls it (skep.datapath.path). Decisions are desired.py, local.py and diff.py, pure. What was last
applied is kept in memory and compared with the kernel when asked. See docs/network.md.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from skep.clock import Clock
from skep.datapath import local, netns, ports, repair
from skep.datapath.base import HostPort, LocalState, Place, Sandbox, Snapshot
from skep.datapath.desired import OVERHEAD, Here, LocalPlace, LocalPort, Memo, Wanted, desired, is_ipv4, mtu_of, place_facts, usable, vni_of
from skep.datapath.diff import diff
from skep.datapath.facts import KEPT, Group
from skep.datapath.inspection import Faults, Inspection
from skep.datapath.kept import read_local, write_local
from skep.datapath.kernel import Kernel
from skep.datapath.refusals import Refusals
from skep.datapath.router import Router
from skep.datapath.sandbox import Net, Record, Sandboxes
from skep.errors import Conflict, Invalid, NotFound, SkepError

log = logging.getLogger(__name__)


class Layout:
    """`name` tells instances on one host apart (link and table names follow from it); `run_root` holds pins and records and must not
    outlive a reboot; `node_address` is the address the overlays use until `join` names one (empty: what the cluster says of this node).
    `aside`: stay clear of the host's forwarding, for hosts whose FORWARD chain drops (docs/network.md has its limits)."""

    def __init__(
        self, name: str, run_root: Path, node_address: str = "", *, clock: Clock, uplink: str = "172.31.255.0/30", aside: bool = False
    ) -> None:
        self._clock, self._address = clock, checked_address(node_address)
        self._router = Router(name, run_root, uplink=uplink, aside=aside)
        self._kernel = Kernel(self._router)
        self._sandboxes = Sandboxes(self._router)
        self._inspection = Inspection(self._router, self._kernel, self._sandboxes)
        self._snapshot: Snapshot | None = None
        self._local = LocalState()
        self._local_file, self._member_file = run_root / "local.json", run_root / "member"
        self._memo = Memo()
        self._refusals = Refusals()
        self._applied = Wanted()
        self._dead: set[str] = set()
        """Addresses we have declared dead since the last comparison; the kernel may have let them go since."""
        self._trusted = False
        self._member = False
        """Whether a cluster tells of its part: until it has, nothing of that is touched."""
        self.mended = 0
        """How many things were found to be other than we had left them, and mended, since this object was made."""
        self._allotment = ports.Allotment(self._bindable)
        self._mtu = 1500

    def _start_up(self) -> None:
        if not self._router.is_open:
            self._router.open()
            self._inspection.open()
        self._mtu = self._router.underlay_mtu(self._address)
        self._local = read_local(self._local_file)
        self._member = self._member_file.exists()
        self._sandboxes.load()
        self._snapshot, self._trusted, self._applied = None, False, Wanted()
        self._settle()

    def _close(self) -> None:
        self._inspection.close()
        self._router.close()

    def _join(self, address: str) -> None:
        self._address = checked_address(address)
        self._mtu = self._router.underlay_mtu(address)
        self._belong()

    def _belong(self) -> None:
        """From now on, also after a restart, what is in the kernel may be the cluster's."""
        self._member_file.touch()
        self._member = True

    def _leave(self) -> None:
        self._snapshot, self._address = None, ""
        self._member, self._trusted = False, False
        self._settle()
        self._member_file.unlink(missing_ok=True)

    def _destroy(self) -> None:
        for folder in (self._router.pins, self._router.run_root / "places"):
            for entry in list(folder.iterdir()) if folder.is_dir() else []:
                netns.remove(entry)
        self._inspection.close()
        self._router.destroy()
        netns.unshare(self._router.pins)
        for folder in (self._router.pins, self._router.run_root / "places"):
            shutil.rmtree(folder, ignore_errors=True)
        self._local_file.unlink(missing_ok=True)
        self._member_file.unlink(missing_ok=True)
        self._sandboxes.records = {}
        self._applied, self._snapshot, self._trusted = Wanted(), None, False
        self._local, self._member = LocalState(), False

    def networks_of(self, sandbox_id: str) -> tuple[str, ...]:
        record = self._sandboxes.records.get(sandbox_id)
        return tuple(p.network_id for p in record.places) if record is not None else ()

    def path_of(self, sandbox_id: str) -> str:
        return str(self._sandboxes.path(sandbox_id))

    def _ports(self) -> list[LocalPort]:
        return [p for r in self._sandboxes.records.values() for p in r.ports]

    def _wanted(self) -> Wanted:
        places = [p for r in self._sandboxes.records.values() for p in r.places]
        ports = self._ports()
        here = Here(address=self._address, mtu=self._mtu)
        without = self._refusals.compare(self._snapshot, self._local, self._router.uplink, ports)
        wanted = desired(self._snapshot or Snapshot(), here, places, ports, self._memo, without)
        facts = local.local_facts(self._local, ports, self._kernel.host_addresses())
        datagrams = {p.address for p in ports if p.protocol == "udp"}
        return Wanted(wanted.facts | facts, wanted.present, wanted.datagrams | datagrams)

    def _settle(self) -> None:
        """Bring the kernel to what is wanted now; networks that it refuses are left out, and tried again the next time."""
        wanted = self._wanted()
        self._kernel.forget_taken(wanted)
        if self._undecided or self._trusted:
            try:
                # while what the cluster wants is not known, only what this node wants by itself is put there (again)
                self._change(wanted)
            except SkepError as error:
                log.warning("what was applied is not what is there (%s): comparing everything", error)
            else:
                self._refusals.look(self._snapshot, self._kernel.taken)
                return
        self._look(wanted, None, mend=True)

    @property
    def _undecided(self) -> bool:
        return self._member and self._snapshot is None

    def _apply(self, snapshot: Snapshot) -> None:
        if not self._member:
            self._belong()
        first, self._snapshot = self._snapshot is None, snapshot
        self._trusted = self._trusted and not first
        own = next((p for p in snapshot.peers.values() if p.node_id == snapshot.node_id), None)
        if first and own is not None and own.index > KEPT:
            log.warning(
                "this node's index is %d: clients that come in here show this node's link address to tasks elsewhere, not their own",
                own.index,
            )
        self._regroup()
        self._settle()

    def _apply_local(self, state: LocalState) -> None:
        unmasked = next((n for n in state.networks.values() if not n.masquerade), None)
        if unmasked is not None and self._router.aside:
            raise Invalid(
                f"network {unmasked.id[:12]}: without masquerading its packets need the host's forwarding, which this node stays clear of"
            )
        if state.networks == self._local.networks and self._trusted:
            # names are the resolver's
            return
        write_local(self._local_file, state)
        gone = [n for n in self._local.networks.values() if n.id not in state.networks]
        self._local = state
        self._regroup()
        self._settle()
        # their subnets may be somebody else's from now on
        self._kernel.revive({a for a in self._dead if local.home_of(a, gone) is not None})

    @property
    def underlay_mtu(self) -> int:
        """As last read: when the node joined, and by each comparison since."""
        return self._mtu

    def _compare(self, *, mend: bool) -> list[str]:
        """What differs from what we left, a sentence each; mended and counted if so wished."""
        if not self._router.is_open:
            return []
        if mend:
            self._look_at_underlay()
        self._inspection.begin()
        if mend and self._trusted and self._kernel.taken:
            self._settle()
        if self._trusted and self._inspection.settled:
            return []
        wanted = self._wanted()
        if mend and self._trusted and self._kernel.attained(wanted) != self._applied:
            # what the node itself is like has changed, as its addresses: no fault of anybody's
            self._settle()
        said = self._look(wanted, self._applied if self._trusted else None, mend=mend)
        if mend and said:
            self.mended += len(said)
            for sentence in said[:20]:
                log.warning("mended: %s", sentence)
            if len(said) > 20:
                log.warning("mended: %d more", len(said) - 20)
        return said

    def _look_at_underlay(self) -> None:
        """Its width may be set while the node runs: the overlays follow, and nothing was mended."""
        before, self._mtu = self._mtu, self._router.underlay_mtu(self._address)
        if self._mtu != before:
            log.info("the underlay's MTU is %d now, it was %d", self._mtu, before)
            if self._trusted:
                self._settle()

    def _look(self, wanted: Wanted, applied: Wanted | None, *, mend: bool) -> list[str]:
        """Against the kernel itself; no connection notices. `applied`: what is there if nobody has touched it."""
        inspection = self._inspection
        if applied is None:
            inspection.begin()
        faults = inspection.faults(applied)
        if mend:
            self._trusted = False
            inspection.mend(faults)
        found, dead = inspection.found(wanted, applied)
        if self._undecided:
            found = repair.in_the_way(found, wanted)
        if mend:
            self._dead = (dead | self._dead | found.present) - wanted.present
            self._kernel.apply(diff(found, wanted, self._router.table, dead=dead | self._dead))
            self._applied, self._trusted = self._kernel.attained(wanted), not self._undecided
            self._refusals.look(self._snapshot, self._kernel.taken)
            inspection.end()
        return _said(faults, found, self._kernel.attained(wanted), "was" if mend else "is")

    def _change(self, wanted: Wanted) -> None:
        change = diff(self._applied, wanted, self._router.table, dead=self._dead)
        if not change.empty:
            trusted, self._trusted = self._trusted, False
            self._kernel.apply(change)
            self._trusted = trusted
        self._dead = self._dead | self._applied.present - wanted.present
        self._dead -= wanted.present
        self._applied = self._kernel.attained(wanted)

    def _regroup(self) -> None:
        """Keep in the records which group each place is in: a restart must not take a container off its network."""
        nets = self._nets()
        for record in list(self._sandboxes.records.values()):
            if any(p.network_id in nets and p.group != nets[p.network_id].group for p in record.places):
                wired = tuple(
                    (a, msgspec.structs.replace(p, group=nets[p.network_id].group if p.network_id in nets else p.group))
                    for a, p in record.wired
                )
                self._sandboxes.save(msgspec.structs.replace(record, wired=wired))

    def _nets(self) -> dict[str, Net]:
        """By network id."""
        out = {
            n.id: Net(group=n.group, mtu=n.mtu or self._mtu, internal=n.internal, gateway=n.gateway, name=n.name)
            for n in self._local.networks.values()
        }
        for item in self._snapshot.networks.values() if self._snapshot is not None else ():
            if usable(item.network):
                gateway = next((config.gateway for config in item.network.ipam if is_ipv4(config.gateway)), "")
                mtu = mtu_of(item.network, self._mtu)
                out[item.network.id] = Net(group=vni_of(item.network), mtu=mtu, gateway=gateway, name=item.network.name)
        return out

    def _attach(self, sandbox_id: str, places: tuple[Place, ...], sysctls: Mapping[str, str] | None) -> Sandbox:
        if sandbox_id not in self._sandboxes.records:
            nets = self._nets()
            places = tuple(self._checked(place, nets) for place in places)
            record = self._sandboxes.make(sandbox_id, places, nets, self._mtu - OVERHEAD, sysctls)
            try:
                self._let_in(record.places)
            except BaseException:
                self._sandboxes.remove(sandbox_id)
                raise
        return Sandbox(id=sandbox_id, path=self.path_of(sandbox_id))

    def _connect(self, sandbox_id: str, place: Place) -> None:
        record = self._record(sandbox_id)
        nets = self._nets()
        net = nets.get(place.network_id, Net(mtu=self._mtu - OVERHEAD))
        if place.network_id in self.networks_of(sandbox_id):
            raise Conflict(f"endpoint with name {sandbox_id} already exists in network {net.name or place.network_id}")
        new = self._sandboxes.connect(record, self._checked(place, nets), net)
        try:
            self._let_in(new.places[-1:])
        except BaseException:
            self._sandboxes.disconnect(new, place.network_id)
            raise

    def _disconnect(self, sandbox_id: str, network_id: str) -> None:
        record = self._sandboxes.records.get(sandbox_id)
        gone = [p for p in record.places if p.network_id == network_id] if record is not None else []
        if record is None or not gone:
            return
        kept = tuple(p for p in record.ports if p.address not in {g.address for g in gone})
        if kept != record.ports:
            record = self._set_ports(record, kept)
        self._sandboxes.disconnect(record, network_id)
        self._let_out(gone)

    def _let_in(self, places: tuple[LocalPlace, ...]) -> None:
        self._kernel.forget_links(p.link for p in places)
        facts = {f for p in places for f in place_facts(p, p.group)}
        # the links were made in their groups
        done = {f for f in facts if isinstance(f, Group)}
        old = self._applied
        self._applied = Wanted(old.facts | done, old.present, old.datagrams)
        self._change(Wanted(old.facts | facts, old.present | {p.address for p in places}, old.datagrams))

    def _let_out(self, places: Iterable[LocalPlace]) -> None:
        """Who still talks to one of an overlay is told so by the next snapshot; its own kernel has closed its connections already."""
        old = self._applied
        gone = {f for p in places for f in place_facts(p, p.group)}
        here = {p.address for p in places if p.network_id in self._local.networks}
        self._change(Wanted(old.facts - gone, old.present - here, old.datagrams))
        self._kernel.forget_links(p.link for p in places)

    def _checked(self, place: Place, nets: Mapping[str, Net]) -> Place:
        """With its network's gateway where none is given. Raises where its network cannot be laid here or somebody has its address."""
        if self._refusals.why(place.network_id):
            self._settle()
        if why := self._refusals.why(place.network_id):
            raise SkepError(why)
        address = place.address.partition("/")[0]
        holder = next((r.id for r in self._sandboxes.records.values() if address in {p.address for p in r.places}), "")
        if holder:
            raise Conflict(f"Address already in use: {place.address} is held by {holder}")
        if place.gateway or place.network_id not in nets:
            return place
        return msgspec.structs.replace(place, gateway=nets[place.network_id].gateway)

    def _detach(self, sandbox_id: str) -> None:
        self._unpublish(sandbox_id)
        record = self._sandboxes.remove(sandbox_id)
        if record is not None:
            self._let_out(record.places)

    # -- ports published on this node

    def _record(self, sandbox_id: str) -> Record:
        record = self._sandboxes.records.get(sandbox_id)
        if record is None:
            raise NotFound(f"No such sandbox: {sandbox_id}")
        return record

    def _publish(self, sandbox_id: str, address: str, wanted: tuple[HostPort, ...]) -> tuple[HostPort, ...]:
        record = self._record(sandbox_id)
        if not is_ipv4(address):
            raise Invalid(f"address {address}: IPv6 is not supported by this data path yet")
        home = local.home_of(address, self._local.networks.values())
        if home is not None and home.internal and wanted:
            raise Invalid(f"port {wanted[0].target} cannot be published at {address}: its network is internal")
        if home is not None and home.binding:
            wanted = tuple(w if w.address else msgspec.structs.replace(w, address=home.binding) for w in wanted)
        others = {(p.at, p.protocol, p.port) for p in self._ports() if p.sandbox_id != sandbox_id} | self._ingress_ports()
        given, mine = self._allotment.give(sandbox_id, address, wanted, record.ports, others)
        self._set_ports(record, tuple(mine))
        return tuple(given)

    def _bindable(self, at: str, protocol: str, port: int) -> bool:
        """The gateway of a network of ours is the host to its containers, but no address of the host's."""
        return any(n.gateway == at for n in self._local.networks.values()) or ports.bindable(at, protocol, port)

    def _unpublish(self, sandbox_id: str) -> None:
        record = self._sandboxes.records.get(sandbox_id)
        if record is not None and record.ports:
            self._set_ports(record, ())

    def _set_ports(self, record: Record, given: tuple[LocalPort, ...]) -> Record:
        """On failure it has what it had."""
        new = msgspec.structs.replace(record, ports=given)
        self._sandboxes.save(new)
        try:
            self._settle()
        except BaseException:
            self._sandboxes.save(record)
            raise
        return new

    def _ingress_ports(self) -> set[ports.Key]:
        if self._snapshot is None:
            return set()
        services = self._snapshot.services.values()
        return {("", p.protocol or "tcp", p.published_port) for s in services for p in s.ports if p.publish_mode != "host"}


def checked_address(address: str) -> str:
    if address and not is_ipv4(address):
        raise Invalid(f"data path address {address}: IPv6 is not supported by this data path yet")
    return address


def _said(faults: Faults, found: Wanted, wanted: Wanted, was: str) -> list[str]:
    lost = {p.link for record in faults.cut for p in record.places} | set(faults.down)
    said = [f"{what} {was} {how}" for what, how in faults.said]
    return said + repair.sentences(found, wanted, was=was, lost=lost, empty=faults.empty)
