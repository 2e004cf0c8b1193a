"""The layers on this node: one directory per diff id, shared by all images, complete or not there at all.

    <root>/layers/<hex>.tmp/diff    while it is unpacked; swept away at the next start
    <root>/layers/<hex>/diff        what overlayfs is given
    <root>/layers/<hex>/tar.z       what is needed to put its tar together again (tarsplit.py)
    <root>/layers/<hex>/layer.json  its sizes, and the blobs it is known as at registries; written before the rename
    <root>/partial/<hex>            a download that broke off (partial.py)
    <root>/l/<6 hex>                a short symbolic link to diff: the lowerdir option of mount(2) is limited to a page

A layer is flushed to the disk before its rename, so that a directory without `.tmp` is whole also after a power cut. A lock per layer makes
two pulls of it one: who comes second finds it there, or tries itself where the first failed or was cancelled.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from skep.engine import trees
from skep.engine.base import Progress
from skep.engine.oci.files import flush_file_system, write_file
from skep.engine.oci.manifest import Descriptor
from skep.engine.oci.partial import Partials
from skep.engine.oci.registry import Registry
from skep.engine.oci.tarsplit import joined
from skep.engine.oci.transport import ConnectionFailed
from skep.engine.oci.unpack import MAX_UNPACKED, TooMuch, WrongDigest, shortage, unpack
from skep.engine.threads import settled
from skep.errors import SkepError

PARALLEL = 3
"""Layers in the making at once, as in Docker."""
LINK = 6
REPORT_EVERY = 512 << 10
MOST_BLOBS = 8
"""Kept of those a layer is known as; the latest."""

Report = Callable[[Progress], None]


class Blob(msgspec.Struct, frozen=True, kw_only=True):
    """A layer as registries have it, compressed."""

    digest: str
    size: int
    repositories: tuple[str, ...] = ()
    """`registry:5000/a/b` where it was seen."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    size: int
    """Bytes of its regular files."""
    total: int = 0
    """Bytes of its tar; 0: made by a version that could not put it together again."""
    blobs: tuple[Blob, ...] = ()


