"""One container's questions, answered: over UDP in the event loop's own call, over TCP and from other servers in tasks of their own.

Promises: nothing that a container sends ends or holds up the process or another container: what waits is bounded, per container and in
all. Answers are kept ready per question until a table they came from changes. See docs/discovery.md.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from skep.datapath import dns, sockets
from skep.datapath.names import Fate, View, look_up, view_of
from skep.datapath.orders import Serve
from skep.datapath.sockets import Sockets
from skep.datapath.tables import Facts
from skep.datapath.upstream import Upstream, exactly

log = logging.getLogger("skep.resolver")
LONGEST_QUESTION, KEPT_QUESTION = 4096, 300
KEPT = 256
"""Ready answers per container."""
BURST = 64
"""Datagrams read at a time, before others have their turn."""
WAITING, CONVERSATIONS, ALL_WAITING = 128, 32, 1024
"""Questions with other servers and TCP connections of one container; both of all containers."""
SHARE = 8
"""What a container may have waiting even where others have used up all: a few that ask much keep nobody else from asking."""
IDLE = 10.0
"""Seconds for which a TCP connection may say nothing."""
PROBE_PATIENCE = 1.0


class World:
    """What all containers have in common."""

    def __init__(self, upstream: Upstream, group: asyncio.TaskGroup) -> None:
        self.facts = Facts()
        self.upstream = upstream
        self.group = group
        self.waiting = 0
        self.holding = False
        """What is known may be older than what skepd is about to tell: questions wait in the sockets, nobody is answered yet."""
        self.sign = f"{os.urandom(8).hex()}.check.skep"
        """A name that only this process answers: who hears it knows whom he asked."""


class Place:
    """A container that is served. Raises what Sockets raises."""

    def __init__(self, world: World, spec: Serve) -> None:
        self._world = world
        self._cache: dict[bytes, dns.Answer] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._conversations = 0
        self._sockets = Sockets(spec.path)
        self.spec = spec
        self.view: View = view_of(spec.networks, spec.resolving, self._sockets.addresses)
        self.listen()

    @property
    def alive(self) -> bool:
        """Whether the namespace that it listens in is the one at its path."""
        try:
            return os.stat(self.spec.path).st_ino == self._sockets.inode
        except OSError:
            return False

    def listen(self) -> None:
        if self._world.holding:
            return
        loop = asyncio.get_running_loop()
        loop.add_reader(self._sockets.udp, self._hear)
        loop.add_reader(self._sockets.tcp, self._accept)

    def replace(self, spec: Serve) -> None:
        self.view = view_of(spec.networks, spec.resolving, sockets.read_addresses(spec.path))
        self.spec = spec
        self._cache.clear()

    def withdraw(self, network_id: str) -> Serve:
        """Off that network; gives back what is left."""
        networks = tuple(id for id in self.spec.networks if id != network_id)
        self.spec = Serve(id=self.spec.id, path=self.spec.path, networks=networks, resolving=self.spec.resolving)
        self.view = view_of(networks, self.spec.resolving, self.view.addresses)
        self._cache.clear()
        return self.spec

    def tables_changed(self, touched: set[str]) -> None:
        if not touched.isdisjoint(self.spec.networks):
            self._cache.clear()

    def reopen(self) -> None:
        """New sockets, new rules: where somebody has taken them away."""
        new = Sockets(self.spec.path)
        self._close_sockets()
        self._sockets = new
        self.listen()

    def _close_sockets(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._sockets.udp)
        loop.remove_reader(self._sockets.tcp)
        self._sockets.close()

    async def let_finish(self) -> None:
        """Hear nobody new, and wait for answers that are on their way."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._sockets.tcp)
        self._hear()
        loop.remove_reader(self._sockets.udp)
        if self._tasks:
            await asyncio.wait(self._tasks)

    def close(self) -> None:
        """Nothing of ours holds its namespace when this has returned and the loop has gone round."""
        self._close_sockets()
        for task in self._tasks:
            task.cancel()

    # -- answering

    def answer(self, query: dns.Query, limit: int) -> dns.Answer | int | None:
        """A ready answer, or a code to fail with; None: others may know."""
        if query.group != dns.INTERNET or query.kind in (251, 252):
            return dns.REFUSED
        if query.name == self._world.sign:
            return dns.addresses(query, (sockets.ADDRESS,), limit)
        found = look_up(self._world.facts.tables, self.view, query.name)
        if found is Fate.MISSING:
            return dns.NXDOMAIN
        if isinstance(found, Fate):
            return None
        if found.pointer:
            return dns.pointer(query, found.pointer, limit) if query.kind == dns.PTR else dns.addresses(query, (), limit)
        mixed = list(found.addresses)
        random.shuffle(mixed)
        return dns.addresses(query, mixed, limit)

    def _hear(self) -> None:
        udp = self._sockets.udp
        for _ in range(BURST):
            try:
                data, peer = udp.recvfrom(LONGEST_QUESTION + 1)
            except OSError:
                return
            answer = self._cache.get(data[2:])
            if answer is not None:
                count = answer.count
                message: bytes | None = answer.message(data[:2], int(random.random() * count) if count > 1 else 0)
            else:
                message = self._consider(data, peer)
            if message is not None:
                _send(udp, message, peer)

    def _consider(self, data: bytes, peer: Any) -> bytes | None:
        query = dns.read(data) if len(data) <= LONGEST_QUESTION else None
        if query is None:
            return None
        if isinstance(query, dns.Malformed):
            return dns.failure(data[:2], query, query.code)
        answer = self.answer(query, query.size)
        if isinstance(answer, int):
            return dns.failure(data[:2], query, answer)
        if answer is None:
            if self._full:
                return dns.failure(data[:2], query, dns.SERVFAIL)
            self._begin(self._pass_on(query, data, peer))
            return None
        if len(data) <= KEPT_QUESTION:
            if len(self._cache) >= KEPT:
                self._cache.clear()
            self._cache[data[2:]] = answer
        return answer.message(data[:2])

    @property
    def _full(self) -> bool:
        mine = len(self._tasks)
        return mine >= WAITING or (self._world.waiting >= ALL_WAITING and mine >= SHARE)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        self._world.waiting += 1
        task = self._world.group.create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._world.waiting -= 1
        self._tasks.discard(task)

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            log.exception("a question of %s", self.spec.id)

    async def _ask_others(self, query: dns.Query, data: bytes, *, tcp: bool) -> bytes:
        response = await self._world.upstream.ask(query, data, self.view.servers, self.spec.path, tcp=tcp)
        if response is None:
            return dns.failure(data[:2], query, dns.SERVFAIL)
        return dns.cut(response, query, dns.LARGEST if tcp else query.size)

    async def _pass_on(self, query: dns.Query, data: bytes, peer: Any) -> None:
        _send(self._sockets.udp, await self._ask_others(query, data, tcp=False), peer)

    # -- TCP

    def _accept(self) -> None:
        try:
            connection, _ = self._sockets.tcp.accept()
        except OSError:
            return
        if self._conversations >= CONVERSATIONS or self._full:
            connection.close()
            return
        connection.setblocking(False)
        self._conversations += 1
        self._begin(self._converse(connection))

    async def _converse(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            with connection, suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                while True:
                    async with asyncio.timeout(IDLE):
                        size = int.from_bytes(await exactly(connection, 2), "big")
                        if not 12 <= size <= LONGEST_QUESTION:
                            return
                        data = await exactly(connection, size)
                    message = await self._answer_by_tcp(data)
                    if message is None:
                        return
                    async with asyncio.timeout(IDLE):
                        await loop.sock_sendall(connection, len(message).to_bytes(2, "big") + message)
        finally:
            self._conversations -= 1

    async def _answer_by_tcp(self, data: bytes) -> bytes | None:
        query = dns.read(data)
        if query is None:
            return None
        if isinstance(query, dns.Malformed):
            return dns.failure(data[:2], query, query.code)
        answer = self.answer(query, dns.LARGEST)
        if isinstance(answer, int):
            return dns.failure(data[:2], query, answer)
        if answer is None:
            return await self._ask_others(query, data, tcp=True)
        return answer.message(data[:2])

    # -- is it so?

    async def probe(self) -> str:
        """Ask as the container would. Empty: answered; else the way that led nowhere."""
        data = dns.question(os.urandom(2), self._world.sign, dns.A)
        query = dns.read(data)
        assert isinstance(query, dns.Query)
        for kind, what in ((socket.SOCK_DGRAM, "UDP"), (socket.SOCK_STREAM, "TCP")):
            try:
                async with asyncio.timeout(PROBE_PATIENCE):
                    heard = await _asked(self.spec.path, kind, data)
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                return what
            if not dns.answers(heard, data[:2], query) or dns.code_of(heard):
                return what
        return ""


async def _asked(path: str, kind: int, data: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    with sockets.inside(path, socket.AF_INET, kind) as s:
        await loop.sock_connect(s, (sockets.ADDRESS, sockets.PORT))
        if kind == socket.SOCK_DGRAM:
            await loop.sock_sendall(s, data)
            return await loop.sock_recv(s, LONGEST_QUESTION)
        await loop.sock_sendall(s, len(data).to_bytes(2, "big") + data)
        return await exactly(s, int.from_bytes(await exactly(s, 2), "big"))


def _send(udp: socket.socket, message: bytes, peer: Any) -> None:
    """What cannot be sent now is lost, as datagrams may be; the socket may have been closed since the question came."""
    with suppress(OSError):
        udp.sendto(message, peer)
