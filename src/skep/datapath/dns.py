"""DNS messages, the few forms of them that the resolver makes itself: a question read, an answer written. Pure.

Written by hand because a container's question is a hundred bytes of fixed shape and its answer is that question with addresses behind it:
a third of the CPU and none of the memory of a general library, which the tests use to check every message (RFC 1035, 6891).

Promises: whatever bytes come, `read` gives a Query, a Malformed or None, and never raises. See docs/discovery.md.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence
from typing import NamedTuple

A, PTR, AAAA, OPT = 1, 12, 28, 41
INTERNET = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)
RESPONSE, AUTHORITATIVE, TRUNCATED, DESIRED, AVAILABLE, UNCHECKED = 0x8000, 0x400, 0x200, 0x100, 0x80, 0x10
OPCODE = 0x7800
TTL = 0
"""Seconds. An answer is true when it is given; nobody may keep it (docs/discovery.md)."""
PLAIN_SIZE, OWN_SIZE, MOST = 512, 1232, 4096
"""Bytes over UDP: without EDNS; what we say we take; what we send at most, whatever a client says it takes."""
LARGEST = 65535
RECORD = 16
"""Bytes of an A record whose name points at the question."""
_HEADER = struct.Struct("!6H")
_OPT = b"\0" + struct.pack("!HHIH", OPT, OWN_SIZE, 0, 0)


class Query(NamedTuple):
    name: str
    """Lower case, without the last dot; a dot inside a label is written `\\.` and so matches nothing."""
    kind: int
    group: int
    """The class; INTERNET for all that anybody asks."""
    flags: int
    question: bytes
    """As it was sent, case and all: an answer repeats it."""
    size: int
    """The longest answer over UDP."""
    edns: bool


class Malformed(NamedTuple):
    """To be answered with `code` and nothing else."""

    code: int
    flags: int


def read(data: bytes) -> Query | Malformed | None:
    """None: not a question at all, to be left without an answer."""
    if len(data) < 12:
        return None
    _, flags, questions, answers, authorities, others = _HEADER.unpack_from(data)
    if flags & RESPONSE:
        return None
    if flags & OPCODE:
        return Malformed(NOTIMP, flags)
    if questions != 1:
        return Malformed(FORMERR, flags)
    labels, at = [], 12
    try:
        while length := data[at]:
            if length > 63 or at + length - 12 > 253:
                return Malformed(FORMERR, flags)
            labels.append(data[at + 1 : at + 1 + length])
            at += 1 + length
        kind, group = struct.unpack_from("!HH", data, at + 1)
        size, edns = PLAIN_SIZE, False
        if others and not answers and not authorities:
            size, edns = _read_options(data, at + 5, others)
    except (IndexError, struct.error):
        return Malformed(FORMERR, flags)
    name = ".".join([label.replace(b".", b"\\.").decode("latin-1") for label in labels]).lower()
    return Query(name, kind, group, flags, data[12 : at + 5], size, edns)


def _read_options(data: bytes, at: int, records: int) -> tuple[int, bool]:
    """(longest answer, whether there is an OPT record) of the records that follow the question. Raises on any that are cut off."""
    for _ in range(min(records, 16)):
        root = data[at] == 0
        while data[at]:
            if data[at] >= 0xC0:
                at += 1
                break
            at += 1 + data[at]
        kind, size, _, length = struct.unpack_from("!HHIH", data, at + 1)
        at += 11 + length
        if at > len(data):
            raise IndexError
        if kind == OPT and root:
            return min(max(size, PLAIN_SIZE), MOST), True
    return PLAIN_SIZE, False


class Answer:
    """An answer ready to be sent again and again: to what differs in its two first bytes only, with its records in any turn."""

    __slots__ = ("_fits", "_head", "_records", "_tail", "count")

    def __init__(self, query: Query, code: int, records: Sequence[bytes], limit: int) -> None:
        """Records of one length; as many of them as `limit` bytes hold are sent (and TRUNCATED set when those are not all)."""
        tail = _OPT if query.edns else b""
        self.count = len(records)
        each = len(records[0]) if records else 1
        self._fits = min(self.count, max(0, limit - 12 - len(query.question) - len(tail)) // each)
        flags = RESPONSE | AUTHORITATIVE | AVAILABLE | query.flags & (DESIRED | UNCHECKED) | code
        if self._fits < self.count:
            flags |= TRUNCATED
        self._head = struct.pack("!5H", flags, 1, self._fits, 0, int(query.edns)) + query.question
        self._records = b"".join(records)
        self._tail = tail
        self._fits *= each

    def message(self, id: bytes, turn: int = 0) -> bytes:
        """`turn`: the record to begin with."""
        if self.count < 2:
            return id + self._head + self._records[: self._fits] + self._tail
        records = self._records
        start = turn * (len(records) // self.count)
        records = records[start:] + records[:start]
        return id + self._head + records[: self._fits] + self._tail


def addresses(query: Query, values: Sequence[str], limit: int) -> Answer:
    """Those of the addresses that are of the kind asked for; none is an answer too (the name is there, such an address is not)."""
    if query.kind == A:
        head = struct.pack("!HHHIH", 0xC00C, A, INTERNET, TTL, 4)
        records = [head + bytes(map(int, value.split("."))) for value in values if ":" not in value]
    elif query.kind == AAAA:
        head = struct.pack("!HHHIH", 0xC00C, AAAA, INTERNET, TTL, 16)
        records = [head + ipaddress.IPv6Address(value).packed for value in values if ":" in value]
    else:
        records = []
    return Answer(query, NOERROR, records, limit)


def pointer(query: Query, name: str, limit: int) -> Answer:
    value = name_bytes(name)
    return Answer(query, NOERROR, [struct.pack("!HHHIH", 0xC00C, PTR, INTERNET, TTL, len(value)) + value], limit)


def name_bytes(name: str) -> bytes:
    """A name on the wire; what no name can hold (labels over 63 bytes, 255 in all) is cut."""
    out = b""
    for label in name.encode("latin-1", errors="replace").split(b"."):
        part = label[:63]
        if part and len(out) + len(part) < 254:
            out += bytes((len(part),)) + part
    return out + b"\0"


def failure(id: bytes, query: Query | Malformed, code: int) -> bytes:
    """An answer without records, not ours to be sure of."""
    flags = RESPONSE | AVAILABLE | query.flags & (OPCODE | DESIRED | UNCHECKED) | code
    if isinstance(query, Malformed):
        return id + struct.pack("!5H", flags, 0, 0, 0, 0)
    tail = _OPT if query.edns else b""
    return id + struct.pack("!5H", flags, 1, 0, 0, int(query.edns)) + query.question + tail


def question(id: bytes, name: str, kind: int) -> bytes:
    """A question of our own."""
    return id + struct.pack("!5H", DESIRED, 1, 0, 0, 0) + name_bytes(name) + struct.pack("!HH", kind, INTERNET)


def answers(response: bytes, id: bytes, query: Query) -> bool:
    """Whether it answers this question, sent with this id: what anybody on the way could send unasked does not."""
    if len(response) < 12 or response[:2] != id or not response[2] & 0x80:
        return False
    count = struct.unpack_from("!H", response, 4)[0]
    if count == 0:
        # some servers repeat no question when they refuse it
        return bool(response[3] & 15)
    return response[12 : 12 + len(query.question)].lower() == query.question.lower()


def code_of(response: bytes) -> int:
    return response[3] & 15


def is_truncated(response: bytes) -> bool:
    return bool(response[2] & 2)


def cut(response: bytes, query: Query, limit: int) -> bytes:
    """A response that is too long for UDP: only that it is. The client comes again by TCP."""
    if len(response) <= limit:
        return response
    flags = struct.unpack_from("!H", response, 2)[0] | TRUNCATED
    return response[:2] + struct.pack("!5H", flags, 1, 0, 0, 0) + query.question
