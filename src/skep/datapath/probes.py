"""Who answers from inside a network namespace: many addresses at once, in so many seconds at most. Synchronous: for a thread of its own.

An ICMP echo, and a TCP connection to a port where nobody listens: the refusal is the answer. Neither reaches a program of the other side,
so it disturbs nobody. `size` asks whether a packet of that size gets through whole: it carries "don't fragment", and when a router on the
way says what fits, that is tried instead. Sockets are made inside, and used from outside.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import struct
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec

from skep.datapath import netns

CLOSED_PORT = 9
"""`discard`: where somebody does listen, he hears of a connection that ends at once."""
AGAIN = 0.4
"""Seconds after which an echo that was not answered is sent again."""
AT_ONCE = 200
"""Connections on their way."""
_IP_MTU_DISCOVER, _ALWAYS_WHOLE, _IP_MTU = 10, 2, 14
_ICMP_FILTER = 1
_HEADERS = 28
"""Bytes of IP and ICMP."""
_LATER = (errno.EINPROGRESS, errno.EALREADY, errno.EWOULDBLOCK)


class Target(msgspec.Struct, frozen=True, kw_only=True):
    address: str
    ping: bool = True
    tcp: bool = False
    size: int = 0
    """0: a small echo."""


class Answer(msgspec.Struct, kw_only=True):
    ping: bool = False
    tcp: bool = False
    size: int = 0
    """Of the packet that was answered, or of the largest that may go there."""


def reach(namespace: Path | None, targets: Iterable[Target], seconds: float) -> list[Answer]:
    """In the order of `targets`. `namespace`: where it is pinned; None: the calling thread's own. Raises OSError."""
    targets = list(targets)
    with ExitStack() as stack:
        fd = netns.opened(namespace) if namespace is not None else netns.opened()
        stack.callback(os.close, fd)
        batch = stack.enter_context(_Batch(fd, targets))
        end = time.monotonic() + seconds
        while not batch.done and (now := time.monotonic()) < end:
            batch.turn(now, end)
        return batch.answers


class _Batch(ExitStack):
    def __init__(self, namespace: int, targets: list[Target]) -> None:
        super().__init__()
        self._namespace = namespace
        self._targets = targets
        self.answers = [Answer(size=t.size) for t in targets]
        self._selector = self.enter_context(selectors.DefaultSelector())
        self._mark = os.urandom(2)
        with netns.entered(namespace):
            self._small = self._echo_socket(whole=False)
            self._whole = self._echo_socket(whole=True)
        self._silent = {i for i, t in enumerate(targets) if t.ping}
        self._unconnected = [i for i, t in reversed(list(enumerate(targets))) if t.tcp]
        self._connecting: dict[socket.socket, int] = {}
        self._again = 0.0

    def _echo_socket(self, *, whole: bool) -> socket.socket:
        made = self.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        made.setsockopt(255, _ICMP_FILTER, struct.pack("I", 0xFFFFFFFE))
        if whole:
            made.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _ALWAYS_WHOLE)
        self._selector.register(made, selectors.EVENT_READ)
        return made

    @property
    def done(self) -> bool:
        return not (self._silent or self._unconnected or self._connecting)

    def turn(self, now: float, end: float) -> None:
        if self._silent and now >= self._again:
            for i in sorted(self._silent):
                self._send(i)
            self._again = now + AGAIN
        self._connect()
        wait = min(self._again if self._silent else end, end) - time.monotonic()
        for key, _ in self._selector.select(max(wait, 0)):
            found = key.fileobj
            assert isinstance(found, socket.socket)
            if found in self._connecting:
                self._connected(found, found.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            else:
                self._hear(found)

    # echoes

    def _send(self, i: int) -> None:
        target, answer = self._targets[i], self.answers[i]
        via = self._whole if target.size else self._small
        with suppress(OSError):
            try:
                via.sendto(self._echo(i, answer.size), (target.address, 0))
            except OSError as error:
                if error.errno != errno.EMSGSIZE or not (fits := self._fits(target.address)):
                    raise
                answer.size = min(answer.size - 1, fits)
                via.sendto(self._echo(i, answer.size), (target.address, 0))

    def _echo(self, i: int, size: int) -> bytes:
        body = self._mark * (max(size - _HEADERS, 16) // 2)
        head = struct.pack("!BBH2sH", 8, 0, 0, self._mark, i & 0xFFFF)
        return head[:2] + struct.pack("!H", _checksum(head + body)) + head[4:] + body

    def _fits(self, address: str) -> int:
        with netns.entered(self._namespace):
            asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with asking:
            asking.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _ALWAYS_WHOLE)
            asking.connect((address, CLOSED_PORT))
            fits: int = asking.getsockopt(socket.IPPROTO_IP, _IP_MTU)
            return fits

    def _hear(self, found: socket.socket) -> None:
        with suppress(BlockingIOError):
            while True:
                try:
                    packet, (address, _) = found.recvfrom(65536)
                except BlockingIOError:
                    raise
                except OSError:
                    continue
                start = (packet[0] & 15) * 4
                kind, _, _, mark, i = struct.unpack_from("!BBH2sH", packet, start)
                if kind or mark != self._mark or i >= len(self._targets) or self._targets[i].address != address:
                    continue
                if bool(self._targets[i].size) == (found is self._whole):
                    self.answers[i].ping = True
                    self._silent.discard(i)

    # connections

    def _connect(self) -> None:
        while self._unconnected and len(self._connecting) < AT_ONCE:
            i = self._unconnected.pop()
            with netns.entered(self._namespace):
                made = self.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._connecting[made] = i
            self._selector.register(made, selectors.EVENT_WRITE)
            result = made.connect_ex((self._targets[i].address, CLOSED_PORT))
            if result not in _LATER:
                self._connected(made, result)

    def _connected(self, made: socket.socket, result: int) -> None:
        i = self._connecting.pop(made)
        self.answers[i].tcp = result in (0, errno.ECONNREFUSED, errno.ECONNRESET)
        self._selector.unregister(made)
        made.close()


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) & ~1])) + (data[-1] << 8 if len(data) & 1 else 0)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
