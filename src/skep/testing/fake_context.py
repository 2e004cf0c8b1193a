"""A node as the API sees it, without a daemon: for tests of the API and for trying it out.

The control API and the store are the real ones; the engine is `skep.testing.scripted_engine`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection
from pathlib import Path
from typing import Any

from skep.api.context import Cluster, InitRequest, JoinRequest, LogOptions, SwarmInfo
from skep.api.host import HostInfo
from skep.api.localevents import LocalEvents
from skep.clock import SECOND, Clock
from skep.errors import SkepError, Unavailable
from skep.ids import Random, new_id
from skep.link.messages import LogLine
from skep.manager.ca import new_root
from skep.manager.control import Control, bootstrap_cluster
from skep.model.node import NodeDescription
from skep.model.task import Task
from skep.node.container import NodeFacts
from skep.node.plain import Plain
from skep.node.volumes import Volumes
from skep.store.memory import MemoryStore, NullBackend
from skep.testing.fake_datapath import FakeDatapath
from skep.testing.fake_networks import FakeAttachments, FakeNetworks
from skep.testing.scripted_engine import MemoryEngine

INACTIVE = 'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.'
WORKER = (
    "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. "
    "Please run this command on a manager node or promote the current node to a manager."
)
MEMBER = 'This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.'
LAST_MANAGER = (
    "You are attempting to leave the swarm on a node that is participating as a manager. Removing the last manager erases all current "
    "state of the swarm. Use `--force` to ignore this message. "
)


class MemoryLogs:
    """A manager's log broker over prepared lines."""

    def __init__(self) -> None:
        self.lines: list[LogLine] = []
        self.asked: list[tuple[list[str], LogOptions, str]] = []

    async def logs(self, tasks: Collection[Task], options: Any, *, service_id: str = "") -> AsyncGenerator[LogLine, None]:
        ids = [task.id for task in tasks]
        self.asked.append((ids, options, service_id))
        for line in self.lines:
            if line.task_id in ids and (options.stdout if line.stream == 1 else options.stderr):
                yield line


class FakeSwarm:
    """Membership without a network: `init` makes a real cluster in memory, `join` makes this node a worker of nobody's."""

    def __init__(self, context: FakeContext, address: str) -> None:
        self._context = context
        self.address = address
        self._node_id = ""
        self._managers: tuple[tuple[str, str], ...] = ()
        self.tokens: set[str] = set()
        """Tokens that `join` takes."""

    def info(self) -> SwarmInfo:
        if not self._node_id:
            return SwarmInfo()
        return SwarmInfo(
            state="active",
            node_id=self._node_id,
            node_addr=self.address,
            control_available=self._context.control is not None,
            managers=self._managers,
        )

    async def init(self, request: InitRequest) -> str:
        if self._node_id:
            raise Unavailable(MEMBER)
        context = self._context
        address = request.advertise_addr or self.address
        store = context.new_store()
        self._node_id = new_id(context.rng)
        self._managers = ((self._node_id, f"{address}:2377"),)
        store.apply(
            bootstrap_cluster(
                store,
                cluster_id=new_id(context.rng),
                node_id=self._node_id,
                root_ca=new_root(context.clock.now()),
                rng=context.rng,
                spec=request.spec,
                address=address,
                manager_addr=f"{address}:2377",
                availability=request.availability,
                description=context.description,
                default_addr_pool=request.default_addr_pool,
                subnet_size=request.subnet_size,
                data_path_port=request.data_path_port,
            )
        )
        context.store = store
        context.control = Control(store, context.clock, context.rng, self._node_id, context.logs)
        store.flush()
        await context.on_init()
        return self._node_id

    async def join(self, request: JoinRequest) -> None:
        if self._node_id:
            raise Unavailable(MEMBER)
        if request.token not in self.tokens:
            raise SkepError("invalid join token")
        self._node_id = new_id(self._context.rng)
        self._managers = tuple((new_id(self._context.rng), remote) for remote in request.remote_addrs)

    async def leave(self, force: bool) -> None:
        if not self._node_id:
            raise Unavailable("This node is not part of a swarm")
        if self._context.control is not None and not force:
            raise Unavailable(LAST_MANAGER)
        self._node_id = ""
        self._context.control = None
        if self._context.store is not None:
            self._context.store.close()


class FakeContext:
    """`skep.api.context.Context`. `on_init` is called when a cluster was made, for tests that run controllers."""

    def __init__(
        self,
        clock: Clock,
        rng: Random,
        *,
        address: str = "10.0.99.1",
        description: NodeDescription | None = None,
        volumes: Path | None = None,
    ) -> None:
        self.clock = clock
        self.rng = rng
        self.description = description or NodeDescription(hostname="node-1")
        self.engine = MemoryEngine(clock)
        self.logs = MemoryLogs()
        self.swarm = FakeSwarm(self, address)
        self.host = HostInfo(self.engine, clock, id="512b337a-57c8-4520-8a59-1960625a53e7", root="/var/lib/skep", hostname="node-1")
        self.volumes = Volumes(volumes or Path("/proc/nowhere/volumes"), clock, rng, containers=self.engine.all)
        self.networks = FakeNetworks(clock, rng)
        self.attachments = FakeAttachments()
        self.datapath = FakeDatapath(clock)
        facts = NodeFacts(hostname="node-1", resolv_conf="nameserver 10.0.2.3\n")
        self.plain = Plain(self.engine, self.datapath, self.networks, self.volumes, clock, rng, facts, self.attachments)
        self.events = LocalEvents(self.engine, clock)
        self.control: Control | None = None
        self.store: MemoryStore | None = None
        self.guard: Callable[..., None] | None = None

    def new_store(self) -> MemoryStore:
        return MemoryStore(NullBackend(), self.clock, self.guard)

    async def on_init(self) -> None: ...

    @property
    def cluster(self) -> Cluster:
        if self.control is not None:
            return self.control
        raise Unavailable(WORKER if self.swarm.info().state == "active" else INACTIVE)


class StepClock:
    """Real waiting, times that only move when asked to, or with the real clock's steps added: enough for an API under test."""

    def __init__(self, now: int = 1_795_405_652 * SECOND) -> None:
        self.time = now

    def now(self) -> int:
        self.time += 1_000
        return self.time

    async def sleep(self, ns: int) -> None:
        await asyncio.sleep(ns / SECOND)
