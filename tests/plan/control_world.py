"""A manager's control over a store in memory, and short words for what users ask of it."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec

from skep.clock import SECOND
from skep.manager.control import Control, bootstrap_cluster
from skep.model.cluster import RootCA
from skep.model.service import Service
from skep.model.spec import ServiceSpec
from skep.plan.ops import Create
from skep.plan.ownership import refuse
from skep.store.memory import MemoryBackend, MemoryStore

DIGEST = "d" * 50
IN = "rpc error: code = InvalidArgument desc = "


class Clock:
    def __init__(self) -> None:
        self.time = 1_000 * SECOND

    def now(self) -> int:
        return self.time

    async def sleep(self, ns: int) -> None:
        raise NotImplementedError


def new_control(**settings: Any) -> Control:
    clock = Clock()
    store = MemoryStore(MemoryBackend(), clock, refuse)
    rng = random.Random(3)
    ops = bootstrap_cluster(
        store, cluster_id="thecluster", node_id="thenode", root_ca=RootCA(digest=DIGEST), rng=rng, address="10.1.0.1", **settings
    )
    store.apply(ops, by="control")
    return Control(store, clock, rng, "thenode")


def store_of(control: Control) -> MemoryStore:
    assert isinstance(control.view, MemoryStore)
    return control.view


def spec(text: str = "{}", name: str = "web", image: str = "nginx:1") -> ServiceSpec:
    """From Docker's JSON, as a client sends it."""
    given = msgspec.json.decode(text)
    template = given.setdefault("TaskTemplate", {})
    template.setdefault("ContainerSpec", {}).setdefault("Image", image)
    return msgspec.convert({"Name": name, **given}, ServiceSpec)


def create(control: Control, wanted: ServiceSpec, **extra: Any) -> Service:
    return asyncio.run(control.create_service(wanted, **extra))[0]


def update(control: Control, wanted: ServiceSpec, version: int | None = None, **extra: Any) -> Service:
    current = control.service("web")
    asyncio.run(control.update_service("web", current.version if version is None else version, wanted, **extra))
    return control.service("web")


def add(control: Control, *objects: Any) -> None:
    store_of(control).apply([Create(object, "t") for object in objects])


def port(published: int, mode: str = "ingress", protocol: str = "tcp") -> str:
    return '{"EndpointSpec":{"Ports":[{"TargetPort":80,"PublishedPort":%d,"PublishMode":"%s","Protocol":"%s"}]}}' % (  # noqa: UP031
        published,
        mode,
        protocol,
    )
