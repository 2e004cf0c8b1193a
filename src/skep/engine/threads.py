"""Work in threads, whose caller may be cancelled."""

from __future__ import annotations

import asyncio
from typing import TypeVar

T = TypeVar("T")


async def settled(step: asyncio.Future[T]) -> T:
    """A thread cannot be cancelled, and must not outlive what guards it: when we are, not before it has ended."""
    cancelled = False
    while not step.done():
        try:
            await asyncio.wait((step,))
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        step.exception()  # nobody waits for it
        raise asyncio.CancelledError
    return step.result()
