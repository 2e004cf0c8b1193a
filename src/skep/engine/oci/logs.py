"""A container's log as conmon writes it (k8s-file), read back: parts joined to lines, across rotated files, followed without polling.

A line of the file: `2026-11-23T06:13:46.960465673+00:00 stdout F text`; `P` in F's place marks a part of a line that was too long for one
read, or had not ended yet. Files: `log` is written to, `log.1` is the newest of the old ones.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path

from skep.engine.base import LogRecord
from skep.engine.oci.inotify import Inotify
from skep.engine.threads import settled

NAME = "log"
JOINED = 1 << 20
"""Longest line that is put together; a longer one comes in several records without a newline between them."""
_BLOCK = 1 << 16
_CHUNK = 1 << 18
_STREAMS = {b"stdout": 1, b"stderr": 2}
_WHOLE = {b" stdout F ": 1, b" stderr F ": 2}
"""Between the stamp and the text of a whole line."""


class Lines:
    """Turns lines of the file into records. One for each reader: it keeps the parts of unfinished lines."""

    def __init__(self) -> None:
        self._parts: dict[int, tuple[int, list[bytes], int]] = {}
        self._second = b""
        self._base = 0

    def _time(self, stamp: bytes) -> int:
        """Stamps of one second share their date: only the first of them is decoded in full."""
        second, _, rest = stamp.partition(b".")
        key = second + rest[9:]
        if key != self._second:
            self._base = int(datetime.fromisoformat(key.decode("ascii")).timestamp()) * 1_000_000_000
            self._second = key
        return self._base + int(rest[:9])

    def feed(self, line: bytes) -> LogRecord | None:
        """`line` without its newline. None: a part, or something conmon did not write."""
        stream = _WHOLE.get(line[35:45])
        if stream is not None and stream not in self._parts and line[:19] + line[29:35] == self._second and line[20:29].isdigit():
            # nearly all lines: a whole one, in the same second as the one before
            return LogRecord(at=self._base + int(line[20:29]), stream=stream, data=line[45:] + b"\n")
        fields = line.split(b" ", 3)
        stream = _STREAMS.get(fields[1]) if len(fields) == 4 else None
        if stream is None or fields[2] not in (b"F", b"P"):
            return None
        try:
            at = self._time(fields[0])
        except (ValueError, UnicodeDecodeError):
            return None
        data = fields[3]
        begun = self._parts.pop(stream, None)
        if fields[2] == b"F":
            if begun is None:
                return LogRecord(at=at, stream=stream, data=data + b"\n")
            return LogRecord(at=begun[0], stream=stream, data=b"".join([*begun[1], data, b"\n"]))
        if begun is None:
            begun = (at, [], 0)
        begun[1].append(data)
        size = begun[2] + len(data)
        if size >= JOINED:
            return LogRecord(at=begun[0], stream=stream, data=b"".join(begun[1]))
        self._parts[stream] = (begun[0], begun[1], size)
        return None

    def rest(self) -> list[LogRecord]:
        """Lines that never ended."""
        left = [LogRecord(at=at, stream=stream, data=b"".join(parts)) for stream, (at, parts, _) in sorted(self._parts.items())]
        self._parts.clear()
        return left


def candidates(folder: Path) -> list[Path]:
    """Every name a file of this log may have, newest first. Rotation only moves files to later names: who opens them in this order may
    see one twice, but misses none; a list of what is there would miss one that is being renamed."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:  # the container was removed
        return []
    numbers = [int(name[len(NAME) + 1 :]) for name in names if name.startswith(f"{NAME}.") and name[len(NAME) + 1 :].isdigit()]
    return [folder / NAME, *(folder / f"{NAME}.{number}" for number in range(1, max(numbers, default=0) + 2))]


def files(folder: Path) -> list[Path]:
    """Those that are there now, oldest first."""
    return [path for path in reversed(candidates(folder)) if path.exists()]


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1


