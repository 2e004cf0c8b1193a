"""The resolver's ears in one container: sockets inside its network namespace, and the rules that lead 127.0.0.11 port 53 to them.

The sockets have a high port, so that a container may run a DNS server of its own on port 53. The rules rewrite ports without connection
tracking: a NAT chain would make the kernel track every packet of the container. And they answer for a resolver that is not there: what
is sent to a closed port meets silence instead of a refusal, so a libc waits and asks again, and by then there is another.
"""

from __future__ import annotations

import errno
import os
import socket

from skep.datapath import netlink, netns, nft
from skep.datapath.orders import TABLE

ADDRESS, PORT = "127.0.0.11", 53
PORTS = range(61053, 61069)
"""Above what the kernel gives out by itself (60999). More than one: a new resolver takes the next while an old one ends."""
BACKLOG = 128


class Sockets:
    """Raises OSError or SkepError when made, and then nothing is left open."""

    def __init__(self, path: str) -> None:
        namespace = netns.opened(path)
        try:
            self.inode = os.fstat(namespace).st_ino
            with netns.entered(namespace):
                self.addresses = _addresses()
                self.udp, self.tcp = _bound()
            try:
                _run(namespace, rules(self.udp.getsockname()[1]))
            except BaseException:
                self.close()
                raise
        finally:
            os.close(namespace)

    def close(self) -> None:
        self.udp.close()
        self.tcp.close()


def _bound() -> tuple[socket.socket, socket.socket]:
    """UDP and TCP on the first port that is free for both."""
    for port in (*PORTS, 0):
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            udp.bind((ADDRESS, port))
            tcp.bind((ADDRESS, udp.getsockname()[1]))
            tcp.listen(BACKLOG)
            return udp, tcp
        except OSError as e:
            udp.close()
            tcp.close()
            if e.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, f"no free port at {ADDRESS}")


def _addresses() -> tuple[str, ...]:
    """The container's own, by interface. Of the thread's namespace."""
    with netlink.Socket() as net:
        return tuple(a.address for a in sorted(net.addresses(), key=lambda a: a.device) if a.device != 1)


def read_addresses(path: str) -> tuple[str, ...]:
    namespace = netns.opened(path)
    try:
        with netns.entered(namespace):
            return _addresses()
    finally:
        os.close(namespace)


def inside(path: str, family: int, kind: int) -> socket.socket:
    """A socket of the container's own, that blocks nobody."""
    namespace = netns.opened(path)
    try:
        with netns.entered(namespace):
            return socket.socket(family, kind | socket.SOCK_NONBLOCK)
    finally:
        os.close(namespace)


def rules(port: int) -> str:
    """To be laid where there are none, or where there are those of another port. (To delete the table first takes the
    kernel twice as long.)"""
    back = f"{PORTS.start}-{PORTS.stop - 1}" if port in PORTS else str(port)
    lines = []
    for protocol in ("udp", "tcp"):
        lines.append(f"ip daddr {ADDRESS} {protocol} dport {PORT} notrack {protocol} dport set {port}")
        lines.append(f"ip saddr {ADDRESS} {protocol} sport {back} notrack {protocol} sport set {PORT}")
    chain = (
        f"table ip {TABLE} {{ chain names {{ type filter hook output priority -300; policy accept; }}; }}\nflush chain ip {TABLE} names\n"
    )
    return chain + "".join(f"add rule ip {TABLE} names {line}\n" for line in lines)


def remove_rules(path: str) -> None:
    namespace = netns.opened(path)
    try:
        _run(namespace, f"table ip {TABLE}\ndelete table ip {TABLE}\n")
    finally:
        os.close(namespace)


def _run(namespace: int, text: str) -> None:
    handle = nft.rules(namespace)
    try:
        handle.run(text)
    finally:
        handle.close()
