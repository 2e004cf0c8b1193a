"""A small cluster for the link's tests: a store, a clock that stands still, objects with readable ids."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any

import msgspec

from skep.clock import MILLISECOND, SECOND
from skep.link.messages import Assignments, FromAgent, FromManager, Hello
from skep.manager.ca import new_root, new_tokens
from skep.manager.dispatcher import Dispatcher
from skep.manager.session import Session
from skep.model.assignment import Item, TaskItem
from skep.model.cluster import Cluster
from skep.model.enums import NodeState, Role, TaskState
from skep.model.network import Network
from skep.model.node import Node, NodeDescription, NodeStatus
from skep.model.service import Endpoint, Service, VirtualIP
from skep.model.spec import (
    ClusterSpec,
    EndpointSpec,
    IPAMConfig,
    NetworkAttachmentConfig,
    NetworkSpec,
    NodeSpec,
    PortConfig,
    ServiceSpec,
    TaskSpec,
)
from skep.model.task import Attachment, Task, TaskStatus
from skep.plan.ops import Change, Create, Delete
from skep.plan.ownership import refuse
from skep.store.backends import MemoryBackend
from skep.store.memory import MemoryStore

START = 1_700_000_000 * SECOND


class StillClock:
    def __init__(self) -> None:
        self.time = START

    def now(self) -> int:
        return self.time

    async def sleep(self, ns: int) -> None:
        self.time += ns
        await asyncio.sleep(0)


class World:
    """A store and a dispatcher on a clock that only `pass_time` moves."""

    def __init__(self) -> None:
        self.clock = StillClock()
        self.rng = random.Random(7)
        self.backend = MemoryBackend()
        self.store = MemoryStore(self.backend, self.clock, refuse)
        root = new_root(self.clock.now())
        self.put(Cluster(id="cluster", spec=ClusterSpec(name="default"), root_ca=root, tokens=new_tokens(root, self.rng)))
        self.start()

    def start(self) -> None:
        """A manager takes over."""
        self.watch = self.store.watch()
        self.dispatcher = Dispatcher(self.store, self.rng, self.clock.now())
        self.settle()

    def crash(self) -> None:
        """kill -9: what was not flushed is gone."""
        self.store = MemoryStore(self.backend, self.clock, refuse)
        self.start()

    def put(self, *objects: Any) -> None:
        self.store.apply([Create(thing, "for the test") for thing in objects])

    def change(self, kind: Any, id: str, **fields: Any) -> None:
        self.store.apply([Change(kind, id, fields, "for the test")])

    def delete(self, kind: Any, id: str) -> None:
        self.store.apply([Delete(kind, id, "for the test")])

    def settle(self) -> None:
        """Everything becomes durable and is heard."""
        self.store.flush()
        self.dispatcher.changed(self.watch.take(), self.clock.now())

    def pass_time(self, ns: int) -> None:
        """In steps as the dispatcher asks for them."""
        end = self.clock.time + ns
        while True:
            self.settle()
            due = self.dispatcher.tick(self.clock.now())
            self.settle()
            if due is None or due > end:
                break
            self.clock.time = max(due, self.clock.time)
        self.clock.time = end
        self.dispatcher.tick(end)
        self.settle()

    def connect(self, node_id: str, statuses: dict[str, TaskStatus] | None = None, **fields: Any) -> Session:
        hello = Hello(description=NodeDescription(hostname=node_id), statuses=statuses or {}, **fields)
        session = self.dispatcher.connect(node_id, hello, self.clock.now(), "192.0.2.1")
        self.settle()
        return session

    def say(self, session: Session, message: FromAgent) -> None:
        self.dispatcher.receive(session, message, self.clock.now())

    def hear(self, session: Session, wait: int = 60 * MILLISECOND) -> list[FromManager]:
        self.pass_time(wait)
        return self.dispatcher.pending_messages(session)

    def node(self, id: str) -> Node:
        node = self.store.get(Node, id)
        assert node is not None
        return node

    def task(self, id: str) -> Task:
        task = self.store.get(Task, id)
        assert task is not None
        return task


def node(id: str, index: int = 0, **fields: Any) -> Node:
    return Node(id=id, spec=NodeSpec(role="worker", availability="active"), index=index, **fields)


def ready(id: str, index: int = 1) -> Node:
    return node(id, index, description=NodeDescription(hostname=id), status=NodeStatus(state=NodeState.READY, addr=f"192.0.2.{index}"))


def task(
    id: str, node_id: str, state: TaskState = TaskState.ASSIGNED, *networks: tuple[str, str], service: str = "web", **fields: Any
) -> Task:
    return Task(
        id=id,
        service_id=service,
        service_name=service,
        slot=1,
        node_id=node_id,
        status=TaskStatus(state=state, message=state.word),
        attachments=tuple(Attachment(network_id=network, addresses=(address,)) for network, address in networks),
        **fields,
    )


def service(
    id: str = "web",
    *published: int,
    labels: dict[str, str] | None = None,
    auth: str = "",
    networks: Mapping[str, tuple[str, ...]] | None = None,
    mode: str = "vip",
) -> Service:
    """`networks`: id -> aliases; its address there is always the same."""
    ports = tuple(PortConfig(protocol="tcp", target_port=80, published_port=port, publish_mode="ingress") for port in published)
    targets = tuple(NetworkAttachmentConfig(target=target, aliases=aliases) for target, aliases in (networks or {}).items())
    vips = tuple(VirtualIP(network_id=target, address="10.0.0.2/24") for target in networks or {}) if mode == "vip" else ()
    spec = ServiceSpec(
        name=id, labels=labels or {}, task_template=TaskSpec(networks=targets or None), endpoint_spec=EndpointSpec(mode=mode)
    )
    return Service(id=id, spec=spec, endpoint=Endpoint(ports=ports, vips=vips), registry_auth=auth)


def network(id: str, subnet: str, *, ingress: bool = False) -> Network:
    return Network(id=id, spec=NetworkSpec(name=id, ingress=ingress), ipam=(IPAMConfig(subnet=subnet),), vni=4096)


def status(state: TaskState, message: str = "", **fields: Any) -> TaskStatus:
    return TaskStatus(timestamp=START + 1, state=state, message=message or state.word, **fields)


def worker_status(state: TaskState) -> TaskStatus:
    return msgspec.structs.replace(status(state), applied_at=0)


MANAGER = Role.MANAGER


def of(messages: list[FromManager], kind: type) -> list:
    return [message for message in messages if isinstance(message, kind)]


def one(messages: list[FromManager], kind: type):
    found = of(messages, kind)
    assert len(found) == 1, messages
    return found[0]


def item(
    id: str, desired: TaskState = TaskState.RUNNING, state: TaskState = TaskState.ASSIGNED, *networks: tuple[str, str], auth: str = ""
) -> TaskItem:
    return TaskItem(task=task(id, "n1", state, *networks, desired_state=desired), registry_auth=auth)


def complete(*items: Item, version: int = 1) -> Assignments:
    return Assignments(complete=True, results_in=1, version=version, set=items)
