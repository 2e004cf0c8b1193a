"""All tasks of this node: a synchronous core. Assignments and the ends of calls go in, instructions and statuses to report come out.

`skep.plan.workload` decides each step; this keeps what it decides on: the item, the node's own status (which beats the manager's), the
call under way. Tasks go on without a manager, and after a restart from the state file. The shell (`skep.agent.agent`) carries out
instructions; a simulation does so on a virtual clock. See docs/link.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import msgspec

from skep.agent.state import State
from skep.agent.work import Work
from skep.clock import SECOND
from skep.datapath.base import Snapshot
from skep.link.messages import Assignments
from skep.model.assignment import DiscoveryItem, EndpointItem, Item, NetworkItem, PeerItem, ServiceItem, TaskItem
from skep.model.enums import TaskState
from skep.model.network import Network
from skep.model.task import Task, TaskStatus
from skep.plan.workload import Call, Ended, Situation, Step, after, next_step

RETRY = SECOND
RETRY_LIMIT = 60 * SECOND


class Do(msgspec.Struct, frozen=True):
    """Make this call; tell `Worker.finished` how it ended. REMOVE needs only the id."""

    task_id: str
    call: Call
    item: TaskItem


class Cancel(msgspec.Struct, frozen=True):
    """Cancel the task's call under way; its end is awaited (cancelled or not)."""

    task_id: str


class Apply(msgspec.Struct, frozen=True):
    """Bring the node's network to this snapshot; tell `Worker.network_applied`."""

    snapshot: Snapshot


Instruction = Do | Cancel | Apply


