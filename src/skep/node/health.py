"""Health checks as Docker makes them: a command in the container every interval; healthy after one success, unhealthy after `retries`
failures in a row. Failures during the start period do not count. See docs/engine.md.

A check runs inside the call that waits for its container (start, then wait), so nothing goes on behind anybody's back; what was learned is
kept between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any

import msgspec

from skep.clock import SECOND, Clock
from skep.engine.base import Engine, ExecConfig
from skep.errors import SkepError
from skep.model.spec import Healthcheck
from skep.node.timing import within

OUTPUT = 4096
"""Bytes of a probe's output that are kept."""
KEPT = 5
"""Results that are kept."""


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """A health check with nothing left open; times in ns."""

    args: tuple[str, ...]
    interval: int = 30 * SECOND
    timeout: int = 30 * SECOND
    start_period: int = 0
    start_interval: int = 5 * SECOND
    retries: int = 3


class Result(msgspec.Struct, frozen=True, kw_only=True):
    start: int
    end: int
    code: int
    """-1: it took too long, or could not be run."""
    output: str


class Health:
    """What is known of one container's health."""

    def __init__(self) -> None:
        self.status = "starting"
        """starting, healthy or unhealthy."""
        self.failing_streak = 0
        self.results: list[Result] = []

    def take(self, result: Result, probe: Probe, started_at: int) -> None:
        self.results = [*self.results, result][-KEPT:]
        if result.code == 0:
            self.status, self.failing_streak = "healthy", 0
            return
        if self.status == "starting" and result.end - started_at < probe.start_period:
            return
        self.failing_streak += 1
        if self.failing_streak >= probe.retries:
            self.status = "unhealthy"


def probe_of(asked: Healthcheck | None, image: Mapping[str, Any] | None) -> Probe | None:
    """The service's health check over the image's, field by field; None: there is none, or NONE was asked for."""
    base = image or {}
    asked = asked or Healthcheck()
    test = tuple(asked.test or ()) or tuple(str(part) for part in base.get("Test") or ())
    if not test or test[0] == "NONE":
        return None
    if test[0] == "CMD-SHELL":
        args: tuple[str, ...] = ("/bin/sh", "-c", " ".join(test[1:]))
    elif test[0] == "CMD":
        args = test[1:]
    else:
        raise SkepError(f'Unknown healthcheck type "{test[0]}" (expected "NONE", "CMD", or "CMD-SHELL")')
    if not args or not args[-1]:
        return None

    def pick(value: int, name: str, default: int) -> int:
        return value or int(base.get(name) or 0) or default

    return Probe(
        args=args,
        interval=pick(asked.interval, "Interval", 30 * SECOND),
        timeout=pick(asked.timeout, "Timeout", 30 * SECOND),
        start_period=pick(asked.start_period, "StartPeriod", 0),
        start_interval=pick(asked.start_interval, "StartInterval", 5 * SECOND),
        retries=pick(asked.retries, "Retries", 3),
    )


def kept_probe(asked: Healthcheck | None) -> Probe | None:
    """`probe_of` what a container was made with, which was looked at then."""
    try:
        return probe_of(asked, None)
    except SkepError:
        return None


async def watch(
    engine: Engine,
    clock: Clock,
    id: str,
    probe: Probe,
    health: Health,
    started_at: int,
    enough: Callable[[Health], bool],
    paused: Callable[[], bool] = lambda: False,
) -> None:
    """Probe until `enough`; the first time after one interval. Not while `paused`."""
    while not enough(health):
        early = health.status == "starting" and clock.now() - started_at < probe.start_period
        await clock.sleep(min(probe.start_interval, probe.interval) if early else probe.interval)
        if paused():
            continue
        health.take(await _run(engine, clock, id, probe), probe, started_at)


async def _run(engine: Engine, clock: Clock, id: str, probe: Probe) -> Result:
    start = clock.now()
    output = bytearray()
    try:
        process = await engine.exec(id, ExecConfig(args=probe.args))
    except SkepError as error:
        return Result(start=start, end=clock.now(), code=-1, output=error.text[:OUTPUT])

    async def read() -> int:
        async with aclosing(process.streams.output()) as pieces:
            async for _, data in pieces:
                output.extend(data[: OUTPUT - len(output)])
        return await process.wait()

    try:
        code = await within(clock, probe.timeout, read())
        text = output.decode("utf-8", "replace")
    except TimeoutError:
        code, text = -1, f"Health check exceeded timeout ({probe.timeout / SECOND:g}s)"
        process.kill()
    finally:
        await process.streams.close()
    return Result(start=start, end=clock.now(), code=code, output=text)
