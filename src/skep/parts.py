"""What runs while a node is a member of a cluster: its network, the runtime of its tasks, its agent, and on a manager all of the manager.

One `Parts` is one run of it, from start to end. It returns when the node has left or was removed; it raises what failed, having let go of
everything: containers and the kernel's network go on either way.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from skep import addresses
from skep.agent.agent import Agent
from skep.agent.renewal import keep_renewed
from skep.agent.state import FileState
from skep.datapath.base import Datapath
from skep.errors import SkepError
from skep.link.channel import Channel
from skep.link.client import Client
from skep.link.server import Server
from skep.link.tls import Certificates, new_key
from skep.manager import ca
from skep.manager.check import Checks
from skep.manager.control import Control
from skep.manager.controllers import controllers
from skep.manager.gate import Gate
from skep.manager.local import LocalLink
from skep.manager.logs import LogBroker
from skep.manager.loop import Loop
from skep.manager.sessions import Sessions
from skep.member import Makers, Member
from skep.model.cluster import Cluster
from skep.node.tasks import TaskRuntime
from skep.store.memory import MemoryStore

log = logging.getLogger(__name__)


class Parts:
    """`run` once. `on_change` is called when `control`, `welcomed`, `managers` or the agent's session changed."""

    def __init__(self, member: Member, root: Path, certificates: Certificates, makers: Makers, on_change: Callable[[], None]) -> None:
        self._member = member
        self._root = root
        self._certificates = certificates
        self._makers = makers
        self._on_change = on_change
        self.control: Control | None = None
        """On a manager, while it is one."""
        self.agent: Agent | None = None
        self.welcomed = False
        """The node has had its session with a manager."""
        self.removed = False
        """The cluster has no place for this node any more: it has left, or a manager removed it."""

    @property
    def managers(self) -> list[str]:
        """`ip:port` of all managers, as far as this node knows."""
        return list((self.agent.session.managers if self.agent else ()) or self._member.managers)

    @property
    def reason(self) -> str:
        """Why there is no session."""
        return self.agent.session.reason if self.agent is not None else ""

    async def run(self) -> None:
        datapath = self._makers.datapath(self._member.data_path)
        try:
            await datapath.start_up()
            runtime = self._makers.runtime(datapath)
            await runtime.start_up()
            state = FileState(self._root / "agent.state")
            try:
                if self._member.manager:
                    await self._run_manager(datapath, runtime, state)
                else:
                    await self._run_worker(datapath, runtime, state)
            finally:
                state.close()
        finally:
            if self.agent is not None:
                self.removed, self.agent = self.agent.session.removed, None
            await datapath.shut_down()

    async def _run_worker(self, datapath: Datapath, runtime: TaskRuntime, state: FileState) -> None:
        makers = self._makers
        client = Client(self._certificates, lambda: self.managers, makers.clock, makers.rng)
        agent = self.agent = self._make_agent(datapath, runtime, state, client.session, client.logs)
        async with asyncio.TaskGroup() as group:
            renewing = group.create_task(keep_renewed(self._certificates, client.renew, makers.clock, makers.rng))
            await agent.run()
            renewing.cancel()

    async def _run_manager(self, datapath: Datapath, runtime: TaskRuntime, state: FileState) -> None:
        backend = self._makers.backend(self._root)
        try:
            store = MemoryStore(backend, self._makers.clock)
        except BaseException:
            backend.close()
            raise
        try:
            if next(iter(store.all(Cluster)), None) is None:
                raise SkepError(f"the cluster's state in {self._root} is empty: it was lost, or another program wrote there")
            await self._manage(store, datapath, runtime, state)
        finally:
            store.close()

    async def _manage(self, store: MemoryStore, datapath: Datapath, runtime: TaskRuntime, state: FileState) -> None:
        clock, rng, member = self._makers.clock, self._makers.rng, self._member
        sessions = Sessions(store, clock, rng)
        broker = LogBroker(store, sessions.dispatcher.send, rng)
        authority = ca.Authority(store, clock, rng)
        server = Server(Gate(authority, sessions, broker), self._certificates.server_context(), clock)
        checks = Checks(store, sessions.ask, rng)
        sessions.on_checked = checks.answered
        local = LocalLink(member.node_id, sessions, broker)
        renew = local_renewal(authority, self._certificates)
        async with asyncio.TaskGroup() as group:
            running = [
                group.create_task(store.run()),
                group.create_task(Loop(store, clock, rng, controllers()).run()),
                group.create_task(sessions.run()),
                group.create_task(broker.run()),
                group.create_task(local.run()),
                group.create_task(keep_renewed(self._certificates, renew, clock, rng)),
            ]
            try:
                await _listen(server, member.listen)
                self.control = Control(store, clock, rng, member.node_id, broker, checks)
                self.agent = self._make_agent(datapath, runtime, state, local.session, local.logs)
                self._on_change()
                await self.agent.run()
            finally:
                self.control = None
                sessions.stop()
                await server.close()
                for task in running:
                    task.cancel()

    def _make_agent(
        self,
        datapath: Datapath,
        runtime: TaskRuntime,
        state: FileState,
        connect: Callable[[], Awaitable[Channel]],
        open_logs: Callable[[str], Awaitable[Channel]],
    ) -> Agent:
        return Agent(
            tasks=runtime,
            state=state,
            connect=connect,
            open_logs=open_logs,
            describe=lambda: self._makers.describe(self._certificates.root()),
            clock=self._makers.clock,
            rng=self._makers.rng,
            address=self._member.data_path,
            managers=tuple(self._member.managers),
            logs=runtime,
            apply_network=datapath.apply,
            on_session=self._session_changed,
            attachments=self._makers.attachments,
            sandboxes=datapath.sandboxes,
            examine=self._makers.examine,
        )

    def _session_changed(self) -> None:
        self.welcomed = self.welcomed or (self.agent is not None and self.agent.session.welcomed)
        self._on_change()


async def _listen(server: Server, address: str) -> None:
    host, port = addresses.split(address)
    try:
        await server.start(host, port)
    except OSError as error:
        raise SkepError(f"could not listen on {address}: {os.strerror(error.errno or 0).lower()}") from None


def local_renewal(authority: ca.Authority, certificates: Certificates) -> Callable[[], Awaitable[None]]:
    """The manager's own certificate is renewed by its own authority."""

    async def renew() -> None:
        identity = certificates.certificate().identity
        key, csr = new_key()
        pem = await authority.renew(identity, csr)
        certificates.store(certificates.root(), pem, key)

    return renew


async def clean_up(member: Member, makers: Makers) -> None:
    """Containers of tasks and the cluster's network go when the node has left. Nothing here keeps a node from leaving, nor one thing that
    cannot be removed the others: what is left is named in the log."""
    try:
        datapath = makers.datapath(member.data_path)
    except SkepError as error:
        log.warning("this node's network in the cluster cannot be removed: %s", error.message)
        return
    await _try(datapath.start_up())
    runtime = makers.runtime(datapath)
    await _try(runtime.start_up())
    for task_id in runtime.known():
        await _try(runtime.remove(task_id))
    await _try(datapath.destroy())


async def _try(step: Awaitable[None]) -> None:
    try:
        await step
    except Exception as error:
        reason = error.message if isinstance(error, SkepError) else f"{type(error).__name__}: {error}"
        log.warning("not all of this node's part in the cluster could be removed: %s", reason)
