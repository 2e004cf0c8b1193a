"""One function decides about a service's slots: `plan_service`.

Scale, restart and rollout propose; what becomes of a slot is settled here, once (rule 2 of the design). So there are never two live tasks
in a slot, but for the old and the new one of a start-first update; a dead task with a live successor is never restarted; and nothing is
kept between two decisions but what the store holds. See docs/tasks.md.

Cost: linear in the tasks of the service.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from skep.clock import SECOND
from skep.ids import Random, new_id
from skep.model.cluster import Cluster
from skep.model.defaults import OLD_TASK_TIMEOUT, replicas
from skep.model.enums import Availability, Order, TaskState
from skep.model.node import Node
from skep.model.service import Service
from skep.model.spec import Driver
from skep.model.tables import TASK_BY_SERVICE
from skep.model.task import Task, TaskStatus
from skep.plan.dirty import Dirty, constraints, task_spec
from skep.plan.ops import NOTHING, Change, Create, Op, Plan
from skep.plan.restart import history, refusal, start_at, waits_for_itself
from skep.plan.rollout import Step, propose
from skep.plan.scale import filled_here, scale
from skep.plan.schedule.constraint import broken
from skep.plan.slots import Nodes, Slot, best, slots_of
from skep.plan.view import View


def plan_service(view: View, service_id: str, now: int, rng: Random) -> Plan:
    """What is to be done about one service now, and when to look again. A service that is gone has its tasks removed; deleting those that
    have ended is the reaper's. Jobs are refused when they are created; their slots would be settled here."""
    service = view.get(Service, service_id)
    tasks = view.find(TASK_BY_SERVICE, service_id) if service_id else ()
    if service is None:
        return Plan(tuple(_desire(task, TaskState.REMOVE, "its service has been removed") for task in tasks if _below_remove(task)))
    if service.job:
        return NOTHING
    nodes = Nodes(view)
    decision = _Decision(view, service, nodes, now, rng)
    slots = slots_of(service, tasks, nodes)
    if service.replicated:
        kept, empty = _scale_replicated(decision, slots, replicas(service))
    else:
        kept, empty = _scale_global(decision, slots, view.all(Node))
    step = propose(service, kept, decision.dirty, now)
    if step.rollback is not None:
        fields = {**step.rollback, "update_status": step.status}
        return Plan((Change(Service, service.id, fields, step.because),))
    decision.follow(step)
    for slot in kept:
        decision.settle(slot)
    for slot in empty:
        decision.fill(slot)
    return decision.plan()


def _desire(task: Task, state: TaskState, because: str) -> Change:
    return Change(Task, task.id, {"desired_state": state}, because)


def _below_remove(task: Task) -> bool:
    return task.desired_state < TaskState.REMOVE


def _scale_replicated(decision: _Decision, slots: dict[int | str, Slot], wanted: int) -> tuple[list[Slot], list[Slot]]:
    sized = scale(slots.values(), wanted)
    for slot in sized.surplus:
        decision.clear(slot, f"{slot.name} is more than the {wanted} replicas asked for")
    for slot in sized.dead:
        decision.clear(slot, f"{slot.name} is empty and not needed")
    return sized.kept, sized.empty


def _scale_global(decision: _Decision, slots: dict[int | str, Slot], nodes: Iterable[Node]) -> tuple[list[Slot], list[Slot]]:
    kept: list[Slot] = []
    empty: list[Slot] = []
    wanted = constraints(decision.service)
    here: set[str] = set()
    for node in nodes:
        here.add(node.id)
        slot = slots.get(node.id)
        unfit = decision.nodes.unfit(node.id)
        if not unfit and wanted and (unmet := broken(wanted, node)):
            unfit = f"does not meet the constraint {unmet}"
        if unfit:
            for task in slot.wanted if slot else ():
                decision.desire(task, TaskState.SHUTDOWN, f"node {node.hostname or node.id} {unfit}")
            continue
        if node.availability is Availability.PAUSE:
            if slot:
                slot.frozen = True
                kept.append(slot)
        elif slot and filled_here(slot):
            kept.append(slot)
        else:
            empty.append(slot or Slot(node.id))
    for key, slot in slots.items():
        if key not in here:
            decision.clear(slot, f"node {key} has been removed")
    return kept, empty


