"""A node's session with a manager: a synchronous core. Messages and the time go in, messages come out; the transport is somebody else's.

Connect, greet, beat, report, and begin anew when anything is missing: a gap in the assignments, a heartbeat without an answer. Reports are
batched, only the latest status of each task is kept, and each is repeated until a manager has it durably. See docs/link.md.
"""

from __future__ import annotations

from collections.abc import Callable

from skep.agent.worker import Worker
from skep.clock import MILLISECOND, SECOND
from skep.ids import Random
from skep.link.messages import (
    Answer,
    Applied,
    Assignments,
    Attach,
    Beaten,
    CheckWanted,
    Closing,
    Described,
    Find,
    FromAgent,
    FromManager,
    Heartbeat,
    Hello,
    Leave,
    Left,
    LogsUnwanted,
    LogsWanted,
    NodeChanged,
    Report,
    Reported,
    Welcome,
)
from skep.model.node import NodeDescription
from skep.model.spec import NodeSpec
from skep.model.task import TaskStatus

BACKOFF = 100 * MILLISECOND
BACKOFF_LIMIT = 8 * SECOND
ANSWER_TIMEOUT = 5 * SECOND
"""For Welcome, and for the answer to a heartbeat."""
REPORT_TIMEOUT = 10 * SECOND
"""After this without an acknowledgement statuses are reported again."""
DESCRIBE_EVERY = 5 * SECOND
"""Looked at so often; told when it is another one."""
BATCH_WAIT = 5 * MILLISECOND
"""From the first change: several steps of a task, or several tasks, are one report."""


