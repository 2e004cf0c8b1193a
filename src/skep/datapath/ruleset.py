"""What nf_tables holds, read straight from the kernel: our own table's chains and elements, and the generation of a namespace's rules.

Reading costs microseconds where listing as text costs milliseconds, and does not depend on how a version of nft words things. Chains that
change carry a mark per rule (a comment: `rules.marks`), so a body is known without being understood. The generation counts transactions:
as long as only ours have been counted, nobody has touched a rule, and there is nothing to read. See docs/network.md.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from collections.abc import Iterator

import msgspec

from skep.datapath.conntrack import NETLINK_NETFILTER
from skep.datapath.netlink import Socket, attributes, mac_text, text
from skep.datapath.nft import Rules

GET_CHAIN, GET_RULE, GET_SET, GET_ELEMENT, GET_GENERATION = ((10 << 8) | n for n in (4, 7, 10, 13, 16))
_HEADER = struct.pack("=BBH", socket.AF_INET, 0, 0)
IPV4, MAC, PROTOCOL, SERVICE, MARK, DEVGROUP, IFNAME = 7, 9, 12, 13, 19, 35, 41
"""nft's numbers for the types we use; a concatenation has six bits for each."""
_SIZES = {IPV4: 4, MAC: 6, PROTOCOL: 1, SERVICE: 2, MARK: 4, DEVGROUP: 4, IFNAME: 16}
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 132: "sctp"}
_VERDICTS = {-3: "jump", -4: "goto"}
ANONYMOUS, INTERVAL, IS_MAP, DYNAMIC = 1, 4, 8, 32
INTERVAL_END = 1
VERDICT = 0xFFFFFF00


class SetSeen(msgspec.Struct, frozen=True):
    name: str
    flags: int
    key: tuple[int, ...]
    """Types."""
    value: int
    """Type of a map's values; 0: a set."""


class ChainSeen(msgspec.Struct, frozen=True):
    name: str
    hook: bytes
    """Hook, priority, type and policy, as the kernel has them; empty: not a base chain."""
    rules: tuple[bytes, ...]
    """Expressions, as the kernel has them."""
    marks: tuple[str, ...]
    """Their comments."""


class TableSeen(msgspec.Struct, frozen=True):
    chains: dict[str, ChainSeen] = {}
    sets: dict[str, SetSeen] = {}
    elements: frozenset[tuple[str, str, str]] = frozenset()
    """(set, key, value), in the words that nft takes. Of sets that packets fill none: their elements come and go."""


class Generation:
    """Whether anyone but us has changed rules in a namespace. Made by a thread that is in it."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._socket = Socket(NETLINK_NETFILTER)
        self.known = -1
        """What `now` said when all rules were last read and found well."""

    def close(self) -> None:
        self._socket.close()

    def now(self) -> int:
        """Transactions of others, counted from an unknown start."""
        body = self._socket.ask(GET_GENERATION, struct.pack("=BBH", socket.AF_UNSPEC, 0, 0))[0]
        return int.from_bytes(attributes(body, 4)[1], "big") - self._rules.changes

    def read(self, table: str) -> TableSeen:
        return read(self._socket, table)


def read(net: Socket, table: str) -> TableSeen:
    """Our table in the socket's namespace; empty when there is none."""
    hooks = {}
    for body in net.dump(GET_CHAIN, _HEADER):
        a = attributes(body, 4)
        if _text(a.get(1)) == table:
            hooks[_text(a[3])] = a.get(4, b"") + a.get(7, b"") + a.get(5, b"") if 4 in a else b""
    if not hooks:
        return TableSeen()
    bodies: dict[str, list[tuple[bytes, str]]] = {name: [] for name in hooks}
    for body in net.dump(GET_RULE, _HEADER + text(1, table)):
        a = attributes(body, 4)
        if _text(a.get(1)) == table:
            bodies.setdefault(_text(a[2]), []).append((a.get(4, b""), _comment(a.get(7, b""))))
    chains = {n: ChainSeen(n, hooks.get(n, b""), tuple(r for r, _ in b), tuple(c for _, c in b)) for n, b in bodies.items()}
    sets = {}
    for body in net.dump(GET_SET, _HEADER + text(1, table)):
        a = attributes(body, 4)
        flags = _number(a.get(3))
        if _text(a.get(1)) == table and not flags & ANONYMOUS:
            value = _number(a.get(6)) if flags & IS_MAP else 0
            sets[_text(a[2])] = SetSeen(_text(a[2]), flags, _types(_number(a.get(4))), value)
    elements: set[tuple[str, str, str]] = set()
    for one in sets.values():
        if not one.flags & DYNAMIC:
            elements.update((one.name, k, v) for k, v in _elements(net, table, one))
    return TableSeen(chains, sets, frozenset(elements))


