"""Containers' network namespaces: made, wired to the router and recorded before the container starts. Synchronous; the router's thread
calls it.

What a sandbox was given is kept in a record beside its pin (run_root/places/ID.json), so that a restarted daemon knows its containers
without asking anyone. The record is written last: a pin without one is what a crash left, and is made anew. See docs/network.md.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path

import msgspec

from skep.datapath import netlink, netns
from skep.datapath.base import Place
from skep.datapath.desired import LocalPlace, LocalPort, container_mac
from skep.datapath.router import Router, without_ipv6
from skep.datapath.rules import tag
from skep.errors import Invalid

SOURCE_TABLE = 100
NOWHERE = 0x7FFFFFFF
"""An index that no link has."""
_MAC = re.compile(r"([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}")
_OWN = {"net.ipv4.conf.all.send_redirects": "0"}


class Net(msgspec.Struct, frozen=True, kw_only=True):
    """What a place must know of its network."""

    group: int = 0
    mtu: int = 0
    internal: bool = False
    gateway: str = ""
    name: str = ""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A sandbox as it was made, and its ports."""

    id: str
    wired: tuple[tuple[Place, LocalPlace], ...] = ()
    mtu: int = 1450
    """Where the network says none."""
    ports: tuple[LocalPort, ...] = ()

    @property
    def places(self) -> tuple[LocalPlace, ...]:
        return tuple(local for _, local in self.wired)


