"""From a layer's bytes to a directory that overlayfs can use, in one pass: digest, decompression, diff id, GNU tar, whiteouts.

GNU tar does the unpacking because it knows the tricks of hostile archives: it refuses `..`, strips leading slashes of names and hard link
targets, and makes symbolic links that lead outside only after everything else (so nothing is written through them). On top of that:
the unpacked bytes are bounded, and so is the disk they may fill; `trusted.*` attributes are not taken over (they would speak to overlayfs);
device nodes that no container may open by default, and a layer's own overlayfs whiteouts, are not kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec

from skep.engine import subprocesses, trees
from skep.engine.oci.compression import decompressor
from skep.engine.oci.tarsplit import Splitter
from skep.engine.threads import settled
from skep.errors import SkepError

TAR = (
    *("tar", "--extract", "--file=-", "--preserve-permissions", "--same-owner", "--numeric-owner", "--delay-directory-restore"),
    *("--warning=no-timestamp", "--xattrs", "--xattrs-include=user.*", "--xattrs-include=security.capability", "--directory"),
)
MAX_UNPACKED = 64 << 30
RESERVE = 256 << 20
RESERVE_FILES = 1000
LOOK_EVERY = 16 << 20
MAX_COMPLAINT = 16 << 10
DEVICES = {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)}
"""null, zero, full, random, urandom, tty, console, ptmx: what Docker's device rules let a container open."""


class Unpacked(msgspec.Struct, frozen=True, kw_only=True):
    diff_id: str
    digest: str
    """Of the bytes as they came."""
    size: int
    """Bytes of the regular files."""
    total: int = 0
    """Bytes of the tar."""


class TooMuch(SkepError):
    """More bytes than a layer may have, or than the disk can take."""


class WrongDigest(SkepError):
    """The bytes are not those that were asked for."""


class _Funnel:
    """The synchronous middle: bytes in, hashes and tar's standard input out. One thread at a time uses it."""

    def __init__(self, compression: str, pipe: int, root: Path, limit: int, record: BinaryIO | None) -> None:
        self.outer = hashlib.sha256()
        self.inner = hashlib.sha256()
        self.unpacked = 0
        self.error: SkepError | None = None
        self._decompressor = decompressor(compression)
        self._pipe = pipe
        self._deaf = False
        self._root = root
        self._limit = limit
        self._next_look = 0
        self._splitter = Splitter(record) if record is not None else None

    def feed(self, chunk: bytes) -> None:
        """Bad compression does not end it: the digest of the whole says better what is wrong. Too much of anything does."""
        self.outer.update(chunk)
        if self.error is not None:
            return
        try:
            for piece in self._decompressor.feed(chunk):
                self._take(piece)
        except TooMuch:
            raise
        except SkepError as error:
            self.error = error

    def finish(self) -> None:
        try:
            self._decompressor.finish()
        except SkepError as error:
            self.error = self.error or error
        if self._splitter is not None:
            with _space(self._root):
                self._splitter.finish()

    def _take(self, piece: bytes) -> None:
        self.inner.update(piece)
        self.unpacked += len(piece)
        if self.unpacked > self._limit:
            raise TooMuch(f"the layer unpacks to more than {self._limit} bytes")
        if self.unpacked >= self._next_look:
            self._look()
        if self._splitter is not None:
            with _space(self._root):
                self._splitter.feed(piece)
        self._write(piece)

    def _look(self) -> None:
        if reason := shortage(self._root):
            raise TooMuch(f"{reason} for the layer on {self._root}")
        self._next_look = self.unpacked + LOOK_EVERY

    def _write(self, piece: bytes) -> None:
        """tar stops reading at the archive's end mark or at an error; what comes after is hashed all the same, tar's exit code tells."""
        view = memoryview(piece)
        while view and not self._deaf:
            try:
                view = view[os.write(self._pipe, view) :]
            except BrokenPipeError:
                self._deaf = True


