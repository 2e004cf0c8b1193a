"""Encoded forms of objects, kept while the object is the same: the progress display of one `service create` reads all its tasks five
times a second. Stored objects are frozen, so an object that is still the same is still right; an entry is replaced when it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from typing import Any

import msgspec

from skep.model.base import Object

_ENCODER = msgspec.json.Encoder()


class Encoded:
    """`kept`: id -> (object, key, its JSON). The key carries what else the rendering depends on."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[Object, Hashable, msgspec.Raw]] = {}

    def get(self, object: Object, render: Callable[[], Any]) -> msgspec.Raw:
        found = self.kept.get(object.id)
        if found is not None and found[0] is object:
            return found[2]
        return self.put(object, None, render())

    def put(self, object: Object, key: Hashable, rendered: Any) -> msgspec.Raw:
        raw = msgspec.Raw(_ENCODER.encode(rendered))
        self.kept[object.id] = (object, key, raw)
        return raw

    def prune(self, alive: Callable[[], Collection[str]], number: int, slack: int = 1000) -> None:
        """Forget objects that are gone, once there are enough of them to be worth the walk. `number` of objects live at most."""
        if len(self.kept) > number + slack:
            ids = alive()
            self.kept = {id: entry for id, entry in self.kept.items() if id in ids}

    def __len__(self) -> int:
        return len(self.kept)
