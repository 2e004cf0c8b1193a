"""Programs that do some of the work are reaped with all that is theirs, whenever and however often one is cancelled."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import suppress

import pytest

from skep.engine import subprocesses

pytestmark = pytest.mark.root


async def begun() -> asyncio.subprocess.Process:
    return await subprocesses.begin("head", "-c", "4000000", "/dev/zero", stdout=asyncio.subprocess.PIPE)


def test_an_end_that_is_cancelled_goes_through() -> None:
    async def main() -> None:
        process = await begun()
        before = len(os.listdir("/proc/self/fd"))
        assert process.stdout is not None
        while len(process.stdout._buffer) <= 1 << 17:  # type: ignore[attr-defined]  # noqa: ASYNC110 - its reader is paused then
            await asyncio.sleep(0)
        ending = asyncio.ensure_future(subprocesses.end(process))
        for _ in range(3):
            await asyncio.sleep(0)
            ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
        assert process.returncode is not None
        assert len(os.listdir("/proc/self/fd")) < before

    asyncio.run(main())


def test_a_beginning_that_is_cancelled_leaves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    async def whole() -> None:
        await subprocesses.end(await begun())

    async def main() -> None:
        await whole()
        before = len(os.listdir("/proc/self/fd"))
        for turn in range(60):
            running = asyncio.ensure_future(whole())
            for _ in range(turn):
                await asyncio.sleep(0)
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
        assert len(os.listdir("/proc/self/fd")) == before

    asyncio.run(main())
    assert not caplog.records, caplog.text
