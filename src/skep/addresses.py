"""Which address a node listens on, and by which others reach it: Docker's rules and texts for --listen-addr and --advertise-addr.

Source: moby daemon/cluster/listen_addr.go; reference: behaviours D63 to D66.
"""

from __future__ import annotations

import ctypes
import fcntl
import ipaddress
import socket
import struct

from skep.errors import Invalid

DEFAULT_PORT = 2377
SIOCGIFFLAGS, SIOCGIFADDR, SIOCETHTOOL = 0x8913, 0x8915, 0x8946
IFF_UP, IFF_LOOPBACK = 0x1, 0x8
ETHTOOL_GDRVINFO = 3
OURS = "sk"
"""How the name of the router's uplink begins (skep.datapath.router)."""
BAD_LISTEN = "listen address must be an IP address or network interface (with optional port number)"
BAD_ADVERTISE = "advertise address must be a non-zero IP address or network interface (with optional port number)"
BAD_DATA_PATH = "data path address must be a non-zero IP address or network interface (without a port number)"
NO_ADDRESS = "could not find the system's IP address"
"""Clients add how to help oneself, here and where there are several."""


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


def uplinks() -> dict[str, str]:
    """Those of `interfaces` by which this host may be reached: up, no loopback, no bridge that containers or machines hang on, not ours."""
    found: dict[str, str] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for name, address in interfaces().items():
            flags = struct.unpack_from("H", fcntl.ioctl(s.fileno(), SIOCGIFFLAGS, struct.pack("256s", name.encode()[:15])), 16)[0]
            parsed = ipaddress.ip_address(address)
            if not flags & IFF_UP or flags & IFF_LOOPBACK or parsed.is_loopback or parsed.is_link_local:
                continue
            if (driver := _driver(s, name)) == "bridge" or (driver == "veth" and name.startswith(OURS)):
                continue
            found[name] = address
    return found


def _driver(s: socket.socket, name: str) -> str:
    """What makes an interface, as the kernel names it in this network namespace; empty where it does not say."""
    info = ctypes.create_string_buffer(struct.pack("I", ETHTOOL_GDRVINFO), 196)
    try:
        fcntl.ioctl(s.fileno(), SIOCETHTOOL, struct.pack("16sP16x", name.encode()[:15], ctypes.addressof(info)))
    except OSError:
        return ""
    return info.raw[4:36].partition(b"\0")[0].decode(errors="replace")


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


def _resolved(host: str, bad: str, *, zero: bool = False) -> str:
    """An interface's name stands for its address. Raises Invalid `bad`."""
    host = interfaces().get(host, host)
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        raise Invalid(bad) from None
    if parsed.is_unspecified and not zero:
        raise Invalid(bad)
    return host


def listen(address: str) -> tuple[str, int]:
    """The address to listen on."""
    if not address:
        raise Invalid('invalid ListenAddr "": invalid empty address')
    host, port = split(address)
    return _resolved(host, BAD_LISTEN, zero=True), port


def advertise(address: str, listening: tuple[str, int]) -> str:
    """`ip:port` by which others reach this node. Empty: the address listened on, or the only one this host has."""
    host, port = split(address, listening[1])
    if host:
        return join(_resolved(host, BAD_ADVERTISE), port)
    if not ipaddress.ip_address(listening[0]).is_unspecified:
        return join(listening[0], port)
    choices = sorted(uplinks().items())
    if not choices:
        raise Invalid(NO_ADDRESS)
    if len(choices) > 1:
        shown = " and ".join(f"{a} on {n}" for n, a in choices[:2])
        raise Invalid(
            f"could not choose an IP address to advertise since this system has multiple addresses on different interfaces ({shown})"
        )
    return join(choices[0][1], port)


def data_path(address: str, advertised: str) -> str:
    """The address of this node's end of the overlays."""
    return _resolved(address, BAD_DATA_PATH) if address else split(advertised)[0]
