"""An engine without containers, on whatever clock it is given: for simulations and for tests of what calls an engine.

It keeps the contract (names, states, events, one error for each misuse) and does what it is told: calls fail or take time, containers end
with a code, are killed, run out of memory; probes answer what a script says.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from typing import Any

import msgspec

from skep.clock import Clock
from skep.engine.base import Container, ContainerConfig, Exec, ExecConfig, Exit, Image, Images, LogRecord, Progress, Streams
from skep.errors import Conflict, Invalid, NotFound, SkepError
from skep.testing.fake_contents import FakeContents
from skep.testing.fake_transfers import FakeTransfers

SIGNALS = {"SIGTERM": 15, "SIGKILL": 9, "SIGINT": 2, "SIGQUIT": 3, "SIGHUP": 1, "SIGUSR1": 10}


class FakeImages(FakeTransfers):
    """`here`: by reference. `remote`: what a pull gives: an image, or the error."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.here: dict[str, Image] = {}
        self.remote: dict[str, Image | SkepError] = {}
        self.pulls: list[str] = []
        self.delay = 0

    def add(self, reference: str, image: Image | None = None) -> Image:
        """Make an image present."""
        made = image or Image(id="sha256:" + hashlib.sha256(reference.encode()).hexdigest(), tags=(reference,))
        self.here[reference] = self.here[made.id] = made
        return made

    async def pull(
        self, reference: str, *, auth: str = "", platform: str = "", on_progress: Callable[[Progress], None] | None = None
    ) -> Image:
        self.pulls.append(reference)
        if self.delay:
            await self._clock.sleep(self.delay)
        found = self.remote.get(reference)
        if found is None:
            raise NotFound(f"manifest for {reference} not found: manifest unknown: manifest unknown")
        if isinstance(found, SkepError):
            raise found
        return self.add(reference, found)

    async def resolve(self, reference: str, *, auth: str = "") -> tuple[dict[str, Any], list[dict[str, str]]]:
        found = self.remote.get(reference)
        if not isinstance(found, Image):
            raise found or NotFound(f"manifest for {reference} not found: manifest unknown: manifest unknown")
        descriptor = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": found.id, "size": found.size}
        return descriptor, [{"architecture": found.architecture, "os": found.os}]

    def get(self, reference: str) -> Image | None:
        return self.here.get(reference)

    def all(self) -> Collection[Image]:
        return self._known()

    def _known(self) -> list[Image]:
        return list({image.id: image for image in self.here.values()}.values())

    def _keep(self, image: Image) -> None:
        self.here = {name: known for name, known in self.here.items() if known.id != image.id}
        self.here |= dict.fromkeys((image.id, *image.tags, *image.digests), image)

    async def remove(self, reference: str, *, force: bool = False) -> list[dict[str, str]]:
        image = self.here.get(reference)
        if image is None:
            raise NotFound(f"No such image: {reference}")
        self.here = {name: known for name, known in self.here.items() if known.id != image.id}
        return [{"Deleted": image.id}]


class FakeStreams:
    def __init__(self, chunks: list[tuple[int, bytes]]) -> None:
        self._chunks = chunks
        self.written = b""

    async def output(self) -> AsyncGenerator[tuple[int, bytes], None]:
        for chunk in self._chunks:
            yield chunk

    async def write(self, data: bytes) -> None:
        self.written += data

    async def close_stdin(self) -> None:
        return None

    async def close(self) -> None:
        return None


class FakeExec:
    """Ends after `delay` ns with its code."""

    def __init__(self, clock: Clock, pid: int, code: int, output: bytes, delay: int) -> None:
        self._clock, self._pid, self._code, self._delay = clock, pid, code, delay
        self._streams = FakeStreams([(1, output)] if output else [])
        self.killed = False

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def streams(self) -> Streams:
        return self._streams

    async def begun(self) -> str:
        return ""

    async def wait(self) -> int:
        if self._delay:
            await self._clock.sleep(self._delay)
        return 137 if self.killed else self._code

    async def resize(self, rows: int, columns: int) -> None:
        return None

    def kill(self) -> None:
        self.killed = True


