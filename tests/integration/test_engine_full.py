"""Root file systems on a disk that is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from skep.engine.oci import kernel
from skep.engine.oci.bundle import mount_overlay
from skep.engine.oci.folders import Folders

pytestmark = pytest.mark.root


def test_a_root_file_system_is_never_read_only_because_the_disk_was_full(tmp_path: Path) -> None:
    """The kernel would mount it read-only, and it would stay so when there is room again."""
    disk, layer, rootfs = tmp_path / "disk", tmp_path / "layer", tmp_path / "rootfs"
    for folder in (disk, layer, rootfs):
        folder.mkdir()
    kernel.mount("tmpfs", str(disk), "tmpfs", data="nr_inodes=16")
    folders, folder = Folders(disk, tmp_path / "run"), disk / "c"
    try:
        for name in ("", "upper", "work"):
            (folder / name).mkdir()
        filling = 0
        with pytest.raises(OSError) as full:
            for filling in range(100):
                (disk / str(filling)).touch()
        assert full.value.errno == errno.ENOSPC and filling
        with pytest.raises(OSError) as refused:
            mount_overlay(folders, [str(layer)], folder, str(rootfs))
        assert refused.value.errno == errno.ENOSPC and not os.path.ismount(rootfs)
        for number in range(filling):
            (disk / str(number)).unlink()
        mount_overlay(folders, [str(layer)], folder, str(rootfs))
        (rootfs / "new").touch()
    finally:
        kernel.umount(str(rootfs))
        kernel.umount(str(disk))
