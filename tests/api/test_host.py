"""What the node says of itself, and the cluster's changes as events."""

from __future__ import annotations

import random

import msgspec
import pytest

from skep.api.clusterevents import translate
from skep.api.host import HostInfo, Warnings
from skep.model.enums import NodeState, UpdateState
from skep.model.network import Network
from skep.model.node import Node, NodeDescription, NodeStatus
from skep.model.service import Service, UpdateStatus
from skep.model.spec import ContainerSpec, Mode, NetworkSpec, NodeSpec, Replicated, ServiceSpec, TaskSpec
from skep.model.task import Task
from skep.store.base import Event
from skep.testing.fake_context import FakeContext, StepClock


def host(warnings: Warnings | None = None) -> HostInfo:
    context = FakeContext(StepClock(), random.Random(1))
    return HostInfo(
        context.engine,
        context.clock,
        id="x",
        root="/var/lib/skep",
        labels={"b": "2", "a": "1"},
        insecure_registries=("registry:5000", "10.0.0.0/8"),
        mirrors=("https://mirror.example",),
        warnings=warnings,
    )


def test_info_is_what_the_host_and_the_engine_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@proxy:3128")
    warnings = Warnings("one")
    warnings.add("two")
    warnings.add("one")
    info = host(warnings).info()
    assert info["Labels"] == ["a=1", "b=2"] and info["Warnings"] == ["one", "two"]
    assert info["HttpProxy"] == "http://xxxxx:xxxxx@proxy:3128"
    assert info["RegistryConfig"]["InsecureRegistryCIDRs"] == ["10.0.0.0/8", "::1/128", "127.0.0.0/8"]
    assert info["RegistryConfig"]["IndexConfigs"]["registry:5000"]["Secure"] is False
    assert info["RegistryConfig"]["Mirrors"] == ["https://mirror.example"]
    assert (info["DefaultRuntime"], info["Driver"], info["OSType"]) == ("runc", "overlay2", "linux")
    assert info["NCPU"] >= 1 and info["MemTotal"] > 1 << 20
    assert host().info()["Warnings"] is None


def test_version_has_the_shape_that_clients_read() -> None:
    version = host().version()
    assert (version["ApiVersion"], version["MinAPIVersion"], version["Components"][0]["Name"]) == ("1.50", "1.24", "Engine")
    assert all(isinstance(value, str) for value in version["Components"][0]["Details"].values())


def service(**fields: object) -> Service:
    template = TaskSpec(container_spec=ContainerSpec(image="a:1"))
    spec = ServiceSpec(name="web", task_template=template, mode=Mode(replicated=Replicated(replicas=2)))
    return Service(id="s" * 25, spec=spec, created_at=1_000_000_005, updated_at=2_000_000_007, **fields)  # type: ignore[arg-type]


def changed(old: Service, **fields: object) -> Service:
    return msgspec.structs.replace(old, **fields)


def attributes(old: object, new: object) -> dict[str, str] | None:
    kind = type(new or old)
    told = translate(Event(kind, "s" * 25, 1, old, new))  # type: ignore[arg-type]
    return told["Actor"]["Attributes"] if told is not None else None


def test_a_service_s_changes_are_told_as_docker_tells_them() -> None:
    old = service()
    created = translate(Event(Service, old.id, 1, None, old))
    assert created is not None and (created["Action"], created["timeNano"]) == ("create", 1_000_000_005)
    scaled = changed(old, spec=msgspec.structs.replace(old.spec, mode=Mode(replicated=Replicated(replicas=3))))
    assert attributes(old, scaled) == {"name": "web", "replicas.old": "2", "replicas.new": "3"}
    template = TaskSpec(container_spec=ContainerSpec(image="a:2"))
    newer = changed(old, spec=msgspec.structs.replace(old.spec, task_template=template))
    assert attributes(old, newer) == {"name": "web", "image.old": "a:1", "image.new": "a:2"}
    updating = changed(newer, update_status=UpdateStatus(state=UpdateState.UPDATING))
    assert attributes(newer, updating) == {"name": "web", "updatestate.new": "updating"}
    counting = changed(updating, update_status=UpdateStatus(state=UpdateState.UPDATING, last_slot_at=5))
    assert attributes(updating, counting) is None
    removed = translate(Event(Service, old.id, 1, old, None))
    assert removed is not None and (removed["Action"], removed["scope"], removed["timeNano"]) == ("remove", "swarm", 2_000_000_007)


def test_a_node_s_heartbeats_are_not_told() -> None:
    old = Node(id="n", spec=NodeSpec(role="worker", availability="active"), description=NodeDescription(hostname="node-2"))
    ready = msgspec.structs.replace(old, status=NodeStatus(state=NodeState.READY))
    drained = msgspec.structs.replace(ready, spec=NodeSpec(role="worker", availability="drain"))
    assert attributes(old, ready) == {"name": "node-2", "state.old": "unknown", "state.new": "ready"}
    assert attributes(ready, drained) == {"name": "node-2", "availability.old": "active", "availability.new": "drain"}
    assert attributes(ready, msgspec.structs.replace(ready, applied_version=9)) is None
    assert attributes(None, Node(id="n", spec=NodeSpec())) == {"name": ""}


def test_networks_are_told_and_tasks_are_not() -> None:
    network = Network(id="n", spec=NetworkSpec(name="net1"))
    assert attributes(None, network) == {"name": "net1"}
    assert attributes(network, msgspec.structs.replace(network, cursor=4)) is None
    assert attributes(None, Task(id="t")) is None
