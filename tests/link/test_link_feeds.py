"""Whatever happens, a node that follows the differences knows what a fresh look at the store would tell it."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from link_world import StillClock, network, node, ready, service, status, task

from skep.link.channel import decode_from_manager, encode
from skep.link.messages import Assignments
from skep.manager import feeds as feeds_module
from skep.manager.feeds import Feed, Feeds
from skep.manager.session import Readers, Session
from skep.model.assignment import Item, PeerItem, TaskItem
from skep.model.cluster import Cluster
from skep.model.enums import TaskState
from skep.model.network import Network
from skep.model.node import Node
from skep.model.service import Service
from skep.model.spec import ClusterSpec
from skep.model.task import Attachment, ContainerStatus, Task
from skep.plan.assignment import items
from skep.plan.ops import Change, Create, Delete, Op
from skep.store.backends import MemoryBackend
from skep.store.memory import MemoryStore

NODES, TASKS, NETWORKS, SERVICES = ["n1", "n2", "n3"], [f"t{n}" for n in range(5)], ["in", "ov1", "ov2"], ["web", "db"]
STATES = [s for s in TaskState if s is not TaskState.REMOVE]


def told(found: dict[str, Item]) -> dict[str, Item]:
    """Without what is never told: the status of a task, and what its planner keeps in it."""
    return {
        key: msgspec.structs.replace(item, task=_bare(item.task)) if isinstance(item, TaskItem) else item for key, item in found.items()
    }


def _bare(task: Task) -> Task:
    return Task(
        id=task.id,
        service_id=task.service_id,
        node_id=task.node_id,
        desired_state=task.desired_state,
        attachments=task.attachments,
        spec=task.spec,
        slot=task.slot,
    )


@dataclasses.dataclass
class Reader:
    """A node as the agent's side sees it."""

    session: Session
    sequence: int = 0
    known: dict[str, Item] = dataclasses.field(default_factory=dict)

    def read(self, feeds: Feeds, readers: Readers) -> None:
        message = self.session.assignments(feeds, readers)
        if message is None:
            return
        message = decode_from_manager(encode(message))
        assert isinstance(message, Assignments)
        assert message.complete or message.applies_to == self.sequence
        self.sequence = message.results_in
        if message.complete:
            self.known = {}
        for key in message.remove:
            self.known.pop(key, None)
        assert not set(message.remove) & {item.key for item in message.set}
        self.known.update({item.key: item for item in message.set})


def change(store: MemoryStore, draw: Any) -> list[Op]:
    kind = draw(st.sampled_from(["node", "task", "task", "task", "service", "network", "cluster"]))
    if kind == "cluster":
        allowed = ClusterSpec(labels=draw(st.sampled_from([{}, {"skep.allow.privileged": "web"}, {"skep.allow.privileged": "*"}])))
        known_cluster = store.get(Cluster, "c")
        return [Change(Cluster, "c", {"spec": allowed}, "") if known_cluster is not None else Create(Cluster(id="c", spec=allowed), "")]
    if kind == "node":
        id = draw(st.sampled_from(NODES))
        here = store.get(Node, id)
        if here is None:
            return [Create(ready(id, draw(st.integers(0, 3))), "")]
        if draw(st.integers(0, 4)) == 0:
            return [Delete(Node, id, "")]
        addr = draw(st.sampled_from(["", "192.0.2.1", "192.0.2.2"]))
        return [Change(Node, id, {"status": msgspec.structs.replace(here.status, addr=addr)}, "")]
    if kind == "network":
        id = draw(st.sampled_from(NETWORKS))
        current = store.get(Network, id)
        if current is None:
            return [Create(network(id, "10.0.0.0/24", ingress=id == "in"), "")]
        if draw(st.booleans()):
            return [Delete(Network, id, "")]
        return [Change(Network, id, {"options": {"x": str(draw(st.integers(0, 2)))}}, "")]
    if kind == "service":
        id = draw(st.sampled_from(SERVICES))
        known = store.get(Service, id)
        if known is not None and draw(st.integers(0, 3)) == 0:
            return [Delete(Service, id, "")]
        there_too = {name: draw(st.sampled_from([(), ("alias",), (id, "a", "b")])) for name in draw(st.sets(st.sampled_from(NETWORKS)))}
        labels = draw(st.sampled_from([{}, {"v": "1"}, {"v": "2"}, {"skep.mesh.local": "true"}, {"skep.privileged": "true"}]))
        mode = draw(st.sampled_from(["vip", "dnsrr"]))
        new = service(id, *draw(st.sampled_from([(), (80,), (80, 81)])), labels=labels, networks=there_too, mode=mode)
        if known is None:
            return [Create(new, "")]
        fields = {"spec": new.spec, "endpoint": new.endpoint}
        return [Change(Service, id, {name: fields[name] for name in draw(st.sets(st.sampled_from(list(fields)), min_size=1))}, "")]
    id = draw(st.sampled_from(TASKS))
    there = store.get(Task, id)
    places = [(name, f"10.0.0.{3 + TASKS.index(id)}/24") for name in draw(st.sets(st.sampled_from(NETWORKS)))]
    if there is None:
        where = draw(st.sampled_from(["", *NODES]))
        return [Create(task(id, where, draw(st.sampled_from(STATES)), *places, service=draw(st.sampled_from(["", *SERVICES]))), "")]
    what = draw(st.integers(0, 5))
    if what == 0:
        return [Delete(Task, id, "")]
    if what == 1:
        return [Change(Task, id, {"desired_state": draw(st.sampled_from([TaskState.RUNNING, TaskState.SHUTDOWN]))}, "")]
    if what == 2:
        return [Change(Task, id, {"attachments": tuple(Attachment(network_id=n, addresses=(a,)) for n, a in places)}, "")]
    if what == 3 and not there.node_id:
        return [Change(Task, id, {"node_id": draw(st.sampled_from(NODES))}, "")]
    container = draw(st.sampled_from([None, ContainerStatus(container_id="ab" * 32)]))
    return [Change(Task, id, {"status": status(draw(st.sampled_from(STATES)), container=container)}, "")]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_differences_add_up_to_the_whole(data: st.DataObject) -> None:
    store = MemoryStore(MemoryBackend(), StillClock())
    watch = store.watch()
    feeds = Feeds(store)
    readers: Readers = {}
    nodes = {id: Reader(Session("s", id)) for id in NODES}
    for _ in range(data.draw(st.integers(1, 25))):
        store.apply(change(store, data.draw))
        store.flush()
        feeds.change(watch.take())
        reading = [id for id in NODES if id in feeds.changed_nodes or set(nodes[id].session._places) & feeds.changed_feeds]
        for id in reading:
            nodes[id].session.tasks |= feeds.changed_nodes.get(id, set())
        feeds.settle()
        for id in data.draw(st.sets(st.sampled_from(NODES))):
            nodes[id].read(feeds, readers)
    for id, reader in nodes.items():
        reader.read(feeds, readers)
        assert told(reader.known) == told(items(store, id))
    assert {name for name, there in readers.items() for reader in there.values()} == {
        name for reader in nodes.values() for name in reader.session._places
    }


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_feeds_loaded_from_the_store_equal_feeds_that_followed_it(data: st.DataObject) -> None:
    store = MemoryStore(MemoryBackend(), StillClock())
    watch = store.watch()
    followed = Feeds(store)
    for _ in range(data.draw(st.integers(1, 25))):
        store.apply(change(store, data.draw))
        store.flush()
        followed.change(watch.take())
    loaded = Feeds(store)
    assert loaded.version == followed.version
    for id in NODES:
        one, other = Session("s", id).assignments(loaded, {}), Session("s", id).assignments(followed, {})
        assert one is not None and other is not None
        assert {item.key: item for item in one.set} == {item.key: item for item in other.set}


