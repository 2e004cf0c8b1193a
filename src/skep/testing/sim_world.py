"""A whole simulated cluster: one manager with a disk, nodes, what lies between them, and the weather. One seed, one story.

Everything that decides is the real thing (see sim_manager, sim_node); time is virtual, so that an hour takes no longer than what happens
in it. `Parts` names what may be exchanged: a test plants a bug there, and the rules (sim_rules) have to find it. See docs/simulation.md.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence

import msgspec

from skep.agent.session import Session as AgentSession
from skep.agent.worker import Worker
from skep.clock import MILLISECOND, SECOND
from skep.ids import new_id
from skep.link.memory import Fault
from skep.manager.control import bootstrap_cluster
from skep.manager.controllers import controllers
from skep.manager.dispatcher import Dispatcher
from skep.manager.loop import Controller
from skep.model.assignment import TaskItem
from skep.model.cluster import RootCA
from skep.model.enums import Membership, Role
from skep.model.node import Certificate, Node
from skep.model.spec import ClusterSpec, DispatcherConfig, NodeSpec, OrchestrationConfig
from skep.model.task import Task
from skep.plan.ops import Create
from skep.store.backends import MemoryBackend
from skep.store.memory import MemoryStore
from skep.testing.sim_manager import Connection, SimManager, SimStore
from skep.testing.sim_node import SimNode
from skep.testing.sim_rules import Rules, Violation
from skep.testing.virtual import START, Agenda, VirtualClock


class Parts(msgspec.Struct, frozen=True):
    """What a cluster is made of."""

    controllers: Callable[[], Sequence[Controller]] = controllers
    store: type[SimStore] = SimStore
    dispatcher: type[Dispatcher] = Dispatcher
    worker: type[Worker] = Worker
    session: type[AgentSession] = AgentSession


class Weather(msgspec.Struct, frozen=True, kw_only=True):
    """How bad things are just now. Probabilities per message or call; times are upper bounds."""

    delay: int = 3 * MILLISECOND
    lost: float = 0.0
    twice: float = 0.0
    disorder: bool = False
    """Messages of new connections may overtake each other."""
    error: float = 0.0
    """A call of the runtime fails."""
    hang: float = 0.0
    disk: int = 6
    """Milliseconds until a change is on the disk, exclusive."""


FAIR = Weather()


class World:
    """`story`: lines are kept there when it is a list (costs time; a failing seed is run again with it)."""

    def __init__(self, seed: int, parts: Parts = Parts(), story: list[str] | None = None) -> None:
        self.rng = random.Random(seed)
        self.parts = parts
        self.story = story
        self.agenda = Agenda()
        self.weather = FAIR
        self.healed = False
        """Images can all be pulled and run, nothing fails any more."""
        self.healed_at = 0
        self.rules = Rules(self)
        self.backend = MemoryBackend()
        self.nodes: dict[str, SimNode] = {}
        self.names: dict[str, str] = {}
        """Id -> what the story calls it."""
        self._count = 0
        self.hosts = 0
        self._bootstrap()
        self.manager: SimManager | None = SimManager(self, self.backend, self.manager_id)
        self.add_node(self.manager_id)

    def _bootstrap(self) -> None:
        rng = self.rng
        self.manager_id = new_id(rng)
        spec = ClusterSpec(
            orchestration=OrchestrationConfig(task_history_retention_limit=rng.choice((0, 1, 2, 5))),
            dispatcher=DispatcherConfig(heartbeat_period=rng.choice((2, 5, 5, 10)) * SECOND),
        )
        store = MemoryStore(self.backend, VirtualClock(self.agenda))
        store.apply(
            bootstrap_cluster(
                store,
                cluster_id=new_id(rng),
                node_id=self.manager_id,
                root_ca=RootCA(),
                rng=rng,
                spec=spec,
                certificate=self.certificate(self.manager_id),
                subnet_size=rng.choice((24, 27, 28)),
            )
        )
        store.flush()

    def certificate(self, node_id: str) -> Certificate:
        return Certificate(cn=node_id, serial=node_id, not_after=START + 90 * 86400 * SECOND)

    # what there is

    @property
    def home(self) -> SimNode:
        """The manager's own node."""
        return self.nodes[self.manager_id]

    def add_node(self, node_id: str) -> SimNode:
        number, self.hosts = self.hosts, self.hosts + 1
        hostname = f"worker{number:02}" if number else "manager"
        self.names[node_id] = hostname
        node = self.nodes[node_id] = SimNode(self, node_id, hostname, f"192.0.2.{number + 1}")
        return node

    def join(self) -> None:
        """A new host joins; nothing comes of it when the manager dies before that is durable."""
        manager = self.manager
        if manager is None:
            return
        node_id = new_id(self.rng)
        node = Node(
            id=node_id,
            spec=NodeSpec(role=Role.WORKER.value, availability="active"),
            membership=Membership.ACCEPTED,
            certificate=self.certificate(node_id),
        )
        manager.call(manager.store.commit([Create(node, "joined")], by="ca"), lambda _, error: None if error else self._joined(node_id))

    def _joined(self, node_id: str) -> None:
        node = self.add_node(node_id)
        self.say(f"{node.hostname} has joined")

    def forget_node(self, node_id: str) -> None:
        """A host that was removed from the cluster and has put everything away."""
        self.nodes.pop(node_id, None)

    # the manager

    def kill_manager(self) -> None:
        manager, self.manager = self.manager, None
        if manager is not None:
            manager.kill()

    def start_manager(self) -> None:
        if self.manager is None and self.home.up:
            self.manager = SimManager(self, self.backend, self.manager_id)

    # the network

    def reachable(self, node: SimNode) -> bool:
        return self.manager is not None and not node.cut_off

    def open(self, node: SimNode) -> Connection:
        assert self.manager is not None
        return Connection(self, node, self.manager)

    def fate(self, up: bool) -> Fault:
        """What happens to a message."""
        weather, rng = self.weather, self.rng
        copies = 1
        if weather.lost and rng.random() < weather.lost:
            copies = 0
        elif weather.twice and rng.random() < weather.twice:
            copies = 2
        return Fault(rng.randrange(100_000, weather.delay), copies)

    # what is seen

    def started(self, node_id: str, item: TaskItem) -> None:
        self.say(lambda: f"{self.name(node_id)}: container of {self.task(item.task.id)} runs")
        self.rules.started(node_id, item)

    def signalled(self, node_id: str, item: TaskItem) -> None:
        """A container that runs gets its stop signal."""
        self.say(lambda: f"{self.name(node_id)}: container of {self.task(item.task.id)} gets its stop signal")
        self.rules.signalled(node_id, item)

    def gone(self, task_id: str) -> bool:
        """The manager has forgotten it."""
        return self.manager is not None and self.manager.store.get(Task, task_id) is None

    def check_node(self, node: SimNode) -> None:
        self.rules.heard(node)

    def fail(self, text: str) -> None:
        raise Violation(text)

    # the story

    def say(self, text: str | Callable[[], str]) -> None:
        if self.story is None:
            return
        self._count += 1
        seconds = (self.agenda.now - START) / SECOND
        self.story.append(f"{self._count:5} {seconds:9.3f}  {text if isinstance(text, str) else text()}")

    def name(self, node_id: str) -> str:
        return self.names.get(node_id, node_id)

    def task(self, task_id: str) -> str:
        """`web.3 (k2j4)`: the end of an id is enough to tell tasks apart."""
        task = self.manager.store.get(Task, task_id) if self.manager is not None else None
        if task is not None:
            self.names[task_id] = f"{task.service_name}.{task.slot or self.name(task.node_id)} ({task_id[-4:]})"
        return self.names.get(task_id, task_id)

    def label(self, id: str) -> str:
        return self.names.get(id) or self.task(id)


class Logged(logging.Handler):
    """The loop goes on after a controller's exception; a simulation must not."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            raise Violation(logging.Formatter("%(message)s").format(record))
