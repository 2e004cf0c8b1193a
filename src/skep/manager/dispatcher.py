"""Sessions with the nodes: who is there, what each is told, and what they report. A synchronous core: messages and the time in, messages
out.

It owns nodes' status and description, and the steps of a task's status that its node reports. A node hears only of what is durable, and is
told "stored" only when it is. Nothing here outlives a manager: a new one reads the store, gives every node time to come back, and takes
all reports anew. `skep.manager.sessions` runs it in real time, a simulation drives it directly. See docs/link.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from skep.errors import Forbidden
from skep.ids import Random, new_id
from skep.link.channel import Refused
from skep.link.messages import (
    Answer,
    Applied,
    Attach,
    Beaten,
    Closing,
    Described,
    Find,
    FromAgent,
    FromManager,
    Heartbeat,
    Hello,
    Leave,
    NodeChanged,
    Report,
    Reported,
    Welcome,
)
from skep.manager.attaching import Attaching
from skep.manager.bounds import DESCRIBE_GAP, OUTBOX_LIMIT, Registrations, check_greeting, too_long
from skep.manager.departures import Departures
from skep.manager.feeds import Feeds
from skep.manager.nodes import described, doubted, down, nodes_to_wait_for, welcome
from skep.manager.reports import BATCH_ITEMS, Reports
from skep.manager.session import DISCOVERY, Readers, Session, fall_due
from skep.manager.timing import Batch, Deadlines
from skep.model.cluster import Cluster
from skep.model.defaults import HEARTBEAT_GRACE, HEARTBEAT_PERIOD
from skep.model.enums import NodeState
from skep.model.node import Node, NodeDescription, NodeStatus
from skep.model.task import TaskStatus
from skep.plan.ops import Op
from skep.store.base import Event, Store

START_GRACE = 2
"""How many times the usual grace nodes get after a manager's start."""
BY = "dispatcher"


