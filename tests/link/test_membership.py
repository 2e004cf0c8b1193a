"""A node's way into a cluster: what it is told, what it says of itself, what is left on disk, and what a failure costs."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
from member_world import a_cluster, free_port, hosts, mode, outcome, refused, run
from tls_world import until

from skep.api.context import InitRequest
from skep.clock import MINUTE
from skep.errors import Invalid, SkepError, Unavailable
from skep.link.client import RootMismatch
from skep.membership import ALREADY, GIVEN_UP, NOT_MEMBER, TIMED_OUT, WORKER
from skep.model.enums import NodeState
from skep.model.node import Node
from skep.model.spec import CAConfig, ClusterSpec

READY, DOWN = NodeState.READY, NodeState.DOWN


# init


def test_init_makes_this_node_an_active_manager(tmp_path: Path) -> None:
    async def body() -> None:
        async with hosts(tmp_path, "m") as (_, [m]):
            assert m.membership.info().state == "inactive"
            assert refused(m) == NOT_MEMBER
            port = free_port()
            node_id = await m.init(port)
            info = m.membership.info()
            assert (info.state, info.control_available, info.error) == ("active", True, "")
            assert (info.node_id, info.node_addr) == (node_id, "127.0.0.1")
            assert info.managers == ((node_id, f"127.0.0.1:{port}"),)
            assert m.node(node_id).status.state is READY
            with pytest.raises(Unavailable, match="already part of a swarm"):
                await m.init(free_port())
            with pytest.raises(Unavailable) as caught:
                await m.join(port, m.token)
            assert caught.value.text == ALREADY

    run(body)


def test_what_a_cluster_keeps_on_disk_is_for_root_alone(tmp_path: Path) -> None:
    async def body() -> None:
        async with hosts(tmp_path, "m", "w") as (_, [m, w]):
            await a_cluster(m, w)
            for host in (m, w):
                assert mode(host.root) == mode(host.root / "certificates") == 0o700, host.name
                for path in (host.root / "node.json", host.root / "agent.state", host.root / "certificates" / "swarm-node.key"):
                    assert mode(path) == 0o600, path
            for path in m.root.glob("state.db*"):
                assert mode(path) == 0o600, path

    run(body)


def test_a_taken_port_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    async def body() -> None:
        async with hosts(tmp_path, "m") as (_, [m]):
            with socket.socket() as taken:
                taken.bind(("127.0.0.1", 0))
                taken.listen()
                port = taken.getsockname()[1]
                with pytest.raises(SkepError, match=f"could not listen on 127.0.0.1:{port}: address already in use"):
                    await m.init(port)
            assert m.membership.info().state == "inactive"
            assert m.membership.info().error == ""
            assert not m.root.exists()
            assert (m.datapath.up, m.datapath.destroyed) == (False, 1)
            await m.init(port)
            assert m.state == "active"

    run(body)


def test_a_bad_setting_leaves_the_node_as_it_was(tmp_path: Path) -> None:
    async def body() -> None:
        async with hosts(tmp_path, "m") as (_, [m]):
            spec = ClusterSpec(ca_config=CAConfig(node_cert_expiry=15 * MINUTE))
            with pytest.raises(Invalid, match="minimum certificate expiry time is: 1h0m0s"):
                await m.init(free_port(), spec=spec)
            for request, text in (
                (InitRequest(), 'invalid ListenAddr "": invalid empty address'),
                (InitRequest(listen_addr="nonsense:2377"), "listen address must be an IP address or network interface"),
                (InitRequest(listen_addr="0.0.0.0:2377", advertise_addr="0.0.0.0"), "advertise address must be a non-zero IP address"),
                (
                    InitRequest(listen_addr="127.0.0.1:2377", advertise_addr="127.0.0.1", data_path_addr="0.0.0.0"),
                    "data path address must be a non-zero IP",
                ),
            ):
                with pytest.raises(Invalid, match=text):
                    await m.membership.init(request)
            assert m.state == "inactive"
            assert not m.root.exists()
            assert m.datapath.destroyed == 0, "nothing had begun"

    run(body)


def test_a_full_disk_at_init_is_an_error_and_nothing_more(tmp_path: Path) -> None:
    async def body() -> None:
        async with hosts(tmp_path, "m") as (_, [m]):
            m.disk.full = True
            with pytest.raises(SkepError, match="disk is full"):
                await m.init(free_port())
            assert (m.state, m.alive, m.root.exists()) == ("inactive", True, False)

    run(body)


def test_init_that_is_broken_off_leaves_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        async with hosts(tmp_path, "m") as (group, [m]):
            m.datapath.gate.clear()
            asking = group.create_task(outcome(m.init(free_port())))
            await m.datapath.waiting.wait()
            assert m.state == "pending"
            m.datapath.gate.set()
            asking.cancel()
            await asyncio.wait([asking])
            assert (m.state, m.root.exists()) == ("inactive", False)
            await m.init(free_port())

    run(body)


def test_init_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    async def body() -> None:
        async with hosts(tmp_path, "m", patience=0.05) as (group, [m]):
            m.datapath.gate.clear()
            asking = group.create_task(outcome(m.init(free_port())))
            # on a slow machine the time may be over before it has come that far
            await until(lambda: m.datapath.waiting.is_set() or asking.done())
            asyncio.get_running_loop().call_later(0.1, m.datapath.gate.set)
            assert "did not begin its work in time" in str(await asking)
            assert (m.state, m.root.exists(), m.alive) == ("inactive", False, True)

    run(body)


# join


def test_a_worker_joins_and_leaves_again_and_again(tmp_path: Path) -> None:
    async def body() -> None:
        async with hosts(tmp_path, "m", "w") as (_, [m, w]):
            port = await a_cluster(m)
            seen = set()
            for _ in range(10):
                await w.join(port, m.token)
                info = w.membership.info()
                seen.add(info.node_id)
                assert (info.state, info.control_available, info.node_addr) == ("active", False, "127.0.0.1")
                assert info.managers == (("", f"127.0.0.1:{port}"),)
                assert m.node(info.node_id).status.state is READY
                assert refused(w) == WORKER
                await w.membership.leave(False)
                assert (w.state, w.root.exists(), refused(w)) == ("inactive", False, NOT_MEMBER)
                await until(m.sees(info.node_id, DOWN))
            assert len(seen) == 10
            with pytest.raises(Unavailable, match="This node is not part of a swarm"):
                await w.membership.leave(False)

    run(body)


def test_who_may_not_join_is_told_why_and_stays_outside(tmp_path: Path) -> None:
    async def body() -> None:
        async with hosts(tmp_path, "m", "other", "w") as (_, [m, other, w]):
            port, other_port = await a_cluster(m), await a_cluster(other)
            old = m.token
            cluster = m.cluster
            await m.membership.cluster().update_cluster(cluster.version, cluster.spec, rotate_worker_token=True)
            cases: list[tuple[dict[str, Any], type[SkepError], str]] = [
                ({"token": ""}, Invalid, "join token is necessary"),
                ({"token": "SWMTKN-1-x"}, SkepError, "invalid join token"),
                ({"token": old}, SkepError, "A valid join token is necessary to join this cluster"),
                ({"token": other.token}, RootMismatch, "remote CA does not match fingerprint"),
                ({"token": m.cluster.tokens.manager}, SkepError, "a second manager cannot join yet"),
                ({"remote_addrs": ()}, Invalid, "at least 1 RemoteAddr is required to join"),
                ({"remote_addrs": ("",)}, Invalid, "at least 1 RemoteAddr is required to join"),
                ({"remote_addrs": ("127.0.0.1:x",)}, Invalid, "invalid port"),
                ({"advertise_addr": "0.0.0.0"}, Invalid, "advertise address must be a non-zero IP address"),
                ({"data_path_addr": "nonsense"}, Invalid, "data path address must be a non-zero IP address"),
                ({"availability": "asleep"}, SkepError, "invalid Availability"),
            ]
            for change, kind, text in cases:
                with pytest.raises(kind, match=text):
                    await w.join(port, **({"token": m.token} | change))
                assert (w.state, w.membership.info().error, w.root.exists(), w.alive) == ("inactive", "", False, True), change
            assert other_port != port
            assert len(m.membership.cluster().view.all(Node)) == 1, "nobody was taken in"
            await w.join(port, m.token)

    run(body)


def test_joining_goes_on_in_the_background_until_the_manager_is_there(tmp_path: Path) -> None:
    async def body() -> None:
        async with hosts(tmp_path, "m", "w") as (group, [m, w]):
            port = await a_cluster(m)
            token = m.token
            await m.stop()
            w.membership._patience = 0.2
            with pytest.raises(Unavailable) as caught:
                await w.join(port, token)
            assert caught.value.text == TIMED_OUT
            assert w.state == "pending"
            # on a slow machine the time may be over before the first attempt is
            await until(lambda: w.membership.info().error == f"manager 127.0.0.1:{port}: connection refused")
            with pytest.raises(Unavailable, match="already part of a swarm"):
                await w.join(port, token)
            m.start(group)
            await until(lambda: w.state == "active")
            assert m.node(w.membership.info().node_id).status.state is READY

    run(body)


def test_a_node_that_still_tries_to_join_can_leave(tmp_path: Path) -> None:
    async def body() -> None:
        async with hosts(tmp_path, "m", "w") as (group, [m, w]):
            port = await a_cluster(m)
            token = m.token
            await m.stop()
            asking = group.create_task(outcome(w.join(port, token)))
            await until(lambda: w.membership.info().error != "")
            await w.membership.leave(False)
            assert GIVEN_UP in str(await asking)
            assert (w.state, w.membership.info().error, w.root.exists()) == ("inactive", "", False)
            m.start(group)
            await m.membership.settled()
            await w.join(port, m.token)

    run(body)


def test_a_node_can_leave_between_its_certificate_and_its_session(tmp_path: Path) -> None:
    async def body() -> None:
        async with hosts(tmp_path, "m", "w") as (group, [m, w]):
            port = await a_cluster(m)
            w.datapath.gate.clear()
            asking = group.create_task(outcome(w.join(port, m.token)))
            await w.datapath.waiting.wait()
            asyncio.get_running_loop().call_later(0.05, w.datapath.gate.set)
            await w.membership.leave(False)
            assert GIVEN_UP in str(await asking)
            assert (w.state, w.root.exists(), w.datapath.up, w.alive) == ("inactive", False, False, True)
            await w.join(port, m.token)
            assert w.state == "active"

    run(body)


def test_a_join_that_fails_in_the_background_is_an_error_of_the_node(tmp_path: Path) -> None:
    async def body() -> None:
        async with hosts(tmp_path, "m", "w") as (group, [m, w]):
            port = await a_cluster(m)
            w.membership._patience = 0.05
            w.datapath.fail["start_up"] = SkepError("no such device")
            w.datapath.gate.clear()
            with pytest.raises(Unavailable, match="Timeout was reached"):
                await w.join(port, m.token)
            w.datapath.gate.set()
            await until(lambda: w.state == "error" and not w.root.exists())
            assert (w.membership.info().error, w.alive) == ("no such device", True)
            w.datapath.fail.clear()
            w.membership._patience = 30
            await w.join(port, m.token)
            assert (w.state, w.membership.info().error) == ("active", "")

    run(body)


def test_a_folder_that_cannot_be_written_ends_the_join_not_the_daemon(tmp_path: Path) -> None:
    async def body() -> None:
        async with hosts(tmp_path, "m", "w") as (_, [m, w]):
            (tmp_path / "w").write_text("a file where the data root should be")
            port = await a_cluster(m)
            with pytest.raises(SkepError, match="Not a directory"):
                await w.join(port, m.token)
            assert (w.alive, w.state) == (True, "inactive")

    run(body)
