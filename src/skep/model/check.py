"""What one node found when it was asked whether its network is well. Plain values; `skep.manager.check` says what they mean together.

A node compares with the snapshot it was told and says which that is, item by item, so that a manager sees whether it is what the store
says. What it tried to reach is one `Reached` each.
"""

from __future__ import annotations

import zlib

import msgspec

from skep.model.assignment import Item
from skep.model.base import Record

UNDERLAY, OVERLAY, WIDE, TASK, VIP = "underlay", "overlay", "wide", "task", "vip"
"""What is reached: another node's address; its end of an overlay; the same, or a task, with packets of full size; a task; a service."""
_encoder = msgspec.msgpack.Encoder(order="sorted")


class Reached(Record, frozen=True, kw_only=True):
    """One thing that the node tried to reach, from one of its own tasks (or, for UNDERLAY and OVERLAY, from the node itself)."""

    what: str
    source: str = ""
    """Address of the task that tried; empty: the node itself."""
    node_id: str = ""
    """Where it leads to; empty for a virtual address."""
    network_id: str = ""
    address: str = ""
    subject: str = ""
    """Key of the endpoint or service in the snapshot."""
    ping: bool | None = None
    """Answered to an ICMP echo; None: not asked."""
    tcp: bool | None = None
    """A TCP connection to a port where nobody listens was refused, or made, by the other side."""
    size: int = 0
    """Bytes of the largest packet that may go there, for WIDE."""

    @property
    def ok(self) -> bool:
        """Everything that was tried was answered. A node may keep either from its own underlay address."""
        if self.what == UNDERLAY:
            return bool(self.ping or self.tcp)
        return self.ping is not False and self.tcp is not False


class NodeReport(Record, frozen=True, kw_only=True):
    version: int = 0
    """Of the snapshot in force."""
    items: dict[str, int] = {}
    """Key of each item of that snapshot -> `fingerprint`."""
    kernel: tuple[str, ...] = ()
    """A sentence for each thing in the kernel that differs from the snapshot."""
    names: tuple[str, ...] = ()
    """Likewise of names."""
    refused: tuple[str, ...] = ()
    """A sentence for each network that the node cannot lay, with what to do about it."""
    repaired: bool = False
    """What differed was mended."""
    reached: tuple[Reached, ...] = ()
    skipped: int = 0
    """What was not tried, because there is too much of it."""
    error: str = ""
    """What kept the node from looking at all."""
    milliseconds: int = 0


def fingerprint(item: Item) -> int:
    return zlib.crc32(_encoder.encode(item))
