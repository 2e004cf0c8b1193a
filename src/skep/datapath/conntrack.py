"""Forget the UDP flows to backends that leave, so that their next packet is balanced anew.

TCP needs none of this: connections to a backend that leaves the map live until it stops, and are reset when it is gone. A UDP flow has no
end of its own; as long as its client sends, it would stay with an address that nobody has any more.

One dump for all backends, and a delete per flow. The kernel could do it by itself (a delete with a filter), but that walks the table of
the whole machine under one lock for all namespaces: 20 ms when idle, seconds when other namespaces come and go. See docs/network.md.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable

from skep.datapath.netlink import ACK, DUMP, REQUEST, Message, Socket, attribute, attributes, nested, u8, u32

NETLINK_NETFILTER = 12
CT_GET, CT_DELETE = 0x101, 0x102
TUPLE_ORIG, TUPLE_REPLY, FILTER = 1, 2, 25
UDP = 17
_HEADER = struct.pack("=BBH", socket.AF_INET, 0, 0)
_UDP_ONLY = nested(TUPLE_REPLY, nested(2, u8(1, UDP))) + nested(FILTER, u32(1, 0), u32(2, 8))
"""Kernels from 5.8 leave the others out of the dump; older ones do not know it, and pass over it."""


def forget_udp(backends: Iterable[str], ports: Iterable[int] = ()) -> int:
    """Remove the UDP flows of the thread's namespace that are answered by one of `backends`, or go to one of `ports`; gives back how many
    there were. (A client that sends to a port before it is published has a flow that leads nowhere, and would keep it.)"""
    wanted = {socket.inet_aton(b) for b in backends}
    numbers = {struct.pack("!H", p) for p in ports}
    if not wanted and not numbers:
        return 0
    gone = []
    with Socket(NETLINK_NETFILTER) as netlink:
        for body in netlink.ask(CT_GET, _HEADER + _UDP_ONLY, REQUEST | DUMP):
            a = attributes(body, 4)
            reply = attributes(a.get(TUPLE_REPLY, b""), 0)
            source = attributes(reply.get(1, b""), 0).get(1, b"")
            protocol = attributes(reply.get(2, b""), 0).get(1)
            there = attributes(attributes(a.get(TUPLE_ORIG, b""), 0).get(2, b""), 0).get(3)
            if (source in wanted or there in numbers) and protocol == bytes((UDP,)):
                what = f"conntrack delete of a UDP flow to {socket.inet_ntoa(source)}"
                gone.append(
                    Message(CT_DELETE, REQUEST | ACK, _HEADER + attribute(TUPLE_ORIG | 0x8000, a[TUPLE_ORIG]), what, (errno.ENOENT,))
                )
        netlink.send(gone)
    return len(gone)
