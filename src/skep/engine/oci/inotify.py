"""Files that change, as callbacks in the event loop: exit codes and log followers need no polling.

One inotify descriptor; a watch per path, shared by all who asked for it.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable

MODIFY = 0x2
CLOSE_WRITE = 0x8
MOVED_TO = 0x80
CREATE = 0x100
_FLAGS = 0x80000 | 0x800  # IN_CLOEXEC | IN_NONBLOCK
_OVERFLOW = 0x4000
_IGNORED = 0x8000

Callback = Callable[[str], None]
"""Called with the name inside the watched directory; empty: events were lost, look at everything."""


class Inotify:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(_FLAGS)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._paths: dict[str, int] = {}
        self._callbacks: dict[int, list[Callback]] = {}
        loop.add_reader(self._fd, self._read)

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def watch(self, path: str, callback: Callback, mask: int = MODIFY | CREATE | MOVED_TO) -> None:
        wd = self._paths.get(path)
        if wd is None:
            wd = self._libc.inotify_add_watch(self._fd, path.encode(), ctypes.c_uint32(mask))
            if wd < 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), path)
            self._paths[path] = wd
        self._callbacks.setdefault(wd, []).append(callback)

    def unwatch(self, path: str, callback: Callback) -> None:
        wd = self._paths.get(path)
        if wd is None:
            return
        callbacks = self._callbacks.get(wd, [])
        if callback in callbacks:
            callbacks.remove(callback)
        if not callbacks:
            del self._paths[path]
            self._callbacks.pop(wd, None)
            self._libc.inotify_rm_watch(self._fd, wd)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            wd, mask, _, length = struct.unpack_from("iIII", data, at)
            name = data[at + 16 : at + 16 + length].rstrip(b"\0").decode("utf-8", "surrogateescape")
            at += 16 + length
            if mask & _OVERFLOW:
                for callbacks in list(self._callbacks.values()):
                    for callback in list(callbacks):
                        callback("")
            elif mask & _IGNORED:
                self._callbacks.pop(wd, None)
                self._paths = {path: known for path, known in self._paths.items() if known != wd}
            else:
                for callback in list(self._callbacks.get(wd, ())):
                    callback(name)
