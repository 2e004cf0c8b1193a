"""A certificate's life: what stands in it, when it is renewed, and what a crash leaves of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tls_world import CLOCK, Manager, greet, run, serving

from skep.agent.renewal import keep_renewed
from skep.clock import DAY, HOUR, SECOND
from skep.errors import ConfigError, SkepError, Unavailable
from skep.link.client import join
from skep.link.messages import Welcome
from skep.link.tls import Certificates, digest, new_key, parse_token, read_certificate, renewal_time
from skep.manager.ca import sign
from skep.manager.local import first_certificate, renew_own
from skep.model.cluster import Cluster
from skep.model.enums import Role
from skep.model.node import Node
from skep.model.spec import CAConfig, ClusterSpec
from skep.plan.ops import Change


def _key(directory: Path) -> list[str]:
    return [path.read_text() for path in directory.glob("n1-*/swarm-node.key")]


def test_a_renewal_gives_a_new_key_and_certificate_and_serves_new_connections(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(Manager(tmp_path)) as manager:
            certificates = manager.add("n1")
            client = manager.client(certificates)
            before = certificates.certificate()
            before_key = _key(tmp_path)
            await client.renew()
            after = certificates.certificate()
            assert _key(tmp_path) != before_key
            assert after.identity.serial != before.identity.serial
            assert after.identity.node_id == "n1" and after.identity.role == "swarm-worker"
            assert manager.store.get(Node, "n1").certificate.serial == after.identity.serial  # type: ignore[union-attr]
            channel, answer = await greet(client)
            assert isinstance(answer, Welcome)
            await channel.close()

    run(body())


def test_a_manager_gives_itself_its_certificates(tmp_path: Path) -> None:
    async def body() -> None:
        manager = Manager(tmp_path)
        certificates = Certificates(tmp_path / "own")
        first = first_certificate(certificates, manager.root, node_id="manager", cluster_id="cluster", now=CLOCK.now())
        assert first.serial == certificates.certificate().identity.serial
        manager.certificates = certificates
        manager.apply(Change(Node, "manager", {"role": Role.MANAGER}, "the first manager"))
        async with serving(manager):
            await renew_own(certificates, manager.authority)
            after = certificates.certificate()
            assert after.identity.serial != first.serial and after.identity.role == "swarm-manager"
            assert manager.store.get(Node, "manager").certificate.serial == after.identity.serial  # type: ignore[union-attr]
            joined = await join([manager.address], manager.token, Certificates(tmp_path / "n1"))
            assert manager.store.get(Node, joined.node_id) is not None

    run(body())


def test_certificates_are_renewed_between_half_and_four_fifths_of_their_life(tmp_path: Path) -> None:
    async def body() -> None:
        manager = Manager(tmp_path)
        certificates = manager.add("n1")
        read = certificates.certificate()
        times = {renewal_time(read, manager.rng.uniform) for _ in range(50)}
        life = read.not_after - read.not_before
        assert min(times) >= read.not_before + life * 0.5 and max(times) <= read.not_before + life * 0.8 and len(times) > 40

        class Fast:
            time = CLOCK.now()

            def now(self) -> int:
                return self.time

            async def sleep(self, ns: int) -> None:
                self.time += ns
                await asyncio.sleep(0)

        clock = Fast()
        tried: list[int] = []

        async def renew() -> None:
            tried.append(clock.now())
            if len(tried) < 4:
                raise Unavailable("nobody there")
            key, csr = new_key()
            pem, _ = sign(manager.root, csr, node_id="n1", role=Role.WORKER, cluster_id="cluster", now=clock.now())
            certificates.store(manager.root.cert, pem, key)

        renewed = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(keep_renewed(certificates, renew, clock, manager.rng, renewed.set))
            await renewed.wait()
            task.cancel()
        assert read.not_before + life * 0.5 <= tried[0] <= read.not_before + life * 0.8
        assert 2.5 * SECOND <= tried[1] - tried[0] <= 5 * SECOND and tried[3] - tried[2] <= 20 * SECOND

    run(body())


@pytest.mark.parametrize("done", ["key written", "certificate written"])
def test_a_crash_within_a_renewal_leaves_a_pair_that_fits(tmp_path: Path, done: str) -> None:
    manager = Manager(tmp_path)
    certificates = manager.issue("n1")
    directory = next(path for path in tmp_path.iterdir() if path.name.startswith("n1-"))
    key, csr = new_key()
    pem, _ = sign(manager.root, csr, node_id="n1", role=Role.WORKER, cluster_id="cluster", now=CLOCK.now())
    (directory / "swarm-node.key.new").write_text(key)
    if done == "certificate written":
        (directory / "swarm-node.crt").write_text(pem)
    Certificates(directory).client_context()
    assert (directory / "swarm-node.key").read_text() == key or done == "key written"
    assert certificates.there


def test_files_that_do_not_fit_are_one_clear_line(tmp_path: Path) -> None:
    manager = Manager(tmp_path)
    certificates = manager.issue("n1")
    directory = next(path for path in tmp_path.iterdir() if path.name.startswith("n1-"))
    (directory / "swarm-node.key").write_text(new_key()[0])
    with pytest.raises(ConfigError, match="do not fit together"):
        certificates.client_context()
    certificates.remove()
    with pytest.raises(ConfigError, match="swarm-node.crt cannot be read: No such file or directory"):
        certificates.certificate()


def test_what_stands_in_certificates_and_tokens(tmp_path: Path) -> None:
    from cryptography import x509

    manager = Manager(tmp_path)
    root = x509.load_pem_x509_certificate(manager.root.cert.encode())
    assert root.subject.rfc4514_string() == "CN=swarm-ca"
    assert (root.not_valid_after_utc - root.not_valid_before_utc).days == 20 * 365
    _, csr = new_key()
    now = CLOCK.now()
    pem, stored = sign(manager.root, csr, node_id="n1", role=Role.MANAGER, cluster_id="c", now=now)
    cert = x509.load_pem_x509_certificate(pem.encode())
    assert cert.subject.rfc4514_string() == "CN=n1,OU=swarm-manager,O=c"
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    assert names == ["n1", "swarm-manager", "swarm-ca"]
    read = read_certificate(pem, manager.root.cert)
    assert abs(read.not_before - (now - HOUR)) < 2 * SECOND and abs(read.not_after - (now + 90 * DAY)) < 2 * SECOND
    assert (stored.serial, stored.not_after, stored.issuer) == (read.identity.serial, read.not_after, read.issuer)
    short, _ = sign(manager.root, csr, node_id="n1", role=Role.WORKER, cluster_id="c", now=now, life=SECOND)
    assert abs(read_certificate(short).not_after - (now + HOUR)) < 2 * SECOND
    middle, secret = parse_token(manager.token)
    assert (len(middle), len(secret), middle) == (50, 25, digest(manager.root.cert))
    with pytest.raises(SkepError, match="not a P-256 request"):
        sign(manager.root, "nonsense", node_id="n1", role=Role.WORKER, cluster_id="c", now=now)


def test_the_life_of_certificates_is_the_clusters(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(Manager(tmp_path)) as manager:
            spec = ClusterSpec(name="default", ca_config=CAConfig(node_cert_expiry=30 * HOUR))
            manager.apply(Change(Cluster, "cluster", {"spec": spec}, "changed"))
            certificates = Certificates(tmp_path / "joiner")
            await join([manager.address], manager.token, certificates)
            assert abs(certificates.certificate().not_after - CLOCK.now() - 30 * HOUR) < 60 * SECOND

    run(body())
