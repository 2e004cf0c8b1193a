"""Netlink attributes: to bytes and back. Pure. See docs/network.md."""

from __future__ import annotations

import socket
import struct
import sys

NESTED = 0x8000


def attribute(kind: int, value: bytes) -> bytes:
    size = len(value) + 4
    return struct.pack("=HH", size, kind) + value + b"\0" * (-size % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | NESTED, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def u8(kind: int, value: int) -> bytes:
    return attribute(kind, bytes((value,)))


def ip(kind: int, address: str) -> bytes:
    return attribute(kind, socket.inet_aton(address))


def mac(kind: int, address: str) -> bytes:
    return attribute(kind, bytes.fromhex(address.replace(":", "")))


def mac_text(value: bytes) -> str:
    return value.hex(":")


def attributes(body: bytes, offset: int) -> dict[int, bytes]:
    """Attributes from `offset` on, by kind without flag bits; the last of a kind wins."""
    out = {}
    end = len(body)
    while offset + 4 <= end:
        size, kind = struct.unpack_from("=HH", body, offset)
        if size < 4:
            break
        out[kind & 0x3FFF] = body[offset + 4 : offset + size]
        offset += size + 3 & ~3
    return out


def number(value: bytes | None) -> int:
    return int.from_bytes(value, sys.byteorder) if value else 0
