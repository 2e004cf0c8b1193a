"""The link without a network: channels in one process (the manager's own agent), and a wire on a virtual clock (simulations).

`pair` gives both ends of a conversation with the flow control of a socket. `Wire` is synchronous: it delays, drops, duplicates and
reorders as a simulation tells it, and hands out what is due at a given time; every message passes through the codec. See docs/link.md.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable

from skep.clock import MILLISECOND
from skep.link.channel import Closed, decode_from_agent, decode_from_manager, encode
from skep.link.messages import FromAgent, FromManager

FRAMES_IN_FLIGHT = 64


class _Pipe:
    """One direction."""

    def __init__(self) -> None:
        self.frames: deque[bytes] = deque()
        self.reason: str | None = None
        self.moved = asyncio.Event()


class MemoryChannel:
    """One end of a conversation inside this process."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._incoming = incoming
        self._outgoing = outgoing

    async def send(self, frame: bytes) -> None:
        pipe = self._outgoing
        while pipe.reason is None and len(pipe.frames) >= FRAMES_IN_FLIGHT:
            pipe.moved.clear()
            await pipe.moved.wait()
        if pipe.reason is not None:
            raise Closed(pipe.reason, clean=True)
        pipe.frames.append(frame)
        pipe.moved.set()

    async def receive(self) -> bytes:
        pipe = self._incoming
        while not pipe.frames:
            if pipe.reason is not None:
                raise Closed(pipe.reason, clean=True)
            pipe.moved.clear()
            await pipe.moved.wait()
        frame = pipe.frames.popleft()
        pipe.moved.set()
        return frame

    async def close(self, reason: str = "") -> None:
        for pipe in (self._incoming, self._outgoing):
            if pipe.reason is None:
                pipe.reason = reason
            pipe.moved.set()


def pair() -> tuple[MemoryChannel, MemoryChannel]:
    """Both ends of one conversation."""
    one, other = _Pipe(), _Pipe()
    return MemoryChannel(one, other), MemoryChannel(other, one)


class Fault:
    """What happens to one message: `delay` ns until it arrives; `copies` 0 = lost, 2 = twice."""

    __slots__ = ("copies", "delay")

    def __init__(self, delay: int = MILLISECOND, copies: int = 1) -> None:
        self.delay = delay
        self.copies = copies


ON_TIME = Fault()


class Wire:
    """One connection between an agent and a dispatcher on a virtual clock.

    `fate` is asked for each message (direction `up`: from the agent). In order unless `ordered` is False: a message never overtakes an
    earlier one of its direction, as on TCP; without it they arrive as their delays say.
    """

    def __init__(self, fate: Callable[[bool], Fault] = lambda up: ON_TIME, *, ordered: bool = True) -> None:
        self._fate = fate
        self._ordered = ordered
        self._due: list[tuple[int, int, bool, bytes]] = []
        self._count = 0
        self._last = {True: 0, False: 0}
        self.cut = False

    def send_up(self, message: FromAgent, now: int) -> None:
        self._send(encode(message), True, now)

    def send_down(self, message: FromManager, now: int) -> None:
        self._send(encode(message), False, now)

    def _send(self, frame: bytes, up: bool, now: int) -> None:
        if self.cut:
            return
        fault = self._fate(up)
        for _ in range(fault.copies):
            at = now + fault.delay
            if self._ordered:
                at = self._last[up] = max(at, self._last[up])
            self._count += 1
            heapq.heappush(self._due, (at, self._count, up, frame))

    def next_time(self) -> int | None:
        return self._due[0][0] if self._due and not self.cut else None

    def take(self, now: int) -> tuple[FromAgent | None, FromManager | None] | None:
        """The next message that is due: (for the dispatcher, None) or (None, for the agent); None = nothing yet."""
        if self.cut or not self._due or self._due[0][0] > now:
            return None
        _, _, up, frame = heapq.heappop(self._due)
        return (decode_from_agent(frame), None) if up else (None, decode_from_manager(frame))

    def break_off(self) -> None:
        """The connection is lost with everything in flight; both ends are to be told (`Session.lost`, `Dispatcher.disconnect`)."""
        self.cut = True
        self._due.clear()
