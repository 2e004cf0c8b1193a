"""The cluster as `GET /swarm` and `GET /info` show it; keys and secrets of its CA never."""

from __future__ import annotations

import base64
from functools import lru_cache
from typing import Any

import msgspec

from skep.api.context import Cluster, SwarmInfo
from skep.api.wire.services import head
from skep.errors import SkepError
from skep.model.cluster import Cluster as ClusterObject
from skep.model.enums import Role
from skep.model.node import Node, TLSInfo
from skep.model.spec import ClusterSpec


@lru_cache(maxsize=8)
def tls_info(pem: str) -> TLSInfo:
    """What clients compare to see whether a node has the cluster's root: the certificate, its subject and public key as DER."""
    if not pem:
        return TLSInfo()
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    certificate = x509.load_pem_x509_certificate(pem.encode())
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return TLSInfo(
        trust_root=pem,
        cert_issuer_subject=base64.b64encode(certificate.subject.public_bytes()).decode(),
        cert_issuer_public_key=base64.b64encode(key).decode(),
    )


def _shown_spec(spec: ClusterSpec) -> ClusterSpec:
    """Without the signing key, should one ever have been given."""
    ca = spec.ca_config
    if ca.signing_ca_key:
        return msgspec.structs.replace(spec, ca_config=msgspec.structs.replace(ca, signing_ca_key=""))
    return spec


def cluster(object: ClusterObject, *, tokens: bool) -> dict[str, Any]:
    shown = head(object)
    shown["Spec"] = _shown_spec(object.spec)
    shown["TLSInfo"] = tls_info(object.root_ca.cert)
    shown["RootRotationInProgress"] = False
    shown["DefaultAddrPool"] = object.default_addr_pool or None
    shown["SubnetSize"] = object.subnet_size
    shown["DataPathPort"] = object.data_path_port
    if tokens:
        shown["JoinTokens"] = {"Worker": object.tokens.worker, "Manager": object.tokens.manager}
    return shown


def swarm_info(info: SwarmInfo, control: Cluster | None) -> dict[str, Any]:
    """`Swarm` of GET /info."""
    shown: dict[str, Any] = {
        "NodeID": info.node_id,
        "NodeAddr": info.node_addr,
        "LocalNodeState": info.state,
        "ControlAvailable": info.control_available,
        "Error": info.error,
        "RemoteManagers": [{"NodeID": id, "Addr": addr} for id, addr in info.managers] or None,
    }
    if info.control_available and control is not None:
        try:
            nodes = control.view.all(Node)
            shown["Nodes"] = len(nodes)
            shown["Managers"] = sum(1 for n in nodes if n.role is Role.MANAGER or n.id == control.node_id)
            shown["Cluster"] = cluster(control.cluster(), tokens=False)
        except SkepError as error:
            shown["Error"] = error.message
    return shown
