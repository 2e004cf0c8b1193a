"""Health checks of tasks over an engine and a data path in memory: when a task runs, and when it is replaced."""

from __future__ import annotations

import pytest
from task_world import CHECK, REFERENCE, World, image, item, play

from skep.clock import SECOND
from skep.engine.base import Container
from skep.errors import SkepError
from skep.model import spec as s
from skep.node.containers import Containers


def test_healthy_after_the_first_success() -> None:
    async def story(w: World) -> None:
        answers = [(1, b"not yet", 0), (1, b"", 0), (0, b"fine", 0)]
        asked: list[tuple[str, ...]] = []

        def probe(container: Container, args: tuple[str, ...]) -> tuple[int, bytes, int]:
            asked.append(args)
            return answers.pop(0)

        w.engine.probe = probe
        given = item(healthcheck=CHECK)
        await w.runtime.prepare(given)
        begin = w.clock.now()
        await w.runtime.start(given)
        assert w.clock.now() - begin == 30 * SECOND
        assert asked[0] == ("/bin/sh", "-c", "probe me")
        health = w.runtime.health("tid")
        assert health is not None and health.status == "healthy" and health.failing_streak == 0
        assert [result.output for result in health.results] == ["not yet", "", "fine"]
        (described,) = Containers(w.engine, w.runtime.health).all()
        assert described.health is health and described.task_id == "tid" and described.image == REFERENCE

    play(story)


def test_unhealthy_before_and_after() -> None:
    async def story(w: World) -> None:
        w.engine.probe = lambda container, args: (1, b"", 0)
        given = item(healthcheck=CHECK)
        await w.runtime.prepare(given)
        with pytest.raises(SkepError) as failed:
            await w.runtime.start(given)
        assert failed.value.text == "unhealthy container" and w.only().running, "stopping it is the agent's next call"
        await w.runtime.shutdown(given)
        await w.runtime.remove("tid")

        good = True
        w.engine.probe = lambda container, args: (0 if good else 1, b"", 0)
        await w.runtime.prepare(given)
        await w.runtime.start(given)
        good = False
        with pytest.raises(SkepError, match="^unhealthy container$"):
            await w.runtime.wait(given)

    play(story)


def test_a_probe_that_hangs_and_one_that_cannot_run() -> None:
    async def story(w: World) -> None:
        w.engine.probe = lambda container, args: (0, b"", 60 * SECOND)
        given = item(healthcheck=CHECK)
        await w.runtime.prepare(given)
        with pytest.raises(SkepError, match="unhealthy container"):
            await w.runtime.start(given)
        health = w.runtime.health("tid")
        assert health is not None
        assert {(result.code, result.output) for result in health.results} == {(-1, "Health check exceeded timeout (2s)")}

    play(story)


def test_the_start_period_forgives() -> None:
    async def story(w: World) -> None:
        begin = w.clock.now()
        w.engine.probe = lambda container, args: (0 if w.clock.now() - begin > 100 * SECOND else 1, b"", 0)
        given = item(healthcheck=s.Healthcheck(test=("CMD", "x"), interval=10 * SECOND, retries=2, start_period=95 * SECOND))
        await w.runtime.prepare(given)
        await w.runtime.start(given)
        assert 100 * SECOND < w.clock.now() - begin < 120 * SECOND

    play(story)


def test_an_end_before_it_was_healthy() -> None:
    async def story(w: World) -> None:
        given = item(healthcheck=CHECK)
        await w.runtime.prepare(given)

        def die(container: Container, args: tuple[str, ...]) -> tuple[int, bytes, int]:
            w.engine.end(container.config.id, 4)
            return 137, b"", 0

        w.engine.probe = die
        with pytest.raises(SkepError) as failed:
            await w.runtime.start(given)
        assert failed.value.text == "task: non-zero exit (4)"

    play(story)


def test_the_images_health_check_and_none() -> None:
    async def story(w: World) -> None:
        probed: list[tuple[str, ...]] = []

        def probe(container: Container, args: tuple[str, ...]) -> tuple[int, bytes, int]:
            probed.append(args)
            return 0, b"", 0

        w.engine.probe = probe
        w.engine.images_.remote[REFERENCE] = image(healthcheck={"Test": ["CMD", "check"], "Interval": SECOND})
        given = item("a")
        await w.runtime.prepare(given)
        begin = w.clock.now()
        await w.runtime.start(given)
        assert probed == [("check",)] and w.clock.now() - begin == SECOND
        none = item("b", healthcheck=s.Healthcheck(test=("NONE",)))
        await w.runtime.prepare(none)
        await w.runtime.start(none)
        assert len(probed) == 1
        with pytest.raises(SkepError, match='Unknown healthcheck type "ODD"'):
            await w.runtime.prepare(item("c", healthcheck=s.Healthcheck(test=("ODD", "x"))))

    play(story)
