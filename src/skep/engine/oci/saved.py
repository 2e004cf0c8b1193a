"""`docker save` and `docker load`: images as one tar. What is written is both an OCI layout (index.json, blobs) and what Docker reads
(manifest.json); what is read is either, compressed or not.

An archive that comes in is put on the disk first, decompressed: its table of contents stands at its end. Layers go into it as the tars they
were, so their digests are their diff ids, and each is there once however many images share it.
"""

from __future__ import annotations

import asyncio
import json
import os
import tarfile
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from skep.engine.oci.compression import LONGEST_MAGIC, Decompressor, decompressor, sniff
from skep.engine.oci.imagearchive import NAME, TAG, Archive, Place, Saved
from skep.engine.oci.layers import Layers
from skep.engine.oci.manifest import MAX_LAYERS, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Platform, decode_config, digest_of
from skep.engine.oci.reference import Reference
from skep.engine.oci.unpack import MAX_UNPACKED, TooMuch, shortage
from skep.engine.threads import settled
from skep.errors import Invalid, SkepError

CHUNK = 1 << 20
LOOK_EVERY = 16 << 20
OCI_TAR = "application/vnd.oci.image.layer.v1.tar"

Adopt = Callable[[bytes, Sequence[Reference]], Awaitable[list[str]]]
"""Takes in an image whose layers are here: its config and names; gives lines to show."""


class Whole(msgspec.Struct, frozen=True, kw_only=True):
    """An image to be saved."""

    id: str
    config: bytes
    diff_ids: tuple[str, ...]
    names: tuple[Reference, ...] = ()


# load


async def load(data: AsyncIterator[bytes], folder: Path, layers: Layers, wanted: Platform, adopt: Adopt) -> list[str]:
    """The lines Docker shows. Raises Invalid, NotFound or SkepError; images before the bad one stay."""
    loop, executor = asyncio.get_running_loop(), layers.executor
    with await loop.run_in_executor(executor, _spool_file, folder) as file:
        await _spool(data, file, folder, executor)
        archive = await loop.run_in_executor(executor, Archive, file)
        images = await loop.run_in_executor(executor, archive.images, wanted)
        lines: list[str] = []
        for saved in images:
            lines += await _load_one(saved, archive, file, layers, adopt)
        return lines


def _spool_file(folder: Path) -> BinaryIO:
    """Without a name: gone with its last user, also after a kill."""
    return tempfile.TemporaryFile(dir=folder, prefix="load-", buffering=0)  # noqa: SIM115


