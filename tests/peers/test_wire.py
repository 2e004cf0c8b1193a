"""A server of the application in memory takes what is no proper HTTP; test_fuzz_node.py does the same with a whole skepd."""

from __future__ import annotations

import asyncio
import logging
import random
from pathlib import Path

from test_fuzz import Complaints
from wire_nonsense import send_all, version

from skep.clock import SECOND
from skep.testing.api_client import serving
from skep.testing.fake_context import FakeContext, StepClock


def test_no_proper_http(tmp_path: Path) -> None:
    async def play() -> list[str]:
        async with serving(FakeContext(StepClock(1_795_405_652 * SECOND), random.Random(1), volumes=tmp_path / "v")) as client:
            wrong = await send_all(client.path)
            assert await version(client.path)
            return wrong

    complaints = Complaints()
    logging.getLogger().addHandler(complaints)
    try:
        wrong = asyncio.run(play())
    finally:
        logging.getLogger().removeHandler(complaints)
    assert not wrong and not complaints.said, "\n".join([*wrong, *complaints.said])
