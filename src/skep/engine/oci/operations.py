"""What blocks, done in threads, one operation at a time for each container.

An operation goes on to its end even if its caller is cancelled, and the next on the same container waits for it: no start is half done.
`inside`: threads standing in the mount namespace where the runtime runs. `outside`: in ours, for mounts and files.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from skep.engine.oci import kernel, runtime
from skep.engine.oci.entry import Entry
from skep.engine.oci.launch import reason
from skep.errors import SkepError, Unavailable

T = TypeVar("T")
Failed = Callable[[BaseException], None]


def _nothing(outcome: object) -> None:
    return None


class Operations:
    def __init__(self, loop: asyncio.AbstractEventLoop, namespace: str, data: Path) -> None:
        width = 2 * (os.cpu_count() or 1)
        self.loop = loop
        self.stopping = False
        self.inside = ThreadPoolExecutor(width, "skep-runtime", initializer=runtime.enter, initargs=(namespace,))
        self.outside = ThreadPoolExecutor(width, "skep-files", initializer=_stand_in, initargs=(data,))

    async def shut_down(self, entries: Iterable[Entry]) -> None:
        self.stopping = True
        while busy := [entry.busy for entry in entries if entry.busy is not None]:
            await asyncio.wait(busy)
        await asyncio.to_thread(self.inside.shutdown)
        await asyncio.to_thread(self.outside.shutdown)

    async def settle(self, entry: Entry) -> None:
        """Until nothing is under way on it."""
        while entry.busy is not None:
            await asyncio.wait((entry.busy,))

    async def run(
        self,
        entry: Entry,
        pool: ThreadPoolExecutor,
        work: Callable[[], T],
        apply: Callable[[T], None] = _nothing,
        failed: Failed = _nothing,
    ) -> T:
        """Do `work` in the pool; `apply` its result in the loop, or tell `failed`. Nothing else may be under way on the entry."""
        if self.stopping:
            raise Unavailable("the engine is shutting down")
        return await asyncio.shield(self.begin(entry, pool, work, apply, failed))

    def begin(
        self,
        entry: Entry,
        pool: ThreadPoolExecutor,
        work: Callable[[], T],
        apply: Callable[[T], None] = _nothing,
        failed: Failed = _nothing,
    ) -> asyncio.Future[T]:
        assert entry.busy is None
        over: asyncio.Future[None] = self.loop.create_future()
        entry.busy = over
        result: asyncio.Future[T] = self.loop.create_future()

        def finished(done: asyncio.Future[T]) -> None:
            entry.busy = None
            error = done.exception()
            if isinstance(error, OSError):  # no room on the disk, as a rule
                error = SkepError(reason(error))
            if error is None:
                apply(done.result())
                result.set_result(done.result())
            else:
                failed(error)
                result.set_exception(error)
                result.exception()  # nobody may be waiting any more
            while entry.next and entry.busy is None:
                entry.next.popleft()()
            over.set_result(None)

        self.loop.run_in_executor(pool, work).add_done_callback(finished)
        return result


def _stand_in(folder: Path) -> None:
    """The thread's own working directory: short layer links are relative to it."""
    kernel.unshare(kernel.CLONE_FS)
    os.chdir(folder)
