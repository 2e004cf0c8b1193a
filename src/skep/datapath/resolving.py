"""`ResolverNames`: the contract `Names` over the resolver's process (skep.datapath.resolver).

Promises: each call returns when every answer is according to it. The process is found again after a restart of ours, replaced when it is
of another build, started anew when it dies (its pidfd tells) or does not answer; then it is told again what it cannot know from its
files. It is a session of its own and outlives us.

One thread speaks to it, one order after another, so there is nothing to lock. See docs/discovery.md.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from skep.datapath import orders
from skep.datapath.base import LocalState, Resolving, Sandbox, Snapshot
from skep.datapath.resolver_process import END_PATIENCE, PATIENCE, Gone, Line, connected, last_words, readable, started
from skep.datapath.tables import Told, told
from skep.errors import SkepError

log = logging.getLogger(__name__)
CHECK_PATIENCE = 60.0
"""Seconds."""
SHORTEST_LIFE = 2.0
"""Seconds: one that has died younger is followed by the next after a pause, which doubles up to LONGEST_PAUSE."""
LONGEST_PAUSE = 5.0
T = TypeVar("T")


class ResolverNames:
    """`run_root`/resolver is the process's folder; `resolvers` a file like /etc/resolv.conf: where other names are asked."""

    def __init__(self, run_root: Path, *, resolvers: Path = Path("/etc/resolv.conf"), build: str = "", patience: float = PATIENCE) -> None:
        self._patience = patience
        self._build = build or orders.identity()
        self.folder = run_root / "resolver"
        self._resolvers = resolvers
        self._line: Line | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watched = -1
        self._retry: asyncio.TimerHandle | None = None
        self._served: dict[str, orders.Serve] = {}
        self._told: dict[str, Told] | None = None
        """What the process was told of the cluster, by key; None: nothing yet, it has what it had."""
        self._version = 0
        self._local: LocalState | None = None
        self._over = False
        """Let go or destroyed: nobody is to follow one that ends now."""
        self._pause = 0.0
        self._begun = 0.0
        self._mended: list[str] = []

    async def _run(self, call: Callable[[], T]) -> T:
        """In the one thread. A cancelled caller leaves the call to finish."""
        self._loop = asyncio.get_running_loop()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="names")
        return await self._loop.run_in_executor(self._thread, call)

    # -- the contract

    async def start_up(self) -> None:
        await self._run(self._begin)

    async def shut_down(self) -> None:
        if self._thread is not None:
            await self._run(self._let_go)
            self._end_thread()

    async def destroy(self) -> None:
        await self._run(self._destroy)
        self._end_thread()

    async def serve(self, sandbox: Sandbox, networks: tuple[str, ...], resolving: Resolving) -> None:
        spec = orders.Serve(id=sandbox.id, path=sandbox.path, networks=networks, resolving=resolving)
        await self._run(lambda: self._serve(spec))

    async def withdraw(self, sandbox_id: str, network_id: str) -> None:
        await self._run(lambda: self._withdraw(sandbox_id, network_id))

    async def forget(self, sandbox_id: str) -> None:
        await self._run(lambda: self._forget(sandbox_id))

    async def apply(self, snapshot: Snapshot) -> None:
        await self._run(lambda: self._apply(snapshot))

    async def apply_local(self, state: LocalState) -> None:
        await self._run(lambda: self._apply_local(state))

    async def compare(self) -> list[str]:
        return await self._run(self._compare)

    # -- more

    async def resolve(self, network_id: str, name: str) -> tuple[str, ...]:
        """What the process answers to a container that is on this network alone: addresses, or the name of an address in reverse."""
        return (await self._run(lambda: self._ask(orders.Resolve(network_id=network_id, name=name)))).said

    async def entries(self, network_id: str) -> tuple[str, ...]:
        """All names that the process knows on a network (`tables.entries_of`)."""
        return (await self._run(lambda: self._ask(orders.Entries(network_id=network_id)))).said

    async def explain(self) -> list[str]:
        """In which containers names do not resolve; nothing is changed."""
        return list((await self._run(lambda: self._ask(orders.Check(mend=False), CHECK_PATIENCE))).said)

    async def renew(self) -> None:
        """Tell the process all of the cluster's names again."""
        await self._run(lambda: self._ask(self._everything()) if self._told is not None else None)

    # -- in the thread: orders

    def _serve(self, spec: orders.Serve) -> None:
        self._ask(spec)
        self._served[spec.id] = spec

    def _withdraw(self, sandbox_id: str, network_id: str) -> None:
        known = self._served.get(sandbox_id)
        if known is not None:
            self._served[sandbox_id] = msgspec.structs.replace(known, networks=tuple(n for n in known.networks if n != network_id))
        self._ask(orders.Withdraw(id=sandbox_id, network_id=network_id))

    def _forget(self, sandbox_id: str) -> None:
        self._served.pop(sandbox_id, None)
        self._ask(orders.Forget(id=sandbox_id))

    def _apply(self, snapshot: Snapshot) -> None:
        """What has changed since the last time; everything the first time."""
        now, before = told(snapshot), self._told
        if before is None:
            change = orders.Change(version=snapshot.version, put=tuple(now.values()), whole=True)
        else:
            put = tuple(item for key, item in now.items() if (old := before.get(key)) is not item and old != item)
            change = orders.Change(version=snapshot.version, put=put, drop=tuple(before.keys() - now.keys()))
        # if this fails half-way, the next one who hears it hears all of it
        self._told, self._version = now, snapshot.version
        self._ask(change)

    def _apply_local(self, state: LocalState) -> None:
        self._local = state
        self._ask(orders.Local(state=state))

    def _compare(self) -> list[str]:
        done = self._ask(orders.Check(), CHECK_PATIENCE)
        if self._told is not None and done.version != self._version:
            self._mended.append(f"the resolver stood at version {done.version}, not {self._version}: told everything again")
            self._ask(self._everything())
        there = {spec.id for spec in self._ask(orders.Hello()).served}
        for id, spec in list(self._served.items()):
            if id not in there and os.path.exists(spec.path):
                try:
                    self._ask(spec)
                except SkepError as error:
                    self._mended.append(f"the resolver does not know sandbox {id}, and cannot serve it: {error.message}")
                else:
                    self._mended.append(f"the resolver did not know sandbox {id}: told it again")
        said, self._mended = [*self._mended, *done.said], []
        return said

    def _everything(self) -> orders.Change:
        return orders.Change(version=self._version, put=tuple((self._told or {}).values()), whole=True)

    def _ask(self, order: orders.Any, patience: float = 0.0) -> orders.Done:
        """Raises SkepError with what the process said. One that has gone is followed by another, which is asked the same again."""
        for last in (False, True):
            try:
                done = self._line_now().ask(order, patience)
                break
            except Gone as e:
                self._lose(f"the resolver did not answer ({e})")
                if last:
                    raise SkepError(f"the resolver does not answer: {e}") from None
        if done.error:
            raise SkepError(f"resolver: {done.error}")
        return done

    # -- in the thread: the process

    def _line_now(self) -> Line:
        if self._line is None:
            self._begin()
        assert self._line is not None
        return self._line

    def _begin(self) -> None:
        """Find the one that runs, or start one; tell it what it cannot know."""
        if self._line is not None:
            return
        self._over = False
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        line, hello = self._found()
        if line is None or hello.identity != self._build:
            old = line
            self._begun = time.monotonic()
            try:
                line, hello = started(self.folder, self._resolvers, self._build, self._patience, hold=self._told is not None)
            finally:
                if old is not None:
                    log.info("the resolver is of another build (%s): replaced", hello.identity)
                    with suppress(ProcessLookupError):
                        signal.pidfd_send_signal(old.pidfd, signal.SIGTERM)
                    old.reap()
                    old.close()
        self._line = line
        try:
            self._tell(line, hello)
        except Gone as e:
            self._lose(f"the resolver died at once ({e})")
            raise SkepError(f"the resolver does not stay: {last_words(self.folder)}") from None
        watched = os.dup(line.pidfd)
        if not self._on_loop(lambda: self._watch(line, watched)):
            os.close(watched)

    def _found(self) -> tuple[Line | None, orders.Done]:
        """The one that runs and answers; one that does not answer is ended."""
        line = connected(self.folder, self._patience)
        if line is not None:
            try:
                return line, line.ask(orders.Hello())
            except Gone as e:
                log.warning("the resolver that runs does not answer (%s)", e)
                line.end(signal.SIGKILL)
                line.close()
        return None, orders.Done()

    def _tell(self, line: Line, hello: orders.Done) -> None:
        """What we know better than its files; what it knows and we do not, we take over. Raises Gone."""
        if self._local is not None:
            line.ask(orders.Local(state=self._local))
        if self._told is not None:
            line.ask(self._everything())
        there = {spec.id: spec for spec in hello.served}
        for spec in self._served.values():
            if there.get(spec.id) != spec:
                done = line.ask(spec)
                if done.error:
                    log.warning("sandbox %s: %s", spec.id, done.error)
        for id, spec in there.items():
            self._served.setdefault(id, spec)

    def _lose(self, why: str) -> None:
        """It is of no use any more: make sure that it is gone."""
        line, self._line = self._line, None
        if line is None:
            return
        log.warning("%s: starting another", why)
        self._mended.append(f"{why}: another was started")
        self._on_loop(self._unwatch)
        line.end(signal.SIGKILL)
        line.close()

    # -- its end, noticed

    def _on_loop(self, call: Callable[[], None]) -> bool:
        """False: there is no loop any more."""
        if self._loop is None:
            return False
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            return False
        return True

    def _watch(self, line: Line, watched: int) -> None:
        """`watched`: a pidfd of its own, closed when it is not needed any more."""
        self._unwatch()
        if self._thread is None or self._loop is None:
            os.close(watched)
        else:
            self._watched = watched
            self._loop.add_reader(watched, self._died, line)

    def _unwatch(self) -> None:
        if self._watched >= 0 and self._loop is not None:
            self._loop.remove_reader(self._watched)
            os.close(self._watched)
        self._watched = -1

    def _died(self, line: Line) -> None:
        self._unwatch()
        pause = 0.0
        if time.monotonic() - self._begun < SHORTEST_LIFE:
            pause = self._pause = min(LONGEST_PAUSE, self._pause * 2 or 0.1)
        else:
            self._pause = 0.0
        self._revive_in(pause, line)

    def _revive_in(self, pause: float, line: Line | None) -> None:
        if self._thread is not None and self._loop is not None:
            thread = self._thread
            self._retry = self._loop.call_later(pause, lambda: thread.submit(self._revive, line))

    def _revive(self, line: Line | None) -> None:
        if self._over:
            return
        if line is not None and self._line is line:
            self._lose("the resolver has died")
        try:
            self._begin()
        except Exception as e:
            log.error("%s; trying again", e)
            self._on_loop(lambda: self._revive_in(LONGEST_PAUSE, None))

    def _let_go(self) -> None:
        self._over = True
        line, self._line = self._line, None
        if line is not None:
            line.close()

    def _end_thread(self) -> None:
        self._unwatch()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._thread is not None:
            self._thread.shutdown(wait=False)
            self._thread = None

    def _destroy(self) -> None:
        """Needs no start_up."""
        self._over = True
        line, self._line = self._line or connected(self.folder, self._patience), None
        if line is not None:
            with suppress(Gone):
                line.ask(orders.Stop(clean=True))
            if not readable(line.pidfd, END_PATIENCE):
                line.end(signal.SIGKILL)
            line.reap()
            line.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._served, self._told, self._local, self._version = {}, None, None, 0
