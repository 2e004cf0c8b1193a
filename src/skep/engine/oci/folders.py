"""Where the engine keeps everything: DATA outlives a reboot, RUN does not. Blocks."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import msgspec

from skep.engine import trees


class Folders(msgspec.Struct, frozen=True):
    """Where everything is."""

    data: Path
    run: Path

    def container(self, id: str) -> Path:
        return self.data / "containers" / id

    def bundle(self, id: str) -> Path:
        return self.run / "c" / id

    def rootfs(self, id: str) -> Path:
        return self.run / "c" / id / "rootfs"

    def record(self, id: str) -> Path:
        return self.data / "containers" / id / "state"

    def log(self, id: str) -> Path:
        return self.data / "containers" / id / "log"

    def exec_bundle(self, id: str) -> Path:
        return self.run / "x" / id

    @property
    def exits(self) -> Path:
        return self.run / "exits"

    @property
    def state(self) -> Path:
        return self.run / "state"

    @property
    def temporary(self) -> Path:
        """conmon's sockets for terminals on their way: one that is killed meanwhile leaves its own."""
        return self.run / "t"

    def make(self) -> None:
        """Closed to the host's users: a program that a container makes setuid must not be one that they can run (CVE-2021-41091)."""
        for folder in (self.data / "containers", self.run / "c", self.run / "x", self.exits, self.state, self.temporary):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
        for left in self.temporary.iterdir():
            with suppress(FileNotFoundError):
                if left.lstat().st_mtime < time.time() - 60:  # a younger one may be needed by what was being started
                    left.unlink()

    def clear(self) -> None:
        """Nothing of containers is left; others may have things in RUN and DATA too."""
        for folder in (self.data / "containers", self.data / "l", *(self.run / name for name in ("c", "x", "exits", "state", "ns", "t"))):
            remove_tree(folder)
        for name in ("runtime.json", "engine.lock"):
            (self.run / name).unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Tried again where something was put into it meanwhile; what is no longer there is no error."""
    for attempt in range(3):
        try:
            trees.remove(path)
            return
        except OSError:
            if attempt == 2:
                raise
