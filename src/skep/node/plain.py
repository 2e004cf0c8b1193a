"""The plain containers of this node: made, started, stopped, started again by their policy, removed. What `docker run` needs of a node.

Everything about a container is in the engine's record (`skep.node.plain_config.Record`), so a restart of the daemon finds it as it was:
`start_up` looks, `run` goes on with it. A lock per container orders what changes it; nobody waits for a signal under it, so that a
container that takes its time to stop can be killed meanwhile. See docs/containers.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress

import msgspec

from skep.clock import SECOND, Clock
from skep.datapath.base import Datapath
from skep.engine.base import Container, Engine, Exit, Image
from skep.errors import Conflict, Invalid, NotFound, NotImplementedHere, SkepError
from skep.ids import Random, new_hex
from skep.node import plain_mounts
from skep.node.base import Attachments, LocalNetworks
from skep.node.container import NodeFacts
from skep.node.health import Health, probe_of
from skep.node.naming import random_name
from skep.node.plain_check import check, check_name, check_resources, check_restart, container_of, limits_of, with_tag
from skep.node.plain_config import (
    Config,
    CreateRequest,
    EndpointSettings,
    HostConfig,
    Record,
    Resources,
    UpdateRequest,
    extra_of,
    record_of,
)
from skep.node.plain_ends import Ends
from skep.node.plain_errors import stop_timeout, warnings_of
from skep.node.plain_place import Placed, Places
from skep.node.plain_spec import build, merged, normal
from skep.node.restart import again
from skep.node.timing import within
from skep.node.volumes import Volumes
from skep.plan.container import signal_number


class Plain(Ends):
    """`start_up` once after the engine's, the networks' and the data path's; then `run` as long as the daemon lives."""

    def __init__(
        self,
        engine: Engine,
        datapath: Datapath,
        networks: LocalNetworks,
        volumes: Volumes,
        clock: Clock,
        rng: Random,
        facts: NodeFacts,
        attachments: Attachments | None = None,
    ) -> None:
        super().__init__(engine, volumes, clock, Places(engine, datapath, networks, facts, rng, attachments))
        self._rng = rng
        self.facts = facts

    # making

    async def create(self, request: CreateRequest, name: str = "", platform: str = "") -> tuple[str, list[str]]:
        """(id, warnings). Raises Invalid, NotFound `No such image: X`, Conflict where the name is taken."""
        if request == CreateRequest():
            raise Invalid("config cannot be empty in order to create a container")
        if b"\\u0000" in msgspec.json.encode(request):
            raise Invalid("invalid JSON: a string contains the character NUL")
        if name:
            name = check_name(name)
        runtime = str(self._engine.describe().get("runtime", ""))
        host = request.host_config
        asked = Config(**{field: getattr(request, field) for field in Config.__struct_fields__})
        check(asked, host, runtime, request.networking_config)
        image = self._image(asked.image, platform)
        name = name or random_name(self._rng, lambda wanted: self._by_name(wanted) is not None)
        if (holder := self._by_name(name)) is not None:
            raise Conflict(
                f'Conflict. The container name "/{name}" is already in use by container "{holder.config.id}". '
                "You have to remove (or rename) that container to be able to reuse that name."
            )
        id = new_hex(self._rng)
        host = normal(host, runtime, "private" if self._engine.describe().get("cgroup_version") == "2" else "host")
        hostname = self.facts.hostname if not asked.hostname and host.network_mode == "host" else ""
        host, hostname = self._shared(host, hostname)
        config = merged(asked, image, id, hostname)
        joined = await self.places.wanted(host.network_mode, dict(request.networking_config.endpoints_config), asked.mac_address)
        for link in host.links if host.network_mode == "bridge" else ():
            self._other(link.partition(":")[0])
        probe_of(config.healthcheck, None)
        wanted = plain_mounts.wishes(config, host, self._other)
        with ExitStack() as holding:
            points, mounts = await plain_mounts.make(wanted, self._volumes, holding)
            record = Record(config=config, host=host, points=points, joined=joined)
            try:
                await self._engine.create(build(id, name, image, record, mounts, self.facts))
            except Exception:
                # not when we are cancelled: the engine goes on, and the container that comes of it needs them
                holding.close()
                await plain_mounts.discard(self._volumes, plain_mounts.anonymous_of(points))
                raise
        return id, warnings_of(host, self._engine.describe().get("limits_missing", ()))

    def _image(self, reference: str, platform: str) -> Image:
        image = self._engine.images.get(reference)
        if image is None:
            raise NotFound(f"No such image: {with_tag(reference)}")
        if platform:
            system, _, architecture = platform.lower().partition("/")
            if (system and system != image.os) or (architecture and architecture.partition("/")[0] != image.architecture):
                raise NotFound(
                    f"image with reference {reference} was found but its platform ({image.os}/{image.architecture}) does not match the "
                    f"specified platform ({platform})"
                )
        return image

    def _by_name(self, name: str) -> Container | None:
        found = self._engine.get(name)
        return found if found is not None and found.config.name == name else None

    def _shared(self, host: HostConfig, hostname: str) -> tuple[HostConfig, str]:
        """`container:X` in modes becomes the id, and with its network comes its host name."""
        for field in ("network_mode", "pid_mode", "ipc_mode"):
            if reference := container_of(getattr(host, field)):
                other = self._other(reference)
                host = msgspec.structs.replace(host, **{field: f"container:{other.config.id}"})
                if field == "network_mode":
                    hostname = other.config.hostname
                if field == "ipc_mode" and (theirs := record_of(other.config)) is not None and theirs.host.ipc_mode != "shareable":
                    raise Invalid(f"container {other.config.id}: non-shareable IPC (hint: use IpcMode:shareable for the donor container)")
        return host, hostname

    def _other(self, reference: str) -> Container:
        """One that another is made of. Not NotFound: the CLI takes that for a missing image."""
        found = self._engine.get(reference.removeprefix("/"))
        if found is None:
            raise Invalid(f"No such container: {reference}")
        return found

    # starting

    async def start(self, reference: str) -> bool:
        """False: it runs already. Raises in Docker's words; what could not be started and is to be removed by itself is gone then."""
        id = self.find(reference).config.id
        async with self._locked(id) as (container, record):
            if container.paused:
                raise Conflict("cannot start a paused container, try unpause instead")
            if container.running:
                return False
            self._cancel_restart(id)
            await self._start(container, msgspec.structs.replace(record, restarts=0, delay=0))
        return True

    # stopping

    async def stop(self, reference: str, *, signal: str = "", seconds: int | None = None) -> bool:
        """False: it does not run. `seconds`: of patience; negative: no end; None: the container's own."""
        id = self.find(reference).config.id
        async with self._locked(id) as (container, record):
            waiting = self.is_restarting(id)
            self._cancel_restart(id)
            if not record.stopped and (container.running or waiting):
                await self._note(id, msgspec.structs.replace(record, stopped=True, due=0))
            if not container.running:
                if waiting:  # no process, hence no `die`: who watches for its end has this alone
                    self._settle(id, container.exit)
                    self.tell("container", "stop", container, {})
                return waiting
        await self._stop(container, record, signal, seconds)
        return True

    async def _stop(self, container: Container, record: Record, signal: str, seconds: int | None) -> None:
        id = container.config.id
        seconds = seconds if seconds is not None else stop_timeout(record)
        grace = seconds * SECOND if seconds >= 0 else 1 << 62
        used = signal or container.config.stop_signal or "SIGTERM"
        self.tell("container", "kill", container, {"signal": str(signal_number(used))})
        with suppress(NotFound):
            await self._engine.stop(id, signal=signal, grace=grace)
        now = self._engine.get(id)
        if now is not None:
            self.tell("container", "stop", now, {})
            await self._give_back(id)

    async def restart(self, reference: str, *, signal: str = "", seconds: int | None = None) -> None:
        container = self.find(reference)
        id, record = container.config.id, self._record(container)
        self._restarted.add(id)
        try:
            if container.running:
                await self._stop(container, record, signal, seconds)
            async with self._locked(id) as (container, record):
                self._cancel_restart(id)
                if not container.running:
                    await self._start(container, msgspec.structs.replace(record, restarts=0, delay=0))
                self._restarted.discard(id)
        finally:
            self._restarted.discard(id)
        self.tell("container", "restart", self._engine.get(id) or container, {})

    async def kill(self, reference: str, signal: str = "SIGKILL") -> None:
        """SIGKILL and the container's stop signal count as stopping it by hand. After SIGKILL it has ended, as Docker has it."""
        container = self.find(reference)
        id, number = container.config.id, signal_number(signal)
        if not container.running and not self.is_restarting(id):
            raise Conflict(f"cannot kill container: {reference}: container {id} is not running")
        if number in (9, signal_number(container.config.stop_signal or "SIGTERM")):
            async with self._locked(id) as (container, record):
                if self._cancel_restart(id):
                    self._settle(id, container.exit)
                if not record.stopped:
                    await self._note(id, msgspec.structs.replace(record, stopped=True, due=0))
        if not container.running:  # between two lives
            return
        await self._engine.kill(id, signal)
        self.tell("container", "kill", container, {"signal": str(number)})
        if number == 9:
            with suppress(NotFound, TimeoutError):  # Docker's patience with what the kernel does not let die
                await within(self._clock, 10 * SECOND, self._engine.wait(id))
            await self._give_back(id)

    # changing

    async def pause(self, reference: str) -> None:
        container = self.find(reference)
        if self.is_restarting(container.config.id):
            raise Conflict(f"Container {container.config.id} is restarting, wait until the container is running")
        await self._engine.pause(container.config.id)

    async def unpause(self, reference: str) -> None:
        await self._engine.unpause(self.find(reference).config.id)

    async def rename(self, reference: str, name: str) -> None:
        if not name:
            raise Invalid("Neither old nor new names may be empty")
        new = check_name(name)
        container = self.find(reference)
        id, old = container.config.id, container.config.name
        if new == old:
            raise Invalid("Renaming a container with the same name as its current name")
        async with self._locked(id) as (container, record):
            await self._engine.amend(id, name=new)
            container = self._engine.get(id) or container
            try:
                joined = await self.places.rename(container, record)
                await self._keep(id, msgspec.structs.replace(record, joined=joined))
            except SkepError:
                await self._engine.amend(id, name=old, lasting=False)
                raise
        self.tell("container", "rename", self._engine.get(id) or container, {"oldName": f"/{old}"})

    async def update(self, reference: str, asked: UpdateRequest) -> list[str]:
        """Limits and restart policy; what is zero or absent stays. Returns warnings."""
        id = self.find(reference).config.id
        async with self._locked(id) as (container, record):
            host = record.host
            given = {name: value for name in Resources.__struct_fields__ if (value := getattr(asked, name)) not in (0, "", (), -1, False)}
            if asked.memory_swap == -1:
                given["memory_swap"] = -1
            if asked.pids_limit == -1:
                given["pids_limit"] = -1
            if asked.nano_cpus and "cpu_quota" not in given:
                given |= {"cpu_period": 0, "cpu_quota": 0}
            elif asked.cpu_quota or asked.cpu_period:
                given["nano_cpus"] = 0
            if asked.memory and "memory_swap" not in given and host.memory_swap == 2 * host.memory:
                given["memory_swap"] = host.memory_swap and 2 * asked.memory
            new = msgspec.structs.replace(host, **given)
            if asked.memory and 0 < new.memory_swap < new.memory:
                raise Conflict(
                    f"Cannot update container {id}: Memory limit should be smaller than already set memoryswap limit, "
                    "update the memoryswap at the same time"
                )
            check_resources(new)
            if asked.restart_policy is not None and asked.restart_policy.name:
                check_restart(asked.restart_policy)
                if host.auto_remove and asked.restart_policy.name != "no":
                    raise Conflict("Restart policy cannot be updated because AutoRemove is enabled for the container")
                new = msgspec.structs.replace(new, restart_policy=asked.restart_policy)
            await self._engine.amend(
                id, limits=limits_of(new), extra=extra_of(msgspec.structs.replace(record, host=new)) if new != host else None
            )
        self.tell("container", "update", self._engine.get(id) or container, {})
        return []

    async def connect(self, network: str, reference: str, settings: EndpointSettings) -> None:
        id = self.find(reference).config.id
        async with self._locked(id) as (container, record):
            joined, placed = await self.places.connect(container, record, network, settings)
            if placed is None:
                await self._keep(id, msgspec.structs.replace(record, joined=(*record.joined, joined)))
                return
            try:
                await self._keep_placed(id, record, placed)
            except SkepError:
                await self.places.undo(id, joined)
                raise
        self._tell_network("connect", id, joined)

    async def disconnect(self, network: str, reference: str) -> None:
        """Also of a network that is gone already."""
        id = self.find(reference).config.id
        async with self._locked(id) as (container, record):
            joined, placed = await self.places.disconnect(container, record, network)
            if not container.running:
                await self._keep(id, msgspec.structs.replace(record, joined=placed.joined))
                return
            await self._keep_placed(id, record, placed, lasting=False)
        self._tell_network("disconnect", id, joined)

    async def _keep_placed(self, id: str, record: Record, placed: Placed, *, lasting: bool = True) -> None:
        """`lasting`: False where it has left already: a full disk does not stop it."""
        new = msgspec.structs.replace(record, joined=placed.joined, ports=placed.ports)
        await self._engine.amend(id, extra=extra_of(new), hosts=placed.hosts, resolv_conf=placed.resolv_conf, lasting=lasting)

    # removing

    async def remove(self, reference: str, *, force: bool = False, volumes: bool = False) -> None:
        """Also one that is being started again. `volumes`: its anonymous ones too. Fine if it goes meanwhile."""
        container = self.find(reference)
        id = container.config.id
        if not force:
            if container.paused:
                raise Conflict(f'cannot remove container "{reference}": container is paused and must be unpaused first before removal')
            if container.running or self.is_restarting(id):
                state = "running" if container.running else "restarting"
                raise Conflict(
                    f'cannot remove container "{reference}": container is {state}: stop the container before removing or force remove'
                )
        with suppress(NotFound):
            async with self._locked(id) as (container, record):
                self._cancel_restart(id)
                if container.running:
                    self.tell("container", "kill", container, {"signal": "9"})
                await self._remove(container, record, volumes=volumes or record.host.auto_remove)

    async def prune(self, wanted: Callable[[Container], bool] = lambda container: True) -> tuple[list[str], int]:
        """Remove what is stopped and passes: (ids, bytes that they had written)."""
        gone, freed = [], 0
        for container in list(self._engine.all()):
            id = container.config.id
            if record_of(container.config) is None or container.running or self.is_restarting(id) or not wanted(container):
                continue
            try:
                written = (await self._engine.size(id))[0]
            except SkepError:
                written = 0
            with suppress(SkepError):
                await self.remove(id)
                gone.append(id)
                freed += written
        return gone, freed

    # reading

    def find(self, reference: str) -> Container:
        """A plain container. Raises NotFound; NotImplementedHere for a task's."""
        container = self._engine.get(reference.removeprefix("/"))
        if container is None:
            raise NotFound(f"No such container: {reference}")
        if record_of(container.config) is None:
            raise NotImplementedHere(f"container {container.config.name} is a task's: change its service instead")
        return container

    def health(self, id: str) -> Health | None:
        return self._health.get(id)

    def is_restarting(self, id: str) -> bool:
        """It has ended, and its policy starts it again in a while (also while it is about to say so)."""
        if id in self._due:
            return True
        if id not in self._placed and id not in self._ending:
            return False
        container = self._engine.get(id)
        record = record_of(container.config) if container is not None else None
        if container is None or record is None or container.exit is None or id in self._restarted:
            return False
        policy = record.host.restart_policy
        return not record.host.auto_remove and again(policy, container.exit, stopped=record.stopped, restarts=record.restarts)

    async def settled(self, id: str) -> Exit:
        """Until it has ended and is not started again by its policy; at once if that is so."""
        container = self.find(id)
        if not (container.running or self.is_restarting(id) or id in self._placed or id in self._ending):
            return container.exit or Exit(code=0, at=0)
        future: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(container.config.id, []).append(future)
        return await future

    @asynccontextmanager
    async def _locked(self, id: str) -> AsyncIterator[tuple[Container, Record]]:
        """The container as it is now. Raises NotFound when it went while we waited."""
        async with self._lock(id):
            container = self.find(id)
            yield container, self._record(container)
