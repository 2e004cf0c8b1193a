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
