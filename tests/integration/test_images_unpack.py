"""Layers onto the disk: whiteouts seen through a real overlayfs mount, attributes, compression, and archives that mean harm."""

from __future__ import annotations

import asyncio
import ctypes
import gzip
import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from image_world import images, leftovers

from skep.engine.oci.unpack import Unpacked, unpack
from skep.errors import SkepError
from skep.local.build import EPOCH, Entry, directory, fifo, image, layer, link, push_image, sha256, text
from skep.local.registry import RegistryServer

pytestmark = pytest.mark.root


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


async def chunks(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def run(data: bytes, target: Path, pool: ThreadPoolExecutor, compression: str = "", **more: object) -> Unpacked:
    target.mkdir()
    return asyncio.run(unpack(chunks(data), compression, target, pool, **more))  # type: ignore[arg-type]


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", data: bytes = b"", **pax: str) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode, info.pax_headers = kind, target, len(data), 0o644, pax
    return info, data


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


class Mounted:
    """A read-only overlay of directories, topmost first."""

    def __init__(self, lowers: list[str], at: Path) -> None:
        at.mkdir()
        self._at = at
        self._libc = ctypes.CDLL(None, use_errno=True)
        options = f"lowerdir={':'.join(lowers)}".encode()
        if self._libc.mount(b"overlay", os.fsencode(at), b"overlay", 1, options) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def __enter__(self) -> Path:
        return self._at

    def __exit__(self, *_: object) -> None:
        self._libc.umount2(os.fsencode(self._at), 2)


def test_whiteouts_hide_what_lies_below(tmp_path: Path) -> None:
    low = layer(
        {
            "etc/keep": text("low"),
            "etc/gone": text("low"),
            "opaque/old": text("low"),
            "opaque/deep/old": text("low"),
            "both": directory(),
            "both/old": text("low"),
            "dir/gone/x": text("low"),
        }
    )
    high = layer(
        {
            "etc/.wh.gone": text(""),
            "opaque/.wh..wh..opq": text(""),
            "opaque/new": text("high"),
            ".wh.both": text(""),
            "both/new": text("high"),
            "dir/.wh.gone": text(""),
            "dir/.wh..wh.plnk": directory(),
        }
    )
    with RegistryServer(tmp_path / "registry") as registry:
        push_image(registry.url, "t/white", "1", image([low, high]))
        node = images(tmp_path / "node")
        found = asyncio.run(node.pull(f"{registry.address}/t/white:1"))
    with Mounted(node.rootfs_layers(found.id), tmp_path / "mounted") as root:
        seen = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
        assert seen == ["both", "both/new", "dir", "etc", "etc/keep", "opaque", "opaque/new"]
        assert (root / "etc").stat().st_mtime == EPOCH
        assert (root / "dir").stat().st_mtime == EPOCH


def test_a_layer_named_twice_is_mounted_once(tmp_path: Path) -> None:
    one, two = layer({"a": text("1")}), layer({"a": text("2"), "b": text("2")})
    with RegistryServer(tmp_path / "registry") as registry:
        push_image(registry.url, "t/dup", "1", image([one, two, one]))
        node = images(tmp_path / "node")
        found = asyncio.run(node.pull(f"{registry.address}/t/dup:1"))
    assert len(found.layers) == 3 and len(node.rootfs_layers(found.id)) == 2
    with Mounted(node.rootfs_layers(found.id), tmp_path / "mounted") as root:
        assert ((root / "a").read_text(), (root / "b").read_text()) == ("1", "2")


def test_127_layers_can_be_mounted(tmp_path: Path) -> None:
    layers = [layer({f"f{n}": text(str(n))}) for n in range(127)]
    with RegistryServer(tmp_path / "registry") as registry:
        push_image(registry.url, "t/high", "1", image(layers))
        root = Path("/var/tmp") / f"skt{os.getpid()}"
        try:
            node = images(root)
            found = asyncio.run(node.pull(f"{registry.address}/t/high:1"))
            with Mounted(node.rootfs_layers(found.id), tmp_path / "mounted") as seen:
                assert len(list(seen.iterdir())) == 127
        finally:
            shutil.rmtree(root, ignore_errors=True)


def test_owners_modes_links_times_and_attributes(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    data = layer(
        {
            "bin/su": Entry(b"x", stat.S_IFREG | 0o4755),
            "home/ann": Entry(mode=stat.S_IFDIR | 0o2770, uid=1000, gid=1000),
            "home/ann/f": Entry(b"y", stat.S_IFREG | 0o640, uid=1000, gid=1001),
            "lib64": link("/usr/lib64"),
            "up": link("../../etc/passwd"),
            "pipe": fifo(0o600),
            "dev/null": Entry(mode=stat.S_IFCHR | 0o666, device=(1, 3)),
        }
    )
    made = run(data, tmp_path / "out", executor)
    root = tmp_path / "out"
    assert made.diff_id == made.digest == sha256(data) and made.size == 2
    assert stat.S_IMODE((root / "bin/su").stat().st_mode) == 0o4755
    assert stat.S_IMODE((root / "home/ann").stat().st_mode) == 0o2770 and (root / "home/ann").stat().st_mtime == EPOCH
    assert ((root / "home/ann/f").stat().st_uid, (root / "home/ann/f").stat().st_gid) == (1000, 1001)
    assert os.readlink(root / "lib64") == "/usr/lib64" and os.readlink(root / "up") == "../../etc/passwd"
    assert stat.S_ISFIFO((root / "pipe").stat().st_mode) and stat.S_ISCHR((root / "dev/null").stat().st_mode)
    hard = archive(member("a", data=b"12"), member("b", tarfile.LNKTYPE, "a"))
    assert run(hard, tmp_path / "hard", executor).size == 2
    assert (tmp_path / "hard/a").stat().st_ino == (tmp_path / "hard/b").stat().st_ino


def test_gzip_in_several_members_and_zstd(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    data = layer({"a": text("x" * 3_000_000)})
    parts = gzip.compress(data[:1000]) + gzip.compress(data[1000:])
    assert run(parts, tmp_path / "gzip", executor, "gzip").diff_id == sha256(data)
    packed = subprocess.run(["zstd", "-c"], input=data, capture_output=True, check=True).stdout
    made = run(packed, tmp_path / "zstd", executor, "zstd", digest=sha256(packed))
    assert made.diff_id == sha256(data) and (tmp_path / "zstd/a").stat().st_size == 3_000_000
    for bad, compression in ((packed[:-9], "zstd"), (parts[:-9], "gzip"), (b"nonsense", "gzip"), (b"nonsense", "zstd"), (b"", "gzip")):
        target = tmp_path / f"bad{len(list(tmp_path.iterdir()))}"
        with pytest.raises(SkepError, match=compression):
            run(bad, target, executor, compression)


OUTSIDE = "outside-was-here"


@pytest.mark.parametrize(
    "members",
    [
        [member(f"../{OUTSIDE}", data=b"x")],
        [member(f"a/../../{OUTSIDE}", data=b"x")],
        [member("up", tarfile.SYMTYPE, ".."), member(f"up/{OUTSIDE}", data=b"x")],
        [member("root", tarfile.SYMTYPE, "@PARENT@"), member(f"root/{OUTSIDE}", data=b"x")],
        [member("hop", tarfile.SYMTYPE, ".."), member("hop2", tarfile.SYMTYPE, "hop"), member(f"hop2/{OUTSIDE}", data=b"x")],
        [member("d", tarfile.DIRTYPE), member("d", tarfile.SYMTYPE, ".."), member(f"d/{OUTSIDE}", data=b"x")],
        [member("link", tarfile.LNKTYPE, "../secret"), member("link", data=b"x")],
    ],
    ids=["dotdot", "inner dotdot", "through a link", "through an absolute link", "two hops", "directory turned link", "hard link"],
)
def test_an_archive_cannot_write_or_link_outside(
    members: list[tuple[tarfile.TarInfo, bytes]], tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    (tmp_path / "secret").write_text("secret")
    for info, _ in members:
        info.linkname = info.linkname.replace("@PARENT@", str(tmp_path))
    try:
        run(archive(*members), tmp_path / "out", executor)
    except SkepError as error:
        assert error.message.startswith("the layer cannot be unpacked: ")
    assert not (tmp_path / OUTSIDE).exists()
    assert (tmp_path / "secret").read_text() == "secret" and (tmp_path / "secret").stat().st_nlink == 1


def test_absolute_names_land_inside(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    run(
        archive(member(f"/{tmp_path}/{OUTSIDE}", data=b"x"), member("h", tarfile.LNKTYPE, f"{tmp_path}/{OUTSIDE}")),
        tmp_path / "out",
        executor,
    )
    assert not (tmp_path / OUTSIDE).exists() and (tmp_path / "out" / str(tmp_path)[1:] / OUTSIDE).exists()


def test_devices_that_no_container_may_open_and_false_whiteouts_are_left_out(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    data = layer(
        {
            "disk": Entry(mode=stat.S_IFBLK | 0o666, device=(8, 0)),
            "mem": Entry(mode=stat.S_IFCHR | 0o666, device=(1, 1)),
            "white": Entry(mode=stat.S_IFCHR | 0o666, device=(0, 0)),
            "zero": Entry(mode=stat.S_IFCHR | 0o666, device=(1, 5)),
        }
    )
    run(data, tmp_path / "out", executor)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["zero"]


def test_attributes_cannot_speak_to_overlayfs(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    keys = {"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.trusted.overlay.redirect": "/etc", "SCHILY.xattr.user.note": "kept"}
    run(archive(member("d", tarfile.DIRTYPE, **keys)), tmp_path / "out", executor)
    assert os.listxattr(tmp_path / "out/d") == ["user.note"]


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "a/.wh.."])
def test_a_whiteout_of_nothing_is_refused(name: str, tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    with pytest.raises(SkepError, match="invalid whiteout"):
        run(layer({name: text("")}), tmp_path / "out", executor)


def test_a_bomb_is_stopped_at_the_limit(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    bomb = gzip.compress(archive(member("zeros", data=bytes(64 << 20))))
    assert len(bomb) < 100_000
    with pytest.raises(SkepError, match="the layer unpacks to more than 1048576 bytes"):
        run(bomb, tmp_path / "out", executor, "gzip", limit=1 << 20)
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) <= 1 << 20


def test_rubbish_is_refused_in_one_line(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    with pytest.raises(SkepError, match="the layer cannot be unpacked: This does not look like a tar archive") as caught:
        run(b"rubbish" * 1000, tmp_path / "out", executor)
    assert "\n" not in caught.value.message
    cut = layer({"a": text("x" * 5000)})[:3000]
    with pytest.raises(SkepError, match="Unexpected EOF in archive"):
        run(cut, tmp_path / "cut", executor)


def test_bytes_after_the_end_mark_count_for_the_digest(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    data = layer({"a": text("a")}) + b"\0" * 2_000_000 + b"tail" * 100_000
    assert run(data, tmp_path / "out", executor).diff_id == sha256(data)


def test_importing_a_tar_as_an_image(tmp_path: Path) -> None:
    data = layer({"bin/sh": text("x")})
    node = images(tmp_path)

    async def main() -> None:
        id = await node.import_archive(chunks(gzip.compress(data)), reference="mine:1", message="by hand", changes=['CMD ["sh"]'])
        made = node.get(id)
        assert made is not None and made.comment == "by hand" and made.history[0]["comment"] == "by hand" and made.created > 0
        assert made.tags == ("mine:1",) and made.layers == (sha256(data),) and made.config.cmd == ("sh",)
        assert os.listdir(node.rootfs_layers(made.id)[0]) == ["bin"]
        await node.collect()
        assert node.get("mine:1") is not None and leftovers(tmp_path) == []

    asyncio.run(main())