class Dispatcher:
    """All methods are synchronous and take the time; `on_ready` is called for each session that gets something to send.

    Open the store's watch (of all kinds) before making one: durable changes come in by `changed`. `tick` returns when to call it next.
    """

    def __init__(self, store: Store, rng: Random, now: int, *, on_ready: Callable[[Session], None] | None = None) -> None:
        self._store = store
        self._rng = rng
        self._feeds = Feeds(store)
        self.managers = self._feeds.managers()
        """`ip:port` of all managers."""
        self._on_ready = on_ready
        self.sessions: dict[str, Session] = {}
        """By node id."""
        self.applied: dict[str, int] = {}
        """Node id -> the snapshot version it has applied, from its last heartbeat."""
        self._readers: Readers = {}
        self._ready: dict[Session, None] = {}
        self._awaiting: deque[tuple[int, Session, FromManager]] = deque()
        self._deadlines = Deadlines()
        self._registrations = Registrations()
        self._assignments_due = Batch()
        self._reports_due = Batch()
        self._reports = Reports()
        self._acknowledgements: list[tuple[Session, int]] = []
        self._departures = Departures(self._feeds)
        self._attaching = Attaching(store)
        self._take_over(now)
        self._departures.begin()

    # what a node says

    def connect(self, node_id: str, hello: Hello, now: int, peer: str = "") -> Session:
        """Begin a session; it takes the place of one the node already has. `peer`: the address the manager sees.

        Raises Refused (unknown node, protocol, too many registrations). Welcome follows when the node's READY is durable.
        """
        node = self._store.get(Node, node_id)
        if node is None:
            raise Refused(f"node {node_id} is not part of this cluster", rpc="NotFound")
        check_greeting(hello)
        self._registrations.check(node_id, now)
        if (old := self.sessions.get(node_id)) is not None:
            self._close(old, "the node began a new session")
        session = self.sessions[node_id] = Session(new_id(self._rng), node_id, hello.protocol)
        status = NodeStatus(state=NodeState.READY, addr=hello.address or peer, since=now)
        version = self._write_node(node, status, hello.description, "the node began a session")
        period = self._beat(session, now)
        self._awaiting.append((version, session, welcome(session, node, period, self.managers, self._cluster())))
        self._report(session, hello.statuses, now)
        self._release_durable()
        return session

    def receive(self, session: Session, message: FromAgent, now: int) -> None:
        """Any message of a running session. What the node may not say ends the session."""
        if session.closed:
            return
        match message:
            case Heartbeat():
                self._note_applied(session, message.applied_version)
                self._put(session, Beaten(period=self._beat(session, now), sequence=session.sequence))
            case Applied():
                self._note_applied(session, message.version)
            case Report():
                self._take_report(session, message, now)
            case Attach():
                self._write_reports(now)
                self._answer(self._attaching.attach(session, message, now))
            case Find():
                self._put(session, self._attaching.find(message, self._feeds.names(session.node_id)))
            case Described():
                self._describe(session, message.description, now)
            case Leave():
                self._leave(session, now)
            case Hello():
                self._close(session, "a second greeting in one session")

    def _describe(self, session: Session, description: NodeDescription, now: int) -> None:
        node = self._store.get(Node, session.node_id)
        if 0 <= now - session.described_at < DESCRIBE_GAP:
            self._close(session, "the node describes itself too often")
        elif (reason := too_long(description)) is not None:
            self._close(session, reason)
        elif node is not None:
            session.described_at = now
            self._write_node(node, node.status, description, "the node's description changed")

    def disconnect(self, session: Session) -> None:
        """The connection is gone. The node stays READY until its heartbeat is overdue: most come back at once."""
        session.outbox.clear()
        self._forget(session)

    # what the manager says

    def pending_messages(self, session: Session) -> list[FromManager]:
        """What is to be sent now, in order. Assignments are put together at the last moment: what changes meanwhile does not pile up."""
        self._ready.pop(session, None)
        return session.take(self._feeds, self._readers)

    def take_ready(self) -> list[Session]:
        """The sessions with something to send, in the order in which they got it; for callers without `on_ready`."""
        ready, self._ready = list(self._ready), {}
        return ready

    def send(self, node_id: str, message: FromManager) -> bool:
        """Something else for this node (logs wanted). False: it has no session."""
        session = self.sessions.get(node_id)
        if session is None or not session.welcomed:
            return False
        self._put(session, message)
        return True

    # what happens

    def changed(self, events: Iterable[Event], now: int) -> None:
        """Durable changes, from the store's watch."""
        events = list(events)
        if self._feeds.change(events):
            self._assignments_due.touch(now)
        answers: list[tuple[Session, Answer]] = []
        for event in events:
            if event.kind is Node:
                self._node_changed(event)
            answers += self._attaching.changed(event)
        self._answer(answers)
        self._depart()
        self._release_durable()

    def tick(self, now: int) -> int | None:
        """Do what is due; returns when to come back."""
        if self._reports_due.take(now) or len(self._reports) >= BATCH_ITEMS:
            self._write_reports(now)
        if self._assignments_due.take(now):
            self._release_assignments()
        self._release_durable()
        self._answer(self._attaching.expire(now))
        self._expire(now)
        return self.next_time()

    def next_time(self) -> int | None:
        times = [self._assignments_due.due(), self._reports_due.due(), self._deadlines.next_time(), self._attaching.next_time()]
        return min((time for time in times if time is not None), default=None)

    def shift(self, by: int) -> None:
        """The clock was set by so much: what was due moves with it."""
        for timer in (self._deadlines, self._assignments_due, self._reports_due, self._attaching):
            timer.shift(by)

    def held_up(self, by: int) -> None:
        """This manager has not run for so long, and not heard what its nodes said: each gets the whole grace anew."""
        self._deadlines.shift(by + HEARTBEAT_GRACE * self._period())

    def stop(self, reason: str = "this manager stops") -> None:
        """End all sessions; what is still to be sent says why."""
        for session in list(self.sessions.values()):
            self._close(session, reason)

    # nodes

    def _take_over(self, now: int) -> None:
        """At a manager's start nobody knows which nodes are there: those that were get twice the usual time to come back."""
        ops: list[Op] = []
        for node in nodes_to_wait_for(self._store):
            if (op := doubted(node, now)) is not None:
                ops.append(op)
            self._deadlines.expect(node.id, now + START_GRACE * HEARTBEAT_GRACE * self._period())
        if ops:
            self._store.apply(ops, by=BY)

    def _write_node(self, node: Node, status: NodeStatus, description: NodeDescription, because: str) -> int:
        """Returns the version after which it is stored; nothing is written when nothing changed."""
        op = described(node, status, description, self.applied.get(node.id, 0), because)
        return self._store.apply([op], by=BY) if op is not None else self._store.version

    def _cluster(self) -> Cluster | None:
        return next(iter(self._store.all(Cluster)), None)

    def _period(self) -> int:
        cluster = self._cluster()
        return (cluster and cluster.spec.dispatcher.heartbeat_period) or HEARTBEAT_PERIOD

    def _beat(self, session: Session, now: int) -> int:
        period = int(self._period() * self._rng.uniform(0.9, 1.1))
        self._deadlines.expect(session.node_id, now + HEARTBEAT_GRACE * period)
        return period

    def _expire(self, now: int) -> None:
        ops: list[Op] = []
        for node_id in self._deadlines.overdue(now):
            if (session := self.sessions.get(node_id)) is not None:
                self._close(session, "heartbeat failure")
            ops += down(self._store.get(Node, node_id), "heartbeat failure", now)
        self._store.apply(ops, by=BY)

    def _leave(self, session: Session, now: int) -> None:
        self._deadlines.forget(session.node_id)
        self._write_reports(now)
        if ops := down(self._store.get(Node, session.node_id), "the node left the cluster", now, left=True):
            self._store.apply(ops, by=BY)
        self._close(session, "the node leaves the cluster")

    def _node_changed(self, event: Event) -> None:
        managers = self._feeds.managers()
        if managers != self.managers:
            self.managers = managers
            for session in self.sessions.values():
                self._tell_node(session)
        found = self.sessions.get(event.id)
        if not isinstance(event.new, Node) or event.new.status.state is NodeState.DOWN:
            self._departures.gone(event.id)
        if event.new is None:
            self._deadlines.forget(event.id)
            self.applied.pop(event.id, None)
            self._registrations.forget(event.id)
            if found is not None:
                self._close(found, "this node was removed from the cluster", removed=True)
        elif found is not None and isinstance(event.new, Node) and isinstance(event.old, Node) and event.old.spec != event.new.spec:
            self._tell_node(found)

    def _tell_node(self, session: Session) -> None:
        node = self._feeds.nodes.get(session.node_id)
        if node is not None and session.welcomed:
            self._put(session, NodeChanged(spec=node.spec, managers=self.managers))

    # tasks that leave, and places for plain containers

    def _note_applied(self, session: Session, version: int) -> None:
        self.applied[session.node_id] = version
        self._departures.applied(session.node_id, version)
        self._tell_left()

    def _depart(self) -> None:
        self._ask(self._departures.begin())
        self._tell_left()

    def _ask(self, nodes: Iterable[str]) -> list[Session]:
        """With what they are sent next, they are to say when they have applied it."""
        found = [self.sessions[node_id] for node_id in sorted(nodes) if node_id in self.sessions]
        for session in found:
            session.ask = session.protocol >= DISCOVERY
            if not session.ask:
                self._departures.gone(session.node_id)
        return found

    def _tell_left(self) -> None:
        for node_id, tasks in self._departures.take_left().items():
            session = self.sessions.get(node_id)
            # one that is not welcomed yet: `joins` asks anew for its tasks, for it may still send to them itself
            if session is not None and session.welcomed:
                session.left |= tasks
                session.due = True
                self._wake(session)

    def _answer(self, answers: list[tuple[Session, Answer]]) -> None:
        for session, answer in answers:
            if not session.closed:
                self._put(session, answer)

    # reports

    def _take_report(self, session: Session, report: Report, now: int) -> None:
        if report.sequence <= session.reports:
            self._acknowledge(session, session.reports, now)
        elif report.sequence > session.reports + 1:
            self._close(session, f"report {session.reports + 1} is missing")
        elif self._report(session, report.statuses, now):
            session.reports = report.sequence
            self._acknowledge(session, report.sequence, now)

    def _acknowledge(self, session: Session, sequence: int, now: int) -> None:
        self._acknowledgements.append((session, sequence))
        self._reports_due.touch(now)

    def _report(self, session: Session, statuses: dict[str, TaskStatus], now: int) -> bool:
        """What a node says of another's task ends its session, and nothing of that report counts."""
        try:
            if self._reports.add(self._store, session.node_id, statuses):
                self._reports_due.touch(now)
        except Forbidden as error:
            self._close(session, error.message)
            return False
        return True

    def _write_reports(self, now: int) -> None:
        ops = self._reports.take(self._store, now)
        version = self._store.apply(ops, by=BY) if ops else self._store.version
        acknowledgements, self._acknowledgements = self._acknowledgements, []
        for session, sequence in acknowledgements:
            self._awaiting.append((version, session, Reported(sequence=sequence)))

    # sending

    def _put(self, session: Session, message: FromManager) -> None:
        if len(session.outbox) >= OUTBOX_LIMIT and not session.closed:
            session.outbox.clear()
            self._close(session, "the node does not read what it is sent")
            return
        session.outbox.append(message)
        self._wake(session)

    def _wake(self, session: Session) -> None:
        self._ready[session] = None
        if self._on_ready is not None:
            self._on_ready(session)

    def _close(self, session: Session, reason: str, *, removed: bool = False) -> None:
        if session.closed:
            return
        self._forget(session)
        self._put(session, Closing(reason=reason, removed=removed))

    def _forget(self, session: Session) -> None:
        session.closed = True
        self._ready.pop(session, None)
        self._attaching.drop(session)
        session.stop_reading(self._readers)
        if self.sessions.get(session.node_id) is session:
            del self.sessions[session.node_id]

    def _release_durable(self) -> None:
        durable = self._store.durable_version
        while self._awaiting and self._awaiting[0][0] <= durable:
            _, session, message = self._awaiting.popleft()
            if session.closed:
                continue
            if isinstance(message, Welcome):
                session.welcomed = session.due = True
                for other in self._ask(self._departures.joins(session.node_id)):
                    other.due = True
                    self._wake(other)
                self._tell_left()
            self._put(session, message)

    def _release_assignments(self) -> None:
        for session in fall_due(self._feeds, self._readers, self.sessions):
            self._wake(session)
        self._feeds.settle()
