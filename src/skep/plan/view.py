"""What a decision may read: the live tables, never a copy. Planning never awaits, so nothing moves under it.

`skep.store.memory` implements it; tests may use it directly.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from typing import Protocol, TypeVar

import msgspec

from skep.model.base import Object
from skep.model.tables import Index

T = TypeVar("T", bound=Object)


class Load(msgspec.Struct):
    """What a node carries, kept up to date with each write, so that a decision costs what changed and not what is there."""

    tasks: int = 0
    """Tasks assigned to it that are active (desired at most COMPLETE, not ended)."""
    nano_cpus: int = 0
    """Reserved by tasks that hold resources (assigned and not ended, whatever is desired of them)."""
    memory_bytes: int = 0
    generic: dict[str, int] = {}
    """Discrete generic resources, kind -> number."""
    named: dict[str, frozenset[str]] = {}
    """Named generic resources, kind -> names."""
    host_ports: dict[tuple[str, int], int] = {}
    """(protocol, port) -> number of tasks that hold it in host mode."""
    by_service: dict[str, int] = {}
    """Service id -> active tasks."""


class View(Protocol):
    """Read access to the tables. Collections come in order of creation and must not be changed or kept."""

    @property
    def version(self) -> int: ...

    def get(self, kind: type[T], id: str, /) -> T | None: ...

    def all(self, kind: type[T], /) -> Collection[T]: ...

    def find(self, index: Index[T], key: Hashable, /) -> Collection[T]: ...

    def load(self, node_id: str, /) -> Load:
        """Never None: an empty load for a node without tasks."""
        ...

    def loads(self) -> Mapping[str, Load]:
        """By node id; nodes without tasks may be missing."""
        ...
