"""What the agent needs of a node to run a task. One implementation: `skep.node.tasks.TaskRuntime`, over an engine and a data path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from skep.engine.base import Exit
from skep.model.assignment import TaskItem
from skep.model.network import Network
from skep.model.spec import IPAMConfig
from skep.model.task import TaskStatus


class Tasks(Protocol):
    """Each call is one transition of a task and may take long; cancelling one leaves a state from which it can be called again.

    Errors are skep.errors; their one line becomes `Status.Err`.
    """

    async def prepare(self, item: TaskItem) -> None:
        """Image, network, mounts, container: everything but starting it. An image that is missing and cannot be pulled raises
        NotFound `No such image: REF: <the registry's reason>`; where a pull fails and the image is here, the local one is used."""
        ...

    async def start(self, item: TaskItem) -> None:
        """Start its container; with a health check, wait until it is healthy. Fine if it runs already (re-adoption)."""
        ...

    async def wait(self, item: TaskItem) -> Exit:
        """Until it ends. Raises SkepError (`unhealthy container`) when its health check fails for good."""
        ...

    async def shutdown(self, item: TaskItem) -> None:
        """Stop signal, grace period, SIGKILL. Fine if there is no container, or it has ended."""
        ...

    async def remove(self, task_id: str) -> None:
        """Container, network place, everything. Idempotent."""
        ...

    def status(self, task_id: str) -> TaskStatus | None:
        """Container id, pid, exit code and host ports as they are now (state and times are the caller's); `message`: what of the spec this
        host could not do in full, shown while it runs."""
        ...

    def known(self) -> list[str]:
        """Ids of all tasks that have a container or a network place here, running or not: what a restart finds."""
        ...


class LocalNetwork(msgspec.Struct, frozen=True, kw_only=True):
    """A network of this node alone, as it is kept on disk."""

    id: str
    """64 hex digits."""
    name: str
    driver: str = "bridge"
    """bridge; host and null for the predefined two."""
    created_at: int = 0
    ipam: tuple[IPAMConfig, ...] = ()
    """In force: with subnet and gateway."""
    ipam_options: dict[str, str] = {}
    options: dict[str, str] = {}
    labels: dict[str, str] = {}
    internal: bool = False
    attachable: bool = False
    group: int = 0
    """In the router (skep.datapath.base.LocalNetwork); 0 for host and null."""
    predefined: bool = False
    config_only: bool = False
    config_from: str = ""


class LocalEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A container's (or a task's) place on a network of this node."""

    id: str
    """64 hex digits."""
    network_id: str
    sandbox_id: str
    address: str
    """With prefix length."""
    gateway: str
    mac: str = ""
    names: tuple[str, ...] = ()


class LocalNetworks(Protocol):
    """This node's own networks: `bridge`, `host`, `none`, and those the user makes. One implementation: `skep.node.networks`.

    References are id, name, or unique id prefix. Addresses that were given stay given through a restart of the daemon.
    """

    def all(self) -> list[LocalNetwork]: ...

    def get(self, reference: str) -> LocalNetwork | None: ...

    async def create(
        self,
        name: str,
        *,
        driver: str = "bridge",
        ipam: tuple[IPAMConfig, ...] = (),
        ipam_options: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        internal: bool = False,
        attachable: bool = False,
        config_only: bool = False,
        config_from: str = "",
    ) -> LocalNetwork:
        """Raises Conflict (`network with name X already exists`), Forbidden (`Pool overlaps with other one ...`), Invalid."""
        ...

    async def remove(self, reference: str) -> LocalNetwork:
        """Raises Forbidden for a predefined one and where it has active endpoints, in Docker's words."""
        ...

    async def reserve(
        self, network_id: str, sandbox_id: str, *, address: str = "", mac: str = "", names: tuple[str, ...] = ()
    ) -> LocalEndpoint:
        """An address for this sandbox (the one asked for, else the next); the names resolve from now on (except on `bridge`). Idempotent.

        Raises Conflict `Address already in use`, Invalid when it is outside of the subnet.
        """
        ...

    async def announce(self, network_id: str, sandbox_id: str, names: tuple[str, ...]) -> None:
        """Other names for it (a rename)."""
        ...

    async def release(self, sandbox_id: str, network_id: str = "") -> None:
        """Give back its address there, or on all networks. Idempotent."""
        ...

    def endpoints(self, network_id: str) -> list[LocalEndpoint]: ...

    def endpoints_of(self, sandbox_id: str) -> list[LocalEndpoint]: ...


class AttachedNetwork(msgspec.Struct, frozen=True, kw_only=True):
    """A network of the cluster on which a plain container has a place."""

    id: str
    name: str


class Attachments(Protocol):
    """Places of plain containers on the cluster's attachable networks: the manager gives the address. On managers and workers alike.

    A place belongs to a container while that has a sandbox: it is asked for when the container starts and given back when it stops; a
    daemon that finds the container running at its own start asks again and gets the same one. What was not asked for again, and whose
    container has no sandbox when the daemon starts, is given back by itself.
    """

    async def attach(
        self, network: str, container_id: str, *, address: str = "", names: tuple[str, ...] = ()
    ) -> tuple[AttachedNetwork, str]:
        """(the network, the container's address there with its prefix length). `network`: id or name. When this returns, this node's data
        path has the network, and others find the container by its names and its short id. Idempotent.

        Raises Forbidden `network X not manually attachable`, NotFound `network X not found`, Conflict `Address already in use`, Invalid for
        an address outside of the network, Unavailable when no manager answers within 20 s or no address is left.
        """
        ...

    async def detach(self, container_id: str, network_id: str = "") -> None:
        """Give back its place there, or all of them. Waits a little for the manager to know; without one it is told later. Idempotent."""
        ...

    async def find(self, reference: str, *, joining: bool = False) -> Network | None:
        """A network of the cluster that is attachable, or that this node takes part in, by id, name or unique id prefix, as a manager knows
        it; without a manager, as this node does. None: there is none that this node may know of. `joining`: a container is to be
        put on it; raises Forbidden where it is not attachable."""
        ...

    def networks(self) -> list[Network]:
        """Those that this node takes part in (ingress too)."""
        ...

    def when_lost(self, call: Callable[[str, str], None]) -> None:
        """`call(container id, network id)` when the cluster takes a place away: the node has left or was removed, an address is void."""
        ...


def is_task_sandbox(sandbox_id: str) -> bool:
    """Sandboxes of tasks carry the task's id, those of plain containers the container's (64 hex digits)."""
    return len(sandbox_id) != 64
