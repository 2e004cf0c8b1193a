"""Route netlink and conntrack as packed messages: 7 us an operation where a library's generic encoder takes 350.

Promises: one `Socket` belongs to one namespace (the one its thread was in when it was made) and to one thread at a time; operations of one
call go to the kernel in batches, each acknowledged; the first that fails raises NetlinkError with the kernel's own words. Everything here
is synchronous and short; the caller owns the thread. See docs/network.md.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from skep.datapath.attributes import attribute as attribute
from skep.datapath.attributes import attributes as attributes
from skep.datapath.attributes import ip as ip
from skep.datapath.attributes import mac as mac
from skep.datapath.attributes import mac_text as mac_text
from skep.datapath.attributes import nested as nested
from skep.datapath.attributes import number
from skep.datapath.attributes import text as text
from skep.datapath.attributes import u8 as u8
from skep.datapath.attributes import u32 as u32
from skep.datapath.seen import IFF_UP as IFF_UP
from skep.datapath.seen import AddressSeen, LinkSeen, NeighbourSeen, RouteSeen, RuleSeen, link_seen, route_seen
from skep.errors import SkepError

REQUEST, ACK, ROOT, MATCH, REPLACE, EXCL, CREATE, APPEND = 1, 4, 0x100, 0x200, 0x100, 0x200, 0x400, 0x800
DUMP = ROOT | MATCH
NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWNEIGH, DELNEIGH, GETNEIGH = 28, 29, 30
NEWRULE, DELRULE, GETRULE = 32, 33, 34
GETNETCONF = 82
ERROR, DONE = 2, 3
BATCH = 200
"""Messages in one send: the acknowledgements (36 bytes each, more on errors) must fit the receive buffer."""

PROTOCOL = 83
"""Our mark on routes (`proto 83` in `ip route`), so that a read-back tells ours from the kernel's."""
MAIN_TABLE = 254


class NetlinkError(SkepError):
    """The kernel refused a message."""

    def __init__(self, number: int, what: str, said: str = "") -> None:
        self.errno = number
        super().__init__(f"{what}: {said or os.strerror(number)}")


class Message(NamedTuple):
    """`kind` with `flags` and its body; `what` is for the error line. `fine` are error numbers that count as done."""

    kind: int
    flags: int
    body: bytes
    what: str
    fine: tuple[int, ...] = ()


# -- messages


