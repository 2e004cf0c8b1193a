"""What the worker keeps of one task."""

from __future__ import annotations

from skep.model.assignment import TaskItem
from skep.model.enums import TaskState
from skep.model.labels import service_labels
from skep.model.task import TaskStatus
from skep.plan.workload import Call, serves, stop_time


class Work:
    """One task here."""

    __slots__ = (
        "again",
        "at_once",
        "busy",
        "cancelled",
        "failure",
        "item",
        "left_at",
        "observed",
        "retries",
        "retry_at",
        "status",
        "stop_at",
        "stopped",
        "told_at",
        "version",
        "withdrawn",
    )

    def __init__(self, item: TaskItem, status: TaskStatus, version: int) -> None:
        self.item = item
        self.status = status
        self.version = version
        """Of the assignments that brought it: its network is there once the network has that version."""
        self.observed: TaskStatus | None = None
        self.busy: Call | None = None
        self.cancelled = False
        self.withdrawn = False
        self.at_once = False
        """It is withdrawn without time to end by itself."""
        self.again: TaskItem | None = None
        """Assigned anew while it was being removed."""
        self.stopped = status.state > TaskState.RUNNING
        self.failure = ""
        self.retries = 0
        self.retry_at = 0
        self.told_at = 0
        """When it was told to stop while it served."""
        self.left_at = 0
        """When the manager said that nobody sends to it any more."""
        self.stop_at = 0
        """It leaves, and may be stopped then; 0: it does not, or did."""

    def leaving(self, now: int, since: int) -> bool:
        """It is to stop, and may not be stopped yet: see `skep.plan.workload.stop_time`. Keeps the times that this depends on."""
        self.stop_at = 0
        task = self.item.task
        if self.withdrawn or task.desired_state <= TaskState.COMPLETE or not serves(task, self.status):
            return False
        self.told_at = self.told_at or now
        stop_at = stop_time(self.told_at, self.left_at, service_labels(self.item.service_labels).drain, since)
        if now >= stop_at:
            return False
        self.stop_at = stop_at
        return True

    def shift(self, by: int) -> None:
        """The clock was set: what is to be tried again, and what is waited for, moves with it."""
        for name in ("retry_at", "told_at", "left_at", "stop_at"):
            if at := getattr(self, name):
                setattr(self, name, at + by)