class _Spool:
    def __init__(self, file: BinaryIO, folder: Path) -> None:
        self._file = file
        self._folder = folder
        self._decompressor: Decompressor | None = None
        self._head = b""
        self._next_look = self._size = 0

    def feed(self, data: bytes) -> None:
        if self._decompressor is None:
            self._head += data
            if len(self._head) < LONGEST_MAGIC:
                return
            data, self._head, self._decompressor = self._head, b"", decompressor(sniff(self._head))
        for piece in self._decompressor.feed(data):
            self._write(piece)

    def finish(self) -> None:
        if self._decompressor is None:
            raise Invalid("unexpected EOF")
        self._decompressor.finish()

    def _write(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > MAX_UNPACKED:
            raise TooMuch(f"the archive unpacks to more than {MAX_UNPACKED} bytes")
        if self._size >= self._next_look:
            self._next_look = self._size + LOOK_EVERY
            if reason := shortage(self._folder):
                raise TooMuch(f"{reason} for the archive on {self._folder}")
        view = memoryview(piece)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise TooMuch(f"{shortage(self._folder) or (error.strerror or str(error)).lower()} for the archive on {self._folder}") from None


async def _spool(data: AsyncIterator[bytes], file: BinaryIO, folder: Path, executor: Executor) -> None:
    loop, spool = asyncio.get_running_loop(), _Spool(file, folder)
    async for chunk in data:
        await settled(loop.run_in_executor(executor, spool.feed, chunk))
    await settled(loop.run_in_executor(executor, spool.finish))


async def _load_one(saved: Saved, archive: Archive, file: BinaryIO, layers: Layers, adopt: Adopt) -> list[str]:
    config = decode_config(saved.config)
    diff_ids = config.rootfs.diff_ids
    if len(diff_ids) != len(saved.layers):
        raise Invalid(f"invalid manifest, layers length mismatch: expected {len(diff_ids)}, got {len(saved.layers)}")
    if len(diff_ids) > MAX_LAYERS:
        raise Invalid(f"the image has {len(diff_ids)} layers; at most {MAX_LAYERS} can be mounted")
    loop = asyncio.get_running_loop()
    with layers.hold(diff_ids):
        for number, (diff_id, place) in enumerate(zip(diff_ids, saved.layers, strict=True)):
            if layers.present(diff_id):
                continue
            compression = await loop.run_in_executor(layers.executor, archive.compression, place)
            made = await layers.put("", compression, _range(file, place, layers.executor))
            if made != diff_id:
                raise Invalid(f'invalid diffID for layer {number}: expected "{diff_id}", got "{made}"')
        lines = await adopt(saved.config, saved.names)
    shown = [f"Loaded image: {name.familiar}" for name in saved.names]
    return lines + (shown or [f"Loaded image ID: {digest_of(saved.config)}"])


async def _range(file: BinaryIO, place: Place, executor: Executor) -> AsyncGenerator[bytes, None]:
    loop, at, end = asyncio.get_running_loop(), place.offset, place.offset + place.size
    while at < end:
        piece = await loop.run_in_executor(executor, os.pread, file.fileno(), min(CHUNK, end - at), at)
        if not piece:
            raise SkepError("unexpected EOF")
        at += len(piece)
        yield piece


# save


async def save(images: Sequence[Whole], layers: Layers) -> AsyncGenerator[bytes, None]:
    """The archive in pieces; the same images give the same bytes. Raises SkepError where a layer is not whole any more."""
    with layers.hold([diff_id for image in images for diff_id in image.diff_ids]):
        for diff_id in images_layers(images):
            if not layers.record(diff_id).total:
                raise SkepError(f"layer {diff_id} was unpacked by an older version, which did not note how: pull its image again")
        for folder in ("blobs", "blobs/sha256"):
            yield _header(f"{folder}/", 0, tarfile.DIRTYPE)
        documents: dict[str, bytes] = {}
        entries, items = [], []
        for image in images:
            manifest = _manifest(image, layers)
            documents |= {digest_of(image.config): image.config, digest_of(manifest): manifest}
            entries += _descriptors(image, manifest)
            items.append(_item(image, layers))
        for digest in sorted({*documents, *images_layers(images)}):
            if digest in documents:
                yield _file(_path(digest), documents[digest])
                continue
            total = layers.record(digest).total
            yield _header(_path(digest), total)
            async with aclosing(layers.pieces(digest)) as pieces:
                async for piece in pieces:
                    yield piece
            yield bytes(-total % 512)
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        yield _file("index.json", _json(index))
        yield _file("manifest.json", _json(items))
        yield _file("oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        repositories: dict[str, dict[str, str]] = {}
        for image in images:
            for name in image.names:
                repositories.setdefault(name.familiar_name, {})[name.tag] = image.diff_ids[-1].partition(":")[2] if image.diff_ids else ""
        if repositories:
            yield _file("repositories", _json(repositories))
        yield bytes(1024)


def images_layers(images: Sequence[Whole]) -> list[str]:
    return list(dict.fromkeys(diff_id for image in images for diff_id in image.diff_ids))


def _manifest(image: Whole, layers: Layers) -> bytes:
    return _json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": digest_of(image.config), "size": len(image.config)},
            "layers": [_layer(diff_id, layers) for diff_id in image.diff_ids],
        }
    )


def _layer(diff_id: str, layers: Layers) -> dict[str, Any]:
    return {"mediaType": OCI_TAR, "digest": diff_id, "size": layers.record(diff_id).total}


def _descriptors(image: Whole, manifest: bytes) -> list[dict[str, Any]]:
    plain = {"mediaType": OCI_MANIFEST, "digest": digest_of(manifest), "size": len(manifest)}
    return [{**plain, "annotations": {NAME: name.full, TAG: name.tag}} for name in image.names] or [plain]


def _item(image: Whole, layers: Layers) -> dict[str, Any]:
    return {
        "Config": _path(image.id),
        "RepoTags": [name.familiar for name in image.names] or None,
        "Layers": [_path(diff_id) for diff_id in image.diff_ids],
        "LayerSources": {diff_id: _layer(diff_id, layers) for diff_id in image.diff_ids},
    }


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _file(name: str, data: bytes) -> bytes:
    return _header(name, len(data)) + data + bytes(-len(data) % 512)


def _header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.mode = size, kind, 0o755 if kind == tarfile.DIRTYPE else 0o644
    return info.tobuf(tarfile.GNU_FORMAT)
