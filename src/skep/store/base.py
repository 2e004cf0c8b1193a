"""The cluster's state: tables in memory, one writer, every change durable before anybody outside hears of it.

`apply` changes memory at once (the next decision sees it), a flusher writes groups of transactions to the back end, and only then are
watchers told and `commit`s answered: what was acknowledged or sent to a node survives a kill -9. Back ends have a synchronous core, so
that a simulation runs the real thing without threads (`flush`). See docs/store.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, Protocol

import msgspec

from skep.model.base import Object
from skep.plan.ops import Op
from skep.plan.view import View


class Event(msgspec.Struct, frozen=True):
    """One object's change. `old` is None for a creation, `new` for a deletion."""

    kind: type[Object]
    id: str
    version: int
    old: Object | None
    new: Object | None

    @property
    def action(self) -> Literal["create", "update", "delete"]:
        return "create" if self.old is None else "delete" if self.new is None else "update"


class Write(msgspec.Struct, frozen=True):
    """One row for a back end. `data` None = delete."""

    table: str
    id: str
    version: int
    data: bytes | None


class Backend(Protocol):
    """Where the state is kept. Synchronous; what `write` got is durable when it returns, all of it or nothing."""

    def load(self) -> Iterator[Write]:
        """All rows, each table's in order of creation, and one row of table "" with the last version written (deleted objects had one
        too: Docker's `Version.Index` never goes back)."""
        ...

    def write(self, batch: Sequence[Write], version: int) -> None: ...

    def close(self) -> None: ...


class Watch(Protocol):
    """Durable changes since the watch was opened, in order. Used as an async iterator of non-empty batches; `take` never waits."""

    def take(self) -> list[Event]: ...

    def __aiter__(self) -> Watch: ...

    async def __anext__(self) -> list[Event]: ...

    async def changed(self) -> None:
        """Wait until there is something to take, the watch is closed, or somebody calls `wake`."""
        ...

    def wake(self) -> None: ...

    def close(self) -> None: ...


class Store(View, Protocol):
    """The store is its own view: reads see every applied change, durable or not."""

    @property
    def durable_version(self) -> int:
        """Everything up to here is on disk."""
        ...

    def apply(self, ops: Iterable[Op], *, by: str = "") -> int:
        """One transaction in memory: all operations or none. Stamps version, created_at, updated_at, and spec_index where a `spec` is
        written. `by` names the controller (ownership is checked against it). Returns the new version (the old one when nothing was to do).

        Raises Conflict (a unique key or id is taken), NotFound (no such object).
        """
        ...

    async def commit(self, ops: Iterable[Op], *, by: str = "") -> int:
        """`apply`, and wait until it is durable."""
        ...

    async def durable(self, version: int) -> None:
        """Wait until everything up to `version` is durable."""
        ...

    def flush(self) -> int:
        """Write what is pending, now, in this thread; tell the watchers; returns how many objects were written."""
        ...

    async def run(self) -> None:
        """The flusher: group commit on a thread, until cancelled. A failing disk is fatal: it raises."""
        ...

    def watch(self, *kinds: type[Object], applied: bool = False) -> Watch:
        """Changes of these kinds (none given: all) from now on, when they are durable. `applied`: at once, for the planners, whose
        decisions reach nobody before the changes they rest on are durable too."""
        ...
