"""Leaving before dying: which tasks are to stop, and which nodes may still send to them. A synchronous core; the dispatcher drives it.

A task that served is stopped when every ready node that reads one of its networks has said that its network stands without it. Nodes are
asked only then (`Assignments.acknowledge`), so a change that stops nothing is answered by nobody. Tasks that leave the same networks with
the same change share one wave. Nothing here is stored: a new manager begins a wave for every task that leaves, and a node waits for two
seconds at most, ten in a new session. See docs/link.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import msgspec

from skep.manager.feeds import Feeds
from skep.model.enums import NodeState


class _Wave(msgspec.Struct, eq=False):
    version: int
    """The first that shows that they leave."""
    waiting: set[str]
    """Nodes that have not said so yet."""
    tasks: set[str]


class Departures:
    def __init__(self, feeds: Feeds) -> None:
        self._feeds = feeds
        self._waves: dict[_Wave, None] = {}
        """Not over yet, in order of their versions."""
        self._of_node: dict[str, deque[_Wave]] = {}
        """Those that wait for it, in order of their versions: an answer costs what it ends."""
        self._over: list[_Wave] = []
        self._leaving: dict[str, tuple[str, tuple[str, ...]]] = {}
        """Task -> (its node, the networks on which it was known)."""
        self._left: dict[str, set[str]] = {}
        """Node -> its tasks to which nobody sends any more, until they have stopped."""

    def begin(self) -> set[str]:
        """Take over from the feeds what changed; returns the nodes that are to be asked. `take_left` may have something then."""
        feeds = self._feeds
        for id in feeds.ended:
            self._forget(id)
        feeds.ended.clear()
        self._leaving.update(feeds.departing)
        begun = self._begin(feeds.departing)
        feeds.departing.clear()
        return begun

    def _begin(self, tasks: Iterable[str]) -> set[str]:
        waves: dict[tuple[str, ...], _Wave] = {}
        for id in tasks:
            _, networks = self._leaving[id]
            if networks not in waves:
                nodes = {node for network in networks for node in self._feeds.users(network) if self._counts(node)}
                waves[networks] = _Wave(self._feeds.version, nodes, set())
            waves[networks].tasks.add(id)
        for wave in waves.values():
            self._waves[wave] = None
            for node_id in wave.waiting:
                self._of_node.setdefault(node_id, deque()).append(wave)
            if not wave.waiting:
                self._end(wave)
        return {node for wave in waves.values() for node in wave.waiting}

    def joins(self, node_id: str) -> set[str]:
        """A node that was away may still send to whom it knew then: it is waited for too. Its own tasks wait for everybody anew, for others
        may have come back while nobody could tell it. Returns the nodes that are to be asked."""
        if self._waves:
            self._of_node[node_id] = deque(self._waves)
            for wave in self._waves:
                wave.waiting.add(node_id)
        asked = {node_id} if self._waves else set()
        return asked | self._begin(sorted(self._left.pop(node_id, ())))

    def applied(self, node_id: str, version: int) -> None:
        waves = self._of_node.get(node_id)
        while waves and waves[0].version <= version:
            self._answered(waves.popleft(), node_id)
        if waves is not None and not waves:
            del self._of_node[node_id]

    def gone(self, node_id: str) -> None:
        """It is down, or no longer part of the cluster."""
        for wave in self._of_node.pop(node_id, ()):
            self._answered(wave, node_id)

    def take_left(self) -> dict[str, set[str]]:
        """Node -> its tasks that may be stopped from now on, each once."""
        found: dict[str, set[str]] = {}
        over, self._over = self._over, []
        for wave in over:
            for id in sorted(wave.tasks & self._leaving.keys()):
                found.setdefault(self._leaving[id][0], set()).add(id)
        for node_id, tasks in found.items():
            self._left.setdefault(node_id, set()).update(tasks)
        return found

    def _answered(self, wave: _Wave, node_id: str) -> None:
        wave.waiting.discard(node_id)
        if not wave.waiting:
            self._end(wave)

    def _end(self, wave: _Wave) -> None:
        if wave in self._waves:
            del self._waves[wave]
            self._over.append(wave)

    def _counts(self, node_id: str) -> bool:
        """It may be sending: a node that is down is not waited for, nor one that never had a session."""
        node = self._feeds.nodes.get(node_id)
        return node is not None and node.description is not None and node.status.state is not NodeState.DOWN

    def _forget(self, id: str) -> None:
        node_id, _ = self._leaving.pop(id, ("", ()))
        tasks = self._left.get(node_id)
        if tasks is not None:
            tasks.discard(id)
            if not tasks:
                del self._left[node_id]
