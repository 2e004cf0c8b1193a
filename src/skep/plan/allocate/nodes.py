"""Node indexes: a small number per node, unique while the node is there, from which link addresses and port ranges follow."""

from __future__ import annotations

from collections.abc import Container

LAST_INDEX = 65534
"""Of 16 bits; 0 means none, and the last one is kept free, for addresses that end in all ones are broadcasts."""


def next_index(cursor: int, used: Container[int]) -> int | None:
    """In turn, so that a removed node's number is not soon another's."""
    index = cursor
    for _ in range(LAST_INDEX):
        index = index + 1 if index < LAST_INDEX else 1
        if index not in used:
            return index
    return None
