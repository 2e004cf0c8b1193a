"""Time limits by the clock that is given, so that they hold in simulations too."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from skep.clock import Clock

T = TypeVar("T")


async def within(clock: Clock, ns: int, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. Raises TimeoutError, and cancels it, when it takes longer."""
    task: asyncio.Task[T]
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work)
            limit = group.create_task(clock.sleep(ns))
            await asyncio.wait((task, limit), return_when=asyncio.FIRST_COMPLETED)
            limit.cancel()
            if not task.done():
                task.cancel()
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    if task.cancelled():
        raise TimeoutError
    return task.result()


async def until_first(*works: Coroutine[Any, Any, Any]) -> None:
    """Until one of them has ended; the others are cancelled. An error of one of them is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
