"""A simulated manager: the real store, controllers, control API, authority's gate and dispatcher, driven on a virtual clock.

Killing it drops everything but its disk, after any number of the transactions that were waiting to be written: the next one has to
live with every state between two commits.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Iterable
from typing import TYPE_CHECKING, Any

from skep.clock import MILLISECOND
from skep.errors import SkepError
from skep.link.channel import Identity, Refused
from skep.link.memory import Wire
from skep.link.messages import Closing, FromAgent, FromManager, Hello
from skep.manager.ca import Authority
from skep.manager.control import Control
from skep.manager.loop import Loop
from skep.manager.session import Session
from skep.plan.ops import Create, Op
from skep.plan.ownership import refuse
from skep.store.backends import MemoryBackend
from skep.store.memory import MemoryStore
from skep.testing.sim_rules import Violation
from skep.testing.virtual import Alarm, VirtualClock

if TYPE_CHECKING:
    from skep.testing.sim_node import SimNode
    from skep.testing.sim_world import World

Done = Callable[[Any, SkepError | None], None]


class Durable:
    """What a control call waits for."""

    def __init__(self, version: int) -> None:
        self.version = version

    def __await__(self) -> Generator[Durable, None, None]:
        yield self


class SimStore(MemoryStore):
    """The store with a disk that takes its time: `durable` waits on the virtual clock, every transaction is looked at."""

    def __init__(self, world: World, backend: MemoryBackend) -> None:
        super().__init__(backend, VirtualClock(world.agenda), refuse)
        self._world = world

    def apply(self, ops: Iterable[Op], *, by: str = "") -> int:
        before, ops = len(self._pending), list(ops)
        version = super().apply(ops, by=by)
        if events := self._pending[before:]:
            try:
                self._world.rules.transaction(self, by, events)
            except Violation:
                for op in ops:
                    id = op.object.id if isinstance(op, Create) else op.id
                    self._world.say(f"{by}: {type(op).__name__.lower()} {self._world.label(id)}: {op.because}")
                raise
        return version

    async def durable(self, version: int) -> None:
        if version > self.durable_version:
            await Durable(version)

    def pending_transactions(self) -> list[int]:
        return sorted({event.version for event in self._pending})

    def flush_until(self, version: int) -> None:
        """Only the transactions up to this one reach the disk."""
        written = [event for event in self._pending if event.version <= version]
        if written:
            self._pending = [event for event in self._pending if event.version > version]
            self._write(written, version)


class Connection:
    """Between one node and the manager that was there when it was made. `session` is the dispatcher's."""

    def __init__(self, world: World, node: SimNode, manager: SimManager) -> None:
        self._world = world
        self.node = node
        self.manager = manager
        self.session: Session | None = None
        self.wire = Wire(world.fate, ordered=not world.weather.disorder)
        self._alarm = Alarm(world.agenda, self._deliver)
        self._over = False

    def send_up(self, message: FromAgent) -> None:
        self.wire.send_up(message, self._world.agenda.now)
        self._alarm.set(self.wire.next_time())

    def send_down(self, message: FromManager) -> None:
        self.wire.send_down(message, self._world.agenda.now)
        self._alarm.set(self.wire.next_time())

    def _deliver(self) -> None:
        while not self._over and (found := self.wire.take(self._world.agenda.now)) is not None:
            up, down = found
            if self.node.cut_off:
                continue
            if up is not None and self.manager.alive:
                self.manager.received(self, up)
            elif down is not None:
                self.node.received(self, down)
        if not self._over:
            self._alarm.set(self.wire.next_time())

    def hang_up(self) -> None:
        """The node's end. The manager hears of it, unless the network is gone."""
        if not self._over:
            self._end()
            if not self.node.cut_off:
                self._world.agenda.after(MILLISECOND, lambda: self.manager.disconnected(self))

    def break_off(self, reason: str) -> None:
        """The manager's end, or the network. The node hears of it by itself, or by a heartbeat without an answer."""
        if not self._over:
            self._end()
            if not self.node.cut_off and self._world.rng.random() < 0.8:
                self._world.agenda.after(MILLISECOND, lambda: self.node.disconnected(self, reason))

    def _end(self) -> None:
        self._over = True
        self._alarm.stop()
        self.wire.break_off()


