"""Plain containers over an engine, a data path and networks in memory: policies by the clock, ends, failed starts, a daemon's restart."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import msgspec
import pytest
from plain_fakes import IMAGE, World, play

from skep.clock import MILLISECOND, MINUTE, SECOND
from skep.engine.base import Container, Exit
from skep.engine.oci.spec import Host, capabilities
from skep.errors import Conflict, Invalid, NotFound, NotImplementedHere, SkepError
from skep.node import restart
from skep.node.naming import random_name
from skep.node.plain_config import CreateRequest, EndpointSettings, HostConfig, RestartPolicy, UpdateRequest
from skep.node.plain_errors import warnings_of
from skep.node.plain_mounts import parse_bind
from skep.testing.fake_engine import FakeEngine


@pytest.mark.parametrize(
    ("name", "most", "code", "known", "stopped", "restarts", "expected"),
    [
        ("no", 0, 1, True, False, 0, False),
        ("always", 0, 0, True, False, 99, True),
        ("always", 0, 0, True, True, 0, False),
        ("unless-stopped", 0, 1, True, False, 0, True),
        ("unless-stopped", 0, 1, True, True, 0, False),
        ("on-failure", 0, 0, True, False, 0, False),
        ("on-failure", 0, 1, True, False, 99, True),
        ("on-failure", 3, 1, True, False, 2, True),
        ("on-failure", 3, 1, True, False, 3, False),
        ("on-failure", 0, 0, False, False, 0, True),
    ],
)
def test_who_is_started_again(name: str, most: int, code: int, known: bool, stopped: bool, restarts: int, expected: bool) -> None:
    policy = RestartPolicy(name=name, maximum_retry_count=most)
    ended = Exit(code=code, at=1, known=known)
    assert restart.again(policy, ended, stopped=stopped, restarts=restarts) is expected
    at_boot = restart.again_at_boot(policy, ended, stopped=stopped, restarts=restarts)
    assert at_boot is (expected or name == "always")


def test_delays_double_to_a_minute_and_begin_anew() -> None:
    delays = [restart.next_delay(0, 0)]
    while delays[-1] < MINUTE:
        delays.append(restart.next_delay(delays[-1], 0))
    assert delays[:4] == [100 * MILLISECOND, 200 * MILLISECOND, 400 * MILLISECOND, 800 * MILLISECOND]
    assert restart.next_delay(MINUTE, 0) == MINUTE and restart.next_delay(MINUTE, 10 * SECOND) == 100 * MILLISECOND


def test_a_policy_waits_longer_each_time(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        id = await w.run(HostConfig={"RestartPolicy": {"Name": "always"}})
        times = []
        for _ in range(4):
            w.engine.end(id, 1)
            ended = w.clock.now()
            await w.until(lambda: (c := w.engine.get(id)) is not None and c.running)
            times.append((w.clock.now() - ended) // MILLISECOND)
        assert times == [100, 200, 400, 800] and w.record(id).restarts == 4
        await w.plain.restart(id, seconds=0)
        assert w.record(id).restarts == 0

    play(tmp_path, story)


@pytest.mark.parametrize("kill", [False, True])
def test_a_stop_while_it_waits_for_its_restart(tmp_path: Path, kill: bool) -> None:
    async def story(w: World) -> None:
        id = await w.run(HostConfig={"RestartPolicy": {"Name": "unless-stopped"}})
        w.engine.end(id, 1)
        assert w.plain.is_restarting(id), "also before it was looked at"
        await w.until(lambda: w.record(id).due)
        waiting = asyncio.ensure_future(w.plain.settled(id))
        await asyncio.sleep(0)
        assert not waiting.done()
        if kill:
            await w.plain.kill(id, "SIGHUP")  # there is nobody to hear it
            assert w.plain.is_restarting(id)
            await w.plain.kill(id)
        else:
            assert await w.plain.stop(id) is True
        assert (await waiting).code == 1 and not w.plain.is_restarting(id) and w.record(id).stopped
        await w.clock.sleep(MINUTE)
        assert w.engine.starts == [id]
        assert await w.plain.stop(id) is False

    play(tmp_path, story)


def test_its_place_is_given_back_and_taken_anew(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        network = await w.networks.create("n1")
        id = await w.create(
            HostConfig={"NetworkMode": "n1", "PortBindings": {"80/tcp": [{"HostPort": "8080"}]}},
            NetworkingConfig={"EndpointsConfig": {"n1": {"Aliases": ["al"]}}},
        )
        assert w.networks.endpoints(network.id) == []
        await w.plain.start(id)
        (endpoint,) = w.networks.endpoints(network.id)
        container = w.engine.get(id)
        assert container is not None and endpoint.names == ("c1", "al", id[:12]) and w.datapath.ports[id][0].published == 8080
        assert container.config.netns == f"/run/netns/{id}" and "nameserver 127.0.0.11" in container.config.resolv_conf
        assert container.config.hosts == (f"{endpoint.address.partition('/')[0]}\t{id[:12]}",)
        w.engine.end(id, 0)
        await w.until(lambda: not w.networks.endpoints(network.id))
        await w.until(lambda: not w.record(id).joined[0].address)
        assert not w.datapath.places and not w.datapath.ports
        await w.plain.start(id)
        assert w.networks.endpoints(network.id) and w.record(id).joined[0].settings == EndpointSettings(aliases=("al",))

    play(tmp_path, story)


def test_a_start_that_fails_leaves_nothing(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        w.engine.fail["start"] = NotFound(
            'OCI runtime create failed: unable to start container process: exec: "x": executable file not found in $PATH'
        )
        id = await w.create()
        with pytest.raises(Invalid) as failed:
            await w.plain.start(id)
        assert failed.value.text.endswith("executable file not found in $PATH: unknown")
        assert not w.datapath.places and w.record(id).error_code == 127 and len(w.volumes.all()) == 1
        auto = await w.create("c2", HostConfig={"AutoRemove": True})
        with pytest.raises(Invalid):
            await w.plain.start(auto)
        assert w.engine.get(auto) is None and len(w.volumes.all()) == 1, "and its anonymous volume"
        del w.engine.fail["start"]
        w.datapath.fail["publish"] = Conflict("Bind for 0.0.0.0:80 failed: port is already allocated")
        ported = await w.create("c3", HostConfig={"PortBindings": {"80/tcp": [{"HostPort": "80"}]}})
        with pytest.raises(SkepError) as taken:
            await w.plain.start(ported)
        assert "port is already allocated" in taken.value.text and not w.datapath.places
        del w.datapath.fail["publish"]
        await w.plain.start(ported)
        assert w.record(ported).error == ""

    play(tmp_path, story)


def test_rm_by_itself_and_by_hand(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        id = await w.run(HostConfig={"AutoRemove": True})
        assert len(w.volumes.all()) == 1
        w.engine.end(id, 3)
        await w.until(lambda: w.engine.get(id) is None)
        await w.until(lambda: not w.volumes.all())
        kept = await w.run()
        with pytest.raises(Conflict):
            await w.plain.remove(kept)
        await w.plain.remove(kept, force=True)
        assert w.engine.get(kept) is None and len(w.volumes.all()) == 1 and not w.datapath.places
        again = await w.run()
        waiting = asyncio.ensure_future(w.plain.settled(again))
        await asyncio.sleep(0)
        await w.plain.remove(again, force=True, volumes=True)
        await waiting
        assert len(w.volumes.all()) == 1

    play(tmp_path, story)


def test_who_kills_finds_it_ended_and_its_place_given_back(tmp_path: Path) -> None:
    """However long the kernel takes for it; another signal is not waited for."""

    class Slow(FakeEngine):
        def _signal(self, container: Container, signal: str) -> None:
            asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(self._later(container.config.id, signal)))

        async def _later(self, id: str, signal: str) -> None:
            await self._clock.sleep(SECOND)
            self.end(id, 137) if signal == "SIGKILL" else None

    async def story(w: World) -> None:
        id = await w.run(HostConfig={"RestartPolicy": {"Name": "always"}})
        w.engine.__class__ = Slow
        await w.plain.kill(id, "SIGHUP")
        assert w.engine.get(id).running  # type: ignore[union-attr]
        await w.plain.kill(id)
        assert not w.engine.get(id).running and not w.datapath.places  # type: ignore[union-attr]
        await w.plain.remove(id)
        assert w.told.index("container kill") < w.told.index("network disconnect")

    play(tmp_path, story)


def test_capabilities_are_shown_as_they_were_written(tmp_path: Path) -> None:
    """The docker command adds `CAP_`, other clients do not, and look for what they said."""

    async def story(w: World) -> None:
        id = await w.create(HostConfig={"CapAdd": ["NET_ADMIN", "sys_time"], "CapDrop": ["ALL"]})
        assert (w.record(id).host.cap_add, w.record(id).host.cap_drop) == (("NET_ADMIN", "sys_time"), ("ALL",))
        container = w.engine.get(id)
        assert container is not None and capabilities(container.config, Host()) == ("CAP_NET_ADMIN", "CAP_SYS_TIME")

    play(tmp_path, story)


def test_names_and_what_is_refused(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        await w.create("c1")
        for error, name, body in (
            (Conflict, "c1", {}),
            (Invalid, "a!b", {}),
            (NotFound, "x1", {"Image": "nosuch:1"}),
            (Invalid, "x1", {"HostConfig": {"Memory": 1}}),
            (Invalid, "x1", {"HostConfig": {"RestartPolicy": {"Name": "often"}}}),
            (Invalid, "x1", {"HostConfig": {"Binds": ["/a:/m", "/b:/m"]}}),
            (Invalid, "x1", {"HostConfig": {"Binds": ["/a:/"]}}),
            (Invalid, "x1", {"WorkingDir": "rel"}),
            (Invalid, "x1", {"HostConfig": {"NetworkMode": "container:nosuch"}}),
            (Invalid, "x1", {"HostConfig": {"DeviceRequests": [{"Count": -1, "Capabilities": [["gpu"]]}]}}),
            (Invalid, "x1", {"HostConfig": {"NetworkMode": "container:c1"}, "Hostname": "h"}),
            (NotImplementedHere, "x1", {"HostConfig": {"SecurityOpt": ["apparmor=mine"]}}),
            (NotImplementedHere, "x1", {"HostConfig": {"Annotations": {"a": "b"}}}),
            (Invalid, "x1", {"Entrypoint": [""]}),
        ):
            with pytest.raises(error):
                await w.create(name, **{"Cmd": [], **body} if "Entrypoint" in body else body)
        assert len(w.engine.all()) == 1 and len(w.volumes.all()) == 1, "nothing is made of what was refused"
        unnamed = await w.create("")
        made = w.engine.get(unnamed)
        assert made is not None and "_" in made.config.name

    play(tmp_path, story)


def test_update_keeps_what_is_not_said(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        id = await w.run(HostConfig={"Memory": 64 << 20, "CpuShares": 100})
        await w.plain.update(id, msgspec.convert({"CpuShares": 200, "RestartPolicy": {"Name": "always"}}, UpdateRequest))
        container = w.engine.get(id)
        host = w.record(id).host
        assert container is not None and (container.config.limits.cpu_shares, container.config.limits.memory) == (200, 64 << 20)
        assert (host.cpu_shares, host.memory_swap, host.restart_policy.name) == (200, 128 << 20, "always")
        with pytest.raises(Conflict):
            await w.plain.update(id, UpdateRequest(memory=256 << 20, memory_swap=128 << 20))

    play(tmp_path, story)


def test_a_daemon_that_starts_takes_over(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        on = await w.run("on")
        away = await w.run("away", HostConfig={"RestartPolicy": {"Name": "always"}})
        byhand = await w.run("byhand", HostConfig={"RestartPolicy": {"Name": "unless-stopped"}})
        await w.plain.stop(byhand, seconds=0)
        auto = await w.run("auto", HostConfig={"AutoRemove": True})
        never = await w.create("never", HostConfig={"RestartPolicy": {"Name": "always"}})
        before = w.plain
        before._queue = None
        w.plain = w.new_plain()
        for known in list(w.engine._queues):
            w.engine.unsubscribe(known)
        w.engine.end(away, 1)
        w.engine.end(auto, 1)
        w.datapath.places["f" * 64] = ()
        await w.plain.start_up()
        assert set(w.datapath.places) == {on}, "those of ended containers, and one that is nobody's, are gone"
        async with asyncio.TaskGroup() as group:
            running = group.create_task(w.plain.run())
            await w.until(lambda: (c := w.engine.get(away)) is not None and c.running)
            await w.until(lambda: w.engine.get(auto) is None)
            states = {id: (c := w.engine.get(id)) is not None and c.running for id in (on, byhand, never)}
            assert states == {on: True, byhand: False, never: False}
            running.cancel()

    play(tmp_path, story)


def test_random_names_avoid_those_that_are_taken() -> None:
    taken: set[str] = set()
    rng = random.Random(5)
    for _ in range(3000):
        name = random_name(rng, taken.__contains__)
        assert name not in taken
        taken.add(name)


@pytest.mark.parametrize(
    ("text", "kind", "read_write", "copies"),
    [
        ("/a:/b", "bind", True, False),
        ("/a:/b:ro,rslave", "bind", False, False),
        ("name:/b", "volume", True, True),
        ("name:/b:nocopy,ro", "volume", False, False),
        ("/b", "volume", True, True),
    ],
)
def test_binds(text: str, kind: str, read_write: bool, copies: bool) -> None:
    wish = parse_bind(text)
    assert (wish.point.type, wish.point.target, wish.point.read_write, wish.copy_up) == (kind, "/b", read_write, copies)


@pytest.mark.parametrize(
    "text", ["", ":", "/a:b", "/a:/b:ro:rw", "/a:/b:bogus", "/a:/b:ro,rw", "name:/b:rshared", "/a:/b:shared,slave", "a::/b"]
)
def test_binds_that_are_none(text: str) -> None:
    with pytest.raises(Invalid):
        parse_bind(text)


def test_a_limit_that_the_kernel_lacks_is_said_to_be_discarded(tmp_path: Path) -> None:
    """As on every cgroup v2 host; what was not asked for is not spoken of."""
    asked = HostConfig(memory_swappiness=0, oom_kill_disable=True, blkio_weight=300, cpu_realtime_runtime=950)
    lacking = ("memory_swappiness", "oom_kill_disable", "cpu_realtime_period", "cpu_realtime_runtime")
    assert warnings_of(HostConfig(), lacking) == []
    assert [said.removeprefix("Your kernel does not support ") for said in warnings_of(asked, lacking)] == [
        "memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded.",
        "OomKillDisable. OomKillDisable discarded.",
        "CPU real-time runtime or the cgroup is not mounted. Runtime discarded.",
    ]
    assert [said.split(",")[0] for said in warnings_of(asked)] == ["OOM killer is disabled for the container"]

    async def story(w: World) -> None:
        w.engine.facts = {"limits_missing": ["blkio_weight"]}
        request = msgspec.convert({"Image": IMAGE, "HostConfig": {"BlkioWeight": 300}}, CreateRequest)
        _, warnings = await w.plain.create(request, "c1")
        assert warnings == ["Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded."]

    play(tmp_path, story)


def test_a_daemon_starts_though_one_container_s_place_cannot_be_given_back(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        bad = await w.run("bad")
        again = await w.run("again", HostConfig={"RestartPolicy": {"Name": "always"}})
        w.plain._queue = None
        w.plain = w.new_plain()
        for known in list(w.engine._queues):
            w.engine.unsubscribe(known)
        w.engine.end(bad, 1)
        w.engine.end(again, 1)
        w.datapath.places["f" * 64] = ()
        w.datapath.fail["detach"] = SkepError("nft: no buffer space available")
        await w.plain.start_up()
        del w.datapath.fail["detach"]
        async with asyncio.TaskGroup() as group:
            running = group.create_task(w.plain.run())
            await w.until(lambda: (c := w.engine.get(again)) is not None and c.running)
            await w.plain.start(bad)
            running.cancel()

    play(tmp_path, story)


def test_a_connect_that_cannot_be_kept_leaves_nothing_of_it(tmp_path: Path) -> None:
    """However far it came: another container may have the address, and the network can be joined later."""

    async def story(w: World) -> None:
        id = await w.run(HostConfig={"PortBindings": {"80/tcp": [{"HostPort": "8080"}]}})
        for name in ("net1", "net2"):
            await w.networks.create(name)
        await w.plain.disconnect("bridge", id)
        other = await w.run("other", HostConfig={"PortBindings": {"80/tcp": [{"HostPort": "8080"}]}})
        with pytest.raises(SkepError, match="port is already allocated"):
            await w.plain.connect("net1", id, EndpointSettings())
        assert w.datapath.networks_of(id) == () and w.networks.endpoints_of(id) == []
        await w.plain.stop(other, seconds=0)

        w.datapath.delay["connect"] = SECOND
        connecting = asyncio.ensure_future(w.plain.connect("net1", id, EndpointSettings()))
        await w.until(lambda: w.networks.endpoints_of(id))
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        w.datapath.delay.clear()
        assert w.datapath.networks_of(id) == () and w.networks.endpoints_of(id) == []

        await w.plain.connect("net1", id, EndpointSettings())
        assert len(w.datapath.networks_of(id)) == 1 and [p.published for p in w.record(id).ports] == [8080]

    play(tmp_path, story)


def test_a_prune_does_not_take_what_a_container_is_being_made_of(tmp_path: Path) -> None:
    """Volumes are made one after the other, and a container has them only when it is there."""

    async def story(w: World) -> None:
        w.engine.delay["create"] = SECOND
        async with asyncio.TaskGroup() as group:
            creating = group.create_task(w.create(Volumes={"/one": {}, "/two": {}}, HostConfig={"Binds": ["mine:/three"]}))
            pruning = [group.create_task(w.volumes.prune(all=True)) for _ in range(20)]
        assert [names for names, _ in (task.result() for task in pruning) if names] == []
        assert len(w.volumes.all()) == 4
        await w.plain.start(creating.result())

    play(tmp_path, story)
