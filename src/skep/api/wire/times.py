"""Times as Go writes them: RFC 3339, UTC, nanoseconds with trailing zeros cut."""

from __future__ import annotations

import time
from functools import lru_cache

from skep.clock import SECOND

ZERO = "0001-01-01T00:00:00Z"
"""Go's zero time: never."""


@lru_cache(maxsize=4096)
def _second(seconds: int) -> str:
    t = time.gmtime(seconds)
    return f"{t.tm_year:04d}-{t.tm_mon:02d}-{t.tm_mday:02d}T{t.tm_hour:02d}:{t.tm_min:02d}:{t.tm_sec:02d}"


def stamp(ns: int) -> str:
    """`2026-11-23T03:55:16.5841889Z`; 0 gives Go's zero time."""
    if ns <= 0:
        return ZERO
    seconds, rest = divmod(ns, SECOND)
    if not rest:
        return _second(seconds) + "Z"
    return f"{_second(seconds)}.{rest:09d}".rstrip("0") + "Z"


def padded(ns: int) -> str:
    """As log lines have it: always nine digits."""
    seconds, rest = divmod(ns, SECOND)
    return f"{_second(seconds)}.{rest:09d}Z"


def ago(ns: int) -> str:
    """Go's units.HumanDuration: what `docker ps` says of an age."""
    seconds = ns // SECOND
    for limit, text in ((1, "Less than a second"), (2, "1 second"), (60, f"{seconds} seconds")):
        if seconds < limit:
            return text
    minutes = seconds // 60
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    for limit, divisor, word in (
        (48, 1, "hours"),
        (24 * 7 * 2, 24, "days"),
        (24 * 30 * 2, 24 * 7, "weeks"),
        (24 * 365 * 2, 24 * 30, "months"),
    ):
        if hours < limit:
            return f"{hours // divisor} {word}"
    return f"{seconds // 3600 // (24 * 365)} years"
