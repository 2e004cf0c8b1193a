"""Which node gets the next task of a group: a tree of the spread preferences with the nodes at its leaves.

At every level the branch with the fewest tasks of the service is taken, so that counts are evened out level by level (SwarmKit
nodeset.go, decision_tree.go); a full branch drops out. Among the nodes of a leaf the ranking decides: nodes on which this spec failed
often come last, then fewer tasks of this service, then fewer tasks in all, then chance. Heaps make each choice cost the logarithm of what
it chooses from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from heapq import heapify, heappop, heapreplace
from typing import Protocol

from skep.ids import Random
from skep.model.node import Node
from skep.model.spec import PlacementPreference
from skep.plan.schedule.constraint import ENGINE_LABEL, NODE_LABEL, subject
from skep.plan.schedule.place import Place


class Branch(Protocol):
    def take(self) -> Place | None:
        """The node for one more task; None when nothing below has room left."""
        ...


class Leaf:
    """Nodes, best first: (penalty, tasks of the service, tasks, chance, ordinal, room, place)."""

    def __init__(self, heap: list[tuple[int, int, int, float, int, int, Place]], rng: Random) -> None:
        heapify(heap)
        self._heap = heap
        self._chance = rng.random

    def take(self) -> Place | None:
        if not self._heap:
            return None
        penalty, count, tasks, _, ordinal, room, place = self._heap[0]
        if room > 1:
            heapreplace(self._heap, (penalty, count + 1, tasks + 1, self._chance(), ordinal, room - 1, place))
        else:
            heappop(self._heap)
        return place


class Fork:
    """Branches, the one with the fewest tasks of the service first: (tasks, chance, ordinal, branch)."""

    def __init__(self, heap: list[tuple[int, float, int, Branch]], rng: Random) -> None:
        heapify(heap)
        self._heap = heap
        self._chance = rng.random

    def take(self) -> Place | None:
        heap = self._heap
        while heap:
            tasks, _, ordinal, branch = heap[0]
            place = branch.take()
            if place is not None:
                heapreplace(heap, (tasks + 1, self._chance(), ordinal, branch))
                return place
            heappop(heap)
        return None


def descriptors(preferences: Iterable[PlacementPreference] | None) -> tuple[str, ...]:
    """The labels to spread over. Anything but `node.labels.x` and `engine.labels.x` is passed over, as in SwarmKit."""
    found = []
    for preference in preferences or ():
        text = preference.spread.spread_descriptor if preference.spread else ""
        if any(text.lower().startswith(prefix) and len(text) > len(prefix) for prefix in (NODE_LABEL, ENGINE_LABEL)):
            found.append(text)
    return tuple(found)


def value_of(descriptor: str, node: Node) -> str:
    """A node without the label belongs to the branch of the empty value."""
    return subject(descriptor, node) or ""


def grow(levels: Sequence[str], places: Iterable[tuple[Place, int]], service_id: str, penalties: Mapping[str, int], rng: Random) -> Branch:
    """The tree over (node, room). Nodes without room count for the balance of their branch, but are not offered."""
    if not levels:
        chance = rng.random
        return Leaf(
            [
                (penalties.get(place.node.id, 0) if penalties else 0, place.count(service_id), place.tasks, chance(), ordinal, room, place)
                for ordinal, (place, room) in enumerate(places)
                if room > 0
            ],
            rng,
        )
    parts: dict[str, list[tuple[Place, int]]] = {}
    for place, room in places:
        parts.setdefault(value_of(levels[0], place.node), []).append((place, room))
    heap = []
    for ordinal, part in enumerate(parts.values()):
        tasks = sum(place.count(service_id) for place, _ in part)
        heap.append((tasks, rng.random(), ordinal, grow(levels[1:], part, service_id, penalties, rng)))
    return Fork(heap, rng)
