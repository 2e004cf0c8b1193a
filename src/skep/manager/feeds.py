"""What each node is to be told, kept up to date change by change: the cost of a change grows with what changed and whom it concerns.

One feed for what all nodes know (peers, published services), one per network, and each node's own tasks. A feed is a table of items and a
log of the keys that changed; a reader has a place in the log, so a change is rendered once however many nodes read it. All of it is built
from durable events alone: a node never hears of what a crash could undo. `skep.plan.assignment` says what the items are; docs/link.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from skep.model.assignment import DiscoveryItem, EndpointItem, Item
from skep.model.base import Object
from skep.model.cluster import Cluster
from skep.model.enums import TaskState
from skep.model.labels import service_labels
from skep.model.network import Network
from skep.model.node import Node
from skep.model.service import Service
from skep.model.task import Task
from skep.plan import assignment
from skep.plan.view import View
from skep.store.base import Event

LOG_LIMIT = 4096
"""Changes kept beyond twice a feed's size; a reader further behind starts anew."""

CLUSTER = ""
"""The feed that every node reads."""


class Feed:
    """A table of items with a log of changed keys."""

    def __init__(self) -> None:
        self.items: dict[str, Item] = {}
        self._log: list[str] = []
        self._base = 0
        self._cached: tuple[int, int, list[Item], list[str]] | None = None

    @property
    def head(self) -> int:
        return self._base + len(self._log)

    def put(self, key: str, item: Item | None) -> bool:
        """Returns whether anything changed."""
        old = self.items.get(key)
        if old == item:
            return False
        if item is None:
            del self.items[key]
        else:
            self.items[key] = item
        self._log.append(key)
        if len(self._log) > LOG_LIMIT + 2 * len(self.items):
            drop = len(self._log) // 2
            del self._log[:drop]
            self._base += drop
        return True

    def since(self, place: int) -> tuple[list[Item], list[str]] | None:
        """(items set, keys removed) after this place; None: too far behind, take `items` as a whole."""
        if place < self._base:
            return None
        if self._cached is None or self._cached[:2] != (place, self.head):
            keys = dict.fromkeys(self._log[place - self._base :])
            changed = [self.items[key] for key in keys if key in self.items]
            self._cached = (place, self.head, changed, [key for key in keys if key not in self.items])
        return self._cached[2], self._cached[3]


