"""A member's later life: leaving, being removed, starting again, and what a failure costs it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from member_world import a_cluster, free_port, hosts, refused, run
from tls_world import until

from skep.clock import HOUR
from skep.errors import ConfigError, SkepError, Unavailable
from skep.membership import LAST_MANAGER, STARTING, WORKER
from skep.model.enums import NodeState
from skep.model.spec import CAConfig, ClusterSpec
from skep.plan.workload import Call

READY, DOWN = NodeState.READY, NodeState.DOWN


# leave


def test_the_last_manager_leaves_by_force_alone_and_takes_its_tasks_with_it(tmp_path: Path) -> None:
    async def body() -> None:
        async with hosts(tmp_path, "m") as (_, [m]):
            plain = await m.plain_container()
            await a_cluster(m)
            await m.run_service(3)
            await until(lambda: len(m.tasks()) == 3)
            with pytest.raises(Unavailable) as caught:
                await m.membership.leave(False)
            assert caught.value.text == LAST_MANAGER
            assert len(m.tasks()) == 3
            await m.membership.leave(True)
            assert (m.state, m.root.exists(), m.datapath.destroyed) == ("inactive", False, 1)
            assert [c.config.id for c in m.engine.all()] == [plain]
            await m.init(free_port())
            assert m.all_tasks() == []

    run(body)


@pytest.mark.parametrize("told", [False, True])
def test_leaving_by_force_kills_what_would_take_long_to_end_even_if_it_was_told_to(tmp_path: Path, told: bool) -> None:
    async def body() -> None:
        async with hosts(tmp_path, "m") as (_, [m]):
            await a_cluster(m)
            await m.run_service(3)
            await until(lambda: len(m.tasks()) == 3)
            m.engine.delay["stop"] = 100 * HOUR
            parts = m.membership._parts
            assert parts is not None and parts.agent is not None
            works = parts.agent.worker._works
            if told:
                await m.membership.cluster().remove_service("web")
                await until(lambda: [work.busy for work in works.values()] == [Call.SHUTDOWN] * 3)
            async with asyncio.timeout(10):
                await m.membership.leave(True)
            assert (m.state, m.root.exists(), m.engine.all()) == ("inactive", False, [])

    run(body)


def test_a_worker_leaves_though_its_manager_is_gone(tmp_path: Path) -> None:
    async def body() -> None:
        async with hosts(tmp_path, "m", "w") as (_, [m, w]):
            await a_cluster(m, w)
            await m.run_service(4)
            await until(lambda: len(w.tasks()) == 2)
            await m.stop()
            await w.membership.leave(False)
            assert (w.state, w.tasks(), w.root.exists()) == ("inactive", [], False)

    run(body)


def test_a_worker_without_tasks_leaves_at_once_though_its_manager_is_gone(tmp_path: Path) -> None:
    async def body() -> None:
        async with hosts(tmp_path, "m", "w") as (_, [m, w]):
            await a_cluster(m, w)
            await m.stop()
            parts = w.membership._parts
            assert parts is not None and parts.agent is not None
            agent = parts.agent
            await until(lambda: agent.session.connect_at is not None)  # between two attempts
            async with asyncio.timeout(5):
                await w.membership.leave(False)
            assert (w.state, w.root.exists()) == ("inactive", False)

    run(body)


def test_a_node_leaves_though_its_network_cannot_be_taken_down(tmp_path: Path) -> None:
    async def body() -> None:
        async with hosts(tmp_path, "m", "w") as (group, [m, w]):
            await a_cluster(m, w)
            await m.run_service(2)
            await until(lambda: len(w.tasks()) == 1)
            w.datapath.fail["start_up"] = w.datapath.fail["detach"] = SkepError("no such device")
            await w.restart(group)
            await until(lambda: w.state == "error")
            await w.membership.leave(False)
            assert (w.state, w.root.exists(), w.alive, w.tasks()) == ("inactive", False, True, [])

    run(body)


def test_a_node_is_removed_by_the_manager(tmp_path: Path) -> None:
    async def body() -> None:
        async with hosts(tmp_path, "m", "w") as (_, [m, w]):
            port = await a_cluster(m, w)
            plain = await w.plain_container()
            await m.run_service(2)
            await until(lambda: len(w.tasks()) == 1)
            await m.membership.cluster().remove_node(w.membership.info().node_id, True)
            await until(lambda: w.state == "inactive")
            assert (w.tasks(), w.root.exists(), w.datapath.destroyed, w.alive) == ([], False, 1, True)
            assert [c.config.id for c in w.engine.all()] == [plain]
            await w.join(port, m.token)

    run(body)


def test_a_node_that_was_removed_while_it_was_away_learns_it_when_it_comes_back(tmp_path: Path) -> None:
    async def body() -> None:
        async with hosts(tmp_path, "m", "w") as (group, [m, w]):
            await a_cluster(m, w)
            await m.run_service(2)
            await until(lambda: len(w.tasks()) == 1)
            node_id = w.membership.info().node_id
            await w.stop()
            assert len(w.tasks()) == 1, "containers go on without the daemon"
            await m.membership.cluster().remove_node(node_id, True)
            w.start(group)
            await until(lambda: w.state == "inactive")
            assert (w.tasks(), w.root.exists()) == ([], False)

    run(body)


# starting again


def test_a_cluster_goes_on_after_its_daemons_are_started_again(tmp_path: Path) -> None:
    async def body() -> None:
        async with hosts(tmp_path, "m", "w") as (group, [m, w]):
            await a_cluster(m, w)
            await m.run_service(4)
            await until(lambda: (len(m.tasks()), len(w.tasks())) == (2, 2))
            tasks, tokens, info = {t.id for t in m.all_tasks()}, m.cluster.tokens, w.membership.info()
            starts = len(m.engine.starts), len(w.engine.starts)
            await m.restart(group)
            assert (m.state, refused(m)) == ("pending", STARTING)
            await m.membership.settled()
            assert m.state == "active"
            assert ({t.id for t in m.all_tasks()}, m.cluster.tokens) == (tasks, tokens)
            await w.restart(group)
            await until(lambda: w.state == "active")
            await until(m.sees(info.node_id, READY))
            assert w.membership.info().node_id == info.node_id
            assert (len(m.engine.starts), len(w.engine.starts)) == starts, "no container was started again"

    run(body)


def test_a_worker_without_its_manager_is_pending_and_says_why(tmp_path: Path) -> None:
    async def body() -> None:
        async with hosts(tmp_path, "m", "w") as (group, [m, w]):
            await a_cluster(m, w)
            await m.stop()
            await w.restart(group)
            await until(lambda: w.membership.info().error != "")
            info = w.membership.info()
            assert (info.state, info.control_available, refused(w)) == ("pending", False, WORKER)
            assert info.error.startswith("manager 127.0.0.1:")
            m.start(group)
            await until(lambda: w.state == "active")
            assert w.membership.info().error == ""

    run(body)


def test_a_full_disk_stops_the_manager_until_there_is_room(tmp_path: Path) -> None:
    async def body() -> None:
        async with hosts(tmp_path, "m", "w") as (_, [m, w]):
            await a_cluster(m, w)
            await m.run_service(2)
            await until(lambda: (len(m.tasks()), len(w.tasks())) == (1, 1))
            watch = m.membership.cluster().watch()
            m.disk.full = True
            control = m.membership.cluster()
            cluster = m.cluster
            with pytest.raises(SkepError, match="disk is full"):
                await control.update_cluster(cluster.version, cluster.spec, rotate_worker_token=True)
            await until(lambda: m.state == "error")
            assert "disk is full" in m.membership.info().error
            assert (refused(m), m.alive) == (STARTING, True)
            async with asyncio.timeout(5):
                async for _ in watch:
                    pass  # who watches the old state is told that it is over
            assert (len(m.tasks()), len(w.tasks())) == (1, 1), "containers go on"
            m.disk.full = False
            await until(lambda: m.state == "active")
            assert m.membership.info().error == ""
            assert m.token == cluster.tokens.worker, "what was not stored did not happen"
            await until(m.sees(w.membership.info().node_id, READY))
            assert (len(m.tasks()), len(w.tasks())) == (1, 1)

    run(body)


def test_a_node_in_error_can_leave(tmp_path: Path) -> None:
    async def body() -> None:
        async with hosts(tmp_path, "m") as (group, [m]):
            await a_cluster(m)
            await m.stop()
            (m.root / "state.db").unlink()
            for rest in m.root.glob("state.db-*"):
                rest.unlink()
            m.start(group)
            await m.membership.settled()
            assert m.state == "error"
            assert "is empty: it was lost" in m.membership.info().error
            with pytest.raises(Unavailable, match="already part of a swarm"):
                await m.init(free_port())
            await m.membership.leave(True)
            assert (m.state, m.root.exists()) == ("inactive", False)
            await m.init(free_port())

    run(body)


def test_lost_certificates_are_named(tmp_path: Path) -> None:
    async def body() -> None:
        async with hosts(tmp_path, "m", "w") as (group, [m, w]):
            await a_cluster(m, w)
            await w.stop()
            (w.root / "certificates" / "swarm-node.crt").unlink()
            w.start(group)
            await until(lambda: w.state == "error")
            assert "swarm-node.crt" in w.membership.info().error
            await w.membership.leave(False)
            assert w.state == "inactive"

    run(body)


def test_a_record_that_is_not_ours_is_not_swept_away(tmp_path: Path) -> None:
    async def body() -> None:
        async with hosts(tmp_path, "m") as (group, [m]):
            await a_cluster(m)
            await m.stop()
            (m.root / "node.json").write_text("{")
            with pytest.raises(ConfigError, match="node.json cannot be read"):
                m.start(group)
            assert (m.root / "state.db").exists()

    run(body)


def test_what_a_crash_left_before_the_end_of_init_is_swept_away(tmp_path: Path) -> None:
    async def body() -> None:
        async with hosts(tmp_path, "m") as (group, [m]):
            await a_cluster(m)
            before = m.cluster.id
            await m.stop()
            (m.root / "node.json").unlink()
            m.start(group)
            await m.membership.settled()
            assert m.state == "inactive"
            await m.init(free_port())
            assert m.cluster.id != before

    run(body)


def test_a_certificate_for_an_hour_is_renewed_in_time_for_a_restart(tmp_path: Path) -> None:
    async def body() -> None:
        async with hosts(tmp_path, "m") as (_, [m]):
            await m.init(free_port(), spec=ClusterSpec(ca_config=CAConfig(node_cert_expiry=HOUR)))
            certificate = m.membership._certificates.certificate()
            assert certificate.not_after - m.clock.now() <= HOUR

    run(body)
