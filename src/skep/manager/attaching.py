"""Plain containers on the cluster's networks: a node asks for a place, an attachment task is made, its address is the answer.

An attachment task (SwarmKit's network attachment) has a node from the start, no service and no container of its own. The allocator gives
it an address, its node reports it RUNNING while the container has its sandbox, and the reaper takes it away when that has ended: nobody
else decides about it. A question is asked anew in each session of the node under the same id, so nothing of a question is kept but who
waits for its answer. See docs/link.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from skep.clock import SECOND
from skep.errors import Conflict, Forbidden, Invalid, NotFound, SkepError, Unavailable
from skep.link.messages import Answer, Attach, Find
from skep.manager.session import Session
from skep.model.enums import TaskState
from skep.model.network import Network
from skep.model.node import Node
from skep.model.spec import AttachmentSpec, NetworkAttachmentConfig, TaskSpec
from skep.model.tables import NETWORK_BY_NAME, TASK_BY_NODE
from skep.model.task import Attachment, Task, TaskStatus
from skep.plan.allocate.addresses import number, subnet_of
from skep.plan.ops import Change, Create, Op
from skep.store.base import Event, Store

BY = "control"
ANSWER_WITHIN = 15 * SECOND
"""The node itself gives up after 20 s."""
NAMES_LIMIT = 64
NAME_LENGTH = 255
QUESTIONS_LIMIT = 512
"""Of one node at once: containers that are started together."""
_TASK_ID = re.compile(r"[0-9a-z]{25}")
_CONTAINER_ID = re.compile(r"[0-9a-f]{64}")


class _Waiting(msgspec.Struct, frozen=True):
    session: Session
    question: str
    network_id: str
    asked: str
    """How the node called the network."""
    until: int


class Attaching:
    """Answers come from each call as (session, answer), to be sent. Tasks are written as control's: they are what a user asked for."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[str, list[_Waiting]] = {}
        """Task id -> who wants to hear of it."""
        self.drop_lost()

    def find(self, message: Find, networks: Iterable[str]) -> Answer:
        """`networks`: those that the node takes part in."""
        network = self._network(message.reference, by_prefix=True)
        if network is not None and message.joining and not _attachable(network):
            return _refusal(message.question, _closed(network))
        known = network is not None and (_attachable(network) or network.id in networks)
        return Answer(question=message.question, network=network if known else None)

    def attach(self, session: Session, message: Attach, now: int) -> list[tuple[Session, Answer]]:
        """Nothing: the answer follows."""
        try:
            if sum(waiting.session is session for found in self._waiting.values() for waiting in found) >= QUESTIONS_LIMIT:
                raise Unavailable("this node asks for too many places at once")
            _check(message)
            network = self._network(message.network)
            if network is None:
                raise NotFound(f"network {message.network} not found")
            if not _attachable(network):
                raise _closed(network)
            task = self._task(session.node_id, network, message)
        except SkepError as error:
            return [(session, _refusal(message.task_id, error))]
        waiting = _Waiting(session, message.task_id, network.id, message.network, now + ANSWER_WITHIN)
        self._waiting.setdefault(task.id, []).append(waiting)
        return self._look(task) if self._durable(task) and self._settled(task) else []

    def changed(self, event: Event) -> list[tuple[Session, Answer]]:
        """A durable change of a task, or a node that is gone."""
        if event.kind is Node and event.new is None:
            self.drop_lost()
        if event.id not in self._waiting or event.kind is not Task:
            return []
        task = event.new
        if isinstance(task, Task):
            return self._look(task) if self._settled(task) else []
        gone = Unavailable("the place was taken away again")
        return [(waiting.session, _refusal(waiting.question, gone)) for waiting in self._waiting.pop(event.id)]

    def expire(self, now: int) -> list[tuple[Session, Answer]]:
        answers = []
        for id, found in list(self._waiting.items()):
            if found[0].until <= now:
                task = self._store.get(Task, id)
                error = Unavailable((task and task.status.err) or "no address was given in time")
                answers += [(waiting.session, _refusal(waiting.question, error)) for waiting in self._waiting.pop(id)]
                self._remove([id], "nobody waits for this place any more")
        return answers

    def next_time(self) -> int | None:
        return min((found[0].until for found in self._waiting.values()), default=None)

    def shift(self, by: int) -> None:
        """The clock was set."""
        for id, found in self._waiting.items():
            self._waiting[id] = [msgspec.structs.replace(waiting, until=waiting.until + by) for waiting in found]

    def drop(self, session: Session) -> None:
        """The session is over: the node asks again in its next."""
        for id in [id for id, found in self._waiting.items() if any(waiting.session is session for waiting in found)]:
            self._waiting[id] = [waiting for waiting in self._waiting[id] if waiting.session is not session]
            if not self._waiting[id]:
                del self._waiting[id]

    def drop_lost(self) -> None:
        """Places that were never given, for nodes that are gone: their node will not say that they have ended."""
        lost = [
            task.id
            for task in self._store.all(Task)
            if not task.service_id and task.status.state < TaskState.ASSIGNED and self._store.get(Node, task.node_id) is None
        ]
        self._remove(lost, "its node is gone")

    # inside

    def _network(self, reference: str, *, by_prefix: bool = False) -> Network | None:
        network = self._store.get(Network, reference)
        if network is None and reference:
            named = list(self._store.find(NETWORK_BY_NAME, reference.lower()))
            begins = [n for n in self._store.all(Network) if n.id.startswith(reference)] if by_prefix and not named else []
            network = named[0] if named else begins[0] if len(begins) == 1 else None
        return network

    def _task(self, node_id: str, network: Network, message: Attach) -> Task:
        """The place this container has, or a new one. Raises Conflict, Invalid."""
        for task in self._store.find(TASK_BY_NODE, node_id):
            if not _is_place(task, message.container_id, network.id) or not task.live:
                continue
            if message.address and not any(_same(message.address, place) for a in task.attachments for place in a.addresses):
                raise Conflict(f"container {message.container_id[:12]} is on network {network.name} with another address already")
            return self._renamed(task, message)
        if message.address and not _inside(message.address, network):
            raise Invalid(f"invalid address {message.address}: It does not belong to any of this network's subnets")
        if (known := self._store.get(Task, message.task_id)) is not None:
            if known.node_id == node_id and _is_place(known, message.container_id, network.id):
                return known  # it has ended meanwhile
            raise Invalid(f"task {message.task_id} is something else")
        return self._create(node_id, network, message)

    def _renamed(self, task: Task, message: Attach) -> Task:
        """Other names, which count once it has its address."""
        if not task.attachments or not message.names or task.attachments[0].aliases == message.names:
            return task
        places = tuple(msgspec.structs.replace(place, aliases=message.names) for place in task.attachments)
        because = f"container {message.container_id[:12]} is called {', '.join(message.names)}"
        self._store.apply([Change(Task, task.id, {"attachments": places}, because)], by=BY)
        return self._store.get(Task, task.id) or task

    def _create(self, node_id: str, network: Network, message: Attach) -> Task:
        target = NetworkAttachmentConfig(target=network.id, aliases=message.names or None)
        chosen = Attachment(network_id=network.id, addresses=(message.address,), aliases=message.names)
        task = Task(
            id=message.task_id,
            node_id=node_id,
            spec=TaskSpec(
                network_attachment_spec=AttachmentSpec(container_id=message.container_id), networks=(target,), runtime="attachment"
            ),
            status=TaskStatus(state=TaskState.NEW, message="created"),
            attachments=(chosen,) if message.address else (),
        )
        because = f"container {message.container_id[:12]} wants a place on network {network.name}"
        self._store.apply([Create(task, because)], by=BY)
        created = self._store.get(Task, task.id)
        assert created is not None
        return created

    def _durable(self, task: Task) -> bool:
        return task.version <= self._store.durable_version

    def _settled(self, task: Task) -> bool:
        """It is given, or it is known why it is not."""
        return task.status.state >= TaskState.ASSIGNED or bool(task.status.err) or not task.live

    def _look(self, task: Task) -> list[tuple[Session, Answer]]:
        found = self._waiting.pop(task.id)
        network = self._store.get(Network, found[0].network_id)
        given = task.live and task.status.state >= TaskState.ASSIGNED
        if network is not None and given:
            address = next((place for a in task.attachments if a.network_id == network.id for place in a.addresses), "")
            return [(w.session, Answer(question=w.question, network=network, task_id=task.id, address=address)) for w in found]
        error: SkepError = NotFound(f"network {found[0].asked} not found") if network is None else _why(task)
        self._remove([task.id], error.text)
        return [(waiting.session, _refusal(waiting.question, error)) for waiting in found]

    def _remove(self, tasks: Iterable[str], because: str) -> None:
        ops: list[Op] = []
        for id in tasks:
            task = self._store.get(Task, id)
            if task is not None and task.status.state < TaskState.ASSIGNED and task.desired_state < TaskState.REMOVE:
                ops.append(Change(Task, id, {"desired_state": TaskState.REMOVE}, because))
        if ops:
            self._store.apply(ops, by=BY)


