"""What the server runs beside its requests."""

from __future__ import annotations

import asyncio
import random

import pytest

from skep.api.state import State
from skep.errors import Unavailable
from skep.testing.fake_context import FakeContext, StepClock


def test_what_is_asked_for_while_the_server_ends_is_refused() -> None:
    """And nothing of it is left behind: a coroutine that never ran would be a warning."""
    begun = []

    async def work() -> None:
        begun.append(True)

    with pytest.raises(Unavailable, match="ending"):
        State(FakeContext(StepClock(), random.Random(1))).spawn(work())
    assert not begun


def test_what_goes_wrong_beside_the_requests_ends_nothing_else() -> None:
    async def main() -> None:
        state = State(FakeContext(StepClock(), random.Random(1)))
        done = asyncio.Event()

        async def bad() -> None:
            raise RuntimeError("unexpected")

        async def good() -> None:
            done.set()

        async with asyncio.TaskGroup() as group:
            state.group = group
            state.spawn(bad())
            state.spawn(good())
            await done.wait()

    asyncio.run(main())