class Sandboxes:
    def __init__(self, router: Router) -> None:
        self._router = router
        self._folder = router.run_root / "places"
        self.records: dict[str, Record] = {}

    def path(self, sandbox_id: str) -> Path:
        if not sandbox_id or sandbox_id in (".", "..") or "/" in sandbox_id or "\0" in sandbox_id or len(sandbox_id) > 200:
            raise Invalid(f"sandbox id {sandbox_id!r}: must be a plain file name")
        return self._router.pins / sandbox_id

    def load(self) -> None:
        """What is there after a restart; what a crash or a reboot left half is removed, a wire that is gone with its router is laid
        anew."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self.records = {}
        for file in self._folder.iterdir():
            try:
                record = msgspec.json.decode(file.read_bytes(), type=Record)
                if file.name != record.id or not netns.pinned(self.path(record.id)):
                    raise ValueError("no such sandbox")
            except (msgspec.DecodeError, ValueError, OSError):
                file.unlink(missing_ok=True)
                continue
            self.records[record.id] = _named(record)
        for pin in list(self._router.pins.iterdir()):
            if pin.name not in self.records:
                netns.remove(pin)
        links = self._router.net.links()
        for name in links:
            if name.startswith("v-") and not any(p.link == name for r in self.records.values() for p in r.places):
                self._router.net.send([netlink.del_link(name)])
        for record in self.records.values():
            if any(p.link not in links for p in record.places):
                self.wire(record)

    def save(self, record: Record) -> None:
        file = self._folder / record.id
        temporary = self._router.run_root / f".{record.id}.tmp"
        temporary.write_bytes(msgspec.json.encode(record))
        os.replace(temporary, file)
        self.records[record.id] = record

    def make(
        self, sandbox_id: str, places: tuple[Place, ...], nets: Mapping[str, Net], mtu: int, sysctls: Mapping[str, str] | None
    ) -> Record:
        """A new sandbox; `nets` by network id, `mtu` where it is not known. On failure nothing is left."""
        path = self.path(sandbox_id)
        record = Record(id=sandbox_id, mtu=mtu)
        for place in places:
            record = self._with(record, place, nets.get(place.network_id, Net(mtu=mtu)))
        netns.remove(path)
        netns.make(path)
        try:
            fd = netns.opened(path)
            try:
                with netns.entered(fd):
                    without_ipv6()
                    netns.set_sysctls(_OWN)
                    netns.set_sysctls(sysctls or {})
            finally:
                os.close(fd)
            self.wire(record)
            self.save(record)
        except BaseException:
            self._unwire(record)
            netns.remove(path)
            raise
        return record

    def _with(self, record: Record, place: Place, net: Net) -> Record:
        """One more place, on the lowest free `ethN`."""
        address, _ = read_address(place.address)
        if place.gateway:
            read_address(place.gateway)
        if place.mac:
            read_mac(place.mac)
        taken = {p.link for r in self.records.values() for p in r.places} | {p.link for p in record.places}
        names = {p.name for p in record.places}
        name = next(n for i in count() if (n := f"eth{i}") not in names)
        salt = 0
        while (link := f"v-{tag(f'{record.id}/{name}/{salt}', 12)}") in taken:
            salt += 1
        local = LocalPlace(
            sandbox_id=record.id,
            network_id=place.network_id,
            address=address,
            link=link,
            group=net.group,
            name=name,
            mtu=net.mtu,
            internal=net.internal,
            network_name=net.name,
        )
        return msgspec.structs.replace(record, wired=(*record.wired, (place, local)))

    def connect(self, record: Record, place: Place, net: Net) -> Record:
        """One more interface in a sandbox that is in use. On failure it is as it was."""
        new = self._with(record, place, net)
        link = new.wired[-1]
        fd = netns.opened(self.path(record.id))
        try:
            with netns.entered(fd):
                inside = netlink.Socket()
            with inside:
                try:
                    self._link(new, [link], fd)
                    inside.send(_links(inside, [link]))
                    _route(inside, record, new)
                    self.save(new)
                except BaseException:
                    self._router.net.send([netlink.del_link(link[1].link)])
                    _route(inside, new, record)
                    raise
        finally:
            os.close(fd)
        return new

    def disconnect(self, record: Record, network_id: str) -> Record:
        """Without its interface on that network."""
        gone = [p for p in record.places if p.network_id == network_id]
        new = msgspec.structs.replace(
            record,
            wired=tuple(w for w in record.wired if w[1].network_id != network_id),
            ports=tuple(p for p in record.ports if p.address not in {g.address for g in gone}),
        )
        self.save(new)
        self._router.net.send([netlink.del_link(p.link) for p in gone])
        fd = netns.opened(self.path(record.id))
        try:
            with netns.entered(fd):
                inside = netlink.Socket()
            with inside:
                _route(inside, record, new)
        finally:
            os.close(fd)
        return new

    def wire(self, record: Record) -> None:
        """Links, addresses and routes inside, from nothing: what is left of an earlier wire is removed first."""
        fd = netns.opened(self.path(record.id))
        try:
            with netns.entered(fd):
                inside = netlink.Socket()
            with inside:
                inside.send([netlink.set_link(1, "lo", up=True)])
                self._unwire(record)
                self._link(record, record.wired, fd)
                inside.send(_links(inside, record.wired))
                _route(inside, Record(id=record.id), record)
        finally:
            os.close(fd)

    def _link(self, record: Record, wired: Sequence[tuple[Place, LocalPlace]], fd: int) -> None:
        """The pairs, from the router into the namespace of this descriptor."""
        self._router.net.send(
            [
                netlink.new_veth(
                    local.link,
                    peer=local.name,
                    peer_namespace=fd,
                    peer_mac=place.mac or container_mac(local.address),
                    mtu=local.mtu or record.mtu,
                    group=local.group,
                )
                for place, local in wired
            ]
        )
        with netns.entered(self._router.fd):
            # an answer to ARP at once: the kernel waits up to 0.8 s otherwise
            netns.set_sysctls({f"net/ipv4/neigh/{local.link}/proxy_delay": "0" for _, local in wired})

    def _unwire(self, record: Record) -> None:
        for _, local in record.wired:
            self._router.net.send([netlink.del_link(local.link)])

    def remove(self, sandbox_id: str) -> Record | None:
        """Gives back what was known of it. Its links go with the namespace, behind our back: deleting one takes the kernel 16 ms and more,
        and everyone would wait. Should a process still hold the namespace, its links are in no group and lead nowhere."""
        path = self.path(sandbox_id)
        record = self.records.pop(sandbox_id, None)
        for local in record.places if record is not None else ():
            index = self._router.net.index(local.link)
            if index:
                self._router.net.send([netlink.set_link(index, f"{local.link} group 0", group=0)])
        netns.remove(path)
        (self._folder / sandbox_id).unlink(missing_ok=True)
        return record


def _named(record: Record) -> Record:
    """Of an earlier version: its interfaces are in the order of their places."""
    if all(local.name for local in record.places):
        return record
    wired = tuple((place, msgspec.structs.replace(local, name=f"eth{i}")) for i, (place, local) in enumerate(record.wired))
    return msgspec.structs.replace(record, wired=wired)


def _links(inside: netlink.Socket, wired: Sequence[tuple[Place, LocalPlace]]) -> list[netlink.Message]:
    messages = []
    for place, local in wired:
        address, prefix = read_address(place.address)
        index = inside.index(local.name)
        messages.append(netlink.set_link(index, f"{local.name} up", up=True))
        messages.append(netlink.address(index, address, prefix, what=local.name))
    return messages


def _route(inside: netlink.Socket, before: Record, after: Record) -> None:
    """Routes of the container: what is wanted replaces what there was, then goes what nobody wants; so no packet is without a way."""
    old, new = routes(before), routes(after)
    names = {local.name for _, local in (*before.wired, *after.wired)}
    indexes = {name: inside.index(name) or NOWHERE for name in names}
    inside.send([r.message(indexes) for r in new if r not in old])
    kept = {r.key for r in new}
    inside.send([r.message(indexes, delete=True) for r in reversed(old) if r.key not in kept])


class Way(msgspec.Struct, frozen=True):
    """A route of a container (`table`), or with `source` the rule that leads there."""

    link: str
    table: int
    destination: str = "0.0.0.0"
    prefix: int = 0
    via: str = ""
    source: str = ""

    @property
    def key(self) -> tuple[object, ...]:
        """What the kernel tells it by."""
        return (self.table, self.source) if self.source else (self.table, self.destination, self.prefix)

    def message(self, indexes: Mapping[str, int], *, delete: bool = False) -> netlink.Message:
        if self.source:
            priority = 1000 + self.table - SOURCE_TABLE
            return netlink.rule(table=self.table, source=self.source, priority=priority, delete=delete)
        return netlink.route(self.destination, self.prefix, index=indexes[self.link], via=self.via, table=self.table, delete=delete)


def routes(record: Record) -> list[Way]:
    """The default route is the first place's by `gateway_order`. With several places, what has the address of one leaves by its link (its
    router end lets nothing else pass)."""
    out = []
    gates = sorted((w for w in record.wired if w[0].gateway and not w[1].internal), key=gateway_order)
    if gates:
        out.append(Way(gates[0][1].name, netlink.MAIN_TABLE, via=read_address(gates[0][0].gateway)[0]))
    if len(record.wired) < 2:
        return out
    for place, local in record.wired:
        if not place.gateway:
            continue
        address, prefix = read_address(place.address)
        table = SOURCE_TABLE + int(local.name.removeprefix("eth"))
        subnet = ipaddress.IPv4Interface(f"{address}/{prefix}").network
        out.append(Way(local.name, table, str(subnet[0]), prefix))
        if not local.internal:
            out.append(Way(local.name, table, via=read_address(place.gateway)[0]))
        out.append(Way(local.name, table, source=address))
    return out


def gateway_order(wired: tuple[Place, LocalPlace]) -> tuple[int, str, int]:
    """Docker's: the highest priority, then the network's name; where names are not known, as they came."""
    place, local = wired
    return (-place.priority, place.network_name or local.network_name, int(local.name.removeprefix("eth")))


def read_address(text: str) -> tuple[str, int]:
    """`10.0.0.5/24` -> address and prefix length (32 where there is none)."""
    address, _, prefix = text.partition("/")
    if ":" in address:
        raise Invalid(f"address {text}: IPv6 is not supported by this data path yet")
    try:
        return str(ipaddress.IPv4Address(address)), int(ipaddress.IPv4Network(f"0.0.0.0/{prefix or 32}").prefixlen)
    except ValueError:
        raise Invalid(f"address {text!r}: not an IPv4 address with prefix length") from None


def read_mac(text: str) -> str:
    """Raises Invalid in Docker's words."""
    if _MAC.fullmatch(text) is None:
        raise Invalid(f"invalid MAC address: {text}")
    return text.lower()