Answer = tuple[int, bytes, int]
"""(exit code, output, ns it takes)."""


class FakeEngine(FakeContents):
    """`fail[call]` (create, start, stop, kill, remove, exec) makes that call raise; `delay[call]` makes it take so many ns (`started`: to
    return from a start when the container runs already).

    `ignores`: signals its containers do not end on. `probe(container, args)`: what an exec answers; all is well unless set.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.images_: FakeImages = FakeImages(clock)
        self.fail: dict[str, SkepError] = {}
        self.delay: dict[str, int] = {}
        self.facts: dict[str, Any] = {}
        """More of `describe`."""
        self.ignores: set[str] = set()
        self.probe: Callable[[Container, tuple[str, ...]], Answer] = lambda container, args: (0, b"", 0)
        self.lines: dict[str, list[LogRecord]] = {}
        """By container id."""
        self.starts: list[str] = []
        """Container ids, each time one is started."""
        self._containers: dict[str, Container] = {}
        self._ended: dict[str, asyncio.Event] = {}
        self._queues: list[asyncio.Queue[tuple[str, str, Exit | None]]] = []
        self._pid = 1000

    @property
    def images(self) -> Images:
        return self.images_

    def describe(self) -> Mapping[str, Any]:
        of_all = {"runtime": "fake", "storage_driver": "memory", "cgroup_driver": "none", "cgroup_version": "2", "security_options": []}
        return {**of_all, **self.facts}

    async def start_up(self) -> None:
        return None

    async def shut_down(self) -> None:
        return None

    async def _fate(self, call: str) -> None:
        if self.delay.get(call):
            await self._clock.sleep(self.delay[call])
        if call in self.fail:
            raise self.fail[call]

    def _emit(self, action: str, id: str, exit: Exit | None = None) -> None:
        for queue in self._queues:
            queue.put_nowait((action, id, exit))

    def _change(self, id: str, **fields: Any) -> Container:
        self._containers[id] = msgspec.structs.replace(self._containers[id], **fields)
        return self._containers[id]

    def _find(self, reference: str) -> Container:
        found = self.get(reference)
        if found is None:
            raise NotFound(f"No such container: {reference}")
        return found

    # what tests do to containers

    def end(self, id: str, code: int = 0, *, known: bool = True, oom: bool = False, error: str = "") -> None:
        """Its process ends by itself, or somebody outside kills it."""
        container = self._find(id)
        if not container.running:
            return
        exit = Exit(code=code, at=self._clock.now(), known=known, oom=oom, error=error)
        self._change(container.config.id, exit=exit, pid=0, paused=False)
        self._ended[container.config.id].set()
        if oom:
            self._emit("oom", container.config.id)
        self._emit("die", container.config.id, exit)

    # the contract

    async def create(self, config: ContainerConfig) -> None:
        await self._fate("create")
        for known in self._containers.values():
            if config.name == known.config.name:
                raise Conflict(
                    f'Conflict. The container name "/{config.name}" is already in use by container "{known.config.id}". '
                    "You have to remove (or rename) that container to be able to reuse that name."
                )
        if self.images.get(config.image) is None:
            raise NotFound(f"No such image: {config.image}")
        if not config.args:
            raise Invalid("no command specified")
        self._containers[config.id] = Container(config=config, created_at=self._clock.now())
        self._ended[config.id] = asyncio.Event()
        self._emit("create", config.id)

    async def start(self, id: str) -> int:
        container = self._find(id)
        if container.running:
            return container.pid
        await self._fate("start")
        container = self._find(id)
        if container.running:
            return container.pid
        self._pid += 1
        self.starts.append(container.config.id)
        self._ended[container.config.id].clear()
        self._change(container.config.id, started_at=max(self._clock.now(), 1), pid=self._pid, exit=None)
        self._emit("start", container.config.id)
        pid = self._pid
        await self._fate("started")
        return pid

    async def kill(self, id: str, signal: str = "SIGKILL") -> None:
        container = self._find(id)
        await self._fate("kill")
        if not container.running:
            raise Conflict(f"cannot kill container: {id}: container {container.config.id} is not running")
        self._signal(container, signal)

    def _signal(self, container: Container, signal: str) -> None:
        if container.paused:  # Docker lets it go on, so that it can end
            self._change(container.config.id, paused=False)
            self._emit("unpause", container.config.id)
        if signal == "SIGKILL" or (signal not in self.ignores and signal in SIGNALS):
            self.end(container.config.id, 128 + SIGNALS[signal])

    async def stop(self, id: str, *, signal: str = "", grace: int = 0) -> Exit:
        container = self._find(id)
        await self._fate("stop")
        if container.running:
            self._signal(container, signal or container.config.stop_signal or "SIGTERM")
            container = self._find(id)
            if container.running:
                if grace:
                    await self._clock.sleep(grace)
                self._signal(container, "SIGKILL")
        return self._find(id).exit or Exit(code=0, at=container.created_at, known=False)

    async def wait(self, id: str) -> Exit:
        container = self._find(id)
        await self._ended[container.config.id].wait()
        exit = self._containers[container.config.id].exit if container.config.id in self._containers else None
        return exit or Exit(code=0, at=self._clock.now(), known=False)

    async def remove(self, id: str, *, force: bool = False) -> None:
        container = self.get(id)
        if container is None:
            return
        await self._fate("remove")
        if container.running and not force:
            raise Conflict(f'cannot remove container "{id}": container is running: stop the container before removing or force remove')
        self.end(container.config.id, 137)
        self._containers.pop(container.config.id, None)
        self._ended[container.config.id].set()
        self._emit("destroy", container.config.id)

    def get(self, reference: str) -> Container | None:
        reference = reference.removeprefix("/")
        if reference in self._containers:
            return self._containers[reference]
        named = [container for container in self._containers.values() if container.config.name == reference]
        named = named or [container for id, container in self._containers.items() if reference and id.startswith(reference)]
        return named[0] if len(named) == 1 else None

    def all(self) -> Collection[Container]:
        return list(self._containers.values())

    async def logs(
        self, id: str, *, follow: bool = False, since: int = 0, until: int = 0, tail: int = -1, stdout: bool = True, stderr: bool = True
    ) -> AsyncGenerator[LogRecord, None]:
        """What `lines` has; with follow, until the container has ended."""
        container = self._find(id)
        wanted = {stream for stream, asked in ((1, stdout), (2, stderr)) if asked}
        lines = self.lines.setdefault(container.config.id, [])
        position = 0 if tail < 0 else max(len(lines) - tail, 0)
        while True:
            while position < len(lines):
                record = lines[position]
                position += 1
                if record.stream in wanted and record.at >= since and (not until or record.at <= until):
                    yield record
            if not follow or not self._find(id).running:
                return
            await self._clock.sleep(100_000_000)

    async def attach(self, id: str) -> Streams:
        container = self._find(id)
        return FakeStreams([(record.stream, record.data) for record in self.lines.get(container.config.id, [])])

    async def resize(self, id: str, rows: int, columns: int) -> None:
        self._find(id)

    async def exec(self, id: str, config: ExecConfig) -> Exec:
        container = self._find(id)
        await self._fate("exec")
        if not container.running:
            raise Conflict(f"container {container.config.id} is not running")
        self._pid += 1
        code, output, delay = self.probe(container, config.args)
        return FakeExec(self._clock, self._pid, code, output, delay)

    def subscribe(self) -> asyncio.Queue[tuple[str, str, Exit | None]]:
        queue: asyncio.Queue[tuple[str, str, Exit | None]] = asyncio.Queue()
        self._queues.append(queue)
        return queue

    def unsubscribe(self, queue: asyncio.Queue[tuple[str, str, Exit | None]]) -> None:
        if queue in self._queues:
            self._queues.remove(queue)
