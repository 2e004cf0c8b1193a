"""A node's certificate: its files, its keys and requests, and the TLS contexts made of them; and join tokens, which name a root by its
digest.

Files under `<data>/certificates`, named as SwarmKit's. TLS 1.3 alone; a manager proves to be one by the name `swarm-manager` in its
certificate, not by an address. A join token carries the digest of the cluster's root, so that a node that joins knows whom it talks to
before it says anything secret. See docs/link.md.
"""

from __future__ import annotations

import hashlib
import os
import ssl
import weakref
from collections.abc import Callable
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from skep.clock import SECOND
from skep.errors import ConfigError, SkepError
from skep.ids import DIGITS, base36
from skep.link.channel import Identity
from skep.model.enums import Role

MANAGER_NAME = "swarm-manager"
WORKER_NAME = "swarm-worker"
ROLE_NAMES = {Role.MANAGER: MANAGER_NAME, Role.WORKER: WORKER_NAME}
ROOT_FILE, CERT_FILE, KEY_FILE = "swarm-root-ca.crt", "swarm-node.crt", "swarm-node.key"
TOKEN_PREFIX = "SWMTKN-1"


def digest(root_pem: str) -> str:
    """The digest of a root that its join tokens carry: SHA-256 of the PEM as 50 digits of base 36."""
    return base36(int.from_bytes(hashlib.sha256(root_pem.encode()).digest(), "big"), 50)


def parse_token(token: str) -> tuple[str, str]:
    """(digest of the root, secret). Raises `invalid join token` (HTTP 500, as Docker has it)."""
    parts = token.split("-")
    if len(parts) != 4 or "-".join(parts[:2]) != TOKEN_PREFIX or (len(parts[2]), len(parts[3])) != (50, 25):
        raise SkepError("invalid join token")
    if not all(letter in DIGITS for letter in parts[2] + parts[3]):
        raise SkepError("invalid join token")
    return parts[2], parts[3]


class NodeCertificate(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in a node's certificate. Times in ns since 1970, `serial` lower-case hex."""

    identity: Identity
    not_before: int
    not_after: int
    issuer: str
    """SHA-256 of the issuing root's DER, hex; empty when it is not known."""


def read_certificate(pem: str, root_pem: str = "") -> NodeCertificate:
    """Raises ConfigError for what is no node certificate."""
    try:
        cert = x509.load_pem_x509_certificate(pem.encode())
        values = [
            cert.subject.get_attributes_for_oid(oid)
            for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME, NameOID.ORGANIZATION_NAME)
        ]
        name, role, cluster = (str(found[0].value) if found else "" for found in values)
        issuer = hashlib.sha256(der(root_pem)).hexdigest() if root_pem else ""
    except ValueError as error:
        raise ConfigError(f"not a certificate: {error}") from None
    return NodeCertificate(
        identity=Identity(node_id=name, role=role, cluster_id=cluster, serial=f"{cert.serial_number:x}"),
        not_before=int(cert.not_valid_before_utc.timestamp()) * SECOND,
        not_after=int(cert.not_valid_after_utc.timestamp()) * SECOND,
        issuer=issuer,
    )


def der(pem: str) -> bytes:
    return x509.load_pem_x509_certificate(pem.encode()).public_bytes(serialization.Encoding.DER)


def peer_identity(connection: ssl.SSLObject | ssl.SSLSocket | None) -> Identity | None:
    """Who presented a certificate; None: nobody did. TLS has checked it."""
    cert = connection.getpeercert() if connection is not None else None
    if not cert:
        return None
    subject: dict[str, str] = dict(pair for pairs in cert["subject"] for pair in pairs)  # type: ignore[misc]
    return Identity(
        node_id=subject.get("commonName", ""),
        role=subject.get("organizationalUnitName", ""),
        cluster_id=subject.get("organizationName", ""),
        serial=f"{int(str(cert['serialNumber']), 16):x}",
    )


def new_key() -> tuple[str, str]:
    """A new P-256 key and a request signed with it, as PEM. The subject is the CA's to give. The randomness is the system's: a secret."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem.decode(), csr.public_bytes(serialization.Encoding.PEM).decode()


def issued_by(pem: str, root_pem: str) -> bool:
    try:
        x509.load_pem_x509_certificate(pem.encode()).verify_directly_issued_by(x509.load_pem_x509_certificate(root_pem.encode()))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def joining_context(root_pem: str = "") -> ssl.SSLContext:
    """For a node without a certificate. Without a root nothing is verified: only to fetch the root, which the token's digest proves."""
    context = _client_context()
    if root_pem:
        context.load_verify_locations(cadata=root_pem)
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


class Certificates:
    """The certificate files of one node. A renewal replaces key and certificate so that a crash at any point leaves a pair that fits."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._contexts: weakref.WeakSet[ssl.SSLContext] = weakref.WeakSet()

    @property
    def there(self) -> bool:
        return all((self._directory / name).exists() for name in (ROOT_FILE, CERT_FILE))

    def store(self, root_pem: str, cert_pem: str, key_pem: str) -> None:
        """Write all three; contexts made before serve new connections with the new certificate."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write(KEY_FILE + ".new", key_pem, 0o600)
        self._write(ROOT_FILE, root_pem, 0o644)
        self._write(CERT_FILE, cert_pem, 0o644)
        os.replace(self._directory / (KEY_FILE + ".new"), self._directory / KEY_FILE)
        for context in list(self._contexts):
            self._load(context)

    def remove(self) -> None:
        """Files, and contexts: what comes next is another cluster's."""
        self._contexts.clear()
        for name in (ROOT_FILE, CERT_FILE, KEY_FILE, KEY_FILE + ".new"):
            (self._directory / name).unlink(missing_ok=True)

    def root(self) -> str:
        return self._read(ROOT_FILE)

    def certificate(self) -> NodeCertificate:
        """Raises ConfigError when the files are missing or unreadable."""
        return read_certificate(self._read(CERT_FILE), self.root())

    def server_context(self) -> ssl.SSLContext:
        """For port 2377: a client certificate is optional here, and required by path."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_OPTIONAL
        context.num_tickets = 0  # a resumed session would skip the check of the certificate's dates
        return self._fill(context)

    def client_context(self) -> ssl.SSLContext:
        """Connect with `server_hostname=MANAGER_NAME`."""
        return self._fill(_client_context())

    def _fill(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.load_verify_locations(cadata=self.root())
        self._load(context)
        self._contexts.add(context)
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        cert = self._directory / CERT_FILE
        try:
            context.load_cert_chain(cert, self._directory / KEY_FILE)
        except (ssl.SSLError, FileNotFoundError):
            new = self._directory / (KEY_FILE + ".new")
            if not new.exists():
                raise ConfigError(f"{cert} and its key do not fit together; leave the swarm and join it again") from None
            context.load_cert_chain(cert, new)
            os.replace(new, self._directory / KEY_FILE)

    def _read(self, name: str) -> str:
        try:
            return (self._directory / name).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self._directory / name} cannot be read: {getattr(error, 'strerror', None) or error}") from None

    def _write(self, name: str, text: str, mode: int) -> None:
        """All of it or nothing, also through a power failure."""
        new = self._directory / (name + ".tmp")
        file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            data = memoryview(text.encode())
            while data:
                data = data[os.write(file, data) :]
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(new, self._directory / name)
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def renewal_time(cert: NodeCertificate, uniform: Callable[[float, float], float]) -> int:
    """When to renew: at random between 50 and 80 % of its life, so that nodes that joined together do not come together."""
    life = cert.not_after - cert.not_before
    return cert.not_before + int(life * uniform(0.5, 0.8))
