"""Images that nobody needs any more make room when the disk fills: between two water marks, the longest unused first.

Never removed: what a container was made from; what the services with tasks here run now or ran before (a rollback must not wait for a
registry); what is young; what no registry is known to have. `choose` decides and is pure; `ImageGarbage` looks, at the start and then
once a minute. See docs/images.md.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from pathlib import Path

import msgspec

from skep.clock import SECOND, Clock
from skep.engine.base import Container, Engine, Image
from skep.errors import SkepError

log = logging.getLogger("skep.node.images")

SERVICE = "com.docker.swarm.service.id"
EVERY = 60 * SECOND
MINIMUM_AGE = 3600 * SECOND


class Marks(msgspec.Struct, frozen=True, kw_only=True):
    high: int = 85
    """Percent of the file system in use from which on images are removed; 100 = never."""
    low: int = 80
    """Percent at which it is enough."""
    minimum_age: int = MINIMUM_AGE
    """ns since an image was pulled, named or used."""


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    total: int
    free: int

    @property
    def used(self) -> int:
        return self.total - self.free

    @property
    def percent(self) -> int:
        return self.used * 100 // self.total if self.total else 0


class Uses(msgspec.Struct, kw_only=True):
    """What is remembered of images' use, on disk."""

    last: dict[str, int] = {}
    """By image id: when a container of it was last seen."""
    services: dict[str, list[str]] = {}
    """By service id: the image its tasks here run, and the one before."""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    ids: tuple[str, ...] = ()
    """In the order in which to remove them."""
    because: str = ""
    short: int = 0
    """Bytes over the low mark that cannot be made free."""


def choose(
    images: Collection[Image], in_use: Collection[str], pinned: Collection[str], last: Mapping[str, int], disk: Disk, marks: Marks, now: int
) -> Choice:
    """Nothing below the high mark; else as many as it takes to get to the low one, counting layers that images share once."""
    if marks.high >= 100 or disk.percent < marks.high:
        return Choice()
    needed = disk.used - disk.total * marks.low // 100
    users = Counter(layer for image in images for layer in set(image.layers))
    used_at = {image.id: max(last.get(image.id, 0), image.tagged_at) for image in images}
    candidates = [
        image
        for image in images
        if image.id not in in_use
        and image.id not in pinned
        and now - used_at[image.id] >= marks.minimum_age
        and (image.digests or not image.tags)
    ]
    chosen, freed = [], 0
    for image in sorted(candidates, key=lambda image: (used_at[image.id], image.id)):
        if freed >= needed:
            break
        chosen.append(image.id)
        for layer, size in dict(zip(image.layers, image.layer_sizes, strict=False)).items():
            users[layer] -= 1
            freed += size if not users[layer] else 0
    because = f"the disk is {disk.percent}% full, and from {marks.high}% on the longest unused images make room until it is {marks.low}%"
    return Choice(ids=tuple(chosen), because=because, short=max(0, needed - freed))


def note(uses: Uses, containers: Iterable[Container], now: int) -> bool:
    """Write down who uses what now; has anything of it to be kept on disk at once?"""
    changed = False
    for container in containers:
        image, service = container.config.image, container.config.labels.get(SERVICE, "")
        changed = changed or image not in uses.last
        uses.last[image] = now
        known = uses.services.get(service, []) if service else []
        if service and (not known or image not in known):
            uses.services[service] = [image, *known][:2]
            changed = True
    return changed


class ImageGarbage:
    """`root`: where images lie. `tidy`: makes room that costs nobody anything (broken downloads), tried first; bytes."""

    def __init__(self, engine: Engine, root: Path, file: Path, marks: Marks, clock: Clock, tidy: Callable[[], Awaitable[int]]) -> None:
        self._engine = engine
        self._root = root
        self._file = file
        self._marks = marks
        self._clock = clock
        self._tidy = tidy
        self._warned = False
        self.uses = self._read()

    def _read(self) -> Uses:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Uses)
        except (OSError, msgspec.MsgspecError):
            # then images count as unused since they came: at worst one is pulled again
            return Uses()

    async def run(self) -> None:
        """As long as the daemon lives. The first look is at once: a daemon that a full disk ends again and again gets rid of some too."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            while True:
                try:
                    await self.look()
                except (SkepError, OSError) as error:
                    log.warning("unused images cannot be removed: %s", error)
                except Exception:
                    log.exception("unused images cannot be removed")
                await self._clock.sleep(EVERY)

    async def _watch(self) -> None:
        queue = self._engine.subscribe()
        try:
            self._note(self._engine.all())
            while True:
                action, id, _ = await queue.get()
                container = self._engine.get(id) if action in ("create", "start", "die") else None
                if container is not None:
                    self._note([container])
        finally:
            self._engine.unsubscribe(queue)

    def _note(self, containers: Iterable[Container]) -> None:
        if note(self.uses, containers, self._clock.now()):
            self._keep()

    def _keep(self) -> None:
        new = self._file.with_name(self._file.name + ".new")
        try:
            new.write_bytes(msgspec.json.encode(self.uses))
            new.replace(self._file)
        except OSError as error:
            log.warning("when images were used cannot be kept: %s", error)

    async def look(self) -> list[str]:
        """Once: the ids of the images removed."""
        containers = list(self._engine.all())
        self._note(containers)
        images = list(self._engine.images.all())
        here = {image.id for image in images}
        self.uses.last = {id: at for id, at in self.uses.last.items() if id in here}
        services = {container.config.labels.get(SERVICE, "") for container in containers}
        if self._disk().percent < self._marks.high or self._marks.high >= 100:
            self._warned = False
            return []
        if freed := await self._tidy():
            log.info("%d bytes of broken downloads and of layers without an image removed", freed)
        in_use = {container.config.image for container in containers}
        pinned = {id for service, ids in self.uses.services.items() if service in services for id in ids}
        choice = choose(images, in_use, pinned, self.uses.last, self._disk(), self._marks, self._clock.now())
        gone = []
        for id in choice.ids:
            try:
                await self._engine.images.remove(id, force=True)
            except SkepError as error:
                log.info("image %s stays: %s", id, error.message)
                continue
            gone.append(id)
            log.info("image %s removed: %s", id, choice.because)
        if choice.short and not self._warned:
            log.warning(
                "the disk is %d%% full, and no more images can be removed: all others are in use, young or only here", self._disk().percent
            )
        self._warned = bool(choice.short)
        self._forget(services)
        return gone

    def _forget(self, present: Collection[str]) -> None:
        """Services whose images and containers are all gone."""
        kept = {s: ids for s, ids in self.uses.services.items() if s in present or any(self._engine.images.get(id) for id in ids)}
        if kept != self.uses.services:
            self.uses.services = kept
            self._keep()

    def _disk(self) -> Disk:
        found = os.statvfs(self._root)
        return Disk(total=(found.f_blocks - found.f_bfree + found.f_bavail) * found.f_frsize, free=found.f_bavail * found.f_frsize)
