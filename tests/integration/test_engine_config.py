# ruff: noqa: ASYNC240 - tests may block
"""What a configuration says is so in the container: devices, namespaces, limits, mounts, volumes. Real runtimes."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import pytest
from engine_fixture import RUNTIMES, Bench, config, run, running_engine, until

from skep.engine.base import Device, Limits, Mount
from skep.engine.oci import kernel
from skep.engine.oci.engine import OciEngine
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


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_tmpfs_options(runtime: str) -> None:
    async def main() -> None:
        async with running_engine(runtime) as engine:
            mounts = (
                Mount(target="/a", kind="tmpfs"),
                Mount(target="/b", kind="tmpfs", options=("size=64k", "mode=0700", "uid=101", "exec")),
                Mount(target="/c", kind="tmpfs", read_only=True),
            )
            script = "for d in a b c; do grep \" /$d \" /proc/mounts | cut -d' ' -f4; done; stat -c '%a %u' /b"
            _, out, _ = await run(engine, "sh", "-c", script, mounts=mounts)
            a, b, c, stat = out.splitlines()
            assert {"rw", "nosuid", "nodev", "noexec"} <= set(a.split(","))
            assert {"rw", "nosuid", "nodev", "size=64k"} <= set(b.split(",")) and "noexec" not in b
            assert "ro" in c.split(",") and stat == "700 101"
            with pytest.raises(Invalid, match='Invalid tmpfs option "nosuch=1"'):
                await engine.create(config("true", mounts=(Mount(target="/a", kind="tmpfs", options=("nosuch=1",)),)))

    asyncio.run(main())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_propagation(runtime: str) -> None:
    async def main() -> None:
        async with running_engine(runtime) as engine:
            folder = Path(engine.describe()["root"]).parent
            private, shared = folder / "private", folder / "r" / "shared"
            (private).mkdir()
            (shared / "sub").mkdir(parents=True)
            kernel.mount(str(private), str(private), flags=kernel.MS_BIND)
            kernel.mount("", str(private), flags=kernel.MS_PRIVATE)
            try:
                for mode, words in (("rshared", "a shared mount"), ("rslave", "a shared or slave mount")):
                    wrong = config("true", mounts=(Mount(target="/m", source=str(private), propagation=mode),))
                    text = f"path {private} is mounted on {private} but it is not {words}"
                    with pytest.raises(SkepError, match=re.escape(text)):
                        await engine.create(wrong)
                slave = config("sleep", "600", mounts=(Mount(target="/m", source=str(shared), propagation="rslave"),))
                await engine.create(slave)
                pid = await engine.start(slave.id)
                kernel.mount("tmpfs", str(shared / "sub"), "tmpfs")
                (shared / "sub" / "later").touch()
                assert Path(f"/proc/{pid}/root/m/sub/later").exists(), "a later mount of the host arrives"
                kernel.umount(str(shared / "sub"))
                both = config(
                    "sh",
                    "-c",
                    "mount -t tmpfs x /m/sub && touch /m/sub/out && sleep 600",
                    privileged=True,
                    mounts=(Mount(target="/m", source=str(shared), propagation="rshared"),),
                )
                if engine.runtime.namespace:
                    with pytest.raises(SkepError, match="on a host with hybrid cgroups propagation rshared needs the runtime runc"):
                        await engine.create(both)
                    return
                await engine.create(both)
                await engine.start(both.id)
                await until((shared / "sub" / "out").exists)
                await engine.remove(both.id, force=True)
                kernel.umount(str(shared / "sub"))
            finally:
                kernel.umount(str(private))

    asyncio.run(main())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_is_mounted_below_a_bind_mount_outlives_the_container(runtime: str) -> None:
    """A host's /run or / bound into a container, as agents do: the copies of its shared mounts are not unmounted in the host's name."""

    def below() -> list[str]:
        return sorted(point.path for point in kernel.mounts() if point.path.endswith(("/inner/pin", "/inner/later")))

    async def main() -> None:
        async with running_engine(runtime) as engine:
            folder = Path(engine.describe()["root"]).parent / "private"
            inner = folder / "inner"
            folder.mkdir()
            kernel.mount("tmpfs", str(folder), "tmpfs")
            kernel.mount("", str(folder), flags=kernel.MS_PRIVATE)
            try:
                inner.mkdir()
                kernel.mount("tmpfs", str(inner), "tmpfs")
                kernel.mount("", str(inner), flags=kernel.MS_SHARED)
                for name in ("pin", "later"):
                    (inner / name).mkdir()
                kernel.mount("tmpfs", str(inner / "pin"), "tmpfs")
                made = config("sleep", "600", mounts=(Mount(target="/m", source=str(folder)),))
                await engine.create(made)
                for _ in range(2):
                    pid = await engine.start(made.id)
                    assert Path(f"/proc/{pid}/root/m/inner/pin").is_dir()
                    kernel.mount("tmpfs", str(inner / "later"), "tmpfs")
                    kernel.umount(str(inner / "later"))
                    assert not [path for path in below() if path.endswith("later")], "nothing is held that the host has given up"
                    await engine.kill(made.id)
                    await engine.wait(made.id)
                    await until(lambda: below() == [str(inner / "pin")])
                await engine.remove(made.id)
                assert below() == [str(inner / "pin")]
            finally:
                kernel.umount(str(folder))

    asyncio.run(main())


def test_a_new_volume_gets_what_the_image_has_there() -> None:
    """Contents, owner, mode and links; once, only while it is empty, and never anything from outside of the image."""
    bench = Bench()
    image = Path(bench.layers[0])
    (image / "data/deep").mkdir(parents=True)
    (image / "data/deep/file").write_text("from the image")
    (image / "data/out").symlink_to("/etc/shadow")
    os.chown(image / "data/deep/file", 101, 102)
    os.chown(image / "data", 7, 8)
    (image / "data").chmod(0o2750)
    (image / "empty").mkdir(mode=0o700)
    os.chown(image / "empty", 9, 9)
    (image / "evil").symlink_to(bench.folder / "host")
    (bench.folder / "host").mkdir()
    (bench.folder / "host" / "secret").touch()

    def volume(name: str, target: str, **fields: object) -> Mount:
        (bench.folder / name).mkdir(exist_ok=True)
        return Mount(target=target, source=str(bench.folder / name), copy_up=True, volume=name, **fields)  # type: ignore[arg-type]

    async def main(engine: OciEngine) -> None:
        await engine.start_up()
        try:
            script = "stat -c '%a %u:%g' /data /data/deep/file; cat /data/deep/file; readlink /data/out; echo new > /data/deep/file"
            _, out, _ = await run(engine, "sh", "-c", script, mounts=(volume("v1", "/data"),))
            assert out == "2750 7:8\n644 101:102\nfrom the image/etc/shadow\n"
            _, out, _ = await run(engine, "cat", "/data/deep/file", mounts=(volume("v1", "/data"),))
            assert out == "new\n", "it is filled once"
            _, out, _ = await run(engine, "stat", "-c", "%a %u", "/empty", mounts=(volume("v2", "/empty"),))
            assert out == "700 9\n"
            made = config("true", mounts=(volume("v3", "/evil"), volume("v4", "/nosuch"), volume("v5", "/etc/passwd")))
            await engine.create(made)
            assert [list((bench.folder / name).iterdir()) for name in ("v3", "v4", "v5")] == [[], [], []]
            plain = volume("v6", "/data")
            await engine.create(config("true", mounts=(Mount(target="/data", source=plain.source),)))
            assert list((bench.folder / "v6").iterdir()) == [], "nocopy"
        finally:
            await engine.destroy()

    try:
        asyncio.run(main(bench.engine()))
        assert bench.left() == []
    finally:
        bench.clear()


def test_what_is_missing_is_made() -> None:
    async def main() -> None:
        async with running_engine() as engine:
            folder = Path(engine.describe()["root"]) / "source"
            folder.mkdir()
            (folder / "file").write_text("x")
            mounts = (Mount(target="/not/there", source=str(folder)), Mount(target="/a/file", source=str(folder / "file")))
            _, out, _ = await run(engine, "sh", "-c", "pwd; cat /not/there/file /a/file", cwd="/deep/er", mounts=mounts)
            assert out == "/deep/er\nxx"
            with pytest.raises(Invalid, match="Cannot mkdir: /etc/passwd is not a directory"):
                await engine.create(config("true", cwd="/etc/passwd"))
            _, out, _ = await run(engine, "sh", "-c", "pwd; touch /x", cwd="/made", read_only=True)
            assert out == "/made\n"

    asyncio.run(main())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_the_host_has_mounted_since_we_started_is_what_a_container_gets(runtime: str) -> None:
    bench = Bench(runtime)
    late = bench.folder / "late"
    late.mkdir()

    async def main() -> None:
        engine = bench.engine()
        await engine.start_up()
        try:
            kernel.mount("tmpfs", str(late), "tmpfs")
            kernel.mount("", str(late), flags=kernel.MS_PRIVATE)
            (late / "file").write_text("late")
            mounts = (Mount(target="/a", source=str(late)), Mount(target="/b", source=str(late / "file"), read_only=True))
            _, out, _ = await run(engine, "sh", "-c", "cat /a/file /b; echo x > /a/new; echo x > /b || echo refused", mounts=mounts)
            assert out == "latelaterefused\n" and (late / "new").exists()
        finally:
            await engine.destroy()

    try:
        asyncio.run(main())
    finally:
        kernel.umount(str(late))
        assert bench.left() == []
        bench.clear()
