"""What happens to plain containers by itself: they end, are started again by their policy, are removed after `--rm`, are checked for
health; and what a restart of the daemon finds. `skep.node.plain.Plain` adds what users ask for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec

from skep.clock import Clock
from skep.engine.base import Container, Engine, Exit
from skep.errors import Conflict, NotFound, SkepError, Unavailable
from skep.node import plain_mounts, restart
from skep.node.health import Health, Probe, kept_probe, watch
from skep.node.plain_config import Joined, Record, blank, extra_of, record_of
from skep.node.plain_errors import start_error
from skep.node.plain_place import Places
from skep.node.timing import until_first
from skep.node.volumes import Volumes

log = logging.getLogger(__name__)


class Ends:
    def __init__(self, engine: Engine, volumes: Volumes, clock: Clock, places: Places) -> None:
        self._engine = engine
        self._volumes = volumes
        self._clock = clock
        self.places = places
        self.tell: Callable[[str, str, Any, Mapping[str, str]], None] = lambda kind, action, subject, attributes: None
        """(kind: container, network or volume; action; Container or id; attributes): what the engine does not tell by itself."""
        self._locks: dict[str, asyncio.Lock] = {}
        self._placed: set[str] = set()
        """Containers that have a sandbox, addresses or mounts of volumes."""
        self._due: dict[str, int] = {}
        """Containers that their policy starts again, and when."""
        self._pending: dict[str, asyncio.Task[None]] = {}
        self._ending: set[str] = set()
        """Containers whose end is being dealt with: it is not yet said whether they are started again."""
        self._restarted: set[str] = set()
        """Their end is part of `restart`: nothing is to happen by itself."""
        self._health: dict[str, Health] = {}
        self._checks: dict[str, asyncio.Task[None]] = {}
        self._waiters: dict[str, list[asyncio.Future[Exit]]] = {}
        self._group: asyncio.TaskGroup | None = None
        self._queue: asyncio.Queue[tuple[str, str, Exit | None]] | None = None

    @asynccontextmanager
    async def _lock(self, id: str) -> AsyncIterator[None]:
        """Whoever leaves a container that is gone takes its lock away: those that still wait for it find nothing to change."""
        lock = self._locks.setdefault(id, asyncio.Lock())
        try:
            async with lock:
                yield
        finally:
            if self._engine.get(id) is None and not lock.locked() and self._locks.get(id) is lock:
                del self._locks[id]

    def _record(self, container: Container) -> Record:
        record = record_of(container.config)
        if record is None:
            raise NotFound(f"No such container: {container.config.id}")
        return record

    async def _keep(self, id: str, record: Record) -> None:
        await self._engine.amend(id, extra=extra_of(record))

    async def _note(self, id: str, record: Record) -> None:
        """The same, and a full disk does not stop what is to be done: what runs can be stopped, what has ended gives back its place."""
        await self._engine.amend(id, extra=extra_of(record), lasting=False)

    # the daemon's start

    async def start_up(self) -> None:
        """Take over what is there. Nothing that runs is touched; what is to be started or removed is begun by `run`."""
        self._queue = self._engine.subscribe()
        sandboxes = set(await self.places.sandboxes())
        for id in sandboxes:
            if self._engine.get(id) is None:
                try:
                    await self.places.leave(id)
                except SkepError as error:
                    log.error("the network place of container %s, which is gone: %s", id[:12], error.text)
        for container in list(self._engine.all()):
            record = record_of(container.config)
            if record is None:
                continue
            id = container.config.id
            try:
                if container.running:
                    self._placed.add(id)
                    await self._note(id, await self.places.adopt(container, record))
                    continue
                if id in sandboxes or record.ports or any(one.address for one in record.joined):
                    self._placed.add(id)
                    await self._clean(id)
                await self._volumes.release(container.config.mounts)
            except SkepError as error:
                # one container's trouble is no reason for the node not to start; what it holds is given back with its next start or end
                log.error("container %s: %s", id[:12], error.text)
            if container.running or container.exit is None:
                continue
            policy, ended = record.host.restart_policy, container.exit
            if restart.again_at_boot(policy, ended, stopped=record.stopped, restarts=record.restarts):
                self._due[id] = record.due or self._clock.now()

    async def run(self) -> None:
        """As long as the daemon lives."""
        queue = self._queue or self._engine.subscribe()
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                if self.places.attachments is not None:
                    self.places.attachments.when_lost(lambda id, network_id: void(self._spawn(self._lost(id, network_id), id)))
                for container in list(self._engine.all()):
                    self._take_up(container)
                while True:
                    action, id, ended = await queue.get()
                    if action == "die" and ended is not None:
                        self._ending.add(id)
                        self._spawn(self._ended(id, ended), id)
                    elif action == "destroy":
                        self._forget(id)
        finally:
            self._group = None
            self._engine.unsubscribe(queue)

    def _spawn(self, work: Coroutine[Any, Any, None], id: str) -> asyncio.Task[None] | None:
        """Beside everything else, while `run` does. What goes wrong with one container is logged and ends nothing else."""
        if self._group is None:
            work.close()
            return None

        async def guarded() -> None:
            try:
                await work
            except SkepError as error:
                log.warning("container %s: %s", id[:12], error.text)
            except Exception:
                log.exception("container %s", id[:12])

        return self._group.create_task(guarded())

    def _take_up(self, container: Container) -> None:
        id, record = container.config.id, record_of(container.config)
        if record is None or self._group is None:
            return
        if container.running:
            self._begin_checks(container, record, record.health)
            self._spawn(self.places.adopt_attached(container, record, self._clock, self._lock), id)
        elif id in self._due:
            self._restart_later(id, self._due[id])
        elif record.host.auto_remove and container.exit is not None:
            self._spawn(self._ended(id, container.exit), id)

    # start

    async def _start(self, container: Container, record: Record) -> None:
        """Under the lock."""
        id = container.config.id
        await self._clean(id)
        seen = self._health.get(id)
        try:
            with self._volumes.hold(*(point.name for point in record.points if point.name)):
                if any(point.type == "bind" for point in record.points):
                    await asyncio.to_thread(plain_mounts.make_sources, record.points)
                await self._volumes.ready(container.config.mounts)
                self._placed.add(id)
                placed = await self.places.join(container, record)
                record = msgspec.structs.replace(
                    record, joined=placed.joined, ports=placed.ports, stopped=False, due=0, error="", error_code=0, health=""
                )
                await self._engine.amend(id, extra=extra_of(record), netns=placed.netns, hosts=placed.hosts, resolv_conf=placed.resolv_conf)
                self._tell_places(container, record, "connect", "mount")
                if kept_probe(record.config.healthcheck) is not None:
                    # before it runs: who sees it run without health takes it to have no check (compose does)
                    self._health[id] = Health()
                await self._engine.start(id)
        except SkepError as error:
            if seen is not None:
                self._health[id] = seen
            else:
                self._health.pop(id, None)
            raise await self._failed(id, error) from None
        started = self._engine.get(id) or container
        self._begin_checks(started, record, "")
        rows, columns = record.host.console_size
        if record.config.tty and rows and columns:
            with suppress(SkepError):
                await self._engine.resize(id, rows, columns)

    async def _failed(self, id: str, error: SkepError) -> SkepError:
        """What is kept of a start that failed, and the error as Docker words it."""
        container = self._engine.get(id)
        code, raised = start_error(error, container.config.args[0] if container is not None else "")
        await self._clean(id)
        if container is not None:
            container = self._engine.get(id) or container
            record = self._record(container)
            if record.host.auto_remove:
                await self._remove(container, record, volumes=True)
            else:
                await self._note(id, msgspec.structs.replace(record, error=raised.text, error_code=code, due=0))
                self._settle(id, Exit(code=code, at=self._clock.now(), error=raised.text))
        return raised

    def _tell_places(self, container: Container, record: Record, network: str, volume: str) -> None:
        id = container.config.id
        for one in record.joined:
            if one.network_id:
                self._tell_network(network, id, one)
        for point in record.points:
            if point.type == "volume":
                attributes = {"container": id, "driver": "local"}
                if volume == "mount":
                    mode = str(point.read_write).lower()
                    attributes |= {"destination": point.target, "propagation": point.propagation, "read/write": mode}
                self.tell("volume", volume, point.name, attributes)

    def _tell_network(self, action: str, id: str, joined: Joined) -> None:
        attributes = {"container": id, "name": joined.network, "type": self.places.driver(joined.network_id)}
        self.tell("network", action, joined.network_id, attributes)

    # end

    async def _ended(self, id: str, ended: Exit) -> None:
        """It has ended: give back its place, then remove it, or start it again, or leave it."""
        try:
            async with self._lock(id):
                await self._after(id, ended)
        finally:
            self._ending.discard(id)

    async def _after(self, id: str, ended: Exit) -> None:
        container = self._engine.get(id)
        record = record_of(container.config) if container is not None else None
        if container is None or record is None or container.running or id in self._restarted or id in self._due:
            return
        await self._clean(id)
        ended = container.exit or ended
        if record.host.auto_remove:
            await self._remove(container, record, volumes=True)
        elif restart.again(record.host.restart_policy, ended, stopped=record.stopped, restarts=record.restarts):
            delay = restart.next_delay(record.delay, ended.at - container.started_at)
            due = self._clock.now() + delay
            record = self._record(self._engine.get(id) or container)
            await self._note(id, msgspec.structs.replace(record, restarts=record.restarts + 1, delay=delay, due=due))
            self._restart_later(id, due)
        else:
            self._settle(id, ended)

    async def _clean(self, id: str) -> None:
        """What it held while it ran goes; under the lock. Nothing while it runs."""
        if id not in self._placed:
            return
        container = self._engine.get(id)
        if container is not None and container.running:
            return
        if (checks := self._checks.pop(id, None)) is not None:
            checks.cancel()
        await self.places.leave(id)
        if container is None:
            self._placed.discard(id)
            return
        record = self._record(container)
        await self._volumes.release(container.config.mounts)
        self._placed.discard(id)
        if record.ports or any(one.address or one.endpoint_id for one in record.joined):
            self._tell_places(container, record, "disconnect", "unmount")
            joined = tuple(blank(one) for one in record.joined)
            await self._note(id, msgspec.structs.replace(record, joined=joined, ports=()))

    async def _give_back(self, id: str) -> None:
        async with self._lock(id):
            await self._clean(id)

    async def _remove(self, container: Container, record: Record, *, volumes: bool) -> None:
        """Under the lock."""
        id = container.config.id
        if container.running:
            # killed now, we must not start it again; it leaves its networks, and says so, before it is gone
            await self._note(id, msgspec.structs.replace(record, stopped=True, due=0))
            with suppress(NotFound, Conflict):
                await self._engine.kill(id)
            with suppress(NotFound):
                self._settle(id, await self._engine.wait(id))
            await self._clean(id)
        await self._engine.remove(id, force=True)
        await self._clean(id)
        await self._volumes.release(container.config.mounts)
        if volumes:
            await plain_mounts.discard(self._volumes, plain_mounts.anonymous_of(record.points))
        self._forget(id)

    def _forget(self, id: str) -> None:
        """It is gone: nobody waits for it any more."""
        self._cancel_restart(id)
        if (checks := self._checks.pop(id, None)) is not None:
            checks.cancel()
        self._health.pop(id, None)
        self._settle(id, None)

    def _settle(self, id: str, ended: Exit | None) -> None:
        for future in self._waiters.pop(id, []):
            if not future.done():
                future.set_result(ended or Exit(code=0, at=self._clock.now(), known=False))

    async def _lost(self, id: str, network_id: str) -> None:
        """The cluster took its place on a network away: it runs on without it."""
        async with self._lock(id):
            container = self._engine.get(id)
            record = record_of(container.config) if container is not None else None
            if container is None or record is None or not container.running:
                return
            log.warning("container %s: its place on network %s was taken away", id[:12], network_id)
            placed = await self.places.lose(container, record, network_id)
            new = msgspec.structs.replace(record, joined=placed.joined, ports=placed.ports)
            await self._engine.amend(id, extra=extra_of(new), hosts=placed.hosts)

    # started again by its policy

    def _restart_later(self, id: str, due: int) -> None:
        self._due[id] = due
        if (task := self._spawn(self._restart(id, due), id)) is not None:
            self._pending[id] = task

    def _cancel_restart(self, id: str) -> bool:
        """Was it to be started again?"""
        pending = self._pending.pop(id, None)
        if pending is not None and pending is not asyncio.current_task():
            pending.cancel()
        return self._due.pop(id, None) is not None

    async def _restart(self, id: str, due: int) -> None:
        await self._clock.sleep(max(0, due - self._clock.now()))
        async with self._lock(id):
            if self._pending.get(id) is not asyncio.current_task():
                return
            self._pending.pop(id, None)
            self._due.pop(id, None)
            container = self._engine.get(id)
            record = record_of(container.config) if container is not None else None
            if container is None or record is None or container.running:
                return
            try:
                await self._start(container, record)
            except SkepError as error:
                log.warning("container %s could not be started again: %s", id[:12], error.text)
                if isinstance(error, Unavailable) and self._engine.get(id) is not None:
                    # the cluster is not there (yet): not the container's fault
                    delay = restart.next_delay(record.delay, 0)
                    await self._keep(id, msgspec.structs.replace(record, delay=delay, error=error.text))
                    self._restart_later(id, self._clock.now() + delay)
                else:
                    self._settle(id, container.exit)

    # health

    def _begin_checks(self, container: Container, record: Record, known: str) -> None:
        id = container.config.id
        probe = kept_probe(record.config.healthcheck)
        if probe is None or self._group is None:
            return
        if (before := self._checks.pop(id, None)) is not None:
            before.cancel()
        health = self._health[id] = Health()
        health.status = known or "starting"
        if (task := self._spawn(self._check(id, probe, health, container.started_at), id)) is not None:
            self._checks[id] = task

    async def _check(self, id: str, probe: Probe, health: Health, started_at: int) -> None:
        told = health.status

        def changed(health: Health) -> bool:
            return health.status != told

        def paused() -> bool:
            container = self._engine.get(id)
            return container is not None and container.paused

        while True:
            await until_first(watch(self._engine, self._clock, id, probe, health, started_at, changed, paused), self._engine.wait(id))
            container = self._engine.get(id)
            if container is None or not container.running:
                return
            told = health.status
            self.tell("container", f"health_status: {told}", container, {})
            async with self._lock(id):
                container = self._engine.get(id)
                if container is not None and container.running and container.started_at == started_at:
                    await self._keep(id, msgspec.structs.replace(self._record(container), health=told))


def void(_: object) -> None:
    """For callbacks that give nothing."""
