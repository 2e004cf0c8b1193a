"""This node's membership in a cluster: init, join, leave, and keeping what it needs running. Implements `skep.api.context.Swarm`.

`skep.member` is what is remembered, `skep.parts` what runs. A failure of the parts (a full disk, a port that is taken) is never the end of
the daemon: containers go on, `info` says what is wrong, and it is tried again, more and more slowly, until it works or the node leaves.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from pathlib import Path

from skep import addresses, member
from skep.agent.attachments import ClusterAttachments
from skep.agent.check import Examine
from skep.api.context import InitRequest, JoinRequest, SwarmInfo
from skep.clock import MILLISECOND, SECOND, Clock
from skep.datapath.base import Datapath
from skep.errors import Invalid, SkepError, Unavailable
from skep.ids import Random, new_id
from skep.link.client import join
from skep.link.messages import Joined
from skep.link.tls import Certificates, parse_token
from skep.manager.control import Control
from skep.member import Makers, Member
from skep.model.node import Node, NodeDescription
from skep.node.tasks import TaskRuntime
from skep.parts import Parts, clean_up
from skep.store.base import Backend

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
GIVEN_UP = "The attempt to join the swarm was given up: this node was told to leave."
REMOVED = "this node was removed from the cluster"
PATIENCE = 20.0
"""Seconds that init and join wait (moby: swarmConnectTimeout)."""
LEAVING = 2 * PATIENCE
"""Seconds that the tasks of a node that leaves have to stop by themselves."""
JOIN_RETRY, JOIN_RETRY_LIMIT = 100 * MILLISECOND, 2 * SECOND
RETRY, RETRY_LIMIT = SECOND, 30 * SECOND
"""How long after a failure the parts are started again."""


class Membership:
    """`run` must be running; everything else is called while it does."""

    def __init__(
        self,
        root: Path,
        *,
        clock: Clock,
        rng: Random,
        describe: Callable[[str], NodeDescription],
        make_runtime: Callable[[Datapath], TaskRuntime],
        make_datapath: Callable[[str], Datapath],
        make_backend: Callable[[Path], Backend],
        patience: float = PATIENCE,
        attachments: ClusterAttachments | None = None,
        examine: Examine | None = None,
    ) -> None:
        """`root`: folder for the state; `describe`: from the root certificate; `make_datapath`: from the data path address.

        Raises ConfigError when what it finds there is not its own.
        """
        self._root = root
        self._makers = Makers(clock, rng, describe, make_runtime, make_datapath, make_backend, attachments, examine)
        if attachments is not None:
            attachments.is_member = lambda: self._member is not None
        self._patience = patience
        self._certificates = Certificates(root / "certificates")
        self._member = member.load(root)
        self._group = asyncio.TaskGroup()
        self._parts: Parts | None = None
        self._work: asyncio.Task[None] | None = None
        self._joining: asyncio.Task[SkepError | None] | None = None
        self._trial = False
        """Init or join waits for the parts: their first failure ends it."""
        self._leaving = False
        self._error = ""
        self._busy = asyncio.Lock()
        self._changed = asyncio.Event()
        self._up = asyncio.Event()

    # what the API asks

    def info(self) -> SwarmInfo:
        at, parts = self._member, self._parts
        if at is None:
            state = "pending" if self._joining is not None else "error" if self._error else "inactive"
            return SwarmInfo(state=state, error=self._error)
        control = parts.control if parts is not None else None
        active = control is not None or (parts is not None and parts.welcomed)
        ids = {n.manager_addr: n.id for n in control.view.all(Node) if n.manager_addr} if control is not None else {}
        return SwarmInfo(
            state="active" if active else "error" if self._error else "pending",
            node_id=at.node_id,
            node_addr=addresses.split(at.advertise)[0],
            control_available=control is not None,
            error="" if active else self._error or (parts.reason if parts is not None else ""),
            managers=tuple((ids.get(m, ""), m) for m in (parts.managers if parts is not None else at.managers)),
        )

    def cluster(self) -> Control:
        """The control API; raises Unavailable with Docker's reason anywhere but on an active manager."""
        if self._parts is not None and self._parts.control is not None:
            return self._parts.control
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
            new = Member(
                node_id=new_id(self._makers.rng),
                cluster_id=new_id(self._makers.rng),
                manager=True,
                listen=addresses.join(*listening),
                advertise=advertised,
                data_path=addresses.data_path(request.data_path_addr, advertised),
                managers=[advertised],
            )
            self._forget()
            try:
                member.bootstrap(self._root, self._certificates, new, request, self._makers)
                member.save(self._root, new)
            except (SkepError, OSError) as error:
                self._forget()
                raise error if isinstance(error, SkepError) else SkepError(_reason(error)) from None
            try:
                async with asyncio.timeout(self._patience):
                    await self._begin(new)
            except TimeoutError:
                await self._depart(new)
                raise SkepError("the new cluster's manager did not begin its work in time; nothing of it was kept") from None
            except BaseException:
                await self._depart(new)
                raise
            return new.node_id

    async def join(self, request: JoinRequest) -> None:
        async with self._busy:
            self._must_be_free()
            if not request.remote_addrs or not all(request.remote_addrs):
                raise Invalid("at least 1 RemoteAddr is required to join")
            if not request.token:
                raise Invalid("A valid join token is necessary to join this cluster", rpc="InvalidArgument")
            parse_token(request.token)
            listening = addresses.listen(request.listen_addr or f"0.0.0.0:{addresses.DEFAULT_PORT}")
            if request.advertise_addr:
                addresses.advertise(request.advertise_addr, listening)
            if request.data_path_addr:
                addresses.data_path(request.data_path_addr, "")
            remotes = [addresses.join(*addresses.split(a)) for a in request.remote_addrs]
            self._forget()
            joining = self._joining = self._group.create_task(self._join(request, listening, remotes))
        await asyncio.wait([joining], timeout=self._patience)
        if not joining.done():
            raise Unavailable(TIMED_OUT)
        if joining.cancelled():
            raise Unavailable(GIVEN_UP)
        if (failure := joining.result()) is not None:
            self._error = ""
            raise failure

    async def _join(self, request: JoinRequest, listening: tuple[str, int], remotes: list[str]) -> SkepError | None:
        """Until this node has its session. Gives the error that ends it, so that a task nobody waits for any more does not fail."""
        begun: Member | None = None
        try:
            joined = await self._knock(request, remotes)
            self._error = ""
            towards = request.advertise_addr or await asyncio.to_thread(_address_towards, remotes[0])
            advertised = addresses.advertise(towards, listening)
            new = Member(
                node_id=joined.node_id,
                cluster_id=joined.cluster_id,
                manager=False,
                listen=addresses.join(*listening),
                advertise=advertised,
                data_path=addresses.data_path(request.data_path_addr, advertised),
                managers=list(joined.managers) or remotes,
            )
            member.save(self._root, new)
            begun = new
            await self._begin(new)
        except Exception as error:
            if not isinstance(error, SkepError | OSError):
                log.exception("joining the cluster failed")
            if begun is not None:
                await self._depart(begun)
            self._forget()
            self._error = _reason(error)
            return error if isinstance(error, SkepError) else SkepError(self._error)
        else:
            return None
        finally:
            if self._joining is asyncio.current_task():
                self._joining = None

    async def _knock(self, request: JoinRequest, remotes: list[str]) -> Joined:
        """Try until a manager answers."""
        wait = JOIN_RETRY
        while True:
            try:
                member.make_folder(self._root)
                return await join(remotes, request.token, self._certificates, availability=request.availability)
            except Unavailable as error:
                self._error = error.text
                await self._makers.clock.sleep(wait)
                wait = min(2 * wait, JOIN_RETRY_LIMIT)

    async def leave(self, force: bool) -> None:
        async with self._busy:
            if (joining := self._joining) is not None:
                joining.cancel()
                await asyncio.wait([joining])
                self._joining = None
            elif self._member is None and not self._error:
                raise Unavailable("This node is not part of a swarm")
            if (at := self._member) is None:
                self._forget()
                return
            if at.manager and not force:
                raise Unavailable(LAST_MANAGER)
            self._leaving = True
            try:
                agent = self._parts.agent if self._parts is not None else None
                if agent is not None and self._work is not None:
                    await agent.leave(at_once=force)
                    await asyncio.wait([self._work], timeout=LEAVING)
                await self._depart(at)
            finally:
                self._leaving = False

    # what runs

    async def run(self) -> None:
        """Until cancelled: what runs while this node is a member, and the attempts to become one."""
        async with self._group:
            if self._member is not None:
                self._start(self._member)
            self._up.set()
            await asyncio.Event().wait()

    async def settled(self) -> None:
        """Wait until `run` runs, and a manager answers or has failed: a daemon that is started again is whole when its clients come."""
        await self._up.wait()
        try:
            async with asyncio.timeout(self._patience):
                while (at := self._member) is not None and at.manager and self.info().state == "pending":
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            log.warning("the manager is not ready yet")

    async def _begin(self, new: Member) -> None:
        """Start, and wait until this node has its session; raises what went wrong. What has begun is started again when it fails."""
        self._trial = True
        try:
            work = self._start(new)
            while self._parts is None or not self._parts.welcomed:
                if work.done():
                    raise SkepError(self._error or REMOVED)
                self._changed.clear()
                await self._changed.wait()
        finally:
            self._trial = False

    def _start(self, at: Member) -> asyncio.Task[None]:
        self._member, self._error, self._parts = at, "", None
        self._work = self._group.create_task(self._keep_running(at))
        return self._work

    async def _end(self) -> None:
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait([self._work])
        self._work = self._parts = None

    async def _keep_running(self, at: Member) -> None:
        """One membership from start to end. A failure is the node's error, not the daemon's end."""
        clock, wait = self._makers.clock, RETRY
        while True:
            began = clock.now()
            over = await self._run_parts(at)
            if self._trial or self._leaving:
                return
            if over:
                break
            if clock.now() - began > RETRY_LIMIT:
                wait = RETRY
            await clock.sleep(wait)
            wait = min(2 * wait, RETRY_LIMIT)
        log.warning(REMOVED)
        await clean_up(at, self._makers)
        self._forget()

    async def _run_parts(self, at: Member) -> bool:
        """Whether the node has left or was removed; False: something failed, and the error says what."""
        parts = self._parts = Parts(at, self._root, self._certificates, self._makers, self._parts_changed)
        try:
            await parts.run()
        except Exception as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise asyncio.CancelledError from error
            parts.welcomed, self._error = False, _reason(error)
            log.error("this node's part in the cluster has failed: %s", self._error, exc_info=None if _expected(error) else error)
        finally:
            self._changed.set()
        return parts.removed

    def _parts_changed(self) -> None:
        at, parts = self._member, self._parts
        if parts is not None and parts.welcomed:
            self._error = ""
        if at is not None and parts is not None and parts.managers != at.managers:
            at.managers = parts.managers
            try:
                member.save(self._root, at)
            except SkepError as error:
                log.warning("the list of managers could not be remembered: %s", error.message)
        self._changed.set()

    # the end

    def _must_be_free(self) -> None:
        if self._member is not None or self._joining is not None:
            raise Unavailable(ALREADY)

    def _forget(self) -> None:
        member.forget(self._root, self._certificates)
        self._member, self._parts, self._error = None, None, ""
        self._changed.set()

    async def _depart(self, at: Member) -> None:
        await self._end()
        await clean_up(at, self._makers)
        self._forget()


def _address_towards(remote: str) -> str:
    """The address of this host from which the manager is reached; empty: there is no way to it."""
    host, port = addresses.split(remote)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        try:
            s.connect((host, port))
        except OSError:
            return ""
        return str(s.getsockname()[0])


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _expected(error: BaseException) -> bool:
    """What is no mistake of ours: its one line is enough."""
    return isinstance(_first(error), SkepError | OSError)


def _reason(error: BaseException) -> str:
    error = _first(error)
    if isinstance(error, SkepError):
        return error.message
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}"