def _attachable(network: Network) -> bool:
    return network.driver == "overlay" and network.spec.attachable and not network.spec.ingress


def _closed(network: Network) -> SkepError:
    return Forbidden(f"network {network.name} not manually attachable", rpc="PermissionDenied")


def _is_place(task: Task, container_id: str, network_id: str) -> bool:
    spec = task.spec.network_attachment_spec
    return (
        spec is not None and spec.container_id == container_id and any(target.target == network_id for target in task.spec.networks or ())
    )


def _same(asked: str, given: str) -> bool:
    return asked.partition("/")[0] == given.partition("/")[0]


def _inside(address: str, network: Network) -> bool:
    value = number(address)
    subnets = [subnet for config in network.ipam if (subnet := subnet_of(config.subnet)) is not None]
    return value is not None and (not subnets or any(0 <= value - int(subnet.network_address) < subnet.num_addresses for subnet in subnets))


def _why(task: Task) -> SkepError:
    err = task.status.err
    if not err:
        return Unavailable("the place was taken away again")
    return Conflict(err) if "in use" in err else Unavailable(err)


def _check(message: Attach) -> None:
    """What a node may ask for: it is trusted with its own containers, not with the manager's memory."""
    if not _TASK_ID.fullmatch(message.task_id) or not _CONTAINER_ID.fullmatch(message.container_id):
        raise Invalid("a place is asked for by a task's id and a container's")
    if len(message.names) > NAMES_LIMIT or any(not 0 < len(name) <= NAME_LENGTH for name in message.names):
        raise Invalid(f"a container has at most {NAMES_LIMIT} names on a network, of {NAME_LENGTH} characters")


def _refusal(question: str, error: SkepError) -> Answer:
    return Answer(question=question, status=error.status, error=error.text, rpc=error.rpc)
