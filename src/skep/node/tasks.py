"""The one runtime of this node for tasks. Implements `skep.node.base.Tasks` over an engine and a data path.

It keeps nothing that cannot be found again: a task's container carries its id as a label and what else is needed in `extra`; its sandbox
carries the task's id. So a restart re-adopts by looking. See docs/engine.md.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import posixpath
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import ExitStack, aclosing, asynccontextmanager, suppress

import msgspec

from skep.clock import Clock
from skep.datapath.base import Datapath, HostPort, Place, Resolving
from skep.engine.base import Container, ContainerConfig, Engine, Exit, Image, LogRecord, Mount
from skep.errors import Conflict, NotFound, SkepError
from skep.ids import Random, new_hex
from skep.model import defaults
from skep.model.assignment import TaskItem
from skep.model.spec import ContainerSpec, PortConfig
from skep.model.task import ContainerStatus, TaskStatus
from skep.node.base import LocalEndpoint, LocalNetworks, is_task_sandbox
from skep.node.container import (
    SANDBOX_SYSCTLS,
    TASK_ID,
    NodeFacts,
    build,
    chosen_hostname,
    expanded,
    healthcheck_of,
    lowered,
    own_names,
    refuse_unsupported,
)
from skep.node.health import Health, Probe, probe_of, watch
from skep.node.plain_config import Point
from skep.node.plain_mounts import Made, Wish, anonymous, discard, make, make_sources, parse_mount
from skep.node.pulls import Pulls
from skep.node.task_form import asked_for, stored
from skep.node.timing import until_first
from skep.node.volumes import ANONYMOUS, Volumes
from skep.plan.workload import UNHEALTHY

log = logging.getLogger(__name__)
Networked = tuple[str, tuple[PortConfig, ...], tuple[LocalEndpoint, ...]]


class TaskRuntime:
    """`start_up` once after the engine's and the data path's. `facts` may be replaced when the node's change. Without `networks` a task
    that asks for none has only loopback; without `volumes` one that asks for a volume fails."""

    def __init__(
        self,
        engine: Engine,
        datapath: Datapath,
        facts: NodeFacts,
        clock: Clock,
        rng: Random,
        networks: LocalNetworks | None = None,
        volumes: Volumes | None = None,
    ) -> None:
        self._engine = engine
        self._volumes = volumes
        self._datapath = datapath
        self._networks = networks
        self.facts = facts
        self._clock = clock
        self._rng = rng
        self._containers: dict[str, str] = {}
        """Task id -> container id."""
        self._sandboxes: set[str] = set()
        self._connected: dict[str, Container] = {}
        self.tell: Callable[[str, Container], None] = lambda action, container: None
        """Hears `connect` before a container starts, and `disconnect` once one of `_connected` is off its networks; replaceable."""
        self._health: dict[str, Health] = {}
        self._pulls = Pulls(engine)

    async def start_up(self) -> None:
        """Find the tasks that have a container or a sandbox here."""
        for container in self._engine.all():
            task_id = container.config.labels.get(TASK_ID)
            if task_id:
                self._containers[task_id] = container.config.id
                if container.running:
                    self._connected[task_id] = container
        self._sandboxes = {id for id in await self._datapath.sandboxes() if is_task_sandbox(id)}

    def known(self) -> list[str]:
        return sorted({*self._containers, *self._sandboxes})

    def _container(self, task_id: str) -> Container | None:
        id = self._containers.get(task_id)
        return self._engine.get(id) if id is not None else None

    def health(self, task_id: str) -> Health | None:
        """What its health check has found; None: it has none (or none that was run here)."""
        return self._health.get(task_id)

    # prepare

    async def prepare(self, item: TaskItem) -> None:
        task = item.task
        if self._container(task.id) is not None:
            return
        if (unsure := self._containers.get(task.id)) is not None:  # of a prepare that was cancelled: it may be under way still
            await self._engine.remove(unsure, force=True)
            del self._containers[task.id]
        spec = expanded(item, self.facts)
        refuse_unsupported(item, spec)
        wanted = [parse_mount(mount) for mount in spec.mounts or ()]
        if bound := tuple(wish.point for wish in wanted if wish.point.type == "bind"):
            await asyncio.to_thread(make_sources, bound)
        image = await self._pulls.image(spec.image, item.registry_auth)
        probe_of(spec.healthcheck, image.config.healthcheck)
        id = new_hex(self._rng)
        dry = build(item, spec, image, self.facts, id, "", ())
        with ExitStack() as holding:
            points, mounts = await self._mounts(item, wanted, image, holding)
            nowhere: Networked = ("", (), ())
            netns, ports, local = await self._network(item, spec) if not dry.host_network else nowhere
            config = self._final(item, spec, image, build(item, spec, image, self.facts, id, netns, ports, local), points, mounts, ports)
            # known from now on: the engine carries a create to its end, also one that is cancelled, and what comes of it is to be removed
            self._containers[task.id] = id
            try:
                async with self._usable(mounts):
                    await self._engine.create(config)
            except SkepError as error:
                there = self._engine.get(task.name) if isinstance(error, Conflict) else None
                if there is None or there.config.labels.get(TASK_ID) != task.id:
                    del self._containers[task.id]
                    raise
                self._containers[task.id] = there.config.id

    def _final(
        self,
        item: TaskItem,
        spec: ContainerSpec,
        image: Image,
        made: ContainerConfig,
        points: tuple[Point, ...],
        mounts: tuple[Mount, ...],
        ports: tuple[PortConfig, ...],
    ) -> ContainerConfig:
        """With its mounts, what inspect shows, and what this host does not allow, which is said and not hidden."""
        engine = self._engine.describe()
        cgroupns = "private" if engine.get("cgroup_version") == "2" else "host"
        asked = asked_for(item, spec, image, made, points, ports, runtime=str(engine.get("runtime", "")), cgroupns=cgroupns)
        warnings = lowered(made.ulimits, engine.get("rlimits") or {})
        for warning in warnings:
            log.warning("task %s: %s", item.task.name, warning)
        return msgspec.structs.replace(made, mounts=mounts, extra={**made.extra, **stored(asked), "warnings": warnings})

    async def _mounts(self, item: TaskItem, asked: list[Wish], image: Image, holding: ExitStack) -> Made:
        """Volumes exist when it returns. Those that nobody named, the image's among them, belong to the task and go with it: their names
        follow from its id, so that preparing it again makes no others."""
        taken = {wish.point.target for wish in asked}
        paths = dict.fromkeys(posixpath.normpath(path) for path in image.config.volumes)
        wishes = [*asked, *(anonymous(path) for path in paths if path not in taken)]
        wanted = []
        for one in wishes:
            if one.point.type == "volume" and self._volumes is None:
                raise SkepError(f"mount {one.point.target}: this node keeps no volumes")
            if one.point.anonymous:
                name = hashlib.sha256(f"{item.task.id}:{one.point.target}".encode()).hexdigest()
                named = msgspec.structs.replace(one.point, name=name, anonymous=False)
                one = msgspec.structs.replace(one, point=named, labels={**one.labels, ANONYMOUS: "", TASK_ID: item.task.id})
            wanted.append(one)
        return await make(wanted, self._volumes, holding)

    @asynccontextmanager
    async def _usable(self, mounts: tuple[Mount, ...]) -> AsyncIterator[None]:
        """The volumes among them are mounted, and stay, until a container has them or runs."""
        if self._volumes is None:
            yield
            return
        with self._volumes.hold(*(mount.volume for mount in mounts if mount.volume)):
            await self._volumes.ready(mounts)
            yield

    async def _network(self, item: TaskItem, spec: ContainerSpec) -> Networked:
        """A sandbox with one interface for each attachment; without any it joins `bridge`, as in Docker."""
        task = item.task
        self._sandboxes.add(task.id)
        places = [
            Place(network_id=attachment.network_id, address=address)
            for attachment in task.attachments
            for address in attachment.addresses[:1]
        ]
        local = [attachment.network_id for attachment in task.attachments if not attachment.addresses]
        if not task.attachments:
            local = ["bridge"]
        endpoints = []
        for name in local:
            if self._networks is None or name == "none":
                continue
            network = self._networks.get(name)
            if network is None:
                raise SkepError(f"network {name} is not on this node")
            endpoint = await self._networks.reserve(network.id, task.id, names=own_names(task))
            endpoints.append(endpoint)
            places.append(Place(network_id=network.id, address=endpoint.address, gateway=endpoint.gateway))
        wanted = tuple(port for port in (task.endpoint.ports if task.endpoint else None) or () if port.publish_mode == "host")
        if wanted and not places:
            raise SkepError(f"port {wanted[0].published_port or wanted[0].target_port} is published in host mode: this needs a network")
        sysctls = {**SANDBOX_SYSCTLS, **{key: value for key, value in (spec.sysctls or {}).items() if key.startswith("net.")}}
        servers = (spec.dns_config.nameservers if spec.dns_config is not None else None) or ()
        resolving = Resolving(servers=servers, own_names=own_names(task))
        sandbox = await self._datapath.attach(task.id, tuple(places), sysctls, resolving)
        ports: tuple[PortConfig, ...] = ()
        if wanted:
            asked = tuple(HostPort(target=p.target_port, protocol=p.protocol or "tcp", published=p.published_port) for p in wanted)
            given = await self._datapath.publish(task.id, places[0].address.partition("/")[0], asked)
            ports = tuple(
                msgspec.structs.replace(port, protocol=got.protocol, published_port=got.published)
                for port, got in zip(wanted, given, strict=True)
            )
        return sandbox.path, ports, tuple(endpoints)

    # run

    def _present(self, item: TaskItem) -> Container:
        container = self._container(item.task.id)
        if container is None:
            raise SkepError(f"No such container: {item.task.name}")
        return container

    def _probe(self, container: Container) -> Probe | None:
        image = self._engine.images.get(container.config.image)
        return probe_of(healthcheck_of(container.config.extra), image.config.healthcheck if image is not None else None)

    async def start(self, item: TaskItem) -> None:
        container = self._present(item)
        id = container.config.id
        probe = self._probe(container)
        # before it runs: who sees it run without health takes it to have no check (compose does)
        health = self._health.setdefault(item.task.id, Health()) if probe is not None else None
        if container.exit is None and not container.running:
            try:
                async with self._usable(container.config.mounts):
                    self._connected[item.task.id] = container
                    self.tell("connect", container)
                    await self._engine.start(id)
            except SkepError as error:
                raise type(error)(f"starting container failed: {error.text}") from None
        if probe is None or health is None:
            return
        await self._watch(id, probe, health, lambda health: health.status != "starting")
        ended = self._present(item).exit
        if ended is not None and (ended.code or not ended.known):
            raise SkepError(f"task: non-zero exit ({ended.code})" + (f": {ended.error}" if ended.error else ""))
        if ended is None and health.status == "unhealthy":
            raise SkepError(UNHEALTHY)

    async def _watch(self, id: str, probe: Probe, health: Health, enough: Callable[[Health], bool]) -> None:
        """Probe until the health is decided, or the container has ended."""
        container = self._engine.get(id)
        started_at = container.started_at if container is not None else self._clock.now()
        await until_first(watch(self._engine, self._clock, id, probe, health, started_at, enough), self._engine.wait(id))

    async def wait(self, item: TaskItem) -> Exit:
        container = self._present(item)
        id = container.config.id
        probe = self._probe(container)
        if probe is not None and container.exit is None:
            health = self._health.get(item.task.id)
            if health is None:  # it was healthy before we were started anew
                health = self._health[item.task.id] = Health()
                health.status = "healthy"
            await self._watch(id, probe, health, lambda health: health.status == "unhealthy")
            if health.status == "unhealthy" and self._present(item).exit is None:
                raise SkepError(UNHEALTHY)
        ended = await self._engine.wait(id)
        await self._release(item.task.id)
        await self._let_go(container)
        return ended

    async def shutdown(self, item: TaskItem) -> None:
        container = self._container(item.task.id)
        if container is not None and container.exit is None:
            spec = item.task.spec.container_spec or ContainerSpec()
            with suppress(NotFound):
                await self._engine.stop(container.config.id, grace=defaults.stop_grace_period(spec))
        await self._release(item.task.id)
        if container is not None:
            await self._let_go(container)

    async def _let_go(self, container: Container) -> None:
        if self._volumes is not None:
            await self._volumes.release(container.config.mounts)

    async def _release(self, task_id: str) -> None:
        """Its addresses and ports may be given to the next task as soon as this one has ended, so its network place goes now."""
        if task_id in self._sandboxes:
            await self._datapath.unpublish(task_id)
            await self._datapath.detach(task_id)
            if self._networks is not None:
                await self._networks.release(task_id)
            self._sandboxes.discard(task_id)
        if (container := self._connected.pop(task_id, None)) is not None:
            self.tell("disconnect", container)

    async def remove(self, task_id: str) -> None:
        id = self._containers.get(task_id)
        mounts: tuple[Mount, ...] = ()
        if id is not None:
            container = self._engine.get(id)
            mounts = container.config.mounts if container is not None else ()
            await self._engine.remove(id, force=True)
            self._containers.pop(task_id, None)
        await self._release(task_id)
        if self._volumes is not None:
            await self._volumes.release(mounts)
            await discard(self._volumes, [v.name for v in self._volumes.all() if v.anonymous and v.labels.get(TASK_ID) == task_id])
        self._health.pop(task_id, None)

    # reading

    def status(self, task_id: str) -> TaskStatus | None:
        container = self._container(task_id)
        if container is None:
            return None
        ended = container.exit
        return TaskStatus(
            container=ContainerStatus(
                container_id=container.config.id,
                pid=container.pid,
                hostname=chosen_hostname(container.config),
                exit_code=ended.code if ended is not None else 0,
                exit_known=ended is None or ended.known,
            ),
            ports=msgspec.convert(container.config.extra.get("ports") or (), tuple[PortConfig, ...]) if container.running else (),
            message="; ".join(container.config.extra.get("warnings") or ()),
        )

    async def logs(
        self,
        task_id: str,
        *,
        follow: bool = False,
        since: int = 0,
        until: int = 0,
        tail: int = -1,
        stdout: bool = True,
        stderr: bool = True,
    ) -> AsyncGenerator[LogRecord, None]:
        """Of its container; nothing where there is none."""
        id = self._containers.get(task_id)
        if id is None or self._engine.get(id) is None:
            return
        read = self._engine.logs(id, follow=follow, since=since, until=until, tail=tail, stdout=stdout, stderr=stderr)
        async with aclosing(read) as records:
            async for record in records:
                yield record