class SimManager:
    def __init__(self, world: World, backend: MemoryBackend, node_id: str) -> None:
        self._world = world
        self.alive = True
        self.born = world.agenda.now
        parts, now, clock = world.parts, world.agenda.now, VirtualClock(world.agenda)
        self.store: SimStore = parts.store(world, backend)
        world.rules.loaded(self.store)
        self._watch = self.store.watch()
        self.dispatcher = parts.dispatcher(self.store, world.rng, now)
        self.loop = Loop(self.store, clock, world.rng, parts.controllers())
        self.control = Control(self.store, clock, world.rng, node_id)
        self.authority = Authority(self.store, clock, world.rng)
        self._waiting: list[tuple[int, Coroutine[Any, Any, Any], Done]] = []
        self._connections: dict[Session, Connection] = {}
        self._stepping = Alarm(world.agenda, self._step)
        self._flushing = Alarm(world.agenda, self._flush)
        self._ticking = Alarm(world.agenda, self._tick)
        self._seen = -1
        self._stepping.set(now)
        self._after()

    def kill(self) -> None:
        """After this nothing of it happens any more. Some of what waited for the disk may have reached it."""
        pending = self.store.pending_transactions()
        if pending:
            written = self._world.rng.randrange(0, len(pending) + 1)
            if written:
                self.store.flush_until(pending[written - 1])
        self.alive = False
        for alarm in (self._stepping, self._flushing, self._ticking):
            alarm.stop()
        for _, call, _ in self._waiting:
            call.close()
        self.loop.close()
        for connection in self._connections.values():
            connection.break_off("the connection was reset")
        self._connections.clear()

    # control

    def call(self, call: Coroutine[Any, Any, Any], done: Done) -> None:
        """A user's request; `done` hears the answer when it is durable, and nothing when the manager dies before."""
        try:
            waits = call.send(None)
        except StopIteration as end:
            done(end.value, None)
        except SkepError as error:
            done(None, error)
        else:
            self._waiting.append((waits.version, call, done))
        self._after()

    def _answer(self) -> None:
        durable = self.store.durable_version
        ready = [entry for entry in self._waiting if entry[0] <= durable]
        self._waiting = [entry for entry in self._waiting if entry[0] > durable]
        for _, call, done in ready:
            self._world.rules.acknowledged(durable)
            self.call(call, done)

    # what happens by itself

    def _step(self) -> None:
        again = self.loop.step(self._world.agenda.now)
        self._story()
        self._world.rules.stepped(self.store)
        self._stepping.set(again)
        self._after(planned=True)

    def _story(self) -> None:
        """What was decided since the last look; the loop remembers 10,000."""
        if self._world.story is not None:
            for decision in self.loop.decisions:
                text = f"{decision.by}: {decision.action} {decision.kind} {self._world.label(decision.id)}: {decision.because}"
                self._world.say(text)
        self.loop.decisions.clear()

    def _flush(self) -> None:
        if self.store.flush():
            self.dispatcher.changed(self._watch.take(), self._world.agenda.now)
            self._answer()
        self._after()

    def _tick(self) -> None:
        self._ticking.set(self.dispatcher.tick(self._world.agenda.now))
        self._after()

    def _after(self, *, planned: bool = False) -> None:
        """Whatever just happened: changes are planned upon and written soon, messages go out."""
        world, now = self._world, self._world.agenda.now
        if self.store.version != self._seen:
            self._seen = self.store.version
            if not planned:
                self._stepping.set(now + world.rng.randrange(0, 20) * MILLISECOND)
            self._flushing.set(now + world.rng.randrange(1, world.weather.disk) * MILLISECOND)
        for session in self.dispatcher.take_ready():
            self._send(session)
        self._ticking.set(self.dispatcher.next_time())

    def _send(self, session: Session) -> None:
        connection = self._connections.get(session)
        messages = self.dispatcher.pending_messages(session)
        if connection is None:
            return
        for message in messages:
            connection.send_down(message)
        if session.closed:
            del self._connections[session]
            self._world.agenda.after(5 * MILLISECOND, lambda: connection.break_off("the manager closed the connection"))

    # nodes

    def received(self, connection: Connection, message: FromAgent) -> None:
        now = self._world.agenda.now
        if connection.session is not None:
            self.dispatcher.receive(connection.session, message, now)
        elif isinstance(message, Hello):
            self._greeted(connection, message, now)
        self._after()

    def _greeted(self, connection: Connection, hello: Hello, now: int) -> None:
        node = connection.node
        try:
            identity = Identity(node_id=node.id, role="swarm-worker", cluster_id=self.authority.cluster().id, serial=node.id)
            self.authority.admit(identity)
            session = connection.session = self.dispatcher.connect(node.id, hello, now, node.address)
            self._connections[session] = connection
        except Refused as error:
            self._world.say(f"{node.hostname} is refused: {error.message}")
            connection.send_down(Closing(reason=error.message, removed=error.removed))
            reason = error.message
            self._world.agenda.after(20 * MILLISECOND, lambda: connection.break_off(reason))

    def disconnected(self, connection: Connection) -> None:
        if self.alive and connection.session is not None:
            self._connections.pop(connection.session, None)
            self.dispatcher.disconnect(connection.session)
            self._after()
