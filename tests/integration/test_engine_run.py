# ruff: noqa: ASYNC240 - tests may block
"""Real containers: what a process sees of its configuration, how it ends, and that nothing stays behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path

import pytest
from engine_fixture import IMAGE, Bench, config, run, running_engine, until

from skep.clock import SECOND
from skep.engine.base import Limits, Mount, Ulimit
from skep.engine.oci.engine import OciEngine
from skep.errors import Conflict, Invalid, NotFound, SkepError

pytestmark = pytest.mark.root
RUNTIMES = [name for name in ("auto", "runc") if shutil.which("runc" if name == "runc" else "conmon")]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_process_runs_as_configured(runtime: str) -> None:
    async def main() -> None:
        async with running_engine(runtime) as engine:
            code, out, err = await run(engine, "sh", "-c", "echo out; echo err >&2; exit 7")
            assert (code, out, err) == (7, "out\n", "err\n")
            code, out, _ = await run(
                engine,
                "sh",
                "-c",
                'echo "$A|$HOSTNAME|$HOME|$PATH"; pwd; id -u; id -G; hostname; cat /etc/hostname; cat /etc/resolv.conf; tail -1 /etc/hosts',
                env=("A=1", "A=2", "GONE"),
                cwd="/made/here",
                user="web",
                groups=("extra",),
                hostname="host7",
                resolv_conf="nameserver 10.9.8.7\n",
                hosts=("10.1.2.3\tdb",),
            )
            assert out.splitlines() == [
                "2|host7|/home/web|/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "/made/here",
                "101",
                "102 200 300",
                "host7",
                "host7",
                "nameserver 10.9.8.7",
                "10.1.2.3\tdb",
            ]

    asyncio.run(main())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_cage(runtime: str) -> None:
    """Docker's capabilities, a seccomp filter in force, paths masked or read-only, no device but the harmless ones, no network but lo."""

    async def main() -> None:
        async with running_engine(runtime) as engine:
            _, status, _ = await run(engine, "cat", "/proc/self/status")
            found = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            assert found["CapEff"] == found["CapBnd"] == "00000000a80425fb"
            assert found["Seccomp"] == "2"
            assert found["NoNewPrivs"] == "0"
            _, status, _ = await run(engine, "grep", "-E", "Cap(Eff|Bnd)|NoNew", "/proc/self/status", user="web", no_new_privileges=True)
            assert status.split() == ["CapEff:", "0" * 16, "CapBnd:", "00000000a80425fb", "NoNewPrivs:", "1"]
            code, out, _ = await run(engine, "sh", "-c", "unshare -U true 2>&1; mount -t tmpfs t /tmp 2>&1; (sleep 0; true) && echo forks")
            assert [line.split()[-1] for line in out.splitlines()] == ["permitted", "root?)", "forks"], out
            _, out, _ = await run(
                engine, "sh", "-c", "head -c 10 /proc/kcore | wc -c; echo 1 > /proc/sys/kernel/panic || echo refused; ls /sys/firmware"
            )
            assert out.splitlines()[0] == "0"
            assert "refused" in out
            assert out.splitlines()[-1] == "refused", "/sys/firmware is empty"
            _, out, _ = await run(engine, "sh", "-c", "mknod /tmp/d b 254 0 && cat /tmp/d 2>&1 | head -c 60; ls /sys/class/net")
            assert "not permitted" in out
            assert out.splitlines()[-1] == "lo"
            _, out, _ = await run(
                engine, "grep", "CapBnd", "/proc/self/status", capabilities_add=("NET_ADMIN",), capabilities_drop=("ALL",)
            )
            assert out.split()[1] == f"{1 << 12:016x}"

    asyncio.run(main())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_limits_are_in_force(runtime: str) -> None:
    async def main() -> None:
        async with running_engine(runtime) as engine:
            made = config(
                "sleep",
                "60",
                limits=Limits(nano_cpus=500_000_000, memory=32 << 20, pids=50),
                ulimits=(Ulimit(name="core", soft=0, hard=0), Ulimit(name="nofile", soft=100, hard=1 << 40)),
                shm_size=1 << 20,
                oom_score_adj=500,
            )
            await engine.create(made)
            pid = await engine.start(made.id)
            groups = dict(line.split(":", 2)[1:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines())
            if "memory" in groups:
                assert groups["memory"].endswith(made.id)
                assert Path(f"/sys/fs/cgroup/memory{groups['memory']}/memory.limit_in_bytes").read_text() == f"{32 << 20}\n"
                assert Path(f"/sys/fs/cgroup/pids{groups['pids']}/pids.max").read_text() == "50\n"
                assert Path(f"/sys/fs/cgroup/cpu{groups['cpu']}/cpu.cfs_quota_us").read_text() == "50000\n"
            else:
                assert groups[""].endswith(made.id)
                for name, value in (("memory.max", str(32 << 20)), ("pids.max", "50"), ("cpu.max", "50000 100000")):
                    assert Path(f"/sys/fs/cgroup{groups['']}/{name}").read_text() == f"{value}\n"
            limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
            assert next(line.split()[3:5] for line in limits if line.startswith("Max open files"))[0] == "100"
            assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "500\n"
            assert "size=1024k" in Path(f"/proc/{pid}/mounts").read_text()

    asyncio.run(main())


def test_out_of_memory_is_named() -> None:
    async def main() -> None:
        async with running_engine() as engine:
            events = engine.subscribe()
            made = config(
                "sh", "-c", "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo $x", limits=Limits(memory=16 << 20, memory_swap=16 << 20)
            )
            await engine.create(made)
            await engine.start(made.id)
            exit = await engine.wait(made.id)
            assert (exit.code, exit.oom, exit.error) == (137, True, "out of memory (limit 16MiB)")
            seen = [events.get_nowait()[0] for _ in range(events.qsize())]
            assert seen == ["create", "start", "oom", "die"]

    asyncio.run(main())


def test_mounts() -> None:
    async def main() -> None:
        async with running_engine() as engine:
            source = Path(engine.describe()["root"]) / "shared"
            source.mkdir()
            (source / "file").write_text("hello")
            mounts = (
                Mount(target="/data", source=str(source)),
                Mount(target="/data/ro", source=str(source), read_only=True),
                Mount(target="/scratch", kind="tmpfs", options=("size=65536", "mode=1777")),
            )
            script = "cat /data/file; echo; echo x > /data/new; echo x > /data/ro/no || echo refused; "
            script += "df -k /scratch | tail -1 | awk '{print $2}'; stat -c %a /scratch"
            _, out, _ = await run(engine, "sh", "-c", script, mounts=mounts)
            assert out.split() == ["hello", "refused", "64", "1777"]
            assert (source / "new").read_text() == "x\n"
            code, out, _ = await run(engine, "sh", "-c", "echo x > /file || echo refused; touch /tmp2/x", read_only=True)
            assert out == "refused\n"
            _, out, _ = await run(engine, "sh", "-c", "ps -o comm | sed -n 2p", init=True)
            assert out == "docker-init\n"

    asyncio.run(main())


def test_what_a_container_writes_stays_its_own() -> None:
    async def main() -> None:
        async with running_engine() as engine:
            _, out, _ = await run(engine, "sh", "-c", "rm /etc/group; echo mine > /etc/mine; cat /etc/mine")
            assert out == "mine\n"
            _, out, _ = await run(engine, "ls", "/etc/group", "/etc/mine")
            assert out == "/etc/group\n"

    asyncio.run(main())


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("tty", [False, True])
def test_a_command_that_is_not_there(runtime: str, tty: bool) -> None:
    async def main() -> None:
        async with running_engine(runtime) as engine:
            made = config("nosuch", tty=tty)
            await engine.create(made)
            with pytest.raises(NotFound, match=r'exec: "nosuch": executable file not found in \$PATH'):
                await engine.start(made.id)
            container = engine.get(made.id)
            assert container is not None and not container.running and container.exit is None
            await engine.remove(made.id)
            assert engine.get(made.id) is None

    asyncio.run(main())


def test_refusals() -> None:
    async def main() -> None:
        async with running_engine() as engine:
            made = config("sleep", "60", name="taken")
            await engine.create(made)
            with pytest.raises(Conflict, match='The container name "/taken" is already in use by container "' + made.id):
                await engine.create(config("true", name="taken"))
            with pytest.raises(NotFound, match="No such container: nosuch"):
                await engine.start("nosuch")
            with pytest.raises(Conflict, match="is not running"):
                await engine.kill(made.id)
            for fields in ({"user": "ghost"}, {"capabilities_add": ("CAP_X",)}, {"ulimits": (Ulimit(name="x", soft=1, hard=1),)}):
                with pytest.raises(Invalid):
                    await engine.create(config("true", **fields))
            assert len(engine.all()) == 1
            await engine.start("taken")
            with pytest.raises(Conflict, match="container is running: stop the container before removing or force remove"):
                await engine.remove("taken")
            with pytest.raises(Invalid, match="invalid signal: SIGNOPE"):
                await engine.kill("taken", "SIGNOPE")
            assert engine.get(made.id[:40]) is not None
            await engine.remove("taken", force=True)
            await engine.remove("taken", force=True)

    asyncio.run(main())


def test_stop_grace_and_signals() -> None:
    async def main() -> None:
        async with running_engine() as engine:
            polite = config("sh", "-c", "trap 'echo bye; exit 3' USR1; echo ready; while :; do sleep 0.05; done", stop_signal="SIGUSR1")
            stubborn = config("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done")
            for made in (polite, stubborn):
                await engine.create(made)
                await engine.start(made.id)
                async for record in engine.logs(made.id, follow=True):
                    assert record.data == b"ready\n"
                    break
            assert (await engine.stop(polite.id, grace=20 * SECOND)).code == 3
            begin = time.monotonic()
            assert (await engine.stop(stubborn.id, grace=SECOND // 2)).code == 137
            assert time.monotonic() - begin > 0.4
            again = await engine.stop(stubborn.id)
            assert again.code == 137

    asyncio.run(main())


def test_start_again() -> None:
    async def main() -> None:
        async with running_engine() as engine:
            made = config("sh", "-c", "echo >> /count; wc -l < /count")
            await engine.create(made)
            for _ in range(2):
                await engine.start(made.id)
                assert (await engine.wait(made.id)).code == 0
            lines = [record.data async for record in engine.logs(made.id)]
            assert lines == [b"1\n", b"2\n"]

    asyncio.run(main())


def test_a_cancelled_start_is_not_half_done() -> None:
    """Cancelled at any point, the container either runs or can be started; and what started is known."""

    async def main() -> None:
        async with running_engine() as engine:
            for after in (0.0, 0.002, 0.006, 0.012, 0.02):
                made = config("sleep", "60")
                try:
                    async with asyncio.timeout(after / 10):
                        await engine.create(made)
                except TimeoutError:
                    with pytest.raises(Conflict, match="already in use by container"):
                        await engine.create(config("true", name=made.name))
                try:
                    async with asyncio.timeout(after):
                        await engine.start(made.id)
                except TimeoutError:
                    pass
                pid = await engine.start(made.id)
                container = engine.get(made.id)
                assert container is not None and container.running and container.pid == pid
                await until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")  # noqa: B023

    asyncio.run(main())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_twenty_at_once(runtime: str) -> None:
    async def main() -> None:
        async with running_engine(runtime) as engine:
            made = [config("sh", "-c", f"echo {number}; exec sleep 600") for number in range(20)]

            async def one(index: int) -> None:
                await engine.create(made[index])
                await engine.start(made[index].id)

            async with asyncio.TaskGroup() as group:
                for index in range(20):
                    group.create_task(one(index))
            pids = {container.pid for container in engine.all()}
            assert len(pids) == 20 and all(os.path.exists(f"/proc/{pid}") for pid in pids)

    asyncio.run(main())


def test_an_image_of_very_many_layers() -> None:
    """More layers than fit the mount options of one page by their full names."""
    bench = Bench()

    async def main(engine: OciEngine) -> None:
        await engine.start_up()
        try:
            code, out, _ = await run(engine, "sh", "-c", "ls /layers | wc -l; cat /layers/top")
            assert (code, out.split()) == (0, ["120", "119"])
        finally:
            await engine.destroy()

    try:
        for number in range(120):
            folder = bench.folder / "layers" / f"{number:064d}" / "layers"
            folder.mkdir(parents=True)
            (folder / ("top" if number == 119 else f"f{number}")).write_text(str(number))
            bench.layers.insert(0, str(folder.parent))
        asyncio.run(main(bench.engine()))
        assert bench.left() == []
    finally:
        bench.clear()


def test_a_link_in_the_image_does_not_lead_to_the_host() -> None:
    """/etc/passwd of the image points to the host's: its users must not be taken from there."""
    bench = Bench()
    etc = Path(bench.layers[0]) / "etc"
    (etc / "passwd").unlink()
    (etc / "passwd").symlink_to(bench.folder / "outside")
    (bench.folder / "outside").write_text("intruder:x:0:0::/:/bin/sh\n")

    async def main(engine: OciEngine) -> None:
        await engine.start_up()
        try:
            with pytest.raises(Invalid, match="unable to find user intruder: no matching entries in passwd file"):
                await engine.create(config("true", user="intruder"))
        finally:
            await engine.destroy()

    bench.play(main)


def test_a_missing_image_is_named() -> None:
    async def main() -> None:
        async with running_engine() as engine:
            import msgspec

            with pytest.raises(NotFound, match="No such image: nosuch"):
                await engine.create(msgspec.structs.replace(config("true"), image="nosuch"))
            assert engine.images.get(IMAGE) is not None

    asyncio.run(main())


def test_a_run_directory_too_long_is_refused() -> None:
    bench = Bench()
    bench.run = bench.folder / ("x" * 60)
    try:
        with pytest.raises(SkepError, match="too long"):
            asyncio.run(bench.engine().start_up())
    finally:
        bench.clear()


def test_who_waits_for_a_container_that_is_removed_is_told() -> None:
    async def main() -> None:
        async with running_engine() as engine, asyncio.timeout(20), asyncio.TaskGroup() as group:
            made = config("true")
            await engine.create(made)
            waiting = group.create_task(engine.wait(made.id))
            await asyncio.sleep(0)
            await engine.remove(made.id)
            exit = await waiting
            assert not exit.known and exit.error == "the container was removed"

    asyncio.run(main())


def test_events_tell_the_story() -> None:
    async def main() -> None:
        async with running_engine() as engine:
            events = engine.subscribe()
            made = config("false")
            await engine.create(made)
            await engine.start(made.id)
            await engine.wait(made.id)
            await engine.remove(made.id)
            await until(lambda: events.qsize() == 4)
            seen = [events.get_nowait() for _ in range(4)]
            assert [(action, exit.code if exit else None) for action, _, exit in seen] == [
                ("create", None),
                ("start", None),
                ("die", 1),
                ("destroy", None),
            ]
            engine.unsubscribe(events)

    asyncio.run(main())