class Worker:
    """All methods take the time. After any of them, `take` gives the instructions to carry out."""

    def __init__(self, state: State, now: int, known: Iterable[str] = ()) -> None:
        """`known`: the tasks of which the runtime has something (`Tasks.known`). What the state file has goes on at once."""
        self._state = state
        self._works: dict[str, Work] = {}
        self._instructions: list[Instruction] = []
        self.changed: dict[str, TaskStatus] = {}
        """Statuses to report, the latest of each; the session takes them."""
        self._strangers = set(known)
        """Tasks found on the node that no assignment has named yet."""
        self._network: dict[str, dict[str, Item]] = {
            "network": {}, "peer": {}, "endpoint": {}, "service": {}, "discovery": {}
        }  # fmt: skip
        self._applying: int | None = None
        self._network_changed = False
        self._network_version = 0
        self._network_retry = 0
        self._greeted_at = 0
        """When the session began; 0: there was none yet."""
        self.network_error = ""
        self.version = 0
        """Of the last assignments taken."""
        self.node_id, self.data_path_port = state.node_id, state.data_path_port
        self._restore(now)

    # in

    def greet(self, node_id: str, data_path_port: int, now: int) -> None:
        """What the manager said of the node when the session began."""
        self._greeted_at = now
        if (node_id, data_path_port) != (self.node_id, self.data_path_port):
            self.node_id, self.data_path_port = node_id, data_path_port
            self._state.node_id, self._state.data_path_port = node_id, data_path_port
            self._network_changed = True

    def assign(self, message: Assignments, now: int) -> None:
        """Take over assignments that are in sequence (the session sees to that)."""
        self.version = self._state.version = message.version
        wanted = {item.key for item in message.set}
        if message.complete:
            for table in self._network.values():
                for key in [key for key in table if key not in wanted]:
                    self._forget_item(key)
            gone = [id for id in self._works if f"task/{id}" not in wanted]
            gone += [id for id in self._strangers if f"task/{id}" not in wanted and id not in self._works]
        else:
            gone = [key.removeprefix("task/") for key in message.remove if key.startswith("task/")]
            for key in message.remove:
                if not key.startswith("task/"):
                    self._forget_item(key)
        tasks = []
        for item in message.set:
            if isinstance(item, TaskItem):
                tasks.append(item)
            elif self._network[item.key.partition("/")[0]].get(item.key) != item:
                self._network[item.key.partition("/")[0]][item.key] = item
                self._state.put_item(item.key, item)
                self._network_changed = True
        self._apply_network(now)
        for id in gone:
            self._withdraw(id, now)
        for item in tasks:
            self._take(item, now)
        if message.complete:
            self._strangers.clear()

    def finished(self, task_id: str, call: Call, ended: Ended, observed: TaskStatus | None, now: int) -> None:
        """A call has ended. `observed`: the runtime's status of the task after it."""
        work = self._works.get(task_id)
        if work is None or work.busy is not call:
            return
        work.busy, work.cancelled = None, False
        work.observed = observed or work.observed
        if call is Call.REMOVE and not ended.error and not ended.cancelled:
            del self._works[task_id]
            self.changed.pop(task_id, None)
            if work.again is not None:
                self._take(work.again, now)
            return
        if call in (Call.SHUTDOWN, Call.REMOVE):
            self._stopped(work, ended, now)
        else:
            step = after(call, ended, work.status)
            if step.state is not None:
                work.stopped = step.state > TaskState.RUNNING
                self._record(work, step, now)
            elif step.error:
                work.failure = step.error
        self._advance(work, now)

    def network_applied(self, version: int, error: str, now: int) -> None:
        """The network stands at this snapshot; or it could not be brought there (`error`), which is tried again."""
        self._applying = None
        self.network_error = error
        if error:
            self._network_changed = True
            self._network_retry = now + RETRY
            for work in self._works.values():
                if work.status.state is TaskState.PREPARING and not self._network_ready(work) and work.status.err != error:
                    self._record(work, Step(state=TaskState.PREPARING, message=work.status.message, error=error), now)
            return
        self._network_version = max(self._network_version, version)
        self._apply_network(now)
        for work in list(self._works.values()):
            self._advance(work, now)

    def left(self, task_ids: Iterable[str], now: int) -> None:
        """No node sends to these tasks any more."""
        for id in task_ids:
            work = self._works.get(id)
            if work is not None and not work.left_at:
                work.left_at = now
                self._advance(work, now)

    def withdraw_all(self, now: int, *, at_once: bool = False) -> None:
        """The node is no longer part of the cluster: everything goes. `empty` says when. `at_once`: killed, also what is being stopped."""
        for work in [work for work in self._works.values() if at_once and not work.at_once]:
            work.at_once, work.retry_at = True, 0
            if work.withdrawn:
                self._advance(work, now)
        for id in [*self._works, *self._strangers]:
            self._withdraw(id, now)
        self._strangers.clear()

    def tick(self, now: int) -> int | None:
        """Try again what failed; returns when to come back."""
        if self._network_changed and self._network_retry <= now:
            self._apply_network(now)
        for work in [work for work in self._works.values() if 0 < work.retry_at <= now or 0 < work.stop_at <= now]:
            if work.retry_at <= now:
                work.retry_at = 0
            if work.stop_at <= now:
                work.stop_at = 0
            self._advance(work, now)
        times = [time for work in self._works.values() for time in (work.retry_at, work.stop_at) if time]
        if self._network_changed and self._applying is None:
            times.append(self._network_retry)
        return min(times, default=None)

    def shift(self, by: int) -> None:
        """The clock was set: what is to be tried again moves with it."""
        self._network_retry += by
        self._greeted_at += by
        for work in self._works.values():
            work.shift(by)

    # out

    def take(self) -> list[Instruction]:
        instructions, self._instructions = self._instructions, []
        return instructions

    @property
    def empty(self) -> bool:
        return not self._works

    @property
    def applied_version(self) -> int:
        """What this node's network and tasks stand at: for Heartbeat."""
        pending = self._network_changed or self._applying is not None
        return self._network_version if pending else self.version

    def statuses(self) -> dict[str, TaskStatus]:
        """Of all tasks, as far as it was this node that brought them there: for Hello."""
        return {id: work.status for id, work in self._works.items() if not work.withdrawn and _ours(work.status)}

    def status(self, task_id: str) -> TaskStatus | None:
        work = self._works.get(task_id)
        return work.status if work else None

    def networks(self) -> list[Network]:
        """Those that this node takes part in."""
        return [item.network for item in self._network["network"].values() if isinstance(item, NetworkItem)]

    def tasks(self) -> list[Task]:
        """Each with the node's own status."""
        return [msgspec.structs.replace(work.item.task, status=work.status) for work in self._works.values() if not work.withdrawn]

    # inside

    def _restore(self, now: int) -> None:
        self.version = self._state.version
        items, statuses = self._state.load()
        for item in items.values():
            if isinstance(item, TaskItem):
                status = statuses.get(item.task.id, item.task.status)
                self._works[item.task.id] = Work(item, status, self.version)
                self._strangers.discard(item.task.id)
            else:
                self._network[item.key.partition("/")[0]][item.key] = item
                self._network_changed = True
        for id in statuses.keys() - self._works.keys():
            self._state.put_status(id, None)  # a power failure took the rest of what was forgotten
        self._apply_network(now)
        for work in list(self._works.values()):
            self._advance(work, now)

    def _take(self, item: TaskItem, now: int) -> None:
        id = item.task.id
        work = self._works.get(id)
        if work is None:
            work = self._works[id] = Work(item, item.task.status, self.version)
            work.stopped = work.stopped and id not in self._strangers
            self._state.put_item(item.key, item)
        elif work.busy is Call.REMOVE:
            work.again = item
            return
        elif work.item != item or work.withdrawn:
            work.item, work.withdrawn = item, False
            self._state.put_item(item.key, item)
        self._advance(work, now)

    def _withdraw(self, id: str, now: int) -> None:
        work = self._works.get(id)
        if work is None:
            if id not in self._strangers:
                return
            work = self._works[id] = Work(TaskItem(task=Task(id=id)), TaskStatus(), self.version)
            work.stopped = True
        work.again = None
        if work.withdrawn:
            return
        work.withdrawn = True
        self.changed.pop(id, None)
        self._state.put_item(work.item.key, None)
        self._state.put_status(id, None)
        self._advance(work, now)

    def _forget_item(self, key: str) -> None:
        table = self._network.get(key.partition("/")[0], {})
        if table.pop(key, None) is not None:
            self._state.put_item(key, None)
            self._network_changed = True

    def _stopped(self, work: Work, ended: Ended, now: int) -> None:
        """A shutdown that failed is tried again, more and more slowly, for ever: nothing else may be done before the task is down."""
        if ended.cancelled and work.at_once:
            return  # it made way for the removal
        if ended.error or ended.cancelled:
            work.retry_at = now + min(RETRY << min(work.retries, 10), RETRY_LIMIT)
            work.retries += 1
            if ended.error and not work.withdrawn and work.status.err != ended.error and work.status.state <= TaskState.RUNNING:
                self._record(work, Step(state=work.status.state, message=work.status.message, error=ended.error), now)
        else:
            work.retries, work.stopped = 0, True

    def _advance(self, work: Work, now: int) -> None:
        while not work.retry_at:
            step = next_step(
                Situation(
                    desired=work.item.task.desired_state,
                    status=work.status,
                    busy=work.busy,
                    withdrawn=work.withdrawn,
                    at_once=work.at_once,
                    stopped=work.stopped,
                    failure=work.failure,
                    exit_code=work.observed.container.exit_code if work.observed and work.observed.container else 0,
                    network_ready=self._network_ready(work),
                    leaving=work.leaving(now, self._greeted_at),
                )
            )
            if step.cancel and not work.cancelled:
                work.cancelled = True
                self._instructions.append(Cancel(work.item.task.id))
            if step.call is not None:
                work.busy = step.call
                work.stopped = work.stopped and step.call is Call.REMOVE
                self._instructions.append(Do(work.item.task.id, step.call, work.item))
            if step.state is None:
                return
            self._record(work, step, now)

    def _record(self, work: Work, step: Step, now: int) -> None:
        state = step.state if step.state is not None else work.status.state
        seen = work.observed if state >= TaskState.STARTING else None
        remark = f" ({seen.message})" if seen is not None and seen.message and state is TaskState.RUNNING else ""
        work.status = TaskStatus(
            timestamp=now,
            state=state,
            message=step.message + remark,
            err=step.error,
            container=(seen and seen.container) or work.status.container,
            ports=(seen.ports if seen else ()) or work.status.ports,
        )
        if state > TaskState.RUNNING:
            work.failure = ""
        if work.withdrawn:
            return  # a call that ended all the same: nobody asks for it any more, and nothing would ever forget it
        self._state.put_status(work.item.task.id, work.status)
        self.changed[work.item.task.id] = work.status

    def _network_ready(self, work: Work) -> bool:
        return work.version <= self._network_version or not any(place.addresses for place in work.item.task.attachments)

    def _apply_network(self, now: int) -> None:
        if self._applying is not None:
            return
        if not self._network_changed:
            self._network_version = max(self._network_version, self.version)
            return
        if now < self._network_retry:
            return
        self._network_changed = False
        self._applying = self.version
        tables = self._network
        snapshot = Snapshot(
            version=self.version,
            node_id=self.node_id,
            data_path_port=self.data_path_port,
            networks=cast(dict[str, NetworkItem], tables["network"].copy()),
            peers=cast(dict[str, PeerItem], tables["peer"].copy()),
            endpoints=cast(dict[str, EndpointItem], tables["endpoint"].copy()),
            services=cast(dict[str, ServiceItem], tables["service"].copy()),
            discovery=cast(dict[str, DiscoveryItem], tables["discovery"].copy()),
        )
        self._instructions.append(Apply(snapshot))


def _ours(status: TaskStatus) -> bool:
    """A state that a node reports: not what allocator, scheduler or a manager wrote."""
    return TaskState.ACCEPTED <= status.state <= TaskState.REJECTED