class Opened:
    """The files of a log as they are now, held open: what was asked for while the container was there can be read when it is gone."""

    def __init__(self, folder: Path) -> None:
        self._fds: list[int] = []
        seen: set[tuple[int, int]] = set()
        for path in candidates(folder):
            fd = _open(path)
            if fd < 0:
                continue
            if _inode(fd) in seen:  # renamed while we looked
                os.close(fd)
                continue
            seen.add(_inode(fd))
            self._fds.insert(0, fd)

    def take(self) -> list[int]:
        """Descriptors, oldest file first; whoever takes them closes them."""
        fds, self._fds = self._fds, []
        return fds

    def __del__(self) -> None:
        for fd in self.take():
            os.close(fd)


def place(fds: list[int], tail: int, streams: Iterable[int]) -> tuple[list[int], int]:
    """Of the files, oldest first, those to read, the first one placed so that `tail` whole lines follow (-1: all), and the size that the
    last one had then: what is written meanwhile is not counted. The others are closed."""
    if not fds:
        return [], 0
    last = os.fstat(fds[-1]).st_size
    if tail < 0:
        return fds, last
    wanted, left = set(streams), tail
    for index in range(len(fds) - 1, -1, -1):
        left = _seek_tail(fds[index], last if index == len(fds) - 1 else os.fstat(fds[index]).st_size, left, wanted)
        if left == 0:
            for fd in fds[:index]:
                os.close(fd)
            return fds[index:], last
    return fds, last


def _seek_tail(fd: int, end: int, count: int, wanted: set[int]) -> int:
    """Place `fd` before the last `count` wanted whole lines ahead of `end`; how many are still missing."""
    position = end
    carry = b""
    while position > 0:
        size = min(_BLOCK, position)
        position -= size
        block = os.pread(fd, size, position) + carry
        lines = block.split(b"\n")
        carry = lines[0] if position else b""
        at = position + len(block)
        for index in range(len(lines) - 1, 0 if position else -1, -1):
            line = lines[index]
            at -= len(line)
            fields = line.split(b" ", 3)
            if len(fields) == 4 and fields[2] == b"F" and _STREAMS.get(fields[1]) in wanted:
                if count == 0:
                    os.lseek(fd, at + len(line) + 1, os.SEEK_SET)
                    return 0
                count -= 1
            at -= 1
    os.lseek(fd, 0, os.SEEK_SET)
    return count


class Reader:
    """Reads the files of one log in order, also while they are rotated. Blocks: its calls run in worker threads.

    `bounded`: only what is there now.
    """

    def __init__(self, folder: Path, tail: int, streams: Iterable[int], bounded: bool = False, opened: Opened | None = None) -> None:
        self._folder = folder
        self._queue, size = place((opened or Opened(folder)).take(), tail, streams)
        self._bounded = bounded
        self._left = 0
        if bounded and self._queue:
            self._left = size - os.lseek(self._queue[-1], 0, os.SEEK_CUR)
        self._carry = b""
        self._lines = Lines()

    def close(self) -> None:
        for fd in self._queue:
            os.close(fd)
        self._queue = []

    __del__ = close  # who asked for it may be gone before it was made

    def read(self) -> list[LogRecord] | None:
        """The next records; None when everything written so far was read."""
        while True:
            if not self._queue and not self._next(None):
                return None
            fd = self._queue[0]
            if self._bounded and len(self._queue) == 1:
                data = os.read(fd, min(_CHUNK, self._left))
                self._left -= len(data)
                return self._parse(data) if data else None
            data = os.read(fd, _CHUNK)
            if data:
                return self._parse(data)
            if len(self._queue) > 1:
                os.close(self._queue.pop(0))
                self._carry = b""
            elif not self._next(fd):
                return None
            else:
                data = os.read(fd, _CHUNK)  # written between the last read and the change of files
                if data:
                    return self._parse(data)

    def _next(self, fd: int | None) -> bool:
        """Open what has come after `fd`, the last file we have; whether there was anything."""
        if self._bounded:
            return False
        mine = _inode(fd) if fd is not None else None
        opened: dict[tuple[int, int], int] = {}
        for path in candidates(self._folder):
            new = _open(path)
            if new < 0:
                continue
            inode = _inode(new)
            if inode == mine or inode in opened:
                os.close(new)
                if inode == mine:
                    break
                continue
            opened[inode] = new
        self._queue += reversed(opened.values())
        return bool(opened)

    def _parse(self, data: bytes) -> list[LogRecord]:
        lines = (self._carry + data).split(b"\n")
        self._carry = lines.pop()
        return [record for line in lines if (record := self._lines.feed(line)) is not None]

    def rest(self) -> list[LogRecord]:
        return self._lines.rest()


