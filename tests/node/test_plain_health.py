"""Health of plain containers and tasks as it shows: from the moment they run, and what a start that fails changes of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import plain_fakes
import pytest
import task_world

from skep.clock import MINUTE, SECOND
from skep.errors import SkepError
from skep.node.containers import Containers
from skep.testing.fake_engine import FakeEngine

CHECK = {"Test": ["CMD", "look"], "Interval": 10 * SECOND, "Retries": 1}


async def watched(engine: FakeEngine, containers: Containers, starting: Any) -> set[tuple[bool, str]]:
    """(it runs, its health) at any time until the start is over."""
    seen = set()
    work = asyncio.ensure_future(starting)
    while not work.done():
        for one in containers.all():
            seen.add((one.container.running, one.health.status if one.health is not None else ""))
        await asyncio.sleep(0)
    await work
    return seen


def test_a_container_that_runs_shows_its_health(tmp_path: Path) -> None:
    async def story(w: plain_fakes.World) -> None:
        w.engine.delay["started"] = SECOND
        containers = Containers(w.engine, w.plain.health)
        id = await w.create(Healthcheck=CHECK)
        assert await watched(w.engine, containers, w.plain.start(id)) == {(False, ""), (True, "starting")}

    plain_fakes.play(tmp_path, story)


def test_a_task_that_runs_shows_its_health() -> None:
    async def story(w: task_world.World) -> None:
        w.engine.delay["started"] = SECOND
        given = task_world.item(healthcheck=task_world.CHECK)
        await w.runtime.prepare(given)
        seen = await watched(w.engine, Containers(w.engine, w.runtime.health), w.runtime.start(given))
        assert seen - {(True, "healthy")} == {(False, ""), (True, "starting")}

    task_world.play(story)


def test_a_start_that_fails_shows_what_the_last_run_was(tmp_path: Path) -> None:
    async def story(w: plain_fakes.World) -> None:
        containers = Containers(w.engine, w.plain.health)

        def shown(id: str) -> str:
            found = containers.get(id)
            return found.health.status if found is not None and found.health is not None else ""

        w.engine.probe = lambda container, args: (1, b"", 0)
        id = await w.run(Healthcheck=CHECK)
        await w.clock.sleep(MINUTE)
        assert shown(id) == "unhealthy"
        await w.plain.stop(id)
        w.engine.fail["start"] = SkepError("no")
        new = await w.create("c2", Healthcheck=CHECK)
        for failing, health in ((id, "unhealthy"), (new, "")):
            with pytest.raises(SkepError):
                await w.plain.start(failing)
            assert shown(failing) == health
        del w.engine.fail["start"]
        w.engine.delay["started"] = SECOND
        await w.plain.start(id)
        assert shown(id) == "starting"

    plain_fakes.play(tmp_path, story)
