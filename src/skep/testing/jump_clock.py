"""A clock for asyncio code on which time passes only when nothing else is left to do: a minute's health check takes no time to test."""

from __future__ import annotations

import asyncio
import heapq

from skep.testing.virtual import START

_PATIENCE = 50
"""Turns of the event loop that count as "nothing left to do"."""


class JumpClock:
    """`skep.clock.Clock`. What runs on it must not wait for threads or descriptors: the clock does not see them."""

    def __init__(self, start: int = START) -> None:
        self._now = start
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._count = 0
        self._idle = 0
        self._armed = False

    def now(self) -> int:
        return self._now

    async def sleep(self, ns: int) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        self._count += 1
        heapq.heappush(self._sleepers, (self._now + max(ns, 0), self._count, ready))
        self._idle = 0
        if not self._armed:
            self._armed = True
            loop.call_soon(self._turn, loop)
        await ready

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sleepers = [sleeper for sleeper in self._sleepers if not sleeper[2].done()]
        heapq.heapify(self._sleepers)
        if not self._sleepers:
            self._armed = False
            return
        self._idle += 1
        if self._idle >= _PATIENCE:
            self._idle = 0
            at, _, ready = heapq.heappop(self._sleepers)
            self._now = max(self._now, at)
            ready.set_result(None)
        loop.call_soon(self._turn, loop)
