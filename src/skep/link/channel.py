"""One conversation: ordered frames both ways, whatever carries them. And the frames' form: msgpack, tagged by `t`.

Both transports (WebSocket over mutual TLS, memory) give the same interface, so neither agent nor dispatcher knows which it has.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from skep.errors import Invalid, SkepError
from skep.link.messages import FromAgent, FromManager, LogLine

FROM_AGENT_LIMIT = 8 << 20
"""Bytes in one frame from a node: a Hello with the statuses of some 20,000 tasks."""
FROM_MANAGER_LIMIT = 128 << 20
"""Bytes in one frame from a manager: a complete set with a million endpoints."""
LOG_FRAME_LIMIT = 2 << 20
CLOSE_REASON_LIMIT = 120
"""Bytes: what fits into a WebSocket close frame."""


class Closed(SkepError):
    """The conversation is over. `clean`: the other side ended it on purpose (with `text` as the reason, if any)."""

    status = 503

    def __init__(self, reason: str = "", *, clean: bool = False) -> None:
        super().__init__(reason or "the connection was closed")
        self.reason = reason
        self.clean = clean


class Refused(SkepError):
    """The other side does not talk to us. `removed`: this node is no longer part of the cluster and must not come back."""

    status = 403

    def __init__(self, reason: str, *, removed: bool = False, rpc: str | None = None) -> None:
        super().__init__(reason, rpc=rpc)
        self.removed = removed


class Channel(Protocol):
    """Frames as bytes. `send` waits while the other side does not read (flow control)."""

    async def send(self, frame: bytes) -> None:
        """Raises Closed."""
        ...

    async def receive(self) -> bytes:
        """Raises Closed at the end."""
        ...

    async def close(self, reason: str = "") -> None:
        """End it cleanly; the reason (at most 120 bytes) reaches the other side. Idempotent."""
        ...


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who is at the other end, as its certificate says (checked by TLS)."""

    node_id: str
    role: str
    """`swarm-manager` or `swarm-worker`."""
    cluster_id: str
    serial: str
    """Lower-case hex."""


_encoder = msgspec.msgpack.Encoder()
_from_agent: msgspec.msgpack.Decoder[FromAgent] = msgspec.msgpack.Decoder(FromAgent)
_from_manager: msgspec.msgpack.Decoder[FromManager] = msgspec.msgpack.Decoder(FromManager)
_lines = msgspec.msgpack.Decoder(list[LogLine])


def encode(message: Any) -> bytes:
    """A message, or a list of log lines (bulk goes many to a frame)."""
    return _encoder.encode(message)


def decode_from_agent(frame: bytes) -> FromAgent:
    try:
        return _from_agent.decode(frame)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Invalid(f"a frame that cannot be read: {error}") from None


def decode_from_manager(frame: bytes) -> FromManager:
    try:
        return _from_manager.decode(frame)
    except msgspec.DecodeError as error:
        raise Invalid(f"a frame that cannot be read: {error}") from None


def decode_lines(frame: bytes) -> list[LogLine]:
    try:
        return _lines.decode(frame)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Invalid(f"a frame that cannot be read: {error}") from None


def cut(reason: str) -> bytes:
    """A reason as a close frame can carry it."""
    return reason.encode()[:CLOSE_REASON_LIMIT].decode(errors="ignore").encode()
