"""Whether anyone but us has touched links, addresses, routes, neighbours or rules of a namespace since we last asked.

The kernel tells of each change and who asked for it; what we did ourselves is passed over, and what the kernel does by itself (a link that
goes with its namespace) counts as touched. Nothing is lost: when there was more to tell than the socket holds, that counts as touched too.
See docs/network.md.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable

LINK, NEIGHBOUR, ADDRESS, ROUTE, RULE, SETTING = 1, 3, 5, 7, 8, 24
"""RTNLGRP_*: links, neighbours, IPv4 addresses, routes, rules, per-link settings."""
_SOL_NETLINK, _ADD_MEMBERSHIP, _RCVBUF_FORCE = 270, 1, 33


class Watch:
    """Made by a thread that is in the namespace. `concerns` tells by kind and body which of the kernel's messages matter."""

    def __init__(self, groups: tuple[int, ...], concerns: Callable[[int, bytes], bool]) -> None:
        self._concerns = concerns
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _RCVBUF_FORCE, 1 << 20)
            self._socket.bind((0, 0))
            for group in groups:
                self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def touched(self, ours: int) -> bool:
        """Since the last call. `ours`: the netlink address of the socket that we make our changes with."""
        out = False
        while True:
            try:
                data = self._socket.recv(1 << 18)
            except BlockingIOError:
                return out
            except OSError as e:
                if e.errno != errno.ENOBUFS:
                    raise
                out = True
                continue
            at = 0
            while at + 16 <= len(data) and not out:
                size, kind, _, _, sender = struct.unpack_from("=IHHII", data, at)
                out = sender != ours and self._concerns(kind, data[at + 16 : at + size])
                at += size + 3 & ~3