class Layers:
    def __init__(self, root: Path, *, parallel: int = PARALLEL, limit: int = MAX_UNPACKED) -> None:
        self._layers = root / "layers"
        self._links = root / "l"
        self._limit = limit
        self._slots = asyncio.Semaphore(parallel)
        self.executor = ThreadPoolExecutor(parallel, "skep-layer")
        self._locks: dict[str, asyncio.Lock] = {}
        self._held: Counter[str] = Counter()
        self._records: dict[str, Record] = {}
        self._short: dict[str, str] = {}
        self._begun = self._removed = 0
        self.partials = Partials(root, self.executor)
        self._load()

    def _load(self) -> None:
        """What is there, without what a kill left half made."""
        for directory in (self._layers, self._links):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for entry in self._layers.iterdir():
            if entry.suffix:
                _erase(entry)
                continue
            try:
                self._records[entry.name] = msgspec.json.decode((entry / "layer.json").read_bytes(), type=Record)
            except (OSError, msgspec.MsgspecError):
                _erase(entry)
        for link in self._links.iterdir():
            name = Path(os.readlink(link)).parent.name
            if name in self._records and name not in self._short:
                self._short[name] = link.name
            else:
                link.unlink()
        for name in self._records:
            self._link(name)

    def present(self, diff_id: str) -> bool:
        return _name(diff_id) in self._records

    def size(self, diff_id: str) -> int:
        """Bytes of its files; 0 when it is not here."""
        record = self._records.get(_name(diff_id))
        return record.size if record is not None else 0

    def record(self, diff_id: str) -> Record:
        """Of a layer that is here."""
        return self._records[_name(diff_id)]

    def known_as(self, diff_id: str, blob: Blob) -> None:
        """A registry has it as this blob, too. Blocks for a moment."""
        record = self._records[_name(diff_id)]
        for known in record.blobs:
            if known.digest == blob.digest:
                blob = msgspec.structs.replace(known, repositories=tuple(dict.fromkeys((*known.repositories, *blob.repositories))))
                if blob == known:
                    return
        others = tuple(known for known in record.blobs if known.digest != blob.digest)
        record = msgspec.structs.replace(record, blobs=(*others, blob)[-MOST_BLOBS:])
        write_file(self._layers / _name(diff_id) / "layer.json", msgspec.json.encode(record))
        self._records[_name(diff_id)] = record

    def all(self) -> set[str]:
        """Diff ids."""
        return {f"sha256:{name}" for name in self._records}

    def tar(self, diff_id: str) -> Iterator[bytes]:
        """Its tar, byte for byte; raises SkepError, at the end at the latest, where it is not what it was. Blocks; hold the layer."""
        folder, digest = self._layers / _name(diff_id), hashlib.sha256()
        try:
            record = open(folder / "tar.z", "rb")  # noqa: SIM115
        except FileNotFoundError:
            raise SkepError(f"layer {diff_id} was unpacked by an older version, which did not note how: pull its image again") from None
        with record:
            for piece in joined(record, str(folder / "diff")):
                digest.update(piece)
                yield piece
        if digest.hexdigest() != _name(diff_id):
            raise SkepError(f"layer {diff_id} is not any more as it was unpacked")

    async def pieces(self, diff_id: str) -> AsyncGenerator[bytes, None]:
        """The same from a worker thread."""
        loop, tar = asyncio.get_running_loop(), self.tar(diff_id)
        while piece := await loop.run_in_executor(self.executor, next, tar, b""):
            yield piece

    def lower(self, diff_id: str) -> str:
        """The short path of a layer that is here."""
        return str(self._links / self._short[_name(diff_id)])

    @contextmanager
    def hold(self, diff_ids: Collection[str]) -> Iterator[None]:
        """While it lasts these layers are not collected, though no image names them yet."""
        self._held.update(diff_ids)
        try:
            yield
        finally:
            self._held.subtract(diff_ids)
            self._held = +self._held

    async def fetch(self, diff_id: str, blob: Descriptor, registry: Registry, report: Report) -> None:
        """From the registry, unless it is here."""
        if self.present(diff_id):
            report(Progress(status="Already exists", id=blob.short))
            return
        report(Progress(status="Pulling fs layer", id=blob.short))
        async with self._locks.setdefault(diff_id, asyncio.Lock()):
            if not self.present(diff_id):
                if self._slots.locked():
                    report(Progress(status="Waiting", id=blob.short))
                async with self._slots:
                    await self._download(diff_id, blob, registry, report)
            else:
                report(Progress(status="Download complete", id=blob.short))
        report(Progress(status="Pull complete", id=blob.short))

    async def _download(self, diff_id: str, blob: Descriptor, registry: Registry, report: Report) -> None:
        known = Blob(digest=blob.digest, size=blob.size, repositories=(registry.repository,)) if blob.compression == "gzip" else None
        while True:
            resumed = self.partials.size(blob)
            try:
                async with aclosing(_watched(self.partials.fetch(blob, registry), blob, report)) as source:
                    await self._make(diff_id, blob.compression, source, digest=blob.digest, blob=known)
            except (ConnectionFailed, asyncio.CancelledError):
                # worth going on from here another time
                raise
            except WrongDigest:
                self.partials.discard(blob)
                if not resumed:
                    raise
                # perhaps it is only what was kept that is bad
                continue
            except BaseException:
                self.partials.discard(blob)
                raise
            self.partials.discard(blob)
            return

    async def put(self, diff_id: str, compression: str, source: AsyncIterator[bytes], holding: ExitStack | None = None) -> str:
        """From bytes that somebody sends. With an empty `diff_id` the layer's own is taken: `holding` holds it then. Gives the diff id."""
        if not diff_id:
            # as slow as who sends: nobody else waits for that
            return await self._make("", compression, source, holding=holding)
        async with self._locks.setdefault(diff_id, asyncio.Lock()), self._slots:
            if self.present(diff_id):
                return diff_id
            return await self._make(diff_id, compression, source)

    async def _make(
        self,
        diff_id: str,
        compression: str,
        source: AsyncIterator[bytes],
        *,
        digest: str = "",
        blob: Blob | None = None,
        holding: ExitStack | None = None,
    ) -> str:
        self._begun += 1
        making = self._layers / f"{_name(diff_id) or f'import{self._begun}'}.tmp"
        loop = asyncio.get_running_loop()
        try:
            with await loop.run_in_executor(self.executor, _prepare, making) as record:
                made = await unpack(source, compression, making / "diff", self.executor, digest=digest, limit=self._limit, record=record)
            if diff_id and made.diff_id != diff_id:
                raise SkepError(f"layers from manifest don't match image configuration: {diff_id} unpacked as {made.diff_id}")
            if holding is not None:
                holding.enter_context(self.hold([made.diff_id]))
            name = _name(made.diff_id)
            if name not in self._records:
                kept = Record(size=made.size, total=made.total, blobs=(blob,) if blob else ())
                await self._keep(making, name, kept)
            return made.diff_id
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise TooMuch(f"{shortage(self._layers) or 'no space left'} for the layer on {self._layers}") from None
            raise SkepError(f"the layer cannot be kept: {(error.strerror or str(error)).lower()}: {self._layers}") from None
        finally:
            await settled(loop.run_in_executor(self.executor, _erase, making))

    async def _keep(self, making: Path, name: str, kept: Record) -> None:
        """It is known as soon as it is in its place, also when nobody waits for it any more."""
        settling = asyncio.get_running_loop().run_in_executor(self.executor, _settle, making, self._layers / name, kept)
        try:
            await settled(settling)
        finally:
            if settling.exception() is None and name not in self._records:
                self._records[name] = kept
                self._link(name)

    def _link(self, name: str) -> None:
        if name in self._short:
            return
        taken = set(self._short.values())
        short = next(name[:n] for n in range(LINK, len(name) + 1) if name[:n] not in taken)
        (self._links / short).symlink_to(f"../layers/{name}/diff")
        self._short[name] = short

    async def collect(self, keep: Collection[str]) -> list[str]:
        """Remove all layers but these and those that are held; returns the removed diff ids."""
        kept = {_name(diff_id) for diff_id in keep} | {_name(diff_id) for diff_id in self._held}
        gone = sorted(set(self._records) - kept)
        paths = []
        for name in gone:
            del self._records[name]
            (self._links / self._short.pop(name)).unlink(missing_ok=True)
            # an earlier one of this name may still be on its way out
            self._removed += 1
            paths.append((self._layers / name).rename(self._layers / f"{name}.gone{self._removed}"))
        # all in one step: it goes on when nobody waits for it any more, and begins if it had not
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(self.executor, _erase, *paths))
        return [f"sha256:{name}" for name in gone]


