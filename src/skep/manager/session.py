"""One node's session as the dispatcher keeps it: what waits to be sent, and where in the feeds the node stands."""

from __future__ import annotations

from skep.link.messages import Assignments, FromManager
from skep.manager.feeds import Feed, Feeds
from skep.model.assignment import Item


class Session:
    """`id`, `node_id` and `closed` are for everybody, the rest is the dispatcher's."""

    def __init__(self, id: str, node_id: str) -> None:
        self.id = id
        self.node_id = node_id
        self.closed = False
        self.outbox: list[FromManager] = []
        self.welcomed = False
        self.due = False
        """There may be assignments to send."""
        self.tasks: set[str] = set()
        """Its tasks that changed since they were last sent."""
        self.reports = 0
        """The last report taken."""
        self.described_at = 0
        self._complete = True
        self.sequence = 0
        """Of the last assignments handed out."""
        self._places: dict[str, tuple[Feed, int]] = {}

    def assignments(self, feeds: Feeds, readers: Readers) -> Assignments | None:
        """The whole set at first, then what changed since the last call; None: nothing did."""
        changes = None if self._complete else self._difference(feeds, readers)
        tasks, self.tasks = self.tasks, set()
        if changes is None:
            self._complete = False
            self.sequence += 1
            return Assignments(complete=True, results_in=self.sequence, version=feeds.version, set=tuple(self._everything(feeds, readers)))
        found, removed = changes
        for id in sorted(tasks):
            item = feeds.task(id, self.node_id)
            if item is not None:
                found.append(item)
            else:
                removed.append(f"task/{id}")
        if not found and not removed:
            return None
        self.sequence += 1
        return Assignments(
            applies_to=self.sequence - 1,
            results_in=self.sequence,
            version=feeds.version,
            set=tuple(found),
            remove=tuple(removed),
        )

    def stop_reading(self, readers: Readers) -> None:
        for name in self._places:
            self._unregister(name, readers)
        self._places.clear()

    def _everything(self, feeds: Feeds, readers: Readers) -> list[Item]:
        found: list[Item] = []
        self._move(feeds, readers, feeds.names(self.node_id))
        for name, (feed, _) in self._places.items():
            found += feed.items.values()
            self._places[name] = (feed, feed.head)
        found += feeds.tasks(self.node_id)
        return found

    def _difference(self, feeds: Feeds, readers: Readers) -> tuple[list[Item], list[str]] | None:
        """(items set, keys removed) of the feeds; None: too far behind, everything is to be sent."""
        names = feeds.names(self.node_id)
        found: list[Item] = []
        removed: list[str] = []
        left: set[str] = set()
        for name, (feed, place) in self._places.items():
            changes = feed.since(place)
            if changes is None:
                return None
            removed += changes[1]
            if name in names and feeds.feeds.get(name) is feed:
                found += changes[0]
                self._places[name] = (feed, feed.head)
            else:
                removed += feed.items
                left.add(name)
        for name in left:
            self._leave(name, readers)
        for feed in self._move(feeds, readers, names):
            found += feed.items.values()
        there = {item.key for item in found} if removed else set()
        return found, [key for key in removed if key not in there]

    def _move(self, feeds: Feeds, readers: Readers, names: set[str]) -> list[Feed]:
        """Read exactly these feeds; returns those that are new to the session, which then stand at their end."""
        for name in self._places.keys() - names:
            self._leave(name, readers)
        new = []
        for name in sorted(names - self._places.keys()):
            feed = feeds.feeds.setdefault(name, Feed())
            self._places[name] = (feed, feed.head)
            readers.setdefault(name, {})[self.node_id] = self
            new.append(feed)
        return new

    def _leave(self, name: str, readers: Readers) -> None:
        del self._places[name]
        self._unregister(name, readers)

    def _unregister(self, name: str, readers: Readers) -> None:
        reading = readers.get(name, {})
        if reading.get(self.node_id) is self:
            del reading[self.node_id]
        if not reading:
            readers.pop(name, None)


Readers = dict[str, dict[str, Session]]
"""Feed -> node id -> the session that reads it."""
