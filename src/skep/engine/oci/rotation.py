"""Logs kept within their limits: looked at soon again while one is close to its limit, every ten seconds while all are far from it.

conmon could cut a log at a size, but would lose what it cuts; so the file is renamed and conmon told to open a new one. A burst between two
looks makes a file longer than the limit.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from skep.engine.oci import conmon, logs
from skep.engine.oci.entry import Entry
from skep.engine.oci.folders import Folders
from skep.engine.oci.operations import Operations
from skep.errors import SkepError

log = logging.getLogger("skep.engine")
SOONEST = 0.2
LATEST = 10.0
FIRST = 1.0
"""Seconds."""


class Rotation:
    def __init__(self, operations: Operations, folders: Folders, entries: Mapping[str, Entry]) -> None:
        self._operations = operations
        self._folders = folders
        self._entries = entries
        self._timer: asyncio.TimerHandle | None = None
        self._looking = False

    def arm(self) -> None:
        """A container with a limit may have been started: look at it in a second."""
        if self._looking or not any(_limited(entry) for entry in self._entries.values()):
            return
        self._set(FIRST)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, seconds: float) -> None:
        self.stop()
        if not self._operations.stopping:
            self._timer = self._operations.loop.call_later(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        limited = [entry for entry in self._entries.values() if _limited(entry)]
        if not limited or self._operations.stopping:
            return
        self._looking = True

        def finished(done: asyncio.Future[float]) -> None:
            self._looking = False
            error = done.exception()
            if error is not None:
                log.error("log rotation: %s", error)
            self._set(FIRST if error else done.result())

        work = self._operations.loop.run_in_executor(self._operations.outside, lambda: min(self._one(entry) for entry in limited))
        work.add_done_callback(finished)

    def _one(self, entry: Entry) -> float:
        """Rotates if it is time; returns the seconds after which to look again. Blocks."""
        config = entry.stored.config
        folder = self._folders.container(entry.id)
        try:
            size = (folder / logs.NAME).stat().st_size
            grown, entry.log_seen = max(size - entry.log_seen, 0), size
            if size >= config.log_max_size:
                logs.rotate(folder, config.log_max_files, lambda: conmon.reopen_log(self._folders.bundle(entry.id)))
                entry.log_seen = 0
                return SOONEST
        except (OSError, SkepError) as error:
            if entry.running and (folder / logs.NAME).exists():
                log.warning("log of container %s cannot be rotated: %s", config.name, error)
            return LATEST
        if not grown:
            return LATEST
        return min(LATEST, max(SOONEST, (config.log_max_size - size) / grown / 4))


def _limited(entry: Entry) -> bool:
    return entry.running and entry.stored.config.log_max_size > 0
