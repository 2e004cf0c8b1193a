"""IPv4 address spaces: subnets for networks, addresses inside them. Pure arithmetic on integers; no state beyond what is told.

Addresses come in turn: the next is the one after the last given, so that a freed one comes back only after the space was gone through
once, when nobody's caches know it any more (SwarmKit's serial allocation).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Iterable, Iterator, Sequence
from functools import lru_cache
from ipaddress import IPv4Network, ip_interface, ip_network

from skep.model.spec import IPAMConfig

UNFIT = tuple(IPv4Network(text) for text in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4"))
"""No network has these: kernels do not route them, and 169.254 is the nodes' own among themselves (skep.datapath.desired). One such route
would keep everything else of a node's from being applied with it."""


def dotted(address: int) -> str:
    return f"{address >> 24}.{address >> 16 & 255}.{address >> 8 & 255}.{address & 255}"


def number(text: str) -> int | None:
    """The address of `10.0.1.3/24` or `10.0.1.3` as an integer; None for what is no IPv4 address."""
    parts = text.partition("/")[0].split(".")
    if len(parts) != 4:
        return None
    try:
        a, b, c, d = (int(part) for part in parts)
    except ValueError:
        return None
    return a << 24 | b << 16 | c << 8 | d if min(a, b, c, d) >= 0 and max(a, b, c, d) < 256 else None


@lru_cache(maxsize=4096)
def subnet_of(text: str) -> IPv4Network | None:
    """None for IPv6 and for what is no subnet."""
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        return None
    return network if isinstance(network, IPv4Network) else None


def pool_subnets(pools: Sequence[str], size: int, start: int) -> Iterator[tuple[int, IPv4Network]]:
    """Every subnet of this prefix length once, in turn from the `start`-th: (how many were given after this one, subnet)."""
    parts = [(network, max(size, network.prefixlen)) for pool in pools if (network := subnet_of(pool)) is not None]
    counts = [1 << length - network.prefixlen for network, length in parts]
    total = sum(counts)
    for step in range(total):
        index = (start + step) % total
        rest = index
        for (network, length), count in zip(parts, counts, strict=True):
            if rest < count:
                first = int(network.network_address) + (rest << 32 - length)
                yield index + 1, IPv4Network((first, length))
                break
            rest -= count


def unfit(subnet: IPv4Network) -> bool:
    return overlapping(subnet, UNFIT) is not None


def overlapping(subnet: IPv4Network, others: Iterable[IPv4Network]) -> IPv4Network | None:
    return next((other for other in others if subnet.overlaps(other)), None)