def _name(diff_id: str) -> str:
    return diff_id.partition(":")[2]


def _prepare(making: Path) -> BinaryIO:
    """An empty folder for it; gives the file for the record of its tar."""
    trees.remove(making)
    making.mkdir(mode=0o700)
    (making / "diff").mkdir()
    (making / "diff").chmod(0o755)
    return open(making / "tar.z", "wb")


def _erase(*paths: Path) -> None:
    """What cannot be removed is tried again at the next start."""
    for path in paths:
        with suppress(OSError):
            trees.remove(path)


def _settle(making: Path, final: Path, record: Record) -> None:
    (making / "layer.json").write_bytes(msgspec.json.encode(record))
    flush_file_system(making)
    try:
        making.rename(final)
    except OSError as error:
        # the same layer came another way meanwhile (pulled, and loaded from an archive)
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) or not (final / "layer.json").exists():
            raise


async def _watched(source: AsyncGenerator[bytes, None], blob: Descriptor, report: Report) -> AsyncGenerator[bytes, None]:
    """The same bytes, with Docker's progress on the way. Unpacking goes along, so `Extracting` has nothing left to count."""
    done, next_report = 0, 0
    async with aclosing(source):
        async for chunk in source:
            done += len(chunk)
            if done >= next_report:
                report(Progress(status="Downloading", id=blob.short, current=done, total=blob.size))
                next_report = done + REPORT_EVERY
            yield chunk
    report(Progress(status="Verifying Checksum", id=blob.short))
    report(Progress(status="Download complete", id=blob.short))
    report(Progress(status="Extracting", id=blob.short, current=blob.size, total=blob.size))
