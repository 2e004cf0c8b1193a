"""Two small clocks of the dispatcher: when a batch is due, and whose heartbeat is overdue. Synchronous; the time is an argument."""

from __future__ import annotations

import heapq

from skep.clock import MILLISECOND

BATCH_WAIT = 10 * MILLISECOND
"""After a change, in case more follow."""
BATCH_LIMIT = 50 * MILLISECOND
"""At most, while changes keep coming."""


class Batch:
    """When a batch is due: a little after the last change, and not long after the first. What comes after a quiet time does not wait at
    all: one task more is on its way at once, and a storm is still a few batches."""

    def __init__(self) -> None:
        self._first = 0
        self._taken: int | None = None
        self._due: int | None = None

    def touch(self, now: int) -> None:
        if self._due is None:
            self._first = now
            if self._taken is None or now - self._taken >= BATCH_LIMIT:
                self._due = now
                return
        self._due = min(now + BATCH_WAIT, self._first + BATCH_LIMIT)

    def due(self) -> int | None:
        return self._due

    def shift(self, by: int) -> None:
        """The clock was set."""
        self._first += by
        self._taken = None if self._taken is None else self._taken + by
        self._due = None if self._due is None else self._due + by

    def take(self, now: int) -> bool:
        """Whether it is due; it is then begun anew."""
        if self._due is None or now < self._due:
            return False
        self._due = None
        self._taken = now
        return True


class Deadlines:
    """By when each node has to be heard of. One heap entry per node, looked at again when it comes up: a heartbeat costs a dict entry."""

    def __init__(self) -> None:
        self._deadlines: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []
        self._queued: set[str] = set()

    def expect(self, node_id: str, deadline: int) -> None:
        self._deadlines[node_id] = deadline
        if node_id not in self._queued:
            self._queued.add(node_id)
            heapq.heappush(self._heap, (deadline, node_id))

    def forget(self, node_id: str) -> None:
        self._deadlines.pop(node_id, None)

    def shift(self, by: int) -> None:
        """The clock was set: everybody has as long as before."""
        self._deadlines = {node_id: deadline + by for node_id, deadline in self._deadlines.items()}
        self._heap = [(at + by, node_id) for at, node_id in self._heap]

    def next_time(self) -> int | None:
        """Never later than the first deadline; it may be earlier, which costs one look."""
        return self._heap[0][0] if self._heap else None

    def overdue(self, now: int) -> list[str]:
        """The nodes whose deadline has passed; they are forgotten. A deadline may be moved later, never earlier."""
        found = []
        while self._heap and self._heap[0][0] <= now:
            _, node_id = heapq.heappop(self._heap)
            self._queued.discard(node_id)
            deadline = self._deadlines.get(node_id)
            if deadline is None:
                continue
            if deadline > now:
                self.expect(node_id, deadline)
            else:
                del self._deadlines[node_id]
                found.append(node_id)
        return found
