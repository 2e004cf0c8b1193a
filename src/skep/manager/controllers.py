"""START READING HERE: everything that decides in a cluster, one row each: its name, what it watches, its plan function, the fields it owns.

`skep.manager.loop` runs the table: a change makes keys dirty, a controller with dirty keys plans, its plan is applied, and so on until
nothing is left to do. No controller knows of another: `services` makes a task, `allocator` gives it addresses, `scheduler` a node, each
because it saw the one before it in the store. The order of the rows only saves rounds. What `owns` says is checked by
`skep.plan.ownership` on every write.

The functions here say which change concerns whom. They must name too much rather than too little: a plan without need costs time, a
change nobody looks at is a cluster that stands still.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import cast

from skep.ids import Random
from skep.manager.loop import ALL, Controller
from skep.model.base import Object
from skep.model.cluster import Cluster
from skep.model.enums import NodeState, TaskState
from skep.model.network import Network
from skep.model.node import Node
from skep.model.service import Service
from skep.model.tables import TASK_BY_NODE, TASK_BY_SERVICE, TASK_TO_REMOVE, TASK_UNASSIGNED
from skep.model.task import Task
from skep.plan.allocate import Allocation, plan_allocate
from skep.plan.enforce import plan_enforce
from skep.plan.liveness import plan_liveness
from skep.plan.ops import Plan
from skep.plan.reap import plan_reap
from skep.plan.roles import plan_role
from skep.plan.schedule import plan_schedule
from skep.plan.service import plan_service
from skep.plan.view import View
from skep.store.base import Event

Keys = Iterable[Hashable]
EVERYTHING: Keys = (ALL,)
NONE: Keys = ()


def controllers() -> Sequence[Controller]:
    """The table, whole and so long, anew for each loop: the allocator keeps what it derived from the store."""
    allocating = Allocating()
    return (
        Controller(
            name="roles",
            watches=(Node,),
            keys=_role_keys,
            start=_node_ids,
            plan=lambda view, keys, now, rng: plan_role(view, _one(keys)),
            apart=True,
            owns=("Node.role",),
        ),
        Controller(
            name="liveness",
            watches=(Node, Task),
            keys=_liveness_keys,
            start=_liveness_start,
            plan=lambda view, keys, now, rng: plan_liveness(view, _one(keys), now),
            apart=True,
            owns=("Task.status: to ORPHANED",),
        ),
        Controller(
            name="enforcer",
            watches=(Node, Service),
            keys=_enforcer_keys,
            start=_node_ids,
            plan=lambda view, keys, now, rng: plan_enforce(view, _one(keys), now),
            apart=True,
            owns=("Task.status: to REJECTED",),
        ),
        Controller(
            name="services",
            watches=(Service, Task, Node),
            keys=_service_keys,
            start=_service_start,
            plan=lambda view, keys, now, rng: plan_service(view, _one(keys), now, rng),
            apart=True,
            owns=("Task: create", "Task.desired_state", "Service.update_status", "Service.spec: an automatic rollback"),
        ),
        Controller(
            name="allocator",
            watches=(Cluster, Network, Node, Service, Task),
            keys=_allocator_keys,
            start=lambda view: EVERYTHING,
            plan=allocating.plan,
            owns=(
                "Task.status: NEW to PENDING",
                "Task.attachments",
                "Service.endpoint",
                "Node.index",
                "Network.ipam, options, vni, cursor",
                "Cluster cursors",
            ),
        ),
        Controller(
            name="scheduler",
            watches=(Node, Task),
            keys=_scheduler_keys,
            start=lambda view: EVERYTHING,
            plan=lambda view, keys, now, rng: plan_schedule(view, now, rng),
            owns=("Task.status: PENDING to ASSIGNED", "Task.node_id", "Task.generic_resources"),
        ),
        Controller(
            name="reaper",
            watches=(Task, Service, Cluster),
            keys=_reaper_keys,
            start=lambda view: [task.id for task in view.all(Task)],
            plan=lambda view, keys, now, rng: plan_reap(view, _to_reap(view, keys), now),
            owns=("Task: delete",),
        ),
    )


class Allocating:
    """`plan_allocate` with what it derived from the store. When a plan fails, that is thrown away and read anew."""

    def __init__(self) -> None:
        self._allocation = Allocation()

    def plan(self, view: View, keys: Collection[Hashable], now: int, rng: Random) -> Plan:
        for key in keys:
            if isinstance(key, tuple):
                kind, id = cast("tuple[type[Object], str]", key)
                self._allocation.mark(kind, id)
        try:
            return plan_allocate(view, now, self._allocation)
        except Exception:
            self._allocation = Allocation()
            raise


def _to_reap(view: View, keys: Collection[Hashable]) -> Iterable[str]:
    """The tasks that changed; when a time has come, those that are to be removed."""
    found = [cast("str", key) for key in keys if key != ALL]
    return [*found, *(task.id for task in view.find(TASK_TO_REMOVE, ""))] if ALL in keys else found


def _one(keys: Collection[Hashable]) -> str:
    return cast("str", next(iter(keys)))


# what a change is


def _differ(old: Object | None, new: Object | None, *fields: str) -> bool:
    """Created, deleted, or changed in one of these fields."""
    return old is None or new is None or any(getattr(old, field) != getattr(new, field) for field in fields)


def _node_moved(old: Node | None, new: Node | None) -> bool:
    """What placement looks at has changed; heartbeats and addresses have not that effect."""
    if old is None or new is None:
        return True
    return _differ(old, new, "spec", "description", "role") or old.status.state != new.status.state or old.status.addr != new.status.addr


def _task_turned(old: Task | None, new: Task | None) -> bool:
    """Created, deleted, told otherwise, or began or ceased to run: the steps up to RUNNING decide nothing."""
    if old is None or new is None or old.desired_state != new.desired_state:
        return True
    before, after = old.status.state, new.status.state
    return before != after and (before >= TaskState.RUNNING or after >= TaskState.RUNNING)


# whom it concerns


def _role_keys(view: View, event: Event) -> Keys:
    old, new = cast("Node | None", event.old), cast("Node | None", event.new)
    return (event.id,) if _differ(old, new, "role") or (old and old.spec.role) != (new and new.spec.role) else NONE


def _liveness_keys(view: View, event: Event) -> Keys:
    if event.kind is Node:
        old, new = cast("Node | None", event.old), cast("Node | None", event.new)
        return (event.id,) if old is None or new is None or old.status.state != new.status.state else NONE
    before, task = cast("Task | None", event.old), cast("Task | None", event.new)
    if task is None or not task.node_id or not task.holds_resources or (before is not None and before.holds_resources):
        return NONE
    node = view.get(Node, task.node_id)
    return (task.node_id,) if node is None or node.status.state is NodeState.DOWN else NONE


def _enforcer_keys(view: View, event: Event) -> Keys:
    if event.kind is Service:
        # With a service's own new constraints a task may be left with none that its node meets.
        tasks = view.find(TASK_BY_SERVICE, event.id) if event.old and event.new and _differ(event.old, event.new, "spec") else ()
        return dict.fromkeys(task.node_id for task in tasks if task.node_id)
    return (event.id,) if _node_moved(cast("Node | None", event.old), cast("Node | None", event.new)) else NONE


def _service_keys(view: View, event: Event) -> Keys:
    if event.kind is Service:
        return (event.id,) if _differ(event.old, event.new, "spec", "spec_version", "update_status") else NONE
    if event.kind is Task:
        old, new = cast("Task | None", event.old), cast("Task | None", event.new)
        task = new or old
        if task is None or not task.service_id:
            return NONE
        return (task.service_id,) if _task_turned(old, new) or _outdated_placed(view, old, new) else NONE
    if not _node_moved(cast("Node | None", event.old), cast("Node | None", event.new)):
        return NONE
    keys = dict.fromkeys(task.service_id for task in view.find(TASK_BY_NODE, event.id) if task.service_id)
    keys.update((service.id, None) for service in view.all(Service) if service.global_)
    return keys


def _outdated_placed(view: View, old: Task | None, new: Task | None) -> bool:
    """A task of an older spec has come to a node: where only the placement was changed, the node decides whether it is out of date."""
    if old is None or new is None or old.node_id == new.node_id:
        return False
    service = view.get(Service, new.service_id)
    return service is not None and service.spec_version != new.spec_version


def _allocator_keys(view: View, event: Event) -> Keys:
    if event.kind is Cluster:
        return EVERYTHING if _differ(event.old, event.new, "default_addr_pool", "subnet_size") else NONE
    if event.kind is Node:
        return ((Node, event.id),) if _differ(event.old, event.new, "index") else NONE
    if event.kind is Service:
        return ((Service, event.id),) if _differ(event.old, event.new, "spec", "endpoint") else NONE
    if event.kind is Task:
        old, new = cast("Task | None", event.old), cast("Task | None", event.new)
        if _task_turned(old, new) or _differ(old, new, "attachments"):
            return ((Task, event.id),)
        return NONE
    return ((Network, event.id),)


def _scheduler_keys(view: View, event: Event) -> Keys:
    """While a task waits: whatever takes or frees a place, for what a pending task says must stay true. Time alone places nothing."""
    if not view.find(TASK_UNASSIGNED, ""):
        return NONE
    if event.kind is Node:
        return EVERYTHING if _node_moved(cast("Node | None", event.old), cast("Node | None", event.new)) else NONE
    old, new = cast("Task | None", event.old), cast("Task | None", event.new)
    if new is not None and new.status.state is TaskState.PENDING:
        return EVERYTHING if old is None or old.status.state is not TaskState.PENDING else NONE
    if old is not None and new is not None and old.holds_resources != new.holds_resources:
        return EVERYTHING
    return EVERYTHING if _task_turned(old, new) else NONE


def _reaper_keys(view: View, event: Event) -> Keys:
    if event.kind is Task:
        old, new = cast("Task | None", event.old), cast("Task | None", event.new)
        return (event.id,) if new is not None and _task_turned(old, new) else NONE
    if event.kind is Service:
        # A rollout's end, another restart policy, the service's own end.
        return (
            [task.id for task in view.find(TASK_BY_SERVICE, event.id)] if _differ(event.old, event.new, "spec", "update_status") else NONE
        )
    return [task.id for task in view.all(Task)] if _differ(event.old, event.new, "spec") else NONE


# what a new leader looks at


def _node_ids(view: View) -> Keys:
    return [node.id for node in view.all(Node)]


def _liveness_start(view: View) -> Keys:
    return {**{node.id: None for node in view.all(Node)}, **{task.node_id: None for task in view.all(Task) if task.node_id}}


def _service_start(view: View) -> Keys:
    """Also of services that are gone and have left tasks."""
    ids = {service.id: None for service in view.all(Service)}
    ids.update((task.service_id, None) for task in view.all(Task) if task.service_id)
    return ids
