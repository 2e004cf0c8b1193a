"""What a node remembers of its tasks through a restart: items, its own statuses, and what the link's greeting said.

A journal: each change is appended, the file is written anew when most of it is history. It is written without fsync: a killed skepd loses
nothing (the kernel has it), and after a power failure no container runs that a lost line could be about; a torn end is dropped. Registry
credentials are never written. See docs/link.md.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Protocol

import msgspec

from skep.model.assignment import Item, TaskItem
from skep.model.task import TaskStatus

COMPACT_AT = 1 << 20
"""Bytes below which the journal is never rewritten."""


class State(Protocol):
    """Puts are kept in memory until `flush`."""

    node_id: str
    data_path_port: int
    version: int
    """Of the last assignments taken."""

    def load(self) -> tuple[dict[str, Item], dict[str, TaskStatus]]:
        """Items by key, statuses by task id."""
        ...

    def put_item(self, key: str, item: Item | None) -> None: ...

    def put_status(self, task_id: str, status: TaskStatus | None) -> None: ...

    def flush(self) -> None: ...

    def clear(self) -> None:
        """Forget everything (the node leaves its cluster)."""
        ...


class MemoryState:
    """Remembers within the process: for simulations, which hand it to the restarted worker."""

    def __init__(self) -> None:
        self.node_id = ""
        self.data_path_port = 4789
        self.version = 0
        self.items: dict[str, Item] = {}
        self.statuses: dict[str, TaskStatus] = {}

    def load(self) -> tuple[dict[str, Item], dict[str, TaskStatus]]:
        return dict(self.items), dict(self.statuses)

    def put_item(self, key: str, item: Item | None) -> None:
        if item is None:
            self.items.pop(key, None)
        else:
            self.items[key] = msgspec.structs.replace(item, registry_auth="") if isinstance(item, TaskItem) else item

    def put_status(self, task_id: str, status: TaskStatus | None) -> None:
        if status is None:
            self.statuses.pop(task_id, None)
        else:
            self.statuses[task_id] = status

    def flush(self) -> None:
        pass

    def clear(self) -> None:
        self.items.clear()
        self.statuses.clear()
        self.node_id, self.version = "", 0


class _Line(msgspec.Struct, frozen=True, array_like=True):
    """One change. `node` stands alone in the line of the greeting."""

    key: str
    item: Item | None = None
    status: TaskStatus | None = None
    node: tuple[str, int, int] | None = None


class FileState(MemoryState):
    """The journal at `path` (mode 0600). Each line: length and CRC-32 (4 bytes each, big-endian), then msgpack."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._pending: list[bytes] = []
        self._encoder = msgspec.msgpack.Encoder()
        self._node: tuple[str, int, int] = (self.node_id, self.data_path_port, self.version)
        self._torn = False
        """The disk was full in the middle of a line: what is appended would not be read, so the journal has to be written anew."""
        self._size = self._read()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._file, self._size)

    def put_item(self, key: str, item: Item | None) -> None:
        super().put_item(key, item)
        self._append(_Line(key, item=self.items.get(key)))

    def put_status(self, task_id: str, status: TaskStatus | None) -> None:
        super().put_status(task_id, status)
        self._append(_Line(f"status/{task_id}", status=status))

    def flush(self) -> None:
        """Hand everything to the kernel. Raises OSError (disk full): the caller decides; the next flush catches up."""
        node = (self.node_id, self.data_path_port, self.version)
        if node != self._node:
            self._node = node
            self._append(_Line("node", node=node))
        if not self._pending:
            return
        if self._torn or (self._size > COMPACT_AT and self._size > 4 * self._live()):
            self._rewrite()
            return
        data = b"".join(self._pending)
        self._pending.clear()
        self._torn = True
        _write(self._file, data)
        self._torn = False
        self._size += len(data)

    def clear(self) -> None:
        super().clear()
        self._pending.clear()
        self._rewrite()

    def close(self) -> None:
        if self._file >= 0:
            try:
                self.flush()
            finally:
                os.close(self._file)
                self._file = -1

    def _append(self, line: _Line) -> None:
        data = self._encoder.encode(line)
        self._pending.append(len(data).to_bytes(4, "big") + zlib.crc32(data).to_bytes(4, "big") + data)

    def _live(self) -> int:
        """Bytes of a journal without history, estimated by its lines."""
        return 512 * (len(self.items) + len(self.statuses) + 1)

    def _read(self) -> int:
        """Returns how much of it is whole."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return 0
        decoder = msgspec.msgpack.Decoder(_Line)
        at = 0
        while at + 8 <= len(data):
            length, crc = int.from_bytes(data[at : at + 4], "big"), int.from_bytes(data[at + 4 : at + 8], "big")
            body = data[at + 8 : at + 8 + length]
            if len(body) < length or zlib.crc32(body) != crc:
                break
            at += 8 + length
            try:
                line = decoder.decode(body)
            except msgspec.DecodeError:
                continue
            if line.node is not None:
                self.node_id, self.data_path_port, self.version = line.node
            elif line.key.startswith("status/"):
                super().put_status(line.key.removeprefix("status/"), line.status)
            else:
                super().put_item(line.key, line.item)
        self._node = (self.node_id, self.data_path_port, self.version)
        return at

    def _rewrite(self) -> None:
        self._pending.clear()
        self._append(_Line("node", node=(self.node_id, self.data_path_port, self.version)))
        for key, item in self.items.items():
            self._append(_Line(key, item=item))
        for id, status in self.statuses.items():
            self._append(_Line(f"status/{id}", status=status))
        data = b"".join(self._pending)
        self._pending.clear()
        new = self._path.with_name(self._path.name + ".new")
        file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            _write(file, data)
            os.replace(new, self._path)
        except BaseException:
            os.close(file)
            self._torn = True
            new.unlink(missing_ok=True)
            raise
        self._torn = False
        if self._file >= 0:
            os.close(self._file)
        self._file, self._size = file, len(data)


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
