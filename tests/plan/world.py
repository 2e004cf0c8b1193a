"""A small cluster for tests of the decisions about slots: the real store with its ownership guard, every plan of the slots' brain, and
plain stand-ins for allocator, scheduler, nodes and control. Time is virtual; nothing but the store is kept between two steps.

Images say how a task behaves: `app:1` runs; `bad:*` cannot be had; `crash:*` fails as it starts; `once:*` finishes 1 s after it has
started; `brief:*` fails 2 s after; `slow:*` needs 4 s to become healthy; `stubborn:*` takes 90 s to stop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

import msgspec

from skep.clock import SECOND
from skep.model.cluster import Cluster
from skep.model.enums import NodeState, TaskState, UpdateState
from skep.model.node import Node, NodeDescription, NodeStatus
from skep.model.service import Service, UpdateStatus
from skep.model.spec import (
    ClusterSpec,
    ContainerSpec,
    Global,
    Mode,
    NodeSpec,
    OrchestrationConfig,
    Placement,
    Replicated,
    RestartPolicy,
    ServiceSpec,
    TaskSpec,
    UpdateConfig,
)
from skep.model.tables import TASK_BY_SERVICE
from skep.model.task import Task, TaskStatus
from skep.plan.dirty import is_task_dirty
from skep.plan.enforce import plan_enforce
from skep.plan.liveness import plan_liveness
from skep.plan.ops import Change, Create, Delete, Op, Plan
from skep.plan.ownership import refuse
from skep.plan.reap import plan_reap
from skep.plan.service import plan_service
from skep.store.memory import MemoryBackend, MemoryStore

S = TaskState
START = 1_700_000_000 * SECOND
MESSAGES = {
    S.ACCEPTED: "accepted",
    S.PREPARING: "preparing",
    S.READY: "prepared",
    S.STARTING: "starting",
    S.RUNNING: "started",
    S.COMPLETE: "finished",
    S.SHUTDOWN: "shutdown",
    S.FAILED: "started",
    S.REJECTED: "preparing",
}


class VirtualClock:
    def __init__(self) -> None:
        self.time = START

    def now(self) -> int:
        return self.time

    async def sleep(self, ns: int) -> None:
        raise NotImplementedError


def service_spec(
    image: str = "app:1",
    replicas: int | None = 1,
    *,
    restart: RestartPolicy | None = None,
    update: UpdateConfig | None = None,
    rollback: UpdateConfig | None = None,
    constraints: tuple[str, ...] = (),
    labels: dict[str, str] | None = None,
    force: int = 0,
    **task: Any,
) -> ServiceSpec:
    """`replicas` None: a global service."""
    return ServiceSpec(
        name="web",
        labels=labels or {},
        task_template=TaskSpec(
            container_spec=ContainerSpec(image=image),
            restart_policy=restart,
            placement=Placement(constraints=constraints) if constraints else None,
            force_update=force,
            runtime="container",
            **task,
        ),
        mode=Mode(global_=Global()) if replicas is None else Mode(replicated=Replicated(replicas=replicas)),
        update_config=update,
        rollback_config=rollback,
    )


class World:
    def __init__(self, nodes: int = 3, history: int | None = None, plan: Callable[..., Plan] = plan_service) -> None:
        self.clock = VirtualClock()
        self.rng = Random(1)
        self.backend = MemoryBackend()
        self.plan = plan
        self.store = MemoryStore(self.backend, self.clock, refuse)
        orchestration = OrchestrationConfig(task_history_retention_limit=history)
        self.put(Cluster(id="default", spec=ClusterSpec(name="default", orchestration=orchestration)))
        for number in range(1, nodes + 1):
            self.add_node(f"n{number}")
        self.log: list[tuple[int, str, str]] = []
        self.plans = 0

    # reading

    @property
    def now(self) -> int:
        return self.clock.time

    def service(self, id: str = "s") -> Service:
        found = self.store.get(Service, id)
        assert found is not None
        return found

    def node(self, id: str) -> Node:
        found = self.store.get(Node, id)
        assert found is not None
        return found

    def tasks(self, id: str = "s") -> list[Task]:
        return list(self.store.find(TASK_BY_SERVICE, id))

    def live(self, id: str = "s") -> list[Task]:
        return [task for task in self.tasks(id) if task.live]

    def running(self, id: str = "s") -> list[Task]:
        """Running on a node that is there, and meant to."""
        return [t for t in self.live(id) if t.state is S.RUNNING and t.desired_state is S.RUNNING and self.up(t.node_id)]

    def images(self, id: str = "s") -> dict[str, int]:
        return dict(Counter(image(task) for task in self.running(id)))

    def state(self, id: str = "s") -> str:
        status = self.service(id).update_status
        return status.state.value if status else ""

    def up(self, node_id: str) -> bool:
        node = self.store.get(Node, node_id)
        return node is not None and node.status.state is not NodeState.DOWN

    # what happens

    def put(self, thing: Any) -> None:
        self.store.apply([Create(thing, "test")], by="control")

    def change(self, thing: Any, by: str = "control", **fields: Any) -> None:
        self.store.apply([Change(type(thing), thing.id, fields, "test")], by=by)

    def add_node(self, id: str, **labels: str) -> None:
        spec = NodeSpec(labels=labels, role="worker", availability="active")
        status = NodeStatus(state=NodeState.READY, addr="10.9.0.1", since=self.now)
        self.put(Node(id=id, spec=spec, description=NodeDescription(hostname=id), status=status))

    def set_node(
        self, id: str, state: NodeState | None = None, availability: str | None = None, labels: dict[str, str] | None = None
    ) -> None:
        node = self.node(id)
        if state is not None and state is not node.status.state:
            self.change(node, "dispatcher", status=msgspec.structs.replace(node.status, state=state, since=self.now))
        fields = {"availability": availability, "labels": labels}
        given = {name: value for name, value in fields.items() if value is not None}
        if given:
            self.change(node, spec=msgspec.structs.replace(node.spec, **given))

    def remove(self, thing: Any) -> None:
        self.store.apply([Delete(type(thing), thing.id, "test")], by="control")

    def create(self, spec: ServiceSpec, id: str = "s") -> None:
        self.put(Service(id=id, spec=spec, spec_version=self.store.version + 1))

    def update(self, spec: ServiceSpec, id: str = "s") -> None:
        """As control does it: the status goes, the spec before is kept, the version rises when tasks are to be replaced."""
        old = self.service(id)
        same = spec.task_template == old.spec.task_template and spec.endpoint_spec == old.spec.endpoint_spec
        version = old.spec_version if same else self.store.version + 1
        fields = {"spec": spec, "spec_version": version, "previous_spec": old.spec, "previous_spec_version": old.spec_version}
        self.change(old, **fields, update_status=None)

    def rollback(self, id: str = "s") -> None:
        old = self.service(id)
        assert old.previous_spec is not None
        status = UpdateStatus(state=UpdateState.ROLLBACK_STARTED, started_at=self.now, message="manually requested rollback")
        swapped = {"spec": old.previous_spec, "spec_version": old.previous_spec_version}
        self.change(old, **swapped, previous_spec=old.spec, previous_spec_version=old.spec_version, update_status=status)

    def report(self, task: Task, state: TaskState, err: str = "") -> None:
        """What a node reports, as the dispatcher stores it."""
        current = self.store.get(Task, task.id)
        assert current is not None
        status = TaskStatus(timestamp=self.now, applied_at=self.now, state=state, message=MESSAGES.get(state, ""), err=err)
        fields: dict[str, Any] = {"status": status}
        if state is S.RUNNING and not current.running_at:
            fields["running_at"] = self.now
        self.change(task, "dispatcher", **fields)

    def kill(self, task: Task) -> None:
        self.report(task, S.FAILED, "task: non-zero exit (137)")

    def restart_manager(self) -> None:
        """Nothing but what is on disk remains."""
        self.store.flush()
        self.store = MemoryStore(self.backend, self.clock, refuse)

    # the loop

    def settle(self) -> int | None:
        """Until nobody has anything to do at this time. Returns when to look again."""
        for _ in range(200):
            version = self.store.version
            again: list[int] = []
            self._decide(again)
            self._allocate_and_schedule()
            for task in list(self.store.all(Task)):
                self._step_task(task, again)
            if self.store.version == version:
                return min(again, default=None)
        raise AssertionError("the cluster does not come to rest:\n" + self.story())

    def run(self, seconds: float) -> None:
        """Let time pass, stopping wherever somebody wants to look again."""
        end = self.now + int(seconds * SECOND)
        while True:
            again = self.settle()
            if again is None or again > end:
                break
            assert again > self.now, "a time to look again lies in the past"
            self.clock.time = again
        self.clock.time = end
        self.settle()

    def run_until(self, condition: Callable[[], bool], seconds: float = 600) -> float:
        """Returns how long it took, in seconds."""
        begin = self.now
        while self.now <= begin + seconds * SECOND:
            again = self.settle()
            if condition():
                return (self.now - begin) / SECOND
            assert again is not None, "nothing more will happen:\n" + self.story()
            self.clock.time = again
        raise AssertionError(f"not within {seconds} s:\n" + self.story())

    def _apply(self, plan: Plan, by: str) -> None:
        for op in plan.ops:
            id = op.object.id if isinstance(op, Create) else op.id
            assert op.because.strip(), "an operation without a reason"
            self.log.append((self.now, by, f"{type(op).__name__} {id}: {op.because}"))
        self.store.apply(plan.ops, by=by)
        if by == "services":
            self._check_let_go(plan)

    def _decide(self, again: list[int]) -> None:
        ids = {service.id for service in self.store.all(Service)} | {task.service_id for task in self.store.all(Task)}
        for id in sorted(ids):
            plan = self.plan(self.store, id, self.now, self.rng)
            self.plans += 1
            self._apply(plan, "services")
            if not changes(plan.ops, "spec"):  # after a rollback's swap the next decision puts the slots in order
                self.check(id)
            again.extend([plan.look_again] if plan.look_again is not None else [])
        nodes = {node.id for node in self.store.all(Node)} | {task.node_id for task in self.store.all(Task) if task.node_id}
        for node_id in sorted(nodes):
            liveness = plan_liveness(self.store, node_id, self.now)
            self._apply(liveness, "liveness")
            again.extend([liveness.look_again] if liveness.look_again is not None else [])
            self._apply(plan_enforce(self.store, node_id, self.now), "enforcer")
        reaping = plan_reap(self.store, [task.id for task in self.store.all(Task)], self.now)
        again += [reaping.look_again] if reaping.look_again is not None else []
        self._apply(reaping, "reaper")

    def _allocate_and_schedule(self) -> None:
        counts = Counter(task.node_id for task in self.store.all(Task) if task.live)
        for task in list(self.store.all(Task)):
            if task.desired_state > S.COMPLETE:
                continue
            if task.state is S.NEW:
                status = TaskStatus(timestamp=self.now, applied_at=self.now, state=S.PENDING, message="pending task scheduling")
                self.change(task, "allocator", status=status)
            elif task.state is S.PENDING:
                places = [n.id for n in self.store.all(Node) if n.ready and n.spec.availability == "active"]
                node_id = task.node_id or min(places, key=lambda id: (counts[id], id), default="")
                if node_id in places:
                    counts[node_id] += 1
                    status = TaskStatus(
                        timestamp=self.now, applied_at=self.now, state=S.ASSIGNED, message="scheduler assigned task to node"
                    )
                    self.change(task, "scheduler", status=status, node_id=node_id)

    def _step_task(self, task: Task, again: list[int]) -> None:
        """One transition of one task on its node."""
        if task.state < S.ASSIGNED or task.terminal or not self.up(task.node_id):
            return
        name = image(task).partition(":")[0]
        since = self.now - task.status.applied_at

        def after(seconds: float, state: TaskState, err: str = "") -> None:
            due = task.status.applied_at + int(seconds * SECOND)
            if self.now >= due:
                self.report(task, state, err)
            else:
                again.append(due)

        if task.desired_state >= S.SHUTDOWN:
            stop = 90 if name == "stubborn" else 0
            if stop and since < stop * SECOND:
                again.append(task.status.applied_at + stop * SECOND)
            else:
                self.report(task, S.SHUTDOWN)
        elif task.state < S.PREPARING:
            self.report(task, S.ACCEPTED if task.state is S.ASSIGNED else S.PREPARING)
        elif task.state is S.PREPARING:
            self.report(task, *((S.REJECTED, "No such image") if name == "bad" else (S.READY,)))
        elif task.state is S.READY:
            if task.desired_state >= S.RUNNING:
                self.report(task, S.STARTING)
        elif task.state is S.STARTING:
            if name == "crash":
                self.report(task, S.FAILED, "task: non-zero exit (1)")
            else:
                after(4 if name == "slow" else 0, S.RUNNING)
        elif name == "once":
            after(1, S.COMPLETE)
        elif name == "brief":
            after(2, S.FAILED, "task: non-zero exit (1)")

    # what must hold

    def check(self, id: str) -> None:
        """After every decision: one live task in a slot, or one of the old spec and one of the new."""
        service = self.store.get(Service, id)
        slots: dict[Any, list[Task]] = {}
        for task in self.tasks(id):
            if task.live:
                slots.setdefault(task.slot or task.node_id, []).append(task)
        for key, tasks in slots.items():
            if len(tasks) > 1:
                stale = sorted(is_task_dirty(service, t, self.store.get(Node, t.node_id)) for t in tasks) if service else []
                assert stale == [False, True], f"slot {key} has {[(t.id, t.state.name, t.spec_version) for t in tasks]}\n" + self.story()

    def _check_let_go(self, plan: Plan) -> None:
        """A task is let go when what was in its slot before has stopped, or after a minute."""
        for op in plan.ops:
            id = op.object.id if isinstance(op, Create) else op.id
            task = self.store.get(Task, id)
            changed = isinstance(op, Create) or (isinstance(op, Change) and "desired_state" in op.fields)
            if task is None or not changed or task.desired_state is not S.RUNNING:
                continue
            assert self.now >= task.start_at, f"task {id} was let go before its time\n" + self.story()
            for other in self.tasks(task.service_id):
                same = (other.slot, other.slot or other.node_id) == (task.slot, task.slot or task.node_id)
                if same and other.holds_resources and other.desired_state > S.RUNNING and self.up(other.node_id):
                    assert self.now >= task.created_at + 60 * SECOND, f"task {id} was let go while {other.id} stops\n" + self.story()

    def story(self) -> str:
        lines = [f"{(at - START) / SECOND:8.2f} {by:9} {text}" for at, by, text in self.log[-60:]]
        return "\n".join(lines)


def image(task: Task) -> str:
    assert task.spec.container_spec is not None
    return task.spec.container_spec.image


def ids(tasks: Iterable[Task]) -> list[str]:
    return [task.id for task in tasks]


def changes(ops: Iterable[Op], field: str) -> dict[str, Any]:
    return {op.id: op.fields[field] for op in ops if isinstance(op, Change) and field in op.fields}


def started(image: str = "app:1", replicas: int | None = 5, *, nodes: int = 3, seconds: float = 10, **spec: object) -> World:
    world = World(nodes=nodes)
    world.create(service_spec(image, replicas, **spec))  # type: ignore[arg-type]
    world.run(seconds)
    assert world.running() and world.state() == ""
    return world


def status(world: World) -> UpdateStatus:
    found = world.service().update_status
    assert found is not None
    return found
