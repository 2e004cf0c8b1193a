# ruff: noqa: ASYNC240 - tests may block
"""A container paused, changed, stopped and started again; and what a restart of ours knows of it afterwards."""

from __future__ import annotations

import asyncio
import fcntl
import os
import termios
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_fixture import RUNTIMES, Bench, config, running_engine, started, until

from skep.engine.base import Container, ExecConfig, Limits
from skep.engine.oci import kernel
from skep.engine.oci.engine import OciEngine
from skep.errors import Conflict, Invalid, SkepError

pytestmark = pytest.mark.root
SECOND = 10**9
COUNTING = ("sh", "-c", "trap 'exit 3' TERM; i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done")


def known(engine: OciEngine, id: str) -> Container:
    container = engine.get(id)
    assert container is not None
    return container


def group(engine: OciEngine, controller: str, id: str) -> Path:
    top = "" if engine.describe()["cgroup_version"] == "2" else controller
    return Path("/sys/fs/cgroup") / top / engine.describe()["cgroup_parent"].strip("/") / id


def actions(events: asyncio.Queue[tuple[str, str, object]]) -> list[str]:
    return [events.get_nowait()[0] for _ in range(events.qsize())]


def grows(file: Path) -> Callable[[], bool]:
    size = file.stat().st_size
    return lambda: file.stat().st_size > size


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_pause_stops_everything_and_unpause_goes_on(runtime: str) -> None:
    async def main() -> None:
        async with running_engine(runtime) as engine:
            made = config(*COUNTING)
            await engine.create(made)
            with pytest.raises(Conflict, match=f"container {made.id} is not running"):
                await engine.pause(made.id)
            await engine.start(made.id)
            log = Path(engine.describe()["root"]) / "containers" / made.id / "log"
            await until(grows(log))
            events = engine.subscribe()
            await engine.pause(made.id)
            assert known(engine, made.id).paused and known(engine, made.id).running
            used = kernel_time(known(engine, made.id).pid)
            monitor = int((Path(engine.describe()["root"]).parent / "r" / "c" / made.id / "conmon.pid").read_text())
            await until(lambda: nothing_on_its_way(known(engine, made.id).pid, monitor))
            size = log.stat().st_size
            await asyncio.sleep(0.2)
            assert (kernel_time(known(engine, made.id).pid), log.stat().st_size) == (used, size)
            with pytest.raises(Conflict, match=f"Container {made.id} is already paused"):
                await engine.pause(made.id)
            with pytest.raises(Conflict, match="is paused, unpause the container before exec"):
                await engine.exec(made.id, ExecConfig(args=("true",)))
            await engine.unpause(made.id)
            assert not known(engine, made.id).paused
            await until(grows(log))
            with pytest.raises(SkepError, match=f"Container {made.id} is not paused"):
                await engine.unpause(made.id)
            assert actions(events) == ["pause", "unpause"]

    asyncio.run(main())


