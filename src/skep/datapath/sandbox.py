"""Containers' network namespaces: made, wired to the router and recorded before the container starts. Synchronous; the router's thread
calls it.

What a sandbox was given is kept in a record beside its pin (run_root/places/ID.json), so that a restarted daemon knows its containers
without asking anyone. The record is written last: a pin without one is what a crash left, and is made anew. See docs/network.md.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from skep.datapath import netlink, netns
from skep.datapath.base import Place
from skep.datapath.desired import LocalPlace, LocalPort, container_mac
from skep.datapath.router import Router, without_ipv6
from skep.datapath.rules import tag
from skep.errors import Invalid

SOURCE_TABLE = 100
_OWN = {"net.ipv4.conf.all.send_redirects": "0"}


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A sandbox as it was made, and its ports."""

    id: str
    wired: tuple[tuple[Place, LocalPlace], ...] = ()
    mtu: int = 1450
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
            self.records[record.id] = record
        for pin in list(self._router.pins.iterdir()):
            if pin.name not in self.records:
                netns.remove(pin)
        links = self._router.net.links()
        for name in links:
            if name.startswith("v-") and not any(p.link == name for r in self.records.values() for p in r.places):
                self._router.net.send([netlink.del_link(name)])
        for record in self.records.values():
            if any(p.link not in links for p in record.places):
                self._wire(record)

    def save(self, record: Record) -> None:
        file = self._folder / record.id
        temporary = self._router.run_root / f".{record.id}.tmp"
        temporary.write_bytes(msgspec.json.encode(record))
        os.replace(temporary, file)
        self.records[record.id] = record

    def make(
        self, sandbox_id: str, places: tuple[Place, ...], groups: Mapping[str, int], mtu: int, sysctls: Mapping[str, str] | None
    ) -> Record:
        """A new sandbox; `groups` by network id. On failure nothing is left."""
        path = self.path(sandbox_id)
        wired = tuple((p, self._local(sandbox_id, i, p, groups.get(p.network_id, 0))) for i, p in enumerate(places))
        record = Record(id=sandbox_id, wired=wired, mtu=mtu)
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
            self._wire(record)
            self.save(record)
        except BaseException:
            self._unwire(record)
            netns.remove(path)
            raise
        return record

    def _local(self, sandbox_id: str, number: int, place: Place, group: int) -> LocalPlace:
        address, prefix = read_address(place.address)
        if place.gateway:
            read_address(place.gateway)
        taken = {p.link: r.id for r in self.records.values() for p in r.places}
        salt = 0
        while (link := f"v-{tag(f'{sandbox_id}/{number}/{salt}', 12)}") in taken:
            salt += 1
        return LocalPlace(sandbox_id=sandbox_id, network_id=place.network_id, address=address, link=link, group=group)

    def _wire(self, record: Record) -> None:
        """Links, addresses and routes inside, from nothing: what is left of an earlier wire is removed first."""
        fd = netns.opened(self.path(record.id))
        try:
            with netns.entered(fd):
                inside = netlink.Socket()
            with inside:
                inside.send([netlink.set_link(1, "lo", up=True)])
                self._unwire(record)
                self._router.net.send(
                    [
                        netlink.new_veth(
                            local.link,
                            peer=f"eth{i}",
                            peer_namespace=fd,
                            peer_mac=container_mac(local.address),
                            mtu=record.mtu,
                            group=local.group,
                        )
                        for i, (_, local) in enumerate(record.wired)
                    ]
                )
                with netns.entered(self._router.fd):
                    # an answer to ARP at once: the kernel waits up to 0.8 s otherwise
                    netns.set_sysctls({f"net/ipv4/neigh/{local.link}/proxy_delay": "0" for local in record.places})
                inside.send(_inside(inside, [place for place, _ in record.wired]))
        finally:
            os.close(fd)

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


def _inside(inside: netlink.Socket, places: list[Place]) -> list[netlink.Message]:
    """Addresses and routes of the container. The first place with a gateway has the default route; with several places, what has the
    address of one leaves by its link (its router end lets nothing else pass)."""
    messages = []
    default = False
    for i, place in enumerate(places):
        address, prefix = read_address(place.address)
        index = inside.index(f"eth{i}")
        messages.append(netlink.set_link(index, f"eth{i} up", up=True))
        messages.append(netlink.address(index, address, prefix, what=f"eth{i}"))
        if not place.gateway:
            continue
        gateway, _ = read_address(place.gateway)
        if not default:
            messages.append(netlink.route("0.0.0.0", 0, index=index, via=gateway))
            default = True
        if len(places) > 1:
            messages.append(netlink.route("0.0.0.0", 0, index=index, via=gateway, table=SOURCE_TABLE + i))
            subnet = ipaddress.IPv4Interface(f"{address}/{prefix}").network
            messages.append(netlink.route(str(subnet[0]), prefix, index=index, table=SOURCE_TABLE + i))
            messages.append(netlink.rule(table=SOURCE_TABLE + i, source=address, priority=1000 + i))
    return messages


def read_address(text: str) -> tuple[str, int]:
    """`10.0.0.5/24` -> address and prefix length (32 where there is none)."""
    address, _, prefix = text.partition("/")
    if ":" in address:
        raise Invalid(f"address {text}: IPv6 is not supported by this data path yet")
    try:
        return str(ipaddress.IPv4Address(address)), int(ipaddress.IPv4Network(f"0.0.0.0/{prefix or 32}").prefixlen)
    except ValueError:
        raise Invalid(f"address {text!r}: not an IPv4 address with prefix length") from None