def _link(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("=BxHiII", 0, 0, index, flags, change)


def new_veth(
    name: str, *, peer: str, peer_namespace: int, peer_mac: str = "", peer_group: int = 0, mtu: int = 0, group: int = 0
) -> Message:
    """A pair; the peer is made straight in its namespace (a descriptor), so that it never shows here. Our end is up, the peer not yet."""
    other = _link() + text(3, peer) + u32(28, peer_namespace)
    other += (mac(1, peer_mac) if peer_mac else b"") + (u32(4, mtu) if mtu else b"") + (u32(27, peer_group) if peer_group else b"")
    body = _link(flags=IFF_UP, change=IFF_UP) + text(3, name)
    body += (u32(4, mtu) if mtu else b"") + (u32(27, group) if group else b"")
    body += nested(18, text(1, "veth"), nested(2, attribute(1, other)))
    return Message(NEWLINK, REQUEST | ACK | CREATE | EXCL, body, f"link add {name} type veth peer {peer}")


def new_vxlan(name: str, *, vni: int, port: int, local: str, address: str, mtu: int, group: int, namespace: int) -> Message:
    """Sent from the namespace whose underlay it uses; it appears in `namespace`, its UDP socket stays with the sender."""
    data = [u32(1, vni), u8(7, 0), attribute(15, struct.pack("!H", port))] + ([ip(4, local)] if local else [])
    body = _link() + text(3, name) + u32(28, namespace) + mac(1, address) + u32(4, mtu) + u32(27, group)
    body += nested(18, text(1, "vxlan"), nested(2, *data))
    return Message(NEWLINK, REQUEST | ACK | CREATE | EXCL, body, f"link add {name} type vxlan id {vni} dstport {port}")


def new_bridge(name: str, *, mtu: int, address: str = "") -> Message:
    """`address`: without one of its own it has that of one of its ports, and changes it as they come and go."""
    own = mac(1, address) if address else b""
    body = _link(flags=IFF_UP, change=IFF_UP) + text(3, name) + own + u32(4, mtu) + nested(18, text(1, "bridge"))
    return Message(NEWLINK, REQUEST | ACK | CREATE | EXCL, body, f"link add {name} type bridge")


def set_link(index: int, what: str, *, up: bool = False, group: int | None = None, master: int | None = None, mtu: int = 0) -> Message:
    body = _link(index, IFF_UP if up else 0, IFF_UP if up else 0)
    body += u32(27, group) if group is not None else b""
    body += u32(10, master) if master is not None else b""
    body += u32(4, mtu) if mtu else b""
    return Message(NEWLINK, REQUEST | ACK, body, f"link set {what}")


def del_link(name: str) -> Message:
    return Message(DELLINK, REQUEST | ACK, _link() + text(3, name), f"link del {name}", (errno.ENODEV,))


def del_group(group: int) -> Message:
    """All links of a device group, at once."""
    return Message(DELLINK, REQUEST | ACK, _link() + u32(27, group), f"link del group {group}", (errno.ENODEV,))


def address(index: int, value: str, prefix: int, *, delete: bool = False, what: str = "") -> Message:
    body = struct.pack("=BBBBI", socket.AF_INET, prefix, 0, 0, index) + ip(2, value) + ip(1, value)
    verb = f"addr {'del' if delete else 'add'} {value}/{prefix} dev {what or index}"
    if delete:
        return Message(DELADDR, REQUEST | ACK, body, verb, (errno.EADDRNOTAVAIL, errno.ENODEV))
    return Message(NEWADDR, REQUEST | ACK | CREATE | REPLACE, body, verb)


def route(
    destination: str,
    prefix: int,
    *,
    index: int,
    via: str = "",
    table: int = MAIN_TABLE,
    source: str = "",
    mtu: int = 0,
    delete: bool = False,
    replace: bool = True,
) -> Message:
    """`via` is always onlink: link addresses of peers are in no subnet. Without `replace` a route that is there stays."""
    scope = 0 if via else 253
    flags = 4 if via else 0
    small = table if table < 256 else 0
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, prefix, 0, 0, small, PROTOCOL, scope, 1, flags)
    body += (ip(1, destination) if prefix else b"") + u32(15, table) + u32(4, index)
    body += (ip(5, via) if via else b"") + (ip(7, source) if source else b"")
    body += nested(8, u32(2, mtu)) if mtu and not delete else b""
    verb = f"route {'del' if delete else 'replace'} {destination}/{prefix}" + (f" via {via}" if via else "") + f" table {table}"
    if delete:
        return Message(DELROUTE, REQUEST | ACK, body, verb, (errno.ESRCH, errno.ENODEV))
    if not replace:
        return Message(NEWROUTE, REQUEST | ACK | CREATE | EXCL, body, verb, (errno.EEXIST,))
    return Message(NEWROUTE, REQUEST | ACK | CREATE | REPLACE, body, verb)


def rule(*, table: int, mark: int = 0, source: str = "", priority: int = 0, delete: bool = False) -> Message:
    """By `source`, or else by `mark`, of which every bit counts: 0 is what has none."""
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 32 if source else 0, 0, table if table < 256 else 0, 0, 0, 1, 0)
    body += u32(15, table) + (ip(2, source) if source else u32(10, mark) + u32(16, 0xFFFFFFFF)) + (u32(6, priority) if priority else b"")
    verb = f"rule {'del' if delete else 'add'} " + (f"from {source}" if source else f"fwmark {mark}") + f" lookup {table}"
    if delete:
        return Message(DELRULE, REQUEST | ACK, body, verb, (errno.ENOENT,))
    return Message(NEWRULE, REQUEST | ACK | CREATE | EXCL, body, verb, (errno.EEXIST,))


