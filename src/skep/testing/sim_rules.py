"""What must be true of a cluster whatever happens to it; after every transaction, after every round of decisions, of every node.

Written without the code that it judges: what a slot may hold, who holds an address, what a node has heard, is worked out anew from the
objects. `skep.testing.sim_settled` says what has to be true when all trouble is over.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, cast

from skep.clock import SECOND
from skep.link.messages import Assignments
from skep.model.assignment import TaskItem
from skep.model.base import Object
from skep.model.cluster import Cluster
from skep.model.defaults import HEARTBEAT_GRACE
from skep.model.enums import NodeState, TaskState
from skep.model.network import Network
from skep.model.node import Node
from skep.model.service import Service
from skep.model.tables import TASK_BY_NODE, TASK_BY_SLOT, slot_key
from skep.model.task import Task
from skep.store.base import Event
from skep.store.loads import Loads
from skep.testing.sim_wishes import DRAINS

if TYPE_CHECKING:
    from skep.testing.sim_manager import SimStore
    from skep.testing.sim_node import SimNode
    from skep.testing.sim_world import World

SLOW = 5 * SECOND
"""What bad weather and slow disks may add."""
WAITED = 60 * SECOND
"""How long a successor waits for what does not stop."""

LEFT_WITHIN = 2 * SECOND
"""How long a task that is to stop waits for those that do not answer."""
BACK_WITHIN = 10 * SECOND
"""How long it waits, from when its own node is back, for those that are not back yet."""
CALM = 60 * SECOND
"""After the end of all trouble nobody keeps anybody waiting."""

Claim = tuple[Hashable, ...]


class Violation(BaseException):
    """A rule is broken. No Exception: the loop must not catch it."""


class Rules:
    def __init__(self, world: World) -> None:
        self._world = world
        self.holders: dict[Claim, str] = {}
        self._slots: dict[tuple[str, int, str], None] = {}
        self._touched: dict[str, None] = {}
        self._start_first: set[str] = set()
        self._acknowledged = 0
        self._promised: dict[str, tuple[type[Object], str]] = {}
        """Services and networks that a user was told to have, and has not asked to remove."""
        self._unwanted: set[str] = set()
        self._given: dict[str, str] = {}
        """Task -> the node it was given to."""
        self._told: dict[str, int] = {}
        """Task -> when its node heard that it is to stop."""

    # the store

    def loaded(self, store: SimStore) -> None:
        """A manager has read its disk: what was answered or sent is there, and nothing is held twice."""
        if store.version < self._acknowledged:
            raise Violation(f"version {self._acknowledged} was acknowledged, the disk has {store.version}")
        for id, (kind, name) in self._promised.items():
            if store.get(kind, id) is None:
                raise Violation(f"a user was told that {kind.__name__.lower()} {name} is there, and the disk does not have it")
        self.holders.clear()
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

    def created(self, made: Service | Network) -> None:
        """A user was answered."""
        if made.id not in self._unwanted:
            self._promised[made.id] = (type(made), made.name)

    def removed(self, id: str) -> None:
        """A user asked for it; from now on it may be there or not."""
        self._unwanted.add(id)
        self._promised.pop(id, None)

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
        self._one_in_a_slot(store)

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
                if node is not None and new.service_id and (not node.ready or node.availability != "active"):
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

    def _one_in_a_slot(self, store: SimStore) -> None:
        """After every transaction: one live task in a slot, or the old and the new one of a start-first update."""
        for key in self._slots:
            wanted = [t for t in store.find(TASK_BY_SLOT, key) if t.desired_state <= TaskState.RUNNING and not t.terminal]
            if len(wanted) < 2:
                continue
            pair = key[0] in self._start_first and len(wanted) == 2 and wanted[0].spec_version != wanted[1].spec_version
            if not pair:
                raise Violation(f"{len(wanted)} live tasks in one slot: {', '.join(self._world.task(task.id) for task in wanted)}")
        self._slots.clear()

    def stepped(self, store: SimStore) -> None:
        """After a round of decisions: the loads that the store keeps are right."""
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
            other = self.holders.setdefault(claim, object.id)
            if other != object.id:
                raise Violation(f"{claim} is held by {self._world.label(other)} and by {self._world.label(object.id)}")

    def _release(self, object: Object) -> None:
        for claim in claims(object):
            if self.holders.get(claim) == object.id:
                del self.holders[claim]

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

    # leaving before dying

    def told(self, node: SimNode, message: Assignments) -> None:
        for item in message.set:
            if isinstance(item, TaskItem) and item.task.desired_state > TaskState.COMPLETE:
                self._told.setdefault(item.task.id, self._world.agenda.now)

    def signalled(self, node_id: str, item: TaskItem) -> None:
        """A running container that was told to stop gets its signal: no node that is there may be sending to it, and its time to drain is
        over; and in fair weather nobody is waited for in vain."""
        world, task, node = self._world, item.task, self._world.nodes.get(node_id)
        told, now = self._told.get(task.id, 0), self._world.agenda.now
        if not told or task.desired_state <= TaskState.COMPLETE or node is None or node.session is None or node.session.removed:
            return
        status = node.worker.status(task.id)
        places = {place.network_id for place in task.attachments if place.addresses}
        if not places or status is None or status.state is not TaskState.RUNNING or world.gone(task.id):
            return
        drain = DRAINS[item.service_labels.get("skep.drain", "")]
        if now < told + drain:
            raise Violation(f"{world.task(task.id)} is stopped {(now - told) / SECOND:.3f} s after it was told, and has {drain / SECOND} s")
        if world.healed_at and told > world.healed_at + CALM and now > told + drain + SECOND:
            raise Violation(f"{world.task(task.id)} is stopped in vain {(now - told) / SECOND:.1f} s after it was told")
        answering, awaited = now < told + drain + LEFT_WITHIN, now < min(node.welcomed_at, told + LEFT_WITHIN) + drain + BACK_WITHIN
        for other in world.nodes.values():
            if not (answering and other.there(told)) and not (awaited and other.expected(node.welcomed_at)):
                continue
            for place in sorted(places):
                if other.sends_to(task.id, place):
                    raise Violation(f"{world.task(task.id)} is stopped while {other.hostname} sends to it")


def claims(object: Object) -> set[Claim]:
    """What this object holds that nobody else may."""
    found: set[Claim] = set()
    if isinstance(object, Task):
        if TaskState.PENDING <= object.status.state <= TaskState.RUNNING:
            found = {("address", a.network_id, bare(address)) for a in object.attachments for address in a.addresses}
        if object.holds_resources and object.endpoint is not None:
            ports = [port for port in object.endpoint.ports or () if port.publish_mode == "host" and port.published_port]
            found |= {("host port", object.node_id, port.protocol, port.published_port) for port in ports}
    elif isinstance(object, Service):
        if object.endpoint is not None:
            found = {("address", vip.network_id, bare(vip.address)) for vip in object.endpoint.vips}
            ports = [port for port in object.endpoint.ports if port.publish_mode != "host" and port.published_port]
            found |= {("port", port.protocol, port.published_port) for port in ports}
    elif isinstance(object, Node):
        found = {("index", object.index)} if object.index else set()
    elif isinstance(object, Network):
        found = {("address", object.id, config.gateway) for config in object.ipam if config.gateway}
        found |= {("subnet", config.subnet) for config in object.ipam}
        found |= {("vni", object.vni)} if object.vni else set()
    return found


def bare(address: str) -> str:
    return address.partition("/")[0]