def nothing_on_its_way(pid: int, monitor: int) -> bool:
    """What it has said is out of its pipe, and its monitor, which writes it down, waits for more."""
    pipe, waiting = os.open(f"/proc/{pid}/fd/1", os.O_WRONLY | os.O_NONBLOCK), array("i", [0])
    try:
        fcntl.ioctl(pipe, termios.FIONREAD, waiting)
    finally:
        os.close(pipe)
    return not waiting[0] and Path(f"/proc/{monitor}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def kernel_time(pid: int) -> str:
    return Path(f"/proc/{pid}/schedstat").read_text().split()[0]


def test_what_forks_all_the_time_is_paused_each_time() -> None:
    async def main() -> None:
        async with running_engine() as engine:
            id = await started(engine, "sh", "-c", "for i in 1 2 3; do (while :; do true & wait; done) & done; while :; do (true); done")
            for _ in range(100):
                await engine.pause(id)
                await engine.unpause(id)

    asyncio.run(main())


def test_a_paused_container_can_be_stopped_killed_and_removed() -> None:
    """Docker lets it go on when it gets the signal that shall end it; other signals wait."""

    async def main() -> None:
        async with running_engine() as engine, asyncio.timeout(30):
            events = engine.subscribe()
            for how in ("stop", "kill", "remove"):
                made = config(*COUNTING)
                await engine.create(made)
                await engine.start(made.id)
                await until((Path(engine.describe()["root"]) / "containers" / made.id / "log").read_text)
                await engine.pause(made.id)
                if how == "stop":
                    assert (await engine.stop(made.id, grace=20 * SECOND)).code == 3
                elif how == "kill":
                    await engine.kill(made.id)
                    assert (await engine.wait(made.id)).code == 137
                else:
                    await engine.remove(made.id, force=True)
                    assert engine.get(made.id) is None
                    assert actions(events)[-2:] == ["die", "destroy"]
                    continue
                assert not known(engine, made.id).paused
                assert actions(events)[:5] == ["create", "start", "pause", "unpause", "die"]
            own = config("sleep", "600", stop_signal="SIGUSR1")
            await engine.create(own)
            await engine.start(own.id)
            await engine.pause(own.id)
            await engine.kill(own.id, "SIGHUP")
            assert known(engine, own.id).paused

    asyncio.run(main())


def test_pause_is_the_kernels_truth_after_a_restart() -> None:
    bench = Bench()

    async def main() -> None:
        engine = bench.engine()
        await engine.start_up()
        paused, other = config(*COUNTING), config(*COUNTING)
        for made in (paused, other):
            await engine.create(made)
            await engine.start(made.id)
        # it heeds SIGTERM from its first line on
        await until((bench.data / "containers" / paused.id / "log").read_text)
        await engine.pause(paused.id)
        pid = known(engine, paused.id).pid
        await engine.shut_down()
        engine = bench.engine()
        await engine.start_up()
        try:
            assert known(engine, paused.id).paused and known(engine, paused.id).pid == pid
            assert not known(engine, other.id).paused
            async with asyncio.timeout(20):
                await engine.unpause(paused.id)
                assert (await engine.stop(paused.id, grace=10 * SECOND)).code == 3
        finally:
            await engine.destroy()
        await until(lambda: not bench.left(), bench.left)

    try:
        asyncio.run(main())
    finally:
        bench.clear()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_limits_change_while_it_runs(runtime: str) -> None:
    async def main() -> None:
        async with running_engine(runtime) as engine:
            made = config("sleep", "600", limits=Limits(memory=32 << 20, pids=50, nano_cpus=500_000_000))
            await engine.create(made)
            pid = await engine.start(made.id)
            v2 = engine.describe()["cgroup_version"] == "2"
            memory, pids, quota = ("memory.max", "pids.max", "cpu.max") if v2 else ("memory.limit_in_bytes", "pids.max", "cpu.cfs_quota_us")

            def now() -> list[str]:
                found = [(group(engine, *pair) / name).read_text() for pair, name in zip(places, (memory, pids, quota), strict=True)]
                return [text.split()[0] for text in found]

            places = [(controller, made.id) for controller in ("memory", "pids", "cpu")]
            assert now() == [str(32 << 20), "50", "50000"]
            await engine.amend(made.id, limits=Limits(memory=64 << 20, pids=60, nano_cpus=1_500_000_000))
            assert now() == [str(64 << 20), "60", "150000"]
            await engine.amend(made.id, limits=Limits(memory=16 << 20, memory_swap=24 << 20))
            assert now()[:2] == [str(16 << 20), "max"] and now()[2] in ("-1", "max")
            assert known(engine, made.id).config.limits.memory == 16 << 20 and known(engine, made.id).pid == pid
            with pytest.raises(Invalid, match=f"Cannot update container {made.id}: "):
                await engine.amend(made.id, limits=Limits(cpuset_cpus="4000"))
            assert known(engine, made.id).config.limits.memory == 16 << 20, "nothing half changed"
            await engine.kill(made.id)
            await engine.wait(made.id)
            await engine.amend(made.id, limits=Limits(pids=7))
            await engine.start(made.id)
            assert now()[1] == "7"
            await engine.amend(made.id, limits=Limits(pids=4 << 20))
            assert now()[1] == str(4 << 20)
            await engine.amend(made.id, limits=Limits(pids=(4 << 20) + 1))
            assert now()[1] == "max", "the kernel knows no larger limit"

    asyncio.run(main())


def test_names_extra_and_hosts_change_and_stay_changed() -> None:
    bench = Bench()

    async def main() -> None:
        engine = bench.engine()
        await engine.start_up()
        one, two = config("sleep", "600", name="one", hosts=("10.0.0.1\ta",)), config("true", name="two")
        for made in (one, two):
            await engine.create(made)
        await engine.start(one.id)
        with pytest.raises(Conflict, match=f'The container name "/two" is already in use by container "{two.id}"'):
            await engine.amend(one.id, name="two")
        with pytest.raises(Invalid, match="Invalid container name"):
            await engine.amend(one.id, name="-")
        await engine.amend("one", name="renamed", extra={"restarts": 3}, hosts=("10.0.0.9\tb",), resolv_conf="nameserver 127.0.0.11\n")
        assert engine.get("one") is None and known(engine, "renamed").config.extra == {"restarts": 3}
        await engine.amend(two.id, name="one")
        process = await engine.exec(one.id, ExecConfig(args=("cat", "/etc/hosts", "/etc/resolv.conf")))
        text = b"".join([data async for _, data in process.streams.output()]).decode()
        assert "10.0.0.9\tb" in text and "10.0.0.1" not in text and text.endswith("nameserver 127.0.0.11\n")
        for turn in range(3000):  # the record does not grow without end
            await engine.amend(one.id, extra={"restarts": turn, "much": "x" * 300})
        assert (bench.data / "containers" / one.id / "state").stat().st_size < 600_000
        await engine.shut_down()
        engine = bench.engine()
        await engine.start_up()
        try:
            assert known(engine, "renamed").config.id == one.id and known(engine, "renamed").running
            assert known(engine, "one").config.id == two.id
            assert known(engine, "renamed").config.extra["restarts"] == 2999
            assert known(engine, "renamed").config.hosts == ("10.0.0.9\tb",)
        finally:
            await engine.destroy()
        await until(lambda: not bench.left(), bench.left)

    try:
        asyncio.run(main())
    finally:
        bench.clear()


def test_started_again_it_is_the_same_container() -> None:
    """Its files are as they were left, its log goes on, the exit is cleared, and a restart of ours knows so."""
    bench = Bench()

    async def main() -> None:
        engine = bench.engine()
        await engine.start_up()
        made = config("sh", "-c", "echo line >> /kept; wc -l < /kept; [ -e /stay ] && exec sleep 600; touch /stay; exit 4")
        await engine.create(made)
        await engine.start(made.id)
        assert (await engine.wait(made.id)).code == 4
        first = known(engine, made.id)
        second = await engine.start(made.id)
        assert known(engine, made.id).exit is None and known(engine, made.id).started_at > first.started_at
        await until(lambda: kernel.start_ticks(second))
        await engine.shut_down()
        engine = bench.engine()
        await engine.start_up()
        try:
            container = known(engine, made.id)
            assert container.running and container.pid == second and container.exit is None
            lines: list[bytes] = []
            async for record in engine.logs(made.id, follow=True):  # it may not have come to its second line yet
                lines.append(record.data)
                if len(lines) == 2:
                    break
            assert lines == [b"1\n", b"2\n"]
        finally:
            await engine.destroy()
        await until(lambda: not bench.left(), bench.left)

    try:
        asyncio.run(main())
    finally:
        bench.clear()


def test_a_container_that_ends_while_it_is_paused_and_changed_is_noticed() -> None:
    """Pauses and changes at random moments around its end: it always ends, and can always be started again."""

    async def main() -> None:
        async with running_engine() as engine, asyncio.timeout(60):
            made = config("sh", "-c", "sleep 0.05; exit 5")
            await engine.create(made)
            for turn in range(15):
                await engine.start(made.id)
                await asyncio.sleep(0.01 * (turn % 8))
                for call in (engine.pause, engine.unpause):
                    try:
                        await call(made.id)
                    except SkepError as error:
                        assert "not" in error.text
                await engine.amend(made.id, extra={"turn": turn})
                exit = await engine.wait(made.id)
                assert (exit.code, exit.known) == (5, True)
                assert not known(engine, made.id).paused

    asyncio.run(main())