def neighbour(index: int, to: str, lladdr: str, *, delete: bool = False) -> Message:
    body = struct.pack("=BxHiHBB", socket.AF_INET, 0, index, 0x80, 0, 0) + ip(1, to) + mac(2, lladdr)
    verb = f"neigh {'del' if delete else 'replace'} {to} lladdr {lladdr}"
    if delete:
        return Message(DELNEIGH, REQUEST | ACK, body, verb, (errno.ENOENT, errno.ENODEV))
    return Message(NEWNEIGH, REQUEST | ACK | CREATE | REPLACE, body, verb)


def forwarding(index: int, lladdr: str, to: str, *, delete: bool = False) -> Message:
    """A VXLAN forwarding entry (AF_BRIDGE, NTF_SELF, permanent, no ARP)."""
    body = struct.pack("=BxHiHBB", 7, 0, index, 0x80 | 0x40, 2, 0) + mac(2, lladdr) + ip(1, to)
    verb = f"fdb {'del' if delete else 'replace'} {lladdr} dst {to}"
    if delete:
        return Message(DELNEIGH, REQUEST | ACK, body, verb, (errno.ENOENT, errno.ENODEV))
    return Message(NEWNEIGH, REQUEST | ACK | CREATE | REPLACE, body, verb)


# -- the socket


