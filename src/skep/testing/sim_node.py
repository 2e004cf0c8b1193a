"""A simulated node: the real worker and session of the agent over containers and a network that exist in memory only.

What survives what is modelled as on a host. A killed skepd leaves its containers running, with their exits noted; a power cut ends them all
and may lose the end of the agent's journal. Calls of the runtime take their time, fail, hang, and race with their cancellation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from skep.agent.session import Session
from skep.agent.state import MemoryState
from skep.agent.worker import Apply, Cancel, Do, Instruction
from skep.clock import MILLISECOND, SECOND
from skep.link.messages import FromAgent, FromManager
from skep.model.assignment import Item, TaskItem
from skep.model.node import EngineDescription, NodeDescription, Resources
from skep.model.spec import Platform
from skep.model.task import ContainerStatus, TaskStatus
from skep.plan.workload import Call, Ended
from skep.testing.virtual import Alarm

if TYPE_CHECKING:
    from skep.testing.sim_manager import Connection
    from skep.testing.sim_world import World

T = TypeVar("T")

BAD = "bad"
"""An image with this in its name can never be pulled."""
CRASHING = "crash"
"""One with this runs for a moment and exits with 1."""
JOURNAL = 6
"""Puts that a power cut may undo."""
NEVER = 3600 * SECOND
GB = 1 << 30


class Journal(MemoryState):
    """The agent's memory, of which a power cut may lose the end."""

    def __init__(self) -> None:
        super().__init__()
        self._undo: list[Callable[[], None]] = []

    def put_item(self, key: str, item: Item | None) -> None:
        self._note(self.items, key)
        super().put_item(key, item)

    def put_status(self, task_id: str, status: TaskStatus | None) -> None:
        self._note(self.statuses, task_id)
        super().put_status(task_id, status)

    def lose(self, count: int) -> None:
        for _ in range(min(count, len(self._undo))):
            self._undo.pop()()
        self._undo.clear()

    def _note(self, table: dict[str, T], key: str) -> None:
        old, version = table.get(key), self.version

        def undo() -> None:
            self.version = version
            if old is None:
                table.pop(key, None)
            else:
                table[key] = old

        self._undo.append(undo)
        del self._undo[:-JOURNAL]


class Container:
    __slots__ = ("code", "item", "known", "state")

    def __init__(self, item: TaskItem) -> None:
        self.item = item
        self.state = "created"
        """created, running or exited."""
        self.code = 0
        self.known = True

    @property
    def image(self) -> str:
        container = self.item.task.spec.container_spec
        return container.image if container else ""


class _Running:
    """A call under way. One that was let go (skepd died) tells nobody how it ended."""

    __slots__ = ("call", "cancelled", "done", "item")

    def __init__(self, call: Call, item: TaskItem) -> None:
        self.call = call
        self.item = item
        self.cancelled = False
        self.done = False


