"""Whole clusters against misfortune: `python -m skep.testing.sim --seeds 1000`, and one of them again: `--seed N`.

A seed makes a cluster of three to six nodes and two to four services, and 50 to 70 events happen to it: what users ask for, and what goes
wrong. The rules are looked at after every step. Then all trouble ends, and within a bounded time everything has to be as it was asked for;
at last the services are removed, and nothing may be left. A seed that fails is run again with its story. See docs/simulation.md.
"""

from __future__ import annotations

import argparse
import gc
import logging
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence

import msgspec

from skep.clock import MILLISECOND, MINUTE, SECOND
from skep.model.service import Service
from skep.testing.sim_events import Events
from skep.testing.sim_rules import Violation
from skep.testing.sim_settled import Settled
from skep.testing.sim_world import Logged, Parts, World

EVENTS = 50
SETTLE_WITHIN = 20 * MINUTE
"""Virtual time from the end of all trouble until all is as asked for: crash loops, the wait for what hung, back-offs at their limit."""
LOOK_EVERY = 2 * SECOND
STEPS_AT_MOST = 200_000
"""Of one cluster: something goes round in circles otherwise."""


class Failure(msgspec.Struct, frozen=True):
    seed: int
    reason: str
    story: tuple[str, ...] = ()


class Result(msgspec.Struct, frozen=True):
    """What a cluster went through; equal for equal seeds."""

    seed: int
    events: int
    nodes: int
    """That took part, from the first to the last."""
    services: int
    steps: int
    seconds: float
    """Of virtual time."""
    version: int
    """The store's last."""


def run(seed: int, parts: Parts = Parts(), story: list[str] | None = None) -> Result:
    """One cluster from its birth to its end. Raises Violation, or whatever else went wrong in it."""
    world = World(seed, parts, story)
    events = Events(world)
    rng, agenda = world.rng, world.agenda
    begun = agenda.now
    events.begin()
    count = EVENTS + rng.randrange(20)
    for _ in range(count):
        pause = rng.choice((0, 5 * MILLISECOND, 50 * MILLISECOND, 500 * MILLISECOND, SECOND, 3 * SECOND, 8 * SECOND))
        _run_until(world, agenda.now + int(pause * rng.uniform(0.5, 1.5)))
        world.rules.noticed()
        events.happen()
    events.heal()
    _settle(world, "settled")
    manager = world.manager
    assert manager is not None
    for service in list(manager.store.all(Service)):
        events.remove(manager, service)
    for node in world.nodes.values():
        for container in list(node.runtime.plain.running):
            node.runtime.plain.stop(container)
        node.pump()
    _settle(world, "emptied")
    return Result(seed, count, world.hosts, events.services, agenda.steps, (agenda.now - begun) / SECOND, manager.store.version)


def _run_until(world: World, time: int) -> None:
    agenda = world.agenda
    agenda.run_until(time)
    if agenda.steps > STEPS_AT_MOST:
        raise Violation(f"no end after {STEPS_AT_MOST} steps")


def _settle(world: World, what: str) -> None:
    settled = Settled(world)
    ask = settled.unsettled if what == "settled" else settled.unemptied
    deadline = world.agenda.now + SETTLE_WITHIN
    while problem := ask():
        if world.agenda.now >= deadline:
            raise Violation(f"not {what} after {SETTLE_WITHIN // MINUTE} minutes: {problem}")
        _run_until(world, world.agenda.now + LOOK_EVERY)


def attempt(seed: int, parts: Parts = Parts(), *, tell: bool = True) -> Result | Failure:
    """`run`, with what goes wrong as an answer; a failing seed is run a second time for its story."""
    with _listening():
        try:
            return run(seed, parts)
        except (Violation, Exception) as error:
            reason = _reason(error)
        story: list[str] = []
        if tell:
            try:
                run(seed, parts, story)
                story.append("the second run of this seed did not fail: something in it is not decided by the seed")
            except (Violation, Exception) as error:
                story.append(f"FAILS: {_reason(error)}")
        return Failure(seed, reason, tuple(story))


def _reason(error: BaseException) -> str:
    if isinstance(error, Violation):
        return str(error)
    return "".join(traceback.format_exception(error)).strip()


class _listening:
    """What a controller's exception is logged with becomes a failure; nothing else is printed."""

    def __enter__(self) -> None:
        self._log = logging.getLogger("skep")
        self._before = (self._log.handlers[:], self._log.propagate, self._log.level)
        self._log.handlers[:], self._log.propagate = [Logged()], False
        self._log.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self._log.handlers[:], self._log.propagate = self._before[:2]
        self._log.setLevel(self._before[2])


def _prepare() -> None:
    """The collector looks at what lives on again and again otherwise."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


def _quiet_attempt(seed: int) -> Result | Failure:
    return attempt(seed, tell=False)


def run_seeds(seeds: Sequence[int], workers: int = 0) -> Iterator[Result | Failure]:
    """As they end. Processes are started anew with fixed hashes, so that a seed means the same everywhere."""
    workers = min(workers or os.cpu_count() or 1, len(seeds))
    if workers <= 1:
        yield from map(_quiet_attempt, seeds)
        return
    before = os.environ.get("PYTHONHASHSEED")
    os.environ["PYTHONHASHSEED"] = "0"
    try:
        with multiprocessing.get_context("spawn").Pool(workers, _prepare) as pool:
            yield from pool.imap_unordered(_quiet_attempt, seeds, chunksize=8)
    finally:
        if before is None:
            del os.environ["PYTHONHASHSEED"]
        else:
            os.environ["PYTHONHASHSEED"] = before


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m skep.testing.sim", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, metavar="N", help="run the clusters FIRST to FIRST + N - 1")
    parser.add_argument("--first", type=int, default=0, metavar="FIRST")
    parser.add_argument("--seed", type=int, metavar="N", help="run one, and tell its story")
    parser.add_argument("--workers", type=int, default=0, help="processes (default: one per processor)")
    parser.add_argument("--tail", type=int, default=0, metavar="LINES", help="only the last lines of a story")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return _tell(options.seed, options.tail)
    begin, failures, results = time.monotonic(), 0, 0
    virtual, events, steps = 0.0, 0, 0
    for result in run_seeds(range(options.first, options.first + (options.seeds or 1000)), options.workers):
        if isinstance(result, Failure):
            failures += 1
            print(
                f"seed {result.seed}: {result.reason}\n  again, with its story: python -m skep.testing.sim --seed {result.seed}", flush=True
            )
        else:
            results += 1
            virtual, events, steps = virtual + result.seconds, events + result.events, steps + result.steps
    took = time.monotonic() - begin
    total = results + failures
    print(
        f"{total} clusters, {events} events, {steps} steps, {virtual / 3600:.1f} hours of their time in {took:.1f} s: "
        f"{failures or 'none'} failed"
    )
    return 1 if failures else 0


def _tell(seed: int, tail: int) -> int:
    story: list[str] = []
    with _listening():
        try:
            result = run(seed, story=story)
        except (Violation, Exception) as error:
            print("\n".join(story[-tail:] if tail else story))
            print(f"seed {seed} FAILS: {_reason(error)}")
            return 1
    print("\n".join(story[-tail:] if tail else story))
    print(f"seed {seed}: {result.events} events, {result.steps} steps, {result.seconds:.0f} s of its time, no rule broken")
    return 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "skep.testing.sim", *sys.argv[1:]])
    sys.exit(main())
