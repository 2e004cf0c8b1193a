"""Bugs to be planted in a simulated cluster, each a small variant of one part. Whoever breaks a part in such a way must be found out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from typing import Any

import msgspec

from skep.agent.session import Session as AgentSession
from skep.agent.work import Work
from skep.agent.worker import Worker
from skep.ids import Random, new_id
from skep.link.messages import Assignments, Beaten, FromAgent, FromManager
from skep.manager.controllers import Allocating, controllers
from skep.manager.dispatcher import Dispatcher
from skep.manager.loop import Controller
from skep.manager.session import Session
from skep.model.enums import TaskState
from skep.model.node import Node
from skep.model.tables import TASK_BY_SERVICE, slot_key
from skep.model.task import Task, TaskStatus
from skep.plan.allocate import Allocation
from skep.plan.allocate.state import Held
from skep.plan.ops import Change, Create, Delete, Op, Plan
from skep.plan.view import View
from skep.store.loads import Loads
from skep.testing.sim_manager import SimStore
from skep.testing.sim_world import Parts

Planner = Callable[[View, Collection[Hashable], int, Random], Plan]


def replaced(name: str, **fields: Any) -> Callable[[], Sequence[Controller]]:
    """The table with one controller changed. A `plan` is a function that makes a new planner of the right one, for each leader."""

    def table() -> Sequence[Controller]:
        changed = []
        for controller in controllers():
            if controller.name == name:
                own = {key: value(controller.plan) if key == "plan" else value for key, value in fields.items()}
                controller = msgspec.structs.replace(controller, **own)
            changed.append(controller)
        return changed

    return table


# two components decide about a slot: SwarmKit's issue 2242


def second_supervisor(plan: Planner) -> Planner:
    """A restart supervisor beside the updater: it restarts a task that has died, and does not look who stands in its place already."""

    def both(view: View, keys: Collection[Hashable], now: int, rng: Random) -> Plan:
        first = plan(view, keys, now, rng)
        ops: list[Op] = list(first.ops)
        tasks = view.find(TASK_BY_SERVICE, next(iter(keys)))
        shut = {op.id for op in ops if isinstance(op, Change) and op.fields.get("desired_state") is TaskState.SHUTDOWN}
        for task in tasks:
            others = [other for other in tasks if slot_key(other) == slot_key(task) and other.live and other.id not in shut]
            if task.id in shut and task.terminal and others:
                status = TaskStatus(timestamp=now, applied_at=now, state=TaskState.NEW, message="created")
                again = msgspec.structs.replace(
                    others[-1], id=new_id(rng), status=status, node_id="" if task.slot else task.node_id, attachments=(), running_at=0
                )
                ops.append(Create(again, f"restarts {task.id}"))
        return Plan(tuple(ops), first.look_again)

    return both


# a successor does not wait


def impatient(plan: Planner) -> Planner:
    """A replacement starts at once, whether or not what it replaces has stopped."""

    def at_once(view: View, keys: Collection[Hashable], now: int, rng: Random) -> Plan:
        found = plan(view, keys, now, rng)
        ops = [_let_go(op) if isinstance(op, Create) else op for op in found.ops]
        return Plan(tuple(ops), found.look_again)

    return at_once


def _let_go(op: Create) -> Create:
    if isinstance(op.object, Task) and op.object.starts_after:
        return Create(msgspec.structs.replace(op.object, desired_state=TaskState.RUNNING), op.because)
    return op


# timers


def timers_in_memory(plan: Planner) -> Planner:
    """What is to be looked at later is remembered by this leader alone: one that finds it in the store does not look again."""
    mine: set[str] = set()

    def forgetful(view: View, keys: Collection[Hashable], now: int, rng: Random) -> Plan:
        found = plan(view, keys, now, rng)
        mine.update(op.object.id for op in found.ops if isinstance(op, Create))
        ops = [op for op in found.ops if not (_releases(op) and isinstance(op, Change) and op.id not in mine)]
        return Plan(tuple(ops), found.look_again if len(ops) == len(found.ops) else None)

    return forgetful


def _releases(op: Op) -> bool:
    return isinstance(op, Change) and op.fields.get("desired_state") is TaskState.RUNNING


# addresses


class EarlyAllocation(Allocation):
    """An address is free as soon as its task is told to stop."""

    def held_by(self, object: Any) -> Held:
        if isinstance(object, Task) and object.desired_state > TaskState.RUNNING:
            return Held()
        return super().held_by(object)


class EarlyAllocating(Allocating):
    def __init__(self) -> None:
        self._allocation = EarlyAllocation()


def early_addresses(_: Planner) -> Planner:
    return EarlyAllocating().plan


# the store


class LeakyLoads(Loads):
    """A task that has failed goes on counting."""

    def change(self, old: Task | None, new: Task | None) -> None:
        if new is None or new.status.state is not TaskState.FAILED:
            super().change(old, new)


class LeakyStore(SimStore):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._loads = LeakyLoads()
        for task in self.all(Task):
            self._loads.change(None, task)


class HastyStore(SimStore):
    """Users are answered before their writes are on the disk."""

    async def durable(self, version: int) -> None:
        return


# the manager's end of the link


class EagerDispatcher(Dispatcher):
    """Nodes hear of what is not durable yet."""

    def __init__(self, store: Any, *arguments: Any, **more: Any) -> None:
        self._eager = store.watch(applied=True)
        super().__init__(store, *arguments, **more)

    def pending_messages(self, session: Session) -> list[FromManager]:
        self._feeds.change(self._eager.take())
        return super().pending_messages(session)


class DeafDispatcher(Dispatcher):
    """A node whose heartbeat is overdue is not marked down."""

    def _expire(self, now: int) -> None:
        for node_id in self._deadlines.overdue(now):
            self._deadlines.expect(node_id, now + 10**12)


class HastyDispatcher(Dispatcher):
    """A task may die as soon as the manager knows that it leaves."""

    def _depart(self) -> None:
        for node_id in self._departures.begin():
            self._departures.gone(node_id)
        self._tell_left()


class SilentDispatcher(Dispatcher):
    """Nobody is told that a task has left: each waits as long as it may."""

    def _tell_left(self) -> None:
        self._departures.take_left()


def without_places(plan: Planner) -> Planner:
    """What is left of a plain container's place is nobody's business."""

    def of_services(view: View, keys: Collection[Hashable], now: int, rng: Random) -> Plan:
        found = plan(view, keys, now, rng)
        tasks = {op.id: view.get(Task, op.id) for op in found.ops if isinstance(op, Delete)}
        ops = (op for op in found.ops if not isinstance(op, Delete) or (task := tasks[op.id]) is None or task.service_id)
        return Plan(tuple(ops), found.look_again)

    return of_services


# the agent


class CarelessSession(AgentSession):
    """Takes assignments as they come, in sequence or not."""

    def _assigned(self, message: Assignments, now: int) -> list[FromAgent]:
        self._sequence = message.results_in
        self._worker.assign(message, now)
        return []

    def received(self, message: FromManager, now: int) -> list[FromAgent]:
        if isinstance(message, Beaten):
            message = Beaten(period=message.period)
        return super().received(message, now)


class ForgetfulSession(AgentSession):
    """A report is sent once, whether or not it arrives; a new session says nothing of what was."""

    def connected(self, now: int) -> list[FromAgent]:
        return [msgspec.structs.replace(message, statuses={}) for message in super().connected(now)]  # type: ignore[type-var]


class StubbornWorker(Worker):
    """What is no longer assigned is left as it is."""

    def _withdraw(self, id: str, now: int) -> None:
        if id in self._works and self._works[id].status.state is not TaskState.RUNNING:
            super()._withdraw(id, now)


class ForwardWorker(Worker):
    """Those that are not back yet from where the manager was are nobody to it."""

    def greet(self, node_id: str, data_path_port: int, now: int) -> None:
        super().greet(node_id, data_path_port, 0)


class HastyWorker(Worker):
    """A task that is told to stop is stopped."""

    def _advance(self, work: Work, now: int) -> None:
        work.left_at = work.left_at or now
        super()._advance(work, now)


class NostalgicWorker(Worker):
    """Addresses of tasks that are gone stay known."""

    def _forget_item(self, key: str) -> None:
        if not key.startswith("endpoint/"):
            super()._forget_item(key)


def without_nodes(view: View, event: Any) -> Iterable[Hashable]:
    """Nobody asks about a service because of a node."""
    (right,) = [controller for controller in controllers() if controller.name == "services"]
    return () if event.kind is Node else right.keys(view, event)


BUGS: dict[str, tuple[Parts, str]] = {
    "swarmkit issue 2242": (
        Parts(controllers=replaced("services", plan=second_supervisor)),
        "live tasks in one slot|is let go while .* has not stopped",
    ),
    "a successor does not wait": (
        Parts(controllers=replaced("services", plan=impatient)),
        "is let go while .* has not stopped",
    ),
    "timers in the leader's memory": (
        Parts(controllers=replaced("services", plan=timers_in_memory)),
        "not (settled|emptied) after",
    ),
    "nobody looks at nodes": (
        Parts(controllers=replaced("services", keys=without_nodes)),
        "is meant to run on .*, which is down|not (settled|emptied) after",
    ),
    "addresses are free too early": (
        Parts(controllers=replaced("allocator", plan=early_addresses)),
        r"\('address', .* is held by",
    ),
    "loads drift": (
        Parts(store=LeakyStore),
        "the load of .* is",
    ),
    "answered before it is durable": (
        Parts(store=HastyStore),
        "a user was told that service",
    ),
    "nodes hear of what is not durable": (
        Parts(dispatcher=EagerDispatcher),
        "has heard of version|which is not its own",
    ),
    "dead nodes stay ready": (
        Parts(dispatcher=DeafDispatcher),
        "has been away for .* and is",
    ),
    "gaps in the assignments": (
        Parts(session=CarelessSession),
        "not (settled|emptied) after|runs .* which is not its own",
    ),
    "lost reports": (
        Parts(session=ForgetfulSession),
        "not (settled|emptied) after",
    ),
    "tasks die before they have left": (
        Parts(worker=HastyWorker),
        "is stopped while .* sends to it",
    ),
    "tasks die before others are back": (
        Parts(worker=ForwardWorker),
        "is stopped while .* sends to it",
    ),
    "the manager waits for nobody": (
        Parts(dispatcher=HastyDispatcher),
        "is stopped while .* sends to it",
    ),
    "nobody is told who has left": (
        Parts(dispatcher=SilentDispatcher),
        "is stopped in vain",
    ),
    "addresses stay known": (
        Parts(worker=NostalgicWorker),
        "knows of .* too many",
    ),
    "places of plain containers stay": (
        Parts(controllers=replaced("reaper", plan=without_places)),
        r"has plain containers at|is complete \(\), desired running",
    ),
    "withdrawn tasks run on": (
        Parts(worker=StubbornWorker),
        "not (settled|emptied) after",
    ),
}
