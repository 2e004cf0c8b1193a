# ruff: noqa: ASYNC240 - tests may block
"""Files in and out of containers: what comes back, and that nothing is read or written outside of them, whatever an archive says."""

from __future__ import annotations

import asyncio
import bz2
import gzip
import io
import lzma
import os
import shutil
import stat
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_fixture import Bench, config, running_engine, started, until
from tars import pack, read, sent

from skep.engine.base import Engine, Mount
from skep.engine.oci.archive import _Plain
from skep.engine.oci.engine import OciEngine
from skep.errors import Forbidden, Invalid, NotFound, SkepError

pytestmark = pytest.mark.root


def in_both_states(check: Callable[[Engine, str], object], *args: str, **fields: object) -> None:
    """The same answers while a container runs, after it has ended, and before it was ever started."""

    async def main() -> None:
        async with running_engine() as engine:
            for state in ("running", "ended", "created"):
                made = config(*(args or ("sleep", "600")), **fields)
                await engine.create(made)
                if state != "created":
                    await engine.start(made.id)
                if state == "ended":
                    await engine.kill(made.id)
                    await engine.wait(made.id)
                await check(engine, made.id)  # type: ignore[misc]
                if state == "ended":  # it can be started after somebody looked, and is taken down when nobody looks any more
                    assert isinstance(engine, OciEngine)
                    rootfs = Path(engine.describe()["root"]).parent / "r" / "c" / made.id / "rootfs"
                    await until(lambda: not os.path.ismount(rootfs))  # noqa: B023
                    await engine.start(made.id)
                await engine.remove(made.id, force=True)

    asyncio.run(main())


def test_what_a_path_is() -> None:
    async def check(engine: Engine, id: str) -> None:
        found = await engine.stat_path(id, "/etc/passwd")
        assert (found.name, stat.S_IMODE(found.mode), found.link_target) == ("passwd", 0o644, "") and found.size > 50
        folder = await engine.stat_path(id, "/tmp/")
        assert folder.name == "tmp" and folder.mode == 1 << 31 | 1 << 20 | 0o777
        assert (await engine.stat_path(id, "/")).name == "/"
        link = await engine.stat_path(id, "/bin/sh")
        assert link.mode & 1 << 27 and link.link_target == "/bin/busybox"
        for path in ("/nosuch", "/etc/passwd/x", "/nosuch/../../../nosuch"):
            with pytest.raises(NotFound, match=f"Could not find the file .*nosuch|/etc/passwd/x in container {id}"):
                await engine.stat_path(id, path)
        with pytest.raises(NotFound, match="No such container: nosuch"):
            await engine.stat_path("nosuch", "/")

    in_both_states(check)


def test_files_come_out_under_the_names_docker_gives_them() -> None:
    async def check(engine: Engine, id: str) -> None:
        assert list(await read(engine.read_archive(id, "/etc/group"))) == ["group"]
        names = set(await read(engine.read_archive(id, "/etc")))
        assert {"etc", "etc/passwd", "etc/group", "etc/hosts"} <= names and all(name.split("/")[0] == "etc" for name in names)
        assert {".", "./passwd"} <= set(await read(engine.read_archive(id, "/etc/.")))
        assert {"/etc/passwd", "/bin/busybox"} <= set(await read(engine.read_archive(id, "/")))
        link = (await read(engine.read_archive(id, "/bin/sh")))["sh"]
        assert link.issym() and link.linkname == "busybox"
        hosts = (await read(engine.read_archive(id, "/etc/hosts")))["hosts"]
        assert "127.0.0.1\tlocalhost" in hosts.pax_headers["content"]
        with pytest.raises(NotFound, match=f"Could not find the file /nosuch in container {id}"):
            await read(engine.read_archive(id, "/nosuch"))

    in_both_states(check)


def test_names_that_tar_or_sed_would_misread() -> None:
    async def main() -> None:
        async with running_engine() as engine:
            id = await started(engine, "sleep", "600")
            for name in ("-rf", "a,b&c\\1", "new\nline", "--checkpoint-action=exec=touch x", "*", "ä"):
                await engine.write_archive(id, "/home", sent(pack((name, None), (f"{name}/inner", b"1"), (f"f{name}", b"2"))))
                names = await read(engine.read_archive(id, f"/home/{name}"))
                assert list(names) == [name, f"{name}/inner"]
                file = await read(engine.read_archive(id, f"/home/f{name}"))
                assert file[f"f{name}"].pax_headers["content"] == "2"

    asyncio.run(main())


