"""Messages, read and written by hand, against a library that does it in its own way."""

from __future__ import annotations

import struct

import dnslib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skep.datapath import dns

labels = st.text(st.sampled_from("abcXYZ019-_"), min_size=1, max_size=63)
names = st.lists(labels, min_size=1, max_size=5).map(".".join).filter(lambda name: len(name) < 250)
kinds = st.sampled_from(["A", "AAAA", "PTR", "TXT", "MX", "ANY"])


def query(name: str, kind: str = "A", size: int = 0) -> tuple[bytes, dns.Query]:
    record = dnslib.DNSRecord.question(name, kind)
    if size:
        record.add_ar(dnslib.EDNS0(udp_len=size))
    data = record.pack()
    read = dns.read(data)
    assert isinstance(read, dns.Query)
    return data, read


@settings(max_examples=200, deadline=None)
@given(names, kinds, st.sampled_from([0, 100, 512, 1232, 65535]))
def test_a_question_is_read_as_it_is(name: str, kind: str, size: int) -> None:
    _, read = query(name, kind, size)
    assert read.name == name.lower() and read.kind == getattr(dnslib.QTYPE, kind) and read.group == dns.INTERNET
    assert read.edns == bool(size) and read.size == max(512, min(size, dns.MOST))


@settings(max_examples=200, deadline=None)
@given(names, kinds, st.lists(st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(str), max_size=40), st.integers(0, 4096))
def test_an_answer_is_what_was_meant(name: str, kind: str, addresses: list[str], size: int) -> None:
    data, read = query(name, kind, size)
    wanted = [a for a in addresses if kind == "A" and ":" not in a or kind == "AAAA" and ":" in a]
    for limit, turn in ((read.size, 0), (dns.LARGEST, len(wanted) - 1 if wanted else 0)):
        answer = dns.addresses(read, addresses, limit)
        message = answer.message(data[:2], turn)
        assert len(message) <= limit and answer.count == len(wanted)
        parsed = dnslib.DNSRecord.parse(message)
        assert parsed.header.id == dnslib.DNSRecord.parse(data).header.id and str(parsed.q.qname).rstrip(".") == name
        given_ = [str(r.rdata) for r in parsed.rr]
        turned = [str(dnslib.A(a) if ":" not in a else dnslib.AAAA(a)) for a in [*wanted[turn:], *wanted[:turn]]]
        assert given_ == turned[: len(given_)]
        assert parsed.header.tc == (len(given_) < len(wanted))
        assert len(parsed.ar) == bool(size) and all(r.ttl == 0 and str(r.rname).rstrip(".") == name for r in parsed.rr)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    check(data)


@settings(max_examples=500, deadline=None)
@given(names, st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4), st.integers(0, 300), st.sampled_from([0, 1232]))
def test_any_spoilt_question_is_read_or_refused(name: str, spoilt: list[tuple[int, int]], length: int, size: int) -> None:
    data = bytearray(query(name, size=size)[0])
    for at, value in spoilt:
        data[at % len(data)] = value
    check(bytes(data[: length or None]))


def check(data: bytes) -> None:
    read = dns.read(data)
    if read is None:
        assert len(data) < 12 or data[2] & 0x80
        return
    message = dns.failure(data[:2], read, read.code if isinstance(read, dns.Malformed) else dns.NXDOMAIN)
    assert dnslib.DNSHeader.parse(dnslib.DNSBuffer(message)).rcode in (dns.FORMERR, dns.NOTIMP, dns.NXDOMAIN)
    if isinstance(read, dns.Query):
        assert data[12 : 12 + len(read.question)] == read.question and len(read.question) <= 260
        assert dns.answers(dns.addresses(read, ["1.2.3.4"], 512).message(b"id"), b"id", read)


@pytest.mark.parametrize(
    ("data", "read"),
    [
        (b"", None),
        (b"\0" * 11, None),
        (struct.pack("!6H", 1, 0x8000, 1, 0, 0, 0), None),
        (struct.pack("!6H", 1, 0x2800, 1, 0, 0, 0), dns.Malformed(dns.NOTIMP, 0x2800)),
        (struct.pack("!6H", 1, 0x100, 0, 0, 0, 0), dns.Malformed(dns.FORMERR, 0x100)),
        (struct.pack("!6H", 1, 0x100, 2, 0, 0, 0) + b"\0\0\1\0\1", dns.Malformed(dns.FORMERR, 0x100)),
        # a pointer, a label and a name that are too long, a name without end
        (struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1", dns.Malformed(dns.FORMERR, 0)),
        (struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\x40" + b"x" * 64 + b"\0\0\1\0\1", dns.Malformed(dns.FORMERR, 0)),
        (struct.pack("!6H", 1, 0, 1, 0, 0, 0) + (b"\x3f" + b"x" * 63) * 4 + b"\0\0\1\0\1", dns.Malformed(dns.FORMERR, 0)),
        (struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\3abc", dns.Malformed(dns.FORMERR, 0)),
        (struct.pack("!6H", 1, 0, 1, 0, 0, 1) + b"\0\0\1\0\1" + b"\0\0\x29", dns.Malformed(dns.FORMERR, 0)),
    ],
)
def test_what_is_no_question(data: bytes, read: dns.Malformed | None) -> None:
    assert dns.read(data) == read


def test_a_dot_in_a_label_is_no_separator() -> None:
    read = dns.read(struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\5tas.s\3web\0\0\1\0\1")
    assert isinstance(read, dns.Query) and read.name == "tas\\.s.web"


def test_pointers_of_any_length() -> None:
    data, read = query("2.1.0.10.in-addr.arpa", "PTR")
    parsed = dnslib.DNSRecord.parse(dns.pointer(read, "web.1.abc.net", 512).message(data[:2]))
    assert [str(r.rdata) for r in parsed.rr] == ["web.1.abc.net."]
    assert len(dns.name_bytes(".".join(["x" * 80] * 9))) <= 255


def test_only_the_answer_to_the_question_counts() -> None:
    data, read = query("Web.example.org")
    good = dnslib.DNSRecord.parse(data).reply().pack()
    id = data[:2]
    assert dns.answers(good, id, read) and dns.answers(good.replace(b"Web", b"wEB"), id, read)
    other = bytes((id[0] ^ 1,)) + good[1:]
    for wrong in (b"", good[:11], data, other, good.replace(b"Web", b"Wob"), good[:-1]):
        assert not dns.answers(wrong, id, read)
    refused = id + struct.pack("!5H", 0x8005, 0, 0, 0, 0)
    assert dns.answers(refused, id, read) and not dns.answers(id + struct.pack("!5H", 0x8000, 0, 0, 0, 0), id, read)


def test_a_response_too_long_says_so() -> None:
    data, read = query("a.org")
    reply = dnslib.DNSRecord.parse(data).reply()
    for i in range(60):
        reply.add_answer(dnslib.RR("a.org", rdata=dnslib.A(f"1.2.3.{i}")))
    cut = dnslib.DNSRecord.parse(dns.cut(reply.pack(), read, 512))
    assert cut.header.tc and not cut.rr and cut.header.id == reply.header.id
    assert dns.cut(reply.pack(), read, dns.LARGEST) == reply.pack()
