"""Logs of services and tasks: asked of the nodes that have them, one connection per node, read no faster than the user reads.

A reader's lines come through a small queue: when it is full, the manager stops reading the nodes' connections, and they stop sending. What
could not be had is said at the end, in Docker's words. See docs/link.md.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence

from skep.errors import NotFound, SkepError
from skep.ids import Random, new_id
from skep.link.channel import Channel, Closed, decode_lines
from skep.link.messages import FromManager, LogLine, LogsUnwanted, LogsWanted
from skep.manager.control import LogOptions
from skep.model.enums import NodeState, TaskState
from skep.model.node import Node
from skep.model.task import Task
from skep.store.base import Event, Store

FRAMES = 16
"""Frames of lines that wait for a reader."""
OPEN_SECONDS = 5.0
"""How long a node may take to open its connection."""


class _Stream:
    """What one node is asked for, for one reader."""

    def __init__(self, node_id: str, task_ids: frozenset[str]) -> None:
        self.node_id = node_id
        self.task_ids = task_ids
        self.opened = False
        self.ended = asyncio.Event()
        """Nobody reads it any more, or its node is gone: the connection is to be closed from our side."""


class _Reader:
    """One `service logs` under way."""

    def __init__(self, options: LogOptions, service_id: str) -> None:
        self.options = options
        self.service_id = service_id
        self.lines: deque[list[LogLine]] = deque()
        self.room = asyncio.Event()
        self.streams: dict[str, _Stream] = {}
        self.asked: set[str] = set()
        self.failures: list[str] = []
        self.changed = asyncio.Event()
        self.over = False


class LogBroker:
    """`run` must be running, for readers that follow a service; `serve` is called once per connection."""

    def __init__(self, store: Store, send: Callable[[str, FromManager], bool], rng: Random) -> None:
        """`send`: `Dispatcher.send`."""
        self._send = send
        self._rng = rng
        self._watch = store.watch(Task, Node)
        self._readers: dict[str, _Reader] = {}
        """By stream."""
        self._following: dict[str, set[_Reader]] = {}
        """By service."""

    async def run(self) -> None:
        """Readers that follow a service hear of tasks that start later; none waits for a node that is down or removed, nor for a manager
        that is no more."""
        try:
            async for events in self._watch:
                for event in events:
                    self._happened(event)
        finally:
            for reader in {*self._readers.values(), *(reader for readers in self._following.values() for reader in readers)}:
                reader.failures.append("this manager has stopped")
                reader.over = True
                reader.changed.set()

    def _happened(self, event: Event) -> None:
        if event.kind is Node:
            if not isinstance(event.new, Node) or event.new.status.state is NodeState.DOWN:
                self._lose(event.id)
        elif isinstance(event.new, Task) and event.new.service_id in self._following:
            for reader in self._following[event.new.service_id]:
                self._ask(reader, [event.new])

    def _lose(self, node_id: str) -> None:
        for stream_id, reader in list(self._readers.items()):
            stream = reader.streams.get(stream_id)
            if stream is not None and stream.node_id == node_id:
                self._fail(reader, stream_id, f"node {node_id} disconnected unexpectedly")
                stream.ended.set()
                reader.room.set()

    async def logs(self, tasks: Sequence[Task], options: LogOptions, *, service_id: str = "") -> AsyncGenerator[LogLine, None]:
        """Lines of these tasks, and with `service_id` and follow also of tasks that start later.

        Ends with an error `warning: incomplete log stream...` when a node could not be asked or broke off.
        """
        reader = _Reader(options, service_id)
        if options.follow and service_id:
            self._following.setdefault(service_id, set()).add(reader)
        try:
            self._ask(reader, tasks)
            while True:
                while reader.lines:
                    for line in reader.lines.popleft():
                        yield line
                    reader.room.set()
                if reader.over or (not reader.streams and not (options.follow and service_id)):
                    break
                reader.changed.clear()
                await reader.changed.wait()
        finally:
            self._end(reader)
        if reader.failures:
            reasons = ", ".join(dict.fromkeys(reader.failures))
            raise SkepError(
                f"warning: incomplete log stream. some logs could not be retrieved for the following reasons: {reasons}", rpc="Unknown"
            )

    async def serve(self, node_id: str, stream_id: str, channel: Channel) -> None:
        """One node's connection for one stream, until either side ends it. Raises NotFound for a stream this node was not asked for."""
        reader = self._readers.get(stream_id)
        stream = reader.streams.get(stream_id) if reader else None
        if reader is None or stream is None or stream.node_id != node_id or stream.opened:
            raise NotFound(f"log stream {stream_id[:32]} is not wanted")
        stream.opened = True
        try:
            async with asyncio.TaskGroup() as group:
                closing = group.create_task(_close_after(stream.ended, channel))
                await self._take(reader, stream, channel)
                closing.cancel()
        except* SkepError as errors:
            raise errors.exceptions[0] from None
        finally:
            self._finish(reader, stream_id)

    async def _take(self, reader: _Reader, stream: _Stream, channel: Channel) -> None:
        try:
            while not stream.ended.is_set():
                lines = [
                    line for line in decode_lines(await channel.receive()) if line.task_id in stream.task_ids and line.stream in (1, 2)
                ]
                while len(reader.lines) >= FRAMES and not stream.ended.is_set():
                    reader.room.clear()
                    await reader.room.wait()
                reader.lines.append(lines)
                reader.changed.set()
        except Closed as closed:
            if not stream.ended.is_set() and (not closed.clean or closed.reason):
                reader.failures.append(closed.reason if closed.clean else f"node {stream.node_id} disconnected unexpectedly")

    def _ask(self, reader: _Reader, tasks: Iterable[Task]) -> None:
        by_node: dict[str, list[str]] = {}
        for task in tasks:
            if task.node_id and task.status.state >= TaskState.ASSIGNED and task.id not in reader.asked:
                reader.asked.add(task.id)
                by_node.setdefault(task.node_id, []).append(task.id)
        wanted = reader.options
        for node_id, ids in by_node.items():
            stream = new_id(self._rng)
            message = LogsWanted(
                stream=stream,
                task_ids=tuple(ids),
                stdout=wanted.stdout,
                stderr=wanted.stderr,
                follow=wanted.follow,
                since=wanted.since,
                until=wanted.until,
                tail=wanted.tail,
            )
            reader.streams[stream] = _Stream(node_id, frozenset(ids))
            self._readers[stream] = reader
            if self._send(node_id, message):
                asyncio.get_running_loop().call_later(OPEN_SECONDS, self._expire, reader, stream)
            else:
                self._fail(reader, stream, f"node {node_id} is not available")

    def _expire(self, reader: _Reader, stream_id: str) -> None:
        stream = reader.streams.get(stream_id)
        if stream is not None and not stream.opened:
            self._fail(reader, stream_id, f"node {stream.node_id} did not answer")

    def _fail(self, reader: _Reader, stream_id: str, reason: str) -> None:
        reader.failures.append(reason)
        self._finish(reader, stream_id)

    def _finish(self, reader: _Reader, stream_id: str) -> None:
        reader.streams.pop(stream_id, None)
        self._readers.pop(stream_id, None)
        reader.changed.set()

    def _end(self, reader: _Reader) -> None:
        following = self._following.get(reader.service_id)
        if following is not None:
            following.discard(reader)
            if not following:
                del self._following[reader.service_id]
        for stream_id, stream in list(reader.streams.items()):
            self._readers.pop(stream_id, None)
            self._send(stream.node_id, LogsUnwanted(stream=stream_id))
            stream.ended.set()
        reader.lines.clear()
        reader.room.set()


async def _close_after(ended: asyncio.Event, channel: Channel) -> None:
    await ended.wait()
    await channel.close()
