"""How the end of a container is noticed: conmon writes an exit file, inotify tells. conmon itself is watched too, by pidfd: if it is
killed the container goes on, and its own pidfd tells of its end; the code is then not known."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping

from skep.clock import Clock
from skep.engine.base import UNSEEN, Exit
from skep.engine.oci import conmon
from skep.engine.oci.entry import Entry, open_process
from skep.engine.oci.folders import Folders
from skep.engine.oci.inotify import CLOSE_WRITE, MOVED_TO, Inotify

log = logging.getLogger("skep.engine")


class Watching:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        inotify: Inotify,
        folders: Folders,
        places: conmon.Places,
        clock: Clock,
        entries: Mapping[str, Entry],
        ended: Callable[[Entry, Exit], None],
    ) -> None:
        self._loop = loop
        self._folders = folders
        self._places = places
        self._clock = clock
        self._entries = entries
        self._ended = ended
        inotify.watch(str(folders.exits), self._written, MOVED_TO | CLOSE_WRITE)

    def add(self, entry: Entry) -> None:
        stored = entry.stored
        entry.pidfd = open_process(stored.pid, stored.pid_ticks)
        entry.conmon_fd = open_process(stored.conmon_pid, stored.conmon_ticks)
        if entry.conmon_fd >= 0:
            self._loop.add_reader(entry.conmon_fd, self._conmon_ended, entry)
            self._look(entry)
        else:
            self._conmon_ended(entry)

    def drop(self, entry: Entry) -> None:
        self._close(entry, "conmon_fd")
        self._close(entry, "pidfd")

    def _close(self, entry: Entry, name: str) -> None:
        fd = getattr(entry, name)
        if fd >= 0:
            self._loop.remove_reader(fd)
            os.close(fd)
            setattr(entry, name, -1)

    def _written(self, name: str) -> None:
        for entry in [self._entries.get(name)] if name else list(self._entries.values()):
            if entry is not None and entry.running and entry.busy is None:
                self._look(entry)

    def _look(self, entry: Entry) -> bool:
        found = conmon.exit_code(self._places, entry.id)
        if found is None:
            return False
        code, at = found
        oom = conmon.out_of_memory(self._folders.bundle(entry.id))
        error = f"out of memory (limit {size_text(entry.stored.config.limits.memory)})" if oom else ""
        self.drop(entry)
        self._ended(entry, Exit(code=code, at=max(at, entry.stored.started_at), oom=oom, error=error))
        return True

    def _conmon_ended(self, entry: Entry) -> None:
        """After an exit file this is as it should be; without one, conmon was killed and the container goes on unattended."""
        self._close(entry, "conmon_fd")
        if not entry.running or self._look(entry):
            return
        if entry.pidfd < 0:
            self._container_ended(entry)
            return
        name = entry.stored.config.name
        log.warning("the monitor of container %s (%s) was killed; it runs on, its exit code will not be known", name, entry.id)
        self._loop.add_reader(entry.pidfd, self._container_ended, entry)

    def _container_ended(self, entry: Entry) -> None:
        self._close(entry, "pidfd")
        if entry.running and not self._look(entry):
            error = "ended without its monitor; the exit code is not known"
            self._ended(entry, Exit(code=UNSEEN, at=self._clock.now(), known=False, error=error))


def size_text(number: int) -> str:
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= factor:
            return f"{number / factor:.4g}{unit}"
    return f"{number}B" if number else "of the host"
