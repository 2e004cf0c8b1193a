"""What a manager tells a node to do and to know, as items under stable keys, so that a change is sent as a difference.

`skep.plan.assignment` renders the items of one node from the store; the dispatcher sends what differs from what the node has. One versioned
snapshot carries everything: tasks, and what the node's network needs to know of the others (`version` is the store's index it shows).
"""

from __future__ import annotations

from skep.model.base import Record
from skep.model.network import Network
from skep.model.spec import PortConfig
from skep.model.task import Task


class TaskItem(Record, frozen=True, kw_only=True, tag="task"):
    """A task of this node, ASSIGNED or later. Sent again only when something but its status changed."""

    task: Task
    service_labels: dict[str, str] = {}
    registry_auth: str = ""
    """base64url JSON; stays in the node's memory."""
    published: tuple[PortConfig, ...] = ()
    """Ingress ports of its service, with `published_port` filled in."""

    @property
    def key(self) -> str:
        return f"task/{self.task.id}"


class NetworkItem(Record, frozen=True, kw_only=True, tag="network"):
    """A network this node takes part in (ingress always)."""

    network: Network

    @property
    def key(self) -> str:
        return f"network/{self.network.id}"


class PeerItem(Record, frozen=True, kw_only=True, tag="peer"):
    """A node of the cluster (this one too): where its end of the overlays is."""

    node_id: str
    index: int
    """From 1; link address 169.254.x.y, MAC and port range follow from it."""
    address: str
    """Underlay address, VXLAN endpoint."""
    hostname: str = ""

    @property
    def key(self) -> str:
        return f"peer/{self.node_id}"


class EndpointItem(Record, frozen=True, kw_only=True, tag="endpoint"):
    """One task's address on one network."""

    task_id: str
    service_id: str
    network_id: str
    node_id: str
    address: str
    """Without prefix length."""
    serving: bool = True
    """Takes part in load balancing: running (and healthy), and not about to be stopped."""

    @property
    def key(self) -> str:
        return f"endpoint/{self.task_id}/{self.network_id}"


class ServiceItem(Record, frozen=True, kw_only=True, tag="service"):
    """A service as the node's network sees it: ports published in ingress mode; VIPs and names come with discovery."""

    service_id: str
    name: str
    ports: tuple[PortConfig, ...] = ()
    vips: dict[str, str] = {}
    """Network id -> address without prefix length."""
    aliases: dict[str, tuple[str, ...]] = {}
    """Network id -> names."""

    @property
    def key(self) -> str:
        return f"service/{self.service_id}"


Item = TaskItem | NetworkItem | PeerItem | EndpointItem | ServiceItem
