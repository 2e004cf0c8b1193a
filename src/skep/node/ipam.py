"""Subnets and addresses of this node's own networks: which are free, and what is said of one that is not. Pure. See docs/network.md."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network
from itertools import chain

import msgspec

from skep.datapath.local import HostNetwork
from skep.errors import Conflict, Forbidden, Invalid, NotImplementedHere, SkepError
from skep.model.spec import IPAMConfig

OVERLAP = "invalid pool request: Pool overlaps with other one on this address space"
_OURS = IPv4Network("169.254.0.0/16")
"""Link addresses between nodes."""


def pools() -> Iterator[IPv4Network]:
    """Docker's default ones, in its order."""
    wide = (IPv4Network((f"172.{second}.0.0", 16)) for second in range(17, 32))
    return chain(wide, IPv4Network("192.168.0.0/16").subnets(new_prefix=20))


def free_pool(used: Collection[IPv4Network], host: Collection[HostNetwork]) -> IPv4Network:
    """The first that overlaps neither another network nor what the host reaches."""
    taken = [*used, *(h.network for h in host)]
    for pool in pools():
        if not any(pool.overlaps(other) for other in taken):
            return pool
    raise Invalid("all predefined address pools have been fully subnetted")


def settled(asked: tuple[IPAMConfig, ...], used: Collection[IPv4Network], host: Collection[HostNetwork]) -> IPAMConfig:
    """What will be in force: with subnet and gateway. Raises Invalid, Forbidden."""
    if len(asked) > 1:
        raise NotImplementedHere("a bridge network of skep has one subnet: leave the others out")
    config = asked[0] if asked else IPAMConfig()
    if config.subnet:
        subnet = checked_subnet(config.subnet, used, host)
    elif config.ip_range or config.gateway or config.auxiliary_addresses:
        raise Invalid("invalid network config:\nevery ip-range or gateway must have a corresponding subnet")
    else:
        subnet = free_pool(used, host)
    gateway = _inside(config.gateway, subnet, "gateway") if config.gateway else subnet[1]
    if gateway in (subnet.network_address, subnet.broadcast_address):
        raise Invalid(f"invalid gateway {gateway}: it stands for the whole subnet {subnet}")
    aux = {name: str(_inside(address, subnet, "auxiliary address")) for name, address in (config.auxiliary_addresses or {}).items()}
    if str(gateway) in aux.values():
        raise Conflict("failed to allocate secondary ip address (Address already in use)")
    part = ""
    if config.ip_range:
        part = str(_part(config.ip_range, subnet))
    return msgspec.structs.replace(
        config, subnet=str(subnet), gateway=str(gateway), ip_range=part, auxiliary_addresses=aux or config.auxiliary_addresses
    )


def checked_subnet(text: str, used: Collection[IPv4Network], host: Collection[HostNetwork]) -> IPv4Network:
    if ":" in text:
        raise NotImplementedHere(f"skep's bridge networks carry IPv4 only: leave the subnet {text} out")
    try:
        subnet = IPv4Network(text, strict=False)
    except ValueError:
        raise Invalid(f"invalid network config:\ninvalid subnet {text}: invalid CIDR block notation") from None
    if subnet.prefixlen > 30 or subnet.prefixlen < 8:
        raise Invalid(f"invalid subnet {subnet}: it must be between a /8 and a /30")
    if subnet.is_multicast or subnet.is_loopback or subnet.overlaps(_OURS) or subnet.network_address in IPv4Network("0.0.0.0/8"):
        raise Invalid(f"invalid subnet {subnet}: these addresses are not for containers")
    if any(subnet.overlaps(other) for other in used):
        raise Forbidden(OVERLAP)
    for other in host:
        if subnet.overlaps(other.network) if other.connected else other.network.subnet_of(subnet):
            kind = "an address in" if other.connected else "a route to"
            raise Forbidden(f"{OVERLAP}: this host has {kind} {other.network}")
    return subnet


def _inside(text: str, subnet: IPv4Network, what: str) -> IPv4Address:
    try:
        address = IPv4Address(text)
    except ValueError:
        raise Invalid(f"invalid network config:\ninvalid {what} {text}: invalid address") from None
    if address not in subnet:
        raise Invalid(f"invalid network config:\ninvalid {what} {text}: parent subnet {subnet} doesn't contain this address")
    return address


def _part(text: str, subnet: IPv4Network) -> IPv4Network:
    try:
        part = IPv4Network(text, strict=False)
    except ValueError:
        raise Invalid(f"invalid network config:\ninvalid ip-range {text}: invalid CIDR block notation") from None
    if not part.subnet_of(subnet):
        raise Invalid(f"invalid network config:\ninvalid ip-range {text}: parent subnet {subnet} doesn't contain ip-range")
    return part


def reserved(config: IPAMConfig) -> set[str]:
    """Addresses of the subnet that no container gets."""
    subnet = IPv4Network(config.subnet)
    whole = {str(subnet.network_address), str(subnet.broadcast_address)}
    return {config.gateway, *whole, *(config.auxiliary_addresses or {}).values()}


def asked_address(config: IPAMConfig, text: str, taken: Collection[str]) -> str:
    """Raises Invalid, Conflict in Docker's words."""
    try:
        address = IPv4Address(text.partition("/")[0])
    except ValueError:
        raise Invalid(f"invalid IPv4 address: {text}") from None
    if address not in IPv4Network(config.subnet):
        raise Invalid(f"invalid address {address}: It does not belong to any of this network's subnets")
    if str(address) in taken or str(address) in reserved(config):
        raise Conflict("Address already in use")
    return str(address)


def next_address(config: IPAMConfig, taken: Collection[str], last: str, name: str) -> str:
    """In turn: the first free one after `last`, so that what was given back rests as long as it can."""
    part = IPv4Network(config.ip_range or config.subnet)
    first, size = int(part.network_address), part.num_addresses
    start = int(IPv4Address(last)) - first + 1 if last and IPv4Address(last) in part else 0
    never = reserved(config)
    for offset in _around(start, size):
        address = str(IPv4Address(first + offset))
        if address not in never and address not in taken:
            return address
    raise SkepError(f"no available IPv4 addresses on this network's address pools: {name}")


def _around(start: int, size: int) -> Iterable[int]:
    return chain(range(start, size), range(min(start, size)))
