"""Who may look into the engine's folders."""

from __future__ import annotations

import stat
from pathlib import Path

from skep.engine.oci.bundle import Folders


def test_no_user_of_the_host_gets_at_the_files_of_containers(tmp_path: Path) -> None:
    folders = Folders(tmp_path / "data", tmp_path / "run")
    (folders.data / "containers").mkdir(parents=True, mode=0o755)
    folders.make()
    for folder in (folders.data / "containers", folders.run / "c", folders.run / "x", folders.exits, folders.state):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder
