"""Port 2377 with real TLS sockets: who gets in, as what, and what the others are told."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import aiohttp
import pytest
from link_world import StillClock
from tls_world import CLOCK, EXPIRED, Manager, greet, run, serving, until

from skep.clock import DAY, SECOND
from skep.errors import SkepError, Unavailable
from skep.link.channel import Closed, Refused, decode_from_manager, encode
from skep.link.client import Client, RootMismatch, join
from skep.link.messages import Closing, Report, Welcome
from skep.link.socket import SmallTls
from skep.link.tls import MANAGER_NAME, Certificates, joining_context
from skep.manager.ca import new_root, new_tokens
from skep.model.cluster import Cluster, Revoked
from skep.model.enums import Role
from skep.model.node import Node
from skep.plan.ops import Change, Delete
from skep.testing.fake_tasks import FakeTasks

# joining


def test_a_node_joins_with_the_token_and_gets_in(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(Manager(tmp_path)) as manager:
            certificates = Certificates(tmp_path / "joiner")
            joined = await join([manager.address], manager.token, certificates, availability="drain")
            read = certificates.certificate()
            assert read.identity.node_id == joined.node_id and len(joined.node_id) == 25
            assert (read.identity.role, read.identity.cluster_id, joined.cluster_id) == ("swarm-worker", "cluster", "cluster")
            stored = manager.store.get(Node, joined.node_id)
            assert stored is not None and stored.certificate is not None
            assert (stored.certificate.serial, stored.spec.availability, stored.spec.role) == (read.identity.serial, "drain", "worker")
            assert manager.store.durable_version == manager.store.version
            assert joined.managers == (manager.address,)
            channel, answer = await greet(manager.client(certificates))
            assert isinstance(answer, Welcome) and answer.node_id == joined.node_id
            await channel.close()
            assert (tmp_path / "joiner" / "swarm-node.key").stat().st_mode & 0o777 == 0o600

    run(body())


def test_a_malformed_token_is_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    for token in ("", "foobar", "SWMTKN-1-a-b", "SWMTKN-2-" + "0" * 50 + "-" + "0" * 25, "SWMTKN-1-" + "0" * 50 + "-" + "A" * 25):
        with pytest.raises(SkepError) as caught:
            run(join(["127.0.0.1:1"], token, Certificates(tmp_path / "none")))
        assert (caught.value.message, caught.value.status) == ("invalid join token", 500)


def test_a_wrong_secret_joins_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(Manager(tmp_path)) as manager:
            with pytest.raises(SkepError) as caught:
                await join(
                    [manager.address], manager.token[:-1] + ("0" if manager.token[-1] != "0" else "1"), Certificates(tmp_path / "none")
                )
            text = "rpc error: code = InvalidArgument desc = A valid join token is necessary to join this cluster"
            assert (caught.value.message, caught.value.status) == (text, 500)
            assert [node.id for node in manager.store.all(Node)] == ["manager"]
            assert not (tmp_path / "none").exists()

    run(body())


def test_a_token_of_another_cluster_is_noticed_before_the_secret_is_sent(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(Manager(tmp_path)) as manager:
            calls = []
            gate_join = manager.gate.join

            async def counted(call, peer):  # type: ignore[no-untyped-def]
                calls.append(call)
                return await gate_join(call, peer)

            manager.gate.join = counted  # type: ignore[method-assign]
            other = new_root(CLOCK.now())
            with pytest.raises(RootMismatch, match="remote CA does not match fingerprint"):
                await join([manager.address], new_tokens(other, manager.rng).worker, Certificates(tmp_path / "none"))
            assert calls == [] and not (tmp_path / "none").exists()

    run(body())


def test_a_rotated_token_no_longer_joins(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(Manager(tmp_path)) as manager:
            manager.apply(Change(Cluster, "cluster", {"tokens": new_tokens(manager.root, manager.rng)}, "rotated"))
            with pytest.raises(SkepError, match="A valid join token is necessary"):
                await join([manager.address], manager.token, Certificates(tmp_path / "none"))

    run(body())


def test_a_second_manager_is_refused_with_one_sentence(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(Manager(tmp_path)) as manager:
            with pytest.raises(SkepError, match="a second manager cannot join yet"):
                await join([manager.address], manager.authority.cluster().tokens.manager, Certificates(tmp_path / "none"))

    run(body())


def test_an_unreachable_manager_is_named_and_the_next_one_is_asked(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(Manager(tmp_path)) as manager:
            with pytest.raises(Unavailable, match="manager 127.0.0.1:1: .*[Cc]onnect"):
                await join(["127.0.0.1:1"], manager.token, Certificates(tmp_path / "none"))
            joined = await join(["127.0.0.1:1", manager.address], manager.token, Certificates(tmp_path / "n1"))
            assert manager.store.get(Node, joined.node_id) is not None

    run(body())


def test_attempts_to_join_are_limited(tmp_path: Path) -> None:
    async def body() -> None:
        clock = StillClock()
        async with serving(Manager(tmp_path), clock) as manager:
            wrong = manager.token[:-25] + "0" * 25

            async def attempt() -> str:
                with pytest.raises(SkepError) as caught:
                    await join([manager.address], wrong, Certificates(tmp_path / "none"))
                return caught.value.message

            assert all("A valid join token" in text for text in [await attempt() for _ in range(20)])
            assert "too many attempts to join from this address" in await attempt()
            clock.time += SECOND
            assert ["too many" in text for text in [await attempt() for _ in range(3)]] == [False, False, True]

    run(body())


# what a certificate is worth


def test_without_a_certificate_there_is_no_session_no_logs_and_no_renewal(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(Manager(tmp_path)) as manager, aiohttp.ClientSession() as http:
            context = joining_context(manager.root.cert)
            for method, path in (("GET", "/session"), ("GET", "/logs/x"), ("POST", "/renew")):
                async with http.request(
                    method, f"https://{manager.address}{path}", ssl=context, server_hostname=MANAGER_NAME, json={}
                ) as answer:
                    assert answer.status == 401, path
                    assert (await answer.json())["message"] == "a node's certificate is needed here"

    run(body())


def test_a_certificate_of_another_cluster_is_refused(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(Manager(tmp_path)) as manager:
            manager.add("n1")
            stranger = manager.issue("n1", root=new_root(CLOCK.now()))
            with pytest.raises(SkepError, match="this node belongs to another cluster|refuses this node's certificate"):
                await greet(manager.client(stranger))
            assert manager.sessions.dispatcher.sessions == {}

    run(body())


def test_a_manager_of_another_cluster_is_not_talked_to(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(Manager(tmp_path)) as manager, serving(Manager(tmp_path)) as other:
            certificates = manager.add("n1")
            with pytest.raises(Refused, match="its certificate is not one of this cluster's managers"):
                await other.client(certificates).session()

    run(body())


def test_a_worker_cannot_pose_as_a_manager(tmp_path: Path) -> None:
    async def body() -> None:
        manager = Manager(tmp_path)
        good = manager.add("n1")
        manager.certificates = manager.issue("evil", Role.WORKER)
        async with serving(manager):
            with pytest.raises(Refused, match="its certificate is not one of this cluster's managers"):
                await manager.client(good).session()

    run(body())


def test_an_expired_certificate_is_named_by_the_node_and_refused_by_the_manager(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(Manager(tmp_path)) as manager:
            manager.add("n1")
            expired = manager.issue("n1", now=EXPIRED, life=DAY)
            with pytest.raises(Refused, match="this node's certificate has expired"):
                await manager.client(expired).session()

            class Backward:
                def now(self) -> int:
                    return EXPIRED

            client = Client(expired, lambda: [manager.address], Backward(), manager.rng)  # type: ignore[arg-type]
            with pytest.raises(SkepError, match="has expired"):
                await greet(client)
            assert manager.sessions.dispatcher.sessions == {}

    run(body())


def test_a_revoked_certificate_is_refused_and_the_node_told_it_was_removed(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(Manager(tmp_path)) as manager:
            certificates = manager.add("n1")
            read = certificates.certificate()
            revoked = Revoked(serial=read.identity.serial, until=read.not_after)
            manager.apply(Change(Cluster, "cluster", {"revoked": (revoked,)}, "revoked"), Delete(Node, "n1", "removed"))
            _, answer = await greet(manager.client(certificates))
            assert isinstance(answer, Closing) and answer.removed
            assert "its certificate is revoked" in answer.reason
            with pytest.raises(Refused, match="revoked") as caught:
                await manager.client(certificates).renew()
            assert caught.value.removed

    run(body())


def test_a_good_certificate_of_no_node_is_refused_but_not_as_removed(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(Manager(tmp_path)) as manager:
            _, answer = await greet(manager.client(manager.issue("ghost")))
            assert isinstance(answer, Closing) and not answer.removed
            assert "node ghost is not part of this cluster" in answer.reason

    run(body())


def test_a_node_is_who_its_certificate_says(tmp_path: Path) -> None:
    """A report on another node's task ends the session, whoever sends it."""

    async def body() -> None:
        from link_world import status, task

        from skep.model.enums import TaskState
        from skep.model.task import Task
        from skep.plan.ops import Create

        async with serving(Manager(tmp_path)) as manager:
            one = manager.add("n1")
            manager.add("n2")
            await manager.store.commit([Create(task("t2", "n2"), "for the test")])
            channel, _ = await greet(manager.client(one))
            await channel.send(encode(Report(sequence=1, statuses={"t2": status(TaskState.FAILED)})))
            answers = []
            with pytest.raises(Closed):
                while True:
                    answers.append(decode_from_manager(await channel.receive()))
            assert "PermissionDenied" in answers[-1].reason  # type: ignore[union-attr]
            assert manager.store.get(Task, "t2").state is TaskState.ASSIGNED  # type: ignore[union-attr]
            await channel.close()

    run(body())


