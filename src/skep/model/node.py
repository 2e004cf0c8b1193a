"""A node: a host that takes part in the cluster."""

from __future__ import annotations

from skep.model.base import Object, Record, Spec, always
from skep.model.enums import Availability, Membership, NodeState, Role
from skep.model.spec import GenericResource, NodeSpec, Platform


class Plugin(Spec, frozen=True, kw_only=True):
    type: str = ""
    name: str = ""


class EngineDescription(Spec, frozen=True, kw_only=True):
    engine_version: str = ""
    labels: dict[str, str] | None = None
    plugins: tuple[Plugin, ...] | None = None


class Resources(Spec, frozen=True, kw_only=True):
    nano_cpus: int = 0
    memory_bytes: int = 0
    generic_resources: tuple[GenericResource, ...] | None = None


class TLSInfo(Spec, frozen=True, kw_only=True):
    trust_root: str = ""
    """PEM."""
    cert_issuer_subject: str = ""
    """Base64 of the DER."""
    cert_issuer_public_key: str = ""
    """Base64 of the DER."""


class NodeDescription(Spec, frozen=True, kw_only=True):
    """What the node says of itself when its session begins. Docker's JSON form."""

    hostname: str = ""
    platform: Platform = always(Platform())
    resources: Resources = always(Resources())
    engine: EngineDescription = always(EngineDescription())
    tls_info: TLSInfo = always(TLSInfo())
    underlay_mtu: int = 0
    """Of the interface that has its data path address; 0: not said. Ours, not shown by the API: other nodes' routes follow from it."""


class NodeStatus(Record, frozen=True, kw_only=True):
    state: NodeState = NodeState.UNKNOWN
    message: str = ""
    addr: str = ""
    since: int = 0
    """When the state was last changed: orphaning is computed from it."""
    left: bool = False
    """Down for good: it said that it leaves the cluster. It comes back as another node, if at all."""


class Certificate(Record, frozen=True, kw_only=True):
    """What the CA gave the node last. The key never leaves the node."""

    role: Role = Role.WORKER
    cn: str = ""
    serial: str = ""
    """Hex; a removed node's serial goes to the cluster's blacklist until `not_after`."""
    not_after: int = 0
    issuer: str = ""
    """SHA-256 of the issuing root's DER, hex."""


class Node(Object, frozen=True, kw_only=True):
    spec: NodeSpec
    description: NodeDescription | None = None
    """None until its first session."""
    status: NodeStatus = NodeStatus()
    role: Role = Role.WORKER
    """The role in force; `spec.role` is the one desired."""
    membership: Membership = Membership.ACCEPTED
    certificate: Certificate | None = None
    manager_addr: str = ""
    """`ip:port` of its manager API; empty for workers."""
    index: int = 0
    """16 bits, given by the allocator, from 1: link addresses and port ranges of the data path follow from it."""
    applied_version: int = 0
    """The assignment snapshot this node has applied last (from heartbeats, written lazily)."""

    @property
    def hostname(self) -> str:
        return self.description.hostname if self.description else ""

    @property
    def availability(self) -> Availability:
        return Availability(self.spec.availability or "active")

    @property
    def ready(self) -> bool:
        return self.status.state is NodeState.READY
