"""A container's files for `docker cp`, as Docker shows them: its root file system and its volumes, running or not, nothing else of the
host. What only the running container sees (/proc, /sys, /dev, tmpfs, its own mounts) is not there, as with Docker.

The view is a mount namespace of its own, held by a descriptor: in it the volumes are mounted, read-only where they are so for the
container. Paths are resolved by the kernel inside the root (openat2): no link leads out, whoever changes it while we look. Blocks.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
import threading
from collections.abc import Iterable

from skep.engine.base import Mount, PathStat
from skep.engine.oci import kernel
from skep.errors import NotFound, SkepError

_GO_MODES = ((stat.S_ISUID, 1 << 23), (stat.S_ISGID, 1 << 22), (stat.S_ISVTX, 1 << 20))
_GO_KINDS = {
    stat.S_IFDIR: 1 << 31,
    stat.S_IFLNK: 1 << 27,
    stat.S_IFBLK: 1 << 26,
    stat.S_IFIFO: 1 << 25,
    stat.S_IFSOCK: 1 << 24,
    stat.S_IFCHR: 1 << 26 | 1 << 21,
}
_LINKS = 255


class View:
    """Two descriptors: the root, and the namespace that keeps its mounts. `close` ends it."""

    def __init__(self, id: str, root: int, namespace: int) -> None:
        self.id = id
        self.root = root
        self._namespace = namespace

    def close(self) -> None:
        for fd in (self.root, self._namespace):
            os.close(fd)

    def open(self, path: str, flags: int) -> int:
        """Raises NotFound in Docker's words; another OSError where the kernel says something else."""
        try:
            return kernel.open_at_root(self.root, path, flags)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
                raise NotFound(f"Could not find the file {path} in container {self.id}") from None
            raise

    def stat(self, path: str) -> PathStat:
        fd = self.open(path, os.O_PATH | (0 if follows(path) else os.O_NOFOLLOW))
        try:
            found = os.fstat(fd)
        finally:
            os.close(fd)
        link = self.resolve(path) if stat.S_ISLNK(found.st_mode) else ""
        return PathStat(name=base_name(path), size=found.st_size, mode=go_mode(found.st_mode), mtime=found.st_mtime_ns, link_target=link)

    def resolve(self, path: str) -> str:
        """Where a path leads inside the container, also if there is nothing."""
        left = [part for part in path.split("/") if part not in ("", ".")][::-1]
        at: list[str] = []
        followed = 0
        while left:
            part = left.pop()
            if part == "..":
                at = at[:-1]
                continue
            target = self._link("/" + "/".join([*at, part]))
            if target is None or followed >= _LINKS:
                at.append(part)
                continue
            followed += 1
            if target.startswith("/"):
                at = []
            left += [piece for piece in target.split("/") if piece not in ("", ".")][::-1]
        return "/" + "/".join(at)

    def _link(self, path: str) -> str | None:
        try:
            fd = kernel.open_at_root(self.root, path, os.O_PATH | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            return os.readlink("", dir_fd=fd) if stat.S_ISLNK(os.fstat(fd).st_mode) else None
        finally:
            os.close(fd)


def follows(path: str) -> bool:
    """`/link/` and `/link/.` mean what the link leads to."""
    return path.endswith(("/", "/.")) or path == "."


def base_name(path: str) -> str:
    """The last component as it was asked for: `.` for `/etc/.`, `/` for the root."""
    return posixpath.basename(path.rstrip("/")) or "/"


def go_mode(mode: int) -> int:
    """Go's os.FileMode."""
    return (mode & 0o777) | _GO_KINDS.get(stat.S_IFMT(mode), 0) | sum(bit for own, bit in _GO_MODES if mode & own)


def open_view(id: str, rootfs: str, mounts: Iterable[Mount], read_only: bool) -> View:
    """The root file system is mounted at `rootfs`. A thread goes into the new namespace, since none comes back from there."""
    outcome: list[View | Exception] = []

    def work() -> None:
        try:
            kernel.unshare(kernel.CLONE_NEWNS)
            kernel.mount("", "/", flags=kernel.MS_PRIVATE | kernel.MS_REC)
            if read_only:
                kernel.mount("", rootfs, flags=kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY)
            for mount in sorted(mounts, key=lambda mount: mount.target.count("/")):
                _bind(rootfs, mount)
            root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            outcome.append(View(id, root, os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=work, name="skep-view")
    thread.start()
    thread.join()
    made = outcome[0]
    if isinstance(made, Exception):
        raise made
    return made


def _bind(rootfs: str, mount: Mount) -> None:
    if mount.kind != "bind" or not os.path.exists(mount.source):
        return
    make = kernel.make_directory_in_root if os.path.isdir(mount.source) else kernel.make_file_in_root
    try:
        make(rootfs, mount.target)
        fd = kernel.open_in_root(rootfs, mount.target, os.O_PATH)
    except (OSError, SkepError):
        return  # a read-only root without a place for it
    try:
        kernel.mount(mount.source, f"/proc/thread-self/fd/{fd}", flags=kernel.MS_BIND | (kernel.MS_REC if mount.recursive else 0))
    finally:
        os.close(fd)
    if mount.read_only:
        fd = kernel.open_in_root(rootfs, mount.target, os.O_PATH)
        try:
            kernel.mount("", f"/proc/thread-self/fd/{fd}", flags=kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY)
        finally:
            os.close(fd)