class Feeds:
    """All feeds, and who must be told: `changed_feeds` (names) and `changed_nodes` (their tasks or networks), until `settle`."""

    def __init__(self, view: View) -> None:
        self.version = view.version
        self.feeds: dict[str, Feed] = {CLUSTER: Feed()}
        self.nodes: dict[str, Node] = {}
        self.services: dict[str, Service] = {}
        self._networks: dict[str, Network] = {}
        self._tasks: dict[str, Task] = {}
        self._by_node: dict[str, dict[str, Task]] = {}
        self._by_service: dict[str, set[str]] = {}
        self._uses: dict[str, Counter[str]] = {}
        self._users: dict[str, set[str]] = {}
        self._ingress: set[str] = set()
        self.departing: dict[str, tuple[str, tuple[str, ...]]] = {}
        """Tasks with addresses that were told to stop -> (their node, the networks on which others may know them); the owner empties it."""
        self.ended: set[str] = set()
        """Tasks that were told to stop, and have; the owner empties it."""
        self._marks = 0
        self.changed_feeds: set[str] = set()
        self.changed_nodes: dict[str, set[str]] = {}
        """Node -> ids of its tasks that it must be told of (none: only its networks changed)."""
        self._cluster_version = 0
        self._allowed: tuple[str, ...] = ()
        """Services that the cluster lets be privileged."""
        for kind in (Cluster, Node, Service, Network, Task):
            for thing in view.all(kind):
                self._change(kind, thing.id, thing)
        self.settle()

    def change(self, events: Iterable[Event]) -> bool:
        """Returns whether anybody must be told of anything new."""
        before = self._marks
        for event in events:
            self.version = max(self.version, event.version)
            self._change(event.kind, event.id, event.new)
        return self._marks != before

    def settle(self) -> None:
        """Everybody who reads has been woken."""
        self.changed_feeds = set()
        self.changed_nodes = {}

    def task(self, id: str, node_id: str) -> Item | None:
        """The item of a task as this node has to know it; None: it has to forget it."""
        task = self._tasks.get(id)
        if task is None or task.node_id != node_id or not assignment.assigned(task):
            return None
        return assignment.task_item(task, self.services.get(task.service_id), self._allowed)

    def tasks(self, node_id: str) -> Iterator[Item]:
        for task in self._by_node.get(node_id, {}).values():
            yield assignment.task_item(task, self.services.get(task.service_id), self._allowed)

    def names(self, node_id: str) -> set[str]:
        """The feeds this node reads."""
        return {CLUSTER, *self._ingress, *(self._uses.get(node_id) or ())}

    def users(self, network_id: str) -> set[str]:
        """The nodes that read this network's feed."""
        return set(self.nodes) if network_id in self._ingress else self._users.get(network_id, set())

    def managers(self) -> tuple[str, ...]:
        return tuple(sorted(node.manager_addr for node in self.nodes.values() if node.manager_addr))

    def _change(self, kind: type[Object], id: str, new: Object | None) -> None:
        if kind is Task:
            old = self._tasks.get(id)
            if new is None or old is None or new.version >= old.version:
                self._task(old, new if isinstance(new, Task) else None)
        elif kind is Node:
            self._node(id, new if isinstance(new, Node) else None)
        elif kind is Service:
            self._service(id, new if isinstance(new, Service) else None)
        elif kind is Network:
            self._network(id, new if isinstance(new, Network) else None)
        elif kind is Cluster:
            self._cluster(new if isinstance(new, Cluster) else None)

    def _put(self, feed: str, key: str, item: Item | None) -> None:
        if self.feeds.setdefault(feed, Feed()).put(key, item):
            self.changed_feeds.add(feed)
            self._marks += 1

    def _mark(self, node_id: str, *task_ids: str) -> None:
        self.changed_nodes.setdefault(node_id, set()).update(task_ids)
        self._marks += 1

    def _node(self, id: str, new: Node | None) -> None:
        old = self.nodes.get(id)
        if new is None:
            self.nodes.pop(id, None)
        elif old is None or new.version >= old.version:
            self.nodes[id] = new
        else:
            return
        self._put(CLUSTER, f"peer/{id}", assignment.peer_item(new) if new else None)

    def _service(self, id: str, new: Service | None) -> None:
        old = self.services.get(id)
        if new is None:
            self.services.pop(id, None)
        elif old is None or new.version >= old.version:
            self.services[id] = new
        else:
            return
        self._put(CLUSTER, f"service/{id}", assignment.service_item(new) if new else None)
        if old is None or new is None or _discovered(old) != _discovered(new):
            self._replace(assignment.discovery_items(old) if old else (), assignment.discovery_items(new) if new else ())
        if assignment.service_told_anew(old, new):
            self._tell_tasks(id)

    def _cluster(self, new: Cluster | None) -> None:
        """Who asks for what the cluster may refuse is told of what it says now."""
        if new is not None and new.version < self._cluster_version:
            return
        self._cluster_version = new.version if new is not None else 0
        before, self._allowed = self._allowed, assignment.allowed_in(new)
        if before == self._allowed:
            return
        for service in self.services.values():
            if service_labels(service.spec.labels).needs_allowance:
                self._tell_tasks(service.id)

    def _tell_tasks(self, service_id: str) -> None:
        for task_id in self._by_service.get(service_id, ()):
            task = self._tasks[task_id]
            if assignment.assigned(task):
                self._mark(task.node_id, task_id)

    def _network(self, id: str, new: Network | None) -> None:
        old = self._networks.get(id)
        if new is None:
            self._networks.pop(id, None)
        elif old is None or new.version >= old.version:
            self._networks[id] = new
        else:
            return
        was, now = id in self._ingress, new is not None and new.spec.ingress
        if now and not was:
            self._ingress.add(id)
        elif was and not now:
            self._ingress.discard(id)
        if now != was:
            for node_id in self.nodes:
                self._mark(node_id)
        self._put(id, f"network/{id}", assignment.network_item(new) if new else None)
        self._drop_empty(id)

    def _task(self, old: Task | None, new: Task | None) -> None:
        task = new or old
        if task is None:
            return
        if assignment.told_anew(old, new):
            for side in (old, new):
                if side is not None and assignment.assigned(side):
                    self._mark(side.node_id, task.id)
        self._index(old, new)
        left, leaves = old is not None and assignment.leaving(old), new is not None and assignment.leaving(new)
        if new is not None and leaves and not left:
            # what is not known of (a manager's start) may have been told
            known = assignment.serving(old) if old is not None else new.status.state is TaskState.RUNNING
            self.departing[task.id] = (new.node_id, assignment.networks_of(new) if known else ())
        elif left and not leaves:
            self.departing.pop(task.id, None)
            self.ended.add(task.id)
        self._replace(assignment.endpoint_items(old) if old else (), assignment.endpoint_items(new) if new else ())

    def _replace(self, old: Iterable[EndpointItem | DiscoveryItem], new: Iterable[EndpointItem | DiscoveryItem]) -> None:
        """What an object was to its networks, and what it is now."""
        before = {item.key: item for item in old}
        for item in new:
            before.pop(item.key, None)
            self._put(item.network_id, item.key, item)
        for key, item in before.items():
            self._put(item.network_id, key, None)
            self._drop_empty(item.network_id)

    def _drop_empty(self, name: str) -> None:
        """The feed of a network that is gone, when nothing is there any more."""
        if name != CLUSTER and name not in self._networks and name in self.feeds and not self.feeds[name].items:
            del self.feeds[name]

    def _index(self, old: Task | None, new: Task | None) -> None:
        if old is not None:
            if assignment.assigned(old):
                self._by_node[old.node_id].pop(old.id, None)
            self._tasks.pop(old.id, None)
            if new is None and old.service_id:
                self._by_service[old.service_id].discard(old.id)
                if not self._by_service[old.service_id]:
                    del self._by_service[old.service_id]
        if new is not None:
            self._tasks[new.id] = new
            if assignment.assigned(new):
                self._by_node.setdefault(new.node_id, {})[new.id] = new
            if old is None and new.service_id:
                self._by_service.setdefault(new.service_id, set()).add(new.id)
        left, joined = assignment.networks_of(old), assignment.networks_of(new)
        if left == joined and (old and old.node_id) == (new and new.node_id):
            return
        if old is not None:
            self._use(old.node_id, left, -1)
        if new is not None:
            self._use(new.node_id, joined, 1)

    def _use(self, node_id: str, networks: Iterable[str], by: int) -> None:
        """A node reads a network's feed while a task of its has a place there."""
        uses = self._uses.setdefault(node_id, Counter())
        for network in networks:
            uses[network] += by
            if uses[network] <= 0:
                del uses[network]
            if uses[network] == (0 if by < 0 else 1):
                self._mark(node_id)
                self._reads(node_id, network, by > 0)
        if not uses:
            del self._uses[node_id]

    def _reads(self, node_id: str, network: str, begins: bool) -> None:
        users = self._users.setdefault(network, set())
        if begins:
            users.add(node_id)
        else:
            users.discard(node_id)
        if not users:
            del self._users[network]


def _discovered(service: Service) -> tuple[object, ...]:
    """All that its discovery items are made of."""
    spec = service.spec
    return spec.name, spec.task_template.networks, spec.networks, spec.endpoint_spec, service.endpoint
