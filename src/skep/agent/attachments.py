"""Places of plain containers on the cluster's networks, seen from their node: `skep.node.base.Attachments` over the agent's session.

A place is an attachment task, and the agent's worker leads it through its states like any other; what the calls mean is here. PREPARE
comes when the node's network is ready, START says that the place is there, WAIT lasts until the container leaves. So a place that nobody
here knows of (asked for and given up, found after a restart without its container) ends by itself: its WAIT returns, the node reports
COMPLETE, the manager deletes the task. One object lives as long as the daemon; an agent binds itself to it while there is one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from skep.agent.session import Session
from skep.agent.worker import Worker
from skep.errors import Conflict, Forbidden, Invalid, NotFound, SkepError, Unavailable
from skep.ids import Random, new_id
from skep.link.messages import Answer, Attach, Find
from skep.model.assignment import TaskItem
from skep.model.network import Network
from skep.node.base import AttachedNetwork
from skep.plan.workload import Call

log = logging.getLogger(__name__)

ANSWER_SECONDS = 20.0
DETACH_SECONDS = 2.0
LOOK_SECONDS = 0.5
GIVEN_UP_LIMIT = 1024
"""Places that were asked for in vain and are remembered, in case they come after all."""
_ERRORS: dict[int, type[SkepError]] = {400: Invalid, 403: Forbidden, 404: NotFound, 409: Conflict, 503: Unavailable}


class Questions:
    """What a node asks of the manager on its session, and who waits for the answers."""

    def __init__(
        self, session: Session, worker: Worker, sandboxes: Callable[[], Awaitable[Sequence[str]]], wake: Callable[[], None]
    ) -> None:
        """`sandboxes`: ids of those on this node."""
        self.sandboxes = sandboxes
        self._session = session
        self._worker = worker
        self._wake = wake
        self._waiting: dict[str, asyncio.Future[Answer]] = {}

    @property
    def linked(self) -> bool:
        return self._session.welcomed

    def networks(self) -> list[Network]:
        return self._worker.networks()

    async def ask(self, id: str, question: Attach | Find) -> Answer:
        """As long as it takes; a session that is lost is followed by another. Raises Unavailable when this node's agent ends."""
        waiting = self._waiting[id] = asyncio.get_running_loop().create_future()
        self._session.ask(id, question)
        self._wake()
        try:
            answer: Answer = await waiting
            return answer
        finally:
            del self._waiting[id]
            self._session.forget(id)

    def deliver(self) -> None:
        """Answers that the session has."""
        for answer in self._session.answers:
            if (waiting := self._waiting.get(answer.question)) is not None and not waiting.done():
                waiting.set_result(answer)
        self._session.answers.clear()

    def end(self) -> None:
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(Unavailable("this node's part in the cluster has ended"))


class _Place:
    def __init__(self, container_id: str, network_id: str = "") -> None:
        self.container_id = container_id
        self.network_id = network_id
        self.network_name = ""
        self.address = ""
        self.names: tuple[str, ...] = ()
        self.wanted = False
        """By a container here."""
        self.ready = asyncio.Event()
        self.leave = asyncio.Event()
        """The container has left, or the cluster takes the place away."""
        self.over = asyncio.Event()
        """The task is gone."""


