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
from skep.datapath.base import Snapshot
from skep.link.messages import Assignments, FromAgent, FromManager, Welcome
from skep.model.assignment import Item
from skep.model.enums import NodeState
from skep.model.node import EngineDescription, Node, NodeDescription, Resources
from skep.model.spec import Platform
from skep.model.task import TaskStatus
from skep.plan.workload import Call, Ended
from skep.testing.sim_runtime import Runtime
from skep.testing.virtual import Alarm

if TYPE_CHECKING:
    from skep.testing.sim_manager import Connection
    from skep.testing.sim_world import World

T = TypeVar("T")

JOURNAL = 6
"""Puts that a power cut may undo."""
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
        self.applied: Snapshot | None = None
        """What the kernel has of the cluster's network; it outlives skepd."""
        self.welcomed_at = 0
        self._alarm = Alarm(world.agenda, self.pump)
        self._life = 0
        """Counts starts of skepd: what was planned for an earlier one does not happen."""
        self._connecting = False
        self.session: Session | None = None
        self.start()

    @property
    def alive(self) -> bool:
        return self.session is not None

    def there(self, since: int) -> bool:
        """It has had a session without a break."""
        session, manager = self.session, self._world.manager
        if session is None or not session.welcomed or self.connection is None or self.cut_off or self.welcomed_at >= since:
            return False
        node = manager.store.get(Node, self.id) if manager is not None else None
        return node is not None and node.ready

    def expected(self, since: int) -> bool:
        """The manager is new, and has not heard of it: not then, and not yet."""
        manager = self._world.manager
        node = manager.store.get(Node, self.id) if manager is not None else None
        return node is not None and node.status.state is NodeState.UNKNOWN and node.status.since <= since

    def sends_to(self, task_id: str, network_id: str) -> bool:
        """Its kernel has the task among those that serve, and somebody is here who could ask: from outside, or a container."""
        if self.applied is None:
            return False
        endpoint = self.applied.endpoints.get(f"endpoint/{task_id}/{network_id}")
        network = self.applied.networks.get(f"network/{network_id}")
        if endpoint is None or not endpoint.serving or network is None:
            return False
        return network.network.spec.ingress or network_id in self.runtime.networks

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
        self.applied = None
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
        for answer in session.answers:
            self.runtime.plain.answered(answer)
        session.answers.clear()
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
                life, snapshot = self._life, instruction.snapshot
                error = "the network cannot be changed, by order" if self._world.rng.random() < self._world.weather.error else ""
                delay = self._world.rng.randrange(1, 40) * MILLISECOND
                self._world.agenda.after(delay, lambda: self._applied(life, snapshot, error))

    def _applied(self, life: int, snapshot: Snapshot, error: str) -> None:
        if life == self._life and self.session is not None:
            self.applied = self.applied if error else snapshot
            self.worker.network_applied(snapshot.version, error, self._world.agenda.now)
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
        if isinstance(message, Welcome):
            self.welcomed_at = self._world.agenda.now
        elif isinstance(message, Assignments):
            self._world.rules.told(self, message)
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
