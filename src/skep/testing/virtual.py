"""Time that passes only when there is nothing left to do: an agenda of what happens when, and a clock that reads it."""

from __future__ import annotations

import heapq
from collections.abc import Callable

START = 1_700_000_000_000_000_000
"""When every simulation begins, ns since 1970: a time like any other, so that nothing mistakes it for "not yet"."""


class Agenda:
    """What happens when. Things of one time happen in the order in which they were planned."""

    def __init__(self, start: int = START) -> None:
        self.now = start
        self.steps = 0
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, time: int, what: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (max(time, self.now), self._count, what))

    def after(self, delay: int, what: Callable[[], None]) -> None:
        self.at(self.now + delay, what)

    @property
    def next_time(self) -> int | None:
        return self._queue[0][0] if self._queue else None

    def step(self) -> None:
        """Let the next thing happen."""
        self.now, _, what = heapq.heappop(self._queue)
        self.steps += 1
        what()

    def run_until(self, time: int) -> None:
        while self._queue and self._queue[0][0] <= time:
            self.step()
        self.now = max(self.now, time)


class Alarm:
    """One thing that is to happen at the earliest time it was set to; setting it later than it stands does nothing."""

    def __init__(self, agenda: Agenda, what: Callable[[], None]) -> None:
        self._agenda = agenda
        self._what = what
        self._at: int | None = None
        self._off = False

    def set(self, time: int | None) -> None:
        if time is None or self._off:
            return
        time = max(time, self._agenda.now)
        if self._at is None or time < self._at:
            self._at = time
            self._agenda.at(time, self._ring)

    def stop(self) -> None:
        """It never rings again."""
        self._off = True

    def _ring(self) -> None:
        if self._off or self._at is None or self._at > self._agenda.now:
            return
        self._at = None
        self._what()


class VirtualClock:
    """`skep.clock.Clock` on an agenda. Nothing that runs on it may sleep: it is planned instead."""

    def __init__(self, agenda: Agenda) -> None:
        self._agenda = agenda

    def now(self) -> int:
        return self._agenda.now

    async def sleep(self, ns: int) -> None:
        raise RuntimeError("nothing sleeps on a virtual clock: plan it in the agenda")
