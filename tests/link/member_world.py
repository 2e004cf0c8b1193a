"""Nodes that can be told to init, join and leave: real TLS on 127.0.0.1, real files, a fake engine and a fake network."""

from __future__ import annotations

import asyncio
import random
import socket
import stat
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from skep.api.context import InitRequest, JoinRequest
from skep.datapath.base import Datapath
from skep.engine.base import ContainerConfig, Image, ImageConfig
from skep.errors import StoreFailed, Unavailable
from skep.membership import Membership
from skep.model.cluster import Cluster
from skep.model.enums import NodeState
from skep.model.node import Node as NodeObject
from skep.model.node import NodeDescription
from skep.model.spec import ContainerSpec, Mode, Replicated, ServiceSpec, TaskSpec
from skep.model.task import Task
from skep.node.container import TASK_ID, NodeFacts
from skep.node.tasks import TaskRuntime
from skep.store.base import Backend, Write
from skep.store.sqlite import SqliteBackend
from skep.system import SystemClock
from skep.testing.fake_datapath import FakeDatapath
from skep.testing.fake_engine import FakeEngine

IMAGE = Image(id="sha256:" + "1" * 64, config=ImageConfig(cmd=("sleep",)))
HASTE = 20


class Hurried(SystemClock):
    """The real time, but whoever waits before trying again waits a twentieth."""

    async def sleep(self, ns: int) -> None:
        await super().sleep(ns // HASTE)


class Disk(SqliteBackend):
    """A real store that can be full."""

    full = False

    def write(self, batch: list[Write], version: int) -> None:  # type: ignore[override]
        if type(self).full:
            raise StoreFailed("the cluster's state cannot be written: database or disk is full")
        super().write(batch, version)


class GatedDatapath(FakeDatapath):
    """Its start waits while the gate is closed; it counts what is begun and ended."""

    def __init__(self, clock: SystemClock) -> None:
        super().__init__(clock)
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = asyncio.Event()
        self.destroyed = 0

    async def start_up(self) -> None:
        self.waiting.set()
        await self.gate.wait()
        await self._fate("start_up")
        await super().start_up()

    async def destroy(self) -> None:
        self.destroyed += 1
        await super().destroy()


class Host:
    """One machine: its disk, its containers, and its daemon's membership while that runs."""

    def __init__(self, folder: Path, name: str, *, patience: float = 10.0) -> None:
        self.name = name
        self.root = folder / name / "swarm"
        self.clock = Hurried()
        self.rng = random.Random(name)
        self.engine = FakeEngine(self.clock)
        self.engine.images_.add("echo", IMAGE)
        self.datapath = GatedDatapath(self.clock)
        self.patience = patience
        self.membership: Membership
        self.disk: type[Disk] = type("ADisk", (Disk,), {})
        self._running: asyncio.Task[None] | None = None

    def start(self, group: asyncio.TaskGroup) -> None:
        self.membership = Membership(
            self.root,
            clock=self.clock,
            rng=self.rng,
            describe=lambda root: NodeDescription(hostname=self.name),
            make_runtime=self._runtime,
            make_datapath=self._datapath,
            make_backend=self._backend,
            patience=self.patience,
        )
        self._running = group.create_task(self.membership.run())

    async def stop(self) -> None:
        """The daemon ends; containers go on."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
            self._running = None

    async def restart(self, group: asyncio.TaskGroup) -> None:
        await self.stop()
        self.start(group)

    @property
    def alive(self) -> bool:
        """The daemon has not come to an end by itself."""
        return self._running is not None and not self._running.done()

    @property
    def state(self) -> str:
        return self.membership.info().state

    def tasks(self) -> list[str]:
        return [c.config.labels[TASK_ID] for c in self.engine.all() if TASK_ID in c.config.labels and c.running]

    async def plain_container(self) -> str:
        config = ContainerConfig(id="c" * 64, name="plain", image=IMAGE.id, args=("sleep",))
        await self.engine.create(config)
        await self.engine.start(config.id)
        return config.id

    def _datapath(self, address: str) -> Datapath:
        return self.datapath

    def _runtime(self, datapath: Datapath) -> TaskRuntime:
        return TaskRuntime(self.engine, datapath, NodeFacts(hostname=self.name), self.clock, self.rng)

    def _backend(self, root: Path) -> Backend:
        return self.disk(root / "state.db")

    # what users do

    async def init(self, port: int, **more: object) -> str:
        address = f"127.0.0.1:{port}"
        return await self.membership.init(InitRequest(listen_addr=address, advertise_addr=address, **more))  # type: ignore[arg-type]

    async def join(self, port: int, token: str, **more: object) -> None:
        values: dict[str, object] = {"listen_addr": "0.0.0.0:2377", "remote_addrs": (f"127.0.0.1:{port}",), "token": token} | more
        await self.membership.join(JoinRequest(**values))  # type: ignore[arg-type]

    @property
    def token(self) -> str:
        return self.cluster.tokens.worker

    @property
    def cluster(self) -> Cluster:
        return self.membership.cluster().cluster()

    def node(self, id: str) -> NodeObject:
        return self.membership.cluster().node(id)

    def sees(self, id: str, state: NodeState) -> Callable[[], bool]:
        return lambda: self.node(id).status.state is state

    async def run_service(self, replicas: int, *, constraint: str = "") -> None:
        container = ContainerSpec(image="echo", args=("x",))
        mode = Mode(replicated=Replicated(replicas=replicas))
        spec = ServiceSpec(name="web", task_template=TaskSpec(container_spec=container), mode=mode)
        await self.membership.cluster().create_service(spec)

    def all_tasks(self) -> list[Task]:
        return list(self.membership.cluster().view.all(Task))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@asynccontextmanager
async def hosts(folder: Path, *names: str, patience: float = 10.0) -> AsyncIterator[tuple[asyncio.TaskGroup, list[Host]]]:
    """Machines with their daemons running; all are stopped at the end, whatever happens."""
    made = [Host(folder, name, patience=patience) for name in names]
    async with asyncio.TaskGroup() as group:
        for host in made:
            host.start(group)
        try:
            for host in made:
                await host.membership.settled()
            yield group, made
        finally:
            for host in made:
                host.datapath.gate.set()
            for host in reversed(made):
                await host.stop()


def run(body: Any) -> None:
    asyncio.run(body())


def refused(host: Host) -> str:
    with pytest.raises(Unavailable) as caught:
        host.membership.cluster()
    return caught.value.text


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def outcome(work: Coroutine[Any, Any, Any]) -> Exception | None:
    try:
        await work
    except Exception as error:
        return error
    return None


async def a_cluster(manager: Host, *workers: Host) -> int:
    port = free_port()
    await manager.init(port)
    for worker in workers:
        await worker.join(port, manager.token)
    return port
