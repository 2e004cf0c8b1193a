"""Which images this node has, and under which names: small JSON files, each written whole or not at all.

    <root>/images/<hex>.json   the image's config exactly as it came: its SHA-256 is the image's id, so it proves itself
    <root>/tags.json           names: `docker.io/library/nginx:1` and `docker.io/library/nginx@sha256:...` -> id

An image whose config does not match its name, or one of whose layers is not here, is not an image; it is dropped at the next start.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from skep.engine.base import Image
from skep.engine.oci.files import write_file
from skep.engine.oci.layers import Layers
from skep.engine.oci.manifest import Config, decode_config, digest_of
from skep.engine.oci.reference import Reference, parse
from skep.errors import Invalid, SkepError

_HEX = re.compile(r"[a-f0-9]{1,64}")
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)")


class Names(msgspec.Struct, kw_only=True):
    tags: dict[str, str] = {}
    digests: dict[str, str] = {}
    times: dict[str, int] = {}
    """By id: when an image was last pulled or given a name."""


class Catalogue:
    def __init__(self, root: Path, layers: Layers) -> None:
        self._directory = root / "images"
        self._file = root / "tags.json"
        self._layers = layers
        self._configs: dict[str, Config] = {}
        self._raw: dict[str, bytes] = {}
        self.names = Names()
        self.dropped: list[str] = []
        """One line for each thing that was found unusable at the start."""
        self._load()

    def _load(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._directory.iterdir():
            if path.suffix != ".json":
                path.unlink()
                continue
            raw, id = path.read_bytes(), f"sha256:{path.stem}"
            try:
                config = decode_config(raw)
                missing = [diff_id for diff_id in config.rootfs.diff_ids if not self._layers.present(diff_id)]
                reason = "its config is damaged" if digest_of(raw) != id else f"layer {missing[0]} is missing" if missing else ""
            except SkepError as error:
                reason = error.message
            if reason:
                self.dropped.append(f"image {id} is dropped: {reason}")
                path.unlink()
                continue
            self._configs[id], self._raw[id] = config, raw
        try:
            self.names = msgspec.json.decode(self._file.read_bytes(), type=Names)
        except FileNotFoundError:
            pass
        except (OSError, msgspec.MsgspecError) as error:
            self.dropped.append(f"the images' names are lost: {self._file}: {error}")
        for table in (self.names.tags, self.names.digests):
            for name in [name for name, id in table.items() if id not in self._configs]:
                del table[name]
        for id in [id for id in self.names.times if id not in self._configs]:
            del self.names.times[id]

    def save_config(self, id: str, raw: bytes, config: Config) -> None:
        try:
            write_file(self._directory / f"{id.partition(':')[2]}.json", raw)
        except OSError as error:
            raise SkepError(f"the image cannot be kept: {error.strerror}") from None
        self._configs[id], self._raw[id] = config, raw

    def drop_config(self, id: str) -> None:
        """With its names, which are none from now on, written or not."""
        (self._directory / f"{id.partition(':')[2]}.json").unlink(missing_ok=True)
        self._configs.pop(id, None)
        self._raw.pop(id, None)
        self.names.times.pop(id, None)
        for table in (self.names.tags, self.names.digests):
            for name in [name for name, named in table.items() if named == id]:
                del table[name]

    @asynccontextmanager
    async def naming(self) -> AsyncIterator[Names]:
        """Names changed here are on disk afterwards. Where they cannot be written they are as before. Raises SkepError."""
        before = Names(tags=dict(self.names.tags), digests=dict(self.names.digests), times=dict(self.names.times))
        yield self.names
        try:
            await asyncio.to_thread(self.save_names)
        except OSError as error:
            self.names = before
            raise SkepError(f"the names of images cannot be written: {error.strerror}") from None

    def save_names(self) -> None:
        write_file(self._file, msgspec.json.encode(self.names))

    def ids(self) -> list[str]:
        return list(self._configs)

    def config(self, id: str) -> Config | None:
        return self._configs.get(id)

    def raw(self, id: str) -> bytes:
        """The config's bytes."""
        return self._raw[id]

    def used_layers(self) -> set[str]:
        return {diff_id for config in self._configs.values() for diff_id in config.rootfs.diff_ids}

    def is_id(self, reference: str) -> bool:
        """A whole id, with or without its algorithm."""
        return reference in self._configs or f"sha256:{reference}" in self._configs

    def find(self, reference: str) -> str | None:
        """Id by id, name, digest, or unambiguous id prefix, in this order."""
        if f"sha256:{reference}" in self._configs:
            return f"sha256:{reference}"
        if reference in self._configs:
            return reference
        try:
            named = parse(reference)
        except Invalid:
            named = None
        if named is not None and (id := self.named(named)):
            return id
        prefix = reference.removeprefix("sha256:")
        if not _HEX.fullmatch(prefix):
            return None
        found = [id for id in self._configs if id.startswith(f"sha256:{prefix}")]
        return found[0] if len(found) == 1 else None

    def named(self, reference: Reference) -> str | None:
        """A digest decides alone; the tag beside it is only a comment."""
        if reference.digest:
            return self.names.digests.get(f"{reference.name}@{reference.digest}")
        return self.names.tags.get(reference.tagged().full)

    def references(self, id: str) -> tuple[list[Reference], list[Reference]]:
        """Tags and digests that name it."""
        return _naming(self.names.tags, id), _naming(self.names.digests, id)

    def image(self, id: str) -> Image:
        config = self._configs[id]
        tags, digests = self.references(id)
        return Image(
            id=id,
            tags=tuple(reference.familiar for reference in tags),
            digests=tuple(reference.familiar for reference in digests),
            layers=tuple(config.rootfs.diff_ids),
            size=sum(self._layers.size(diff_id) for diff_id in set(config.rootfs.diff_ids)),
            created=nanoseconds(config.created),
            architecture=config.architecture,
            os=config.os,
            config=config.run(),
            history=tuple(config.history),
            variant=config.variant,
            author=config.author,
            comment=config.comment,
            docker_version=config.docker_version,
            layer_sizes=tuple(self._layers.size(diff_id) for diff_id in config.rootfs.diff_ids),
            tagged_at=self.names.times.get(id, 0),
            directories=tuple(self._layers.lower(diff_id) for diff_id in dict.fromkeys(reversed(config.rootfs.diff_ids))),
        )


def _naming(table: dict[str, str], id: str) -> list[Reference]:
    return sorted(parse(name) for name, named in table.items() if named == id)


def stamp(ns: int) -> str:
    """RFC 3339 with nanoseconds."""
    return f"{datetime.fromtimestamp(ns // 1_000_000_000, UTC):%Y-%m-%dT%H:%M:%S}.{ns % 1_000_000_000:09d}Z"


def nanoseconds(text: str) -> int:
    """RFC 3339 with any number of decimals; 0 for anything else."""
    found = _TIME.fullmatch(text)
    if found is None:
        return 0
    try:
        moment = datetime.fromisoformat(found[1] + found[3].replace("Z", "+00:00")).astimezone(UTC)
    except ValueError:
        return 0
    return int(moment.timestamp()) * 1_000_000_000 + int(((found[2] or ".")[1:] + "0" * 9)[:9])
