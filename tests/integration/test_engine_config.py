# ruff: noqa: ASYNC240 - tests may block
"""What a configuration says is so in the container: devices, namespaces, limits, mounts, volumes. Real runtimes."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from engine_fixture import RUNTIMES, config, run, running_engine, until

from skep.engine.base import Device, Limits
from skep.engine.oci import kernel
from skep.errors import Conflict, Invalid, NotFound, SkepError

pytestmark = pytest.mark.root


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_devices(runtime: str) -> None:
    async def main() -> None:
        async with running_engine(runtime) as engine:
            given = (
                Device(source="/dev/fuse", target="/dev/mine"),
                Device(source="/dev/loop-control", target="/dev/sub/lc", permissions="r"),
            )
            script = "stat -c %t:%T /dev/mine /dev/sub/lc; (: < /dev/mine) && (: < /dev/sub/lc) && echo opened; "
            script += "(: > /dev/sub/lc) 2>&1 | grep -o permitted"
            _, out, _ = await run(engine, "sh", "-c", script, devices=given)
            assert out.split() == ["a:e5", "a:ed", "opened", "permitted"]
            make = "mknod /tmp/d c 10 229 && (: < /tmp/d) 2>&1 | grep -o permitted || echo opened"
            assert (await run(engine, "sh", "-c", make))[1] == "permitted\n"
            assert (await run(engine, "sh", "-c", make, device_rules=("c 10:* rwm",)))[1] == "opened\n"
            folder = Device(source="/dev/pts/..", target="/dev/all")
            _, out, _ = await run(engine, "sh", "-c", "ls /dev/all | grep -cx -e null -e zero", devices=(folder,))
            assert out == "2\n"
            with pytest.raises(
                SkepError, match='error gathering device information while adding custom device "/dev/nosuch": no such file'
            ):
                await engine.create(config("true", devices=(Device(source="/dev/nosuch", target="/x"),)))
            with pytest.raises(SkepError, match='custom device "/etc/passwd": not a device node'):
                await engine.create(config("true", devices=(Device(source="/etc/passwd", target="/x"),)))
            with pytest.raises(Invalid, match="invalid device cgroup rule format: 'x'"):
                await engine.create(config("true", device_rules=("x",)))

    asyncio.run(main())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_privileged(runtime: str) -> None:
    async def main() -> None:
        async with running_engine(runtime) as engine:
            script = "grep -E 'CapEff|Seccomp:' /proc/self/status; mkdir /m && mount -t tmpfs x /m && echo mounted; "
            script += "ls /dev | grep -x kmsg; grep -E ' /sys(/fs/cgroup/[a-z]+)? ' /proc/mounts | cut -d' ' -f4 | cut -d, -f1 | sort -u; "
            script += "head -c 1 /proc/timer_list >/dev/null && echo unmasked; (: >> /proc/sys/kernel/panic) && echo writable"
            code, out, err = await run(engine, "sh", "-c", script, privileged=True)
            lines = out.splitlines()
            ours = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd"))
            assert lines[0].split()[1] == ours.split()[1] and lines[1] == "Seccomp:\t0"
            assert lines[2:] == ["mounted", "kmsg", "rw", "unmasked", "writable"], (out, err)

    asyncio.run(main())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_paths_masked_and_read_only(runtime: str) -> None:
    async def main() -> None:
        async with running_engine(runtime) as engine:
            script = (
                "ls /sys/firmware | wc -l; (: >> /proc/sys/kernel/panic) 2>/dev/null && echo writable; head -c 4 /etc/passwd; : >> /home/x"
            )
            _, out, err = await run(engine, "sh", "-c", script, masked_paths=("/etc/passwd",), readonly_paths=("/home",))
            assert int(out.split()[0]) > 0 and "writable" in out and "root" not in out and "Read-only" in err
            _, out, err = await run(engine, "sh", "-c", script)
            assert out == "0\nroot" and err == ""

    asyncio.run(main())


def namespace(pid: int | str, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_hosts_namespaces(runtime: str) -> None:
    async def main() -> None:
        async with running_engine(runtime) as engine:
            kinds = ("pid", "ipc", "uts", "cgroup", "net")
            own = config("sleep", "600", domainname="example.org", cgroupns_mode="private")
            host = config("sleep", "600", pid_mode="host", ipc_mode="host", uts_mode="host", cgroupns_mode="host", host_network=True)
            for made in (own, host):
                await engine.create(made)
                pid = await engine.start(made.id)
                same = [kind for kind in kinds if namespace(pid, kind) == namespace("self", kind)]
                assert same == ([] if made is own else list(kinds))
                if made is own:
                    text = Path(f"/proc/{pid}/root/proc/sys/kernel/domainname")
                    assert text.parent.exists()
            assert (await run(engine, "cat", "/proc/sys/kernel/domainname", domainname="example.org"))[1] == "example.org\n"
            marker = f"/dev/shm/skt{os.getpid()}"
            try:
                assert (await run(engine, "touch", marker, ipc_mode="host"))[0] == 0
                assert Path(marker).exists()
            finally:
                Path(marker).unlink(missing_ok=True)
            assert (await run(engine, "ls", "/dev/shm", ipc_mode="none"))[0] == 1
            for field in ("pid_mode", "ipc_mode", "uts_mode", "cgroupns_mode"):
                with pytest.raises(Invalid, match="invalid .* mode: x"):
                    await engine.create(config("true", **{field: "x"}))

    asyncio.run(main())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_another_containers_namespaces(runtime: str) -> None:
    """They are looked up when it starts: the other one may have been started again meanwhile."""

    async def main() -> None:
        async with running_engine(runtime) as engine:
            donor = config("sh", "-c", "echo x > /dev/shm/here; exec sleep 600", ipc_mode="shareable", name="donor")
            closed = config("sleep", "600", name="closed")
            for made in (donor, closed):
                await engine.create(made)
            with pytest.raises(NotFound, match="No such container: nosuch"):
                await engine.create(config("true", pid_mode="container:nosuch"))
            guest = config("sh", "-c", "cat /dev/shm/here; exec sleep 600", pid_mode="container:donor", ipc_mode=f"container:{donor.id}")
            await engine.create(guest)
            with pytest.raises(Conflict, match=f"cannot join PID of a non running container: {donor.id}"):
                await engine.start(guest.id)
            for _ in range(2):
                theirs = await engine.start(donor.id)
                await until(Path(f"/proc/{theirs}/root/dev/shm/here").exists)
                pid = await engine.start(guest.id)
                assert [namespace(pid, kind) == namespace(theirs, kind) for kind in ("pid", "ipc", "uts")] == [True, True, False]
                async for record in engine.logs(guest.id, follow=True, tail=1):
                    assert record.data == b"x\n"
                    break
                for made in (guest, donor):
                    await engine.kill(made.id)
                    await engine.wait(made.id)
            await engine.start(closed.id)
            wrong = config("true", ipc_mode="container:closed")
            await engine.create(wrong)
            with pytest.raises(Invalid, match=f"cannot join IPC of container {closed.id}: non-shareable IPC"):
                await engine.start(wrong.id)

    asyncio.run(main())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_with_the_hosts_processes_none_of_its_own_is_left_behind(runtime: str) -> None:
    async def main() -> None:
        async with running_engine(runtime) as engine:
            made = config("sh", "-c", "sleep 599 & echo $!; sleep 0.1; exit 0", pid_mode="host")
            await engine.create(made)
            await engine.start(made.id)
            await engine.wait(made.id)
            child = int([record.data async for record in engine.logs(made.id)][0])
            await until(lambda: not kernel.start_ticks(child))

    asyncio.run(main())


LIMITS_V1 = {
    "memory/memory.limit_in_bytes": str(64 << 20),
    "memory/memory.memsw.limit_in_bytes": str(96 << 20),
    "memory/memory.soft_limit_in_bytes": str(32 << 20),
    "memory/memory.swappiness": "7",
    "cpu/cpu.shares": "512",
    "cpu/cpu.cfs_period_us": "50000",
    "cpu/cpu.cfs_quota_us": "25000",
    "cpuset/cpuset.cpus": "0",
    "cpuset/cpuset.mems": "0",
    "pids/pids.max": "33",
}


LIMITS_V2 = {
    "memory.max": str(64 << 20),
    "memory.swap.max": str(32 << 20),
    "memory.low": str(32 << 20),
    "cpu.max": "25000 50000",
    "cpu.weight": "less than 100",
    "cpuset.cpus": "0",
    "cpuset.mems": "0",
    "pids.max": "33",
}


def limits_in_kernel(group: str, v2: bool) -> dict[str, str]:
    """How shares become a weight differs from runtime to runtime."""
    found = {}
    for name in LIMITS_V2 if v2 else LIMITS_V1:
        controller, slash, file = name.rpartition("/")
        found[name] = Path(f"/sys/fs/cgroup/{controller}{slash}{group}/{file}").read_text().strip()
    if v2 and 1 < int(found["cpu.weight"]) < 100:
        found["cpu.weight"] = "less than 100"
    return found


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_limit_reaches_the_kernel(runtime: str) -> None:
    async def main() -> None:
        async with running_engine(runtime) as engine:
            v2 = engine.describe()["cgroup_version"] == "2"
            limits = Limits(
                memory=64 << 20,
                memory_swap=96 << 20,
                memory_reservation=32 << 20,
                memory_swappiness=7,
                oom_kill_disable=True,
                cpu_shares=512,
                cpu_period=50_000,
                cpu_quota=25_000,
                cpuset_cpus="0",
                cpuset_mems="0",
                pids=33,
                blkio_weight=300,
            )
            made = config("sleep", "600", limits=limits, cgroup_parent=f"{engine.describe()['cgroup_parent']}/own")
            await engine.create(made)
            await engine.start(made.id)
            own = f"{engine.describe()['cgroup_parent']}/own/{made.id}".strip("/")
            missing = engine.describe()["limits_missing"]
            assert limits_in_kernel(own, v2) == (LIMITS_V2 if v2 else LIMITS_V1)
            if v2:
                assert {"memory_swappiness", "oom_kill_disable"} < set(missing)
                weights = [file.read_text() for file in Path("/sys/fs/cgroup", own).glob("io*.weight")]
                assert not weights or any(text not in ("default 100\n", "100\n") for text in weights), weights
                return
            assert "oom_kill_disable 1" in Path(f"/sys/fs/cgroup/memory/{own}/memory.oom_control").read_text()
            if "blkio_weight" not in missing:
                assert list(Path(f"/sys/fs/cgroup/blkio/{own}").glob("blkio*weight"))

    asyncio.run(main())
