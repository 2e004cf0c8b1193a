"""An engine without containers: keeps them in memory and runs scripts in Python instead of processes. For tests of what calls an engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from typing import Any

import msgspec

from skep.clock import Clock
from skep.engine.base import Container, ContainerConfig, Exec, ExecConfig, Exit, Image, LogRecord, Progress, Streams
from skep.errors import Conflict, NotFound, NotImplementedHere, SkepError
from skep.testing.fake_contents import FakeContents
from skep.testing.fake_transfers import FakeTransfers

Script = Callable[["ScriptedStreams"], Awaitable[int]]


class ScriptedStreams:
    """Streams of a process that is a Python function: `emit` is its output, `read` its input."""

    def __init__(self) -> None:
        self._out: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue()
        self._in: asyncio.Queue[bytes] = asyncio.Queue()
        self.closed = False

    def emit(self, data: bytes, stream: int = 1) -> None:
        self._out.put_nowait((stream, data))

    def end(self) -> None:
        self._out.put_nowait(None)

    async def read(self) -> bytes:
        """Empty at the end of input."""
        return await self._in.get()

    async def output(self) -> AsyncGenerator[tuple[int, bytes], None]:
        while (item := await self._out.get()) is not None:
            yield item

    async def write(self, data: bytes) -> None:
        self._in.put_nowait(data)

    async def close_stdin(self) -> None:
        self._in.put_nowait(b"")

    async def close(self) -> None:
        self.closed = True


class ScriptedExec:
    def __init__(self, pid: int, script: Script) -> None:
        self.pid = pid
        self.streams: Streams = ScriptedStreams()
        self.sizes: list[tuple[int, int]] = []
        self._script = script
        self._code: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        assert isinstance(self.streams, ScriptedStreams)
        code = await self._script(self.streams)
        if not self._code.done():
            self.streams.end()
            self._code.set_result(code)

    async def begun(self) -> str:
        return ""

    async def wait(self) -> int:
        return await asyncio.shield(self._code)

    async def resize(self, rows: int, columns: int) -> None:
        self.sizes.append((rows, columns))

    def kill(self) -> None:
        assert isinstance(self.streams, ScriptedStreams)
        if not self._code.done():
            self.streams.end()
            self._code.set_result(137)


class MemoryImages(FakeTransfers):
    def __init__(self) -> None:
        super().__init__()
        self.images: dict[str, Image] = {}
        self.remote: dict[str, Image | SkepError] = {}
        """What the registry has: name -> image, or the error it answers with."""

    def add(self, image: Image) -> None:
        self.images[image.id] = image

    async def pull(
        self, reference: str, *, auth: str = "", platform: str = "", on_progress: Callable[[Progress], None] | None = None
    ) -> Image:
        found = self.remote.get(reference)
        if isinstance(found, SkepError):
            raise found
        if found is None:
            raise NotFound(f"manifest for {reference} not found: manifest unknown: manifest unknown")
        if on_progress is not None:
            name, _, tag = reference.rpartition(":")
            on_progress(Progress(status=f"Pulling from {name.partition('/')[2] or name}", id=tag))
            fresh = found.id not in self.images
            on_progress(Progress(status=f"Digest: {found.digests[0].partition('@')[2]}"))
            verdict = "Downloaded newer image for" if fresh else "Image is up to date for"
            on_progress(Progress(status=f"Status: {verdict} {reference}"))
        self.add(found)
        return found

    async def resolve(self, reference: str, *, auth: str = "") -> tuple[dict[str, Any], list[dict[str, str]]]:
        found = self.remote.get(reference)
        if isinstance(found, SkepError):
            raise found
        if found is None:
            raise NotFound("manifest unknown: manifest unknown")
        digest = found.digests[0].partition("@")[2]
        descriptor = {"mediaType": "application/vnd.docker.distribution.manifest.v2+json", "digest": digest, "size": 527}
        return descriptor, [{"architecture": found.architecture, "os": found.os}]

    def get(self, reference: str) -> Image | None:
        plain = reference.partition("@")[0] if "@" in reference else reference
        for image in self.images.values():
            names = (image.id, *image.tags, *image.digests)
            if reference in names or plain in image.tags or f"{plain}:latest" in image.tags:
                return image
            if len(reference) >= 4 and image.id.removeprefix("sha256:").startswith(reference.removeprefix("sha256:")):
                return image
        return None

    def all(self) -> Collection[Image]:
        return self.images.values()

    def _known(self) -> list[Image]:
        return list(self.images.values())

    def _keep(self, image: Image) -> None:
        self.images[image.id] = image

    async def remove(self, reference: str, *, force: bool = False) -> list[dict[str, str]]:
        image = self.get(reference)
        if image is None:
            raise NotFound(f"No such image: {reference}")
        if reference in image.tags and len(image.tags) > 1:
            self._keep(msgspec.structs.replace(image, tags=tuple(tag for tag in image.tags if tag != reference)))
            return [{"Untagged": reference}]
        del self.images[image.id]
        return [{"Untagged": tag} for tag in image.tags] + [{"Deleted": image.id}]


class MemoryEngine(FakeContents):
    """Containers in memory. `scripts` maps an exec's first word to what it does; others are not found in $PATH."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.images = MemoryImages()
        self.containers: dict[str, Container] = {}
        self.lines: dict[str, list[LogRecord]] = {}
        self.scripts: dict[str, Script] = {}
        self._clock = clock
        self._queues: set[asyncio.Queue[tuple[str, str, Exit | None]]] = set()
        self._grown = asyncio.Event()
        self._pids = 1000
        self._running: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Carries the scripts; beside the test."""
        async with asyncio.TaskGroup() as group:
            self._running = group
            await asyncio.Event().wait()

    def describe(self) -> Mapping[str, Any]:
        return {
            "runtime": "runc",
            "runtime_version": "1.1.5",
            "storage_driver": "overlay2",
            "security_options": ["name=seccomp,profile=builtin"],
        }

    async def start_up(self) -> None: ...

    async def shut_down(self) -> None: ...

    def _emit(self, action: str, id: str, ended: Exit | None = None) -> None:
        for queue in self._queues:
            queue.put_nowait((action, id, ended))

    def _change(self, id: str, **fields: Any) -> Container:
        self.containers[id] = msgspec.structs.replace(self.containers[id], **fields)
        return self.containers[id]

    async def create(self, config: ContainerConfig) -> None:
        if any(c.config.name == config.name for c in self.containers.values()):
            raise Conflict(f'Conflict. The container name "/{config.name}" is already in use')
        self.containers[config.id] = Container(config=config, created_at=self._clock.now())
        self._emit("create", config.id)

    async def start(self, id: str) -> int:
        self._pids += 1
        self._change(id, started_at=self._clock.now(), pid=self._pids, exit=None)
        self._emit("start", id)
        return self._pids

    def write(self, id: str, data: bytes, stream: int = 1, at: int = 0) -> None:
        """A line of a container's log."""
        self.lines.setdefault(id, []).append(LogRecord(at=at or self._clock.now(), stream=stream, data=data))
        self._grown.set()

    def end(self, id: str, code: int) -> None:
        ended = Exit(code=code, at=self._clock.now())
        self._change(id, exit=ended, pid=0, paused=False)
        self._emit("die", id, ended)
        self._grown.set()

    async def kill(self, id: str, signal: str = "SIGKILL") -> None:
        self.end(id, 137 if signal == "SIGKILL" else 143)

    async def stop(self, id: str, *, signal: str = "", grace: int = 0) -> Exit:
        self.end(id, 143)
        return await self.wait(id)

    async def wait(self, id: str) -> Exit:
        queue = self.subscribe()
        try:
            while (ended := self.containers[id].exit) is None:
                await queue.get()
            return ended
        finally:
            self.unsubscribe(queue)

    async def remove(self, id: str, *, force: bool = False) -> None:
        container = self.containers.get(id)
        if container is None:
            return
        if container.running:
            self.end(id, 137)
        del self.containers[id]
        self._emit("destroy", id)

    def get(self, reference: str) -> Container | None:
        if reference in self.containers:
            return self.containers[reference]
        named = [c for c in self.containers.values() if c.config.name == reference]
        found = named or [c for c in self.containers.values() if reference and c.config.id.startswith(reference)]
        return found[0] if len(found) == 1 else None

    def all(self) -> Collection[Container]:
        return self.containers.values()

    async def logs(
        self, id: str, *, follow: bool = False, since: int = 0, until: int = 0, tail: int = -1, stdout: bool = True, stderr: bool = True
    ) -> AsyncGenerator[LogRecord, None]:
        wanted = {1} if stdout else set()
        wanted |= {2} if stderr else set()
        sent = 0
        old = [r for r in self.lines.get(id, []) if r.stream in wanted and r.at >= since and (not until or r.at <= until)]
        for record in old if tail < 0 else old[len(old) - min(tail, len(old)) :]:
            yield record
        sent = len(self.lines.get(id, []))
        while follow and self.containers[id].running and (not until or self._clock.now() < until):
            self._grown.clear()
            for record in self.lines.get(id, [])[sent:]:
                sent += 1
                if record.stream in wanted:
                    yield record
            await self._grown.wait()

    async def attach(self, id: str) -> Streams:
        raise NotImplementedHere("nothing to attach to")

    async def resize(self, id: str, rows: int, columns: int) -> None: ...

    async def exec(self, id: str, config: ExecConfig) -> Exec:
        script = self.scripts.get(config.args[0])
        if script is None:
            why = f'exec: "{config.args[0]}": executable file not found in $PATH: unknown'
            raise SkepError(f"OCI runtime exec failed: exec failed: unable to start container process: {why}")
        self._pids += 1
        process = ScriptedExec(self._pids, script)
        assert self._running is not None
        self._running.create_task(process.run())
        return process

    def subscribe(self) -> asyncio.Queue[tuple[str, str, Exit | None]]:
        queue: asyncio.Queue[tuple[str, str, Exit | None]] = asyncio.Queue()
        self._queues.add(queue)
        return queue

    def unsubscribe(self, queue: asyncio.Queue[tuple[str, str, Exit | None]]) -> None:
        self._queues.discard(queue)
