"""What a container has changed against its image: its own overlay directory compared with the layers below it. Blocks.

A removed file is a character device 0/0 in the upper directory; a directory that was removed and made again is marked opaque.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Sequence

from skep.errors import SkepError

MODIFIED, ADDED, DELETED = 0, 1, 2
RUNTIMES_OWN = frozenset(
    {"/.dockerenv", "/dev", "/proc", "/sys", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/mtab", "/sbin/docker-init"}
)
"""Places that the runtime makes for what it mounts there: not the container's doing."""
_OPAQUE = "trusted.overlay.opaque"


def changes(upper: str, layers: Sequence[str], ignored: Collection[str] = RUNTIMES_OWN) -> list[tuple[int, str]]:
    """Sorted by path. `layers`: topmost first. Raises SkepError where folders are nested too deeply."""
    try:
        return sorted(_below(upper, list(layers), "", ignored), key=lambda change: change[1])
    except RecursionError:
        raise SkepError("the container's folders are nested too deeply to be compared with its image's") from None


def _below(folder: str, lowers: list[str], path: str, ignored: Collection[str]) -> Iterator[tuple[int, str]]:
    """`lowers`: the directories of lower layers that this one lies over."""
    names = set()
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        names.add(entry.name)
        full = f"{path}/{entry.name}"
        if full in ignored:
            continue
        found = entry.stat(follow_symlinks=False)
        below = _lookup(lowers, entry.name)
        if _whiteout(found):
            if below:
                yield DELETED, full
            continue
        if not stat.S_ISDIR(found.st_mode):
            yield MODIFIED if below else ADDED, full
            continue
        folders = [one for one in below if stat.S_ISDIR(os.lstat(one).st_mode)]
        opaque = _opaque(entry.path)
        inside = list(_below(entry.path, [] if opaque else folders, full, ignored))
        if not below:
            yield ADDED, full
        elif inside or opaque or not folders or _differs(found, os.lstat(folders[0]), any(own.startswith(f"{full}/") for own in ignored)):
            yield MODIFIED, full
        yield from inside
        if opaque:
            mine = set(os.listdir(entry.path))
            yield from ((DELETED, f"{full}/{name}") for name in _visible(folders) - mine)


def _lookup(lowers: list[str], name: str) -> list[str]:
    """Paths of what the lower layers show under a name: one file, or the directories that are merged."""
    found: list[str] = []
    for lower in lowers:
        path = os.path.join(lower, name)
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if _whiteout(status):
            break
        if not stat.S_ISDIR(status.st_mode):
            return found or [path]
        found.append(path)
        if _opaque(path):
            break
    return found


def _visible(folders: list[str]) -> set[str]:
    shown: set[str] = set()
    hidden: set[str] = set()
    for folder in folders:
        for entry in os.scandir(folder):
            if entry.name not in shown | hidden:
                (hidden if _whiteout(entry.stat(follow_symlinks=False)) else shown).add(entry.name)
    return shown


def _whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _opaque(path: str) -> bool:
    try:
        return os.getxattr(path, _OPAQUE, follow_symlinks=False) == b"y"
    except OSError:
        return False


def _differs(mine: os.stat_result, theirs: os.stat_result, touched: bool) -> bool:
    """`touched`: the runtime has made something in it, so its time says nothing."""
    if (mine.st_mode, mine.st_uid, mine.st_gid) != (theirs.st_mode, theirs.st_uid, theirs.st_gid):
        return True
    return not touched and mine.st_mtime_ns != theirs.st_mtime_ns
