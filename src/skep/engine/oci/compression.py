"""Streams out of gzip and zstd, a bounded piece at a time: a small input never makes a big allocation.

zstd comes from libzstd.so.1 (every Debian has it, dpkg needs it); Python has it from 3.14 on only.
"""

from __future__ import annotations

import bz2
import ctypes
import lzma
import zlib
from collections.abc import Iterator
from typing import Any, Protocol

from skep.errors import SkepError

PIECE = 1 << 20


class BadStream(SkepError):
    """The bytes are not in the format they are said to be in, or end in the middle."""


class Decompressor(Protocol):
    def feed(self, data: bytes) -> Iterator[bytes]:
        """What comes out for `data`, in pieces of at most PIECE bytes. Raises SkepError for what is not in this format."""
        ...

    def finish(self) -> None:
        """Raises SkepError when the stream ended in the middle."""
        ...


def decompressor(compression: str) -> Decompressor:
    """For gzip, zstd, bzip2, xz or nothing (empty)."""
    kinds: dict[str, type[Decompressor]] = {"gzip": Gzip, "zstd": Zstd, "bzip2": Bzip2, "xz": Xz}
    return kinds.get(compression, Plain)()


MAGIC = ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"))
LONGEST_MAGIC = 6


def sniff(head: bytes) -> str:
    """How something that begins so is compressed; empty: not at all, as far as can be seen."""
    return next((name for magic, name in MAGIC if head.startswith(magic)), "")


class Plain:
    def feed(self, data: bytes) -> Iterator[bytes]:
        yield data

    def finish(self) -> None:
        return


class Gzip:
    """One or more members, as pigz and eStargz write them."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(31)
        self._started = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._stream.eof:
                self._stream = zlib.decompressobj(31)
            self._started = True
            try:
                out = self._stream.decompress(data, PIECE)
            except zlib.error as error:
                raise BadStream(f"gzip: {error}") from None
            if out:
                yield out
            data = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail

    def finish(self) -> None:
        if not self._started:
            raise BadStream("gzip: the stream is empty")
        if not self._stream.eof:
            raise BadStream("gzip: unexpected end of the stream")


class _Standard:
    """Over one of Python's own decompressors that take a limit; more than one stream, one after the other."""

    name = ""

    def __init__(self) -> None:
        self._stream = self._new()
        self._started = False

    def _new(self) -> Any:
        raise NotImplementedError

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data or not (self._stream.eof or self._stream.needs_input):
            if self._stream.eof:
                self._stream = self._new()
            self._started = True
            try:
                out = self._stream.decompress(data, PIECE)
            except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
                raise BadStream(f"{self.name}: {error}") from None
            if out:
                yield out
            data = self._stream.unused_data if self._stream.eof else b""

    def finish(self) -> None:
        if not self._started or not self._stream.eof:
            raise BadStream(f"{self.name}: unexpected end of the stream")


class Bzip2(_Standard):
    name = "bzip2"

    def _new(self) -> Any:
        return bz2.BZ2Decompressor()


class Xz(_Standard):
    name = "xz"

    def _new(self) -> Any:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=256 << 20)


class _Buffer(ctypes.Structure):
    _fields_ = (("at", ctypes.c_void_p), ("size", ctypes.c_size_t), ("pos", ctypes.c_size_t))


def _library() -> Any:
    try:
        library = ctypes.CDLL("libzstd.so.1")
    except OSError:
        raise SkepError("the layer is compressed with zstd, and libzstd.so.1 is not on this host (package libzstd1)") from None
    library.ZSTD_createDStream.restype = ctypes.c_void_p
    library.ZSTD_freeDStream.argtypes = (ctypes.c_void_p,)
    library.ZSTD_decompressStream.argtypes = (ctypes.c_void_p, ctypes.POINTER(_Buffer), ctypes.POINTER(_Buffer))
    library.ZSTD_decompressStream.restype = ctypes.c_size_t
    library.ZSTD_isError.argtypes = (ctypes.c_size_t,)
    library.ZSTD_getErrorName.argtypes = (ctypes.c_size_t,)
    library.ZSTD_getErrorName.restype = ctypes.c_char_p
    return library


class Zstd:
    """One or more frames. The library itself bounds the window at 128 MiB."""

    def __init__(self) -> None:
        self._library = _library()
        self._stream = self._library.ZSTD_createDStream()
        self._out = ctypes.create_string_buffer(PIECE)
        self._left = -1
        """What the library still expects of the frame; 0 = a frame is complete, -1 = nothing came yet."""

    def __del__(self) -> None:
        if stream := getattr(self, "_stream", None):
            self._library.ZSTD_freeDStream(stream)

    def feed(self, data: bytes) -> Iterator[bytes]:
        held = ctypes.create_string_buffer(data, len(data))
        source = _Buffer(ctypes.addressof(held), len(data), 0)
        full = False
        while source.pos < source.size or full:
            target = _Buffer(ctypes.addressof(self._out), PIECE, 0)
            left = self._library.ZSTD_decompressStream(self._stream, ctypes.byref(target), ctypes.byref(source))
            if self._library.ZSTD_isError(left):
                raise BadStream(f"zstd: {self._library.ZSTD_getErrorName(left).decode()}")
            self._left = left
            full = target.pos == PIECE and left != 0
            if target.pos:
                yield self._out.raw[: target.pos]

    def finish(self) -> None:
        if self._left != 0:
            raise BadStream("zstd: unexpected end of the stream")
