"""The dispatcher in real time: a thin shell that carries messages between channels and the synchronous core."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from skep.clock import SECOND, Clock, Drift
from skep.errors import Invalid, SkepError
from skep.ids import Random
from skep.link.channel import Channel, Closed, Refused, decode_from_agent, encode
from skep.link.messages import Checked, CheckWanted, Hello
from skep.manager.dispatcher import Dispatcher
from skep.manager.session import DISCOVERY, Session
from skep.store.base import Store

log = logging.getLogger(__name__)

HELLO_SECONDS = 10.0
SEND_SECONDS = 15.0
"""How long a node may not read before its session ends: about when its heartbeat would be overdue."""
BURST = 2000
RATE = 500
"""Frames of a node that are read at once, and then each second (32 KB count as one): a node cannot keep the manager from the others."""
FRAME_SHARE = 32 << 10
LATE_SECONDS = 1.0
"""A manager that did not run (stopped, swapped out) has not read what its nodes said meanwhile."""


class Sessions:
    """`run` must be running; `serve` is called once per connection, by the server and for the manager's own agent."""

    def __init__(self, store: Store, clock: Clock, rng: Random) -> None:
        self._clock = clock
        self._drift: Drift | None = None
        self._stopping = ""
        self._watch = store.watch()
        self._wakes: dict[Session, asyncio.Event] = {}
        self._moved = asyncio.Event()
        self._sleeping_until: int | None = None
        self.on_checked: Callable[[str, Checked], None] = lambda node_id, message: None
        """Called with what a node found in its network (skep.manager.check)."""
        self.dispatcher = Dispatcher(store, rng, clock.now(), on_ready=self._ready)

    def _now(self) -> int:
        now, steady = self._clock.now(), int(asyncio.get_running_loop().time() * SECOND)
        self._drift = self._drift or Drift(now, steady)
        if moved := self._drift.since(now, steady):
            log.warning("the clock was set by %.1f s", moved / SECOND)
            self.dispatcher.shift(moved)
            self._moved.set()
        return now

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_store())
            group.create_task(self._tick())

    def stop(self, reason: str = "this manager stops") -> None:
        """Tell every node that the session ends; each comes back to whichever manager there is. No session begins after this."""
        self._stopping = reason
        self.dispatcher.stop(reason)

    def ask(self, node_id: str, wanted: CheckWanted) -> bool:
        """Ask this node whether its network is well. False: it has no session, or does not understand that."""
        session = self.dispatcher.sessions.get(node_id)
        return session is not None and session.protocol >= DISCOVERY and self.dispatcher.send(node_id, wanted)

    async def serve(self, node_id: str, channel: Channel, peer: str = "") -> None:
        """One session, from its greeting to its end. Raises Refused, Invalid."""
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                hello = decode_from_agent(await channel.receive())
        except (Closed, TimeoutError):
            return
        if not isinstance(hello, Hello):
            raise Invalid("a session begins with a greeting")
        if self._stopping:
            raise Refused(self._stopping, rpc="Unavailable")
        session = self.dispatcher.connect(node_id, hello, self._now(), peer)
        log.info("session begins", extra={"node": node_id, "session": session.id, "address": hello.address or peer})
        wake = self._wakes[session] = asyncio.Event()
        wake.set()
        self._look_at_time()
        try:
            async with asyncio.TaskGroup() as group:
                writing = group.create_task(self._write(session, channel, wake))
                await self._read(session, channel)
                if not session.closed:
                    writing.cancel()
        except* SkepError as errors:
            raise errors.exceptions[0] from None
        finally:
            del self._wakes[session]
            self.dispatcher.disconnect(session)
            log.info("session ends", extra={"node": node_id, "session": session.id})

    async def _read(self, session: Session, channel: Channel) -> None:
        allowed, at = float(BURST), self._now()
        while True:
            try:
                frame = await channel.receive()
            except Closed:
                return
            now = self._now()
            allowed, at = min(BURST, allowed + max(now - at, 0) * RATE / SECOND) - 1 - len(frame) / FRAME_SHARE, now
            if allowed < 0:
                await self._clock.sleep(int(-allowed * SECOND / RATE))
            message = decode_from_agent(frame)
            if isinstance(message, Checked):
                self.on_checked(session.node_id, message)
                continue
            self.dispatcher.receive(session, message, self._now())
            self._look_at_time()

    async def _write(self, session: Session, channel: Channel, wake: asyncio.Event) -> None:
        try:
            while True:
                await wake.wait()
                wake.clear()
                for message in self.dispatcher.pending_messages(session):
                    async with asyncio.timeout(SEND_SECONDS):
                        await channel.send(encode(message))
                if session.closed:
                    break
        except (Closed, TimeoutError):
            pass
        await channel.close()

    def _ready(self, session: Session) -> None:
        wake = self._wakes.get(session)
        if wake is not None:
            wake.set()

    async def _follow_store(self) -> None:
        async for events in self._watch:
            self.dispatcher.changed(events, self._now())
            self._look_at_time()

    async def _tick(self) -> None:
        while True:
            now = self._now()
            self._moved.clear()
            self._sleeping_until = self.dispatcher.tick(now)
            due = self._sleeping_until
            until = None if due is None else asyncio.get_running_loop().time() + max(due - now, 0) / SECOND
            try:
                async with asyncio.timeout_at(until):
                    await self._moved.wait()
            except TimeoutError:
                pass
            if until is not None and (late := asyncio.get_running_loop().time() - until) > LATE_SECONDS:
                log.warning("this manager was held up for %.1f s: its nodes are given as much more time", late)
                self.dispatcher.held_up(int(late * SECOND))

    def _look_at_time(self) -> None:
        """Wake the ticker only for something earlier than what it sleeps for: a heartbeat never does."""
        due = self.dispatcher.next_time()
        if due is not None and (self._sleeping_until is None or due < self._sleeping_until):
            self._moved.set()
