"""What the tests of the one-machine cluster share: the command as a user starts it, and a search for anything that is left."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from skep.local import cluster
from skep.local.layout import CGROUP, Layout, layout
from skep.local.underlay import Underlay

SKEP = [sys.executable, "-m", "skep.cli.main"]


def skep(*argv: str, check: bool = True, timeout: float = 240, **more: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*SKEP, *argv], capture_output=True, text=True, timeout=timeout, **more)
    if check and done.returncode:
        raise AssertionError(f"skep {' '.join(argv)}: {done.returncode}: {done.stderr}")
    return done


@contextmanager
def cluster_name(kind: str) -> Iterator[str]:
    """A name of this run's own; whatever has become of the cluster, it is gone afterwards."""
    name = f"{kind}{os.getpid()}"
    try:
        yield name
    finally:
        cluster.down(name, say=lambda text: None)


class Begun:
    """`skep cluster up` under way, line by line."""

    def __init__(self, *argv: str) -> None:
        self.process = subprocess.Popen(
            [*SKEP, "cluster", "up", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.said: list[str] = []

    def until(self, text: str) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.said.append(line)
            if text in line:
                return
        raise AssertionError(f"it never said {text!r}: {''.join(self.said)}")

    def held_at(self, text: str, at: Layout) -> None:
        """As `until`, and it does not come to its end meanwhile: the log of the host socket, which is started last, is a pipe that nobody
        reads, and waits to be opened."""
        self.until("underlay")
        os.mkfifo(Path(at.root) / "host.log")
        if text not in self.said[-1]:
            self.until(text)

    def end(self, number: int) -> tuple[int, str, str]:
        """Signal it; its exit code, and what it printed."""
        os.kill(self.process.pid, number)
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, out, "".join(self.said) + err


class Terminal:
    """A program on a pty, as a person has it."""

    def __init__(self, *line: str, rows: int = 40, columns: int = 132) -> None:
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            self.master = 0
            self.size(rows, columns)
            os.execvp(line[0], line)
        self.out = ""
        self.code: int | None = None

    def size(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def read(self, until_text: str = "", seconds: float = 60) -> str:
        """Until it has printed this, or (empty) until it ends."""
        end = time.monotonic() + seconds
        while not until_text or until_text not in self.out:
            assert time.monotonic() < end, f"no {until_text!r} within {seconds} s: {self.out!r}"
            if not select.select([self.master], [], [], 0.2)[0]:
                continue
            try:
                data = os.read(self.master, 65536)
            except OSError:
                data = b""
            if not data:
                assert not until_text, f"it ended without {until_text!r}: {self.out!r}"
                break
            self.out += data.decode(errors="replace")
        return self.out

    def more(self) -> bool:
        """Read what is there."""
        while select.select([self.master], [], [], 0.05)[0]:
            self.out += os.read(self.master, 65536).decode(errors="replace")
        return True

    def end(self) -> int:
        if self.code is None:
            _, status = os.waitpid(self.pid, 0)
            self.code = os.waitstatus_to_exitcode(status)
            os.close(self.master)
        return self.code


def kill_everything(at: Layout) -> list[int]:
    """kill -9 of every process of the cluster, the host socket's too."""
    ended = []
    while found := cluster.pids(at, ""):
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
                ended.append(pid)
            except ProcessLookupError:
                pass
        time.sleep(0.01)
    return ended


def remains(name: str) -> list[str]:
    """Everything that is left of a cluster on this machine, in words. Its namespaces cannot outlive their pins and processes, which are
    looked for in every mount namespace and by their cgroups."""
    at = layout(name)
    wire = Underlay(name)
    left = [f"folder {p}" for p in (at.root, at.run, at.lock) if os.path.exists(p)]
    left += [f"cgroup {folder}" for folder, _, _ in os.walk(CGROUP) if folder.endswith(f"/skep-{name}")]
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    left += [f"link {line}" for line in links.splitlines() if wire.link in line]
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    left += [f"nft {line}" for line in tables.splitlines() if wire.table in line.split()]
    routes = subprocess.run(["ip", "route"], capture_output=True, text=True, check=True).stdout
    left += [f"route {line}" for line in routes.splitlines() if wire.link in line]
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            left += _of_process(folder, name)
    return left


def _of_process(folder: Path, name: str) -> list[str]:
    left = []
    try:
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        if f"/skep-{name}/" in (folder / "cgroup").read_text():
            left.append(f"process {folder.name}: {command}")
        for line in (folder / "mountinfo").read_text().splitlines():
            if f"/clusters/{name}/" in line:
                left.append(f"mount seen by {folder.name} ({command[:60]}): {line}")
    except OSError:
        pass
    return left


def until(holds: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := holds()):
        if time.monotonic() > end:
            raise AssertionError(f"after {seconds:.0f} s still not so: {what}")
        time.sleep(0.03)
    return found
