"""A tar taken apart and put together again is the same, byte for byte, however it was made and in whatever pieces it came."""

from __future__ import annotations

import io
import random
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skep.engine.oci.tarsplit import Splitter, joined, number, records
from skep.errors import SkepError


def split(data: bytes, sizes: list[int]) -> bytes:
    out = io.BytesIO()
    splitter = Splitter(out)
    at = 0
    for n in range(10**9):
        if at >= len(data):
            break
        size = sizes[n % len(sizes)]
        splitter.feed(data[at : at + size])
        at += size
    splitter.finish()
    assert splitter.total == len(data)
    return out.getvalue()


def again(record: bytes, root: Path) -> bytes:
    return b"".join(joined(io.BytesIO(record), str(root)))


def unpacked(data: bytes, root: Path) -> Path:
    root.mkdir()
    subprocess.run(["tar", "-xf", "-", "-C", str(root)], input=data, check=True, capture_output=True)
    return root


def make(format: int, entries: list[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "a/b" if format == tarfile.USTAR_FORMAT else "x" * 150
        tar.addfile(link)
    return out.getvalue()


NAMES = st.text("abc/ ü-", min_size=1, max_size=30).filter(lambda n: n.strip("/ .") == n and "//" not in n)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.integers(0, 50), st.binary(max_size=2000), max_size=8),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]),
    st.lists(st.integers(1, 3000), min_size=1, max_size=4),
    st.binary(max_size=1500),
)
def test_any_tar(tmp_path_factory: pytest.TempPathFactory, files: dict[int, bytes], format: int, sizes: list[int], tail: bytes) -> None:
    entries = [(f"d{n}/" + ("long" * 30 if n % 3 == 0 and format != tarfile.USTAR_FORMAT else f"ü{n}"), data) for n, data in files.items()]
    data = make(format, entries) + tail
    root = unpacked(data, tmp_path_factory.mktemp("split") / "root")
    record = split(data, sizes)
    assert again(record, root) == data
    assert split(data, [1 << 20]) is not None


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=4000), st.integers(0, 6), st.integers(1, 700))
def test_bytes_that_are_no_tar_are_kept_whole(tmp_path_factory: pytest.TempPathFactory, data: bytes, zeros: int, size: int) -> None:
    data = data + bytes(512 * zeros) + data
    record = split(data, [size])
    try:
        assert again(record, tmp_path_factory.mktemp("none")) == data
    except SkepError as error:
        assert "put together again" in error.message


def test_what_gnu_tar_and_others_write(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "dir").mkdir(parents=True)
    rng = random.Random(1)
    (source / "dir/big").write_bytes(rng.randbytes(3_000_000))
    (source / "empty").write_bytes(b"")
    (source / "hard").hardlink_to(source / "dir/big")
    (source / "soft").symlink_to("/etc/passwd")
    (source / ("n" * 200)).write_text("a long name")
    with open(source / "sparse", "wb") as file:
        file.seek(5_000_000)
        file.write(b"end")
    for options in (
        ["--format=gnu"],
        ["--format=pax"],
        ["--format=gnu", "--sparse"],
        ["--format=pax", "--sparse"],
        ["--format=v7", "--exclude=nnn*"],
    ):
        data = subprocess.run(["tar", "-C", str(source), *options, "-cf", "-", "."], check=True, capture_output=True).stdout
        record = split(data, [65_536, 10_001])
        assert again(record, unpacked(data, tmp_path / f"out{len(list(tmp_path.iterdir()))}")) == data, options
        if "--sparse" not in options:
            assert len(record) < 20_000, "contents are not kept twice"


def test_a_file_that_changed_is_noticed(tmp_path: Path) -> None:
    data = make(tarfile.PAX_FORMAT, [("a", b"12345"), ("b", b"x")])
    record = split(data, [100])
    root = unpacked(data, tmp_path / "root")
    (root / "a").write_bytes(b"123")
    with pytest.raises(SkepError, match="'a' is not as it was unpacked"):
        again(record, root)
    (root / "a").unlink()
    with pytest.raises(SkepError, match="'a': No such file or directory"):
        again(record, root)
    (root / "a").symlink_to("/etc/hostname")
    with pytest.raises(SkepError, match="'a': Too many levels of symbolic links"):
        again(record, root)


def test_numbers_and_records() -> None:
    assert number(b"0000644\0") == 0o644 and number(b"\x80" + bytes(10) + b"\x05") == 5 and number(b"        ") == 0
    for bad in (b"-1\0", b"99\0", b"\xff" * 12):
        with pytest.raises(ValueError, match=r".*"):
            number(bad)
    assert records(b"12 path=abc\n11 size=10\n") == {b"path": b"abc", b"size": b"10"}
    assert records(b"99 path=abc\n") == {} and records(b"x") == {} and records(b"3 a") == {}
