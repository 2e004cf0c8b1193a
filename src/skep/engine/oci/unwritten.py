"""What a full disk has not taken of containers' records: an exit code, a stop by hand. It counts at once, and is written as soon as there
is room, at the latest when we end: a restart must not start again what was stopped, nor forget how something ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from skep.engine.oci import bundle
from skep.engine.oci.bundle import Stored
from skep.engine.oci.entry import Entry
from skep.engine.oci.folders import Folders
from skep.engine.oci.operations import Operations

log = logging.getLogger("skep.engine")
EVERY = 1.0
"""Seconds."""


class Unwritten:
    def __init__(self, operations: Operations, folders: Folders, entries: Mapping[str, Entry]) -> None:
        self._operations = operations
        self._folders = folders
        self._entries = entries
        self._waiting: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, entry: Entry, error: OSError) -> None:
        """In any thread."""
        log.warning("container %s: a change cannot be written down yet: %s", entry.id[:12], error.strerror)
        self._operations.loop.call_soon_threadsafe(self._add, entry.id)

    def write(self, entry: Entry) -> None:
        """When and how it ended; blocks. What cannot be written is tried again."""
        try:
            bundle.append(self._folders, entry.stored)
        except OSError as error:
            self.add(entry, error)

    def _add(self, id: str) -> None:
        self._waiting.add(id)
        if self._timer is None and not self._operations.stopping:
            self._timer = self._operations.loop.call_later(EVERY, self._look)

    def _look(self) -> None:
        self._timer = None
        for id in list(self._waiting):
            entry = self._entries.get(id)
            if entry is None:
                self._waiting.discard(id)
            elif entry.busy is None:
                self._begin(entry)
        if self._waiting and not self._operations.stopping:
            self._timer = self._operations.loop.call_later(EVERY, self._look)

    def _begin(self, entry: Entry) -> None:
        stored = entry.stored

        def done(written: bool) -> None:
            if written:
                self._waiting.discard(entry.id)

        self._operations.begin(entry, self._operations.outside, lambda: self._written(stored), done)

    def _written(self, stored: Stored) -> bool:
        try:
            bundle.append(self._folders, stored)
            bundle.amend(self._folders, stored)
        except OSError:
            return False
        return True

    def finish(self) -> None:
        """The last try, when nothing is under way any more; blocks."""
        if self._timer is not None:
            self._timer.cancel()
        for entry in [entry for id in self._waiting if (entry := self._entries.get(id)) is not None]:
            if not self._written(entry.stored):
                log.error("container %s: what happened to it last is lost: it cannot be written down", entry.id[:12])
