"""The one loop around all decisions of the leader. It is dull on purpose: what is clever is pure and lives in `skep.plan`.

An applied change makes keys dirty (`skep.manager.controllers` says which); each controller with dirty keys plans over the live tables, its
plan is applied as one transaction, and that makes further keys dirty, until nothing is left to do: a new service is allocated, filled and
scheduled in one step, before the first of it is on disk. Nobody outside hears of any of it earlier than it is durable.

A controller that raises is logged and tried again later with what it was to look at; the others go on. Two controllers that undo each
other's work for ever are stopped for a second and named in the log.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence

import msgspec

from skep.clock import MILLISECOND, SECOND, Clock
from skep.errors import StoreFailed
from skep.ids import Random
from skep.model.base import Object
from skep.model.tables import NAMES
from skep.plan.ops import Create, Op, Plan
from skep.plan.view import View
from skep.store.base import Event, Store

log = logging.getLogger(__name__)

QUIET = 10 * MILLISECOND
"""A batch closes when nothing came for so long..."""
LATEST = 50 * MILLISECOND
"""...and at the latest so long after its first change. The first change after a quiet time does not wait at all."""
RETRY = SECOND
RETRY_AT_MOST = 30 * SECOND
ROUNDS = 1000
"""Rounds in one step before it is taken for a fight."""
REMEMBERED = 10_000

ALL = ""
"""The key of a controller that always looks at everything it has to."""


class Controller(msgspec.Struct, frozen=True):
    """One decision, and when it is to be taken."""

    name: str
    watches: tuple[type[Object], ...]
    """Kinds whose changes it may care for."""
    keys: Callable[[View, Event], Iterable[Hashable]]
    """What a change makes dirty, few and quickly: called for every change of those kinds."""
    start: Callable[[View], Iterable[Hashable]]
    """What a new leader looks at first."""
    plan: Callable[[View, Collection[Hashable], int, Random], Plan]
    """(view, dirty keys, now, rng); never called without keys."""
    apart: bool = False
    """Each key is a plan and a transaction of its own."""
    owns: tuple[str, ...] = ()
    """The fields it writes, as `Kind.field`, for the reader; `skep.plan.ownership` is what is checked."""


class Decision(msgspec.Struct, frozen=True):
    """What was done and why, kept for `skep explain`."""

    at: int
    by: str
    action: str
    kind: str
    id: str
    because: str


class _State:
    """What the loop knows of one controller."""

    def __init__(self) -> None:
        self.dirty: dict[Hashable, None] = {}
        """In order of arrival, each once."""
        self.due: dict[Hashable, int] = {}
        self.heap: list[tuple[int, int, Hashable]] = []
        """(time, tie, key); an entry that is not what `due` says is stale."""
        self.ties = 0
        self.failures: dict[Hashable, int] = {}

    def look_again(self, key: Hashable, at: int) -> None:
        if self.due.get(key) == at:
            return
        self.due[key] = at
        self.ties += 1
        heapq.heappush(self.heap, (at, self.ties, key))

    def next_due(self) -> int | None:
        while self.heap and self.due.get(self.heap[0][2]) != self.heap[0][0]:
            heapq.heappop(self.heap)
        return self.heap[0][0] if self.heap else None

    def wake(self, now: int) -> None:
        while (at := self.next_due()) is not None and at <= now:
            key = heapq.heappop(self.heap)[2]
            del self.due[key]
            self.dirty[key] = None


class Loop:
    """`step` is the whole of it, synchronous; `run` calls it when something changed or a time has come."""

    def __init__(self, store: Store, clock: Clock, rng: Random, controllers: Sequence[Controller]) -> None:
        self._store = store
        self._clock = clock
        self._rng = rng
        self._controllers = tuple(controllers)
        self._states = {controller.name: _State() for controller in controllers}
        self._watch = store.watch(applied=True)
        self.decisions: deque[Decision] = deque(maxlen=REMEMBERED)
        for controller in controllers:
            self._states[controller.name].dirty.update(dict.fromkeys(controller.start(store)))

    def step(self, now: int) -> int | None:
        """Plans and applies until nothing is left to do at `now`. Returns when to call again if nothing changes before; None: never."""
        for state in self._states.values():
            state.wake(now)
        for _ in range(ROUNDS):
            worked = False
            for controller in self._controllers:
                self._mark()
                if self._states[controller.name].dirty:
                    worked = True
                    self._decide(controller, now)
            if not worked:
                break
        else:
            self._part_fighters(now)
        return min((at for state in self._states.values() if (at := state.next_due()) is not None), default=None)

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                again = self.step(self._clock.now())
                stepped = self._clock.now()
                await self._wait(again)
                await self._gather(stepped)
        finally:
            self.close()

    def close(self) -> None:
        self._watch.close()

    def _mark(self) -> None:
        for event in self._watch.take():
            for controller in self._controllers:
                if event.kind in controller.watches:
                    self._states[controller.name].dirty.update(dict.fromkeys(controller.keys(self._store, event)))

    def _decide(self, controller: Controller, now: int) -> None:
        state = self._states[controller.name]
        keys, state.dirty = state.dirty, {}
        for group in [(key,) for key in keys] if controller.apart else [tuple(keys)]:
            try:
                plan = controller.plan(self._store, group, now, self._rng)
                if plan.ops:
                    self._store.apply(plan.ops, by=controller.name)
            except StoreFailed:
                raise
            except Exception:
                self._retry(controller, group, now)
                continue
            self._remember(controller.name, plan.ops, now)
            self._note(state, controller, group, plan.look_again)

    def _note(self, state: _State, controller: Controller, group: tuple[Hashable, ...], again: int | None) -> None:
        for key in group:
            state.failures.pop(key, None)
        if controller.apart:
            if again is None:
                state.due.pop(group[0], None)
            else:
                state.look_again(group[0], again)
        elif again is not None and again < state.due.get(ALL, again + 1):
            # A plan of some keys says nothing of the others: the earliest time stands. Looking too early costs little.
            state.look_again(ALL, again)

    def _retry(self, controller: Controller, group: tuple[Hashable, ...], now: int) -> None:
        state = self._states[controller.name]
        for key in group:
            failures = state.failures[key] = state.failures.get(key, 0) + 1
            state.look_again(key, now + min(RETRY << min(failures - 1, 10), RETRY_AT_MOST))
        shown = ", ".join(repr(key) for key in group[:5] if key != ALL)
        log.exception("%s failed%s; it will be tried again", controller.name, f" for {shown}" if shown else "")

    def _part_fighters(self, now: int) -> None:
        self._mark()
        fighting = [name for name, state in self._states.items() if state.dirty]
        log.error("no end to the decisions of %s after %d rounds; they pause for a second", " and ".join(fighting), ROUNDS)
        for name in fighting:
            state = self._states[name]
            keys, state.dirty = state.dirty, {}
            for key in keys:
                state.look_again(key, now + RETRY)

    def _remember(self, by: str, ops: Iterable[Op], now: int) -> None:
        """Every operation's reason is kept; the log has one line for those of a plan that share it."""
        shared: dict[tuple[str, str, str], list[str]] = {}
        for op in ops:
            kind, id = (type(op.object), op.object.id) if isinstance(op, Create) else (op.kind, op.id)
            decision = Decision(now, by, type(op).__name__.lower(), NAMES[kind], id, op.because)
            self.decisions.append(decision)
            shared.setdefault((decision.action, decision.kind, op.because), []).append(id)
        for (action, kind_name, because), ids in shared.items():
            shown = ids[0] if len(ids) == 1 else f"{ids[0]} and {len(ids) - 1} more"
            log.info("%s: %s %s %s: %s", by, action, kind_name, shown, because)

    async def _wait(self, until: int | None) -> None:
        """For a change, or until `until`."""
        if until is None:
            await self._watch.changed()
            return
        async with asyncio.TaskGroup() as group:
            alarm = group.create_task(self._ring(until))
            await self._watch.changed()
            alarm.cancel()

    async def _ring(self, at: int) -> None:
        await self._clock.sleep(max(0, at - self._clock.now()))
        self._watch.wake()

    async def _gather(self, stepped: int) -> None:
        """Under load, let a batch come together."""
        now = self._clock.now()
        if now - stepped >= QUIET:
            return
        end = now + LATEST
        while now < end:
            version = self._store.version
            await self._clock.sleep(min(QUIET, end - now))
            if self._store.version == version:
                return
            now = self._clock.now()
