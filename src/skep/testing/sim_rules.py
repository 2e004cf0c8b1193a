"""What must be true of a cluster whatever happens to it; after every transaction, after every round of decisions, of every node.

Written without the code that it judges: what a slot may hold, who holds an address, what a node has heard, is worked out anew from the
objects. `unsettled` says what is not yet as it was asked for.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, cast

from skep.clock import HOUR, SECOND
from skep.manager.loop import Loop
from skep.model.assignment import TaskItem
from skep.model.base import Object
from skep.model.cluster import Cluster
from skep.model.defaults import HEARTBEAT_GRACE
from skep.model.enums import NodeState, TaskState, UpdateState
from skep.model.network import Network
from skep.model.node import Node
from skep.model.service import Service
from skep.model.tables import TASK_BY_NODE, TASK_BY_SLOT, slot_key
from skep.model.task import Task
from skep.store.backends import MemoryBackend
from skep.store.base import Event
from skep.store.loads import Loads
from skep.store.memory import MemoryStore
from skep.testing.virtual import VirtualClock

if TYPE_CHECKING:
    from skep.testing.sim_manager import SimStore
    from skep.testing.sim_node import SimNode
    from skep.testing.sim_world import World

SLOW = 5 * SECOND
"""What bad weather and slow disks may add."""
WAITED = 60 * SECOND
"""How long a successor waits for what does not stop."""

Claim = tuple[Hashable, ...]


class Violation(BaseException):
    """A rule is broken. No Exception: the loop must not catch it."""


class Rules:
    def __init__(self, world: World) -> None:
        self._world = world
        self._holders: dict[Claim, str] = {}
        self._slots: dict[tuple[str, int, str], None] = {}
        self._touched: dict[str, None] = {}
        self._start_first: set[str] = set()
        self._acknowledged = 0
        self._promised: dict[str, str] = {}
        """Service id -> name, of those that a user was told to have, and has not asked to remove."""
        self._unwanted: set[str] = set()
        self._given: dict[str, str] = {}
        """Task -> the node it was given to."""

    # the store

    def loaded(self, store: SimStore) -> None:
        """A manager has read its disk: what was answered or sent is there, and nothing is held twice."""
        if store.version < self._acknowledged:
            raise Violation(f"version {self._acknowledged} was acknowledged, the disk has {store.version}")
        for id, name in self._promised.items():
            if store.get(Service, id) is None:
                raise Violation(f"a user was told that service {name} is there, and the disk does not have it")
        self._holders.clear()
        for kind in (Network, Node, Service, Task):
            for object in store.all(kind):
                self._claim(object)
        for service in store.all(Service):
            self._note_order(service)
        for task in store.all(Task):
            if task.node_id and task.status.state >= TaskState.ASSIGNED:
                self._given[task.id] = task.node_id
            else:
                self._given.pop(task.id, None)  # that it was given away was never written, so nobody was told
        for node in store.all(Node):
            self._check_load(store, node.id)

    def acknowledged(self, version: int) -> None:
        self._acknowledged = max(self._acknowledged, version)

    def created(self, service: Service) -> None:
        """A user was answered."""
        if service.id not in self._unwanted:
            self._promised[service.id] = service.name

    def removed(self, service_id: str) -> None:
        """A user asked for it; from now on it may be there or not."""
        self._unwanted.add(service_id)
        self._promised.pop(service_id, None)

    def transaction(self, store: SimStore, by: str, events: Sequence[Event]) -> None:
        for event in events:
            if event.old is not None:
                self._release(event.old)
        for event in events:
            if event.new is not None:
                self._claim(event.new)
            if event.kind is Task:
                self._task(store, cast("Task | None", event.old), cast("Task | None", event.new))
            elif event.kind is Service and event.new is not None:
                self._note_order(cast("Service", event.new))
        for event in events:
            if event.kind is Task and event.new is not None:
                self._let_go(store, cast("Task | None", event.old), cast("Task", event.new))

    def _note_order(self, service: Service) -> None:
        for spec in (service.spec, service.previous_spec):
            for config in (spec.update_config, spec.rollback_config) if spec else ():
                if config is not None and config.order == "start-first":
                    self._start_first.add(service.id)

    def _task(self, store: SimStore, old: Task | None, new: Task | None) -> None:
        task = new or old
        assert task is not None
        if task.service_id:
            self._slots[slot_key(task)] = None
        if task.node_id:
            self._touched[task.node_id] = None
        if new is None:
            return
        if old is not None:
            if new.status.state < old.status.state:
                raise Violation(f"{self._world.task(new.id)} goes back from {old.status.state.word} to {new.status.state.word}")
            if new.desired_state < old.desired_state:
                raise Violation(f"{self._world.task(new.id)} is desired {new.desired_state.word} after {old.desired_state.word}")
            if old.node_id not in ("", new.node_id):
                raise Violation(f"{self._world.task(new.id)} moves from one node to another")
            if old.running_at not in (0, new.running_at):
                raise Violation(f"{self._world.task(new.id)} begins to run a second time")
        if new.node_id and new.status.state >= TaskState.ASSIGNED:
            self._given.setdefault(new.id, new.node_id)
            if old is not None and old.status.state < TaskState.ASSIGNED:
                node = store.get(Node, new.node_id)
                if node is not None and (not node.ready or node.availability != "active"):
                    raise Violation(
                        f"{self._world.task(new.id)} is given to {node.hostname}, which is {node.status.state}, {node.availability}"
                    )

    def _let_go(self, store: SimStore, old: Task | None, task: Task) -> None:
        """A task may start when nothing in its slot has still to stop, or it has waited for a minute."""
        if (
            task.desired_state is not TaskState.RUNNING
            or (old is not None and old.desired_state is TaskState.RUNNING)
            or not task.service_id
        ):
            return
        for other in store.find(TASK_BY_SLOT, slot_key(task)):
            if other.id == task.id or not other.holds_resources or other.desired_state <= TaskState.RUNNING:
                continue
            node = store.get(Node, other.node_id)
            gone = node is None or node.status.state is NodeState.DOWN
            if not gone and self._world.agenda.now < task.created_at + WAITED:
                raise Violation(f"{self._world.task(task.id)} is let go while {self._world.task(other.id)} has not stopped")

    def stepped(self, store: SimStore) -> None:
        """After a round of decisions: one live task in a slot, or the old and the new one of a start-first update."""
        for key in self._slots:
            wanted = [t for t in store.find(TASK_BY_SLOT, key) if t.desired_state <= TaskState.RUNNING and not t.terminal]
            if len(wanted) < 2:
                continue
            pair = key[0] in self._start_first and len(wanted) == 2 and wanted[0].spec_version != wanted[1].spec_version
            if not pair:
                raise Violation(f"{len(wanted)} live tasks in one slot: {', '.join(self._world.task(task.id) for task in wanted)}")
        self._slots.clear()
        for node_id in self._touched:
            self._check_load(store, node_id)
        self._touched.clear()

    def _check_load(self, store: SimStore, node_id: str) -> None:
        fresh = Loads()
        for task in store.find(TASK_BY_NODE, node_id):
            fresh.change(None, task)
        if fresh.of(node_id) != store.load(node_id):
            raise Violation(f"the load of {self._world.name(node_id)} is {fresh.of(node_id)}, the store says {store.load(node_id)}")
        node = self._world.nodes.get(node_id)
        if node is not None and store.load(node_id).nano_cpus > node.most_cpus * 10**9:
            raise Violation(f"{node.hostname} is given tasks that reserve more CPUs than it has")

    # what can be held once only

    def _claim(self, object: Object) -> None:
        for claim in claims(object):
            other = self._holders.setdefault(claim, object.id)
            if other != object.id:
                raise Violation(f"{claim} is held by {self._world.label(other)} and by {self._world.label(object.id)}")

    def _release(self, object: Object) -> None:
        for claim in claims(object):
            if self._holders.get(claim) == object.id:
                del self._holders[claim]

    # the nodes

    def heard(self, node: SimNode) -> None:
        """A node knows nothing that a crash of the manager could undo."""
        if node.worker.version > self._world.backend.version:
            raise Violation(f"{node.hostname} has heard of version {node.worker.version}, the disk has {self._world.backend.version}")

    def noticed(self) -> None:
        """A node that has been away for longer than its grace is down, and its tasks are not counted upon."""
        manager, now = self._world.manager, self._world.agenda.now
        if manager is None:
            return
        period = next(iter(manager.store.all(Cluster))).spec.dispatcher.heartbeat_period
        grace = int(HEARTBEAT_GRACE * 1.1 * period) + SLOW
        for node in self._world.nodes.values():
            object = manager.store.get(Node, node.id)
            if (
                object is None
                or object.description is None
                or not node.away_since
                or now < node.away_since + grace
                or now < manager.born + 2 * grace
            ):
                continue
            if object.status.state is not NodeState.DOWN:
                raise Violation(f"{node.hostname} has been away for {(now - node.away_since) / SECOND:.0f} s and is {object.status.state}")
            for task in manager.store.find(TASK_BY_NODE, node.id):
                late = now - max(object.status.since, task.created_at) > SLOW
                if late and task.slot and task.desired_state <= TaskState.RUNNING and not task.terminal:
                    raise Violation(f"{self._world.task(task.id)} is meant to run on {node.hostname}, which is down")

    def started(self, node_id: str, item: TaskItem) -> None:
        if item.task.node_id != node_id or self._given.get(item.task.id) != node_id:
            raise Violation(f"{self._world.name(node_id)} runs {self._world.task(item.task.id)}, which is not its own")

    # the end

    def unsettled(self) -> str:
        """What is not yet as it is to be; empty = everything is. Cheap questions first."""
        world, manager = self._world, self._world.manager
        if manager is None:
            return "there is no manager"
        store = manager.store
        if store.durable_version != store.version:
            return "something is not on disk"
        for node in world.nodes.values():
            if node.session is None or not node.session.welcomed:
                return f"{node.hostname} has no session"
        for object in store.all(Node):
            if not object.ready and object.id in world.nodes:
                return f"{object.hostname} is {object.status.state}"
        return (
            self._unsettled_tasks(store)
            or self._unsettled_services(store)
            or self._unsettled_nodes(store)
            or self._undecided()
            or self._leaks(store)
        )

    def _unsettled_tasks(self, store: SimStore) -> str:
        for task in store.all(Task):
            wanted, state = task.desired_state <= TaskState.RUNNING, task.status.state
            if wanted and state is TaskState.PENDING and task.desired_state is TaskState.RUNNING:
                if not task.status.err:
                    return f"{self._world.task(task.id)} is pending without a word"
                if (node := self._free_node(store, task)) is not None:
                    return f"{self._world.task(task.id)} is pending ({task.status.err}), and {node.hostname} would suit it"
            elif wanted and state is TaskState.NEW and self._full(store, task):
                continue
            elif wanted and (state is not TaskState.RUNNING or task.desired_state is not TaskState.RUNNING):
                return f"{self._world.task(task.id)} is {state.word} ({task.status.err}), desired {task.desired_state.word}"
            elif not wanted and TaskState.ASSIGNED <= state <= TaskState.RUNNING:
                return f"{self._world.task(task.id)} is {state.word}, and was told to stop"
            elif task.desired_state is TaskState.REMOVE:
                return f"{self._world.task(task.id)} is {state.word}, and was to be removed"
            node = store.get(Node, task.node_id) if wanted and task.node_id else None
            if node is not None and node.availability == "drain":
                return f"{self._world.task(task.id)} is on {node.hostname}, which is drained"
        return ""

    def _full(self, store: SimStore, task: Task) -> bool:
        """Its error says that there are no addresses left, and in one of its networks there are none."""
        if "available IP" not in task.status.err:
            return False
        for network in store.all(Network):
            if network.name in task.status.err:
                size = 1 << 32 - int(network.ipam[0].subnet.partition("/")[2])
                return sum(claim[:2] == ("address", network.id) for claim in self._holders) >= size - 2
        return False

    def _free_node(self, store: SimStore, task: Task) -> Node | None:
        """A node that takes any task like this one, for those constraints that simulations use."""
        placement, resources = task.spec.placement, task.spec.resources
        reserved = resources.reservations.nano_cpus if resources and resources.reservations else 0
        ports = [(p.protocol, p.published_port) for p in (task.endpoint.ports if task.endpoint else None) or () if p.publish_mode == "host"]
        for node in store.all(Node):
            if not node.ready or node.availability != "active" or node.description is None or (not task.slot and node.id != task.node_id):
                continue
            load = store.load(node.id)
            if load.nano_cpus + reserved > node.description.resources.nano_cpus or any(load.host_ports.get(port) for port in ports):
                continue
            if placement is not None and placement.max_replicas and load.by_service.get(task.service_id, 0) >= placement.max_replicas:
                continue
            if all(_met(constraint, node) for constraint in (placement.constraints if placement else None) or ()):
                return node
        return None

    def _unsettled_services(self, store: SimStore) -> str:
        limits = [cluster.spec.orchestration.task_history_retention_limit for cluster in store.all(Cluster)]
        slots: dict[str, dict[tuple[str, int, str], list[Task]]] = {}
        for task in store.all(Task):
            slots.setdefault(task.service_id, {}).setdefault(slot_key(task), []).append(task)
        for service in store.all(Service):
            pending = False
            here = slots.get(service.id, {})
            filled = 0
            status = service.update_status
            updating = status is not None and status.state in (UpdateState.UPDATING, UpdateState.ROLLBACK_STARTED)
            for tasks in here.values():
                wanted = [task for task in tasks if task.desired_state <= TaskState.RUNNING]
                pending = pending or any(task.status.state < TaskState.RUNNING for task in wanted)
                filled += bool(wanted) or _final(tasks[-1])
                most = max(limits[0] or 0, 1) + 1
                if not updating and not _attempts(service) and len(tasks) > most:
                    return f"{len(tasks)} tasks are kept of {self._world.task(tasks[-1].id)}"
            mode = service.spec.mode.replicated
            if mode is not None and filled != (1 if mode.replicas is None else mode.replicas):
                return f"{service.name} has {filled} slots, {mode.replicas} were asked for"
            if mode is None and (missing := self._without_global(store, service, here)):
                return f"{service.name} has no task on {missing}"
            if status is not None and updating and not pending:
                return f"{service.name}: {status.message} ({status.state})"
        return ""

    def _without_global(self, store: SimStore, service: Service, slots: dict[tuple[str, int, str], list[Task]]) -> str:
        placement = service.spec.task_template.placement
        for node in store.all(Node):
            if not node.ready or node.availability != "active":
                continue
            if not all(_met(constraint, node) for constraint in (placement.constraints if placement else None) or ()):
                continue
            tasks = slots.get((service.id, 0, node.id), [])
            if not any(task.desired_state <= TaskState.RUNNING for task in tasks) and not (tasks and _final(tasks[-1])):
                return node.hostname
        return ""

    def _unsettled_nodes(self, store: SimStore) -> str:
        for node in self._world.nodes.values():
            meant = {
                t.id
                for t in store.find(TASK_BY_NODE, node.id)
                if t.desired_state is TaskState.RUNNING and t.status.state is TaskState.RUNNING
            }
            if node.runtime.running != meant:
                extra = [self._world.task(id) for id in sorted(node.runtime.running - meant)]
                missing = [self._world.task(id) for id in sorted(meant - node.runtime.running)]
                return f"{node.hostname} runs {extra or 'nothing'} too many and {missing or 'nothing'} too few"
            left = [id for id in node.runtime.containers if store.get(Task, id) is None]
            if left:
                return f"{node.hostname} keeps containers of tasks that are gone: {[self._world.task(id) for id in left]}"
        return ""

    def _undecided(self) -> str:
        """A new leader would leave everything as it is."""
        copy = MemoryBackend()
        copy.rows, copy.version = dict(self._world.backend.rows), self._world.backend.version
        store = MemoryStore(copy, VirtualClock(self._world.agenda))
        now = self._world.agenda.now
        loop = Loop(store, VirtualClock(self._world.agenda), random.Random(0), self._world.parts.controllers())
        again = loop.step(now)
        if loop.decisions:
            first = loop.decisions[0]
            return f"a new leader would {first.action} {first.kind} {self._world.label(first.id)}: {first.because}"
        if again is not None and again < now + HOUR:
            return f"a new leader would look again in {(again - now) / SECOND:.1f} s"
        return ""

    def _leaks(self, store: SimStore) -> str:
        """What is held is held by what is there: nothing else, and nothing is forgotten."""
        fresh: set[Claim] = set()
        for kind in (Network, Node, Service, Task):
            for object in store.all(kind):
                fresh |= claims(object)
        if fresh != self._holders.keys():
            return f"held: {sorted(map(str, fresh ^ self._holders.keys()))[:5]}"
        for node_id, load in store.loads().items():
            if store.get(Node, node_id) is None and (load.tasks or load.nano_cpus or load.host_ports):
                return f"node {node_id} is gone and still has a load"
        return ""

    def unemptied(self) -> str:
        """After the last service is removed: what is left of any. Empty = nothing."""
        world, manager = self._world, self._world.manager
        if problem := self.unsettled():
            return problem
        assert manager is not None
        if tasks := list(manager.store.all(Task)):
            return f"{world.task(tasks[0].id)} is still there"
        for node in world.nodes.values():
            if node.runtime.containers:
                return f"{node.hostname} still has {len(node.runtime.containers)} containers"
            if not node.worker.empty or node.state.statuses or any(key.startswith("task/") for key in node.state.items):
                return f"{node.hostname} still remembers tasks"
        return ""


def claims(object: Object) -> set[Claim]:
    """What this object holds that nobody else may."""
    found: set[Claim] = set()
    if isinstance(object, Task):
        if TaskState.PENDING <= object.status.state <= TaskState.RUNNING:
            found = {("address", a.network_id, _bare(address)) for a in object.attachments for address in a.addresses}
        if object.holds_resources and object.endpoint is not None:
            ports = [port for port in object.endpoint.ports or () if port.publish_mode == "host" and port.published_port]
            found |= {("host port", object.node_id, port.protocol, port.published_port) for port in ports}
    elif isinstance(object, Service):
        if object.endpoint is not None:
            found = {("address", vip.network_id, _bare(vip.address)) for vip in object.endpoint.vips}
            ports = [port for port in object.endpoint.ports if port.publish_mode != "host" and port.published_port]
            found |= {("port", port.protocol, port.published_port) for port in ports}
    elif isinstance(object, Node):
        found = {("address", a.network_id, _bare(a.address)) for a in object.attachments}
        found |= {("index", object.index)} if object.index else set()
    elif isinstance(object, Network):
        found = {("address", object.id, config.gateway) for config in object.ipam if config.gateway}
        found |= {("subnet", config.subnet) for config in object.ipam}
        found |= {("vni", object.vni)} if object.vni else set()
    return found


def _bare(address: str) -> str:
    return address.partition("/")[0]


def _met(constraint: str, node: Node) -> bool:
    """`node.labels.KEY==VALUE`, the only form in simulations."""
    key, _, value = constraint.partition("==")
    return node.spec.labels.get(key.removeprefix("node.labels.")) == value


def _attempts(service: Service) -> int:
    """With limited attempts all of a slot's tasks are kept."""
    policy = service.spec.task_template.restart_policy
    return (policy.max_attempts or 0) if policy else 0


def _final(task: Task) -> bool:
    """Over, and by its own policy the last of its slot. A global task that was only stopped with its node is not."""
    policy = task.spec.restart_policy
    if policy is None or task.desired_state is not TaskState.SHUTDOWN:
        return False
    if policy.condition == "none" or (policy.condition == "on-failure" and task.status.state is TaskState.COMPLETE):
        return True
    if not task.slot and task.status.state not in (TaskState.COMPLETE, TaskState.FAILED, TaskState.REJECTED):
        return False
    return bool(policy.max_attempts) and (bool(policy.window) or task.attempts >= (policy.max_attempts or 0))
