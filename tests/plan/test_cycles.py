"""Ten thousand tasks come and go over the whole control plane, on networks so small that any address that leaked would soon be missed.

All controllers, the control API and the store are the real ones; nodes do at once what they are told, and fail at random.
"""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest

from skep.clock import SECOND
from skep.errors import SkepError
from skep.manager.control import Control, bootstrap_cluster
from skep.manager.controllers import controllers
from skep.manager.loop import Loop
from skep.model.cluster import RootCA
from skep.model.enums import NodeState, TaskState
from skep.model.network import Network
from skep.model.node import Node, NodeDescription, NodeStatus
from skep.model.service import Service
from skep.model.spec import IPAMConfig, IPAMOptions, NetworkAttachmentConfig, NetworkSpec, NodeSpec, ServiceSpec
from skep.model.task import Task, TaskStatus
from skep.plan.allocate import Allocation, plan_allocate
from skep.plan.allocate.addresses import number
from skep.plan.ops import Change, Create
from skep.plan.ownership import refuse
from skep.store.memory import MemoryStore, NullBackend

ENDS = (TaskState.FAILED, TaskState.COMPLETE, TaskState.REJECTED)
SPEC = b'{"Name":"%s","TaskTemplate":{"ContainerSpec":{"Image":"a:1"},"RestartPolicy":{"Delay":0}},"Mode":{"Replicated":{"Replicas":%d}}}'


class Clock:
    def __init__(self) -> None:
        self.time = 1_000 * SECOND

    def now(self) -> int:
        return self.time

    async def sleep(self, ns: int) -> None:
        raise NotImplementedError


class Cluster:
    """Two workers; `killed` counts tasks that ended."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.clock = Clock()
        self.store = MemoryStore(NullBackend(), self.clock, refuse)
        self.store.apply(
            bootstrap_cluster(
                self.store,
                cluster_id="c",
                node_id="m",
                root_ca=RootCA(digest="d" * 50),
                rng=self.rng,
                address="192.0.2.1",
                availability="drain",
            ),
            by="control",
        )
        for id in ("w1", "w2"):
            status = NodeStatus(addr=f"192.0.2.{id[1:]}0", state=NodeState.READY)
            spec = NodeSpec(role="worker", availability="active")
            self.store.apply([Create(Node(id=id, spec=spec, status=status, description=NodeDescription(hostname=id)), "it joined")])
        self.control = Control(self.store, self.clock, self.rng, "m")
        self.loop = Loop(self.store, self.clock, self.rng, controllers())
        self.killed = 0

    def network(self, name: str, subnet: str) -> Network:
        spec = NetworkSpec(name=name, ipam_options=IPAMOptions(configs=(IPAMConfig(subnet=subnet),)))
        return asyncio.run(self.control.create_network(spec))

    def service(self, name: str, replicas: int, *networks: str) -> None:
        spec = msgspec.json.decode(SPEC % (name.encode(), replicas), type=ServiceSpec)
        asyncio.run(self.control.create_service(on(spec, *networks)))

    def update(self, name: str, *networks: str) -> None:
        service = self.control.service(name)
        asyncio.run(self.control.update_service(name, service.version, on(service.spec, *networks)))

    def settle(self) -> None:
        for _ in range(60):
            self.loop.step(self.clock.time)
            self.store.flush()
            if not sum(self._work(task) for task in list(self.store.all(Task))):
                self.clock.time += 6 * SECOND
                self.loop.step(self.clock.time)
                if not sum(self._work(task) for task in list(self.store.all(Task))):
                    return
        raise AssertionError("no rest")

    def _work(self, task: Task) -> bool:
        """What its node does at once: run it, or stop it."""
        if not TaskState.ASSIGNED <= task.status.state <= TaskState.RUNNING:
            return False
        if task.desired_state > TaskState.COMPLETE:
            self.report(task, TaskState.SHUTDOWN)
        elif task.status.state is TaskState.ASSIGNED or (task.desired_state is TaskState.RUNNING and task.status.state is TaskState.READY):
            self.report(task, TaskState.RUNNING if task.desired_state is TaskState.RUNNING else TaskState.READY)
        else:
            return False
        return True

    def report(self, task: Task, state: TaskState) -> None:
        now = self.clock.time
        fields: dict[str, object] = {"status": TaskStatus(timestamp=now, applied_at=now, state=state)}
        if state is TaskState.RUNNING and not task.running_at:
            fields["running_at"] = now
        self.store.apply([Change(Task, task.id, fields, "reported")], by="dispatcher")
        self.killed += state > TaskState.RUNNING

    def kill(self, state: TaskState) -> None:
        running = [task for task in self.store.all(Task) if task.status.state is TaskState.RUNNING]
        if running:
            self.report(self.rng.choice(running), state)

    def check(self) -> None:
        """What is given is what live objects carry, each once; nobody waits for anything; a leader's memory is not needed for it."""
        networks = {network.id: network for network in self.store.all(Network) if network.driver == "overlay"}
        held = [(a.network_id, number(x)) for t in self.store.all(Task) if not t.terminal for a in t.attachments for x in a.addresses]
        for service in self.store.all(Service):
            assert service.endpoint is not None
            wanted = {n.target for n in service.spec.task_template.networks or ()}
            assert {vip.network_id for vip in service.endpoint.vips} == wanted
            held += [(vip.network_id, number(vip.address)) for vip in service.endpoint.vips]
        assert len(held) == len(set(held))
        assert {network_id for network_id, _ in held} <= networks.keys()
        books = Allocation()
        assert plan_allocate(self.store, self.clock.time, books).ops == (), "nobody waits"
        assert sum(len(space.used) for space in books.spaces.values()) == len(held)
        assert sorted(books.vnis) == sorted(network.vni for network in networks.values())
        waiting = [task.status.err for task in self.store.all(Task) if task.status.state is TaskState.NEW]
        assert not waiting


