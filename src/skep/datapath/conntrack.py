"""Forget the UDP flows to one backend, so that their next packet is balanced anew.

TCP needs none of this: connections to a backend that leaves the map live until it stops, and are reset when it is gone. A UDP flow has no
end of its own; as long as its client sends, it would stay with an address that nobody has any more. See docs/network.md.
"""

from __future__ import annotations

import errno
import socket
import struct

from skep.datapath.netlink import ACK, DUMP, REQUEST, Message, NetlinkError, Socket, attribute, attributes, ip, nested, u8, u32

NETLINK_NETFILTER = 12
CT_GET, CT_DELETE = 0x101, 0x102
TUPLE_ORIG, TUPLE_REPLY, FILTER = 1, 2, 25
UDP = 17
_HEADER = struct.pack("=BBH", socket.AF_INET, 0, 0)


def forget_udp(backend: str) -> None:
    """Remove the UDP flows of the thread's namespace that are answered by `backend`. One message on kernels from 5.8, a dump on older
    ones."""
    answered_by = nested(TUPLE_REPLY, nested(1, ip(1, backend)), nested(2, u8(1, UDP)))
    source_and_protocol = u32(2, 1 | 8)
    with Socket(NETLINK_NETFILTER) as netlink:
        try:
            body = _HEADER + answered_by + nested(FILTER, u32(1, 0), source_and_protocol)
            netlink.send([Message(CT_DELETE, REQUEST | ACK, body, f"conntrack delete of UDP flows to {backend}")])
        except NetlinkError as e:
            # a kernel without the filter looks for this one incomplete flow, and finds none
            if e.errno not in (errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP):
                raise
            _forget_one_by_one(netlink, backend)


def _forget_one_by_one(netlink: Socket, backend: str) -> None:
    gone = []
    wanted = socket.inet_aton(backend)
    for body in netlink.ask(CT_GET, _HEADER, REQUEST | DUMP):
        a = attributes(body, 4)
        reply = attributes(a.get(TUPLE_REPLY, b""), 0)
        source = attributes(reply.get(1, b""), 0).get(1)
        protocol = attributes(reply.get(2, b""), 0).get(1)
        if source == wanted and protocol == bytes((UDP,)):
            what = f"conntrack delete of a UDP flow to {backend}"
            gone.append(Message(CT_DELETE, REQUEST | ACK, _HEADER + attribute(TUPLE_ORIG | 0x8000, a[TUPLE_ORIG]), what, (errno.ENOENT,)))
    netlink.send(gone)
