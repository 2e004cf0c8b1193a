"""One node's session as the dispatcher keeps it: what waits to be sent, and where in the feeds the node stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from skep.link.messages import PROTOCOL, Assignments, FromManager, Left
from skep.manager.feeds import Feed, Feeds
from skep.model.assignment import DiscoveryItem, Item

DISCOVERY = 2
"""The version of the link from which nodes understand `DiscoveryItem`, `Left` and the question whether something is applied."""


class Session:
    """`id`, `node_id` and `closed` are for everybody, the rest is the dispatcher's."""

    def __init__(self, id: str, node_id: str, protocol: int = PROTOCOL) -> None:
        self.id = id
        self.node_id = node_id
        self.protocol = protocol
        """That the node speaks."""
        self.closed = False
        self.outbox: list[FromManager] = []
        self.welcomed = False
        self.due = False
        """There may be assignments to send."""
        self.tasks: set[str] = set()
        """Its tasks that changed since they were last sent."""
        self.ask = False
        """The node is to say when its network has what is sent next."""
        self.left: set[str] = set()
        """Its tasks to which nobody sends any more, to be told."""
        self.reports = 0
        """The last report taken."""
        self.described_at = 0
        self._complete = True
        self.sequence = 0
        """Of the last assignments handed out."""
        self._places: dict[str, tuple[Feed, int]] = {}

    def take(self, feeds: Feeds, readers: Readers) -> list[FromManager]:
        """All that is to be sent now, in order: the node hears that nobody sends to a task when it has heard that the task is to stop."""
        messages, self.outbox = self.outbox, []
        if self.due and self.welcomed and not self.closed:
            self.due = False
            if (assignments := self.assignments(feeds, readers)) is not None:
                messages.append(assignments)
            if self.left and self.protocol >= DISCOVERY:
                messages.append(Left(tasks=tuple(sorted(self.left))))
            self.left = set()
        return messages

    def assignments(self, feeds: Feeds, readers: Readers) -> Assignments | None:
        """The whole set at first, then what changed since the last call; None: nothing did."""
        message = self._assignments(feeds, readers)
        self.ask = False
        if message is not None and self.protocol < DISCOVERY:
            known = tuple(item for item in message.set if not isinstance(item, DiscoveryItem))
            message = msgspec.structs.replace(message, set=known)
        return message

    def _assignments(self, feeds: Feeds, readers: Readers) -> Assignments | None:
        changes = None if self._complete else self._difference(feeds, readers)
        tasks, self.tasks = self.tasks, set()
        if changes is None:
            self._complete = False
            self.sequence += 1
            everything = tuple(self._everything(feeds, readers))
            return Assignments(complete=True, results_in=self.sequence, version=feeds.version, set=everything, acknowledge=self.ask)
        found, removed = changes
        for id in sorted(tasks):
            item = feeds.task(id, self.node_id)
            if item is not None:
                found.append(item)
            else:
                removed.append(f"task/{id}")
        if not (found or removed or self.ask):
            return None
        self.sequence += 1
        return Assignments(
            applies_to=self.sequence - 1,
            results_in=self.sequence,
            version=feeds.version,
            set=tuple(found),
            remove=tuple(removed),
            acknowledge=self.ask,
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


def fall_due(feeds: Feeds, readers: Readers, sessions: Mapping[str, Session]) -> Iterator[Session]:
    """The sessions that what changed in the feeds concerns; each is marked with what it is to be told."""
    for name in sorted(feeds.changed_feeds):
        for session in readers.get(name, {}).values():
            session.due = True
            yield session
    for node_id, tasks in feeds.changed_nodes.items():
        found = sessions.get(node_id)
        if found is not None:
            found.tasks |= tasks
            found.due = True
            yield found
