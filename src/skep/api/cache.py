"""Encoded forms of objects, kept per version: the progress display of one `service create` reads all its tasks five times a second.

An entry is replaced when its object's version (or that of what it embeds) moves on, and dropped when the object is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from typing import Any

import msgspec

_ENCODER = msgspec.json.Encoder()


class Encoded:
    """`get` renders an object once per key; keys carry everything the rendering depends on."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Hashable, msgspec.Raw]] = {}

    def get(self, id: str, key: Hashable, render: Callable[[], Any]) -> msgspec.Raw:
        found = self._kept.get(id)
        if found is not None and found[0] == key:
            return found[1]
        raw = msgspec.Raw(_ENCODER.encode(render()))
        self._kept[id] = (key, raw)
        return raw

    def prune(self, alive: Collection[str], slack: int = 1000) -> None:
        """Forget objects that are not among `alive` ids, once there are enough of them to be worth the walk."""
        if len(self._kept) > len(alive) + slack:
            self._kept = {id: entry for id, entry in self._kept.items() if id in alive}

    def __len__(self) -> int:
        return len(self._kept)
