"""Tables and indexes in memory. Results come in order of creation.

A dictionary keeps a table's objects in that order by itself. An index's bucket is filled when an object comes under its key, which may be
later than its creation (a task under its node): a bucket filled out of order is put in order when it is next read.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from typing import Any

from skep.model.base import Object
from skep.model.tables import INDEXES, Index


class Buckets:
    """One index: key -> objects by id."""

    __slots__ = ("index", "_buckets", "_unordered", "_order")

    def __init__(self, index: Index[Any], order: dict[str, int]) -> None:
        self.index = index
        self._buckets: dict[Hashable, dict[str, Object]] = {}
        self._unordered: set[Hashable] = set()
        self._order = order
        """Id -> place in the order of creation; shared with the table."""

    def find(self, key: Hashable) -> Collection[Any]:
        bucket = self._buckets.get(key)
        if bucket is None:
            return ()
        if key in self._unordered:
            self._unordered.discard(key)
            order = self._order
            bucket = self._buckets[key] = dict(sorted(bucket.items(), key=lambda item: order[item[0]]))
        return bucket.values()

    def change(self, old: Object | None, new: Object | None) -> None:
        before: Iterable[Hashable] = self.index.keys(old) if old is not None else ()
        after: Iterable[Hashable] = self.index.keys(new) if new is not None else ()
        if old is not None and new is not None and before == after:
            for key in after:
                self._buckets[key][new.id] = new
            return
        if old is not None:
            kept = set(after)
            for key in set(before) - kept:
                self._remove(key, old.id)
        if new is not None:
            for key in set(after):
                self._put(key, new)

    def _remove(self, key: Hashable, id: str) -> None:
        bucket = self._buckets[key]
        del bucket[id]
        if not bucket:
            del self._buckets[key]
            self._unordered.discard(key)

    def _put(self, key: Hashable, new: Object) -> None:
        bucket = self._buckets.get(key)
        if bucket is None:
            self._buckets[key] = {new.id: new}
            return
        if new.id not in bucket and key not in self._unordered and self._order[next(reversed(bucket))] > self._order[new.id]:
            self._unordered.add(key)
        bucket[new.id] = new


class Table:
    """The objects of one kind and their indexes."""

    __slots__ = ("objects", "buckets", "unique", "_order", "_next")

    def __init__(self, kind: type[Object]) -> None:
        self.objects: dict[str, Any] = {}
        self._order: dict[str, int] = {}
        self._next = 0
        self.buckets: dict[str, Buckets] = {index.name: Buckets(index, self._order) for index in INDEXES if index.kind is kind}
        self.unique: tuple[Index[Any], ...] = tuple(index for index in INDEXES if index.kind is kind and index.unique)

    def change(self, old: Object | None, new: Object | None) -> None:
        if new is not None:
            if old is None:
                self._order[new.id] = self._next
                self._next += 1
            self.objects[new.id] = new
        for buckets in self.buckets.values():
            buckets.change(old, new)
        if new is None and old is not None:
            del self.objects[old.id]
            del self._order[old.id]
