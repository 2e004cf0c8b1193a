"""The log file of a node as the log of a container: lines with their times, the last ones, and what is still to come."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from pathlib import Path

from skep.clock import MILLISECOND, Clock
from skep.engine.base import LogRecord

_STAMP = re.compile(rb"(?:time=\")?(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?)\d*Z")
_BLOCK = 1 << 16
_PAUSE = 200 * MILLISECOND


def time_of(line: bytes) -> int:
    """ns since 1970 of a line that begins with its time; 0 for one that does not (of a traceback)."""
    found = _STAMP.match(line)
    if found is None:
        return 0
    try:
        at = datetime.fromisoformat(found[1].decode()).replace(tzinfo=UTC)
    except ValueError:
        return 0
    return int(at.timestamp()) * 1_000_000_000 + at.microsecond * 1000


def tail_start(path: Path, tail: int) -> int:
    """Where the last `tail` lines of a file begin."""
    with path.open("rb") as file:
        at = end = file.seek(0, os.SEEK_END)
        if tail == 0:
            return end
        lines = 0
        while at > 0:
            begin = max(0, at - _BLOCK)
            file.seek(begin)
            block = file.read(at - begin)
            look = len(block) - 1 if at == end else len(block)  # the newline that ends the last line begins none
            while (look := block.rfind(b"\n", 0, look)) >= 0:
                lines += 1
                if lines == tail:
                    return begin + look + 1
            at = begin
    return 0


async def records(
    path: Path, clock: Clock, *, follow: bool, since: int, until: int, tail: int, running: Callable[[], bool]
) -> AsyncGenerator[LogRecord, None]:
    """What the file says, oldest first; with `follow` until the node has ended. A line without a time has that of the one before it."""
    try:
        file = path.open("rb")
        at = os.fstat(file.fileno()).st_mtime_ns
        if tail >= 0:
            file.seek(tail_start(path, tail))
    except FileNotFoundError:
        return
    known = 0
    with file:
        while True:
            alive = follow and running()
            while line := file.readline():
                known = time_of(line) or known
                shown = known or at
                if until and shown > until:
                    return
                if shown >= since:
                    yield LogRecord(at=shown, stream=2, data=line)
            if not alive or (until and clock.now() > until):
                return
            await clock.sleep(_PAUSE)