def test_a_removed_node_hears_it_and_stops(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(Manager(tmp_path)) as manager, asyncio.TaskGroup() as group:
            agent = manager.agent(manager.add("n1"), FakeTasks(CLOCK))
            running = group.create_task(agent.run())
            await until(lambda: agent.session.welcomed)
            manager.apply(Delete(Node, "n1", "removed"))
            async with asyncio.timeout(30):
                await running
            assert agent.session.removed and "removed from the cluster" in agent.session.reason

    run(body())


# bounds


def test_connections_that_show_nothing_are_counted_and_cut_off(tmp_path: Path) -> None:
    async def body() -> None:
        manager = Manager(tmp_path)
        manager.door.per_address = 3
        manager.door.seconds = 1
        async with serving(manager):
            host, port = manager.address.split(":")
            idle = [await asyncio.open_connection(host, int(port)) for _ in range(3)]
            reader, writer = await asyncio.open_connection(host, int(port))
            assert await _ended(reader)
            writer.close()
            for reader, writer in idle:
                assert await _ended(reader)
                writer.close()
            channel, answer = await greet(manager.client(manager.add("n1")))
            assert isinstance(answer, Welcome)
            await asyncio.sleep(0)
            assert not manager.door._waiting
            await channel.close()

    run(body())


async def _ended(reader: asyncio.StreamReader) -> bool:
    async with asyncio.timeout(30):
        try:
            return await reader.read(1) == b""
        except ConnectionResetError:
            return True


def test_frames_and_bodies_are_bounded_and_nonsense_is_refused(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(Manager(tmp_path)) as manager:
            certificates = manager.add("n1")
            for frame in (b"\x00" * ((8 << 20) + 1), b"nonsense"):
                channel = await manager.client(certificates).session()
                with pytest.raises(Closed):
                    await channel.send(frame)
                    await channel.receive()
                await channel.close()
            async with aiohttp.ClientSession() as http:
                context = joining_context(manager.root.cert)
                url = f"https://{manager.address}/join"
                async with http.post(url, ssl=context, server_hostname=MANAGER_NAME, data=b"x" * (65 << 10)) as answer:
                    assert answer.status == 413
                async with http.post(url, ssl=context, server_hostname=MANAGER_NAME, data=b"{}") as answer:
                    assert answer.status == 400 and "cannot be read" in (await answer.json())["message"]

    run(body())


def test_tls_before_1_3_is_refused(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(Manager(tmp_path)) as manager:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            host, port = manager.address.split(":")
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection(host, int(port), ssl=context)

    run(body())


def test_a_connection_has_small_buffers(tmp_path: Path) -> None:
    """Holds `SmallTls` against this Python: the attribute it sets must be the one that sizes the buffers."""

    async def body() -> None:
        async with serving(Manager(tmp_path)) as manager:
            protocol = SmallTls(asyncio.Protocol(), manager.certificates.server_context(), manager.door)
            assert len(protocol._ssl_buffer) == 16384  # type: ignore[attr-defined]
            protocol._get_app_transport()._closed = True  # type: ignore[attr-defined]

    run(body())
