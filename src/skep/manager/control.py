"""The control API of a manager (`skep.api.context.Cluster`): validates what users ask, writes it, and answers when it is durable.

What a request means is worked out without waiting for anything, and written in the same breath: nothing moves between the check and the
write. The rules are in control_services, control_nodes, control_networks and control_cluster; the texts are Docker's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from skep.clock import Clock
from skep.errors import NotImplementedHere, Unavailable
from skep.ids import Random
from skep.link.messages import LogLine
from skep.manager import control_cluster, control_networks, control_nodes, control_services
from skep.manager.check import Checks
from skep.manager.check import Event as CheckEvent
from skep.manager.control_cluster import bootstrap_cluster as bootstrap_cluster
from skep.manager.control_lookup import find_network, find_node, find_service, find_task
from skep.model.cluster import Cluster
from skep.model.network import Network
from skep.model.node import Node
from skep.model.service import Service
from skep.model.spec import ClusterSpec, NetworkSpec, NodeSpec, ServiceSpec
from skep.model.task import Task
from skep.plan.ops import Delete
from skep.plan.view import View
from skep.store.base import Store, Watch

BY = "control"


class LogOptions(Protocol):
    """What of the logs is wanted (`skep.api.context.LogOptions`)."""

    @property
    def stdout(self) -> bool: ...

    @property
    def stderr(self) -> bool: ...

    @property
    def follow(self) -> bool: ...

    @property
    def since(self) -> int: ...

    @property
    def until(self) -> int: ...

    @property
    def tail(self) -> int: ...


class LogBroker(Protocol):
    """Where the lines come from (`skep.manager.logs`)."""

    def logs(self, tasks: Sequence[Task], options: LogOptions, *, service_id: str = "") -> AsyncGenerator[LogLine, None]: ...


class Control:
    """`skep.api.context.Cluster` on a manager."""

    def __init__(
        self, store: Store, clock: Clock, rng: Random, node_id: str, logs: LogBroker | None = None, checks: Checks | None = None
    ) -> None:
        self._store = store
        self._clock = clock
        self._rng = rng
        self._node_id = node_id
        self._logs = logs
        self._checks = checks

    @property
    def view(self) -> View:
        return self._store

    @property
    def node_id(self) -> str:
        return self._node_id

    def watch(self) -> Watch:
        return self._store.watch()

    # the cluster itself

    def cluster(self) -> Cluster:
        cluster = control_cluster.the_cluster(self._store)
        if cluster is None:
            raise Unavailable("This node is not a swarm manager. Manager is being prepared or has trouble connecting to the cluster.")
        return cluster

    async def update_cluster(
        self, version: int, spec: ClusterSpec, *, rotate_worker_token: bool = False, rotate_manager_token: bool = False
    ) -> None:
        change = control_cluster.update_cluster(
            self.cluster(),
            version,
            spec,
            self._rng,
            rotate_worker_token=rotate_worker_token,
            rotate_manager_token=rotate_manager_token,
        )
        await self._store.commit([change], by=BY)

    # services

    def service(self, reference: str) -> Service:
        return find_service(self._store, reference)

    async def create_service(self, spec: ServiceSpec, *, registry_auth: str = "") -> tuple[Service, list[str]]:
        create = control_services.create_service(self._store, spec, registry_auth, self._rng)
        version = self._store.apply([create], by=BY)
        service = self._store.get(Service, create.object.id)
        assert service is not None
        await self._store.durable(version)
        return service, []

    async def update_service(
        self,
        reference: str,
        version: int,
        spec: ServiceSpec,
        *,
        registry_auth: str | None = None,
        registry_auth_from: str = "",
        rollback: str = "",
    ) -> list[str]:
        change = control_services.update_service(
            self._store,
            self.service(reference),
            version,
            spec,
            registry_auth=registry_auth or "",
            registry_auth_from=registry_auth_from,
            rollback=rollback,
            now=self._clock.now(),
            rng=self._rng,
        )
        await self._store.commit([change], by=BY)
        return []

    async def remove_service(self, reference: str) -> None:
        await self._store.commit([Delete(Service, self.service(reference).id, "removed by the user")], by=BY)

    # tasks

    def task(self, reference: str) -> Task:
        return find_task(self._store, reference)

    # nodes

    def node(self, reference: str) -> Node:
        return find_node(self._store, reference)

    async def update_node(self, reference: str, version: int, spec: NodeSpec) -> None:
        change = control_nodes.update_node(self._store, self.node(reference), version, spec)
        await self._store.commit([change], by=BY)

    async def remove_node(self, reference: str, force: bool) -> None:
        ops = control_nodes.remove_node(self.cluster(), self.node(reference), force, self._clock.now())
        await self._store.commit(ops, by=BY)

    # networks

    def network(self, reference: str) -> Network:
        return find_network(self._store, reference)

    async def create_network(self, spec: NetworkSpec, *, driver: str = "") -> Network:
        create = control_networks.create_network(self._store, spec, driver, self._rng)
        version = self._store.apply([create], by=BY)
        network = self._store.get(Network, create.object.id)
        assert network is not None
        await self._store.durable(version)
        return network

    async def remove_network(self, reference: str) -> None:
        await self._store.commit([control_networks.remove_network(self._store, self.network(reference))], by=BY)

    # logs

    def logs(self, tasks: Sequence[Task], options: LogOptions, *, service_id: str = "") -> AsyncGenerator[LogLine, None]:
        if self._logs is None:
            raise NotImplementedHere("this manager collects no logs")
        return self._logs.logs(tasks, options, service_id=service_id)

    # is the network well?

    def check(self, network: str, repair: bool) -> AsyncGenerator[CheckEvent, None]:
        """`network`: reference; empty: all. What is found, as it is found."""
        if self._checks is None:
            raise NotImplementedHere("this manager asks no nodes")
        return self._checks.run([self.network(network).id] if network else [], repair)
