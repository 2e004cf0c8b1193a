"""The host socket's engine: a node of the cluster is a container, its skepd's log is the container's log, exec enters the node.

With it the tutorial's `docker container exec -it manager docker service create ...` runs as printed, and `docker kill worker03` loses a
node as a machine is lost: skepd and all its containers at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from skep.clock import Clock
from skep.engine.base import Container, ContainerConfig, ExecConfig, Exit, Image, ImageConfig, LogRecord, Progress, Streams
from skep.errors import Conflict, NotFound, NotImplementedHere
from skep.local import cluster
from skep.local.layout import Layout, layout
from skep.local.process import NodeProcess, command, node_environment

IMAGE = Image(id="sha256:" + hashlib.sha256(b"skep node").hexdigest(), tags=("skep/node:latest",), config=ImageConfig(cmd=("skepd",)))
REFUSAL = "the host socket shows the nodes of a one-machine cluster; {} is not for it: use a node's own socket"


def container_id(name: str, node: str) -> str:
    return hashlib.sha256(f"{name}/{node}".encode()).hexdigest()


class HostImages:
    """Nothing can be pulled here; all nodes are of one image."""

    async def pull(
        self, reference: str, *, auth: str = "", platform: str = "", on_progress: Callable[[Progress], None] | None = None
    ) -> Image:
        raise NotImplementedHere(REFUSAL.format("pulling images"))

    async def resolve(self, reference: str, *, auth: str = "") -> tuple[dict[str, Any], list[dict[str, str]]]:
        raise NotImplementedHere(REFUSAL.format("looking up images"))

    def get(self, reference: str) -> Image | None:
        return IMAGE if reference in ("skep/node", "skep/node:latest", IMAGE.id) else None

    def all(self) -> Collection[Image]:
        return [IMAGE]

    async def remove(self, reference: str, *, force: bool = False) -> list[dict[str, str]]:
        raise NotImplementedHere(REFUSAL.format("removing images"))


class HostEngine:
    """`skep.engine.base.Engine` over the nodes of one cluster. Must be used inside `async with`: execs run in its task group."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.clock = clock
        self._images = HostImages()
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> HostEngine:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self._group.__aexit__(*exc)

    @property
    def images(self) -> HostImages:
        return self._images

    @property
    def layout(self) -> Layout:
        return layout(self.name)

    def describe(self) -> Mapping[str, Any]:
        return {"Name": f"skep cluster {self.name}", "Driver": "skep", "CgroupDriver": "cgroupfs", "DefaultRuntime": "skepd"}

    async def start_up(self) -> None: ...

    async def shut_down(self) -> None: ...

    async def create(self, config: ContainerConfig) -> None:
        raise NotImplementedHere(REFUSAL.format("creating containers"))

    def all(self) -> Collection[Container]:
        at = self.layout
        names = [n.name for n in at.nodes] + (["registry"] if at.registry else [])
        return [self._container(at, n) for n in names]

    def _container(self, at: Layout, node: str) -> Container:
        created = int(at.state.stat().st_mtime_ns)
        pid = cluster.daemon_pid(at, node)
        config = ContainerConfig(
            id=container_id(self.name, node),
            name=node,
            image=IMAGE.id,
            args=("docker-registry",) if node == "registry" else ("skepd",),
            hostname=node,
            labels={"skep.cluster": self.name},
        )
        started = cluster.started_at(pid) if pid else created
        return Container(
            config=config, created_at=created, started_at=started, pid=pid, exit=None if pid else Exit(code=137, at=created, known=False)
        )

    def get(self, reference: str) -> Container | None:
        reference = reference.removeprefix("/")
        every = self.all()
        for c in every:
            if reference in (c.config.id, c.config.name):
                return c
        matches = [c for c in every if c.config.id.startswith(reference)] if reference else []
        return matches[0] if len(matches) == 1 else None

    def _need(self, id: str) -> Container:
        found = self.get(id)
        if found is None:
            raise NotFound(f"No such container: {id}")
        return found

    async def start(self, id: str) -> int:
        node = self._need(id).config.name
        await asyncio.to_thread(cluster.start_node, self.layout, node)
        await asyncio.to_thread(cluster.wait_for_socket, self.layout, node)
        return cluster.daemon_pid(self.layout, node)

    async def kill(self, id: str, signal: str = "SIGKILL") -> None:
        node = self._need(id).config.name
        if signal.removeprefix("SIG") in ("KILL", "9"):
            await asyncio.to_thread(cluster.kill_node, self.layout, node)
        else:
            await asyncio.to_thread(cluster.signal_node, self.layout, node, signal)

    async def stop(self, id: str, *, signal: str = "", grace: int = 0) -> Exit:
        node = self._need(id).config.name
        await asyncio.to_thread(cluster.stop_node, self.layout, node)
        return Exit(code=0, at=self.clock.now())

    async def wait(self, id: str) -> Exit:
        node = self._need(id).config.name
        while cluster.daemon_pid(self.layout, node):
            await self.clock.sleep(200_000_000)
        return Exit(code=137, at=self.clock.now(), known=False)

    async def remove(self, id: str, *, force: bool = False) -> None:
        raise NotImplementedHere(REFUSAL.format("removing nodes"))

    def logs(
        self, id: str, *, follow: bool = False, since: int = 0, until: int = 0, tail: int = -1, stdout: bool = True, stderr: bool = True
    ) -> AsyncIterator[LogRecord]:
        return self._logs(self.layout.log(self._need(id).config.name), follow, tail)

    async def _logs(self, path: Path, follow: bool, tail: int) -> AsyncIterator[LogRecord]:
        with contextlib.suppress(FileNotFoundError), path.open("rb") as f:
            lines = await asyncio.to_thread(f.readlines)
            for line in lines if tail < 0 else lines[len(lines) - min(tail, len(lines)) :]:
                yield LogRecord(at=self.clock.now(), stream=2, data=line)
            while follow:
                while line := f.readline():
                    yield LogRecord(at=self.clock.now(), stream=2, data=line)
                await self.clock.sleep(200_000_000)

    async def attach(self, id: str) -> Streams:
        raise NotImplementedHere(REFUSAL.format("attaching"))

    async def resize(self, id: str, rows: int, columns: int) -> None:
        return None

    async def exec(self, id: str, config: ExecConfig) -> NodeProcess:
        found = self._need(id)
        if not found.running or found.config.name == "registry":
            raise Conflict(f"container {found.config.id} is not running")
        at = self.layout
        node = found.config.name
        environment = node_environment() | dict(pair.partition("=")[::2] for pair in config.env)
        if config.tty:
            environment.setdefault("TERM", "xterm")
        line = command(at, node, config.args, part="exec", cwd=config.cwd or "/", env=environment, ctty=config.tty)
        process = NodeProcess()
        await process.start(self._group, line, tty=config.tty, stdin=config.stdin, rows=config.rows, columns=config.columns)
        return process

    def subscribe(self) -> asyncio.Queue[tuple[str, str, Exit | None]]:
        return asyncio.Queue()

    def unsubscribe(self, queue: asyncio.Queue[tuple[str, str, Exit | None]]) -> None:
        return None
