"""What the routes know of the world: this node, and the cluster it may belong to. Routes do not know how either is made.

`Cluster` is `skep.manager.control.Control` on a manager; anywhere else `Context.cluster` raises Unavailable with Docker's sentence.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from skep.clock import Clock
from skep.engine.base import Container, Engine
from skep.link.messages import LogLine
from skep.model.cluster import Cluster as ClusterObject
from skep.model.network import Network
from skep.model.node import Node
from skep.model.service import Service
from skep.model.spec import ClusterSpec, NetworkSpec, NodeSpec, ServiceSpec
from skep.model.task import Task
from skep.node.base import Attachments, LocalNetworks
from skep.node.plain import Plain
from skep.node.volumes import Volumes
from skep.plan.view import View
from skep.store.base import Watch


class SwarmInfo(msgspec.Struct, frozen=True, kw_only=True):
    """`Swarm` of GET /info."""

    state: str = "inactive"
    """inactive, pending, active, error or locked."""
    node_id: str = ""
    node_addr: str = ""
    control_available: bool = False
    error: str = ""
    managers: tuple[tuple[str, str], ...] = ()
    """(node id, ip:port)."""


class InitRequest(msgspec.Struct, frozen=True, kw_only=True):
    listen_addr: str = ""
    advertise_addr: str = ""
    data_path_addr: str = ""
    data_path_port: int = 0
    force_new_cluster: bool = False
    auto_lock: bool = False
    availability: str = ""
    default_addr_pool: tuple[str, ...] = ()
    subnet_size: int = 0
    spec: ClusterSpec = ClusterSpec()


class JoinRequest(msgspec.Struct, frozen=True, kw_only=True):
    listen_addr: str = ""
    advertise_addr: str = ""
    data_path_addr: str = ""
    remote_addrs: tuple[str, ...] = ()
    token: str = ""
    availability: str = ""


class Swarm(Protocol):
    """This node's membership. The daemon implements it."""

    def info(self) -> SwarmInfo: ...

    async def init(self, request: InitRequest) -> str:
        """Returns the node's id."""
        ...

    async def join(self, request: JoinRequest) -> None: ...

    async def leave(self, force: bool) -> None: ...


class LogOptions(msgspec.Struct, frozen=True, kw_only=True):
    stdout: bool = True
    stderr: bool = True
    follow: bool = False
    since: int = 0
    until: int = 0
    tail: int = -1


class Cluster(Protocol):
    """The control API of a manager: validates, writes, answers when durable. References are id, name (hostname) or unique id prefix.

    Errors are skep.errors with Docker's texts (reference: surface.md section 2).
    """

    @property
    def view(self) -> View: ...

    @property
    def node_id(self) -> str:
        """This manager's own node."""
        ...

    def watch(self) -> Watch:
        """Durable changes of all objects, for /events."""
        ...

    # the cluster itself
    def cluster(self) -> ClusterObject: ...

    async def update_cluster(
        self, version: int, spec: ClusterSpec, *, rotate_worker_token: bool = False, rotate_manager_token: bool = False
    ) -> None: ...

    # services
    def service(self, reference: str) -> Service: ...

    async def create_service(self, spec: ServiceSpec, *, registry_auth: str = "") -> tuple[Service, list[str]]:
        """The service and warnings."""
        ...

    async def update_service(
        self,
        reference: str,
        version: int,
        spec: ServiceSpec,
        *,
        registry_auth: str | None = None,
        registry_auth_from: str = "",
        rollback: str = "",
    ) -> list[str]: ...

    async def remove_service(self, reference: str) -> None: ...

    # tasks
    def task(self, reference: str) -> Task: ...

    # nodes
    def node(self, reference: str) -> Node: ...

    async def update_node(self, reference: str, version: int, spec: NodeSpec) -> None: ...

    async def remove_node(self, reference: str, force: bool) -> None: ...

    # networks
    def network(self, reference: str) -> Network: ...

    async def create_network(self, spec: NetworkSpec, *, driver: str = "") -> Network: ...

    async def remove_network(self, reference: str) -> None: ...

    # logs
    def logs(self, tasks: Sequence[Task], options: LogOptions, *, service_id: str = "") -> AsyncGenerator[LogLine, None]:
        """Lines of these tasks, and with `service_id` and follow also of tasks that start later."""
        ...

    # is the network well?
    def check(self, network: str, repair: bool) -> AsyncGenerator[Mapping[str, Any], None]:
        """What is found, as it is found (`skep.manager.check`); `network`: reference, empty: all."""
        ...


class LocalEvents(Protocol):
    """What this node can tell of in /events: messages in Docker's shape, newest last; the API adds the cluster's (scope swarm)."""

    def past(self) -> Sequence[Mapping[str, Any]]: ...

    def subscribe(self) -> asyncio.Queue[Mapping[str, Any]]: ...

    def unsubscribe(self, queue: asyncio.Queue[Mapping[str, Any]]) -> None: ...

    def publish(self, message: Mapping[str, Any]) -> None: ...

    def container(self, action: str, container: Container, attributes: Mapping[str, str]) -> None:
        """Publish what happened to a container; its name, image and labels are added to the attributes."""
        ...

    def tell(self, kind: str, action: str, subject: Any, attributes: Mapping[str, str]) -> None:
        """For `skep.node.plain.Plain.tell`."""
        ...


class NodeInfo(Protocol):
    """What GET /info and /version say of this host; all in Docker's JSON names."""

    def info(self) -> dict[str, Any]: ...

    def version(self) -> dict[str, Any]: ...


class Context(Protocol):
    @property
    def clock(self) -> Clock: ...

    @property
    def engine(self) -> Engine: ...

    @property
    def swarm(self) -> Swarm: ...

    @property
    def host(self) -> NodeInfo: ...

    @property
    def events(self) -> LocalEvents: ...

    @property
    def volumes(self) -> Volumes: ...

    @property
    def networks(self) -> LocalNetworks:
        """This node's own networks."""
        ...

    @property
    def attachments(self) -> Attachments:
        """Places of this node's plain containers on the cluster's networks, and which of these this node knows."""
        ...

    @property
    def plain(self) -> Plain | None:
        """This node's plain containers; None where it can have none (the host socket)."""
        ...

    @property
    def cluster(self) -> Cluster:
        """Raises Unavailable with the reason where this node is no active manager."""
        ...
