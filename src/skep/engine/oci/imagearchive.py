"""Archives of images as `docker save` writes them, to be read: which file lies where in a tar on disk, and what its documents say.

Nothing of an archive is ever unpacked by its own names: files are found in the tar by position, links are followed in a table only. What
is read into memory is bounded. The layers themselves take the way of every layer (unpack.py).
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from typing import BinaryIO

import msgspec

from skep.engine.oci.compression import LONGEST_MAGIC, sniff
from skep.engine.oci.manifest import MAX_CONFIG, MAX_MANIFEST, Manifest, Platform, choose, decode
from skep.engine.oci.reference import Reference, parse
from skep.engine.oci.tarsplit import BLOCK, LONGEST_HEADER, number, records, ustar_path
from skep.errors import Invalid, NotFound, SkepError

MOST_MEMBERS = 100_000
MOST_LINKS = 20
MOST_IMAGES = 10_000
MOST_CONFIGS = 256 << 20
"""Bytes of all images' configs: they are held until their images are taken in."""
NAME = "io.containerd.image.name"
TAG = "org.opencontainers.image.ref.name"


class Place(msgspec.Struct, frozen=True):
    """Where the content of a member lies in the archive."""

    offset: int
    size: int


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """An image in an archive."""

    config: bytes
    layers: tuple[Place, ...]
    names: tuple[Reference, ...] = ()


class _Item(msgspec.Struct, frozen=True, kw_only=True):
    """Of `manifest.json`."""

    config: str = msgspec.field(name="Config")
    tags: list[str] | None = msgspec.field(name="RepoTags", default=None)
    layers: list[str] | None = msgspec.field(name="Layers", default=None)


class _Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    digest: str
    media_type: str = ""
    platform: Platform | None = None
    annotations: dict[str, str] | None = None


class _Index(msgspec.Struct, frozen=True, kw_only=True):
    manifests: list[_Descriptor] = []


