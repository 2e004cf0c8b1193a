"""TCP with mutual TLS: who may come in, and half-closed connections, with the real docker command where it is there."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from test_containers import world
from test_docker_cli import docker_version

from skep.api.server import make_app, serve_tcp
from skep.api.tls import server_context
from skep.errors import ConfigError
from skep.local.registry import free_port

BIG = bytes(range(256)) * 20_000


def authority(folder: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    return key, certificate(folder / "ca.pem", None, "ca", key, None)


def certificate(
    path: Path,
    key_path: Path | None,
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: tuple[ec.EllipticCurvePrivateKey, x509.Certificate] | None,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer, above = (key, subject) if issuer is None else (issuer[0], issuer[1].subject)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(above)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if issuer is None:
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = builder.add_extension(usage, critical=True)
    else:
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(both), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    made = builder.sign(signer, hashes.SHA256())
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    if key_path is not None:
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        key_path.write_bytes(pem)
    return made


class Served:
    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port

    def client_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        context.load_cert_chain(self.folder / "cert.pem", self.folder / "key.pem")
        return context

    async def docker(self, *words: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "DOCKER_HOST": f"tcp://localhost:{self.port}",
            "DOCKER_TLS_VERIFY": "1",
            "DOCKER_CERT_PATH": str(self.folder),
        }
        process = await asyncio.create_subprocess_exec(
            "docker", *words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        out, err = await process.communicate(stdin)
        assert process.returncode is not None
        return process.returncode, out, err


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[Served]:
    with tempfile.TemporaryDirectory(prefix=f"skt{os.getpid()}") as name:
        folder = Path(name)
        issuer = authority(folder)
        certificate(folder / "server.pem", folder / "server.key", "server", ec.generate_private_key(ec.SECP256R1()), issuer)
        certificate(folder / "cert.pem", folder / "key.pem", "client", ec.generate_private_key(ec.SECP256R1()), issuer)
        context = server_context(str(folder / "server.pem"), str(folder / "server.key"), str(folder / "ca.pem"))
        node, port, ready = await world(), free_port("127.0.0.1"), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            beside = [
                group.create_task(node.events.run()),
                group.create_task(node.engine.run()),
                group.create_task(serve_tcp(make_app(node), "127.0.0.1", port, context, ready=ready)),
            ]
            await ready.wait()
            try:
                yield Served(folder, port)
            finally:
                for task in beside:
                    task.cancel()


@pytest.mark.skipif(docker_version() < 26, reason="needs the docker command, 26 or newer")
def test_docker_exec_over_tls() -> None:
    async def run() -> None:
        async with asyncio.timeout(60), served() as at:
            assert await at.docker("exec", "c1", "hostname") == (0, b"5a11d67b2fb3\n", b"")
            assert await at.docker("exec", "c1", "sh") == (4, b"out\n", b"err\n")
            # the client half-closes after its input: all of it comes back, and the end comes too
            assert await at.docker("exec", "-i", "c1", "cat", stdin=BIG) == (0, BIG, b"")
            # input that nobody reads does not take the end away from the client
            assert (await at.docker("exec", "-i", "c1", "true", stdin=BIG))[0] == 0
            status, out, _ = await at.docker("logs", "c1")
            assert status == 0 and out == b"line1\n"

    asyncio.run(run())


def test_both_ways_end_one_by_one() -> None:
    """What a client sends after it has half-closed its TLS connection is nothing; what it gets is all."""

    async def run() -> None:
        async with asyncio.timeout(30), served() as at:
            reader, writer = await asyncio.open_connection("localhost", at.port, ssl=at.client_context())
            writer.write(b"GET /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"OK")
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    asyncio.run(run())


def test_nobody_comes_in_without_a_certificate_of_the_ca() -> None:
    async def run() -> None:
        async with asyncio.timeout(30), served() as at:
            strange = at.folder / "strange"
            strange.mkdir()
            issuer = authority(strange)
            certificate(strange / "cert.pem", strange / "key.pem", "x", ec.generate_private_key(ec.SECP256R1()), issuer)
            bare = ssl.create_default_context(cafile=str(at.folder / "ca.pem"))
            other = ssl.create_default_context(cafile=str(at.folder / "ca.pem"))
            other.load_cert_chain(strange / "cert.pem", strange / "key.pem")
            for context in (bare, other):
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    reader, writer = await asyncio.open_connection("localhost", at.port, ssl=context)
                    try:
                        writer.write(b"GET /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                        if not await reader.read():
                            raise ConnectionResetError
                    finally:
                        writer.transport.abort()

    asyncio.run(run())


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    assert shutil.which("true")
    with pytest.raises(ConfigError, match="--tlskey .*: no such file"):
        (tmp_path / "c").write_text("")
        server_context(str(tmp_path / "c"), str(tmp_path / "k"), str(tmp_path / "c"))
    (tmp_path / "k").write_text("")
    with pytest.raises(ConfigError, match="--tlscert .* and --tlskey"):
        server_context(str(tmp_path / "c"), str(tmp_path / "k"), str(tmp_path / "c"))