def shortage(root: Path) -> str:
    """Why nothing more should be written to this file system, or empty: a full disk stops more than the one who filled it."""
    disk = os.statvfs(root)
    if disk.f_bavail * disk.f_frsize < min(RESERVE, disk.f_blocks * disk.f_frsize // 50):
        return "no space left"
    return "no inodes left" if disk.f_files and disk.f_favail < min(RESERVE_FILES, disk.f_files // 50) else ""


@contextmanager
def _space(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TooMuch(f"{shortage(root) or (error.strerror or str(error)).lower()} for the layer on {root}") from None


async def unpack(
    source: AsyncIterator[bytes],
    compression: str,
    target: Path,
    executor: Executor,
    *,
    digest: str = "",
    limit: int = MAX_UNPACKED,
    record: BinaryIO | None = None,
) -> Unpacked:
    """Unpack into the empty directory `target`; `digest` is what the bytes must have (empty: anything). `record`: takes what is needed
    to put the tar together again (tarsplit.py).

    Raises SkepError with the first reason; the caller removes what is left then. Cancelling ends tar and the thread before it returns.
    """
    loop = asyncio.get_running_loop()
    reading, writing = os.pipe()
    try:
        tar = await subprocesses.begin(
            *TAR,
            str(target),
            stdin=reading,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={"LC_ALL": "C", "PATH": os.environ.get("PATH", "/usr/bin:/bin")},
        )
    except OSError as error:
        os.close(writing)
        raise SkepError(f"tar cannot be run: {error.strerror}") from None
    except BaseException:
        os.close(writing)
        raise
    finally:
        os.close(reading)
    funnel = _Funnel(compression, writing, target, limit, record)
    try:
        try:
            async with asyncio.TaskGroup() as group:
                complaint = group.create_task(_complaint(tar))
                try:
                    await _pour(source, funnel, executor, tar)
                finally:
                    os.close(writing)
                code = await tar.wait()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
    finally:
        await subprocesses.end(tar)
    got = f"sha256:{funnel.outer.hexdigest()}"
    if digest and got != digest:
        raise WrongDigest(f"filesystem layer verification failed for digest {digest}")
    if funnel.error is not None:
        raise funnel.error
    if code != 0:
        if reason := shortage(target):
            raise TooMuch(f"{reason} for the layer on {target}")
        raise SkepError(f"the layer cannot be unpacked: {complaint.result() or f'tar ended with {code}'}")
    size = await settled(loop.run_in_executor(executor, settle, target))
    return Unpacked(diff_id=f"sha256:{funnel.inner.hexdigest()}", digest=got, size=size, total=funnel.unpacked)


async def _pour(source: AsyncIterator[bytes], funnel: _Funnel, executor: Executor, tar: asyncio.subprocess.Process) -> None:
    """The thread must not outlive us: it writes to a descriptor that is closed afterwards."""
    loop = asyncio.get_running_loop()
    async for chunk in source:
        await _step(loop.run_in_executor(executor, funnel.feed, chunk), tar)
    await _step(loop.run_in_executor(executor, funnel.finish), tar)


async def _step(step: asyncio.Future[None], tar: asyncio.subprocess.Process) -> None:
    """Without tar a thread that waits for room in its pipe goes on, and ends."""
    try:
        await asyncio.shield(step)
    except BaseException:
        subprocesses.kill(tar)
        await settled(step)
        raise


async def _complaint(tar: asyncio.subprocess.Process) -> str:
    """The first line that matters of what tar says on standard error, read to its end however long it is."""
    assert tar.stderr is not None
    kept = b""
    while chunk := await tar.stderr.read(65536):
        kept = (kept + chunk)[:MAX_COMPLAINT]
    lines = [line.removeprefix("tar: ").strip() for line in kept.decode(errors="replace").splitlines()]
    lines = [line for line in lines if line and not line.startswith(("Removing leading", "Exiting with failure"))]
    return lines[0][:300] if lines else ""


def settle(root: Path) -> int:
    """Turn whiteouts into overlayfs', drop what must not be there, keep directories' times; returns the bytes of regular files."""
    total, counted = 0, set()
    pending = [str(root)]
    while pending:
        directory = pending.pop()
        before = os.stat(directory)
        changed = False
        with os.scandir(directory) as entries:
            listed = list(entries)
        for entry in listed:
            if entry.name.startswith(".wh."):
                _whiteout(directory, entry)
                changed = True
            elif entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
            elif entry.is_symlink():
                continue
            else:
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(found.st_mode):
                    if found.st_nlink == 1 or found.st_ino not in counted:
                        total += found.st_size
                    if found.st_nlink > 1:
                        counted.add(found.st_ino)
                elif _forbidden(found):
                    os.unlink(entry.path)
                    changed = True
        if changed:
            os.utime(directory, ns=(before.st_atime_ns, before.st_mtime_ns))
    return total


def _forbidden(found: os.stat_result) -> bool:
    if stat.S_ISCHR(found.st_mode):
        return (os.major(found.st_rdev), os.minor(found.st_rdev)) not in DEVICES
    return stat.S_ISBLK(found.st_mode)


def _whiteout(directory: str, entry: os.DirEntry[str]) -> None:
    """https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts; `.wh..wh.*` beyond the opaque mark is AUFS' own."""
    if entry.is_dir(follow_symlinks=False):
        trees.remove(entry.path)
    else:
        os.unlink(entry.path)
    hidden = entry.name.removeprefix(".wh.")
    if hidden == ".wh..opq":
        os.setxattr(directory, "trusted.overlay.opaque", b"y")
        return
    if hidden.startswith(".wh."):
        return
    if hidden in ("", ".", ".."):
        raise SkepError(f"the layer cannot be unpacked: invalid whiteout {entry.name!r}")
    path = os.path.join(directory, hidden)
    try:
        present = os.lstat(path)
    except FileNotFoundError:
        os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))
        return
    if stat.S_ISDIR(present.st_mode):
        os.setxattr(path, "trusted.overlay.opaque", b"y")
