"""Watches: each reader has a queue of its own, filled in order and read in batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from skep.errors import Unavailable
from skep.model.base import Object
from skep.store.base import Event

LIMIT = 1_000_000
"""Events a reader may lag behind. A client that stopped reading must not eat the manager's memory."""


class EventQueue:
    """One reader's `skep.store.base.Watch`. A reader that fell too far behind gets Unavailable and has to begin again."""

    def __init__(self, kinds: frozenset[type[Object]], forget: Callable[[EventQueue], None], limit: int = LIMIT) -> None:
        self._kinds = kinds
        self._forget = forget
        self._limit = limit
        self._events: list[Event] = []
        self._changed = asyncio.Event()
        self._closed = False
        self._lost = False

    def put(self, events: Sequence[Event]) -> None:
        kinds = self._kinds
        wanted = [event for event in events if event.kind in kinds] if kinds else events
        if not wanted:
            return
        if len(self._events) + len(wanted) > self._limit:
            self._lost = True
            self._events.clear()
            self.close()
            return
        self._events.extend(wanted)
        self._changed.set()

    def take(self) -> list[Event]:
        if self._lost:
            raise Unavailable("the reader of the cluster's changes fell too far behind")
        taken, self._events = self._events, []
        if not self._closed:
            self._changed.clear()
        return taken

    def __aiter__(self) -> EventQueue:
        return self

    async def __anext__(self) -> list[Event]:
        while True:
            taken = self.take()
            if taken:
                return taken
            if self._closed:
                raise StopAsyncIteration
            await self._changed.wait()

    async def changed(self) -> None:
        await self._changed.wait()

    def wake(self) -> None:
        self._changed.set()

    def close(self) -> None:
        """No further events; a waiting reader ends after those it has."""
        self._closed = True
        self._changed.set()
        self._forget(self)
