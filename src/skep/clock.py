"""Time as skep uses it: integers, nanoseconds since 1970-01-01 UTC. Docker's own unit, exact, and cheap to compare."""

from __future__ import annotations

from typing import Protocol

MICROSECOND = 1_000
MILLISECOND = 1_000_000
SECOND = 1_000_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR


class Clock(Protocol):
    """Where the time comes from: the system's in the daemon, a virtual one in simulations."""

    def now(self) -> int:
        """Nanoseconds since 1970 (UTC)."""
        ...

    async def sleep(self, ns: int) -> None:
        """Wait for `ns` nanoseconds."""
        ...


class Drift:
    """How far a clock was set, apart from the time that passed: a host that slept, was moved, or learnt the time from the net.

    What is due at a time of the clock has to move with it, or a manager's laptop that wakes up takes all its nodes for dead.
    """

    NOTICED = 250 * MILLISECOND

    def __init__(self, now: int, steady: int) -> None:
        """`steady`: nanoseconds that only ever pass, from anywhere."""
        self._now = now
        self._steady = steady

    def since(self, now: int, steady: int) -> int:
        """Nanoseconds since the last call that gave any; 0 for less than is worth noticing, which is kept for later."""
        moved = (now - self._now) - (steady - self._steady)
        if abs(moved) < self.NOTICED:
            return 0
        self._now, self._steady = now, steady
        return moved
