"""The store: tables in memory over a back end (`skep.store.base.Store`). See docs/store.md.

A transaction is worked out beside the tables and put in only when all of it is right: there is nothing to roll back. A flusher writes what
was applied in groups, in order; readers outside hear of a change only when it is on disk. Not thread-safe: one event loop uses it, and only
the back end's `write` runs on another thread.
"""

from __future__ import annotations

import asyncio
import functools
import gc
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import msgspec

from skep.clock import Clock
from skep.errors import Conflict, NotFound, SkepError, StoreFailed
from skep.model.base import Object
from skep.model.tables import NAMES, TABLES, Index
from skep.model.task import Task
from skep.plan.ops import Change, Create, Delete, Op
from skep.plan.view import Load
from skep.store.backends import MemoryBackend as MemoryBackend
from skep.store.backends import NullBackend as NullBackend
from skep.store.base import Backend, Event, Write
from skep.store.loads import Loads
from skep.store.tables import Table
from skep.store.watch import EventQueue

T = TypeVar("T", bound=Object)

Guard = Callable[[str, Op, Object | None], None]
"""(by, operation, the object before it) -> raises when `by` may not write that."""

_STAMPED = frozenset({"id", "version", "spec_index", "created_at", "updated_at"})


class MemoryStore:
    """`skep.store.base.Store` over any back end. Loads everything at construction.

    Without a running flusher (`run`), `commit` and `durable` write in the caller's thread: a simulation needs no threads.
    """

    def __init__(self, backend: Backend, clock: Clock, guard: Guard | None = None) -> None:
        self._backend = backend
        self._clock = clock
        self._guard = guard
        self._tables: dict[type[Object], Table] = {kind: Table(kind) for kind in TABLES.values()}
        self._loads = Loads()
        self._version = 0
        self._durable = 0
        self._pending: list[Event] = []
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._watches: list[EventQueue] = []
        self._applied_watches: list[EventQueue] = []
        self._running = False
        self._writing = False
        self._failed: SkepError | None = None
        self._dirty = asyncio.Event()
        self._load()

    # reading

    @property
    def version(self) -> int:
        return self._version

    @property
    def durable_version(self) -> int:
        return self._durable

    def get(self, kind: type[T], id: str, /) -> T | None:
        return self._tables[kind].objects.get(id)

    def all(self, kind: type[T], /) -> Collection[T]:
        return self._tables[kind].objects.values()

    def find(self, index: Index[T], key: Hashable, /) -> Collection[T]:
        return self._tables[index.kind].buckets[index.name].find(key)

    def load(self, node_id: str, /) -> Load:
        return self._loads.of(node_id)

    def loads(self) -> Mapping[str, Load]:
        return self._loads.all()

    # writing

    def apply(self, ops: Iterable[Op], *, by: str = "") -> int:
        if self._failed is not None:
            raise self._failed
        staged = self._stage(ops, by)
        changes = [(kind, id, old, new) for (kind, id), (old, new) in staged.items() if old is not new]
        if not changes:
            return self._version
        self._refuse_taken_keys(changes)
        self._version += 1
        events = []
        for kind, id, old, new in changes:
            self._tables[kind].change(old, new)
            if kind is Task:
                self._loads.change(cast("Task | None", old), cast("Task | None", new))
            events.append(Event(kind, id, self._version, old, new))
        self._pending.extend(events)
        for watch in tuple(self._applied_watches):
            watch.put(events)
        self._dirty.set()
        return self._version

    async def commit(self, ops: Iterable[Op], *, by: str = "") -> int:
        version = self.apply(ops, by=by)
        await self.durable(version)
        return version

    async def durable(self, version: int) -> None:
        if version <= self._durable:
            return
        if self._failed is not None:
            raise self._failed
        if not self._running:
            self.flush()
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((version, waiter))
        await waiter

    def flush(self) -> int:
        if self._writing:
            raise RuntimeError("the flusher is writing")
        events, version = self._pending, self._version
        if not events:
            return 0
        self._pending = []
        try:
            written = self._write(events, version)
        except SkepError as error:
            self._fail(error)
            raise
        except Exception as error:
            raise self._fail(error) from error
        self._settle(events, version)
        return written

    async def run(self) -> None:
        self._running = True
        try:
            while True:
                await self._dirty.wait()
                self._dirty.clear()
                await self._flush_on_thread()
        finally:
            self._running = False

    def watch(self, *kinds: type[Object], applied: bool = False) -> EventQueue:
        watches = self._applied_watches if applied else self._watches

        def forget(watch: EventQueue) -> None:
            if watch in watches:
                watches.remove(watch)

        watch = EventQueue(frozenset(kinds), forget)
        watches.append(watch)
        return watch

    def close(self) -> None:
        """Write what is pending and close the back end. The flusher must have ended."""
        try:
            if self._failed is None:
                self.flush()
        finally:
            for watch in (*self._watches, *self._applied_watches):
                watch.close()
            self._backend.close()

    # how

    def _stage(self, ops: Iterable[Op], by: str) -> dict[tuple[type[Object], str], tuple[Object | None, Object | None]]:
        """What the operations make of the objects they touch: (before the transaction, after it)."""
        staged: dict[tuple[type[Object], str], tuple[Object | None, Object | None]] = {}
        now = self._clock.now()
        version = self._version + 1
        for op in ops:
            kind, id = (type(op.object), op.object.id) if isinstance(op, Create) else (op.kind, op.id)
            before = self._tables[kind].objects.get(id)
            first, current = staged.get((kind, id), (before, before))
            if self._guard is not None:
                self._guard(by, op, current)
            if isinstance(op, Create):
                if current is not None:
                    raise Conflict("object already exists", rpc="AlreadyExists")
                new: Object | None = _stamp(op.object, {"version": version, "spec_index": version, "created_at": now, "updated_at": now})
            elif current is None:
                raise NotFound(f"{NAMES[kind]} {id} not found", rpc="NotFound")
            elif isinstance(op, Delete):
                new = None
            else:
                new = _changed(current, op, version, now)
            staged[kind, id] = (first, new)
        return staged

    def _refuse_taken_keys(self, changes: Iterable[tuple[type[Object], str, Object | None, Object | None]]) -> None:
        freed: set[tuple[type[Object], str, Hashable]] = set()
        claims: dict[tuple[type[Object], str, Hashable], Object] = {}
        for kind, _, old, new in changes:
            for index in self._tables[kind].unique:
                before = set(index.keys(old)) if old is not None else set()
                after = set(index.keys(new)) if new is not None else set()
                freed.update((kind, index.name, key) for key in before - after)
                for key in after - before:
                    claim = (kind, index.name, key)
                    if new is None or claim in claims:
                        raise _taken(kind, new)
                    claims[claim] = new
        for claim, new in claims.items():
            kind, name, key = claim
            if claim not in freed and self._tables[kind].buckets[name].find(key):
                raise _taken(kind, new)

    def _write(self, events: Iterable[Event], version: int) -> int:
        """The last state of each object that changed, in order of first change."""
        rows: dict[tuple[str, str], Event] = {}
        for event in events:
            rows[NAMES[event.kind], event.id] = event
        encode = msgspec.msgpack.Encoder().encode
        batch = [Write(table, id, e.version, None if e.new is None else encode(e.new)) for (table, id), e in rows.items()]
        self._backend.write(batch, version)
        return len(batch)

    async def _flush_on_thread(self) -> None:
        events, version = self._pending, self._version
        if not events:
            return
        self._pending = []
        self._writing = True
        writing = asyncio.ensure_future(asyncio.to_thread(self._write, events, version))
        cancelled: asyncio.CancelledError | None = None
        try:
            while not writing.done():
                try:
                    await asyncio.wait((writing,))
                except asyncio.CancelledError as error:
                    # The thread cannot be stopped: what it writes must be told before we go.
                    cancelled = error
            writing.result()
        except SkepError as error:
            self._fail(error)
            raise
        except Exception as error:
            raise self._fail(error) from error
        finally:
            self._writing = False
        self._settle(events, version)
        if cancelled is not None:
            raise cancelled

    def _settle(self, events: list[Event], version: int) -> None:
        self._durable = version
        for watch in tuple(self._watches):
            watch.put(events)
        waiting, self._waiting = self._waiting, []
        for wanted, waiter in waiting:
            if wanted > version:
                self._waiting.append((wanted, waiter))
            elif not waiter.done():
                waiter.set_result(None)

    def _fail(self, failure: Exception) -> SkepError:
        """What is in memory is no longer what is on disk: nothing more is taken, and nobody waits for what does not come."""
        error = failure if isinstance(failure, SkepError) else StoreFailed(f"the cluster's state could not be written: {failure}")
        self._failed = error
        waiting, self._waiting = self._waiting, []
        for _, waiter in waiting:
            if not waiter.done():
                waiter.set_exception(error)
        return error

    def _load(self) -> None:
        decoders = _decoders()
        with _without_collector():
            for row in self._backend.load():
                self._version = max(self._version, row.version)
                if row.data is None:
                    continue
                decoder = decoders.get(row.table)
                if decoder is None:
                    raise SkepError(f"the store holds a table {row.table!r} that this version of skep does not know")
                kind = TABLES[row.table]
                new = decoder.decode(row.data)
                self._tables[kind].change(None, new)
                if isinstance(new, Task):
                    self._loads.change(None, new)
        self._durable = self._version


@functools.cache
def _decoders() -> dict[str, msgspec.msgpack.Decoder[Any]]:
    """Making them costs as much as reading a small cluster."""
    return {name: msgspec.msgpack.Decoder(kind) for name, kind in TABLES.items()}


def _stamp(object: Object, fields: dict[str, Any]) -> Object:
    return msgspec.structs.replace(object, **fields)


def _changed(current: Object, op: Change, version: int, now: int) -> Object:
    """`current` itself when the change changes nothing."""
    fields = {name: value for name, value in op.fields.items() if getattr(current, name) != value}
    if not fields:
        return current
    if not _STAMPED.isdisjoint(fields):
        raise ValueError(f"{sorted(_STAMPED & fields.keys())} are written by the store alone")
    stamps = {"version": version, "updated_at": now}
    if "spec" in fields:
        stamps["spec_index"] = version
    return _stamp(current, {**fields, **stamps})


def _taken(kind: type[Object], new: Any) -> Conflict:
    return Conflict(f"name conflicts with an existing object: {NAMES[kind]} {new.spec.name} already exists", rpc="AlreadyExists")


@contextmanager
def _without_collector() -> Iterator[None]:
    """Decoding many objects creates no garbage, but makes the collector look at all of them again and again (5 times the cost)."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()
