"""What a node may say of itself and its tasks: it is trusted with its own containers, not with the manager's memory or others' kernels."""

from __future__ import annotations

import ipaddress
from collections import deque

import msgspec

from skep.clock import SECOND
from skep.link.channel import Refused
from skep.link.messages import PROTOCOL, Hello
from skep.model.node import NodeDescription
from skep.model.task import TaskStatus

DESCRIPTION_LIMIT = 64 << 10
"""Bytes of a node's description: it is stored, and read with every list of nodes."""
DESCRIBE_GAP = SECOND
"""A node that describes itself more often is stopped: each time is a write to disk."""
OUTBOX_LIMIT = 4096
"""Messages that wait for a node that speaks and does not listen."""
ID_LIMIT = 256
REGISTRATIONS = 3
REGISTRATION_WINDOW = 8 * SECOND
PORTS_LIMIT = 64 << 10
"""Bytes of a task's ports that a node may report."""


class Registrations:
    """How often each node began a session of late."""

    def __init__(self) -> None:
        self.times: dict[str, deque[int]] = {}

    def check(self, node_id: str, now: int) -> None:
        """One more. Raises Refused."""
        times = self.times.setdefault(node_id, deque())
        while times and times[0] <= now - REGISTRATION_WINDOW:
            times.popleft()
        if len(times) >= REGISTRATIONS:
            raise Refused(f"node {node_id} exceeded rate limit count of registrations", rpc="Unavailable")
        times.append(now)

    def forget(self, node_id: str) -> None:
        self.times.pop(node_id, None)


def check_greeting(hello: Hello) -> None:
    """The address goes to every other node's kernel: one that is none would stop the network of all. Raises Refused."""
    if not PROTOCOL - 1 <= hello.protocol <= PROTOCOL:
        raise Refused(
            f"the node speaks version {hello.protocol} of the link, this manager {PROTOCOL - 1} to {PROTOCOL}: "
            "upgrade managers before workers, one version at a time",
            rpc="FailedPrecondition",
        )
    if hello.address and not _is_address(hello.address):
        raise Refused(f"{hello.address[:64]!r} is not the address of a node", rpc="InvalidArgument")
    if (reason := too_long(hello.description)) is not None:
        raise Refused(reason, rpc="InvalidArgument")


def too_long(description: NodeDescription) -> str | None:
    size = len(msgspec.msgpack.encode(description))
    return f"the node's description has {size} bytes, {DESCRIPTION_LIMIT} are allowed" if size > DESCRIPTION_LIMIT else None


def oversized(status: TaskStatus) -> bool:
    """Container id, host name and ports are kept as they come (texts are cut)."""
    if status.container is not None and max(len(status.container.container_id), len(status.container.hostname)) > ID_LIMIT:
        return True
    return bool(status.ports) and len(msgspec.msgpack.encode(status.ports)) > PORTS_LIMIT


def _is_address(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_unspecified or address.is_multicast or getattr(address, "scope_id", None))