class Runtime:
    """`skep.node.base.Tasks`, turned inside out: `do` begins a call, `on_end` hears of its end."""

    def __init__(self, world: World, node_id: str, on_end: Callable[[str, Call, Ended], None]) -> None:
        self._world = world
        self._node_id = node_id
        self._on_end = on_end
        self.containers: dict[str, Container] = {}
        self._calls: dict[str, _Running] = {}

    def known(self) -> list[str]:
        return list(self.containers)

    def status(self, task_id: str) -> TaskStatus | None:
        found = self.containers.get(task_id)
        if found is None:
            return None
        pid = 4711 if found.state == "running" else 0
        container = ContainerStatus(container_id=task_id.ljust(64, "0"), pid=pid, exit_code=found.code, exit_known=found.known)
        return TaskStatus(container=container)

    @property
    def running(self) -> set[str]:
        return {id for id, container in self.containers.items() if container.state == "running"}

    def do(self, task_id: str, call: Call, item: TaskItem) -> None:
        if task_id in self._calls:
            self._world.fail(
                f"{call} of task {task_id} while {self._calls[task_id].call} is under way on {self._world.name(self._node_id)}"
            )
        self._calls[task_id] = running = _Running(call, item)
        if call is Call.WAIT:
            self._wait(task_id, running)
            return
        weather, rng = self._world.weather, self._world.rng
        hangs = rng.random() < weather.hang and call in (Call.PREPARE, Call.START, Call.SHUTDOWN)
        usual = {Call.PREPARE: 400, Call.START: 150, Call.SHUTDOWN: 800, Call.REMOVE: 30}[call]
        delay = (rng.randrange(20, 90) * SECOND) if hangs else rng.randrange(1, usual) * MILLISECOND
        error = self._error(call, item)
        self._world.agenda.after(delay, lambda: self._end(task_id, running, error))

    def _error(self, call: Call, item: TaskItem) -> str:
        image = item.task.spec.container_spec.image if item.task.spec.container_spec else ""
        if self._world.healed:
            return ""
        if call is Call.PREPARE and BAD in image:
            return f"No such image: {image}: manifest for {image} not found: manifest unknown: manifest unknown"
        if self._world.rng.random() < self._world.weather.error:
            return f"{call} failed by order"
        return ""

    def _wait(self, task_id: str, running: _Running) -> None:
        """Ends when the container does."""
        found = self.containers.get(task_id)
        if found is None or found.state == "created":
            self._world.agenda.after(MILLISECOND, lambda: self._end(task_id, running, f"No such container: {running.item.task.name}"))
        elif found.state == "exited":
            self._world.agenda.after(MILLISECOND, lambda: self._end(task_id, running, ""))

    def cancel(self, task_id: str) -> None:
        """What the call would have done may be done all the same."""
        running = self._calls.get(task_id)
        if running is None or running.cancelled:
            return
        running.cancelled = True
        effect = self._world.rng.random() < 0.3
        self._world.agenda.after(self._world.rng.randrange(0, 20) * MILLISECOND, lambda: self._cancelled(task_id, running, effect))

    def _cancelled(self, task_id: str, running: _Running, effect: bool) -> None:
        if running.done:
            return
        running.done = True
        if effect and running.call is not Call.WAIT:
            self._effect(task_id, running)
        self._tell(task_id, running, Ended(cancelled=True))

    def _end(self, task_id: str, running: _Running, error: str) -> None:
        if running.done:
            return
        running.done = True
        if not error:
            error = self._effect(task_id, running)
        found = self.containers.get(task_id)
        if error or running.call is not Call.WAIT or found is None:
            self._tell(task_id, running, Ended(error=error))
        else:
            self._tell(task_id, running, Ended(code=found.code, known=found.known))

    def _effect(self, task_id: str, running: _Running) -> str:
        found = self.containers.get(task_id)
        if running.call is Call.PREPARE:
            self.containers.setdefault(task_id, Container(running.item))
        elif running.call is Call.START:
            if found is None:
                return f"No such container: {running.item.task.name}"
            if found.state == "created":
                found.state = "running"
                self._world.started(self._node_id, found.item)
                if CRASHING in found.image and not self._world.healed:
                    self._world.agenda.after(self._world.rng.randrange(1, 3000) * MILLISECOND, lambda: self.exit(task_id, 1))
        elif running.call is Call.SHUTDOWN:
            self.exit(task_id, 143)
        elif running.call is Call.REMOVE:
            self.exit(task_id, 137)
            self.containers.pop(task_id, None)
        return ""

    def _tell(self, task_id: str, running: _Running, ended: Ended) -> None:
        if self._calls.get(task_id) is running:
            del self._calls[task_id]
            self._on_end(task_id, running.call, ended)

    def exit(self, task_id: str, code: int, *, known: bool = True) -> None:
        """Its container ends now, if it runs."""
        found = self.containers.get(task_id)
        if found is None or found.state != "running":
            return
        found.state, found.code, found.known = "exited", code, known
        self._world.say(lambda: f"{self._world.name(self._node_id)}: container of {self._world.task(task_id)} exits with {code}")
        running = self._calls.get(task_id)
        if running is not None and running.call is Call.WAIT and not running.done:
            self._world.agenda.after(MILLISECOND, lambda: self._end(task_id, running, ""))

    def let_go(self) -> None:
        """skepd is gone: calls under way end without anybody, done or not."""
        for task_id, running in list(self._calls.items()):
            if not running.done and running.call is not Call.WAIT and self._world.rng.random() < 0.5:
                self._effect(task_id, running)
            running.done = True
        self._calls.clear()

    def power_cut(self) -> None:
        self.let_go()
        for task_id in list(self.containers):
            self.exit(task_id, 0, known=False)


