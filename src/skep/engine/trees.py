"""Directories of any depth, taken away and measured. All of it blocks: call it from a worker thread.

What containers and images leave behind may be nested deeper than a recursion goes, than a path is long, or than descriptors last, by a
mistake in a script as well as on purpose: `shutil.rmtree` raises RecursionError at a thousand levels, and what stands in a removal at the
start keeps the daemon from starting at all.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OPENAT2 = 437
_SAME_MOUNT_NO_LINKS = 0x01 | 0x04
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
DEEPEST = 64
"""Descriptors held at a time: what lies deeper is moved up, and has its turn later."""
_libc = ctypes.CDLL(None, use_errno=True)


def remove(path: Path | str) -> None:
    """With all below it; fine where there is nothing. Follows no link and enters nothing that is mounted below. What cannot be removed
    stays, with the way to it; the first reason is raised then, as OSError."""
    try:
        top = os.open(path, _FOLDER)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        os.unlink(path)
        return
    try:
        removal = _Removal(top)
        while removal.go_through():
            pass
    finally:
        os.close(top)
    if removal.error is not None:
        raise removal.error
    os.rmdir(path)


class _Removal:
    def __init__(self, top: int) -> None:
        self._top = top
        self._moved = self._taken = 0
        self.error: OSError | None = None

    def go_through(self) -> bool:
        """Once; whether something was moved up meanwhile."""
        before = self._moved
        stack = [(self._top, "", self._files_of(self._top))]
        try:
            while stack:
                folder, name, inner = stack[-1]
                if inner:
                    below = inner.pop()
                    if len(stack) > DEEPEST:
                        self._move_up(folder, below)
                    elif (fd := self._enter(folder, below)) >= 0:
                        stack.append((fd, below, self._files_of(fd)))
                    continue
                stack.pop()
                if stack:
                    os.close(folder)
                    with self._noted():
                        os.rmdir(name, dir_fd=stack[-1][0])
        finally:
            for folder, _, _ in stack[1:]:
                os.close(folder)
        return self._moved > before

    def _files_of(self, folder: int) -> list[str]:
        """Its files go; the names of its folders are given back."""
        with os.scandir(folder) as entries:
            listed = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for name, directory in listed:
            if not directory:
                with self._noted():
                    os.unlink(name, dir_fd=folder)
        return [name for name, directory in listed if directory]

    def _enter(self, folder: int, name: str) -> int:
        how = struct.pack("QQQ", _FOLDER, 0, _SAME_MOUNT_NO_LINKS)
        fd: int = _libc.syscall(_OPENAT2, folder, os.fsencode(name), how, len(how))
        if fd < 0 and (number := ctypes.get_errno()) != errno.ENOENT:
            self.error = self.error or OSError(errno.EBUSY if number == errno.EXDEV else number, os.strerror(number), name)
        return fd

    def _move_up(self, folder: int, name: str) -> None:
        with self._noted():
            while True:
                try:
                    os.rename(name, f".{self._moved}.{self._taken}.deep", src_dir_fd=folder, dst_dir_fd=self._top)
                except OSError as error:
                    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                        raise
                    self._taken += 1
                    continue
                self._moved += 1
                return

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            return
        except OSError as error:
            self.error = self.error or error


def size(path: Path | str) -> int:
    """Bytes of the regular files below, those with several names once; what cannot be read, or lies too deep for a path, is left out."""
    total, counted, pending = 0, set(), [os.fspath(path)]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                listed = list(entries)
        except OSError:
            continue
        for entry in listed:
            try:
                found = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if stat.S_ISDIR(found.st_mode):
                pending.append(entry.path)
            elif stat.S_ISREG(found.st_mode) and found.st_ino not in counted:
                if found.st_nlink > 1:
                    counted.add(found.st_ino)
                total += found.st_size
    return total