class _Decision:
    """The plan of one service while it is being made: what was decided a line before counts already."""

    def __init__(self, view: View, service: Service, nodes: Nodes, now: int, rng: Random) -> None:
        self.service = service
        self.nodes = nodes
        self.dirty = Dirty(service, nodes)
        self._view = view
        self._now = now
        self._rng = rng
        self._ops: list[Op] = []
        self._again: int | None = None
        self._desired: dict[str, TaskState] = {}
        self._step = Step(None)
        self._spec = task_spec(service)
        self._log_driver = self._spec.log_driver or self._default_log_driver()

    def plan(self) -> Plan:
        return Plan(tuple(self._ops), self._again)

    # what is written

    def follow(self, step: Step) -> None:
        self._step = step
        self._look(step.look_again)
        if step.status != self.service.update_status:
            self._ops.append(Change(Service, self.service.id, {"update_status": step.status}, step.because))

    def desire(self, task: Task, state: TaskState, because: str) -> None:
        """Desired states only rise; each task is decided about once."""
        if task.id not in self._desired and state > task.desired_state:
            self._desired[task.id] = state
            self._ops.append(_desire(task, state, because))

    def clear(self, slot: Slot, because: str) -> None:
        for task in slot.tasks:
            self.desire(task, TaskState.REMOVE, because)

    def fill(self, slot: Slot) -> None:
        self._create(slot, f"{slot.name} of {self.service.name} is empty")

    def _create(self, slot: Slot, because: str, **fields: Any) -> None:
        """A new task. It is let go at once unless its time has not come or something in its place has yet to stop."""
        number, node_id = (slot.key, "") if isinstance(slot.key, int) else (0, slot.key)
        stopping = self._stopping(slot)
        at: int = fields.pop("start_at", 0)
        held = bool(stopping) or at > self._now
        task = Task(
            id=new_id(self._rng),
            service_id=self.service.id,
            service_name=self.service.name,
            slot=number,
            node_id=node_id,
            spec=self._spec,
            spec_version=self.service.spec_version,
            endpoint=self.service.spec.endpoint_spec,
            desired_state=TaskState.READY if held else TaskState.RUNNING,
            status=TaskStatus(timestamp=self._now, applied_at=self._now, state=TaskState.NEW, message="created"),
            log_driver=self._log_driver,
            start_at=at if held else 0,
            starts_after=stopping[-1].id if stopping else "",
            **fields,
        )
        self._ops.append(Create(task, because))
        if held:
            self._look(max(at, self._now + OLD_TASK_TIMEOUT) if stopping else at)

    def _look(self, at: int | None) -> None:
        if at is not None and (self._again is None or at < self._again):
            self._again = at

    def _default_log_driver(self) -> Driver | None:
        for cluster in self._view.all(Cluster):
            return cluster.spec.task_defaults.log_driver
        return None

    # what becomes of a slot

    def settle(self, slot: Slot) -> None:
        """The one decision about a slot that stays."""
        new, old = self._at_most_one_of_each(slot)
        if slot.key in self._step.turn:
            self._replace(slot, old)
            return
        held = new or old
        retried = self._retried(slot, old) if old and not new else None
        for task in slot.lost:
            if task is retried or (held is None and task is slot.lost[-1]):
                self._restart(slot, task)
            elif held is not None:
                self.desire(task, TaskState.SHUTDOWN, f"{self._fate(task)}, and {slot.name} has task {held.id}")
            else:
                self.desire(task, TaskState.SHUTDOWN, f"{self._fate(task)}, and {slot.lost[-1].id} came after it")
        for live in (new, old):
            if live is not None:
                self._let_go(slot, live)

    def _at_most_one_of_each(self, slot: Slot) -> tuple[Task | None, Task | None]:
        """(task of the current spec, task of another): the others are shut down, and the old one when the new one runs."""
        if len(slot.live) == 1:
            task = slot.live[0]
            return (None, task) if self.dirty(task) else (task, None)
        clean = [task for task in slot.live if not self.dirty(task)]
        stale = [task for task in slot.live if self.dirty(task)]
        new, old = best(clean), best(stale)
        for task in clean:
            if new and task is not new:
                self.desire(task, TaskState.SHUTDOWN, f"{slot.name} has task {new.id} already")
        for task in stale:
            if new and new.status.state is TaskState.RUNNING:
                self.desire(task, TaskState.SHUTDOWN, f"task {new.id} runs in its place")
            elif old and task is not old:
                self.desire(task, TaskState.SHUTDOWN, f"{slot.name} is to have one task of an older spec at most, and has {old.id}")
        return new, None if old is not None and old.id in self._desired else old

    def _replace(self, slot: Slot, old: Task | None) -> None:
        """The slot's turn in a rollout."""
        what = "rolls back" if self._step.status and "rollback" in self._step.status.state else "is updated"
        because = f"{slot.name} of {self.service.name} {what}"
        for task in slot.lost:
            self.desire(task, TaskState.SHUTDOWN, f"{self._fate(task)}; {because}")
        if old is not None and self._step.config.order is Order.STOP_FIRST:
            self.desire(old, TaskState.SHUTDOWN, because)
        elif old is not None:
            self._let_go(slot, old)
        self._create(slot, because, rollout=self._step.mark)

    def _retried(self, slot: Slot, old: Task) -> Task | None:
        """The failed new task of a start-first update whose old task lives on: tried again unless the update rests."""
        if self._step.resting or slot.frozen or not slot.lost:
            return None
        last = slot.lost[-1]
        return last if not self.dirty(last) and slot.tasks.index(last) > slot.tasks.index(old) else None

    def _restart(self, slot: Slot, task: Task) -> None:
        """A task that is lost, and nothing stands in for it."""
        fate = self._fate(task)
        if slot.frozen:
            self.desire(task, TaskState.SHUTDOWN, f"{fate}, and its node is paused")
            return
        if waits_for_itself(task, self._now):
            self._look(task.start_at)
            return
        if because := refusal(task):
            self.desire(task, TaskState.SHUTDOWN, f"{fate}; {because}")
            return
        at = start_at(task, self.nodes, self._now)
        if task.terminal and at > self._now and self._step.rolling and self.dirty(task):
            self._look(at)  # its turn in the rollout may come before that
            return
        delay = f", after {(at - self._now) / SECOND:.3g} s" if at > self._now else ""
        self.desire(task, TaskState.SHUTDOWN, f"{fate}, and is replaced")
        fields: dict[str, Any] = {"start_at": at, "rollout": self._step.mark}
        if not self.dirty(task):
            restarts, attempts = history(task, self._now)
            fields = {"start_at": at, "rollout": task.rollout, "restarts": restarts, "attempts": attempts}
        self._create(slot, f"replaces task {task.id} in {slot.name}{delay}: {fate}", **fields)

    def _let_go(self, slot: Slot, task: Task) -> None:
        """READY to RUNNING: its delay is over, and what was there before has stopped or was waited for a minute."""
        if task.desired_state is not TaskState.READY:
            return
        if self._now < task.start_at:
            self._look(task.start_at)
            return
        stopping = self._stopping(slot)
        if not stopping:
            self.desire(task, TaskState.RUNNING, "its time has come, and nothing is left to wait for")
        elif self._now < task.created_at + OLD_TASK_TIMEOUT:
            self._look(task.created_at + OLD_TASK_TIMEOUT)
        else:
            self.desire(task, TaskState.RUNNING, f"task {stopping[-1].id} did not stop within {OLD_TASK_TIMEOUT // SECOND} s")

    def _stopping(self, slot: Slot) -> Sequence[Task]:
        """Tasks of the slot that were told to stop and, as far as anybody knows, have not."""
        if len(slot.tasks) == len(slot.live) and not self._desired:
            return ()
        return [
            task
            for task in slot.tasks
            if task.holds_resources
            and (task.desired_state > TaskState.RUNNING or self._desired.get(task.id, TaskState.NEW) > TaskState.RUNNING)
            and not self.nodes.gone(task.node_id)
        ]

    def _fate(self, task: Task) -> str:
        """What happened to a lost task, as a half sentence."""
        if task.terminal:
            err = f" ({task.status.err})" if task.status.err else ""
            return f"task {task.id} is {task.status.state.word}{err}"
        return f"node {self.nodes.name(task.node_id)} {self.nodes.unfit(task.node_id)}"