class ClusterAttachments:
    """Implements `skep.node.base.Attachments`. The calls of the worker for an attachment task go to `prepare` .. `remove`."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._agent: Questions | None = None
        self._bound = asyncio.Event()
        self.is_member: Callable[[], bool] = lambda: False
        """This node is a member of a cluster, so there will be an agent soon if there is none."""
        self.claimed: Callable[[str, str], bool] = lambda container_id, network_id: True
        """A container's own record has a place on this network."""
        self.patience = ANSWER_SECONDS
        """How long a manager's answer is waited for."""
        self._places: dict[str, _Place] = {}
        """By task."""
        self._asking: dict[str, int] = {}
        """Container -> how many places are being asked for it."""
        self._lost: list[Callable[[str, str], None]] = []

    @contextmanager
    def bound(self, agent: Questions) -> Iterator[None]:
        """While this node has a part in a cluster."""
        self._agent = agent
        self._bound.set()
        try:
            yield
        finally:
            self._agent = None
            self._bound.clear()
            agent.end()

    # for containers

    async def attach(
        self, network: str, container_id: str, *, address: str = "", names: tuple[str, ...] = ()
    ) -> tuple[AttachedNetwork, str]:
        self._asking[container_id] = self._asking.get(container_id, 0) + 1
        try:
            async with asyncio.timeout(self.patience):
                while True:
                    if (here := self._there(container_id, network, address, names)) is not None:
                        return here
                    question = Attach(task_id=new_id(self._rng), network=network, container_id=container_id, address=address, names=names)
                    try:
                        answer = await self._place(question)
                    except BaseException:
                        self._give_up(question)
                        raise
                    if answer is not None:
                        return answer
        except TimeoutError:
            raise Unavailable(f"no manager gave a place on network {network} within {self.patience:.0f} s") from None
        finally:
            self._asking[container_id] -= 1
            if not self._asking[container_id]:
                del self._asking[container_id]

    async def _place(self, question: Attach) -> tuple[AttachedNetwork, str] | None:
        """None: the place that the manager names is about to end; ask again."""
        container_id = question.container_id
        place = self._places[question.task_id] = _Place(container_id)
        answer = await self._ask(question.task_id, question)
        if answer.network is None:
            raise Unavailable("the manager's answer has no network")
        if answer.task_id != question.task_id:
            del self._places[question.task_id]
            place = self._places.setdefault(answer.task_id, _Place(container_id, answer.network.id))
        place.network_id, place.network_name = answer.network.id, answer.network.name
        place.address, place.names = answer.address, question.names or place.names
        await _first(place.ready, place.leave)
        if place.leave.is_set():
            await place.over.wait()
            return None
        place.wanted = True
        return AttachedNetwork(id=answer.network.id, name=answer.network.name), answer.address

    def _there(self, container_id: str, network: str, address: str, names: tuple[str, ...]) -> tuple[AttachedNetwork, str] | None:
        """A place that it has already, as it is asked for: no manager is needed for that."""
        names_of = {known.id: known.name for known in self.networks()}
        for place in self._places.values():
            name = place.network_name or names_of.get(place.network_id, "")
            fits = address.partition("/")[0] in ("", place.address.partition("/")[0]) and names in ((), place.names)
            held = place.address and place.ready.is_set() and not place.leave.is_set()
            if place.container_id == container_id and network in (place.network_id, name) and fits and held:
                place.wanted = True
                return AttachedNetwork(id=place.network_id, name=name), place.address
        return None

    async def detach(self, container_id: str, network_id: str = "") -> None:
        leaving = []
        for place in self._places.values():
            if place.container_id == container_id and network_id in ("", place.network_id):
                place.wanted = False
                place.leave.set()
                if place.ready.is_set():
                    leaving.append(place.over)
        if self._agent is not None and self._agent.linked:
            with suppress(TimeoutError):
                async with asyncio.timeout(DETACH_SECONDS):
                    for over in leaving:
                        await over.wait()

    async def find(self, reference: str, *, joining: bool = False) -> Network | None:
        if self._agent is None:
            return None
        if self._agent.linked:
            id = new_id(self._rng)
            with suppress(Unavailable, TimeoutError):
                async with asyncio.timeout(self.patience):
                    return (await self._ask(id, Find(question=id, reference=reference, joining=joining))).network
        here = self.networks()
        exact = [network for network in here if reference in (network.id, network.name)]
        found = exact or [network for network in here if reference and network.id.startswith(reference)]
        return found[0] if len(found) == 1 else None

    def networks(self) -> list[Network]:
        return self._agent.networks() if self._agent is not None else []

    def when_lost(self, call: Callable[[str, str], None]) -> None:
        self._lost.append(call)

    async def _ask(self, id: str, question: Attach | Find) -> Answer:
        while self._agent is None and self.is_member():
            with suppress(TimeoutError):  # it may leave the cluster before there is one
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._bound.wait()
        agent = self._agent
        if agent is None:
            name = question.network if isinstance(question, Attach) else question.reference
            raise NotFound(f"network {name} not found")
        answer = await agent.ask(id, question)
        if answer.status:
            self._places.pop(id, None)
            raise _ERRORS.get(answer.status, SkepError)(answer.error, rpc=answer.rpc)
        return answer

    def _give_up(self, question: Attach) -> None:
        """The task may come all the same: it then ends at once."""
        for place in self._places.values():
            if place.container_id == question.container_id and not place.wanted:
                place.leave.set()
        given_up = [id for id, place in self._places.items() if place.leave.is_set() and not place.ready.is_set()]
        for id in given_up[:-GIVEN_UP_LIMIT]:
            del self._places[id]

    # for the worker

    async def call(self, call: Call, item: TaskItem) -> None:
        """A call of an attachment task."""
        match call:
            case Call.PREPARE:
                pass  # the node's network has it, or it would not have been made
            case Call.START:
                self._known(item).ready.set()
            case Call.WAIT:
                await self._wait(self._known(item))
            case Call.SHUTDOWN:
                self._known(item).leave.set()
            case Call.REMOVE:
                self._remove(item.task.id)

    async def _wait(self, place: _Place) -> None:
        """Until the container leaves; at once when there is none, or when the daemon was killed before it was said to be on the network."""
        if not (place.wanted or place.leave.is_set() or place.container_id in self._asking):
            if self._agent is None or place.container_id not in await self._agent.sandboxes():
                place.leave.set()
            elif not self.claimed(place.container_id, place.network_id):
                place.leave.set()
                self._tell_lost(place)
            place.wanted = not place.leave.is_set()
        place.ready.set()
        await place.leave.wait()

    def _remove(self, task_id: str) -> None:
        place = self._places.pop(task_id, None)
        if place is None:
            return
        place.leave.set()
        place.over.set()
        if place.wanted:
            log.warning("a container lost its place on a network of the cluster", extra={"container": place.container_id})
            self._tell_lost(place)

    def _tell_lost(self, place: _Place) -> None:
        for call in self._lost:
            call(place.container_id, place.network_id)

    def _known(self, item: TaskItem) -> _Place:
        spec = item.task.spec.network_attachment_spec
        place = self._places.setdefault(item.task.id, _Place(spec.container_id if spec else ""))
        for attachment in item.task.attachments:
            place.network_id, place.names = attachment.network_id, attachment.aliases
            place.address = next(iter(attachment.addresses), "")
        return place


def is_place(item: TaskItem) -> bool:
    """A plain container's, and no task with a container of its own."""
    return item.task.spec.network_attachment_spec is not None


async def _first(*events: asyncio.Event) -> None:
    """Until one of them is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