def test_files_go_in_with_owner_mode_and_times() -> None:
    async def check(engine: Engine, id: str) -> None:
        data = pack(("d", None), ("d/file", b"hello"), ("d/link", "file"), ("deep/er/file", b"x"), uid=7, gid=8)
        await engine.write_archive(id, "/home", sent(data))
        found = await read(engine.read_archive(id, "/home"))
        file = found["home/d/file"]
        assert (file.uid, file.gid, file.mode, int(file.mtime)) == (7, 8, 0o640, 1_000_000_000)
        assert file.pax_headers["content"] == "hello" and found["home/d/link"].linkname == "file"
        assert int(found["home/d"].mtime) == 1_000_000_000 and found["home/d"].mode == 0o750
        assert found["home/deep/er/file"].isfile()
        await engine.write_archive(id, "/home", sent(pack(("own", b"x"))), copy_owner=True)
        own = (await read(engine.read_archive(id, "/home/own")))["own"]
        assert (own.uid, own.gid) == (101, 102)

    in_both_states(check, user="web")


def test_what_cannot_be_unpacked_is_refused() -> None:
    async def check(engine: Engine, id: str) -> None:
        for path, error, words in (
            ("/nosuch", NotFound, f"Could not find the file /nosuch in container {id}"),
            ("/etc/passwd", Invalid, "extraction point is not a directory"),
        ):
            with pytest.raises(error, match=words):
                await engine.write_archive(id, path, sent(pack(("x", b"x"))))
        with pytest.raises(Invalid, match="is outside of"):
            await engine.write_archive(id, "/home", sent(pack(("../../x", b"x"))))
        with pytest.raises(Invalid, match="the archive cannot be read"):
            await engine.write_archive(id, "/home", sent(b"no archive at all" * 1000))
        with pytest.raises(Invalid, match="the archive cannot be read"):
            await engine.write_archive(id, "/home", sent(pack(("x", b"x" * 5000))[:3000]))
        with pytest.raises(Invalid, match="nested too deeply"):
            await engine.write_archive(id, "/home", sent(pack(("/".join("d" * 1500), b"x"))))
        with pytest.raises(Invalid, match="invalid hardlink"):
            await engine.write_archive(id, "/home", sent(pack(("x", b""), type=tarfile.LNKTYPE, linkname="../../etc/passwd")))
        with pytest.raises(Invalid, match='cannot overwrite directory "/etc" with non-directory "etc"'):
            await engine.write_archive(id, "/", sent(pack(("etc", b"x"))), keep_type=True)
        with pytest.raises(Invalid, match='cannot overwrite non-directory "/etc/group" with directory "group"'):
            await engine.write_archive(id, "/etc", sent(pack(("group", None))), keep_type=True)
        assert not (await engine.stat_path(id, "/etc/group")).mode & 1 << 31
        await engine.write_archive(id, "/home", sent(pack(("t", None), ("t/x", b"1"))))
        await engine.write_archive(id, "/home", sent(pack(("t", b"a file now"))))
        assert (await read(engine.read_archive(id, "/home/t")))["t"].pax_headers["content"] == "a file now"

    in_both_states(check)


def test_nothing_leads_out_of_a_container() -> None:
    """Absolute links, links with many `..`, links below links, magic links of /proc: all end inside."""
    bench = Bench()
    outside = bench.folder / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    image = Path(bench.layers[0])
    (image / str(outside)[1:]).mkdir(parents=True)
    (image / "abs").symlink_to(outside)
    (image / "rel").symlink_to("../" * 20 + str(outside).lstrip("/"))
    (image / "file").symlink_to(outside / "secret")
    (image / "magic").symlink_to("/proc/1/root" + str(outside))

    async def main(engine: OciEngine) -> None:
        await engine.start_up()
        try:
            for state in ("running", "ended"):
                made = config("sleep", "600", pid_mode="host")
                await engine.create(made)
                await engine.start(made.id)
                if state == "ended":
                    await engine.kill(made.id)
                    await engine.wait(made.id)
                for name in ("abs", "rel", "magic"):
                    with pytest.raises(NotFound):
                        await engine.stat_path(made.id, f"/{name}/secret")
                    if name == "magic":
                        with pytest.raises(NotFound):
                            await engine.write_archive(made.id, f"/{name}", sent(pack(("new", b"x"))))
                    else:
                        await engine.write_archive(made.id, f"/{name}", sent(pack((f"by-{name}", b"x"))))
                        assert f"{name}/by-{name}" in await read(engine.read_archive(made.id, f"/{name}/"))
                assert (await read(engine.read_archive(made.id, "/file")))["file"].issym()
                hostile = [(f"{name}/new", b"x") for name in ("abs", "rel")] + [("l", str(outside)), ("l/new", b"x"), ("file", b"y")]
                await engine.write_archive(made.id, "/", sent(pack(*hostile)))
                await engine.write_archive(made.id, "/home", sent(pack(("up", "../../../.."), ("up/new", b"x"))))
                assert (await read(engine.read_archive(made.id, str(outside))))["outside/new"].isfile(), "it is inside"
                dangling = pack(("way", "/tmp/nowhere"), ("way/new", b"x"))
                with pytest.raises(SkepError, match="cannot unpack the archive: No such file or directory"):
                    await engine.write_archive(made.id, "/", sent(dangling))
                assert sorted(path.name for path in outside.iterdir()) == ["secret"]
                assert (outside / "secret").read_text() == "secret" and not Path("/new").exists()
                await engine.remove(made.id, force=True)
        finally:
            await engine.destroy()

    bench.play(main)