def on(spec: ServiceSpec, *networks: str) -> ServiceSpec:
    places = tuple(NetworkAttachmentConfig(target=name) for name in networks) or None
    return msgspec.structs.replace(spec, task_template=msgspec.structs.replace(spec.task_template, networks=places))


@pytest.mark.parametrize("seed", range(4))
def test_allocated_is_live_after_thousands_of_ends(seed: int) -> None:
    cluster = Cluster(seed)
    rng = cluster.rng
    cluster.network("tiny", "10.50.0.0/27")
    cluster.network("other", "10.51.0.0/27")
    cluster.service("steady", 6, "tiny", "other")
    cluster.service("moving", 3, "tiny")
    made = 0
    while cluster.killed < 2_500:
        for _ in range(rng.randrange(1, 8)):
            cluster.kill(rng.choice(ENDS))
        choice = rng.random()
        if choice < 0.10:
            cluster.update("moving", *rng.sample(["tiny", "other"], rng.randrange(3)))
        elif choice < 0.15:
            cluster.service(f"short{made}", 2, "tiny")
            made += 1
        elif choice < 0.30:
            for service in [s for s in cluster.store.all(Service) if s.name.startswith("short")]:
                asyncio.run(cluster.control.remove_service(service.id))
        elif choice < 0.40:
            # a stack that goes and comes back at once, with the subnet it had
            for kind in ("service", "network"):
                try:
                    remove = cluster.control.remove_service if kind == "service" else cluster.control.remove_network
                    asyncio.run(remove("stack"))
                except SkepError as error:
                    assert error.status == 404
            cluster.network("stack", "10.52.0.0/28")
            cluster.service("stack", 3, "stack")
        if len(list(cluster.store.all(Service))) < 6:
            cluster.settle()
            cluster.check()
    for service in list(cluster.store.all(Service)):
        asyncio.run(cluster.control.remove_service(service.id))
    cluster.settle()
    assert not list(cluster.store.all(Task))
    for network in [n for n in cluster.store.all(Network) if n.driver == "overlay" and not n.spec.ingress]:
        asyncio.run(cluster.control.remove_network(network.id))
    cluster.settle()
    books = Allocation()
    books.read(cluster.store)
    assert not any(space.used for space in books.spaces.values())


def test_a_network_taken_from_a_service_is_free_of_it() -> None:
    cluster = Cluster(1)
    for name, subnet in (("net1", "10.50.0.0/24"), ("net2", "10.51.0.0/24")):
        cluster.network(name, subnet)
    cluster.settle()
    cluster.service("web", 2, "net1", "net2")
    cluster.settle()
    two = cluster.control.network("net2").id
    cluster.update("web", "net2")
    for _ in range(30):
        cluster.settle()
    live = [task for task in cluster.store.all(Task) if task.live]
    assert [[a.network_id for a in task.attachments] for task in live] == [[two], [two]]
    endpoint = cluster.control.service("web").endpoint
    assert endpoint is not None and [vip.network_id for vip in endpoint.vips] == [two]
    asyncio.run(cluster.control.remove_network("net1"))
    cluster.check()


def test_a_node_that_is_lost_keeps_addresses_until_its_tasks_are_given_up() -> None:
    """They may go on running behind a partition."""
    cluster = Cluster(1)
    cluster.network("net1", "10.50.0.0/24")
    cluster.service("web", 4, "net1")
    cluster.settle()
    lost = [task for task in cluster.store.all(Task) if task.node_id == "w2"]
    node = cluster.control.node("w2")
    down = msgspec.structs.replace(node.status, state=NodeState.DOWN, since=cluster.clock.time)
    cluster.store.apply([Change(Node, "w2", {"status": down}, "its session")], by="dispatcher")
    for _ in range(4):
        cluster.loop.step(cluster.clock.time)
        for task in [t for t in cluster.store.all(Task) if t.node_id == "w1"]:
            cluster._work(task)
        cluster.clock.time += 6 * SECOND
    kept = {x for t in lost for a in t.attachments for x in a.addresses}
    given = [x for t in cluster.store.all(Task) if t.node_id == "w1" for a in t.attachments for x in a.addresses]
    assert len(given) == 4 and not kept & set(given)
    cluster.clock.time += 25 * 3600 * SECOND
    cluster.loop.step(cluster.clock.time)
    assert all(t.status.state is TaskState.ORPHANED for t in cluster.store.all(Task) if t.node_id == "w2")
    cluster.check()
