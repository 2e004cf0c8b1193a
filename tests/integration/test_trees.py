"""Trees deeper than recursion, paths and descriptors go; what is mounted in one is nobody's to remove."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from skep.engine import trees


@pytest.fixture(autouse=True)
def cleared(tmp_path: Path) -> Iterator[None]:
    """What is nested too deep would be too much for pytest as well."""
    yield
    subprocess.run(["rm", "-rf", str(tmp_path)], check=True)


def deepen(top: Path, levels: int) -> None:
    """By descriptors: the path of the lowest is too long for any call."""
    at = os.open(top, os.O_RDONLY)
    for level in range(levels):
        os.mkdir("d", dir_fd=at)
        if level % 50 == 0:
            os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=at))
        at, last = os.open("d", os.O_RDONLY, dir_fd=at), at
        os.close(last)
    os.close(at)


@contextmanager
def few_descriptors(number: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("levels", [3, 64, 65, 66, 1500, 3000])
def test_a_tree_of_any_depth_goes(tmp_path: Path, levels: int) -> None:
    top = tmp_path / "top"
    top.mkdir()
    deepen(top, levels)
    for name in ("a", "b"):
        (top / name).mkdir()
        deepen(top / name, 130)
    (top / ".0.0.deep").mkdir()
    (top / ".0.0.deep" / "of its own").touch()
    with few_descriptors(len(os.listdir("/proc/self/fd")) + trees.DEEPEST + 20):
        trees.remove(top)
    assert not top.exists()
    trees.remove(top)


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "kept").touch()
    top = tmp_path / "top"
    top.mkdir()
    (top / "link").symlink_to(other)
    (top / "dangling").symlink_to("/nowhere/at/all")
    os.mkfifo(top / "fifo")
    trees.remove(top)
    assert not top.exists() and (other / "kept").exists()
    (tmp_path / "itself").symlink_to(other)
    trees.remove(tmp_path / "itself")
    assert not (tmp_path / "itself").is_symlink() and (other / "kept").exists()


def test_the_size_counts_each_file_once_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x" * 100)
    os.link(tmp_path / "one", tmp_path / "again")
    (tmp_path / "link").symlink_to("one")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "two").write_bytes(b"x" * 10)
    deepen(tmp_path / "below", 2200)
    assert trees.size(tmp_path) == 110
    assert trees.size(tmp_path / "none") == 0
    trees.remove(tmp_path / "below")


@pytest.mark.root
def test_what_is_mounted_below_stays_with_the_way_to_it(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    top = tmp_path / "top"
    (top / "a" / "mounted").mkdir(parents=True)
    (top / "a" / "other").touch()
    subprocess.run(["mount", "--bind", str(precious), str(top / "a" / "mounted")], check=True)
    try:
        with pytest.raises(OSError, match="busy|cross"):
            trees.remove(top)
        assert (precious / "file").exists()
        assert os.listdir(top / "a") == ["mounted"]
    finally:
        subprocess.run(["umount", str(top / "a" / "mounted")], check=True)
    trees.remove(top)
    assert not top.exists()
