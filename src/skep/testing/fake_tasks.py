"""A node without containers: `skep.node.base.Tasks` in memory, with faults to order. It holds callers to the contract: one call a task at
a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

from skep.clock import Clock
from skep.engine.base import Exit, LogRecord
from skep.errors import SkepError
from skep.ids import base36
from skep.model.assignment import TaskItem
from skep.model.task import ContainerStatus, TaskStatus


class FakeTasks:
    """Containers run until `exit`. `fail[call]` (`prepare`, ...) makes that call raise; `hold[call]` makes it wait for the event."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.calls: list[tuple[str, str]] = []
        """(call, task id), in order."""
        self.fail: dict[str, SkepError] = {}
        self.hold: dict[str, asyncio.Event] = {}
        self.items: dict[str, TaskItem] = {}
        self.exits: dict[str, asyncio.Future[Exit]] = {}
        self.lines: dict[str, list[LogRecord]] = {}
        self.logs_closed = 0
        self._busy: set[str] = set()

    async def prepare(self, item: TaskItem) -> None:
        with self._calling("prepare", item.task.id):
            await self._fate("prepare")
            self.items[item.task.id] = item

    async def start(self, item: TaskItem) -> None:
        with self._calling("start", item.task.id):
            await self._fate("start")
            if item.task.id not in self.exits:
                self.exits[item.task.id] = asyncio.get_running_loop().create_future()

    async def wait(self, item: TaskItem) -> Exit:
        with self._calling("wait", item.task.id):
            await self._fate("wait")
            if item.task.id not in self.exits:
                raise SkepError(f"No such container: {item.task.name}")
            return await asyncio.shield(self.exits[item.task.id])

    async def shutdown(self, item: TaskItem) -> None:
        with self._calling("shutdown", item.task.id):
            await self._fate("shutdown")
            self.exit(item.task.id, 143)

    async def remove(self, task_id: str) -> None:
        with self._calling("remove", task_id):
            await self._fate("remove")
            self.items.pop(task_id, None)
            ended = self.exits.pop(task_id, None)
            if ended is not None:
                ended.cancel()

    def status(self, task_id: str) -> TaskStatus | None:
        if task_id not in self.items:
            return None
        ended = self.exits.get(task_id)
        running = ended is not None and not ended.done()
        code = ended.result().code if ended is not None and ended.done() else 0
        return TaskStatus(container=ContainerStatus(container_id=task_id.ljust(64, "0"), pid=4711 if running else 0, exit_code=code))

    def known(self) -> list[str]:
        return list(self.items)

    async def logs(
        self, task_id: str, *, follow: bool, since: int, until: int, tail: int, stdout: bool, stderr: bool
    ) -> AsyncGenerator[LogRecord, None]:
        try:
            lines = [line for line in self.lines.get(task_id, []) if (stdout, stderr)[line.stream - 1] and line.at >= since]
            for line in lines if tail < 0 else lines[len(lines) - tail :]:
                yield line
            if follow:
                await asyncio.get_running_loop().create_future()
        finally:
            self.logs_closed += 1

    # to order

    def exit(self, task_id: str, code: int = 0, *, oom: bool = False, known: bool = True) -> None:
        """Its container ends now, if it runs."""
        ended = self.exits.get(task_id)
        if ended is not None and not ended.done():
            ended.set_result(Exit(code=code, at=self._clock.now(), oom=oom, known=known))

    @property
    def running(self) -> set[str]:
        return {id for id, ended in self.exits.items() if not ended.done()}

    async def _fate(self, call: str) -> None:
        if call in self.hold:
            await self.hold[call].wait()
        if call in self.fail:
            raise self.fail[call]

    @contextmanager
    def _calling(self, call: str, task_id: str) -> Iterator[None]:
        if task_id in self._busy:
            raise AssertionError(f"{call} of {task_id} while another call of it is under way")
        self._busy.add(task_id)
        self.calls.append((call, task_id))
        try:
            yield
        finally:
            self._busy.discard(task_id)


def fake_id(number: int) -> str:
    """An id in the form of a swarm object's, the same each time."""
    return base36(number + 36**24, 25)
