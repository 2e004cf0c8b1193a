"""A node's side of log streams: one connection per stream, several lines to a frame, read from the engine no faster than the manager
reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Protocol

from skep.engine.base import LogRecord
from skep.errors import SkepError
from skep.link.channel import Channel, Closed, encode
from skep.link.messages import LogLine, LogsWanted

FRAME_BYTES = 64 << 10
FRAME_LINES = 256


class LogSource(Protocol):
    """Where a task's lines come from: the node's engine, by the task's container."""

    def logs(
        self, task_id: str, *, follow: bool, since: int, until: int, tail: int, stdout: bool, stderr: bool
    ) -> AsyncGenerator[LogRecord, None]:
        """Ends at once for a task without a container. Raises SkepError where its logs cannot be read."""
        ...


async def send_logs(
    wanted: LogsWanted, source: LogSource, channel: Channel, until_started: Callable[[str], Awaitable[None]] | None = None
) -> None:
    """Send what is wanted until it ends or the manager closes. `until_started`: with follow, wait until the task has a container."""
    failures: list[str] = []
    frames = _Frames(channel)

    async def one(task_id: str) -> None:
        if wanted.follow and until_started is not None:
            await until_started(task_id)
        try:
            records = source.logs(
                task_id,
                follow=wanted.follow,
                since=wanted.since,
                until=wanted.until,
                tail=wanted.tail,
                stdout=wanted.stdout,
                stderr=wanted.stderr,
            )
            async with aclosing(records):
                async for record in records:
                    await frames.add(LogLine(task_id=task_id, stream=record.stream, at=record.at, data=record.data))
        except Closed:
            raise
        except SkepError as error:
            failures.append(error.message)

    async def watch_end() -> None:
        """The manager sends nothing here; its end of the connection closes when the reader has gone."""
        await channel.receive()

    try:
        async with asyncio.TaskGroup() as group:
            ending = group.create_task(watch_end())
            flushing = group.create_task(frames.flush_regularly())
            async with asyncio.TaskGroup() as tasks:
                for task_id in wanted.task_ids:
                    tasks.create_task(one(task_id))
            flushing.cancel()
            await frames.flush()
            ending.cancel()
    except* Closed:
        pass
    finally:
        await channel.close("; ".join(dict.fromkeys(failures)))


class _Frames:
    """Gathers lines: a frame goes out when it is full, or after a moment."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lines: list[LogLine] = []
        self._bytes = 0
        self._some = asyncio.Event()
        self._sending = asyncio.Lock()

    async def add(self, line: LogLine) -> None:
        self._lines.append(line)
        self._bytes += len(line.data)
        self._some.set()
        if self._bytes >= FRAME_BYTES or len(self._lines) >= FRAME_LINES:
            await self.flush()

    async def flush(self) -> None:
        async with self._sending:
            lines, self._lines, self._bytes = self._lines, [], 0
            self._some.clear()
            if lines:
                await self._channel.send(encode(lines))

    async def flush_regularly(self) -> None:
        while True:
            await self._some.wait()
            await asyncio.sleep(0.01)
            await self.flush()
