"""Which address a node listens on, and by which others reach it: Docker's rules and texts for --listen-addr and --advertise-addr.

Source: moby daemon/cluster/listen_addr.go; reference: behaviours D63 to D66.
"""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct

from skep.errors import Invalid

DEFAULT_PORT = 2377
SIOCGIFADDR = 0x8915


def interfaces() -> dict[str, str]:
    """IPv4 address of each interface that has one."""
    found: dict[str, str] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(s.fileno(), SIOCGIFADDR, request)
            except OSError:
                continue
            found[name] = socket.inet_ntoa(answer[20:24])
    return found


def split(address: str, default_port: int = DEFAULT_PORT) -> tuple[str, int]:
    """`host:port`, `host`, `[v6]:port`, `:port` -> (host, port)."""
    host, port = address, ""
    if address.startswith("["):
        host, _, rest = address[1:].partition("]")
        port = rest.removeprefix(":")
    elif address.count(":") == 1:
        host, _, port = address.partition(":")
    if port and not (port.isdigit() and 0 < int(port) < 65536):
        raise Invalid(f"invalid port in address {address!r}: {port!r}")
    return host, int(port) if port else default_port


def join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listen(address: str) -> tuple[str, int]:
    """The address to listen on; an interface's name stands for its address."""
    if not address:
        raise Invalid("must specify a listening address because the address to advertise is not recognized as a system address")
    host, port = split(address)
    host = interfaces().get(host, host)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise Invalid(f"unable to find an IP address or interface for --listen-addr {address!r}") from None
    return host, port


def advertise(address: str, listening: tuple[str, int]) -> str:
    """`ip:port` by which others reach this node. Empty: the address listened on, or the only one this host has."""
    host, port = split(address, listening[1])
    known = interfaces()
    if host:
        host = known.get(host, host)
        try:
            parsed = ipaddress.ip_address(host)
        except ValueError:
            raise Invalid("advertise address must be a non-zero IP address or network interface (with optional port number)") from None
        if parsed.is_unspecified:
            raise Invalid("advertise address must be a non-zero IP address or network interface (with optional port number)")
        return join(host, port)
    if not ipaddress.ip_address(listening[0]).is_unspecified:
        return join(listening[0], port)
    choices = {n: a for n, a in known.items() if not ipaddress.ip_address(a).is_loopback}
    if not choices:
        raise Invalid("could not find the system's IP address - specify one with --advertise-addr")
    if len(choices) > 1:
        shown = ", ".join(f"{a} on {n}" for n, a in sorted(choices.items())[:2])
        raise Invalid(
            f"could not choose an IP address to advertise since this system has multiple addresses ({shown}) - specify one with --advertise-addr"
        )
    return join(next(iter(choices.values())), port)


def data_path(address: str, advertised: str) -> str:
    """The address of this node's end of the overlays."""
    if not address:
        return split(advertised)[0]
    host = interfaces().get(address, address)
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        raise Invalid("data path address must be a non-zero IP address or network interface") from None
    if parsed.is_unspecified:
        raise Invalid("data path address must be a non-zero IP address")
    return host
