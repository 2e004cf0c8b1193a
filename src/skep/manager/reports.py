"""What nodes report of their tasks, gathered and merged until it is written: states never go back, and what changes nothing is not
written."""

from __future__ import annotations

import msgspec

from skep.errors import Forbidden
from skep.manager.bounds import oversized
from skep.model.enums import TaskState
from skep.model.task import Task, TaskStatus
from skep.plan.ops import Change, Op
from skep.plan.view import View

BATCH_ITEMS = 10_000
TEXT_LIMIT = 4096
"""Characters of a message or error that a node may report; the rest is cut off."""


class Reports:
    """The latest reported status of each task, until `take`."""

    def __init__(self) -> None:
        self._statuses: dict[str, TaskStatus] = {}

    def __len__(self) -> int:
        return len(self._statuses)

    def add(self, view: View, node_id: str, statuses: dict[str, TaskStatus]) -> bool:
        """All of it or nothing; returns whether there is anything to write. Tasks that are gone are left out.

        Raises Forbidden for another node's task, or a state that is not a node's to report.
        """
        taken: dict[str, TaskStatus] = {}
        for id, status in statuses.items():
            task = view.get(Task, id)
            if task is None:
                continue
            if task.node_id != node_id or task.status.state < TaskState.ASSIGNED:
                raise Forbidden(f"task {id} is not assigned to node {node_id}", rpc="PermissionDenied")
            if not TaskState.ACCEPTED <= status.state <= TaskState.REJECTED:
                raise Forbidden(f"a node may not report {status.state.word} (task {id})", rpc="PermissionDenied")
            if oversized(status):
                raise Forbidden(f"the status of task {id} is too large", rpc="PermissionDenied")
            taken[id] = status
        for id, status in taken.items():
            waiting = self._statuses.get(id)
            if waiting is None or waiting.state <= status.state:
                self._statuses[id] = status
        return bool(taken)

    def take(self, view: View, now: int) -> list[Op]:
        """The operations that write it all. `applied_at` and `running_at` are this manager's clock: what plans trust."""
        statuses, self._statuses = self._statuses, {}
        ops: list[Op] = []
        for id, status in statuses.items():
            task = view.get(Task, id)
            if task is None or status.state < task.status.state:
                continue
            stamped = msgspec.structs.replace(status, message=status.message[:TEXT_LIMIT], err=status.err[:TEXT_LIMIT], applied_at=now)
            known = msgspec.structs.replace(task.status, timestamp=stamped.timestamp, applied_at=now)
            if stamped == known:
                continue
            fields: dict[str, object] = {"status": stamped}
            if status.state is TaskState.RUNNING and not task.running_at:
                fields["running_at"] = now
            ops.append(Change(Task, id, fields, f"its node reports: {status.err or status.message or status.state.word}"))
        return ops