def _inode(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


async def records(
    opened: Opened,
    folder: Path,
    inotify: Inotify,
    ended: Callable[[], bool],
    wakers: set[Callable[[], None]],
    *,
    follow: bool,
    since: int,
    until: int,
    tail: int,
    streams: frozenset[int],
) -> AsyncGenerator[LogRecord, None]:
    """`opened`: the files as they were when the log was asked for; who was told that it comes may have the container removed before it
    reads. `ended`: nothing more will be written. `wakers`: called when that comes true.
    """
    news = asyncio.Event()

    def wake(name: str = "") -> None:
        news.set()

    gone, reader = False, None
    try:
        if follow:
            wakers.add(news.set)
            try:
                inotify.watch(str(folder), wake)
            except FileNotFoundError:  # the container was removed
                gone = True
        loop = asyncio.get_running_loop()
        reader = await _reading(folder, tail, streams, not follow, opened)
        while True:
            news.clear()
            over = gone or ended()
            found = await settled(loop.run_in_executor(None, reader.read))
            if found is None:
                if over or not follow:
                    found = reader.rest() if over else []
                    for record in _within(found, since, until, streams):
                        yield record
                    return
                if until and not await _until(news, until):
                    return
                await news.wait()
                continue
            for record in _within(found, since, until, streams):
                yield record
            if until and found and found[-1].at > until:
                for record in _within(reader.rest(), since, until, streams):
                    yield record
                return
    finally:
        if reader is not None:
            reader.close()
        if follow:
            inotify.unwatch(str(folder), wake)
            wakers.discard(news.set)


async def _reading(folder: Path, tail: int, streams: frozenset[int], whole: bool, opened: Opened) -> Reader:
    """In a thread; who is cancelled meanwhile leaves nothing open."""
    opening = asyncio.get_running_loop().run_in_executor(None, Reader, folder, tail, streams, whole, opened)
    try:
        return await settled(opening)
    except asyncio.CancelledError:
        if opening.exception() is None:
            opening.result().close()
        raise


async def _until(news: asyncio.Event, until: int) -> bool:
    """Wait for news, at most until that time; whether there may be any."""
    try:
        async with asyncio.timeout(max(0.0, (until - time.time_ns()) / 1e9)):
            await news.wait()
    except TimeoutError:
        return False
    return True


def _within(found: Iterable[LogRecord], since: int, until: int, streams: frozenset[int]) -> Iterator[LogRecord]:
    for record in found:
        if record.stream in streams and record.at >= since and (not until or record.at <= until):
            yield record


def rotate(folder: Path, keep: int, reopen: Callable[[], None]) -> None:
    """Start a new file; `keep` files are left, the new one counted. No line is lost: conmon goes on writing to the renamed one until it
    opens the new. Blocks up to a second.
    """
    current = folder / NAME
    for number in range(max(keep, 2) - 2, 0, -1):
        old = folder / f"{NAME}.{number}"
        if old.exists():
            old.rename(folder / f"{NAME}.{number + 1}")
    current.rename(folder / f"{NAME}.1")
    try:
        reopen()
    except Exception:
        if not current.exists():
            (folder / f"{NAME}.1").rename(current)
        raise
    deadline = time.monotonic() + 1.0
    while not current.exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    if keep <= 1 and current.exists():
        (folder / f"{NAME}.1").unlink(missing_ok=True)
