"""Facts: one thing each that the kernel holds (a route, a neighbour, an element of an nft map), as values. Pure.

What is to be done is the difference of two sets of them (skep.datapath.diff), and a comparison with the kernel is one of what it holds
(skep.datapath.kernel reads it) and what is wanted (skep.datapath.desired says it). Facts name links, never interface indexes.
"""

from __future__ import annotations

import msgspec

MAIN, WAYS = 254, 100
"""Routing tables: the router's own, and (plus a node's index) the way back through the node that a connection came in by."""
KEPT = 64
"""Nodes with an index up to this keep their clients' source address; those beyond rewrite it to their link address."""
FIRST_PORT, PORTS_END = 1024, 65536
UPLINK_GROUP = 1
"""Device group of the router's uplink. Networks have their VNI, from 4096."""
LEAVING_GROUP = 2
"""Device group of links that are to be deleted at once."""
ROUTER, HOST = "router", "host"
PROTOCOLS = ("tcp", "udp", "sctp")


class Fact(msgspec.Struct, frozen=True, gc=False):
    """One thing in the kernel."""


class Vxlan(Fact, frozen=True, gc=False):
    link: str
    vni: int
    group: int
    mac: str
    port: int
    local: str
    mtu: int


class Group(Fact, frozen=True, gc=False):
    """The device group of a container's link; the link itself is made by `attach`."""

    link: str
    group: int


class Address(Fact, frozen=True, gc=False):
    """With prefix length 32, on a link of the router."""

    link: str
    address: str


class Neighbour(Fact, frozen=True, gc=False):
    link: str
    address: str
    mac: str


class Forwarding(Fact, frozen=True, gc=False):
    """A VXLAN forwarding entry: frames to `mac` go to the node at `address`."""

    link: str
    mac: str
    address: str


class Route(Fact, frozen=True, gc=False):
    """`destination` is an address (/32), or empty for the default route."""

    table: int
    destination: str
    via: str
    link: str
    mtu: int = 0
    """Of the way, where it is narrower than the link; whoever sends more is told."""


class HostRoute(Fact, frozen=True, gc=False):
    """In the node's own namespace: the way to `destination` (with prefix length) is the router."""

    destination: str


class Rule(Fact, frozen=True, gc=False):
    """`mark` 0: what has none, and is asked first. Without it each packet is compared with the mark of each node."""

    mark: int
    table: int


class Chain(Fact, frozen=True, gc=False):
    """`where`: router or host; `body`: rules, a line each."""

    where: str
    name: str
    body: tuple[str, ...]


class Element(Fact, frozen=True, gc=False):
    """Of an nft set, or with a value of a map."""

    where: str
    set: str
    key: str
    value: str = ""
