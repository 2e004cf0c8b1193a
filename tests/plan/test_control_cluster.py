"""What users may ask of nodes and of the cluster, and how what they name is found."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest
from control_world import DIGEST, IN, Clock, add, new_control, store_of

from skep.clock import DAY, HOUR, SECOND
from skep.errors import Invalid, NotFound, NotImplementedHere, OutOfSequence, SkepError, Unavailable
from skep.link.messages import LogLine
from skep.manager.control import Control, LogOptions, bootstrap_cluster
from skep.model.cluster import Cluster, RootCA
from skep.model.enums import NodeState
from skep.model.network import Network
from skep.model.node import Certificate, Node, NodeDescription, NodeStatus
from skep.model.service import Service
from skep.model.spec import ClusterSpec, NodeSpec, ServiceSpec
from skep.model.task import Task
from skep.plan.ops import Change
from skep.store.memory import MemoryBackend, MemoryStore


@pytest.fixture
def control() -> Control:
    return new_control()


# finding


def test_id_then_name_then_prefix(control: Control) -> None:
    add(
        control,
        Service(id="abc", spec=ServiceSpec(name="first")),
        Service(id="abd", spec=ServiceSpec(name="abc")),
        Service(id="xyz", spec=ServiceSpec(name="ab")),
    )
    assert control.service("abc").id == "abc"
    assert control.service("ab").id == "xyz"
    assert control.service("AB").id == "xyz"
    assert control.service("x").id == "xyz"
    with pytest.raises(Invalid) as caught:
        control.service("a")
    assert (caught.value.status, caught.value.message) == (400, "service a is ambiguous (2 matches found)")
    for kind, look in {"service": control.service, "node": control.node, "task": control.task, "network": control.network}.items():
        for missing in ("nothing", ""):
            with pytest.raises(NotFound) as lost:
                look(missing)
            assert lost.value.message == f"{kind} {missing} not found"


def test_nodes_by_host_name_and_tasks_by_their_long_name(control: Control) -> None:
    twin = NodeDescription(hostname="Twin")
    add(
        control,
        Node(id="n1", spec=NodeSpec(), description=NodeDescription(hostname="alpha")),
        Node(id="n2", spec=NodeSpec(), description=twin),
        Node(id="n3", spec=NodeSpec(), description=twin),
        Task(id="t1", service_id="s", service_name="web", slot=2),
    )
    assert control.node("ALPHA").id == "n1"
    with pytest.raises(Invalid, match=r"node twin is ambiguous \(2 matches found\)"):
        control.node("twin")
    assert control.task("web.2.t1").id == "t1"
    with pytest.raises(NotFound):
        control.task("web.1.t1")


# nodes


def worker(state: NodeState = NodeState.READY, **fields: Any) -> Node:
    return Node(id="w1", spec=NodeSpec(role="worker", availability="active"), status=NodeStatus(state=state), **fields)


def test_update_node(control: Control) -> None:
    add(control, worker())
    node = control.node("w1")
    store_of(control).apply([Change(Node, "w1", {"applied_version": 3}, "t")], by="dispatcher")
    asyncio.run(control.update_node("w1", node.version, NodeSpec(role="worker", availability="drain", labels={"a": "b"})))
    assert control.node("w1").spec.availability == "drain"
    with pytest.raises(OutOfSequence):
        asyncio.run(control.update_node("w1", node.version, NodeSpec(role="worker", availability="active")))


@pytest.mark.parametrize(
    ("node", "wanted", "version", "message"),
    [
        ("w1", NodeSpec(role="boss", availability="active"), 0, 'invalid Role: "boss"'),
        ("w1", NodeSpec(role="worker", availability=".."), 0, 'invalid Availability: ".."'),
        (
            "thenode",
            NodeSpec(role="worker", availability="active"),
            0,
            "rpc error: code = FailedPrecondition desc = attempting to demote the last manager of the swarm",
        ),
        (
            "w1",
            NodeSpec(role="manager", availability="active"),
            None,
            "a node cannot be promoted yet: skep keeps its state on one manager until it has a store for several",
        ),
        ("w1", NodeSpec(role="manager", availability="active"), 0, "rpc error: code = Unknown desc = update out of sequence"),
    ],
)
def test_node_updates_refused(control: Control, node: str, wanted: NodeSpec, version: int | None, message: str) -> None:
    add(control, worker())
    with pytest.raises(SkepError) as caught:
        asyncio.run(control.update_node(node, control.node(node).version if version is None else version, wanted))
    assert caught.value.message == message


def test_remove_node(control: Control) -> None:
    now = 1_000 * SECOND
    add(control, worker(certificate=Certificate(serial="5f", not_after=now + DAY)))
    for forced in (False, True):
        with pytest.raises(Invalid) as caught:
            asyncio.run(control.remove_node("thenode", forced))
        assert caught.value.message == (
            "rpc error: code = FailedPrecondition desc = node thenode is a cluster manager and is a member of the raft cluster."
            " It must be demoted to worker before removal"
        )
    with pytest.raises(Invalid) as caught:
        asyncio.run(control.remove_node("w1", False))
    assert caught.value.message == "rpc error: code = FailedPrecondition desc = node w1 is not down and can't be removed"
    asyncio.run(control.remove_node("w1", True))
    assert control.view.get(Node, "w1") is None
    assert [(r.serial, r.until) for r in control.cluster().revoked] == [("5f", now + DAY)]
    add(control, worker(NodeState.DOWN))
    asyncio.run(control.remove_node("w1", False))
    assert control.view.get(Node, "w1") is None


# the cluster


def test_birth() -> None:
    control = new_control(default_addr_pool=["20.20.0.0/16"], subnet_size=25, availability="drain", manager_addr="10.1.0.1:2377")
    cluster = control.cluster()
    assert cluster.tokens.worker.startswith(f"SWMTKN-1-{DIGEST}-")
    assert len(cluster.tokens.worker) == len("SWMTKN-1-") + 50 + 1 + 25
    assert cluster.tokens.worker != cluster.tokens.manager
    assert (cluster.default_addr_pool, cluster.subnet_size, cluster.data_path_port) == (("20.20.0.0/16",), 25, 4789)
    assert cluster.spec.name == "default"
    assert cluster.spec.orchestration.task_history_retention_limit == 5
    assert cluster.spec.ca_config.node_cert_expiry == 90 * DAY
    assert cluster.spec.dispatcher.heartbeat_period == 5 * SECOND
    node = control.node("thenode")
    assert (node.role, node.spec.role, node.spec.availability, node.status.addr) == ("manager", "manager", "drain", "10.1.0.1")
    assert {n.name: (n.driver, n.predefined, n.spec.ingress) for n in control.view.all(Network)} == {
        "ingress": ("overlay", False, True),
        "bridge": ("bridge", True, False),
        "host": ("host", True, False),
        "none": ("null", True, False),
    }
    with pytest.raises(Invalid, match="holds a cluster already"):
        bootstrap_cluster(control.view, cluster_id="x", node_id="y", root_ca=RootCA(), rng=random.Random(1))


@pytest.mark.parametrize(
    "settings",
    [
        {"default_addr_pool": ["20.20.0.0/33"]},
        {"default_addr_pool": ["20.20.0.0/26"]},
        {"default_addr_pool": ["169.254.0.0/16"]},
        {"default_addr_pool": ["fd00::/64"]},
        {"subnet_size": 30},
        {"data_path_port": 80},
        {"availability": "lazy"},
        {"spec": ClusterSpec(name="mine")},
    ],
)
def test_births_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        new_control(**settings)


def test_update_cluster(control: Control) -> None:
    before = control.cluster()
    text = (
        '{"Name":"default","Orchestration":{"TaskHistoryRetentionLimit":0},"Dispatcher":{"HeartbeatPeriod":11000000000},"Labels":{"a":"b"}}'
    )
    asyncio.run(control.update_cluster(before.version, msgspec.json.decode(text, type=ClusterSpec)))
    after = control.cluster()
    assert after.spec.orchestration.task_history_retention_limit == 0
    assert after.spec.dispatcher.heartbeat_period == 11 * SECOND
    assert after.spec.raft.snapshot_interval == 10_000
    assert after.spec.ca_config.node_cert_expiry == 90 * DAY
    assert after.tokens == before.tokens
    with pytest.raises(OutOfSequence):
        asyncio.run(control.update_cluster(before.version, ClusterSpec()))
    asyncio.run(control.update_cluster(after.version, after.spec, rotate_worker_token=True))
    rotated = control.cluster()
    assert rotated.tokens.manager == before.tokens.manager
    assert rotated.tokens.worker != before.tokens.worker
    assert rotated.tokens.worker.startswith(f"SWMTKN-1-{DIGEST}-")


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ('{"CAConfig":{"NodeCertExpiry":%d}}' % (HOUR // 4), 400, IN + "minimum certificate expiry time is: 1h0m0s"),  # noqa: UP031
        ('{"Dispatcher":{"HeartbeatPeriod":-1}}', 400, IN + "heartbeat time period cannot be a negative duration"),
        ('{"Name":"mine"}', 400, 'swarm spec must be named "default"'),
        ('{"EncryptionConfig":{"AutoLockManagers":true}}', 501, "skep has no autolock yet: switch it off"),
        ('{"CAConfig":{"ForceRotate":1}}', 501, "skep cannot rotate the cluster's CA yet"),
    ],
)
def test_cluster_updates_refused(control: Control, text: str, status: int, message: str) -> None:
    before = control.cluster()
    with pytest.raises(SkepError) as caught:
        asyncio.run(control.update_cluster(before.version, msgspec.json.decode(text, type=ClusterSpec)))
    assert (caught.value.status, caught.value.message) == (status, message)
    assert control.cluster() == before


def test_before_its_birth_there_is_no_cluster() -> None:
    clock = Clock()
    control = Control(MemoryStore(MemoryBackend(), clock), clock, random.Random(1), "n")
    with pytest.raises(Unavailable):
        control.cluster()
    assert not control.view.all(Cluster)


# logs


def test_logs_come_from_the_broker(control: Control) -> None:
    class Broker:
        def logs(self, tasks: Sequence[Task], options: LogOptions, *, service_id: str = "") -> AsyncIterator[LogLine]:
            async def lines() -> AsyncIterator[LogLine]:
                for task in tasks:
                    yield LogLine(task_id=task.id, stream=1, at=0, data=service_id.encode())

            return lines()

    class All:
        stdout = stderr = follow = True
        since = until = 0
        tail = -1

    async def read(source: Control) -> list[bytes]:
        return [line.data async for line in source.logs([Task(id="t")], All(), service_id="s")]

    with_broker = Control(store_of(control), Clock(), random.Random(1), "thenode", Broker())
    assert asyncio.run(read(with_broker)) == [b"s"]
    with pytest.raises(NotImplementedHere):
        asyncio.run(read(control))
