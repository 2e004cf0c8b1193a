"""Files that are on the disk when they are said to be: whole, also after a power cut."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path


def write_file(path: Path, data: bytes, *, sync: Callable[[int], None] = os.fsync) -> None:
    """The whole file or the old one, also after a power cut."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            sync(file.fileno())
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync(directory)
    finally:
        os.close(directory)


def flush_file_system(path: Path) -> None:
    """syncfs(2): one call for a tree of any size."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            raise OSError(ctypes.get_errno(), "syncfs", str(path))
    finally:
        os.close(descriptor)
