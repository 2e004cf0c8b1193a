"""What the tests of images share: the system's clock, built layers, a registry that misbehaves on purpose."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from aiohttp import web

from skep.engine.base import Progress
from skep.engine.oci.images import OciImages
from skep.local.build import Built, image, layer, text


class SystemClock:
    def now(self) -> int:
        return time.time_ns()

    async def sleep(self, ns: int) -> None:
        await asyncio.sleep(ns / 1e9)


class QuickClock(SystemClock):
    """Pauses between attempts take no time."""

    async def sleep(self, ns: int) -> None:
        await asyncio.sleep(0)


def images(root: Path, **more: object) -> OciImages:
    return OciImages(root, clock=QuickClock(), **more)  # type: ignore[arg-type]


def small(content: str = "one", layers: int = 1) -> Built:
    return image([layer({f"file{n}": text(f"{content}{n}")}) for n in range(layers)], cmd=["/bin/true"])


def leftovers(root: Path) -> list[str]:
    """What a complete pull never leaves behind."""
    return [path.name for path in (root / "layers").iterdir() if path.suffix]


class Lines:
    """Collects progress."""

    def __init__(self) -> None:
        self.all: list[Progress] = []
        self.some = asyncio.Event()

    def __call__(self, progress: Progress) -> None:
        self.all.append(progress)
        self.some.set()

    def of(self, id: str) -> list[str]:
        return [line.status for line in self.all if line.id == id]

    @property
    def last(self) -> str:
        return self.all[-1].status


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def server(handler: Handler) -> AsyncIterator[str]:
    """An HTTP server on loopback that answers everything with `handler`; gives `127.0.0.1:port`."""
    runner = web.ServerRunner(web.Server(handler), shutdown_timeout=0.1)  # type: ignore[arg-type]
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


class Shelf:
    """A registry in a few lines, to be told what to do wrong: serves one built image as `a/b:latest`."""

    def __init__(self, built: Built) -> None:
        self.built = built
        self.seen: list[tuple[str, str]] = []
        """(method and path, Authorization)."""

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.seen.append((f"{request.method} {request.path}", request.headers.get("Authorization", "")))
        return await self.answer(request)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/v2/":
            return web.Response(text="{}")
        if request.path in ("/v2/a/b/manifests/latest", f"/v2/a/b/manifests/{self.built.digest}"):
            return web.Response(body=self.built.manifest, content_type="application/vnd.docker.distribution.manifest.v2+json")
        found = self.built.blobs.get(request.path.rpartition("/")[2])
        if request.path.startswith("/v2/a/b/blobs/") and found is not None:
            return web.Response(body=found)
        body = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
        return web.json_response(body, status=404)

    def count(self, part: str) -> int:
        return sum(part in line for line, _ in self.seen)