class Archive:
    """A tar in an open file. All of it blocks."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._places: dict[str, Place] = {}
        self._links: dict[str, str] = {}
        self._configs: dict[Place, bytes] = {}
        self._held = 0
        self._scan()

    def _scan(self) -> None:
        """Headers only. Raises Invalid for what is no tar."""
        size = os.fstat(self._file.fileno()).st_size
        at, members = 0, 0
        pax: dict[bytes, bytes] = {}
        long, long_link = b"", b""
        while at + BLOCK <= size:
            block = self._read(Place(at, BLOCK))
            at += BLOCK
            if block.count(0) == BLOCK:
                break
            try:
                length, checksum = number(block[124:136]), number(block[148:156])
            except ValueError:
                raise Invalid("invalid tar header") from None
            if checksum != sum(block) - sum(block[148:156]) + 8 * 32:
                raise Invalid("invalid tar header")
            kind = block[156:157]
            if kind in (b"x", b"g", b"L", b"K"):
                if length > LONGEST_HEADER:
                    raise Invalid("invalid tar header: an extended header is too long")
                data = self._read(Place(at, length))
                pax = records(data) if kind == b"x" else pax
                long = data.rstrip(b"\0") if kind == b"L" else long
                long_link = data.rstrip(b"\0") if kind == b"K" else long_link
                at += length + -length % BLOCK
                continue
            if (members := members + 1) > MOST_MEMBERS:
                raise Invalid(f"the archive has more than {MOST_MEMBERS} files")
            if b"size" in pax:
                length = int(pax[b"size"]) if pax[b"size"].isdigit() and len(pax[b"size"]) < 20 else size + 1
            name = _clean(pax.get(b"path") or long or ustar_path(block))
            if kind in (b"0", b"\0"):
                if at + length > size:
                    raise Invalid("unexpected EOF")
                self._places[name] = Place(at, length)
            elif kind in (b"1", b"2"):
                target = _clean(pax.get(b"linkpath") or long_link or block[157:257].partition(b"\0")[0], keep=True)
                self._links[name] = target if kind == b"1" else posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
                length = 0
            at += length + -length % BLOCK
            pax, long, long_link = {}, b"", b""

    def _read(self, place: Place) -> bytes:
        self._file.seek(place.offset)
        return self._file.read(place.size)

    def find(self, name: str) -> Place | None:
        name = _clean(name.encode(errors="surrogateescape"))
        for _ in range(MOST_LINKS):
            if name in self._places:
                return self._places[name]
            if name not in self._links:
                return None
            name = self._links[name]
        return None

    def _whole(self, name: str, limit: int) -> bytes:
        place = self.find(name)
        if place is None:
            raise NotFound(f"open {name}: no such file or directory")
        if place.size > limit:
            raise Invalid(f"{name} has {place.size} bytes, more than the {limit} allowed")
        return self._read(place)

    def _config(self, name: str) -> bytes:
        """However many images name it, it is held once."""
        place = self.find(name)
        known = self._configs.get(place) if place is not None else None
        if known is None:
            known = self._whole(name, MAX_CONFIG)
            assert place is not None
            if (total := self._held + len(known)) > MOST_CONFIGS:
                raise Invalid(f"the images' configs have more than {MOST_CONFIGS} bytes")
            self._configs[place], self._held = known, total
        return known

    def compression(self, place: Place) -> str:
        """Of a layer: archives do not say."""
        return sniff(self._read(Place(place.offset, min(place.size, LONGEST_MAGIC))))

    def images(self, wanted: Platform) -> list[Saved]:
        """All of the archive. Raises Invalid or NotFound for what is none."""
        if self.find("manifest.json") is not None:
            return self._docker()
        if self.find("index.json") is not None:
            return self._oci(wanted)
        raise Invalid("the archive is neither from `docker save` (manifest.json) nor an OCI layout (index.json)")

    def _docker(self) -> list[Saved]:
        try:
            items = msgspec.json.decode(self._whole("manifest.json", MAX_MANIFEST), type=list[_Item])
        except msgspec.MsgspecError as error:
            raise Invalid(f"invalid manifest.json: {error}") from None
        if len(items) > MOST_IMAGES:
            raise Invalid(f"the archive has more than {MOST_IMAGES} images")
        return [
            Saved(
                config=self._config(item.config),
                layers=self._layers(item.layers or []),
                names=tuple(parse(tag).tagged() for tag in item.tags or ()),
            )
            for item in items
        ]

    def _layers(self, names: Sequence[str]) -> tuple[Place, ...]:
        found = [(name, self.find(name)) for name in names]
        for name, place in found:
            if place is None:
                raise NotFound(f"open {name}: no such file or directory")
        return tuple(place for _, place in found if place is not None)

    def _oci(self, wanted: Platform) -> list[Saved]:
        try:
            index = msgspec.json.decode(self._whole("index.json", MAX_MANIFEST), type=_Index)
        except msgspec.MsgspecError as error:
            raise Invalid(f"invalid index.json: {error}") from None
        if len(index.manifests) > MOST_IMAGES:
            raise Invalid(f"the archive has more than {MOST_IMAGES} images")
        found: dict[bytes, Saved] = {}
        for entry in index.manifests:
            manifest = self._manifest(entry.digest, entry.media_type)
            if manifest.index:
                manifest = self._manifest(choose(manifest, wanted).digest, "")
            if manifest.config is None:
                raise Invalid(f"invalid manifest: {manifest.digest} is an index inside an index")
            config = self._config(_blob(manifest.config.digest))
            layers = self._layers([_blob(layer.digest) for layer in manifest.layers])
            before = found.get(config)
            names = (*(before.names if before else ()), *_names(entry.annotations or {}))
            found[config] = Saved(config=config, layers=layers, names=tuple(dict.fromkeys(names)))
        return list(found.values())

    def _manifest(self, digest: str, media_type: str) -> Manifest:
        found = decode(self._whole(_blob(digest), MAX_MANIFEST), media_type)
        if found.digest != digest:
            raise SkepError(f"manifest verification failed for digest {digest}")
        return found


def _names(annotations: dict[str, str]) -> list[Reference]:
    for text in (annotations.get(NAME, ""), annotations.get(TAG, "")):
        if ":" in text or "/" in text:
            try:
                return [parse(text).tagged()]
            except Invalid:
                continue
    return []


def _blob(digest: str) -> str:
    algorithm, _, hexadecimal = digest.partition(":")
    return f"blobs/{algorithm}/{hexadecimal}"


def _clean(name: bytes, *, keep: bool = False) -> str:
    """`./a//b` -> `a/b`. With `keep`, a leading slash or `..` stays, to be resolved against where it was found."""
    text = name.decode(errors="surrogateescape")
    return posixpath.normpath(text) if keep else posixpath.normpath("/" + text).lstrip("/")
