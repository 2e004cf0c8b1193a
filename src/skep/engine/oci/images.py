"""The images of a node: pull, look up, name, remove. Implements `skep.engine.base.Images`.

A pull first asks what the name means now, then fetches only what is not here, layers side by side, and names the image when everything
is in place: whoever sees an image can run it. Errors have Docker's words, because they end up in `service ps`. See docs/engine.md.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from skep.clock import Clock
from skep.engine.base import Image, Progress
from skep.engine.oci.auth import credentials
from skep.engine.oci.catalogue import Catalogue
from skep.engine.oci.layers import Layers, Report
from skep.engine.oci.manifest import MAX_CONFIG, Config, Manifest, Platform, choose, decode_config, digest_of, parse_platform
from skep.engine.oci.reference import Reference, parse
from skep.engine.oci.registry import Registry
from skep.engine.oci.transport import RegistryError, translate
from skep.errors import Conflict, Invalid, NotFound, SkepError

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
        self._layers = Layers(data_root)
        self._catalogue = Catalogue(data_root, self._layers)
        self._making: dict[str, asyncio.Lock] = {}
        self._saving = asyncio.Lock()
        self._imports = 0
        self.users: Users = lambda id: ()
        self.warnings = tuple(self._catalogue.dropped)
        """What was found unusable at the start, a line each."""

    def _registry(self, reference: Reference, auth: str) -> Registry:
        return Registry(reference, clock=self._clock, credentials=credentials(auth), insecure=self._insecure, mirrors=self._mirrors)

    async def pull(
        self, reference: str, *, auth: str = "", platform: str = "", on_progress: Callable[[Progress], None] | None = None
    ) -> Image:
        named = parse(reference).tagged()
        wanted = parse_platform(platform, self._machine)
        report: Report = on_progress or (lambda progress: None)
        report(Progress(status=f"Pulling from {named.path}", id=named.target))
        async with self._registry(named, auth) as registry:
            while True:
                try:
                    return await self._pull(registry, named, wanted, bool(platform), report)
                except SkepError as error:
                    if not registry.give_up_mirror():
                        raise _explain(named, error) from None

    async def _pull(self, registry: Registry, named: Reference, wanted: Platform, exact: bool, report: Report) -> Image:
        top = await registry.manifest(named.target)
        known = self._catalogue.names.digests.get(f"{named.name}@{top.digest}")
        if known and (not exact or _fits(self._catalogue.config(known), wanted)):
            return await self._finish(named, top, known, report, fresh=False)
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
                return await self._finish(named, top, id, report, fresh=fresh, raw=raw, config=config)

    async def _finish(
        self,
        named: Reference,
        top: Manifest,
        id: str,
        report: Report,
        *,
        fresh: bool,
        raw: bytes = b"",
        config: Config | None = None,
    ) -> Image:
        """Name it, on disk, then say so."""
        async with self._saving:
            names = self._catalogue.names
            before = (dict(names.tags), dict(names.digests))
            if config is not None and self._catalogue.config(id) is None:
                await asyncio.to_thread(self._catalogue.save_config, id, raw, config)
            names.digests[f"{named.name}@{top.digest}"] = id
            if not named.digest:
                names.tags[named.full] = id
            if before != (names.tags, names.digests):
                await asyncio.to_thread(self._catalogue.save_names)
        report(Progress(status=f"Digest: {top.digest}"))
        report(Progress(status=f"Status: {'Downloaded newer image for' if fresh else 'Image is up to date for'} {named.familiar}"))
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

    async def tag(self, reference: str, target: str) -> None:
        """Another name for an image that is here."""
        named = parse(target).tagged()
        if named.digest:
            raise Invalid("refusing to create a tag with a digest reference")
        async with self._saving:
            self._catalogue.names.tags[named.full] = self._find(reference)
            await asyncio.to_thread(self._catalogue.save_names)

    async def remove(self, reference: str, *, force: bool = False) -> list[dict[str, str]]:
        """Untag, and delete what has no name left, with the layers that nothing else uses. Docker's rules and texts."""
        async with self._saving:
            id = self._find(reference)
            tags, digests = self._catalogue.references(id)
            by_id = not _is_named(self._catalogue, reference)
            gone, deletes = (tags + digests, True) if by_id else _untagged(parse(reference).tagged(), tags, digests)
            if by_id and not force and len(tags) > 1:
                raise Conflict(f"conflict: unable to delete {_short(id)} (must be forced) - image is referenced in multiple repositories")
            deletes = deletes and self._may_delete(id, parse(reference).familiar if not by_id else "", force)
            for named in gone:
                table = self._catalogue.names.digests if named.digest else self._catalogue.names.tags
                table.pop(named.full, None)
            await asyncio.to_thread(self._catalogue.save_names)
            answer = [{"Untagged": named.familiar} for named in gone]
            if deletes:
                self._catalogue.drop_config(id)
                answer.append({"Deleted": id})
                answer += [{"Deleted": diff_id} for diff_id in await self._collect()]
            return answer

    def _may_delete(self, id: str, name: str, force: bool) -> bool:
        """Containers keep their image: a running one always, another unless forced. A name can be taken off by force all the same."""
        for user, running in self.users(id):
            container = user[:12]
            if name and not force:
                raise Conflict(
                    f'conflict: unable to remove repository reference "{name}" (must force) - '
                    f"container {container} is using its referenced image {_short(id)}"
                )
            if running and not name:
                raise Conflict(
                    f"conflict: unable to delete {_short(id)} (cannot be forced) - image is being used by running container {container}"
                )
            if not name and not force:
                raise Conflict(
                    f"conflict: unable to delete {_short(id)} (must be forced) - image is being used by stopped container {container}"
                )
        return not self.users(id)

    async def collect(self) -> list[str]:
        """Remove layers that no image uses; returns their diff ids."""
        async with self._saving:
            return await self._collect()

    async def _collect(self) -> list[str]:
        """Nothing while an import is under way: its layers belong to no image yet."""
        return [] if self._imports else await self._layers.collect(self._catalogue.used_layers())

    @contextmanager
    def importing(self) -> Iterator[None]:
        self._imports += 1
        try:
            yield
        finally:
            self._imports -= 1

    async def import_rootfs(self, source: AsyncIterator[bytes], name: str, *, compression: str = "", config: bytes = b"{}") -> Image:
        """An image of one layer from a tar stream (`docker import`). `config`: an image config without rootfs, JSON."""
        with self.importing():
            diff_id = await self._layers.put("", compression, source)
            return await self.adopt(with_rootfs(config, [diff_id], self._machine), [name])

    async def put_layer(self, diff_id: str, compression: str, source: AsyncIterator[bytes]) -> str:
        """A layer that came by another way than a registry; within `importing`."""
        return await self._layers.put(diff_id, compression, source)

    async def adopt(self, raw: bytes, names: Sequence[str]) -> Image:
        """Take in an image whose layers are all here."""
        id, config = digest_of(raw), decode_config(raw)
        for diff_id in config.rootfs.diff_ids:
            if not self._layers.present(diff_id):
                raise NotFound(f"layer {diff_id} of {id} is missing")
        async with self._saving:
            await asyncio.to_thread(self._catalogue.save_config, id, raw, config)
            for name in names:
                self._catalogue.names.tags[parse(name).tagged().full] = id
            await asyncio.to_thread(self._catalogue.save_names)
        return self._catalogue.image(id)

    def _find(self, reference: str) -> str:
        id = self._catalogue.find(reference)
        if id is None:
            try:
                reference = parse(reference).tagged().familiar
            except Invalid:
                pass
            raise NotFound(f"No such image: {reference}")
        return id


def with_rootfs(config: bytes, diff_ids: Sequence[str], machine: str) -> bytes:
    """An image config completed with its layers and platform; the same input gives the same bytes."""
    platform = parse_platform("", machine)
    whole = {"architecture": platform.architecture, "os": platform.os, **json.loads(config)}
    whole["rootfs"] = {"type": "layers", "diff_ids": list(diff_ids)}
    return json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()


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


def _short(id: str) -> str:
    return id.partition(":")[2][:12]


def _is_named(catalogue: Catalogue, reference: str) -> bool:
    try:
        return catalogue.named(parse(reference)) is not None
    except Invalid:
        return False


def _untagged(named: Reference, tags: list[Reference], digests: list[Reference]) -> tuple[list[Reference], bool]:
    """What goes when one name goes: with a repository's last tag its digests too. The image goes with its last name."""
    gone = [
        other
        for other in tags + digests
        if other.full == named.full or (named.digest and other.name == named.name and other.digest == named.digest)
    ]
    if not any(other.name == named.name and other not in gone for other in tags):
        gone += [other for other in digests if other.name == named.name and other not in gone]
    left = [other for other in tags + digests if other not in gone]
    return gone, not left
