"""What the parts of the engine share: its containers by id and name, how they are found, and who is told what happens to them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from skep.clock import Clock
from skep.engine.base import Exit, Images
from skep.engine.oci import conmon, spec
from skep.engine.oci.bundle import Making
from skep.engine.oci.cgroups import Groups
from skep.engine.oci.entry import Entry
from skep.engine.oci.folders import Folders
from skep.engine.oci.operations import Operations
from skep.engine.oci.runtime import Runtime
from skep.engine.oci.unwritten import Unwritten
from skep.errors import NotFound
from skep.ids import Random


class LayeredImages(Images, Protocol):
    def rootfs_layers(self, image_id: str) -> list[str]:
        """Directories of the unpacked layers, topmost first."""
        ...


class Core:
    """What is not set here is set by `start_up`."""

    _loop: asyncio.AbstractEventLoop
    _operations: Operations
    _host: spec.Host
    _runtime: Runtime
    _places: conmon.Places
    _making: Making
    _unwritten: Unwritten

    def __init__(self, data_root: Path, run_root: Path, images: LayeredImages, clock: Clock, rng: Random, cgroup_parent: str) -> None:
        self._folders = Folders(data_root.absolute(), run_root.absolute())
        self._images = images
        self._clock = clock
        self._rng = rng
        self._cgroup_parent = "/" + cgroup_parent.strip("/")
        self._entries: dict[str, Entry] = {}
        self._names: dict[str, str] = {}
        self._queues: list[asyncio.Queue[tuple[str, str, Exit | None]]] = []

    def _lookup(self, reference: str) -> Entry | None:
        reference = reference.removeprefix("/")
        id = reference if reference in self._entries else self._names.get(reference)
        if id is None:
            matches = [known for known in self._entries if known.startswith(reference)] if reference else []
            id = matches[0] if len(matches) == 1 else None
        entry = self._entries.get(id) if id is not None else None
        return entry if entry is not None and entry.made else None

    def _entry(self, reference: str) -> Entry:
        entry = self._lookup(reference)
        if entry is None:
            raise NotFound(f"No such container: {reference}")
        return entry

    def _users(self, image: str) -> Sequence[tuple[str, bool]]:
        return [(entry.id, entry.running) for entry in self._entries.values() if entry.stored.config.image == image]

    def _groups(self, entry: Entry) -> Groups:
        return Groups(self._cgroup(entry), self._host.cgroup2)

    def _cgroup(self, entry: Entry) -> str:
        return entry.cgroup or spec.cgroup_path(entry.stored.config, self._cgroup_parent)

    def subscribe(self) -> asyncio.Queue[tuple[str, str, Exit | None]]:
        queue: asyncio.Queue[tuple[str, str, Exit | None]] = asyncio.Queue()
        self._queues.append(queue)
        return queue

    def unsubscribe(self, queue: asyncio.Queue[tuple[str, str, Exit | None]]) -> None:
        if queue in self._queues:
            self._queues.remove(queue)

    def _emit(self, action: str, entry: Entry, exit: Exit | None = None) -> None:
        for queue in self._queues:
            queue.put_nowait((action, entry.id, exit))
