"""The images of a node: pull, push, look up, name, remove, archives of them. Implements `skep.engine.base.Images`.

A pull first asks what the name means now, then fetches only what is not here, layers side by side, and names the image when everything
is in place: whoever sees an image can run it. Errors have Docker's words, because they end up in `service ps`. See docs/engine.md.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

from skep.clock import Clock
from skep.engine.base import Image, Progress
from skep.engine.oci import removal, saved
from skep.engine.oci.auth import credentials
from skep.engine.oci.catalogue import Catalogue, stamp
from skep.engine.oci.compression import sniff
from skep.engine.oci.imported import imported_config, sniffed
from skep.engine.oci.instructions import apply
from skep.engine.oci.layers import Layers, Report
from skep.engine.oci.manifest import MAX_CONFIG, Config, Manifest, Platform, choose, decode_config, digest_of, parse_platform
from skep.engine.oci.push import Push
from skep.engine.oci.reference import Reference, parse, registry_of
from skep.engine.oci.registry import Registry
from skep.engine.oci.transport import RegistryError, translate
from skep.errors import Invalid, NotFound, SkepError

Users = Callable[[str], Sequence[tuple[str, bool]]]
"""(container id, running) of all containers made from this image id."""


class OciImages:
    """`data_root` is this node's alone. `insecure`: registries spoken to without verified TLS (`host:port`, host or network);
    `mirrors`: registry -> base URLs asked before it. `users` may be set by the engine: an image in use is not removed.
    """

    def __init__(
        self,
        data_root: Path,
        *,
        insecure: Collection[str] = (),
        mirrors: Mapping[str, Sequence[str]] | None = None,
        clock: Clock,
    ) -> None:
        self._insecure = frozenset(insecure)
        self._mirrors = dict(mirrors or {})
        self._clock = clock
        self._machine = os.uname().machine
        self._root = data_root
        self._layers = Layers(data_root)
        self._catalogue = Catalogue(data_root, self._layers)
        self._making: dict[str, asyncio.Lock] = {}
        self._saving = asyncio.Lock()
        self.users: Users = lambda id: ()
        self.warnings = tuple(self._catalogue.dropped)
        """What was found unusable at the start, a line each."""

    def _registry(self, reference: Reference, auth: str, actions: str = "pull") -> Registry:
        """Mirrors are asked only by who reads."""
        return Registry(
            reference,
            clock=self._clock,
            credentials=credentials(auth),
            insecure=self._insecure,
            mirrors=self._mirrors if actions == "pull" else {},
            actions=actions,
        )

    async def login(self, server: str, auth: str) -> None:
        async with self._registry(registry_of(server), auth, actions="") as registry:
            try:
                await registry.login()
            except RegistryError as error:
                raise translate(error) from None

    async def pull(
        self, reference: str, *, auth: str = "", platform: str = "", on_progress: Callable[[Progress], None] | None = None
    ) -> Image:
        named = parse(reference).tagged()
        wanted = parse_platform(platform, self._machine)
        report: Report = on_progress or (lambda progress: None)
        async with self._registry(named, auth) as registry:
            while True:
                try:
                    return await self._pull(registry, named, wanted, bool(platform), report)
                except SkepError as error:
                    if not registry.give_up_mirror():
                        raise _explain(named, error) from None

    async def _pull(self, registry: Registry, named: Reference, wanted: Platform, exact: bool, report: Report) -> Image:
        top = await registry.manifest(named.target)
        report(Progress(status=f"Pulling from {named.path}", id=named.target))  # not before: what is not there is an error with a status
        known = self._catalogue.names.digests.get(f"{named.name}@{top.digest}")
        if known and (not exact or _fits(self._catalogue.config(known), wanted)):
            return await self._finish(named, top, known, report)
        manifest = await registry.manifest(choose(top, wanted).digest) if top.index else top
        if manifest.config is None:
            raise SkepError(f"invalid manifest: {manifest.digest} is an index inside an index")
        id = manifest.config.digest
        async with self._making.setdefault(id, asyncio.Lock()):
            fresh = self._catalogue.config(id) is None
            raw = await registry.read(manifest.config, MAX_CONFIG) if fresh else self._catalogue.raw(id)
            config = decode_config(raw)
            if exact and not _fits(config, wanted):
                raise NotFound(f"image with reference {named.familiar} was found but does not provide the specified platform ({wanted})")
            if len(config.rootfs.diff_ids) != len(manifest.layers):
                raise SkepError("layers from manifest don't match image configuration")
            with self._layers.hold(config.rootfs.diff_ids):
                try:
                    async with asyncio.TaskGroup() as group:
                        for diff_id, blob in zip(config.rootfs.diff_ids, manifest.layers, strict=True):
                            group.create_task(self._layers.fetch(diff_id, blob, registry, report))
                except ExceptionGroup as errors:
                    raise errors.exceptions[0] from None
                return await self._finish(named, top, id, report, raw=raw, config=config)

    async def _finish(
        self,
        named: Reference,
        top: Manifest,
        id: str,
        report: Report,
        *,
        raw: bytes = b"",
        config: Config | None = None,
    ) -> Image:
        """Name it, on disk, then say so: newer is what the name did not mean before, though it was here under another."""
        async with self._saving:
            if config is not None and self._catalogue.config(id) is None:
                await asyncio.to_thread(self._catalogue.save_config, id, raw, config)
            names, digest = self._catalogue.names, f"{named.name}@{top.digest}"
            # that it was asked for again is not worth a write: at worst garbage collection sees it as older
            names.times[id] = self._clock.now()
            newer = (names.digests.get(digest) if named.digest else names.tags.get(named.full)) != id
            if newer or names.digests.get(digest) != id:
                async with self._catalogue.naming() as names:
                    names.digests[digest] = id
                    if not named.digest:
                        names.tags[named.full] = id
        report(Progress(status=f"Digest: {top.digest}"))
        report(Progress(status=f"Status: {'Downloaded newer image for' if newer else 'Image is up to date for'} {named.familiar}"))
        return self._catalogue.image(id)

    async def resolve(self, reference: str, *, auth: str = "") -> tuple[dict[str, Any], list[dict[str, str]]]:
        named = parse(reference).tagged()
        try:
            async with self._registry(named, auth) as registry:
                top = await registry.manifest(named.target)
                if top.index:
                    platforms = [entry.platform for entry in top.manifests if entry.platform is not None]
                else:
                    assert top.config is not None
                    config = decode_config(await registry.read(top.config, MAX_CONFIG))
                    platforms = [Platform(os=config.os, architecture=config.architecture, variant=config.variant)]
        except RegistryError as error:
            raise translate(error) from None
        descriptor = {"mediaType": top.media_type, "digest": top.digest, "size": len(top.raw)}
        return descriptor, [_shown(platform) for platform in platforms]

    def get(self, reference: str) -> Image | None:
        id = self._catalogue.find(reference)
        return None if id is None else self._catalogue.image(id)

    def all(self) -> list[Image]:
        return [self._catalogue.image(id) for id in self._catalogue.ids()]

    def rootfs_layers(self, image_id: str) -> list[str]:
        """Directories for overlayfs' lowerdir, topmost first. A layer that occurs twice counts once, where it is highest (overlayfs
        refuses the same directory twice, and what lies below its second occurrence it hides anyway). Raises NotFound.
        """
        config = self._catalogue.config(image_id)
        if config is None:
            raise NotFound(f"No such image: {image_id}")
        return [self._layers.lower(diff_id) for diff_id in dict.fromkeys(reversed(config.rootfs.diff_ids))]

    def raw_config(self, image_id: str) -> bytes:
        """The image's config as it came. Raises NotFound."""
        if self._catalogue.config(image_id) is None:
            raise NotFound(f"No such image: {image_id}")
        return self._catalogue.raw(image_id)

    async def tag(self, source: str, reference: str) -> None:
        named = parse(reference).tagged()
        if named.digest:
            raise Invalid("refusing to create a tag with a digest reference")
        async with self._saving:
            id = self._find(source)
            async with self._catalogue.naming():
                self._name(id, named)

    def _name(self, id: str, named: Reference) -> str:
        """Returns the image that had this name before, when it was another one. To be saved."""
        before = self._catalogue.names.tags.get(named.full, "")
        self._catalogue.names.tags[named.full] = id
        self._catalogue.names.times[id] = self._clock.now()
        return before if before != id else ""

    async def push(self, reference: str, *, auth: str = "", on_progress: Callable[[Progress], None] | None = None) -> dict[str, Any]:
        named = parse(reference).tagged()
        report: Report = on_progress or (lambda progress: None)
        report(Progress(status=f"The push refers to repository [{named.name}]"))
        if named.digest:
            raise Invalid("cannot push a digest reference")
        tags = self._catalogue.names.tags
        if not any(name.startswith(f"{named.name}:") for name in tags):
            raise NotFound(f"An image does not exist locally with the tag: {named.familiar_name}")
        if (id := tags.get(named.full)) is None:
            raise NotFound(f"tag does not exist: {named.familiar}")
        config = self._catalogue.config(id)
        assert config is not None
        raw, diff_ids = self._catalogue.raw(id), config.rootfs.diff_ids
        try:
            with self._layers.hold(diff_ids):
                async with self._registry(named, auth, actions="pull,push") as registry:
                    await registry.connect()
                    pushing = Push(registry, named.path, self._layers, self._clock, report)
                    digest, size = await pushing.image(named.tag, raw, diff_ids)
        except RegistryError as error:
            raise translate(error) from None
        async with self._saving:
            if self._catalogue.config(id) is not None:
                async with self._catalogue.naming() as names:
                    names.digests[f"{named.name}@{digest}"] = id
        report(Progress(status=f"{named.tag}: digest: {digest} size: {size}"))
        return {"Tag": named.tag, "Digest": digest, "Size": size}

    async def load(self, data: AsyncIterator[bytes]) -> list[str]:
        return await saved.load(data, self._root, self._layers, parse_platform("", self._machine), self._adopt)

    def save(self, references: Sequence[str]) -> AsyncGenerator[bytes, None]:
        """A name without a tag stands for all tags of its repository, an id for the image without a name. Raises NotFound at once."""
        wanted: dict[str, list[Reference]] = {}
        for reference in references:
            for id, name in self._to_save(reference):
                wanted.setdefault(id, []).extend([name] if name else [])
        return saved.save([self._whole(id, names) for id, names in wanted.items()], self._layers)

    def _to_save(self, reference: str) -> list[tuple[str, Reference | None]]:
        try:
            named = parse(reference)
        except Invalid:
            named = None
        if named is not None and not named.tag and not named.digest:
            tags = self._catalogue.names.tags
            if found := sorted(name for name in tags if name.startswith(f"{named.name}:")):
                return [(tags[name], parse(name)) for name in found]
        id = self._find(reference)
        if named is not None and named.tag and not named.digest and self._catalogue.named(named):
            return [(id, named)]
        return [(id, None)]

    def _whole(self, id: str, names: Sequence[Reference]) -> saved.Whole:
        config = self._catalogue.config(id)
        assert config is not None
        return saved.Whole(id=id, config=self._catalogue.raw(id), diff_ids=tuple(config.rootfs.diff_ids), names=tuple(dict.fromkeys(names)))

    async def import_archive(
        self, data: AsyncIterator[bytes], *, reference: str = "", message: str = "", changes: Sequence[str] = ()
    ) -> str:
        named = [parse(reference).tagged()] if reference else []
        if named and named[0].digest:
            raise Invalid("cannot import digest reference")
        config = apply(changes)
        with ExitStack() as holding:
            head, rest = await sniffed(data)
            diff_id = await self._layers.put("", sniff(head), rest, holding)
            raw = imported_config(config, diff_id, message, stamp(self._clock.now()), self._machine)
            await self._adopt(raw, named)
            return digest_of(raw)

    async def usage(self) -> tuple[int, dict[str, int]]:
        users: Counter[str] = Counter()
        images = {id: set(config.rootfs.diff_ids) for id in self._catalogue.ids() if (config := self._catalogue.config(id))}
        for diff_ids in images.values():
            users.update(diff_ids)
        own = {id: sum(self._layers.size(d) for d in diff_ids if users[d] == 1) for id, diff_ids in images.items()}
        return sum(self._layers.size(diff_id) for diff_id in self._layers.all()), own

    async def remove(self, reference: str, *, force: bool = False) -> list[dict[str, str]]:
        """Untag, and delete what has no name left, with the layers that nothing else uses. Docker's rules and texts (removal.py)."""
        async with self._saving:
            id = self._find(reference)
            tags, digests = self._catalogue.references(id)
            named = named_by(self._catalogue, reference)
            gone, deletes = removal.decide(id, tags + digests, self.users(id), named, reference, force=force)
            answer = [{"Untagged": name.familiar} for name in gone]
            if deletes:
                # first what makes room: its names are none from now on, should they stay on a full disk
                self._catalogue.drop_config(id)
                answer += [{"Deleted": deleted} for deleted in (id, *await self._collect())]
            with suppress(SkepError) if deletes else nullcontext():
                async with self._catalogue.naming() as names:
                    for name in gone:
                        (names.digests if name.digest else names.tags).pop(name.full, None)
            return answer

    async def collect(self) -> list[str]:
        """Remove layers that no image uses; returns their diff ids."""
        async with self._saving:
            return await self._collect()

    async def tidy(self) -> int:
        """Remove what only helps a next pull: downloads that broke off, layers of no image. Returns the bytes."""
        sizes = {diff_id: self._layers.size(diff_id) for diff_id in self._layers.all()}
        freed = await asyncio.to_thread(self._layers.partials.clear)
        return freed + sum(sizes.get(diff_id, 0) for diff_id in await self.collect())

    async def _collect(self) -> list[str]:
        return await self._layers.collect(self._catalogue.used_layers())

    async def _adopt(self, raw: bytes, names: Sequence[Reference]) -> list[str]:
        """Take in an image whose layers are all here; a line for each name that another image had."""
        id, config = digest_of(raw), decode_config(raw)
        for diff_id in config.rootfs.diff_ids:
            if not self._layers.present(diff_id):
                raise NotFound(f"layer {diff_id} of {id} is missing")
        lines = []
        async with self._saving:
            await asyncio.to_thread(self._catalogue.save_config, id, raw, config)
            async with self._catalogue.naming() as kept:
                kept.times[id] = self._clock.now()
                for name in names:
                    if before := self._name(id, name):
                        lines.append(f"The image {name.familiar} already exists, renaming the old one with ID {before} to empty string")
        return lines

    def _find(self, reference: str) -> str:
        id = self._catalogue.find(reference)
        if id is None:
            try:
                reference = parse(reference).tagged().familiar
            except Invalid:
                pass
            raise NotFound(f"No such image: {reference}")
        return id


def _explain(named: Reference, error: SkepError) -> SkepError:
    """Docker's translation of a registry's refusal for `pull` (distribution/errors.go)."""
    if not isinstance(error, RegistryError):
        return error
    if error.code == "MANIFEST_UNKNOWN":
        return NotFound(f"manifest for {named.familiar} not found: {error.text}")
    if error.code == "NAME_UNKNOWN":
        return NotFound(f"repository {named.familiar_name} not found: {error.text}")
    if error.code == "DENIED":
        return NotFound(
            f"pull access denied for {named.familiar_name}, repository does not exist or may require 'docker login': {error.text}"
        )
    return translate(error)


def _fits(config: Config | None, wanted: Platform) -> bool:
    return config is not None and (config.os, config.architecture) == (wanted.os, wanted.architecture)


def _shown(platform: Platform) -> dict[str, str]:
    shown = {"architecture": platform.architecture, "os": platform.os}
    return {**shown, "variant": platform.variant} if platform.variant else shown


def named_by(catalogue: Catalogue, reference: str) -> Reference | None:
    """The name that this is, where it is one and not an id."""
    if catalogue.is_id(reference):
        return None
    try:
        named = parse(reference).tagged()
    except Invalid:
        return None
    return named if catalogue.named(named) is not None else None
