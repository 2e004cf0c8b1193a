"""The loop: to a fixpoint, on time, and past a controller that fails."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Hashable
from typing import Any

import pytest

from skep.clock import MILLISECOND, SECOND
from skep.errors import StoreFailed
from skep.ids import Random
from skep.manager.loop import ALL, ROUNDS, Controller, Loop
from skep.model.base import Object
from skep.model.network import Network
from skep.model.service import Service
from skep.model.spec import NetworkSpec, ServiceSpec
from skep.plan.ops import NOTHING, Change, Create, Op, Plan
from skep.plan.view import View
from skep.store.memory import MemoryStore, NullBackend

Planner = Callable[[View, Collection[Hashable], int], Plan]


class Clock:
    """Sleepers wait until the test moves the time."""

    def __init__(self) -> None:
        self.time = 0
        self.sleepers: list[tuple[int, asyncio.Event]] = []

    def now(self) -> int:
        return self.time

    async def sleep(self, ns: int) -> None:
        event = asyncio.Event()
        self.sleepers.append((self.time + ns, event))
        try:
            await event.wait()
        finally:
            self.sleepers = [entry for entry in self.sleepers if entry[1] is not event]

    async def move(self, ns: int) -> None:
        self.time += ns
        for at, event in list(self.sleepers):
            if at <= self.time:
                event.set()
        await settle()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def controller(
    name: str, plan: Planner, *, apart: bool = False, start: tuple[Hashable, ...] = (), kind: type[Object] = Service
) -> Controller:
    return Controller(
        name=name,
        watches=(kind,),
        keys=lambda view, event: (event.id,),
        start=lambda view: start,
        plan=lambda view, keys, now, rng: plan(view, keys, now),
        apart=apart,
    )


def store() -> MemoryStore:
    return MemoryStore(NullBackend(), Clock())


def service(id: str, **fields: Any) -> Op:
    return Create(Service(id=id, spec=ServiceSpec(name=id), **fields), "test")


def loop(s: MemoryStore, *controllers: Controller, clock: Clock | None = None) -> Loop:
    return Loop(s, clock or Clock(), random.Random(1), controllers)


def count_to(limit: int) -> Planner:
    def plan(view: View, keys: Collection[Hashable], now: int) -> Plan:
        return Plan(
            tuple(
                Change(Service, found.id, {"spec_version": found.spec_version + 1}, f"towards {limit}")
                for key in keys
                if (found := view.get(Service, str(key))) is not None and found.spec_version < limit
            )
        )

    return plan


def test_goes_on_until_nothing_is_left_to_do() -> None:
    s = store()
    the = loop(s, controller("up", count_to(7)))
    s.apply([service("a"), service("b", spec_version=5)])
    assert the.step(0) is None
    assert [x.spec_version for x in s.all(Service)] == [7, 7]
    assert [d.because for d in the.decisions].count("towards 7") == 9
    version = s.version
    the.step(1)
    assert s.version == version


def test_one_transaction_a_plan_and_each_key_apart() -> None:
    s = store()
    together = loop(s, controller("up", count_to(1)))
    s.apply([service("a"), service("b")])
    together.step(0)
    assert s.version == 2
    together.close()
    apart = loop(s, controller("up", count_to(2), apart=True))
    s.apply([service("c")])
    s.apply([Change(Service, "a", {"previous_spec_version": 1}, "t"), Change(Service, "b", {"previous_spec_version": 1}, "t")])
    version = s.version
    apart.step(0)
    assert s.version == version + 4  # a, b once, c twice


def test_a_failing_controller_stops_no_other_and_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    s = store()
    broken = True
    asked: list[tuple[Hashable, int]] = []

    def plan(view: View, keys: Collection[Hashable], now: int) -> Plan:
        asked.extend((key, now) for key in keys)
        if broken and "bad" in keys:
            raise ZeroDivisionError("a bug")
        return count_to(1)(view, keys, now)

    the = loop(s, controller("buggy", plan, apart=True), controller("other", count_to(3)))
    s.apply([service("bad", spec_version=3), service("good")])
    with caplog.at_level(logging.ERROR):
        assert the.step(0) == SECOND
    assert [x.spec_version for x in s.all(Service)] == [3, 3]
    assert "buggy failed for 'bad'; it will be tried again" in caplog.text
    assert "ZeroDivisionError: a bug" in caplog.text
    asked.clear()
    assert the.step(SECOND - 1) == SECOND
    assert asked == []
    assert the.step(SECOND) == 3 * SECOND
    assert asked == [("bad", SECOND)]
    broken = False
    assert the.step(3 * SECOND) is None
    broken = True
    s.apply([Change(Service, "bad", {"previous_spec_version": 1}, "t")])
    assert the.step(4 * SECOND) == 5 * SECOND, "the next failure begins at the shortest wait"


def test_a_plan_that_is_refused_is_tried_again() -> None:
    s = store()

    def plan(view: View, keys: Collection[Hashable], now: int) -> Plan:
        if view.get(Service, "a") is None or view.get(Service, "new") is not None:
            return NOTHING
        return Plan((service("new"), Create(Service(id="x", spec=ServiceSpec(name="a")), "the name is taken")))

    the = loop(s, controller("c", plan))
    s.apply([service("a")])
    assert the.step(0) == SECOND
    assert s.get(Service, "new") is None
    s.apply([Change(Service, "a", {"spec": ServiceSpec(name="b")}, "t")])
    the.step(0)
    assert s.get(Service, "new") is not None


def test_a_failing_disk_is_not_taken_for_a_bug() -> None:
    s = store()

    def plan(view: View, keys: Collection[Hashable], now: int) -> Plan:
        raise StoreFailed("disk full")

    the = loop(s, controller("c", plan))
    s.apply([service("a")])
    with pytest.raises(StoreFailed):
        the.step(0)


def test_looks_again_when_asked_to() -> None:
    s = store()
    times: dict[Hashable, int | None] = {"a": 50, "b": 30}
    asked: list[tuple[int, Hashable]] = []

    def plan(view: View, keys: Collection[Hashable], now: int) -> Plan:
        asked.extend((now, key) for key in keys)
        (key,) = keys
        at = times[key]
        return Plan(look_again=at if at is not None and at > now else None)

    the = loop(s, controller("c", plan, apart=True, start=("a", "b")))
    assert the.step(0) == 30
    assert the.step(29) == 30
    assert the.step(30) == 50
    times["a"] = 90
    s.apply([service("a")])
    assert the.step(40) == 90, "the last answer stands, the older one is forgotten"
    assert the.step(50) == 90
    times["a"] = None
    assert the.step(90) is None
    assert asked == [(0, "a"), (0, "b"), (30, "b"), (40, "a"), (90, "a")]


def test_a_plan_of_some_keys_does_not_forget_the_others_time() -> None:
    s = store()
    asked: list[tuple[int, tuple[Hashable, ...]]] = []

    def plan(view: View, keys: Collection[Hashable], now: int) -> Plan:
        asked.append((now, tuple(keys)))
        return Plan(look_again={0: 50, 10: 70, 50: 60}.get(now))

    the = loop(s, controller("c", plan, start=(ALL,)))
    assert the.step(0) == 50
    s.apply([service("a")])
    assert the.step(10) == 50
    assert the.step(50) == 60
    assert the.step(60) is None
    assert asked == [(0, (ALL,)), (10, ("a",)), (50, (ALL,)), (60, (ALL,))]


def test_two_that_fight_are_parted(caplog: pytest.LogCaptureFixture) -> None:
    s = store()

    def sets(version: int) -> Planner:
        return lambda view, keys, now: Plan(
            tuple(Change(Service, str(key), {"spec_version": version}, "mine") for key in keys if view.get(Service, str(key)))
        )

    the = loop(s, controller("one", sets(1)), controller("two", sets(2)), controller("peaceful", count_to(0), kind=Network))
    s.apply([service("a")])
    with caplog.at_level(logging.ERROR):
        assert the.step(0) == SECOND
    assert f"no end to the decisions of one and two after {ROUNDS} rounds" in caplog.text
    assert "peaceful" not in caplog.text
    s.apply([Create(Network(id="n", spec=NetworkSpec(name="n")), "t")])


def test_starts_with_what_the_store_holds() -> None:
    s = store()
    s.apply([service("a")])
    seen: list[Hashable] = []

    def plan(view: View, keys: Collection[Hashable], now: int) -> Plan:
        seen.extend(keys)
        return NOTHING

    the = loop(s, controller("c", plan, start=("a",)))
    the.step(0)
    assert seen == ["a"]
    assert s.apply([service("b")]) == 2
    the.close()


def test_run_waits_for_changes_and_times() -> None:
    async def main() -> None:
        clock = Clock()
        s = MemoryStore(NullBackend(), clock)
        asked: list[tuple[int, Hashable]] = []

        def plan(view: View, keys: Collection[Hashable], now: int) -> Plan:
            asked.extend((now, key) for key in keys)
            return Plan(look_again=5 * SECOND if now < 5 * SECOND else None)

        the = loop(s, controller("c", plan, start=(ALL,)), clock=clock)
        runner = asyncio.ensure_future(the.run())
        await settle()
        assert asked == [(0, ALL)]
        await clock.move(SECOND)
        s.apply([service("a")])
        await settle()
        assert asked == [(0, ALL), (SECOND, "a")], "the first change after a quiet time does not wait"
        for n in range(4):
            s.apply([service(f"burst{n}")])
            await settle()
        assert len(asked) == 2, "what comes at once after it waits for a batch"
        await clock.move(10 * MILLISECOND)
        await clock.move(10 * MILLISECOND)
        assert asked[2:] == [(SECOND + 20 * MILLISECOND, f"burst{n}") for n in range(4)]
        asked.clear()
        for n in range(20):
            s.apply([service(f"stream{n}")])
            await clock.move(9 * MILLISECOND)
        assert 2 <= len({at for at, _ in asked}) <= 5, "a stream that never pauses waits 50 ms at most"
        await clock.move(SECOND)
        assert sorted(str(key) for _, key in asked) == sorted(f"stream{n}" for n in range(20))
        asked.clear()
        await clock.move(4 * SECOND)
        assert [key for _, key in asked] == [ALL]
        runner.cancel()
        with pytest.raises(asyncio.CancelledError):
            await runner
        assert clock.sleepers == []

    asyncio.run(main())


def test_randomness_is_passed_on() -> None:
    s = store()
    given: list[Random] = []
    rng = random.Random(5)

    def plan(view: View, keys: Collection[Hashable], now: int, rng: Random) -> Plan:
        given.append(rng)
        return NOTHING

    row = Controller(name="c", watches=(), keys=lambda v, e: (), start=lambda v: (ALL,), plan=plan)
    Loop(s, Clock(), rng, [row]).step(0)
    assert given == [rng]
