"""What a node, or a reader, can do to the manager by its log streams: nothing."""

from __future__ import annotations

import asyncio
import random

import pytest
from link_world import ready, task
from tls_world import CLOCK

from skep.api.context import LogOptions
from skep.errors import NotFound, SkepError
from skep.link.channel import Closed, encode
from skep.link.memory import pair
from skep.link.messages import FromManager, LogLine, LogsWanted
from skep.manager.logs import LogBroker
from skep.model.enums import NodeState
from skep.model.node import Node, NodeStatus
from skep.model.task import Task
from skep.plan.ops import Change, Create, Delete
from skep.store.backends import NullBackend
from skep.store.memory import MemoryStore


class Logs:
    """A log broker over a store with two nodes and a task on each; what it asks of nodes is in `asked`."""

    def __init__(self) -> None:
        self.store = MemoryStore(NullBackend(), CLOCK)
        self.apply(*(Create(thing, "for the test") for thing in (ready("n1"), ready("n2", 2), task("t1", "n1"), task("t2", "n2"))))
        self.asked: list[tuple[str, FromManager]] = []
        self.broker = LogBroker(self.store, self._send, random.Random(1))
        self.lines: list[LogLine] = []

    def apply(self, *ops: Create | Change | Delete) -> None:
        self.store.apply(ops)
        self.store.flush()

    def _send(self, node_id: str, message: FromManager) -> bool:
        self.asked.append((node_id, message))
        return True

    async def read(self, *ids: str, service_id: str = "") -> str:
        """Reads until the end; returns the warning."""
        tasks = [found for id in ids if (found := self.store.get(Task, id)) is not None]
        try:
            async for line in self.broker.logs(tasks, LogOptions(follow=True), service_id=service_id):
                self.lines.append(line)
        except SkepError as error:
            return error.text
        return ""

    def stream(self, node_id: str) -> str:
        return next(message.stream for id, message in self.asked if id == node_id and isinstance(message, LogsWanted))


def test_a_node_sends_lines_of_its_own_tasks_on_its_own_stream() -> None:
    async def body() -> None:
        logs = Logs()
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(logs.read("t1", "t2"))
            await asyncio.sleep(0)
            one, other = logs.stream("n1"), logs.stream("n2")
            for node_id, stream in (("n1", other), ("n3", one), ("n1", "x" * 25)):
                with pytest.raises(NotFound):
                    await logs.broker.serve(node_id, stream, pair()[1])
            ours, theirs = pair()
            serving = group.create_task(logs.broker.serve("n1", one, theirs))
            foreign = [LogLine(task_id=id, stream=1, at=1, data=b"x\n") for id in ("t2", "nothing")]
            odd = [LogLine(task_id="t1", stream=stream, at=1, data=b"an error of the manager?\n") for stream in (0, 3, 300, -1)]
            await ours.send(encode([*foreign, *odd, LogLine(task_id="t1", stream=1, at=1, data=b"x\n")]))
            await asyncio.sleep(0.01)
            with pytest.raises(NotFound):
                await logs.broker.serve("n1", one, pair()[1])
            assert [(line.task_id, line.data) for line in logs.lines] == [("t1", b"x\n")]
            await ours.close()
            await serving
            reading.cancel()

    asyncio.run(body())


def test_a_reader_that_goes_away_ends_the_connections_even_of_a_silent_node() -> None:
    async def body() -> None:
        logs = Logs()
        async with asyncio.TaskGroup() as group, asyncio.timeout(5):
            reading = group.create_task(logs.read("t1"))
            await asyncio.sleep(0)
            ours, theirs = pair()
            serving = group.create_task(logs.broker.serve("n1", logs.stream("n1"), theirs))
            await asyncio.sleep(0.01)
            reading.cancel()
            await serving
            with pytest.raises(Closed):
                await ours.receive()

    asyncio.run(body())


@pytest.mark.parametrize("end", ["down", "removed"])
def test_a_reader_does_not_wait_for_a_node_that_is_gone(end: str) -> None:
    async def body() -> None:
        logs = Logs()
        async with asyncio.TaskGroup() as group, asyncio.timeout(5):
            watching = group.create_task(logs.broker.run())
            reading = group.create_task(logs.read("t1"))
            await asyncio.sleep(0)
            ours, theirs = pair()
            serving = group.create_task(logs.broker.serve("n1", logs.stream("n1"), theirs))
            await asyncio.sleep(0.01)
            if end == "down":
                logs.apply(Change(Node, "n1", {"status": NodeStatus(state=NodeState.DOWN)}, "for the test"))
            else:
                logs.apply(Delete(Node, "n1", "for the test"))
            assert "node n1 disconnected unexpectedly" in await reading
            await serving
            watching.cancel()

    asyncio.run(body())


@pytest.mark.parametrize("ids", [("t1",), ()], ids=["with a stream", "waiting for tasks"])
def test_a_reader_does_not_outlive_the_manager(ids: tuple[str, ...]) -> None:
    async def body() -> None:
        logs = Logs()
        async with asyncio.TaskGroup() as group, asyncio.timeout(5):
            running = group.create_task(logs.broker.run())
            reading = group.create_task(logs.read(*ids, service_id="web"))
            await asyncio.sleep(0.01)
            running.cancel()
            assert "this manager has stopped" in await reading

    asyncio.run(body())
