"""Tar streams out of and into a container's files, of any size in bounded memory.

Out: GNU tar walks from a descriptor that was resolved inside the container; it follows no link. In: each member's directory is resolved
inside the container's root by the kernel, and what is made there is made without following a link, so whatever the container or the
archive says, nothing is written outside.
"""

from __future__ import annotations

import asyncio
import errno
import os
import posixpath
import stat
import tarfile
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from typing import IO, Any

from skep.engine import subprocesses
from skep.engine.oci import kernel
from skep.engine.oci.compression import LONGEST_MAGIC, BadStream, decompressor, sniff
from skep.engine.oci.view import View, base_name, follows
from skep.errors import Forbidden, Invalid, SkepError

_CHUNK = 1 << 16
_HEADER_LIMIT = 1 << 20
"""Of one extended header: names and attributes. It is read into memory."""
TAR = (
    *("tar", "--create", "--file=-", "--numeric-owner", "--format=posix", "--pax-option=delete=atime,delete=ctime"),
    *("--xattrs", "--xattrs-include=security.capability", "--absolute-names", "--no-unquote", "--ignore-failed-read", "--warning=none"),
)


# out


def source(view: View, path: str) -> tuple[int, list[str]]:
    """(directory to stand in, what tar is told): Docker's names begin with the path's last component. Raises NotFound."""
    fd = view.open(path, os.O_PATH | (0 if follows(path) else os.O_NOFOLLOW))
    base = base_name(path)
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        new = "/" if base == "/" else base
        rename = [] if base == "." else [f"--transform=s,^\\.{'/*' if base == '/' else ''},{_quoted(new)},S"]
        return fd, [*rename, "--", "."]
    os.close(fd)
    parent, name = posixpath.split(posixpath.normpath(path))
    return view.open(parent or "/", os.O_PATH | os.O_DIRECTORY), [f"--add-file={name}"]


def _quoted(text: str) -> str:
    """In the replacement of a sed expression between commas."""
    return "".join(f"\\{character}" if character in "\\&," else character for character in text)


async def stream(folder: int, arguments: Sequence[str]) -> AsyncGenerator[bytes, None]:
    """What tar writes, standing in `folder`. Ends tar when nobody wants more; raises SkepError when it cannot go on."""
    tar = await subprocesses.begin(
        *TAR,
        f"--directory=/proc/self/fd/{folder}",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        pass_fds=(folder,),
        env={"LC_ALL": "C", "PATH": os.environ.get("PATH", "/usr/bin:/bin")},
    )
    assert tar.stdout is not None
    try:
        while chunk := await tar.stdout.read(_CHUNK):
            yield chunk
        if await tar.wait() > 1:  # 1: a file changed while it was read
            raise SkepError("the archive could not be completed")
    finally:
        await subprocesses.end(tar)


# in


class _Plain:
    """A stream's own bytes, a bounded piece at a time: tarfile would take the whole of what a few bytes stand for into memory."""

    def __init__(self, data: IO[bytes]) -> None:
        self._data = data
        head = data.read(LONGEST_MAGIC)
        self._decompressor = decompressor(sniff(head))
        self._pieces = self._decompressor.feed(head)
        self._left = memoryview(b"")

    def read(self, size: int) -> bytes:
        while not self._left:
            piece = next(self._pieces, b"")
            if not piece:
                chunk = self._data.read(_CHUNK)
                if not chunk:
                    self._decompressor.finish()
                    return b""
                self._pieces = self._decompressor.feed(chunk)
            self._left = memoryview(piece)
        out, self._left = bytes(self._left[:size]), self._left[size:]
        return out


