"""What is mounted or filled on the host before the runtime makes a container: shared memory, new volumes, and whether a bind mount can
have the propagation asked for. Blocks."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterable, Sequence

import msgspec

from skep.engine.base import ContainerConfig, Mount
from skep.engine.oci import kernel
from skep.errors import Invalid, SkepError

PROPAGATIONS = ("private", "rprivate", "shared", "rshared", "slave", "rslave")


def check_propagation(mounts: Iterable[Mount], apart: bool) -> None:
    """Raises in Docker's words when the source's own mount does not pass on what shall be passed on.

    `apart`: the runtime stands in a mount namespace that is a slave of ours: what a container mounts cannot come out of it.
    """
    for mount in mounts:
        if mount.kind != "bind" or mount.propagation in ("", "private", "rprivate"):
            continue
        if mount.propagation not in PROPAGATIONS:
            raise Invalid(f"invalid mount config for type \"bind\": invalid propagation mode '{mount.propagation}'")
        point = _mount_of(os.path.realpath(mount.source))
        if mount.propagation in ("shared", "rshared"):
            if not point.shared:
                raise SkepError(f"path {mount.source} is mounted on {point.path} but it is not a shared mount")
            if apart:
                raise SkepError(
                    f"mount {mount.target}: on a host with hybrid cgroups propagation {mount.propagation} needs the runtime runc"
                )
        elif not (point.shared or point.slave):
            raise SkepError(f"path {mount.source} is mounted on {point.path} but it is not a shared or slave mount")


def _mount_of(path: str) -> kernel.MountPoint:
    """The mount that a path lies in: the last of those with the longest path above it."""
    best = kernel.MountPoint("/", "", False, False, "")
    for point in kernel.mounts():
        above = point.path == "/" or path == point.path or path.startswith(f"{point.path}/")
        if above and len(point.path) >= len(best.path):
            best = point
    return best


def reachable(mounts: Sequence[Mount], folder: str, apart: bool) -> tuple[Mount, ...]:
    """The same mounts from where the runtime can see them. What was mounted after its namespace was made arrives there only if it lies
    in a shared mount; else it is bound below `folder`, which does. Idempotent.

    A file has nothing mounted below it: `rro` is left out, which crun 1.8 understands for directories only ("Not a directory").
    """
    out = []
    for number, mount in enumerate(mounts):
        if mount.kind == "bind" and "rro" in mount.options and not os.path.isdir(mount.source):
            mount = msgspec.structs.replace(mount, options=tuple(option for option in mount.options if option != "rro"))
        if apart and mount.kind == "bind" and os.path.exists(mount.source):
            point = _mount_of(os.path.realpath(mount.source))
            if point.path != "/" and not point.shared and not point.slave:
                mount = msgspec.structs.replace(mount, source=_bind_below(mount, f"{folder}/{number}"))
        out.append(mount)
    return tuple(out)


def _bind_below(mount: Mount, target: str) -> str:
    os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
    if os.path.isdir(mount.source):
        os.makedirs(target, exist_ok=True)
    elif not os.path.lexists(target):  # what is bound there already may be a socket, or a pipe nobody reads
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    if not os.path.ismount(target) and not any(point.path == target for point in kernel.mounts()):
        kernel.mount(mount.source, target, flags=kernel.MS_BIND | (kernel.MS_REC if mount.recursive else 0))
        # it follows what is mounted and unmounted in the source; nothing goes the other way
        kernel.mount("", target, flags=kernel.MS_SLAVE | kernel.MS_REC)
    return target


def mount_shm(path: str, size: int) -> None:
    """/dev/shm of a container that lets others share it. Idempotent."""
    os.makedirs(path, mode=0o700, exist_ok=True)
    if not os.path.ismount(path):
        kernel.mount("shm", path, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC, f"mode=1777,size={size}")


def fill_volumes(config: ContainerConfig, rootfs: str) -> None:
    """Volumes that are still empty get what the image has at their place: contents, owner and mode. Docker's rule.

    The place is looked up inside the root file system: a link in an image leads nowhere else.
    """
    for mount in config.mounts:
        if not mount.copy_up or mount.kind != "bind" or not os.path.isdir(mount.source) or os.listdir(mount.source):
            continue
        try:
            fd = kernel.open_in_root(rootfs, mount.target, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue  # the image has no directory there
        try:
            _copy(fd, mount)
        finally:
            os.close(fd)


def _copy(fd: int, mount: Mount) -> None:
    """`/.` in the source: its contents, and its owner, mode and times for the target itself."""
    if not os.listdir(fd):
        found = os.fstat(fd)
        os.chown(mount.source, found.st_uid, found.st_gid)
        os.chmod(mount.source, stat.S_IMODE(found.st_mode))
        return
    command = ["cp", "--archive", "--no-target-directory", f"/proc/self/fd/{fd}/.", mount.source]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, pass_fds=(fd,), env={"LC_ALL": "C"}, check=False)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        for name in os.listdir(mount.source):
            _erase(os.path.join(mount.source, name))
        raise SkepError(f"failed to populate volume {mount.volume or mount.source}: {said[0] if said else 'cp failed'}")


def _erase(path: str) -> None:
    """Half a copy would be taken for the volume's own contents."""
    subprocess.run(["rm", "-rf", "--", path], stdin=subprocess.DEVNULL, capture_output=True, check=False)
