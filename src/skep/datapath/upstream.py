"""Other servers, asked what neither the cluster nor the node knows.

The node's resolvers (a file like /etc/resolv.conf, read again when it has changed) are asked from the node, so those on its loopback work;
servers that a container names are asked from inside it, so it reaches what it may reach, its own networks among it. Each question has a
socket, a port and an id of its own; what does not answer exactly that is not heard.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from skep.datapath import dns, sockets

PORT = 53
PATIENCE, ALL_PATIENCE = 1.5, 4.5
"""Seconds: for one server; for all of them, within the 5 that a libc waits."""
SLOW_FOR = 30.0
"""Seconds for which a server that has not answered is asked after the others."""
SERVERS = 3


class Upstream:
    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: tuple[int, int, int] | None = None
        self._servers: tuple[str, ...] = ()
        self._slow: dict[str, float] = {}

    def servers(self) -> tuple[str, ...]:
        """The node's, as the file has them now."""
        try:
            found = os.stat(self._file)
            seen = (found.st_ino, found.st_mtime_ns, found.st_size)
            if seen != self._seen:
                self._servers = read_servers(self._file.read_text(errors="replace"))
                self._seen = seen
        except OSError:
            self._servers, self._seen = (), None
        return self._servers

    async def ask(self, query: dns.Query, data: bytes, servers: tuple[str, ...], path: str, *, tcp: bool) -> bytes | None:
        """The first answer that is one, with the id that `data` has; a server's own failure when none has a better answer; None when
        none has answered. `servers`: asked from inside the container at `path`; empty: the node's. `tcp`: the answer may be long."""
        place = path if servers else ""
        # what leads back to us would be asked of us again, and again: thousands of questions for one
        servers = tuple(server for server in servers if not is_own(server))
        if place and not servers:
            return None
        failed: bytes | None = None
        with suppress(TimeoutError):
            async with asyncio.timeout(ALL_PATIENCE):
                for server in self._in_turn(servers or self.servers()):
                    response = await self._ask_one(query, data, server, place, tcp)
                    if response is not None and dns.code_of(response) not in (dns.SERVFAIL, dns.REFUSED, dns.NOTIMP):
                        return data[:2] + response[2:]
                    failed = response or failed
        return data[:2] + failed[2:] if failed else None

    def _in_turn(self, servers: tuple[str, ...]) -> list[str]:
        """Twice, since a datagram may get lost; those that were silent of late behind the others."""
        now = asyncio.get_running_loop().time()
        asked = sorted(servers[:SERVERS], key=lambda server: self._slow.get(server, 0.0) > now)
        return asked * 2

    async def _ask_one(self, query: dns.Query, data: bytes, server: str, place: str, tcp: bool) -> bytes | None:
        id = os.urandom(2)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(PATIENCE):
                response = await _by_udp(query, id + data[2:], server, place)
                if tcp and dns.is_truncated(response):
                    response = await _by_tcp(query, id + data[2:], server, place)
        except TimeoutError:
            if len(self._slow) > 1000:
                self._slow.clear()
            self._slow[server] = loop.time() + SLOW_FOR
            return None
        except (OSError, ValueError, asyncio.IncompleteReadError):
            return None
        self._slow.pop(server, None)
        return response


@lru_cache(1024)
def is_own(server: str) -> bool:
    """Whether it is the address at which we answer inside a container, in any form."""
    try:
        address = ipaddress.ip_address(server.partition("%")[0])
    except ValueError:
        return False
    return str(getattr(address, "ipv4_mapped", None) or address) == sockets.ADDRESS


def read_servers(text: str) -> tuple[str, ...]:
    """Of a resolv.conf."""
    out: dict[str, None] = {}
    for line in text.splitlines():
        words = line.partition("#")[0].partition(";")[0].split()
        if len(words) > 1 and words[0] == "nameserver":
            out[words[1]] = None
    return tuple(out)


def _socket(server: str, kind: int, place: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    # anything but an address would be looked up, by us
    socket.inet_pton(family, server.partition("%")[0])
    if place:
        return sockets.inside(place, family, kind)
    return socket.socket(family, kind | socket.SOCK_NONBLOCK)


async def _by_udp(query: dns.Query, message: bytes, server: str, place: str) -> bytes:
    loop = asyncio.get_running_loop()
    with _socket(server, socket.SOCK_DGRAM, place) as s:
        s.connect((server, PORT))
        s.send(message)
        while True:
            response = await loop.sock_recv(s, dns.LARGEST)
            if dns.answers(response, message[:2], query):
                return response


async def _by_tcp(query: dns.Query, message: bytes, server: str, place: str) -> bytes:
    loop = asyncio.get_running_loop()
    with _socket(server, socket.SOCK_STREAM, place) as s:
        await loop.sock_connect(s, (server, PORT))
        await loop.sock_sendall(s, len(message).to_bytes(2, "big") + message)
        length = int.from_bytes(await exactly(s, 2), "big")
        response = await exactly(s, length)
        if not dns.answers(response, message[:2], query):
            raise ValueError("answers something else")
        return response


async def exactly(s: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    out = b""
    while len(out) < size:
        part = await loop.sock_recv(s, size - len(out))
        if not part:
            raise asyncio.IncompleteReadError(out, size)
        out += part
    return out
