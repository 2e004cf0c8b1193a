# ruff: noqa: ASYNC240 - tests may block
"""What is mounted into a container: memory, the host's folders and what is mounted below them, volumes. Real runtimes."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import pytest
from engine_fixture import RUNTIMES, Bench, config, run, running_engine, until

from skep.engine.base import Mount
from skep.engine.oci import kernel
from skep.engine.oci.engine import OciEngine
from skep.errors import Invalid, SkepError

pytestmark = pytest.mark.root


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

    bench.play(main)


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
