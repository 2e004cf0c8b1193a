"""Ports of the host given to containers: which are free, and what is said of one that is not. Docker's words. See docs/network.md."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable, Sequence

import msgspec

from skep.datapath.base import HostPort
from skep.datapath.desired import LocalPort, is_ipv4
from skep.datapath.facts import PROTOCOLS
from skep.errors import Conflict, Invalid

HOST_PORTS = range(32768, 61000)
"""Where a port without a number comes from, as Docker's."""
Key = tuple[str, str, int]
"""Address of the host (empty: all), protocol, port."""


class Taken:
    """Ports in use. All addresses and one of them do not share a port."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._at: dict[tuple[str, int], set[str]] = {}
        for key in keys:
            self.add(key)

    def add(self, key: Key) -> None:
        self._at.setdefault(key[1:], set()).add(key[0])

    def has(self, key: Key) -> bool:
        return key[0] in self._at.get(key[1:], ())

    def clashes(self, key: Key) -> bool:
        there = self._at.get(key[1:], set())
        return bool(there) and (not key[0] or key[0] in there or "" in there)


class Allotment:
    """Finds ports for one container after the other; what it gives is not taken until the caller keeps it."""

    def __init__(self, bindable: Callable[[str, str, int], bool]) -> None:
        self._bindable = bindable
        self._next = HOST_PORTS.start

    def give(
        self, sandbox_id: str, address: str, wanted: Sequence[HostPort], mine: Sequence[LocalPort], others: Iterable[Key]
    ) -> tuple[list[HostPort], list[LocalPort]]:
        """`mine`: what this container has now; it keeps a port that was found for it. `others`: everybody else's. Raises Conflict."""
        taken = Taken(others)
        held = {(p.at, p.protocol, p.target): p.port for p in mine}
        bound = {(p.at, p.protocol, p.port) for p in mine}
        out, local = [], []
        for port in wanted:
            protocol, at = port.protocol or "tcp", "" if port.address in ("", "0.0.0.0") else port.address
            if protocol not in PROTOCOLS:
                raise Invalid(f"invalid proto: {protocol}")
            if at and not is_ipv4(at):
                raise Invalid(f"host address {at}: ports are published at IPv4 addresses only")
            if not 0 < port.target < 65536 or not 0 <= port.published < 65536 or not 0 <= port.last < 65536:
                raise Invalid(f"invalid port: {port.published or port.target}")
            number = self._number(port, at, protocol, address, taken, held.get((at, protocol, port.target), 0), bound)
            taken.add((at, protocol, number))
            local.append(LocalPort(sandbox_id=sandbox_id, protocol=protocol, port=number, address=address, target=port.target, at=at))
            out.append(msgspec.structs.replace(port, protocol=protocol, published=number))
        return out, local

    def _number(self, port: HostPort, at: str, protocol: str, address: str, taken: Taken, held: int, bound: set[Key]) -> int:
        first, last = port.published, max(port.last, port.published)

        def free(number: int) -> bool:
            key = (at, protocol, number)
            return not taken.clashes(key) and (key in bound or self._bindable(at, protocol, number))

        if first and first == last:
            shown = f"{at or '0.0.0.0'}:{first}"
            if taken.has((at, protocol, first)):
                raise Conflict(f"Bind for {shown} failed: port is already allocated")
            if not free(first):
                raise Conflict(f"failed to bind host port for {shown}:{address}:{port.target}/{protocol}: address already in use")
            return first
        numbers = range(first, last + 1) if first else HOST_PORTS
        if held in numbers and not taken.clashes((at, protocol, held)):
            return held
        for _ in numbers:
            if first:
                number, first = first, first + 1
            else:
                number = self._next
                self._next = number + 1 if number + 1 in HOST_PORTS else HOST_PORTS.start
            if free(number):
                return number
        raise Conflict("all ports are allocated")


def bindable(address: str, protocol: str, port: int) -> bool:
    """Whether no process of the host listens there: our rules would take its clients away."""
    kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}.get(protocol)
    if kind is None:
        return True
    with socket.socket(socket.AF_INET, kind) as probe:
        if protocol == "tcp":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as e:
            if e.errno == errno.EADDRINUSE:
                return False
            said = "cannot assign requested address" if e.errno == errno.EADDRNOTAVAIL else e.strerror
            raise Conflict(f"failed to bind host port {address or '0.0.0.0'}:{port}/{protocol}: {said}") from None
    return True
