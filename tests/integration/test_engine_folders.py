"""Who may look into the engine's folders."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

from skep.engine.oci.folders import Folders


def test_no_user_of_the_host_gets_at_the_files_of_containers(tmp_path: Path) -> None:
    folders = Folders(tmp_path / "data", tmp_path / "run")
    (folders.data / "containers").mkdir(parents=True, mode=0o755)
    folders.make()
    for folder in (folders.data / "containers", folders.run / "c", folders.run / "x", folders.exits, folders.state, folders.temporary):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder


def test_what_a_killed_monitor_left_goes_and_what_one_may_need_stays(tmp_path: Path) -> None:
    folders = Folders(tmp_path / "data", tmp_path / "run")
    folders.make()
    for name in ("old", "new"):
        (folders.temporary / name).touch()
    os.utime(folders.temporary / "old", (time.time() - 300,) * 2)
    folders.make()
    assert [path.name for path in folders.temporary.iterdir()] == ["new"]
