"""This node's membership in a cluster: init, join, leave, and what runs while it is a member. Implements `skep.api.context.Swarm`.

What is remembered is one small file (`swarm/node.json`), the certificates, and on a manager the store. A member's parts run in one task:
when it ends, for whatever reason, the node says so in `info` and its containers go on. Names no implementation: the daemon hands in how a
data path and a store's back end are made.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from skep import addresses
from skep.agent.agent import Agent
from skep.agent.renewal import keep_renewed
from skep.agent.state import FileState
from skep.api.context import InitRequest, JoinRequest, SwarmInfo
from skep.clock import MILLISECOND, SECOND, Clock
from skep.datapath.base import Datapath
from skep.engine.base import Engine
from skep.errors import Invalid, SkepError, Unavailable
from skep.ids import Random, new_id
from skep.link.client import Client, join
from skep.link.server import Server
from skep.link.tls import Certificates, new_key, parse_token
from skep.manager import ca
from skep.manager.control import Control, bootstrap_cluster
from skep.manager.controllers import controllers
from skep.manager.gate import Gate
from skep.manager.local import LocalLink
from skep.manager.logs import LogBroker
from skep.manager.loop import Loop
from skep.manager.sessions import Sessions
from skep.model.cluster import Cluster
from skep.model.enums import Role
from skep.model.node import Node, NodeDescription
from skep.node.tasks import TaskRuntime
from skep.store.base import Backend
from skep.store.memory import MemoryStore

log = logging.getLogger(__name__)

NOT_MEMBER = 'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.'
WORKER = (
    "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. "
    "Please run this command on a manager node or promote the current node to a manager."
)
STARTING = "This node is not a swarm manager. Manager is being prepared or has trouble connecting to the cluster."
ALREADY = 'This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.'
LAST_MANAGER = (
    "You are attempting to leave the swarm on a node that is participating as a manager. Removing the last manager erases all "
    "current state of the swarm. Use `--force` to ignore this message. "
)
TIMED_OUT = (
    "Timeout was reached before node joined. The attempt to join the swarm will continue in the background. "
    'Use the "docker info" command to see the current swarm status of your node.'
)
PATIENCE = 20.0
"""Seconds that init and join wait (moby: swarmConnectTimeout)."""


@dataclass
class Member:
    """What swarm/node.json says."""

    node_id: str
    cluster_id: str
    manager: bool
    listen: str
    advertise: str
    data_path: str
    managers: list[str]


class Membership:
    """`run` must be running; everything else is called while it does."""

    def __init__(
        self,
        root: Path,
        *,
        engine: Engine,
        clock: Clock,
        rng: Random,
        describe: Callable[[str], NodeDescription],
        make_runtime: Callable[[Datapath], TaskRuntime],
        make_datapath: Callable[[str], Datapath],
        make_backend: Callable[[Path], Backend],
    ) -> None:
        """`root`: folder for the state; `describe`: from the root certificate; `make_datapath`: from the data path address."""
        self._root = root
        self._engine = engine
        self._clock = clock
        self._rng = rng
        self._describe = describe
        self._make_runtime = make_runtime
        self._make_datapath = make_datapath
        self._make_backend = make_backend
        self._certificates = Certificates(root / "certificates")
        self._member = self._load()
        self._group = asyncio.TaskGroup()
        self._work: asyncio.Task[None] | None = None
        self._joining: asyncio.Task[SkepError | None] | None = None
        self._error = ""
        self._agent: Agent | None = None
        self._control: Control | None = None
        self._busy = asyncio.Lock()
        self._changed = asyncio.Event()

    # what the API asks

    def info(self) -> SwarmInfo:
        member = self._member
        if member is None:
            return SwarmInfo(state="pending" if self._joining else "inactive", error=self._error)
        managers = list((self._agent.session.managers if self._agent else ()) or member.managers)
        ids: dict[str, str] = {}
        if self._control is not None:
            ids = {n.manager_addr: n.id for n in self._control.view.all(Node) if n.manager_addr}
        state = "active" if self._work is not None and not self._error else "error" if self._error else "pending"
        return SwarmInfo(
            state=state,
            node_id=member.node_id,
            node_addr=addresses.split(member.advertise)[0],
            control_available=self._control is not None,
            error=self._error,
            managers=tuple((ids.get(m, ""), m) for m in managers),
        )

    def cluster(self) -> Control:
        """The control API; raises Unavailable with Docker's reason anywhere but on an active manager."""
        if self._control is not None:
            return self._control
        if self._member is None:
            raise Unavailable(NOT_MEMBER)
        raise Unavailable(STARTING if self._member.manager else WORKER)

    async def init(self, request: InitRequest) -> str:
        async with self._busy:
            self._must_be_free()
            if request.force_new_cluster:
                raise Invalid(
                    "--force-new-cluster recovers a manager that lost its peers; skep has one manager, whose state is always whole"
                )
            if request.auto_lock or request.spec.encryption_config.auto_lock_managers:
                raise Invalid("autolock is not supported yet: the store is kept with mode 0600")
            listening = addresses.listen(request.listen_addr)
            advertised = addresses.advertise(request.advertise_addr, listening)
            member = Member(
                node_id=new_id(self._rng),
                cluster_id=new_id(self._rng),
                manager=True,
                listen=addresses.join(*listening),
                advertise=advertised,
                data_path=addresses.data_path(request.data_path_addr, advertised),
                managers=[advertised],
            )
            try:
                self._bootstrap(member, request)
                self._save(member)
                await self._begin(member)
            except BaseException:
                await self._end()
                self._forget()
                raise
            return member.node_id

    def _bootstrap(self, member: Member, request: InitRequest) -> None:
        """The cluster's first state, certificates and all, durable."""
        self._forget()
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        now = self._clock.now()
        root = ca.new_root(now)
        key, csr = new_key()
        life = request.spec.ca_config.node_cert_expiry
        pem, certificate = ca.sign(
            root, csr, node_id=member.node_id, role=Role.MANAGER, cluster_id=member.cluster_id, now=now, **({"life": life} if life else {})
        )
        backend = self._make_backend(self._root)
        try:
            store = MemoryStore(backend, self._clock)
            ops = bootstrap_cluster(
                store,
                cluster_id=member.cluster_id,
                node_id=member.node_id,
                root_ca=root,
                rng=self._rng,
                spec=request.spec,
                address=member.data_path,
                manager_addr=member.advertise,
                availability=request.availability,
                description=self._describe(root.cert),
                certificate=certificate,
                default_addr_pool=request.default_addr_pool,
                subnet_size=request.subnet_size,
                data_path_port=request.data_path_port,
            )
            store.apply(ops, by="control")
            store.flush()
        finally:
            backend.close()
        self._certificates.store(root.cert, pem, key)

    async def join(self, request: JoinRequest) -> None:
        async with self._busy:
            self._must_be_free()
            if not request.remote_addrs or not all(request.remote_addrs):
                raise Invalid("at least 1 address is required to join")
            if not request.token:
                raise Invalid("A valid join token is necessary to join this cluster", rpc="InvalidArgument")
            parse_token(request.token)
            listening = addresses.listen(request.listen_addr or "0.0.0.0:2377")
            remotes = [addresses.join(*addresses.split(a)) for a in request.remote_addrs]
            self._forget()
            self._error = ""
            task = self._joining = self._group.create_task(self._join(request, listening, remotes))
            done, _ = await asyncio.wait([task], timeout=PATIENCE)
            if not done:
                raise Unavailable(TIMED_OUT)
            self._joining = None
            failure = task.result()
            if failure is not None:
                self._error = ""
                self._forget()
                raise failure

    async def _join(self, request: JoinRequest, listening: tuple[str, int], remotes: list[str]) -> SkepError | None:
        """Try until a manager answers; gives the error that ends it, so that a task nobody waits for any more does not fail."""
        wait = 100 * MILLISECOND
        while True:
            try:
                joined = await join(remotes, request.token, self._certificates, availability=request.availability)
                break
            except Unavailable as error:
                self._error = error.text
                await self._clock.sleep(wait)
                wait = min(2 * wait, 2 * SECOND)
            except SkepError as error:
                return error
        try:
            advertised = request.advertise_addr or self._address_towards(remotes[0])
            advertised = addresses.advertise(advertised, listening)
            member = Member(
                node_id=joined.node_id,
                cluster_id=joined.cluster_id,
                manager=False,
                listen=addresses.join(*listening),
                advertise=advertised,
                data_path=addresses.data_path(request.data_path_addr, advertised),
                managers=list(joined.managers) or remotes,
            )
            self._error = ""
            self._save(member)
            await self._begin(member)
        except SkepError as error:
            await self._end()
            return error
        self._joining = None
        return None

    @staticmethod
    def _address_towards(remote: str) -> str:
        """The address of this host from which the manager is reached."""
        import socket

        host, port = addresses.split(remote)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as s:
            try:
                s.connect((host, port))
            except OSError:
                return ""
            return str(s.getsockname()[0])

    async def leave(self, force: bool) -> None:
        async with self._busy:
            if self._joining is not None:
                self._joining.cancel()
                self._joining = None
                self._error = ""
                self._forget()
                return
            if self._member is None:
                raise Unavailable("This node is not part of a swarm")
            if self._member.manager and not force:
                raise Unavailable(LAST_MANAGER)
            if self._agent is not None:
                await self._agent.leave()
                if self._work is not None:
                    await asyncio.wait([self._work], timeout=2 * PATIENCE)
            await self._end()
            await self._clean_up()
            self._forget()

    # what runs

    async def run(self) -> None:
        """Until cancelled: what runs while this node is a member, and the attempts to become one."""
        async with self._group:
            if self._member is not None:
                self._start(self._member)
            await asyncio.Event().wait()

    async def _begin(self, member: Member) -> None:
        """Start, and wait until this node has its session; raises what went wrong."""
        self._start(member)
        async with asyncio.timeout(PATIENCE):
            while not (self._agent is not None and self._agent.session.welcomed):
                if self._error:
                    raise SkepError(self._error)
                self._changed.clear()
                await self._changed.wait()

    def _start(self, member: Member) -> None:
        self._member, self._error = member, ""
        self._work = self._group.create_task(self._supervise(member))

    async def _end(self) -> None:
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait([self._work])
        self._work = None

    async def _supervise(self, member: Member) -> None:
        """One membership from start to end. Its failure is the node's error, not the daemon's end: containers go on."""
        try:
            async with self._parts(member):
                pass
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            reason = _reason(error)
            log.exception("this node's part in the cluster has failed: %s", reason)
            self._error = reason
        finally:
            removed = self._agent is not None and self._agent.session.removed
            self._agent = self._control = None
            self._changed.set()
        if removed and not self._busy.locked():
            log.warning("this node was removed from the cluster")
            await self._clean_up()
            self._forget()

    @asynccontextmanager
    async def _parts(self, member: Member) -> AsyncIterator[None]:
        datapath = self._make_datapath(member.data_path)
        await datapath.start_up()
        try:
            runtime = self._make_runtime(datapath)
            await runtime.start_up()
            state = FileState(self._root / "agent.state")
            try:
                async with asyncio.TaskGroup() as group:
                    if member.manager:
                        await self._run_manager(group, member, runtime, state, datapath)
                    else:
                        await self._run_worker(group, member, runtime, state, datapath)
            finally:
                state.close()
            yield
        finally:
            await datapath.shut_down()

    async def _run_worker(
        self, group: asyncio.TaskGroup, member: Member, runtime: TaskRuntime, state: FileState, datapath: Datapath
    ) -> None:
        client = Client(self._certificates, self._managers, self._clock, self._rng)
        agent = self._make_agent(member, runtime, state, datapath, client.session, client.logs)
        renewing = group.create_task(keep_renewed(self._certificates, client.renew, self._clock, self._rng))
        await agent.run()
        renewing.cancel()

    async def _run_manager(
        self, group: asyncio.TaskGroup, member: Member, runtime: TaskRuntime, state: FileState, datapath: Datapath
    ) -> None:
        backend = self._make_backend(self._root)
        try:
            store = MemoryStore(backend, self._clock)
            if next(iter(store.all(Cluster)), None) is None:
                raise SkepError(f"the cluster's state in {self._root} is empty: it was lost, or another program wrote there")
            sessions = Sessions(store, self._clock, self._rng)
            broker = LogBroker(store, sessions.dispatcher.send, self._rng)
            authority = ca.Authority(store, self._clock, self._rng)
            control = Control(store, self._clock, self._rng, member.node_id, broker)
            server = Server(Gate(authority, sessions, broker), self._certificates.server_context(), self._clock)
            host, port = addresses.split(member.listen)
            try:
                await server.start(host, port)
            except OSError as error:
                raise SkepError(f"could not listen on {member.listen}: {(os.strerror(error.errno or 0)).lower()}") from None
            local = LocalLink(member.node_id, sessions, broker)
            renew = local_renewal(authority, self._certificates)
            parts = [
                group.create_task(store.run()),
                group.create_task(Loop(store, self._clock, self._rng, controllers()).run()),
                group.create_task(sessions.run()),
                group.create_task(broker.run()),
                group.create_task(local.run()),
                group.create_task(keep_renewed(self._certificates, renew, self._clock, self._rng)),
            ]
            self._control = control
            agent = self._make_agent(member, runtime, state, datapath, local.session, local.logs)
            try:
                await agent.run()
            finally:
                self._control = None
                sessions.stop()
                for part in parts:
                    part.cancel()
                await server.close()
        finally:
            backend.close()

    def _make_agent(self, member: Member, runtime: TaskRuntime, state: FileState, datapath: Datapath, connect, open_logs) -> Agent:  # type: ignore[no-untyped-def]
        self._agent = Agent(
            tasks=runtime,
            state=state,
            connect=connect,
            open_logs=open_logs,
            describe=lambda: self._describe(self._certificates.root()),
            clock=self._clock,
            rng=self._rng,
            address=member.data_path,
            managers=tuple(member.managers),
            logs=runtime,
            apply_network=datapath.apply,
            on_session=self._session_changed,
        )
        return self._agent

    def _managers(self) -> list[str]:
        known = self._agent.session.managers if self._agent else ()
        return list(known) or (self._member.managers if self._member else [])

    def _session_changed(self) -> None:
        member = self._member
        if member is not None and self._agent is not None and self._agent.session.managers:
            managers = list(self._agent.session.managers)
            if managers != member.managers:
                member.managers = managers
                self._save(member)
        self._changed.set()

    # what is remembered

    def _must_be_free(self) -> None:
        if self._member is not None or self._joining is not None:
            raise Unavailable(ALREADY)

    def _load(self) -> Member | None:
        try:
            return Member(**json.loads((self._root / "node.json").read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise SkepError(f"{self._root / 'node.json'}: {error}") from None

    def _save(self, member: Member) -> None:
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = self._root / "node.json.tmp"
        with temporary.open("w") as file:
            json.dump(asdict(member), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._root / "node.json")

    def _forget(self) -> None:
        """Nothing of a cluster is left on disk."""
        self._member = None
        self._certificates.remove()
        shutil.rmtree(self._root, ignore_errors=True)

    async def _clean_up(self) -> None:
        """Containers of tasks and the cluster's network go when the node has left."""
        datapath = self._make_datapath(self._member.data_path if self._member else "")
        await datapath.start_up()
        runtime = self._make_runtime(datapath)
        await runtime.start_up()
        for task_id in runtime.known():
            try:
                await runtime.remove(task_id)
            except SkepError as error:
                log.warning("a task's container could not be removed: %s", error.message)
        await datapath.destroy()


def local_renewal(authority: ca.Authority, certificates: Certificates):  # type: ignore[no-untyped-def]
    """The manager's own certificate is renewed by its own authority."""

    async def renew() -> None:
        identity = certificates.certificate().identity
        key, csr = new_key()
        pem = await authority.renew(identity, csr)
        certificates.store(certificates.root(), pem, key)

    return renew


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error.message if isinstance(error, SkepError) else f"{type(error).__name__}: {error}"
