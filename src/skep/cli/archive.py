"""Tar archives of `skep cp`: made while they are sent, unpacked while they come.

What comes out of a container is not trusted: nothing is written outside of the folder, whatever names and links the archive has.
"""

from __future__ import annotations

import os
import stat
import tarfile

from skep.cli.shell import Failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 1 << 18
RECORD = 512


def packed(path: str, name: str) -> Iterator[bytes]:
    """The file or the folder with all in it, as `name` (`.`: the folder's contents)."""
    with open(os.devnull, "wb") as nothing, tarfile.open(fileobj=nothing, mode="w") as tar:
        top = path.rstrip("/").removesuffix("/.") if len(path) > 1 else path
        yield from _packed(tar, top or "/", name)
    yield b"\0" * RECORD * 2


def _packed(tar: tarfile.TarFile, path: str, name: str) -> Iterator[bytes]:
    member = tar.gettarinfo(path, name)
    if member is None:
        raise Failed(f"{path} is a socket: it cannot be copied")
    yield member.tobuf(tarfile.PAX_FORMAT)
    if member.isreg():
        yield from _contents(path, member.size)
    elif member.isdir():
        for entry in sorted(os.listdir(path)):
            whole = os.path.join(path, entry)
            if not stat.S_ISSOCK(os.lstat(whole).st_mode):
                yield from _packed(tar, whole, f"{name}/{entry}")


def _contents(path: str, size: int) -> Iterator[bytes]:
    """As many bytes as the header has promised, also when the file is written to meanwhile."""
    left = size
    with open(path, "rb") as file:
        while left:
            block = file.read(min(BLOCK, left)) or b"\0" * min(BLOCK, left)
            left -= len(block)
            yield block
    if size % RECORD:
        yield b"\0" * (RECORD - size % RECORD)


class _Stream:
    """Blocks as a file that can be read."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self.blocks = blocks
        self.rest = b""
        self.size = 0

    def read(self, size: int = -1) -> bytes:
        found = bytearray(self.rest)
        while size < 0 or len(found) < size:
            block = next(self.blocks, b"")
            if not block:
                break
            self.size += len(block)
            found += block
        if size < 0:
            size = len(found)
        self.rest = bytes(found[size:])
        return bytes(found[:size])


class Unpacked:
    """An archive whose first name `old` becomes `new`, in a folder that is there. Files belong to who unpacks, with `owners` to whom they
    belonged.
    """

    def __init__(self, folder: str, old: str, new: str, *, owners: bool = False) -> None:
        self.folder = folder
        self.old = old
        self.new = new
        self.owners = owners
        self.links: set[str] = set()

    def run(self, blocks: Iterator[bytes]) -> int:
        """Bytes that came. Raises Failed."""
        stream = _Stream(blocks)
        late: list[tuple[str, tarfile.TarInfo]] = []
        try:
            with tarfile.open(fileobj=stream, mode="r|") as tar:  # type: ignore[call-overload]
                for member in tar:
                    path = self._path(member.name)
                    self._unpack(tar, member, path)
                    if member.isdir():
                        late.append((path, member))
                    elif not member.islnk():
                        self._finish(path, member)
            for path, member in reversed(late):
                self._finish(path, member)
        except tarfile.TarError as error:
            raise Failed(f"the archive cannot be read: {error}") from None
        except OSError as error:
            raise Failed(f"{error.filename or self.folder}: {(error.strerror or '').lower()}") from None
        stream.read()
        return stream.size

    def _path(self, name: str) -> str:
        """Where it goes. Raises Failed for what leads outside, and for what goes through a link of the same archive: no honest one does."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if self.old not in (".", "/"):
            parts = parts[1:] if parts[:1] == [self.old] else parts
        parts = [*(() if self.new in (".", "/") else (self.new,)), *parts]
        path = os.path.join(self.folder, *parts)
        above = os.path.realpath(os.path.dirname(path)) if parts else self.folder
        if ".." in parts or (above != self.folder and not above.startswith(self.folder.rstrip("/") + "/")):
            raise Failed(f"the archive leads outside of {self.folder}: {name}")
        parents = path
        while self.links and len(parents := os.path.dirname(parents)) > len(self.folder):
            if parents in self.links:
                raise Failed(f"the archive leads outside of {self.folder}: {name} goes through a link")
        return path

    def _unpack(self, tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        there = os.lstat(path).st_mode if os.path.lexists(path) else None
        if member.isdir():
            if there is None:
                os.mkdir(path)
            elif not os.path.isdir(path):
                raise Failed(f"cannot overwrite non-directory {path} with a directory")
            return
        if there is not None:
            if stat.S_ISDIR(there):
                raise Failed(f"cannot overwrite directory {path} with a file")
            os.unlink(path)
        if member.issym():
            os.symlink(member.linkname, path)
            self.links.add(path)
        elif member.islnk():
            os.link(self._path(member.linkname), path, follow_symlinks=False)
        elif member.isfifo():
            os.mkfifo(path)
        elif member.ischr() or member.isblk():
            kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
            os.mknod(path, kind | 0o600, os.makedev(member.devmajor, member.devminor))
        else:
            source = tar.extractfile(member)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
                while source is not None and (block := source.read(BLOCK)):
                    file.write(block)

    def _finish(self, path: str, member: tarfile.TarInfo) -> None:
        if self.owners:
            os.chown(path, member.uid, member.gid, follow_symlinks=False)
        if not member.issym():
            os.chmod(path, member.mode & 0o7777)
        os.utime(path, (member.mtime, member.mtime), follow_symlinks=False)