def test_volumes_are_seen_and_read_only_is_kept() -> None:
    bench = Bench()
    (bench.folder / "v").mkdir()
    (bench.folder / "v" / "kept").write_text("1")

    async def main(engine: OciEngine) -> None:
        await engine.start_up()
        source = str(bench.folder / "v")
        mounts = (Mount(target="/rw", source=source), Mount(target="/ro", source=source, read_only=True), Mount(target="/t", kind="tmpfs"))
        try:
            for read_only in (False, True):
                for running in (True, False):
                    made = config("sleep", "600", mounts=mounts, read_only=read_only)
                    await engine.create(made)
                    await engine.start(made.id)
                    if not running:
                        await engine.kill(made.id)
                        await engine.wait(made.id)
                    assert (await read(engine.read_archive(made.id, "/rw/kept")))["kept"].pax_headers["content"] == "1"
                    await engine.write_archive(made.id, "/rw", sent(pack((f"new{read_only}{running}", b"x"))))
                    assert (bench.folder / "v" / f"new{read_only}{running}").exists()
                    with pytest.raises(Forbidden, match="read-only"):
                        await engine.write_archive(made.id, "/ro", sent(pack(("no", b"x"))))
                    if read_only:
                        with pytest.raises(Forbidden, match="read-only"):
                            await engine.write_archive(made.id, "/home", sent(pack(("no", b"x"))))
                    exported = await read(engine.export(made.id))
                    assert "rw/kept" not in exported and "bin/busybox" in exported and "etc/passwd" in exported
                    await engine.remove(made.id, force=True)
            assert not (bench.folder / "v" / "no").exists()
        finally:
            await engine.destroy()

    bench.play(main)


def squeezed(kind: str, data: bytes) -> bytes:
    if kind == "zstd":
        return subprocess.run(["zstd", "-q"], input=data, capture_output=True, check=True).stdout
    return {"gzip": gzip, "bzip2": bz2, "xz": lzma}[kind].compress(data)


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz", *(["zstd"] if shutil.which("zstd") else [])])
def test_compressed_archives_go_in_too(kind: str) -> None:
    async def main() -> None:
        async with running_engine() as engine:
            id = await made(engine)
            await engine.write_archive(id, "/tmp", sent(squeezed(kind, pack(("a", b"one"), ("b", b"two")))))
            found = await read(engine.read_archive(id, "/tmp/a"))
            assert found["a"].pax_headers["content"] == "one"
            with pytest.raises(Invalid, match="the archive cannot be read"):
                whole = squeezed(kind, pack(("a", os.urandom(100_000))))
                await engine.write_archive(id, "/tmp", sent(whole[: len(whole) // 2]))

    async def made(engine: Engine) -> str:
        wanted = config("true")
        await engine.create(wanted)
        return wanted.id

    asyncio.run(main())


def test_few_bytes_that_stand_for_many_are_not_taken_into_memory() -> None:
    packer, bomb = bz2.BZ2Compressor(9), b""
    for _ in range(16):
        bomb += packer.compress(bytes(1 << 24))
    bomb += packer.flush()
    assert len(bomb) < 1000
    tracemalloc.start()
    try:
        plain = _Plain(io.BytesIO(bomb))
        total = 0
        while piece := plain.read(1 << 18):
            total += len(piece)
        assert total == 16 << 24
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
