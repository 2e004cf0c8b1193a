"""An image to a registry: what it has already is only pointed at, the rest is compressed on its way; then the manifest, in Docker's form.

A layer that came from a registry is known by the blob it came as, so it is asked for, or mounted from a neighbouring repository, before it
is put together and sent again. What is sent is compressed the same way each time, and noted, so a second push sends nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Executor

import msgspec
from yarl import URL

from skep.clock import Clock
from skep.engine.base import Progress
from skep.engine.oci.layers import Blob, Layers
from skep.engine.oci.manifest import DOCKER_CONFIG, DOCKER_LAYER, DOCKER_MANIFEST, Descriptor, digest_of
from skep.engine.oci.registry import ATTEMPTS, PAUSES, Registry
from skep.engine.oci.transport import ConnectionFailed, RegistryError
from skep.errors import SkepError

PARALLEL = 3
LEVEL = 5
REPORT_EVERY = 512 << 10
PIECE = 256 << 10

Report = Callable[[Progress], None]


class _Sent(msgspec.Struct, kw_only=True):
    """What went through while it was sent."""

    digest: str = ""
    size: int = 0
    error: SkepError | None = None


class Push:
    """Of one image to one repository; `registry` is connected, with leave to write."""

    def __init__(self, registry: Registry, path: str, layers: Layers, clock: Clock, report: Report) -> None:
        self._registry = registry
        self._path = f"/v2/{path}"
        self._layers = layers
        self._clock = clock
        self._report = report
        self._slots = asyncio.Semaphore(PARALLEL)

    async def image(self, tag: str, config: bytes, diff_ids: Sequence[str]) -> tuple[str, int]:
        """Digest and size of its manifest. Raises RegistryError, ConnectionFailed, or SkepError where a layer is not whole any more."""
        distinct = list(dict.fromkeys(reversed(diff_ids)))
        for diff_id in distinct:
            self._report(Progress(status="Preparing", id=_short(diff_id)))
        for diff_id in distinct[PARALLEL:]:
            self._report(Progress(status="Waiting", id=_short(diff_id)))
        try:
            async with asyncio.TaskGroup() as group:
                running = {diff_id: group.create_task(self._layer(diff_id)) for diff_id in distinct}
                own = group.create_task(self._config(config))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        blobs = [running[diff_id].result() for diff_id in diff_ids]
        manifest = docker_manifest(own.result(), [Blob(digest=blob.digest, size=blob.size) for blob in blobs])
        path = f"{self._path}/manifests/{tag}"
        async with self._registry.send("PUT", path, manifest, {"Content-Type": DOCKER_MANIFEST}, expected=(200, 201, 202)):
            pass
        return digest_of(manifest), len(manifest)

    async def _config(self, raw: bytes) -> Blob:
        blob = Blob(digest=digest_of(raw), size=len(raw))
        if not await self._there(blob):
            place = await self._begin()
            async with self._registry.send("PUT", _completed(place, blob.digest), raw, _BYTES, expected=(201, 204)):
                pass
        return blob

    async def _layer(self, diff_id: str) -> Blob:
        async with self._slots:
            known = self._layers.record(diff_id).blobs
            for blob in reversed(known):
                if await self._there(blob):
                    self._report(Progress(status="Layer already exists", id=_short(diff_id)))
                    return await self._noted(diff_id, blob)
            for blob in reversed(known):
                if origin := await self._mounted(blob):
                    self._report(Progress(status=f"Mounted from {origin}", id=_short(diff_id)))
                    return await self._noted(diff_id, blob)
            blob = await self._upload(diff_id)
            self._report(Progress(status="Pushed", id=_short(diff_id)))
            return await self._noted(diff_id, blob)

    async def _noted(self, diff_id: str, blob: Blob) -> Blob:
        there = msgspec.structs.replace(blob, repositories=(self._registry.repository,))
        await asyncio.to_thread(self._layers.known_as, diff_id, there)
        return blob

    async def _there(self, blob: Blob) -> bool:
        try:
            async with self._registry.send("HEAD", f"{self._path}/blobs/{blob.digest}", expected=(200,)) as answer:
                return answer.headers.get("Content-Length", str(blob.size)) == str(blob.size)
        except RegistryError as error:
            if error.http_status == 404:
                return False
            raise

    async def _mounted(self, blob: Blob) -> str:
        """The repository of the same registry that it was taken over from; empty when none would give it."""
        domain = self._registry.repository.partition("/")[0]
        for repository in blob.repositories:
            home, _, path = repository.partition("/")
            if home != domain or repository == self._registry.repository:
                continue
            asked = URL(f"{self._path}/blobs/uploads/").with_query({"mount": blob.digest, "from": path})
            try:
                async with self._registry.send("POST", str(asked), expected=(201, 202)) as answer:
                    if answer.status == 201:
                        return path
                    # it has begun an upload instead
                    place = answer.url.join(URL(answer.headers.get("Location", ""), encoded=True))
                async with self._registry.send("DELETE", place, expected=(204, 404, 405)):
                    pass
            except RegistryError:
                continue
        return ""

    async def _begin(self) -> URL:
        async with self._registry.send("POST", f"{self._path}/blobs/uploads/", expected=(202,)) as answer:
            if not (location := answer.headers.get("Location", "")):
                raise SkepError(f"{answer.url.host} does not say where to send a layer")
            return answer.url.join(URL(location, encoded=True))

    async def _upload(self, diff_id: str) -> Blob:
        """Once more from the start when the connection breaks."""
        for attempt in range(ATTEMPTS):
            sent = _Sent()
            try:
                place = await self._begin()
                body = self._body(diff_id, sent)
                async with self._registry.send("PATCH", place, body, _BYTES, expected=(202, 204)) as answer:
                    location = answer.headers.get("Location", "")
                    place = answer.url.join(URL(location, encoded=True)) if location else place
                async with self._registry.send("PUT", _completed(place, sent.digest), b"", expected=(201, 204)):
                    return Blob(digest=sent.digest, size=sent.size)
            except ConnectionFailed:
                if sent.error is not None:
                    raise sent.error from None
                if attempt == ATTEMPTS - 1:
                    raise
            await self._clock.sleep(PAUSES[min(attempt, len(PAUSES) - 1)])
        raise AssertionError

    def _body(self, diff_id: str, sent: _Sent) -> Callable[[], AsyncIterator[bytes]]:
        """The compressed layer; `sent` is complete when it has ended."""
        total = self._layers.record(diff_id).total

        async def body() -> AsyncIterator[bytes]:
            digest, done, next_report = hashlib.sha256(), 0, 0
            sent.size = 0
            squeezed = _squeezed(self._layers.tar(diff_id))
            loop = asyncio.get_running_loop()
            try:
                while (step := await loop.run_in_executor(self._executor, next, squeezed, None)) is not None:
                    taken, piece = step
                    done += taken
                    if done >= next_report:
                        self._report(Progress(status="Pushing", id=_short(diff_id), current=done, total=total))
                        next_report = done + REPORT_EVERY
                    digest.update(piece)
                    sent.size += len(piece)
                    if piece:
                        yield piece
            except SkepError as error:
                # the client would only say that the connection broke
                sent.error = error
                raise
            sent.digest = f"sha256:{digest.hexdigest()}"

        return body

    @property
    def _executor(self) -> Executor:
        return self._layers.executor


_BYTES = {"Content-Type": "application/octet-stream"}


def _squeezed(tar: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """(bytes taken in, bytes that came out): gzip without a time, so the same again each time."""
    packer, taken, out = zlib.compressobj(LEVEL, zlib.DEFLATED, 31), 0, bytearray()
    for piece in tar:
        taken += len(piece)
        out += packer.compress(piece)
        if len(out) >= PIECE:
            yield taken, bytes(out)
            taken, out = 0, bytearray()
    yield taken, bytes(out + packer.flush())


def docker_manifest(config: Blob, layers: Sequence[Blob]) -> bytes:
    """Byte for byte what Docker pushes for the same config and blobs: the digest stays when an image goes on to another place."""

    def part(kind: str, blob: Blob) -> dict[str, object]:
        return {"mediaType": kind, "size": blob.size, "digest": blob.digest}

    whole = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": part(DOCKER_CONFIG, config),
        "layers": [part(DOCKER_LAYER, blob) for blob in layers],
    }
    return json.dumps(whole, indent=3).encode()


def _completed(place: URL, digest: str) -> URL:
    return place.update_query({"digest": digest})


def _short(diff_id: str) -> str:
    return Descriptor(digest=diff_id, size=0).short
