"""System calls that Python 3.11 does not offer, through ctypes: mount, namespaces, paths resolved inside a container's root.

A mount by system call costs 50 us; the `mount` program costs 1 ms and a fork. All of them block: call them from a worker thread.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from skep.errors import Invalid, Unavailable

_libc = ctypes.CDLL(None, use_errno=True)

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MNT_DETACH = 2
CLONE_FS = 0x200
CLONE_NEWNS = 0x20000
_OPENAT2 = 437
_RESOLVE_IN_ROOT = 0x10
_RESOLVE_NO_MAGICLINKS = 0x02


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    code = _libc.mount(source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None)
    _check(code, target)


def umount(target: str, flags: int = MNT_DETACH) -> None:
    """Fine if nothing is mounted there."""
    try:
        _check(_libc.umount2(target.encode(), flags), target)
    except (FileNotFoundError, OSError) as error:
        if error.errno not in (2, 22):  # ENOENT, EINVAL: not a mount point
            raise


def take_down(target: str) -> None:
    """Unmount what was bound here with all that is mounted below it, and remove the mount point. Fine if nothing is mounted there.

    A bind mount's copies of shared mounts belong to the groups of the originals, and to unmount what lies below such a copy would unmount
    it below the original too: they leave their groups first. Where another namespace has its own copies, removing the mount point frees
    them.
    """
    with suppress(OSError):
        mount("", target, flags=MS_PRIVATE | MS_REC)
    umount(target)
    with suppress(OSError):
        os.rmdir(target) if os.path.isdir(target) and not os.path.islink(target) else os.unlink(target)


def unshare(flags: int) -> None:
    """For the calling thread alone."""
    _check(_libc.unshare(flags), "unshare")


def setns(path: str, kind: int) -> None:
    """Move the calling thread into a namespace. A mount namespace needs `unshare(CLONE_FS)` first."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(fd, kind), path)
    finally:
        os.close(fd)


class MountPoint(NamedTuple):
    path: str
    kind: str
    shared: bool
    """Belongs to a peer group: what is mounted below it is seen by its slaves."""
    slave: bool
    options: str


def mounts(table: str = "/proc/thread-self/mountinfo") -> Iterator[MountPoint]:
    with open(table, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            left, _, right = line.partition(" - ")
            fields = left.split(" ")
            path = fields[4]
            if "\\" in path:
                path = path.encode().decode("unicode_escape")
            tags = fields[6:]
            kind, _, rest = right.partition(" ")
            shared, slave = (any(tag.startswith(word) for tag in tags) for word in ("shared:", "master:"))
            yield MountPoint(path, kind, shared, slave, rest.rstrip("\n"))


def make_shared_root(path: str) -> None:
    """Make `path` a mount point of its own whose mounts reach slave namespaces. Idempotent."""
    path = os.path.realpath(path)
    for point in mounts():
        if point.path == path and point.shared:
            return
    mount(path, path, flags=MS_BIND | MS_REC)
    mount("", path, flags=MS_SHARED)


def open_in_root(root: str, path: str, flags: int = os.O_RDONLY) -> int:
    """Open a path as a process inside `root` would see it: links, also absolute ones, never lead out of it."""
    base = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return open_at_root(base, path, flags)
    finally:
        os.close(base)


def open_at_root(root: int, path: str, flags: int = os.O_RDONLY) -> int:
    """The same for a root that is open."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    while True:
        try:
            return _check(_libc.syscall(_OPENAT2, root, os.fsencode(path.lstrip("/") or "."), how, len(how)), path)
        except OSError as error:
            if error.errno != errno.EAGAIN:  # a rename meanwhile: the kernel could not be sure of a `..`
                raise


def read_in_root(root: str, path: str, limit: int = 1 << 20) -> str:
    """Text of a regular file inside `root`; empty if there is none."""
    try:
        fd = open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        return os.read(fd, limit).decode("utf-8", "replace")
    finally:
        os.close(fd)


def make_directory_in_root(root: str, path: str) -> None:
    """`mkdir -p` inside `root`; an existing directory stays as it is."""
    made = "/"
    for part in [part for part in path.split("/") if part]:
        parent, made = made, os.path.join(made, part)
        try:
            os.close(open_in_root(root, made, os.O_PATH | os.O_DIRECTORY))
        except NotADirectoryError:
            raise Invalid(f"Cannot mkdir: {path} is not a directory") from None
        except FileNotFoundError:
            fd = open_in_root(root, parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.mkdir(part, 0o755, dir_fd=fd)
            finally:
                os.close(fd)


def make_file_in_root(root: str, path: str, mode: int = 0o644) -> None:
    """An empty file inside `root`, its directories too; what is there stays as it is."""
    try:
        os.close(open_in_root(root, path, os.O_PATH))
    except FileNotFoundError:
        folder, name = os.path.split(path)
        make_directory_in_root(root, folder)
        fd = open_in_root(root, folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=fd))
        finally:
            os.close(fd)


def lock(path: str, patience: float = 10.0) -> int:
    """The descriptor that holds it. A process that its holder has just forked holds it too until it executes its program: who gets the
    lock after a kill knows that every program that was being started has its own name by now. Raises Unavailable."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() > end:
                os.close(fd)
                raise Unavailable(f"{path} is locked: another engine uses this directory") from None
            time.sleep(0.01)


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot: with the pid it names a process for good. 0: no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return 0
    fields = text[text.rindex(b")") + 2 :].split()
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def kill_pending(pid: int) -> bool:
    """SIGKILL was sent and cannot be taken: the process is frozen."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            masks = [line.split()[1] for line in file if line.startswith(("ShdPnd:", "SigPnd:"))]
    except OSError:
        return False
    return any(int(mask, 16) >> 8 & 1 for mask in masks)


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
