"""What skepd tells the node's resolver, and how: one message, one answer, over a unix socket; each with its length before it.

`resolving.py` speaks, `resolver.py` answers. An answer comes when the order is carried out. `identity` tells one build from another: two
that differ never speak beyond the greeting (the form of Hello and of an answer's `identity` stays as it is). See docs/discovery.md.
"""

from __future__ import annotations

import struct
import zlib
from functools import cache
from pathlib import Path

import msgspec

from skep.datapath.base import LocalState, Resolving
from skep.datapath.tables import Told

SOCKET, LOG, STATE, LOCAL, SANDBOXES = "control.sock", "log", "state", "local", "sandboxes"
"""What is in the resolver's folder."""
TABLE = "skep_names"
"""Our nft table in each container's namespace."""
LENGTH = struct.Struct("!I")
LONGEST = 1 << 28


class Order(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    pass


class Hello(Order, frozen=True, kw_only=True):
    pass


class Change(Order, frozen=True, kw_only=True):
    """Of what the cluster tells. `whole`: what is not in it goes."""

    version: int
    put: tuple[Told, ...] = ()
    drop: tuple[str, ...] = ()
    whole: bool = False


class Local(Order, frozen=True, kw_only=True):
    state: LocalState


class Serve(Order, frozen=True, kw_only=True):
    id: str
    path: str
    networks: tuple[str, ...] = ()
    resolving: Resolving = Resolving()


class Withdraw(Order, frozen=True, kw_only=True):
    id: str
    network_id: str


class Forget(Order, frozen=True, kw_only=True):
    id: str


class Check(Order, frozen=True, kw_only=True):
    """Ask in every container, and mend where nobody answers."""

    mend: bool = True
    """False: only say where."""


class Resolve(Order, frozen=True, kw_only=True):
    """What a name means on one network, to a container that is on no other."""

    network_id: str
    name: str


class Entries(Order, frozen=True, kw_only=True):
    """All names of one network: `NAME ADDRESS ...` each, the addresses in order."""

    network_id: str


class Stop(Order, frozen=True, kw_only=True):
    """End. `clean`: and take our tables out of the containers."""

    clean: bool = False


Any = Hello | Change | Local | Serve | Withdraw | Forget | Check | Resolve | Entries | Stop


class Done(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    identity: str = ""
    version: int = 0
    """Of the last Change."""
    error: str = ""
    said: tuple[str, ...] = ()
    served: tuple[Serve, ...] = ()


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What the cluster told, as it is kept in a file."""

    version: int = 0
    items: tuple[Told, ...] = ()


@cache
def identity() -> str:
    """Of this build: its version and what its modules hold."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        release = version("skep")
    except PackageNotFoundError:
        release = "0"
    here = Path(__file__).parent
    sums = [zlib.crc32((here / name).read_bytes()) for name in _MODULES]
    return f"{release}-{zlib.crc32(repr(sums).encode()):08x}"


_MODULES = ("base.py", "dns.py", "names.py", "tables.py", "orders.py", "sockets.py", "upstream.py", "serving.py", "resolver.py")


def packed(message: Any | Done) -> bytes:
    body = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(body)) + body
