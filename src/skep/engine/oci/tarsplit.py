"""A layer's tar, put together again byte for byte from the files it became: what pushing and saving need, without keeping it twice.

While a layer is unpacked, everything of its tar but the contents of regular files is written down (headers, padding, extended headers: a
hundred bytes a file, compressed); the contents are taken from the unpacked files later. Nothing is believed: whoever puts a layer together
checks the digest of what comes out against its diff id, so that a layer whose files were changed is an error, never a wrong layer.

    record of a tar: zlib stream of
        R <length: 8 bytes> <bytes>                           as they are
        F <length: 8 bytes> <length: 2 bytes> <path>          that many bytes, the content of the file
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from skep.engine.oci.kernel import open_in_root
from skep.errors import SkepError

BLOCK = 512
PIECE = 1 << 20
LONGEST_HEADER = 1 << 20
"""Bytes of an extended header that is looked into; a longer one is kept as it is, and its entry too."""
_REGULAR = b"0\0" + b"7"
_LEVEL = 3


class Splitter:
    """Fed with a tar in pieces of any size, writes its record to `out`. Never fails: what it does not understand it keeps whole."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._packer = zlib.compressobj(_LEVEL)
        self._raw = bytearray()
        self._want = BLOCK
        """Bytes of the raw part that is being collected: a header, an extended header's data, or padding."""
        self._have = bytearray()
        self._content = 0
        """Bytes of a file's content still to come."""
        self._skip = 0
        """Bytes to keep as they are without a look."""
        self._kind = b""
        self._pax: dict[bytes, bytes] = {}
        self._long = b""
        self._padding = 0
        self._lost = False
        self.total = 0
        """Bytes of the whole tar."""

    def feed(self, piece: bytes) -> None:
        self.total += len(piece)
        view = memoryview(piece)
        while view:
            if self._content:
                taken = min(self._content, len(view))
                self._content -= taken
                view = view[taken:]
            elif self._skip or self._lost:
                taken = len(view) if self._lost else min(self._skip, len(view))
                self._skip -= 0 if self._lost else taken
                self._keep(view[:taken])
                view = view[taken:]
            else:
                taken = min(self._want - len(self._have), len(view))
                self._have += view[:taken]
                view = view[taken:]
                if len(self._have) == self._want:
                    block, self._have = bytes(self._have), bytearray()
                    self._keep(block)
                    self._look(block)

    def finish(self) -> None:
        self._keep(self._have)
        self._flush()
        self._out.write(self._packer.flush())

    def _keep(self, data: bytes | bytearray | memoryview) -> None:
        self._raw += data
        if len(self._raw) >= PIECE:
            self._flush()

    def _flush(self) -> None:
        if self._raw:
            self._out.write(self._packer.compress(b"R" + struct.pack(">Q", len(self._raw)) + self._raw))
            self._raw.clear()

    def _look(self, block: bytes) -> None:
        """A header, or the data of an extended one."""
        if self._kind:
            self._extended(block)
            return
        if not block[0] and block.count(0) == BLOCK:
            # the end mark: what comes after it is in no file
            self._lost = True
            return
        try:
            size = number(block[124:136])
        except ValueError:
            self._lost = True
            return
        kind = block[156:157]
        if kind in (b"x", b"g", b"L", b"K"):
            self._padding = -size % BLOCK
            if size > LONGEST_HEADER:
                # nothing sane has it; the entry after it is kept whole, as nothing is known of it
                self._lost = True
            elif size:
                self._kind, self._want = kind, size + self._padding
            return
        self._entry(block, kind, size)

    def _extended(self, data: bytes) -> None:
        kind, self._kind, self._want = self._kind, b"", BLOCK
        data = data[: len(data) - self._padding]
        if kind == b"L":
            self._long = data.rstrip(b"\0")
        elif kind == b"x":
            self._pax = records(data)
        elif kind == b"g" and records(data).keys() & {b"size", b"path"}:
            self._lost = True

    def _entry(self, block: bytes, kind: bytes, size: int) -> None:
        pax, long, self._pax, self._long = self._pax, self._long, {}, b""
        if b"size" in pax:
            if not pax[b"size"].isdigit():
                self._lost = True
                return
            size = int(pax[b"size"])
        if kind == b"1":
            # GNU tar takes a hard link's size for 0 whatever it says
            size = 0
        path = pax.get(b"path") or long or ustar_path(block)
        sparse = any(key.startswith(b"GNU.sparse") for key in pax)
        if kind in _REGULAR and not sparse and size and len(path) < 1 << 16 and not path.endswith(b"/"):
            self._flush()
            self._out.write(self._packer.compress(b"F" + struct.pack(">QH", size, len(path)) + path))
            self._content, self._skip = size, -size % BLOCK
        elif kind == b"S":
            # old sparse files: further headers may follow, their number is not known from here
            self._lost = True
        else:
            self._skip = size + -size % BLOCK


def number(field: bytes) -> int:
    """A tar header's number: octal text, or base 256. Raises ValueError."""
    if field[0] & 0x80:
        value = int.from_bytes(bytes((field[0] & 0x7F,)) + field[1:], "big")
        if value >= 1 << 63:
            raise ValueError("negative")
        return value
    text = field.strip(b" \0")
    value = int(text, 8) if text else 0
    if value < 0:
        raise ValueError("negative")
    return value


def records(data: bytes) -> dict[bytes, bytes]:
    """A pax header's `length key=value` lines; what is malformed ends it."""
    found: dict[bytes, bytes] = {}
    while data:
        length, blank, _ = data.partition(b" ")
        if not blank or not length.isdigit() or not len(length) + 1 < int(length) <= len(data):
            return found
        key, equals, value = data[len(length) + 1 : int(length)].partition(b"=")
        if equals:
            found[key] = value[:-1]
        data = data[int(length) :]
    return found


def ustar_path(block: bytes) -> bytes:
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def joined(record: BinaryIO, root: str) -> Iterator[bytes]:
    """The tar again, in pieces. Raises SkepError where a file is not there any more as it was; blocks, for a worker thread."""
    read = _reader(record)
    while kind := read(1):
        (length,) = struct.unpack(">Q", read(8))
        if kind == b"R":
            while length:
                piece = read(min(length, PIECE))
                length -= len(piece)
                yield piece
        else:
            (size,) = struct.unpack(">H", read(2))
            yield from _content(root, read(size), length)


def _content(root: str, path: bytes, length: int) -> Iterator[bytes]:
    shown = path.decode(errors="surrogateescape")
    try:
        fd = open_in_root(root, shown, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise SkepError(f"a layer cannot be put together again: {shown!r}: {error.strerror}") from None
    with open(fd, "rb", buffering=0) as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size != length:
            raise SkepError(f"a layer cannot be put together again: {shown!r} is not as it was unpacked")
        while length:
            piece = file.read(min(length, PIECE))
            if not piece:
                raise SkepError(f"a layer cannot be put together again: {shown!r} is shorter than it was")
            length -= len(piece)
            yield piece


def _reader(record: BinaryIO) -> Callable[[int], bytes]:
    """Reads exactly so many bytes of what is compressed there; fewer only at the very end (then none)."""
    unpacker = zlib.decompressobj()
    held = bytearray()

    def read(count: int) -> bytes:
        while len(held) < count and not unpacker.eof:
            data = unpacker.unconsumed_tail or record.read(PIECE // 4)
            if not data:
                break
            held.extend(unpacker.decompress(data, PIECE))
        if held and len(held) < count:
            raise SkepError("a layer cannot be put together again: its record is cut short")
        taken = bytes(held[:count])
        del held[:count]
        return taken

    return read
