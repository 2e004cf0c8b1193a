"""What volumes need of the kernel: mounts by mount(8), which knows every file system's helper (nfs), and parts of a folder pinned for good.

All of it blocks: call it from a worker thread.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from skep.errors import SkepError

_OPENAT2 = 437
_IN_ROOT_WITHOUT_MAGIC = 0x10 | 0x02
_libc = ctypes.CDLL(None, use_errno=True)


def mount(kind: str, device: str, options: str, target: Path) -> str:
    """Empty, or why not. The mount point is made, and removed again when it fails."""
    target.mkdir(mode=0o755, parents=True, exist_ok=True)
    failed = _run("mount", "-t", kind or "auto", *(("-o", options) if options else ()), "--", device, str(target))
    if failed:
        target.rmdir()
    return failed.removeprefix(f"mount: {target}: ")


def pin(root: str, path: str, target: Path) -> str:
    """Bind what `path` is inside `root`, seen from inside, to `target`. Empty, or why not; raises OSError where there is no such path."""
    fd = open_inside(root, path)
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if Path(f"/proc/self/fd/{fd}").is_dir():
            target.mkdir(exist_ok=True)
        else:
            target.touch(mode=0o600)
        return _run("mount", "--no-canonicalize", "--bind", f"/proc/self/fd/{fd}", str(target), keep=(fd,))
    finally:
        os.close(fd)


def open_inside(root: str, path: str) -> int:
    """As a process whose root is `root` would: links never lead out of it."""
    base = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = struct.pack("QQQ", os.O_PATH | os.O_CLOEXEC, 0, _IN_ROOT_WITHOUT_MAGIC)
        fd: int = _libc.syscall(_OPENAT2, base, os.fsencode(path), how, len(how))
        if fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
        return fd
    finally:
        os.close(base)


def is_mount_point(path: Path) -> bool:
    """Also of a file, and of a bind mount within one file system."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        return any(_unescaped(line.split(" ", 5)[4]) == str(path) for line in lines)


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field) if "\\" in field else field


def unmount(path: Path) -> None:
    """And remove the mount point. A mount that is still in use goes when its last user does.

    What is mounted below it leaves its groups first: below the folder that it shows (`o=rbind`) it stays mounted.
    """
    if is_mount_point(path) and (failed := _run("mount", "--make-rprivate", "--", str(path)) or _run("umount", "--lazy", "--", str(path))):
        raise SkepError(f"failed to unmount volume: {failed}")
    with suppress(OSError):  # somebody may have put something into it
        path.rmdir() if path.is_dir() else path.unlink()


def _run(*command: str, keep: Sequence[int] = ()) -> str:
    """Empty, or the first line of what it complains of."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=keep,
            env={"LC_ALL": "C", "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")},
            check=False,
        )
    except OSError as error:
        return f"{command[0]} cannot be run: {error.strerror}"
    if done.returncode == 0:
        return ""
    return (done.stderr.decode(errors="replace").strip().splitlines() or [f"{command[0]} ended with {done.returncode}"])[0].rstrip(".")
