"""What a cluster leaves on this host: folders, mounts, cgroups, and a lock. Made so that they are found and removed without any state.

A folder that we made says so itself, in an extended attribute; so `down` knows that /stack or /run/skep is ours also when the state file is
lost, and never removes one that was there before. See docs/cluster.md.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from skep.errors import Conflict, Invalid, SkepError

MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE, MNT_DETACH = 4096, 8192, 16384, 1 << 18, 2
MARK = "trusted.skep"
"""On a folder that we made: who uses it, names with a blank between them; empty: nobody needs to be noted."""
TRIES = 50

_libc = ctypes.CDLL(None, use_errno=True)


# -- mounts


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    done = _libc.mount(source.encode() or None, target.encode(), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None)
    if done:
        raise SkepError(f"mount {source} on {target}: {os.strerror(ctypes.get_errno())}")


def unmount(target: str) -> None:
    _libc.umount2(target.encode(), MNT_DETACH)


def mounts_at(prefix: str, table: str = "/proc/self/mountinfo") -> list[str]:
    """Mount points at and below a path, in the order in which they were made."""
    lines = Path(table).read_bytes().splitlines()
    found = [os.fsdecode(line.split(b" ")[4].decode("unicode_escape").encode("latin-1")) for line in lines]
    return [t for t in found if t == prefix or t.startswith(prefix.rstrip("/") + "/")]


def unmount_all(prefix: str) -> None:
    """Everything at and below a path. Raises SkepError when something stays."""
    for _ in range(8):
        below = mounts_at(prefix)
        if not below:
            return
        for target in reversed(below):
            unmount(target)
    raise SkepError(f"{below[-1]} cannot be unmounted")


def mounted(path: Path) -> bool:
    """Whether something is mounted on it: a file of a namespace, a tmpfs."""
    try:
        return path.stat().st_dev != path.parent.stat().st_dev
    except OSError:
        return False


# -- folders


def make_folder(path: Path) -> None:
    """With its parents; each that is made is marked as ours."""
    for _ in range(TRIES):
        try:
            for folder in [*reversed(path.parents), path]:
                with contextlib.suppress(FileExistsError):
                    folder.mkdir(mode=0o755)
                    _set_mark(folder, "")
        except FileNotFoundError:
            continue  # somebody who has just finished removed a parent
        if not path.is_dir():
            raise Invalid(f"{path} is there and is no folder")
        return
    raise SkepError(f"{path} cannot be made")


def release_folder(path: Path) -> None:
    """Remove it, and those above it, as far as they are empty and were made by us."""
    for folder in (path, *path.parents):
        if _mark(folder) != "":
            return
        try:
            folder.rmdir()
        except OSError:
            return


def use_point(path: Path, name: str) -> None:
    """Make the folder on which a node's mount needs a place (/stack), and note that the cluster `name` uses it; one of the user's is left
    as it is. Raises Invalid when it cannot serve."""
    for _ in range(TRIES):
        try:
            path.mkdir(mode=0o755)
            _set_mark(path, name)
            return
        except FileExistsError:
            if not path.is_dir():
                raise Invalid(f"{path} is there and is no folder") from None
        except OSError as error:
            raise SkepError(f"{path} cannot be made: {error.strerror}") from None
        with contextlib.suppress(FileNotFoundError), _held(path):
            users = _mark(path)
            if users is not None and name not in users.split():
                _set_mark(path, f"{users} {name}".strip())
            return


def leave_point(path: Path, name: str) -> None:
    """The cluster needs it no more: it goes with its last user, if we made it."""
    with contextlib.suppress(OSError), _held(path):
        users = _mark(path)
        if users is None or name not in users.split():
            return
        rest = [user for user in users.split() if user != name]
        if rest:
            _set_mark(path, " ".join(rest))
        else:
            path.rmdir()


def _mark(path: Path) -> str | None:
    """None: not ours."""
    try:
        return os.getxattr(path, MARK, follow_symlinks=False).decode().removeprefix("made").strip()
    except OSError:
        return None


def _set_mark(path: Path, users: str) -> None:
    try:
        os.setxattr(path, MARK, f"made {users}".strip().encode(), follow_symlinks=False)
    except OSError as error:
        # a file system without them: the folder stays, empty
        if error.errno not in (errno.ENOTSUP, errno.EPERM):
            raise


# -- locks


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_ino != path.stat().st_ino:
            raise FileNotFoundError(path)
        yield
    finally:
        os.close(fd)


class Busy(Conflict):
    """Another process works on the cluster; `pid` is its number, 0 when it is not known."""

    def __init__(self, name: str, pid: int) -> None:
        self.pid = pid
        what = f"process {pid}" if pid else "another process"
        super().__init__(f"{what} is making or changing cluster {name!r}: let it end, or end it with Ctrl-C, first")


@contextlib.contextmanager
def locked(path: Path, name: str, *, patience: float = 0.0) -> Iterator[None]:
    """Alone with a cluster; the lock goes with the process that holds it. Raises Busy after `patience` seconds.

    The file is removed at the end when the cluster's folder beside it (its name without `.lock`) is gone.
    """
    end = time.monotonic() + patience
    while True:
        make_folder(path.parent)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_ino == path.stat().st_ino:
                break
        except FileNotFoundError:
            pass
        except BlockingIOError:
            if time.monotonic() > end:
                text = os.pread(fd, 20, 0).decode(errors="replace").strip()
                os.close(fd)
                raise Busy(name, int(text) if text.isdigit() else 0) from None
            time.sleep(0.02)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        if not path.with_suffix("").exists():
            path.unlink(missing_ok=True)
        os.close(fd)
        release_folder(path.parent)


# -- processes and cgroups


def processes(trees: list[Path]) -> list[int]:
    """In these cgroups and all below them."""
    found: set[int] = set()
    for tree in trees:
        for folder, _, _ in os.walk(tree):
            with contextlib.suppress(OSError):
                found.update(int(x) for x in Path(folder, "cgroup.procs").read_text().split())
    return sorted(found)


def end_processes(trees: list[Path], *, patience: float = 20.0) -> None:
    """SIGKILL until none is left; those that are frozen (a paused container) are thawed, or they would never see it."""
    end = time.monotonic() + patience
    while found := processes(trees):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _thaw(trees)
        if time.monotonic() > end:
            raise SkepError(f"processes do not end: {', '.join(map(str, found))}")
        time.sleep(0.005)


def _thaw(trees: list[Path]) -> None:
    for tree in trees:
        if tree.parent.name != "freezer":
            continue
        for folder, _, _ in os.walk(tree):
            with contextlib.suppress(OSError):
                state = Path(folder, "freezer.state")
                if state.read_text().strip() != "THAWED":
                    state.write_text("THAWED")


def remove_cgroups(trees: list[Path]) -> None:
    """With all below them; what has just been started there is ended."""
    end = time.monotonic() + 10
    left = list(trees)
    while left:
        for tree in left:
            for folder, _, _ in os.walk(tree, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
        left = [tree for tree in left if tree.exists()]
        if left:
            if time.monotonic() > end:
                raise SkepError(f"{left[0]} cannot be removed")
            end_processes(left)
            time.sleep(0.005)