class SimNode:
    """One host with its skepd. `up`: it has power; `worker` is None while no skepd runs."""

    def __init__(self, world: World, node_id: str, hostname: str, address: str) -> None:
        self._world = world
        self.id = node_id
        self.hostname = hostname
        self.address = address
        self.up = True
        self.cut_off = False
        """No message reaches the manager or comes from it."""
        self.away_since = 0
        """When the manager last had to do without it; 0 = it is there."""
        self.most_cpus = 4
        self.state = Journal()
        self.runtime = Runtime(world, node_id, self._ended)
        self.connection: Connection | None = None
        self._alarm = Alarm(world.agenda, self.pump)
        self._life = 0
        """Counts starts of skepd: what was planned for an earlier one does not happen."""
        self._connecting = False
        self.session: Session | None = None
        self.start()

    @property
    def alive(self) -> bool:
        return self.session is not None

    def start(self) -> None:
        """skepd starts: the state file is read, containers that are there are taken over."""
        now, parts = self._world.agenda.now, self._world.parts
        self._life += 1
        self.worker = parts.worker(self.state, now, self.runtime.known())
        self.session = parts.session(self.worker, self._describe, self._world.rng, now, address=self.address)
        self._connecting = False
        self.mark()
        self.pump()

    def kill(self) -> None:
        """kill -9 of skepd."""
        self.session = None
        self._life += 1
        self.runtime.let_go()
        self._drop("")
        self.mark()

    def mark(self) -> None:
        """It has become, or ceased to be, within the manager's reach."""
        if self.alive and not self.cut_off:
            self.away_since = 0
        else:
            self.away_since = self.away_since or self._world.agenda.now

    def power_cut(self) -> None:
        if self.session is not None:
            self.kill()
        self.up = False
        self.runtime.power_cut()
        if self._world.rng.random() < 0.5:
            self.state.lose(self._world.rng.randrange(1, JOURNAL + 1))

    def _describe(self) -> NodeDescription:
        return NodeDescription(
            hostname=self.hostname,
            platform=Platform(architecture="x86_64", os="linux"),
            resources=Resources(nano_cpus=self.most_cpus * 10**9, memory_bytes=8 * GB),
            engine=EngineDescription(engine_version="sim"),
        )

    # the agent's turn (skep.agent.agent.Agent, without its tasks)

    def pump(self) -> None:
        session, now = self.session, self._world.agenda.now
        if session is None:
            return
        due = self.worker.tick(now)
        if session.connect_at is not None and now >= session.connect_at and not self._connecting and self.connection is None:
            self._connect(session)
        self._send(session.tick(now))
        session.logs.clear()
        if session.broken:
            self._drop(session.broken)
        if session.removed:
            self.worker.withdraw_all(now)
        for instruction in self.worker.take():
            self._begin(instruction)
        self._alarm.set(due)
        self._alarm.set(session.next_time())
        self._world.check_node(self)
        if session.removed and self.worker.empty:
            self._leave()

    def _leave(self) -> None:
        """It was removed from the cluster, and has put everything away."""
        if self.runtime.containers:
            self._world.fail(f"{self.hostname} has left the cluster with containers of {sorted(self.runtime.containers)}")
        self.session = None
        self._life += 1
        self._drop("")
        self._world.forget_node(self.id)

    def _begin(self, instruction: Instruction) -> None:
        match instruction:
            case Do():
                self.runtime.do(instruction.task_id, instruction.call, instruction.item)
            case Cancel():
                self.runtime.cancel(instruction.task_id)
            case Apply():
                life, version = self._life, instruction.snapshot.version
                error = "the network cannot be changed, by order" if self._world.rng.random() < self._world.weather.error else ""
                delay = self._world.rng.randrange(1, 40) * MILLISECOND
                self._world.agenda.after(delay, lambda: self._applied(life, version, error))

    def _applied(self, life: int, version: int, error: str) -> None:
        if life == self._life and self.session is not None:
            self.worker.network_applied(version, error, self._world.agenda.now)
            self.pump()

    def _ended(self, task_id: str, call: Call, ended: Ended) -> None:
        if self.session is not None:
            self.worker.finished(task_id, call, ended, self.runtime.status(task_id), self._world.agenda.now)
            self.pump()

    # the connection

    def _connect(self, session: Session) -> None:
        session.connecting()
        self._connecting = True
        life = self._life
        reached = self._world.reachable(self)
        delay = self._world.rng.randrange(1, 10) * MILLISECOND if reached or not self.cut_off else 10 * SECOND
        self._world.agenda.after(delay, lambda: self._connected(life))

    def _connected(self, life: int) -> None:
        session = self.session
        if life != self._life or session is None:
            return
        self._connecting = False
        now = self._world.agenda.now
        if not self._world.reachable(self):
            session.lost(now, "no manager answers")
        else:
            self.connection = self._world.open(self)
            self._send(session.connected(now))
        self.pump()

    def _send(self, messages: list[FromAgent]) -> None:
        if self.connection is not None:
            for message in messages:
                self.connection.send_up(message)

    def received(self, connection: Connection, message: FromManager) -> None:
        session = self.session
        if session is None or connection is not self.connection:
            return
        self._send(session.received(message, self._world.agenda.now))
        self.pump()

    def disconnected(self, connection: Connection, reason: str = "") -> None:
        """The other side's end, or the network, broke it off."""
        if connection is self.connection:
            self._drop(reason)
            self.pump()

    def _drop(self, reason: str) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.hang_up()
            if self.session is not None:
                self.session.lost(self._world.agenda.now, reason)