class Socket:
    """Route netlink (or, by `protocol`, another) of the namespace the thread is in now. Not for two threads at once."""

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            self._socket.setsockopt(270, 10, 1)  # NETLINK_CAP_ACK: an error does not echo the request
            self._socket.setsockopt(270, 11, 1)  # NETLINK_EXT_ACK: the kernel's own sentence
            self._socket.bind((0, 0))
            self._socket.settimeout(10)
        except BaseException:
            self._socket.close()
            raise
        self._sequence = 0
        self.address: int = self._socket.getsockname()[0]
        """What the kernel calls the sender of our messages."""

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, messages: Iterable[Message]) -> None:
        """All in order. Those after a failed one in the same batch are carried out all the same; the first failure is raised at the end."""
        pending = list(messages)
        first: NetlinkError | None = None
        for start in range(0, len(pending), BATCH):
            failed = self._batch(pending[start : start + BATCH])
            first = first or failed
        if first is not None:
            raise first

    def _batch(self, batch: Sequence[Message]) -> NetlinkError | None:
        waiting: dict[int, Message] = {}
        out = bytearray()
        for m in batch:
            self._sequence = self._sequence + 1 & 0x7FFFFFFF
            waiting[self._sequence] = m
            out += struct.pack("=IHHII", len(m.body) + 16, m.kind, m.flags, self._sequence, 0) + m.body
        self._socket.send(out)
        first: NetlinkError | None = None
        while waiting:
            for kind, sequence, flags, body in self._read():
                if kind != ERROR or sequence not in waiting:
                    continue
                m = waiting.pop(sequence)
                number = -struct.unpack_from("=i", body)[0]
                if number and number not in m.fine and first is None:
                    # with the request capped, attributes follow the error and its header
                    said = attributes(body, 20).get(1, b"").rstrip(b"\0").decode(errors="replace") if flags & 0x200 else ""
                    first = NetlinkError(number, m.what, said)
        return first

    def _read(self) -> Iterator[tuple[int, int, int, bytes]]:
        data = self._socket.recv(1 << 18)
        offset = 0
        while offset + 16 <= len(data):
            size, kind, flags, sequence, _ = struct.unpack_from("=IHHII", data, offset)
            yield kind, sequence, flags, data[offset + 16 : offset + size]
            offset += size + 3 & ~3

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Bodies of all objects. Raises NetlinkError."""
        return self.ask(kind, body, REQUEST | DUMP)

    def ask(self, kind: int, body: bytes, flags: int = REQUEST) -> list[bytes]:
        self._sequence = self._sequence + 1 & 0x7FFFFFFF
        self._socket.send(struct.pack("=IHHII", len(body) + 16, kind, flags, self._sequence, 0) + body)
        out: list[bytes] = []
        while True:
            for seen, sequence, _, answer in self._read():
                if sequence != self._sequence:
                    continue
                if seen == DONE:
                    return out
                if seen == ERROR:
                    number = -struct.unpack_from("=i", answer)[0]
                    if number:
                        raise NetlinkError(number, f"netlink request {kind}")
                    return out
                out.append(answer)
                if not flags & DUMP:
                    return out

    # what there is

    def index(self, name: str) -> int:
        """The interface's index; 0 when there is none of this name."""
        try:
            answers = self.ask(GETLINK, _link() + text(3, name))
        except NetlinkError as e:
            if e.errno == errno.ENODEV:
                return 0
            raise
        return int(struct.unpack_from("=i", answers[0], 4)[0])

    def links(self) -> dict[str, LinkSeen]:
        return {link.name: link for link in map(link_seen, self.dump(GETLINK, _link()))}

    def link(self, name: str) -> LinkSeen | None:
        try:
            return link_seen(self.ask(GETLINK, _link() + text(3, name))[0])
        except NetlinkError as e:
            if e.errno == errno.ENODEV:
                return None
            raise

    def settings(self) -> dict[int, tuple[int, int, int]]:
        """Of IPv4, by device: forwarding, rp_filter, proxy_arp. Device -1 stands for all."""
        out = {}
        for body in self.dump(GETNETCONF, struct.pack("=B3x", socket.AF_INET)):
            a = attributes(body, 4)
            out[struct.unpack("=i", a[1])[0]] = (number(a.get(2)), number(a.get(3)), number(a.get(5)))
        return out

    def addresses(self) -> list[AddressSeen]:
        out = []
        for body in self.dump(GETADDR, struct.pack("=BBBBI", socket.AF_INET, 0, 0, 0, 0)):
            _, prefix, _, _, index = struct.unpack_from("=BBBBI", body)
            a = attributes(body, 8)
            value = a.get(2) or a.get(1)
            if value:
                out.append(AddressSeen(index, socket.inet_ntoa(value), prefix))
        return out

    def routes(self) -> list[RouteSeen]:
        return [route_seen(body) for body in self.dump(GETROUTE, struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0))]

    def route_to(self, destination: str) -> RouteSeen | None:
        """Which way a packet to `destination` would go; None when there is none."""
        body = struct.pack("=BBBBBBBBI", socket.AF_INET, 32, 0, 0, 0, 0, 0, 0, 0) + ip(1, destination)
        try:
            return route_seen(self.ask(GETROUTE, body)[0])
        except NetlinkError:
            return None

    def neighbours(self, family: int = socket.AF_INET) -> list[NeighbourSeen]:
        """ARP entries; with family 7 (AF_BRIDGE) forwarding entries of VXLAN devices."""
        out = []
        for body in self.dump(GETNEIGH, struct.pack("=BxHiHBB", family, 0, 0, 0, 0, 0)):
            seen, _, index, state, _, _ = struct.unpack_from("=BxHiHBB", body)
            a = attributes(body, 12)
            if seen == family and 1 in a and 2 in a and len(a[1]) == 4:
                out.append(NeighbourSeen(index, socket.inet_ntoa(a[1]), mac_text(a[2]), bool(state & 0x80)))
        return out

    def rules(self) -> list[RuleSeen]:
        out = []
        for body in self.dump(GETRULE, struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)):
            a = attributes(body, 12)
            if 10 in a or 16 in a:
                # of mark 0 the kernel says the mask alone
                out.append(RuleSeen(number(a.get(10)), number(a.get(15)) or body[4]))
        return out
