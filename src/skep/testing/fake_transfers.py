"""What can be done with images beside pulling them, in memory: names are given, archives and pushes are only written down."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any

import msgspec

from skep.engine.base import Image, Progress
from skep.errors import NotFound, Unauthorized


class FakeTransfers:
    """To be inherited by images in memory, which give `get`, `_known` and `_keep`."""

    def __init__(self) -> None:
        self.pushed: list[tuple[str, str]] = []
        """(reference, auth)."""
        self.logins: list[tuple[str, str]] = []
        """(server, auth)."""
        self.loads: dict[bytes, list[Image]] = {}
        """What an archive of these bytes has in it."""

    def get(self, reference: str) -> Image | None:
        raise NotImplementedError

    def _known(self) -> list[Image]:
        raise NotImplementedError

    def _keep(self, image: Image) -> None:
        """An image, in the place of the one with its id."""
        raise NotImplementedError

    def _need(self, reference: str) -> Image:
        found = self.get(reference)
        if found is None:
            raise NotFound(f"No such image: {reference}")
        return found

    async def login(self, server: str, auth: str) -> None:
        self.logins.append((server, auth))
        if server.startswith("closed"):
            raise Unauthorized(f'Get "https://{server}/v2/": unauthorized: incorrect username or password')

    async def push(self, reference: str, *, auth: str = "", on_progress: Callable[[Progress], None] | None = None) -> dict[str, Any]:
        image = self._need(reference)
        self.pushed.append((reference, auth))
        report = on_progress or (lambda progress: None)
        name, _, tag = reference.rpartition(":")
        report(Progress(status=f"The push refers to repository [{name}]"))
        for layer in image.layers:
            report(Progress(status="Preparing", id=layer[7:19]))
        for layer in image.layers:
            report(Progress(status="Layer already exists", id=layer[7:19]))
        digest = image.digests[0].partition("@")[2] if image.digests else "sha256:" + hashlib.sha256(image.id.encode()).hexdigest()
        report(Progress(status=f"{tag}: digest: {digest} size: 527"))
        return {"Tag": tag, "Digest": digest, "Size": 527}

    async def tag(self, source: str, reference: str) -> None:
        image = self._need(source)
        name = reference.removeprefix("docker.io/library/").removeprefix("docker.io/")
        name = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
        for other in self._known():
            if other.id != image.id and name in other.tags:
                self._keep(msgspec.structs.replace(other, tags=tuple(tag for tag in other.tags if tag != name)))
        self._keep(msgspec.structs.replace(image, tags=tuple(sorted({*image.tags, name}))))

    async def load(self, data: AsyncIterator[bytes]) -> list[str]:
        whole = b"".join([piece async for piece in data])
        lines = []
        for image in self.loads.get(whole, []):
            self._keep(image)
            lines += [f"Loaded image: {tag}" for tag in image.tags] or [f"Loaded image ID: {image.id}"]
        return lines

    async def save(self, references: Sequence[str]) -> AsyncGenerator[bytes, None]:
        for reference in references:
            yield self._need(reference).id.encode() + b"\n"

    async def import_archive(
        self, data: AsyncIterator[bytes], *, reference: str = "", message: str = "", changes: Sequence[str] = ()
    ) -> str:
        digest = hashlib.sha256(b"".join([piece async for piece in data])).hexdigest()
        image = Image(id=f"sha256:{digest}", layers=(f"sha256:{digest}",), tags=(reference,) if reference else ())
        self._keep(image)
        return image.id

    async def usage(self) -> tuple[int, dict[str, int]]:
        known = self._known()
        return sum(image.size for image in known), {image.id: image.size for image in known}