def _elements(net: Socket, table: str, one: SetSeen) -> Iterator[tuple[str, str]]:
    edges: list[tuple[int, bool, str]] = []
    for body in net.dump(GET_ELEMENT, _HEADER + text(1, table) + text(2, one.name)):
        for element in _list(attributes(body, 4).get(3, b"")):
            a = attributes(element, 0)
            key = attributes(a.get(1, b""), 0).get(1, b"")
            begins = not _number(a.get(3)) & INTERVAL_END
            value = _value(attributes(a.get(2, b""), 0), one) if one.value and begins else ""
            if one.flags & INTERVAL:
                edges.append((int.from_bytes(key, "big"), begins, value))
            elif key:
                yield _words(key, one.key), value
    yield from _intervals(edges)


def _intervals(edges: list[tuple[int, bool, str]]) -> Iterator[tuple[str, str]]:
    """Of IPv4 addresses, from (first address, it begins here) and (first address behind, it does not)."""
    start, value = None, ""
    # where one ends and the next begins, the end comes first
    for at, begins, new in sorted(edges):
        if start is not None:
            first, last = ipaddress.IPv4Address(start), ipaddress.IPv4Address(at - 1)
            nets = list(ipaddress.summarize_address_range(first, last))
            words = str(first) if first == last else str(nets[0]) if len(nets) == 1 else f"{first}-{last}"
            yield words, value
        start, value = (at, new) if begins else (None, "")


def _types(number: int) -> tuple[int, ...]:
    out = []
    while number:
        out.append(number & 63)
        number >>= 6
    return tuple(reversed(out))


def _words(value: bytes, types: tuple[int, ...]) -> str:
    out, at = [], 0
    for kind in types:
        size = _SIZES.get(kind, len(value))
        out.append(_word(value[at : at + size], kind))
        at += size + 3 & ~3
    return " . ".join(out)


def _word(value: bytes, kind: int) -> str:
    if kind == IPV4:
        return socket.inet_ntoa(value)
    if kind == MAC:
        return mac_text(value)
    if kind == PROTOCOL:
        return _PROTOCOLS.get(value[0], str(value[0]))
    if kind == SERVICE:
        return str(int.from_bytes(value, "big"))
    if kind in (MARK, DEVGROUP):
        return str(int.from_bytes(value, sys.byteorder))
    if kind == IFNAME:
        return value.rstrip(b"\0").decode(errors="replace")
    return "0x" + value.hex()


def _value(data: dict[int, bytes], one: SetSeen) -> str:
    if one.value == VERDICT:
        verdict = attributes(data.get(2, b""), 0)
        code = struct.unpack("!i", verdict[1])[0]
        return f"{_VERDICTS.get(code, code)} {_text(verdict.get(2))}".strip()
    return _words(data.get(1, b""), _types(one.value))


def _list(value: bytes) -> Iterator[bytes]:
    """Attributes of one kind, one after another."""
    at = 0
    while at + 4 <= len(value):
        size = struct.unpack_from("=H", value, at)[0]
        if size < 4:
            return
        yield value[at + 4 : at + size]
        at += size + 3 & ~3


def _comment(userdata: bytes) -> str:
    at = 0
    while at + 2 <= len(userdata):
        kind, size = userdata[at], userdata[at + 1]
        if kind == 0:
            return _text(userdata[at + 2 : at + 2 + size])
        at += 2 + size
    return ""


def _text(value: bytes | None) -> str:
    return (value or b"").rstrip(b"\0").decode(errors="replace")


def _number(value: bytes | None) -> int:
    return int.from_bytes(value, "big") if value else 0
