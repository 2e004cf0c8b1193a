"""Is everything as it was asked for? Questions to a simulated cluster when all trouble is over, the cheap ones first."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from skep.clock import HOUR, SECOND
from skep.datapath.base import Snapshot
from skep.manager.loop import Loop
from skep.model.cluster import Cluster
from skep.model.enums import TaskState, UpdateState
from skep.model.network import Network
from skep.model.node import Node
from skep.model.service import Service
from skep.model.tables import TASK_BY_NODE, slot_key
from skep.model.task import Task
from skep.store.backends import MemoryBackend
from skep.store.memory import MemoryStore
from skep.testing.sim_rules import Claim, bare, claims
from skep.testing.virtual import VirtualClock

if TYPE_CHECKING:
    from skep.testing.sim_manager import SimStore
    from skep.testing.sim_world import World


class Settled:
    def __init__(self, world: World) -> None:
        self._world = world

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
            or self._uninformed(store)
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
            elif wanted and state is TaskState.NEW and (self._full(store, task) or self._taken(store, task)):
                continue
            elif wanted and (state is not TaskState.RUNNING or task.desired_state is not TaskState.RUNNING):
                return f"{self._world.task(task.id)} is {state.word} ({task.status.err}), desired {task.desired_state.word}"
            elif not wanted and TaskState.ASSIGNED <= state <= TaskState.RUNNING:
                return f"{self._world.task(task.id)} is {state.word}, and was told to stop"
            elif task.desired_state is TaskState.REMOVE:
                return f"{self._world.task(task.id)} is {state.word}, and was to be removed"
            node = store.get(Node, task.node_id) if wanted and task.node_id else None
            if node is not None and node.availability == "drain" and task.service_id:
                return f"{self._world.task(task.id)} is on {node.hostname}, which is drained"
        return ""

    def _full(self, store: SimStore, task: Task) -> bool:
        """Its error says that there are no addresses left, and in one of its networks there are none."""
        if "available IP" not in task.status.err:
            return False
        for network in store.all(Network):
            if network.name in task.status.err:
                size = 1 << 32 - int(network.ipam[0].subnet.partition("/")[2])
                return sum(claim[:2] == ("address", network.id) for claim in self._world.rules.holders) >= size - 2
        return False

    def _taken(self, store: SimStore, task: Task) -> bool:
        """Its error says that another service has its port, and one has: a rollback may bring back what was given away since."""
        service = store.get(Service, task.service_id)
        ports = (service.spec.endpoint_spec.ports if service and service.spec.endpoint_spec else None) or ()
        holders = {self._world.rules.holders.get(("port", port.protocol, port.published_port), task.service_id) for port in ports}
        return "already in use by service" in task.status.err and holders != {task.service_id}

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
                if t.service_id and t.desired_state is TaskState.RUNNING and t.status.state is TaskState.RUNNING
            }
            if node.runtime.running != meant:
                extra = [self._world.task(id) for id in sorted(node.runtime.running - meant)]
                missing = [self._world.task(id) for id in sorted(meant - node.runtime.running)]
                return f"{node.hostname} runs {extra or 'nothing'} too many and {missing or 'nothing'} too few"
            places = {
                (t.spec.network_attachment_spec.container_id, place.network_id, place.addresses[0])
                for t in store.find(TASK_BY_NODE, node.id)
                if t.spec.network_attachment_spec is not None
                for place in t.attachments
            }
            if node.runtime.plain.asking:
                return f"{node.hostname} asks for a plain container's place"
            held = {(container, *place) for container, place in node.runtime.plain.running.items()}
            if places != held:
                return f"{node.hostname} has plain containers at {sorted(held)}, the manager knows of {sorted(places)}"
            left = [id for id in node.runtime.containers if store.get(Task, id) is None]
            if left:
                return f"{node.hostname} keeps containers of tasks that are gone: {[self._world.task(id) for id in left]}"
        return ""

    def _uninformed(self, store: SimStore) -> str:
        """Every node's network has what is on the networks that it uses, and nothing else."""
        for node in self._world.nodes.values():
            used = {network.id for network in store.all(Network) if network.spec.ingress}
            for task in store.find(TASK_BY_NODE, node.id):
                if TaskState.ASSIGNED <= task.status.state <= TaskState.RUNNING:
                    used |= {place.network_id for place in task.attachments}
            endpoints = {
                (task.id, place.network_id, bare(place.addresses[0]), task.status.state is TaskState.RUNNING)
                for task in store.all(Task)
                if TaskState.ASSIGNED <= task.status.state <= TaskState.RUNNING
                for place in task.attachments
                if place.network_id in used and place.addresses
            }
            shown = node.applied or Snapshot()
            known = {(e.task_id, e.network_id, e.address, e.serving) for e in shown.endpoints.values()}
            if known != endpoints:
                return f"{node.hostname} knows of {sorted(known - endpoints)} too many and {sorted(endpoints - known)} too few"
            services = {
                (service.id, vip.network_id, bare(vip.address))
                for service in store.all(Service)
                for vip in (service.endpoint.vips if service.endpoint else ())
                if vip.network_id in used and vip.network_id in {t.target for t in service.spec.task_template.networks or ()}
            }
            told = {(d.service_id, d.network_id, d.vip) for d in shown.discovery.values() if d.vip}
            if told != services:
                return f"{node.hostname} knows the services {sorted(told)}, there are {sorted(services)}"
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
        if fresh != self._world.rules.holders.keys():
            return f"held: {sorted(map(str, fresh ^ self._world.rules.holders.keys()))[:5]}"
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
