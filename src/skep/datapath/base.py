"""The contract between a node and its network. See docs/network.md and recipes: a router namespace per node, /32 routes, VXLAN, nft.

`skep.datapath` (desired and diff, pure) says what ought to be in the kernel; netlink.py and nft.py put it there. `skep.testing` has a fake.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from skep.model.assignment import EndpointItem, NetworkItem, PeerItem, ServiceItem
from skep.model.spec import PortConfig


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What the cluster tells this node's network, at one version. Everything about others; this node's own containers come by `attach`."""

    version: int = 0
    node_id: str = ""
    data_path_port: int = 4789
    networks: Mapping[str, NetworkItem] = {}
    peers: Mapping[str, PeerItem] = {}
    endpoints: Mapping[str, EndpointItem] = {}
    """By key (`endpoint/task/network`)."""
    services: Mapping[str, ServiceItem] = {}


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A container's place on one network: what `attach` makes of it is an interface in the container."""

    network_id: str
    address: str
    """With prefix length: `10.0.0.5/24`."""
    gateway: str = ""
    """Empty: the network's, as the last snapshot has it."""


class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
    """A container's network namespace, made and wired before the container starts."""

    id: str
    path: str


class Datapath(Protocol):
    async def start_up(self) -> None:
        """Make (or find again) the router namespace and our own nft table; sandboxes that are there stay as they are."""
        ...

    async def shut_down(self) -> None:
        """Let go of handles; the kernel's state stays, containers go on talking."""
        ...

    async def destroy(self) -> None:
        """Remove everything of this node's network (when it leaves the cluster)."""
        ...

    async def attach(self, sandbox_id: str, places: tuple[Place, ...], sysctls: Mapping[str, str] | None = None) -> Sandbox:
        """Make a sandbox with loopback and one interface per place. Idempotent: an existing sandbox of this id is given back."""
        ...

    async def detach(self, sandbox_id: str) -> None:
        """Remove the sandbox. Idempotent."""
        ...

    async def sandboxes(self) -> list[str]:
        """Ids of the sandboxes that exist."""
        ...

    async def publish(self, sandbox_id: str, address: str, ports: tuple[PortConfig, ...]) -> tuple[PortConfig, ...]:
        """Publish ports of one container on this node only (host mode); gives them back with `published_port` filled in.

        Raises Conflict when a port is taken.
        """
        ...

    async def unpublish(self, sandbox_id: str) -> None: ...

    async def apply(self, snapshot: Snapshot) -> None:
        """Bring the kernel to this snapshot: routes and forwarding to other nodes' endpoints, published ports. Costs what changed."""
        ...
