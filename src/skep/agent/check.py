"""A manager asks whether this node's network is well: one look at a time, whoever asks meanwhile gets its result too."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection

from skep.errors import SkepError
from skep.link.messages import Checked, CheckWanted
from skep.model.check import NodeReport

log = logging.getLogger(__name__)
Examine = Callable[[Collection[str], bool], Awaitable[NodeReport]]
"""Network ids (none: all), and whether to repair."""
SECONDS = 15.0
"""How long a look may take; the manager that asked does not wait as long."""


class Checks:
    def __init__(self, examine: Examine | None) -> None:
        self._examine = examine
        self.under_way: set[asyncio.Task[None]] = set()
        self._looking: dict[tuple[tuple[str, ...], bool], list[str]] = {}
        """What is looked at -> the questions it answers."""
        self._turn = asyncio.Lock()

    def begin(self, group: asyncio.TaskGroup, wanted: CheckWanted, tell: Callable[[Checked], None]) -> None:
        key = (wanted.networks, wanted.repair)
        if key in self._looking:
            self._looking[key].append(wanted.question)
            return
        self._looking[key] = [wanted.question]
        task = group.create_task(self._look(key, tell))
        self.under_way.add(task)
        task.add_done_callback(self.under_way.discard)

    async def _look(self, key: tuple[tuple[str, ...], bool], tell: Callable[[Checked], None]) -> None:
        try:
            async with self._turn:
                report = await self._report(*key)
        finally:
            questions = self._looking.pop(key)
        for question in questions:
            tell(Checked(question=question, report=report))

    async def _report(self, networks: tuple[str, ...], repair: bool) -> NodeReport:
        if self._examine is None:
            return NodeReport(error="this node's network cannot be looked at")
        try:
            async with asyncio.timeout(SECONDS):
                return await self._examine(networks, repair)
        except TimeoutError:
            return NodeReport(error=f"it could not look at all of its network within {SECONDS:.0f} s")
        except SkepError as error:
            return NodeReport(error=error.message)
        except Exception as error:
            log.exception("this node's network could not be looked at")
            return NodeReport(error=f"{type(error).__name__}: {error}")
