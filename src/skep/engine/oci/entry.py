"""One container in the engine's memory: its record, the operation under way on it, and the processes watched for it."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from skep.engine.base import Container, Exit
from skep.engine.oci import kernel
from skep.engine.oci.bundle import Stored
from skep.engine.oci.streams import AttachStreams, Sizes


class Entry:
    def __init__(self, stored: Stored) -> None:
        self.stored = stored
        self.made = False
        """Create has succeeded; before that it is nobody's business but the name is taken."""
        self.busy: asyncio.Future[None] | None = None
        """An operation under way: done when it is over, however it ended."""
        self.next: deque[Callable[[], None]] = deque()
        """What begins when that is over, before whoever else waits for it."""
        self.ended = asyncio.Event()
        self.paused = False
        """As the kernel says."""
        self.ready = False
        """The bundle is complete and the root file system mounted."""
        self.cgroup = ""
        """Where it was put before we were started, until it has ended; else it is where its configuration says."""
        self.viewers = 0
        """Who looks at its files and needs them mounted."""
        self.going = False
        """It is being removed: who writes into it stops."""
        self.pidfd = -1
        self.conmon_fd = -1
        self.waiting: list[AttachStreams] = []
        """Attached before the start."""
        self.attached: list[AttachStreams] = []
        self.wakers: set[Callable[[], None]] = set()
        """Of log followers."""
        self.sizes: Sizes | None = None
        self.log_seen = 0
        if stored.exit is not None:
            self.ended.set()

    @property
    def id(self) -> str:
        return self.stored.config.id

    @property
    def running(self) -> bool:
        return self.stored.started_at > 0 and self.stored.exit is None

    def change(self, **fields: Any) -> None:
        self.stored = msgspec.structs.replace(self.stored, **fields)

    def container(self) -> Container:
        stored = self.stored
        running = self.running
        return Container(
            config=stored.config,
            created_at=stored.created_at,
            started_at=stored.started_at,
            pid=stored.pid if running else 0,
            exit=stored.exit,
            paused=running and self.paused,
        )

    def end(self, exit: Exit) -> None:
        self.change(exit=exit)
        self.paused = False
        self.ended.set()
        for wake in list(self.wakers):
            wake()
        for streams in self.attached:
            if not streams.connected:
                streams.end()
        self.attached.clear()
        if self.sizes is not None:
            self.sizes.stop()


def open_process(pid: int, ticks: int) -> int:
    """A pidfd of exactly that process; -1: it has ended."""
    if pid <= 0 or not ticks:
        return -1
    try:
        fd = os.pidfd_open(pid)
    except (ProcessLookupError, OSError):
        return -1
    if kernel.start_ticks(pid) != ticks:
        os.close(fd)
        return -1
    return fd