class _Member(tarfile.TarInfo):
    """Extended headers are read as a whole: not longer than they may be."""

    def _proc_pax(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        self._check()
        return super()._proc_pax(archive)  # type: ignore[misc,no-any-return]

    def _proc_gnulong(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        self._check()
        return super()._proc_gnulong(archive)  # type: ignore[misc,no-any-return]

    def _check(self) -> None:
        if self.size > _HEADER_LIMIT:
            raise tarfile.ReadError("an extended header is too long")


class Unpacking:
    """`owner`: (uid, gid) for all that is made, instead of the archive's. `keep_type`: nothing turns from a directory into something
    else or back. `stopped`: asked before each member."""

    def __init__(
        self, view: View, path: str, *, keep_type: bool, owner: tuple[int, int] | None, stopped: Callable[[], bool] = lambda: False
    ) -> None:
        fd = view.open(path, os.O_PATH)
        try:
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                raise Invalid("extraction point is not a directory")
        finally:
            os.close(fd)
        self._view = view
        self._path = view.resolve(path)
        self._keep_type = keep_type
        self._owner = owner
        self._stopped = stopped
        self._times: list[tuple[str, int]] = []

    def run(self, data: IO[bytes]) -> None:
        """Plain or compressed (gzip, bzip2, xz, zstd). Blocks. Raises Invalid for what is no archive, Forbidden for a read-only place."""
        try:
            plain: Any = _Plain(data)
            with tarfile.open(fileobj=plain, mode="r|", tarinfo=_Member, bufsize=4 * _CHUNK) as archive:
                for member in archive:
                    archive.members.clear()  # type: ignore[attr-defined]
                    if self._stopped():
                        raise SkepError(f"{self._path} is being removed")
                    self._one(archive, member)
            for path, mtime in reversed(self._times):
                self._set_time(path, mtime)
            while data.read(_CHUNK):  # padding, so that who sends comes to an end
                pass
        except (tarfile.TarError, BadStream, ValueError) as error:
            raise Invalid(f"the archive cannot be read: {error}") from None
        except RecursionError:
            raise Invalid("folders are nested too deeply: those of the archive, or those that it would replace") from None
        except OSError as error:
            if error.errno == errno.EROFS:
                raise Forbidden("container rootfs or volume is marked read-only") from None
            raise SkepError(f"cannot unpack the archive: {error.strerror or error}") from None

    def _one(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        name = posixpath.normpath(member.name.lstrip("/"))
        if name == ".." or name.startswith("../"):
            raise Invalid(f'"{member.name}" is outside of "{self._path}"')
        if name == ".":
            return
        folder, base = posixpath.split(name)
        parent = self._parent(posixpath.join(self._path, folder))
        try:
            if self._make_room(parent, base, member):
                self._make(archive, member, parent, base)
                self._dress(member, parent, base, name)
        finally:
            os.close(parent)

    def _parent(self, path: str) -> int:
        """The directory a member goes to; made where it is missing."""
        try:
            return kernel.open_at_root(self._view.root, path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            above, base = posixpath.split(path)
            parent = self._parent(above)
            try:
                with suppress(FileExistsError):
                    os.mkdir(base, 0o755, dir_fd=parent)
                if self._owner is not None:
                    os.chown(base, *self._owner, dir_fd=parent, follow_symlinks=False)
            finally:
                os.close(parent)
            return kernel.open_at_root(self._view.root, path, os.O_RDONLY | os.O_DIRECTORY)

    def _make_room(self, parent: int, base: str, member: tarfile.TarInfo) -> bool:
        try:
            old = os.stat(base, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return True
        was_directory = stat.S_ISDIR(old.st_mode)
        if self._keep_type and was_directory != member.isdir():
            kinds = ("directory", "non-directory") if was_directory else ("non-directory", "directory")
            raise Invalid(f'cannot overwrite {kinds[0]} "{posixpath.join(self._path, member.name)}" with {kinds[1]} "{member.name}"')
        if was_directory and not member.isdir():
            _remove_tree(parent, base)
        elif not was_directory:
            os.unlink(base, dir_fd=parent)
        return True

    def _make(self, archive: tarfile.TarFile, member: tarfile.TarInfo, parent: int, base: str) -> None:
        mode = member.mode & 0o7777
        if member.isdir():
            with suppress(FileExistsError):
                os.mkdir(base, mode, dir_fd=parent)
        elif member.issym():
            os.symlink(member.linkname, base, dir_fd=parent)
        elif member.islnk():
            self._link(member, parent, base)
        elif member.isfifo():
            os.mkfifo(base, mode, dir_fd=parent)
        elif member.ischr() or member.isblk():
            kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
            os.mknod(base, mode | kind, os.makedev(member.devmajor, member.devminor), dir_fd=parent)
        elif member.isfile():
            content = archive.extractfile(member)
            assert content is not None
            fd = os.open(base, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
            try:
                while chunk := content.read(_CHUNK * 4):
                    view = memoryview(chunk)
                    while view:
                        view = view[os.write(fd, view) :]
            finally:
                os.close(fd)
        else:
            raise Invalid(f'"{member.name}": unhandled tar header type {member.type!r}')

    def _link(self, member: tarfile.TarInfo, parent: int, base: str) -> None:
        target = posixpath.normpath(member.linkname.lstrip("/"))
        if target == ".." or target.startswith("../"):
            raise Invalid(f'invalid hardlink "{member.linkname}" -> "{member.name}"')
        folder, name = posixpath.split(posixpath.join(self._path, target))
        source = self._view.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.link(name, base, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(source)

    def _dress(self, member: tarfile.TarInfo, parent: int, base: str, name: str) -> None:
        """Owner, attributes, mode and times, in the order in which none undoes another."""
        if member.islnk():
            return
        uid, gid = self._owner or (member.uid, member.gid)
        os.chown(base, uid, gid, dir_fd=parent, follow_symlinks=False)
        if not member.issym():
            fd = os.open(base, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                place = f"/proc/thread-self/fd/{fd}"
                capability = member.pax_headers.get("SCHILY.xattr.security.capability")
                if capability is not None:
                    os.setxattr(place, "security.capability", capability.encode("utf-8", "surrogateescape"))
                os.chmod(place, member.mode & 0o7777)
            finally:
                os.close(fd)
        mtime = int(member.mtime * 10**9)
        if member.isdir():
            self._times.append((name, mtime))
        else:
            os.utime(base, ns=(mtime, mtime), dir_fd=parent, follow_symlinks=False)

    def _set_time(self, name: str, mtime: int) -> None:
        """Of a directory, after everything in it. Gone meanwhile: nothing to do."""
        folder, base = posixpath.split(posixpath.join(self._path, name))
        with suppress(FileNotFoundError):
            parent = kernel.open_at_root(self._view.root, folder, os.O_PATH | os.O_DIRECTORY)
            try:
                os.utime(base, ns=(mtime, mtime), dir_fd=parent, follow_symlinks=False)
            finally:
                os.close(parent)


def _remove_tree(parent: int, base: str) -> None:
    """By descriptors: a link put in its place meanwhile is removed, not followed."""
    fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        with os.scandir(fd) as entries:
            listed = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for name, directory in listed:
            if directory:
                _remove_tree(fd, name)
            else:
                os.unlink(name, dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(base, dir_fd=parent)