class Session:
    """`connect_at` says when to connect (None: connected, or over). After each call look at `broken` (drop the connection, call `lost`),
    `removed` (the cluster has no place for this node any more), `logs` (log streams wanted or no longer wanted) and `answers`."""

    def __init__(
        self,
        worker: Worker,
        describe: Callable[[], NodeDescription],
        rng: Random,
        now: int,
        *,
        address: str = "",
        managers: tuple[str, ...] = (),
    ) -> None:
        self._worker = worker
        self._describe = describe
        self._rng = rng
        self._address = address
        self.connect_at: int | None = now
        self.broken = ""
        self.removed = False
        self.reason = ""
        """Why there is no session: the last error, for `info`."""
        self.welcomed = False
        self.id = ""
        self.node_id = ""
        self.spec: NodeSpec | None = None
        self.managers = managers
        self.logs: list[LogsWanted | LogsUnwanted] = []
        self.answers: list[Answer] = []
        self.checks: list[CheckWanted] = []
        """Asked and not yet begun."""
        self._questions: dict[str, Attach | Find] = {}
        self._unasked: list[str] = []
        self._acknowledge = 0
        """The version of which the manager wants to hear when the network has it."""
        self._connected = False
        self._backoff = 0
        self._sequence = 0
        self._reports = 0
        self._unacknowledged: dict[str, tuple[int, TaskStatus]] = {}
        self._reported_at = 0
        self._batch_due: int | None = None
        self._beat_at: int | None = None
        self._answer_by: int | None = None
        self._describe_at = 0
        self._description: NodeDescription | None = None
        self._period = 5 * SECOND

    def connecting(self) -> None:
        """A connection is being made; its end is told by `connected` or `lost`."""
        self.connect_at = None

    def connected(self, now: int) -> list[FromAgent]:
        self._connected, self.connect_at, self.broken = True, None, ""
        self._sequence = self._reports = self._acknowledge = 0
        self._unasked = list(self._questions)
        self._unacknowledged.clear()
        self._worker.changed.clear()
        self._batch_due = None
        self._answer_by = now + ANSWER_TIMEOUT
        self._describe_at = now + DESCRIBE_EVERY
        self._description = self._describe()
        return [Hello(description=self._description, statuses=self._worker.statuses(), address=self._address)]

    def lost(self, now: int, reason: str = "") -> None:
        """The connection could not be made, or is gone."""
        self._connected = self.welcomed = False
        self.broken = ""
        self.reason = reason or self.reason
        self._beat_at = self._answer_by = self._batch_due = None
        self._backoff = min(BACKOFF + 2 * self._backoff, BACKOFF_LIMIT)
        self.connect_at = None if self.removed else now + int(self._rng.uniform(0, self._backoff))

    def received(self, message: FromManager, now: int) -> list[FromAgent]:
        if not self._connected or self.broken:
            return []
        if not self.welcomed and not isinstance(message, Welcome | Closing):
            return self._break("the manager did not greet")
        match message:
            case Welcome():
                self._welcome(message, now)
            case Beaten():
                self._period, self._answer_by = message.period, None
                if message.sequence > self._sequence:
                    return self._break(f"assignments {self._sequence + 1} are missing")
            case Reported():
                done = [id for id, (sequence, _) in self._unacknowledged.items() if sequence <= message.sequence]
                for id in done:
                    del self._unacknowledged[id]
            case Assignments():
                return self._assigned(message, now)
            case Left():
                self._worker.left(message.tasks, now)
            case Answer():
                if self._questions.pop(message.question, None) is not None:
                    self.answers.append(message)
            case NodeChanged():
                self.spec, self.managers = message.spec, message.managers or self.managers
            case Closing():
                self.removed = self.removed or message.removed
                self._break(message.reason)
            case LogsWanted() | LogsUnwanted():
                self.logs.append(message)
            case CheckWanted():
                self.checks.append(message)
        return []

    def tick(self, now: int) -> list[FromAgent]:
        """What is due now. Call it after the worker had something to do, and at `next_time`."""
        if not self._connected or self.broken:
            return []
        if self._answer_by is not None and now >= self._answer_by:
            return self._break("the manager does not answer")
        if not self.welcomed:
            return []
        messages: list[FromAgent] = []
        if self._beat_at is not None and now >= self._beat_at:
            messages.append(Heartbeat(applied_version=self._worker.applied_version))
            self._beat_at = now + self._period
            self._answer_by = self._answer_by or now + ANSWER_TIMEOUT
        if now >= self._describe_at:
            self._describe_at = now + DESCRIBE_EVERY
            description = self._describe()
            if description != self._description:
                self._description = description
                messages.append(Described(description=description))
        if self._acknowledge and self._worker.applied_version >= self._acknowledge:
            self._acknowledge = 0
            messages.append(Applied(version=self._worker.applied_version))
        asked, self._unasked = [self._questions[id] for id in self._unasked if id in self._questions], []
        return [*messages, *self._report(now, at_once=bool(asked)), *asked]

    def ask(self, id: str, question: Attach | Find) -> None:
        """Ask the manager, this one or the next, until it answers (`answers`) or `forget`. What the node has to report it says first: a
        container that comes back does not stand in its own way."""
        self._questions[id] = question
        self._unasked.append(id)

    def forget(self, id: str) -> None:
        self._questions.pop(id, None)

    def leave(self) -> list[FromAgent]:
        """Say that the node leaves; `removed` follows from the manager's answer, or needs none."""
        self.removed = True
        self.connect_at = None
        return [Leave()] if self.welcomed else []

    def shift(self, by: int) -> None:
        """The clock was set: what was due moves with it."""
        for name in ("connect_at", "_batch_due", "_beat_at", "_answer_by"):
            if (at := getattr(self, name)) is not None:
                setattr(self, name, at + by)
        self._reported_at += by
        self._describe_at += by

    def next_time(self) -> int | None:
        if not self._connected:
            return self.connect_at
        times = [self._answer_by]
        if self.welcomed:
            times += [self._beat_at, self._describe_at, self._batch_due]
            if self._unacknowledged:
                times.append(self._reported_at + REPORT_TIMEOUT)
        return min((time for time in times if time is not None), default=None)

    def _welcome(self, message: Welcome, now: int) -> None:
        self.welcomed, self.id, self.node_id, self.reason = True, message.session_id, message.node_id, ""
        self.spec, self.managers = message.spec, message.managers or self.managers
        self._backoff = 0
        self._period, self._answer_by = message.heartbeat_period, None
        self._beat_at = now + self._period
        self._worker.greet(message.node_id, message.data_path_port, now)

    def _assigned(self, message: Assignments, now: int) -> list[FromAgent]:
        if not message.complete and message.applies_to != self._sequence:
            return self._break(f"assignments {self._sequence + 1} are missing")
        self._sequence = message.results_in
        self._worker.assign(message, now)
        if message.acknowledge:
            self._acknowledge = message.version
        return []

    def _report(self, now: int, *, at_once: bool = False) -> list[FromAgent]:
        if self._unacknowledged and now >= self._reported_at + REPORT_TIMEOUT:
            for id, (_, status) in self._unacknowledged.items():
                self._worker.changed.setdefault(id, status)
            self._unacknowledged.clear()
        changed = self._worker.changed
        if not changed:
            self._batch_due = None
            return []
        if self._batch_due is None:
            self._batch_due = now + BATCH_WAIT
        if now < self._batch_due and not at_once:
            return []
        self._batch_due = None
        self._reports += 1
        if not self._unacknowledged:
            self._reported_at = now
        statuses = dict(changed)
        changed.clear()
        self._unacknowledged.update({id: (self._reports, status) for id, status in statuses.items()})
        return [Report(sequence=self._reports, statuses=statuses)]

    def _break(self, reason: str) -> list[FromAgent]:
        self.broken = reason or "the manager ended the session"
        return []
