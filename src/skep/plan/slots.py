"""The places of a service and what stands in them: what scale, restart and rollout look at.

A slot is a number (replicated) or a node (global). Its tasks come in order of creation, so the last one is the newest: times of different
observers are never compared to find that out. See docs/tasks.md.
"""

from __future__ import annotations

from collections.abc import Iterable

from skep.model.enums import Availability, NodeState, TaskState
from skep.model.node import Node
from skep.model.service import Service
from skep.model.task import Task
from skep.plan.view import View


class Nodes:
    """Nodes by id, each looked up once for a decision."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._known: dict[str, Node | None] = {}
        self._unfit: dict[str, str] = {}

    def get(self, id: str) -> Node | None:
        if id not in self._known:
            self._known[id] = self._view.get(Node, id)
        return self._known[id]

    def name(self, id: str) -> str:
        node = self.get(id)
        return (node and node.hostname) or id

    def gone(self, id: str) -> bool:
        """Nobody there to wait for: removed or down."""
        node = self.get(id)
        return node is None or node.status.state is NodeState.DOWN

    def drained(self, id: str) -> bool:
        node = self.get(id)
        return node is not None and node.availability is Availability.DRAIN

    def unfit(self, id: str) -> str:
        """Why no task may stay there: removed, down or drained; "" = it may. A node out of touch for a moment keeps its tasks."""
        known = self._unfit.get(id)
        if known is None:
            known = self._unfit[id] = self._judge(id)
        return known

    def _judge(self, id: str) -> str:
        node = self.get(id)
        if node is None:
            return "has been removed"
        if node.status.state is NodeState.DOWN:
            return "is down"
        return "is drained" if node.availability is Availability.DRAIN else ""


class Slot:
    """One place. `wanted` are the tasks meant to run; of these `live` can, `lost` have ended or are on a node that is gone or drained."""

    __slots__ = ("key", "tasks", "wanted", "live", "lost", "frozen")

    def __init__(self, key: int | str) -> None:
        self.key = key
        """Slot number, or node id."""
        self.tasks: list[Task] = []
        self.wanted: list[Task] = []
        self.live: list[Task] = []
        self.lost: list[Task] = []
        self.frozen = False
        """Its node is paused: what lives there lives on, nothing new comes."""

    @property
    def name(self) -> str:
        return f"slot {self.key}" if isinstance(self.key, int) else f"node {self.key}"

    @property
    def newest(self) -> Task | None:
        return self.tasks[-1] if self.tasks else None

    @property
    def standing(self) -> list[Task]:
        """What the slot shows to the world: the tasks meant to run, else the last one that did."""
        return self.wanted or self.tasks[-1:]

    @property
    def running(self) -> bool:
        return any(task.status.state is TaskState.RUNNING for task in self.standing)

    def put(self, task: Task, nodes: Nodes) -> None:
        self.tasks.append(task)
        if task.desired_state > TaskState.RUNNING:
            return
        self.wanted.append(task)
        if task.terminal or (task.node_id and nodes.unfit(task.node_id)):
            self.lost.append(task)
        else:
            self.live.append(task)


def slots_of(service: Service, tasks: Iterable[Task], nodes: Nodes) -> dict[int | str, Slot]:
    """All slots with any task, finished ones too, by number or node id."""
    slots: dict[int | str, Slot] = {}
    by_number = service.replicated
    for task in tasks:
        key: int | str = task.slot if by_number else task.node_id
        slot = slots.get(key)
        if slot is None:
            slot = slots[key] = Slot(key)
        slot.put(task, nodes)
    return slots


def ended_at(task: Task) -> int:
    """When its last state was stored, by the manager's clock; the observer's own where no manager stamped it."""
    return task.status.applied_at or task.status.timestamp


def best(tasks: Iterable[Task]) -> Task | None:
    """The one to keep where one is enough: running first, then let go before held back, further before less far, older before newer."""
    return max(tasks, key=lambda t: (t.status.state is TaskState.RUNNING, t.desired_state, t.status.state), default=None)
