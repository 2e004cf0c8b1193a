"""The cluster itself: one object, named `default`."""

from __future__ import annotations

from skep.model.base import Object, Record
from skep.model.spec import ClusterSpec


class JoinTokens(Record, frozen=True, kw_only=True):
    worker: str = ""
    manager: str = ""


class RootCA(Record, frozen=True, kw_only=True):
    """The cluster's certificate authority. The key stays in the store (mode 0600) and never leaves the managers."""

    cert: str = ""
    """PEM."""
    key: str = ""
    """PEM, PKCS 8."""
    digest: str = ""
    """SHA-256 of the certificate's PEM, as base 36 in 50 digits: the middle part of a join token."""


class Revoked(Record, frozen=True, kw_only=True):
    serial: str
    until: int


class Cluster(Object, frozen=True, kw_only=True):
    spec: ClusterSpec
    root_ca: RootCA = RootCA()
    tokens: JoinTokens = JoinTokens()
    default_addr_pool: tuple[str, ...] = ()
    """Empty: 10.0.0.0/8."""
    subnet_size: int = 24
    data_path_port: int = 4789
    revoked: tuple[Revoked, ...] = ()
    """Certificates of removed nodes, until they expire."""
    subnet_cursor: int = 0
    """How many subnets were given in turn (allocator)."""
    vni_cursor: int = 0
    """The last VNI given (allocator)."""
    port_cursor: dict[str, int] = {}
    """Per protocol the last dynamic port given (allocator)."""
    node_cursor: int = 0
    """The last node index given (allocator)."""
