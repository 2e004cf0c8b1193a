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
    refused: str = ""
    """Why the cluster does not allow what the service's labels ask for (privileged containers, devices); empty: nothing is refused."""

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
    mtu: int = 0
    """Of its underlay; 0: not known, taken to be as wide as anyone's."""
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
    """Takes part in load balancing and names: running (and healthy), and not about to be stopped."""
    names: tuple[str, ...] = ()
    """What resolves to this address alone: the task's name, `SLOT.SERVICE`; of a plain container its name, short id and aliases."""
    hostname: str = ""
    """A task's, where its service names one: means its address too, while nobody on the network has that name."""

    @property
    def key(self) -> str:
        return f"endpoint/{self.task_id}/{self.network_id}"


class ServiceItem(Record, frozen=True, kw_only=True, tag="service"):
    """A service that publishes ports in ingress mode: every node is told."""

    service_id: str
    name: str
    ports: tuple[PortConfig, ...] = ()
    local_only: bool = False
    """A node sends what comes in by its published ports to its own tasks only (service label `skep.mesh.local=true`)."""

    @property
    def key(self) -> str:
        return f"service/{self.service_id}"


class DiscoveryItem(Record, frozen=True, kw_only=True, tag="discovery"):
    """A service on one network: nodes that take part in the network are told."""

    service_id: str
    network_id: str
    name: str
    vip: str = ""
    """Without prefix length; empty: the name gives the addresses of its serving tasks (dnsrr)."""
    aliases: tuple[str, ...] = ()
    """Mean the same as the name."""

    @property
    def key(self) -> str:
        return f"discovery/{self.service_id}/{self.network_id}"


Item = TaskItem | NetworkItem | PeerItem | EndpointItem | ServiceItem | DiscoveryItem
