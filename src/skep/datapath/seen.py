"""What the kernel tells of links, addresses, routes, neighbours and rules, from the bodies of its messages. Pure."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from skep.datapath.attributes import attributes, mac_text, number

IFF_UP = 1


class LinkSeen(NamedTuple):
    device: int
    name: str
    kind: str
    group: int
    mtu: int
    address: str
    up: bool
    vni: int
    port: int
    local: str


class AddressSeen(NamedTuple):
    device: int
    address: str
    prefix: int


class RouteSeen(NamedTuple):
    table: int
    destination: str
    prefix: int
    device: int
    via: str
    source: str
    protocol: int
    kind: int
    """RTN_*: 1 unicast, 2 local."""
    mtu: int
    """0: its link's."""


class NeighbourSeen(NamedTuple):
    device: int
    to: str
    lladdr: str
    permanent: bool


class RuleSeen(NamedTuple):
    mark: int
    table: int


def link_seen(body: bytes) -> LinkSeen:
    _, _, index, flags, _ = struct.unpack_from("=BxHiII", body)
    a = attributes(body, 16)
    info = attributes(a.get(18, b""), 0)
    kind = info.get(1, b"").rstrip(b"\0").decode()
    data = attributes(info.get(2, b""), 0) if kind == "vxlan" else {}
    return LinkSeen(
        index,
        a[3].rstrip(b"\0").decode(),
        kind,
        number(a.get(27)),
        number(a.get(4)),
        mac_text(a.get(1, b"")),
        bool(flags & IFF_UP),
        number(data.get(1)),
        struct.unpack("!H", data[15])[0] if 15 in data else 0,
        socket.inet_ntoa(data[4]) if 4 in data else "",
    )


def route_seen(body: bytes) -> RouteSeen:
    _, prefix, _, _, table, protocol, _, kind, _ = struct.unpack_from("=BBBBBBBBI", body)
    a = attributes(body, 12)
    return RouteSeen(
        number(a.get(15)) or table,
        socket.inet_ntoa(a[1]) if 1 in a else "0.0.0.0",
        prefix,
        number(a.get(4)),
        socket.inet_ntoa(a[5]) if 5 in a else "",
        socket.inet_ntoa(a[7]) if 7 in a else "",
        protocol,
        kind,
        number(attributes(a.get(8, b""), 0).get(2)),
    )
