"""The contract between a node and its network. See docs/network.md and recipes: a router namespace per node, /32 routes, VXLAN, nft.

`skep.datapath` (desired and diff, pure) says what ought to be in the kernel; netlink.py and nft.py put it there. `skep.testing` has a fake.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from skep.model.assignment import DiscoveryItem, EndpointItem, NetworkItem, PeerItem, ServiceItem


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
    discovery: Mapping[str, DiscoveryItem] = {}
    """Services on the networks of this node: names and virtual addresses."""


class LocalNetwork(msgspec.Struct, frozen=True, kw_only=True):
    """A network of this node alone (driver bridge): a device group in the router, like an overlay but without a VXLAN device."""

    id: str
    group: int
    """16 (the predefined `bridge`) to 4095; overlays have their VNI, from 4096."""
    subnet: str
    gateway: str
    """Without prefix length. It is the host, seen from a container: what is sent there reaches the host's own services."""
    internal: bool = False
    """No way out, and no published ports."""
    isolated: bool = False
    """Its containers do not reach each other (`com.docker.network.bridge.enable_icc=false`)."""
    masquerade: bool = True
    mtu: int = 0
    """0: the underlay's."""
    binding: str = ""
    """The host's address at which ports of its containers are published where none is said; empty: all."""
    resolves: bool = True
    """Containers find each other by name. Not on the predefined `bridge`, as in Docker."""
    name: str = ""
    """Its name: a container is found as CONTAINER.NETWORK too, and an address is given that name in reverse."""


class LocalName(msgspec.Struct, frozen=True, kw_only=True):
    """A container's address on a network of this node, and the names it answers to there."""

    network_id: str
    address: str
    names: tuple[str, ...]


class LocalState(msgspec.Struct, frozen=True, kw_only=True):
    """This node's own networks. The counterpart of `Snapshot` for what no cluster tells."""

    networks: Mapping[str, LocalNetwork] = {}
    names: tuple[LocalName, ...] = ()


class Resolving(msgspec.Struct, frozen=True, kw_only=True):
    """How a container's names are resolved: at 127.0.0.11, port 53, inside its sandbox."""

    servers: tuple[str, ...] = ()
    """Where what the cluster and the node do not know is asked (`--dns`); empty: the node's resolvers."""
    own_names: tuple[str, ...] = ()
    """Names that resolve to its own address on the network asked about, whether or not it is announced to others yet."""
    aliases: Mapping[str, tuple[str, ...]] = {}
    """By network id: likewise, on that network only."""
    links: Mapping[str, str] = {}
    """Names of its own making (`--link`): name -> address, or a name that the other has on their network."""


class HostPort(msgspec.Struct, frozen=True, kw_only=True):
    """A port of this node that leads to a container."""

    target: int
    protocol: str = "tcp"
    published: int = 0
    """0: any free one of `published` .. `last`, or of 32768 to 60999."""
    last: int = 0
    """With `published`: any free one of this range (`-p 8000-8010:80`)."""
    address: str = ""
    """Only at this address of the host; empty: all."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A container's place on one network: what `attach` makes of it is an interface in the container."""

    network_id: str
    address: str
    """With prefix length: `10.0.0.5/24`."""
    gateway: str = ""
    """Empty: the network's, as the last snapshot (or the local state) has it."""
    mac: str = ""
    """Empty: made of the address."""
    network_name: str = ""
    """Empty: as the last snapshot (or the local state) has it."""
    priority: int = 0
    """The container's default route is that of the highest, then of the first network by name; never an internal one."""


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

    async def attach(
        self, sandbox_id: str, places: tuple[Place, ...], sysctls: Mapping[str, str] | None = None, resolving: Resolving | None = None
    ) -> Sandbox:
        """Make a sandbox with loopback and one interface per place. Idempotent: an existing sandbox of this id is given back.

        With `resolving`, names resolve in it at 127.0.0.11 when this returns.
        """
        ...

    async def connect(self, sandbox_id: str, place: Place, resolving: Resolving | None = None) -> None:
        """One more interface in a sandbox that is in use. Raises Conflict when it is on that network already."""
        ...

    async def disconnect(self, sandbox_id: str, network_id: str) -> None:
        """Take that interface away. Idempotent."""
        ...

    async def detach(self, sandbox_id: str) -> None:
        """Remove the sandbox. Idempotent."""
        ...

    async def sandboxes(self) -> list[str]:
        """Ids of the sandboxes that exist."""
        ...

    async def publish(self, sandbox_id: str, address: str, ports: tuple[HostPort, ...]) -> tuple[HostPort, ...]:
        """Publish ports of one container on this node only; all of them (what it had before is replaced). Gives them back with `published`
        filled in. `address`: of the container.

        Raises Conflict when a port is taken; then nothing has changed.
        """
        ...

    async def unpublish(self, sandbox_id: str) -> None: ...

    async def apply(self, snapshot: Snapshot) -> None:
        """Bring the kernel to this snapshot: routes and forwarding to other nodes' endpoints, published ports. Costs what changed."""
        ...

    async def apply_local(self, state: LocalState) -> None:
        """Bring the kernel and the resolver to this node's own networks."""
        ...

    async def compare(self) -> list[str]:
        """Compare everything with the kernel and the resolver, mend what differs; a sentence for each thing mended."""
        ...


class Names(Protocol):
    """The node's resolver: a process of its own, so that names resolve while skepd restarts. `skep.datapath.names` says what is answered.

    Each call returns when every answer is according to it.
    """

    async def start_up(self) -> None:
        """Find the resolver that runs, or start one."""
        ...

    async def shut_down(self) -> None:
        """Let go; it goes on resolving."""
        ...

    async def destroy(self) -> None:
        """End it and remove its files."""
        ...

    async def serve(self, sandbox: Sandbox, networks: tuple[str, ...], resolving: Resolving) -> None:
        """Answer in this sandbox, which is on these networks (ids; names are looked up in this order). Again: replace."""
        ...

    async def withdraw(self, sandbox_id: str, network_id: str) -> None:
        """The sandbox is no longer on that network. Idempotent, and fine for one that is not served."""
        ...

    async def forget(self, sandbox_id: str) -> None: ...

    async def apply(self, snapshot: Snapshot) -> None: ...

    async def apply_local(self, state: LocalState) -> None: ...

    async def compare(self) -> list[str]:
        """Is it alive, and does it stand at what was applied? What was mended, a sentence each."""
        ...
