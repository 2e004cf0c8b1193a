"""What a container of a cluster sees, asked from its network namespace: who connects, and what names mean. By means of our own, so that
what skep's own check says is checked by something else."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

import dnslib

from skep.datapath import netns

T = TypeVar("T")


def inside(pid: int, call: Callable[[], T]) -> T:
    """`call`, in the network namespace of this process."""
    fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    done: list[T] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with netns.entered(fd):
                done.append(call())
        except BaseException as error:
            failed.append(error)

    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        os.close(fd)
    if failed:
        raise failed[0]
    return done[0]


def answers(targets: Iterable[tuple[str, int]], seconds: float) -> set[tuple[str, int]]:
    """Those that answer as example/echo does. A connection alone says nothing: somebody out in the world may accept it."""
    waiting: dict[int, tuple[socket.socket, tuple[str, int]]] = {}
    poll, good = select.poll(), set()
    heard: dict[int, bytes] = {}
    try:
        for target in targets:
            made = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            if made.connect_ex(target) == errno.EINPROGRESS:
                waiting[made.fileno()] = (made, target)
                poll.register(made, select.POLLOUT)
            else:
                made.close()
        end = time.monotonic() + seconds
        while waiting and (left := end - time.monotonic()) > 0:
            for fd, event in poll.poll(left * 1000):
                made, target = waiting[fd]
                try:
                    if event & select.POLLOUT:
                        made.send(b"GET / HTTP/1.0\r\n\r\n")
                        poll.modify(fd, select.POLLIN)
                        continue
                    data = made.recv(65536)
                    heard[fd] = heard.get(fd, b"") + data
                    if b"Hello Docker!!" in heard[fd]:
                        good.add(target)
                    elif data:
                        continue
                except OSError:
                    pass
                poll.unregister(fd)
                del waiting[fd]
                made.close()
    finally:
        for made, _ in waiting.values():
            made.close()
    return good


def means(names: Iterable[str]) -> dict[str, frozenset[str]]:
    """Name -> addresses that 127.0.0.11 gives; none for a name that does not exist or an answer that does not come."""
    out = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(2)
        asking.connect(("127.0.0.11", 53))
        for name in names:
            asking.send(dnslib.DNSRecord.question(name).pack())
            try:
                answer = dnslib.DNSRecord.parse(asking.recv(4096))
            except OSError:
                out[name] = frozenset({"no answer"})
                continue
            out[name] = frozenset(str(record.rdata) for record in answer.rr)
    return out
