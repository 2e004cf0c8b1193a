"""The cluster's certificate authority: root, join tokens, nodes' certificates, revocation. Everything it knows is the Cluster and Node
objects.

ECDSA P-256, as SwarmKit: root `swarm-ca` for 20 years; a node's certificate has its id as CN, its role as OU, the cluster's id as O. It is
the only place that creates nodes (the first manager aside). See docs/link.md.
"""

from __future__ import annotations

import hmac
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from skep.clock import DAY, HOUR, SECOND, Clock
from skep.errors import Invalid, NotImplementedHere, SkepError
from skep.ids import Random, new_id, new_secret
from skep.link.channel import Identity, Refused
from skep.link.tls import ROLE_NAMES, TOKEN_PREFIX, digest, parse_token, read_certificate
from skep.model.cluster import Cluster, JoinTokens, RootCA
from skep.model.defaults import NODE_CERT_EXPIRY
from skep.model.enums import Availability, Membership, Role
from skep.model.node import Certificate, Node
from skep.model.spec import NodeSpec
from skep.plan.ops import Change, Create
from skep.store.base import Store

ROOT_NAME = "swarm-ca"
ROOT_LIFE = 20 * 365 * DAY
BACKDATED = HOUR
"""Certificates begin in the past: clocks differ."""
SHORTEST = HOUR
BY = "ca"


def new_root(now: int) -> RootCA:
    """A new root. Its key takes the system's randomness: it is a secret."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ROOT_NAME)])
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_date(now - BACKDATED))
        .not_valid_after(_date(now + ROOT_LIFE))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(cert_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = cert.public_bytes(serialization.Encoding.PEM).decode()
    key_pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return RootCA(cert=pem, key=key_pem.decode(), digest=digest(pem))


def new_token(root: RootCA, rng: Random) -> str:
    """A join token for this root with a new secret: `SWMTKN-1-<50 digits>-<25 digits>`."""
    return f"{TOKEN_PREFIX}-{root.digest}-{new_secret(rng)}"


def new_tokens(root: RootCA, rng: Random) -> JoinTokens:
    return JoinTokens(worker=new_token(root, rng), manager=new_token(root, rng))


def sign(
    root: RootCA, csr_pem: str, *, node_id: str, role: Role, cluster_id: str, now: int, life: int = NODE_CERT_EXPIRY
) -> tuple[str, Certificate]:
    """A node's certificate (PEM, and the form the store keeps). Only the request's key is taken; raises Invalid for a bad request."""
    try:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        public = csr.public_key()
        good = csr.is_signature_valid and isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1)
    except (ValueError, TypeError, UnicodeEncodeError, UnsupportedAlgorithm):
        good = False
    if not good:
        raise Invalid("the certificate request is not a P-256 request in PEM that signs itself", rpc="InvalidArgument")
    issuer = x509.load_pem_x509_certificate(root.cert.encode())
    key = serialization.load_pem_private_key(root.key.encode(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    role_name = ROLE_NAMES[role]
    names = [node_id, role_name] + ([ROOT_NAME] if role is Role.MANAGER else [])
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH] + ([ExtendedKeyUsageOID.SERVER_AUTH] if role is Role.MANAGER else [])
    until = min(now + max(life or NODE_CERT_EXPIRY, SHORTEST), int(issuer.not_valid_after_utc.timestamp()) * SECOND)
    cert = (
        x509.CertificateBuilder()
        .subject_name(
            x509.Name(
                [
                    x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster_id),
                    x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role_name),
                    x509.NameAttribute(NameOID.COMMON_NAME, node_id),
                ]
            )
        )
        .issuer_name(issuer.subject)
        .public_key(csr.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_date(now - BACKDATED))
        .not_valid_after(_date(until))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(cert_sign=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(csr.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = cert.public_bytes(serialization.Encoding.PEM).decode()
    read = read_certificate(pem, root.cert)
    return pem, Certificate(role=role, cn=node_id, serial=read.identity.serial, not_after=read.not_after, issuer=read.issuer)


class Authority:
    """The CA of a running manager."""

    def __init__(self, store: Store, clock: Clock, rng: Random) -> None:
        self._store = store
        self._clock = clock
        self._rng = rng

    def cluster(self) -> Cluster:
        cluster = next(iter(self._store.all(Cluster)), None)
        if cluster is None:
            raise SkepError("the cluster has no state yet", rpc="Unavailable")
        return cluster

    async def join(self, token: str, csr_pem: str, *, availability: str = "") -> tuple[str, str]:
        """Take in a new node: (its id, its certificate). The token's role is the node's. Durable when it returns."""
        cluster = self.cluster()
        role = self._role(cluster, token)
        if role is Role.MANAGER:
            raise NotImplementedHere(
                "a second manager cannot join yet: skep keeps its state on one manager until it has a store for several"
            )
        if availability not in ("", *Availability):
            raise Invalid(f"invalid Availability: {availability[:64]!r}", rpc="InvalidArgument")
        node_id = new_id(self._rng)
        pem, certificate = self._sign(cluster, csr_pem, node_id, role)
        node = Node(
            id=node_id,
            spec=NodeSpec(role=role.value, availability=availability or "active"),
            role=role,
            membership=Membership.ACCEPTED,
            certificate=certificate,
        )
        await self._store.commit([Create(node, f"joined with the {role.value} token")], by=BY)
        return node_id, pem

    async def renew(self, identity: Identity, csr_pem: str) -> str:
        """A new certificate for a node that has a good one; its role is the one the store has."""
        node = self.admit(identity)
        pem, certificate = self._sign(self.cluster(), csr_pem, node.id, node.role)
        await self._store.commit([Change(Node, node.id, {"certificate": certificate}, "the node renewed its certificate")], by=BY)
        return pem

    def admit(self, identity: Identity) -> Node:
        """The node this certificate belongs to. Raises Refused: revoked (then `removed`), another cluster's, or of no node."""
        cluster = self.cluster()
        if any(entry.serial == identity.serial for entry in cluster.revoked):
            raise Refused("this node was removed from the cluster: its certificate is revoked", removed=True, rpc="PermissionDenied")
        node = self._store.get(Node, identity.node_id)
        if identity.cluster_id != cluster.id or node is None or node.membership is not Membership.ACCEPTED:
            raise Refused(f"node {identity.node_id} is not part of this cluster", rpc="NotFound")
        return node

    def _role(self, cluster: Cluster, token: str) -> Role:
        """Both tokens are compared, each in constant time."""
        parse_token(token)
        manager = hmac.compare_digest(token, cluster.tokens.manager)
        worker = hmac.compare_digest(token, cluster.tokens.worker)
        if not (manager or worker):
            raise Invalid("A valid join token is necessary to join this cluster", rpc="InvalidArgument")
        return Role.MANAGER if manager else Role.WORKER

    def _sign(self, cluster: Cluster, csr_pem: str, node_id: str, role: Role) -> tuple[str, Certificate]:
        return sign(
            cluster.root_ca,
            csr_pem,
            node_id=node_id,
            role=role,
            cluster_id=cluster.id,
            now=self._clock.now(),
            life=cluster.spec.ca_config.node_cert_expiry,
        )


def _date(ns: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(seconds=ns // SECOND)


def _usage(*, cert_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=cert_sign,
        crl_sign=cert_sign,
        encipher_only=False,
        decipher_only=False,
    )