class Space:
    """The addresses of one network: its subnets one after the other, as offsets from 0. Network, broadcast, gateway and auxiliary
    addresses are never given."""

    def __init__(self, configs: Sequence[IPAMConfig]) -> None:
        self.subnets: list[IPv4Network] = []
        self.used: dict[int, int] = {}
        """Offset -> holders. One, unless the store says that two have the same address: then it is free when both are gone."""
        self._starts: list[int] = []
        self._reserved: set[int] = set()
        self._outside: list[tuple[int, int]] = []
        """Offsets [from, to) that an `ip_range` leaves out."""
        self._size = 0
        self._closed = 0
        """How many offsets can never be given."""
        for config in configs:
            self._add(config)

    def _add(self, config: IPAMConfig) -> None:
        subnet = subnet_of(config.subnet)
        if subnet is None:
            return
        start, size = self._size, subnet.num_addresses
        first = int(subnet.network_address)
        self.subnets.append(subnet)
        self._starts.append(start)
        self._size += size
        reserved = {0, size - 1} if size > 2 else set()
        for text in (config.gateway, *(config.auxiliary_addresses or {}).values()):
            address = number(text)
            if address is not None and 0 <= address - first < size:
                reserved.add(address - first)
        low, high = 0, size
        given = subnet_of(config.ip_range) if config.ip_range else None
        if given is not None:
            low = max(0, int(given.network_address) - first)
            high = min(size, int(given.broadcast_address) - first + 1)
            self._outside += [(start, start + low), (start + high, start + size)]
        self._reserved |= {start + offset for offset in reserved}
        self._closed += size - (high - low) + sum(low <= offset < high for offset in reserved)

    @property
    def text(self) -> str:
        return ", ".join(str(subnet) for subnet in self.subnets)

    def offset(self, address: str) -> int | None:
        """None: not of this network."""
        value = number(address)
        if value is not None:
            for start, subnet in zip(self._starts, self.subnets, strict=True):
                inside = value - int(subnet.network_address)
                if 0 <= inside < subnet.num_addresses:
                    return start + inside
        return None

    def address(self, offset: int) -> str:
        """With the prefix length."""
        for start, subnet in zip(self._starts, self.subnets, strict=True):
            if offset < start + subnet.num_addresses:
                return f"{dotted(int(subnet.network_address) + offset - start)}/{subnet.prefixlen}"
        raise ValueError(f"no offset {offset} in {self.text}")

    def number(self, offset: int) -> int:
        """The address as an integer."""
        for start, subnet in zip(self._starts, self.subnets, strict=True):
            if offset < start + subnet.num_addresses:
                return int(subnet.network_address) + offset - start
        raise ValueError(f"no offset {offset} in {self.text}")

    def free(self, offset: int) -> bool:
        return offset not in self.used and offset not in self._reserved

    def hold(self, offset: int) -> None:
        self.used[offset] = self.used.get(offset, 0) + 1

    def release(self, offset: int) -> None:
        left = self.used.get(offset, 0) - 1
        if left > 0:
            self.used[offset] = left
        else:
            self.used.pop(offset, None)

    def next(self, cursor: int, stray: Container[int] = ()) -> int | None:
        """The free offset after the last one given; None when there is none left. `stray`: addresses that somebody has all the same."""
        if self._size - self._closed - len(self.used) <= 0:
            return None
        used, reserved = self.used, self._reserved
        offset = cursor
        for _ in range(self._size):
            offset = offset + 1 if offset + 1 < self._size else 0
            if offset in used or offset in reserved:
                continue
            if self._outside and any(low <= offset < high for low, high in self._outside):
                continue
            if stray and self.number(offset) in stray:
                continue
            return offset
        return None


def with_gateway(config: IPAMConfig, subnet: IPv4Network) -> IPAMConfig:
    """The first address of the subnet (of the range, if there is one) is the gateway unless the user said otherwise."""
    if config.gateway:
        return config
    base = subnet_of(config.ip_range) if config.ip_range else None
    first = int((base or subnet).network_address)
    taken = {number(text) for text in (config.auxiliary_addresses or {}).values()} | {int(subnet.network_address)}
    while first in taken:
        first += 1
    return IPAMConfig(subnet=str(subnet), ip_range=config.ip_range, gateway=dotted(first), auxiliary_addresses=config.auxiliary_addresses)


class Taken:
    """Which addresses cannot be had, by subnets and single addresses: asked about in the time of a bisection, since a full pool is gone
    through to its end with each plan."""

    def __init__(self, subnets: Iterable[IPv4Network], addresses: Iterable[str] = ()) -> None:
        ends = [(int(subnet.network_address), int(subnet.broadcast_address)) for subnet in (*UNFIT, *subnets)]
        ends += [(host, host) for address in addresses if (host := number(_without_port(address))) is not None]
        self._first: list[int] = []
        self._last: list[int] = []
        for first, last in sorted(ends):
            if self._last and first <= self._last[-1]:
                self._last[-1] = max(last, self._last[-1])
            else:
                self._first.append(first)
                self._last.append(last)

    def overlaps(self, subnet: IPv4Network) -> bool:
        at = bisect_right(self._first, int(subnet.broadcast_address)) - 1
        return at >= 0 and self._last[at] >= int(subnet.network_address)


def _without_port(address: str) -> str:
    return address.rpartition(":")[0] if address.count(":") == 1 else address


def inside(address: str, subnet: IPv4Network) -> bool:
    """Is the address (perhaps with a port) in the subnet?"""
    try:
        host = ip_interface(address.rsplit(":", 1)[0] if address.count(":") == 1 else address).ip
    except ValueError:
        return False
    return host.version == 4 and host in subnet
