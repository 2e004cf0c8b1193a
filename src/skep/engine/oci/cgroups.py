"""A container's control groups: its freezer, and what it uses. v1 (one tree per controller) and v2 (one tree).

Whether a container is paused is asked of the kernel, never remembered: so a restart of ours, or somebody else's hand, changes nothing.
Everything here blocks, mostly for microseconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator

from skep.errors import SkepError

ROOT = "/sys/fs/cgroup"
_PATIENCE = 10.0
_ASK_ANEW = 50
"""Turns of a millisecond."""
_UNLIMITED = 1 << 60
"""v1 shows no limit as a number near 2^63."""
RELEASED = {
    "swap": ("memory", "memory.memsw.limit_in_bytes", "-1", "memory.swap.max", "max"),
    "memory": ("memory", "memory.limit_in_bytes", "-1", "memory.max", "max"),
    "reservation": ("memory", "memory.soft_limit_in_bytes", "-1", "memory.low", "0"),
    "quota": ("cpu", "cpu.cfs_quota_us", "-1", "cpu.max", "max"),
    "shares": ("cpu", "cpu.shares", "1024", "cpu.weight", "100"),
    "pids": ("pids", "pids.max", "max", "pids.max", "max"),
}
"""Limit -> (controller, file and value for none in v1, in v2), in the order in which they must be taken away."""


class Groups:
    """`path`: as the runtime was given it, from the top of each tree."""

    def __init__(self, path: str, v2: bool, root: str = ROOT) -> None:
        self._path = path.strip("/")
        self._v2 = v2
        self._root = root

    def folder(self, controller: str) -> str:
        return f"{self._root}/{self._path}" if self._v2 else f"{self._root}/{controller}/{self._path}"

    def read(self, controller: str, name: str) -> str:
        """Empty: there is no such file."""
        try:
            with open(f"{self.folder(controller)}/{name}", encoding="ascii", errors="replace") as file:
                return file.read()
        except OSError:
            return ""

    def _write(self, controller: str, name: str, text: str) -> None:
        fd = os.open(f"{self.folder(controller)}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    # the freezer

    def frozen(self) -> bool:
        """Also while it is only freezing: nothing of it can be relied on to run."""
        if self._v2:
            return self.read("", "cgroup.freeze").strip() == "1"
        return self.read("freezer", "freezer.state").strip() in ("FROZEN", "FREEZING")

    def freeze(self) -> None:
        """Raises SkepError when a process of it cannot be frozen in time; it then goes on as before.

        Now and then it is thawed and tried anew, as runc does (libcontainer, fs/freezer.go): on v1 a process that was not where it could
        stop when it was asked is not asked again while the group is freezing.
        """
        end = time.monotonic() + _PATIENCE
        turn = 0
        try:
            while not self._freeze_once():
                turn += 1
                if time.monotonic() > end:
                    self.thaw()
                    raise SkepError("a process of it cannot be frozen")
                if not self._v2 and turn % _ASK_ANEW == 0:
                    self.thaw()
                    time.sleep(0.01)
                time.sleep(0.001)
        except OSError as error:
            raise SkepError(f"the freezer refuses: {error.strerror}") from None

    def _freeze_once(self) -> bool:
        """v1: a process that forks while it is frozen leaves the state at FREEZING until it is asked for again."""
        if self._v2:
            self._write("", "cgroup.freeze", "1")
            return "frozen 1" in self.read("", "cgroup.events")
        self._write("freezer", "freezer.state", "FROZEN")
        return self.read("freezer", "freezer.state").strip() == "FROZEN"

    def thaw(self) -> None:
        """Fine if there is nothing to thaw, or nothing any more."""
        try:
            if self._v2:
                self._write("", "cgroup.freeze", "0")
            else:
                self._write("freezer", "freezer.state", "THAWED")
        except OSError:
            pass

    def release(self, limits: Collection[str]) -> None:
        """Take limits away, by their names in `RELEASED`; fine where the kernel has no such limit."""
        for limit, (controller, v1, none, v2, none2) in RELEASED.items():
            if limit in limits and os.path.exists(f"{self.folder(controller)}/{v2 if self._v2 else v1}"):
                self._write(controller, v2 if self._v2 else v1, none2 if self._v2 else none)

    # numbers

    def number(self, controller: str, name: str) -> int:
        """0: no such file, or no limit."""
        text = self.read(controller, name).strip()
        value = int(text) if text.lstrip("-").isdigit() else 0
        return value if 0 < value < _UNLIMITED else 0

    def table(self, controller: str, name: str) -> dict[str, int]:
        """Lines `name value`."""
        pairs = (line.split() for line in self.read(controller, name).splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}

    def lines(self, controller: str, name: str) -> Iterator[list[str]]:
        for line in self.read(controller, name).splitlines():
            yield line.split()