def test_nodes_hear_what_the_cluster_allows_of_their_services() -> None:
    store = MemoryStore(MemoryBackend(), StillClock())
    watch = store.watch()
    placed = status(TaskState.RUNNING)
    made = [ready("n1", 1), service("web", labels={"skep.privileged": "true"}), service("db"), Cluster(id="c", spec=ClusterSpec())]
    tasks = [Task(id=f"t-{name}", service_id=name, node_id="n1", status=placed) for name in ("web", "db")]
    store.apply([Create(object, "") for object in (*made, *tasks)])
    store.flush()
    feeds = Feeds(store)
    watch.take()
    refused = feeds.task("t-web", "n1")
    assert isinstance(refused, TaskItem) and refused.refused.startswith("service web may not be privileged")
    for labels, sentence in (({"skep.allow.privileged": "web"}, ""), ({}, refused.refused)):
        store.apply([Change(Cluster, "c", {"spec": ClusterSpec(labels=labels)}, "")])
        store.flush()
        assert feeds.change(watch.take())
        assert feeds.changed_nodes == {"n1": {"t-web"}}
        feeds.settle()
        now = feeds.task("t-web", "n1")
        assert isinstance(now, TaskItem) and now.refused == sentence
        assert now == items(store, "n1")["task/t-web"]


def test_a_reader_that_is_too_far_behind_gets_everything() -> None:
    feed = Feed()
    place = feed.head
    for number in range(3 * feeds_module.LOG_LIMIT):
        feed.put("peer/n1", PeerItem(node_id="n1", index=1, address=str(number)))
    assert feed.since(place) is None
    late = feed.head
    feed.put("peer/n1", None)
    assert feed.since(late) == ([], ["peer/n1"])


def test_a_change_costs_what_changed_and_not_what_is_there() -> None:
    """A task's report touches its own node and its networks' readers: nothing is rendered for the others."""
    store = MemoryStore(MemoryBackend(), StillClock())
    store.apply([Create(node(f"n{n}", n, description=None), "") for n in range(1, 200)])
    store.apply([Create(task(f"t{n}", f"n{n % 199 + 1}", TaskState.RUNNING), "") for n in range(1000)])
    store.flush()
    watch = store.watch()
    feeds = Feeds(store)
    store.apply([Change(Task, "t7", {"desired_state": TaskState.SHUTDOWN}, "")])
    store.flush()
    assert feeds.change(watch.take())
    assert feeds.changed_nodes == {"n8": {"t7"}} and feeds.changed_feeds == set()
    feeds.settle()
    store.apply([Change(Task, "t7", {"status": status(TaskState.SHUTDOWN)}, "")])
    store.flush()
    assert not feeds.change(watch.take())
