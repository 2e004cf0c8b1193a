"""The host socket's engine: a node of the cluster is a container, its skepd's log is the container's log, exec enters the node.

With it the tutorial's `docker container exec -it manager docker service create ...` runs as printed, and `docker kill worker03` loses a
node as a machine is lost: skepd and all its containers at once. Stop and start are skepd's alone; its containers go on meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import hashlib
import os
import pwd
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import Any

from skep.clock import SECOND, Clock
from skep.engine.base import (
    Container,
    ContainerConfig,
    ExecConfig,
    Exit,
    Image,
    ImageConfig,
    Limits,
    LogRecord,
    PathStat,
    Progress,
    Stats,
    Streams,
)
from skep.errors import Conflict, Invalid, NotFound, NotImplementedHere
from skep.local import hostlog, nodes, traces
from skep.local.layout import REGISTRY, Layout, layout
from skep.local.process import NodeProcess, command, node_environment

IMAGE = Image(id="sha256:" + hashlib.sha256(b"skep node").hexdigest(), tags=("skep/node:latest",), config=ImageConfig(cmd=("skepd",)))
REFUSAL = "the host socket shows the nodes of a one-machine cluster; {} is not for it: use a node's own socket"
LOOK = SECOND
"""How often it is looked for nodes that others have started; an end is noticed at once."""
PATIENCE = 60.0
Event = tuple[str, str, Exit | None]


def container_id(name: str, node: str) -> str:
    return hashlib.sha256(f"{name}/{node}".encode()).hexdigest()


def find_user(text: str) -> tuple[int, int, list[int]]:
    """`user[:group]`, names or numbers, of this host: (uid, gid, further gids). Raises Invalid in Docker's words."""
    who, _, group = text.partition(":")
    try:
        entry = pwd.getpwuid(int(who)) if who.isdecimal() else pwd.getpwnam(who)
    except KeyError:
        if not who.isdecimal():
            raise Invalid(f"unable to find user {who}: no matching entries in passwd file") from None
        entry = None
    uid, gid = (entry.pw_uid, entry.pw_gid) if entry else (int(who), 0)
    if not group:
        return uid, gid, os.getgrouplist(entry.pw_name, gid) if entry else []
    try:
        return uid, int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid, []
    except KeyError:
        raise Invalid(f"unable to find group {group}: no matching entries in group file") from None


class HostImages:
    """Nothing can be pulled here; all nodes are of one image."""

    async def pull(
        self, reference: str, *, auth: str = "", platform: str = "", on_progress: Callable[[Progress], None] | None = None
    ) -> Image:
        raise NotImplementedHere(REFUSAL.format("pulling images"))

    async def login(self, server: str, auth: str) -> None:
        raise NotImplementedHere(REFUSAL.format("checking logins"))

    async def resolve(self, reference: str, *, auth: str = "") -> tuple[dict[str, Any], list[dict[str, str]]]:
        raise NotImplementedHere(REFUSAL.format("looking up images"))

    def get(self, reference: str) -> Image | None:
        return IMAGE if reference in ("skep/node", "skep/node:latest", IMAGE.id) else None

    def all(self) -> Collection[Image]:
        return [IMAGE]

    async def remove(self, reference: str, *, force: bool = False) -> list[dict[str, str]]:
        raise NotImplementedHere(REFUSAL.format("removing images"))

    async def push(self, reference: str, *, auth: str = "", on_progress: Callable[[Progress], None] | None = None) -> dict[str, Any]:
        raise NotImplementedHere(REFUSAL.format("pushing images"))

    async def tag(self, source: str, reference: str) -> None:
        raise NotImplementedHere(REFUSAL.format("tagging images"))

    async def load(self, data: AsyncIterator[bytes]) -> list[str]:
        raise NotImplementedHere(REFUSAL.format("loading images"))

    def save(self, references: Sequence[str]) -> AsyncGenerator[bytes, None]:
        raise NotImplementedHere(REFUSAL.format("saving images"))

    async def import_archive(
        self, data: AsyncIterator[bytes], *, reference: str = "", message: str = "", changes: Sequence[str] = ()
    ) -> str:
        raise NotImplementedHere(REFUSAL.format("importing images"))

    async def usage(self) -> tuple[int, dict[str, int]]:
        return 0, {}


class HostEngine:
    """`skep.engine.base.Engine` over the nodes of one cluster. Must be used inside `async with`: execs run in its task group."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.clock = clock
        self._images = HostImages()
        self._group = asyncio.TaskGroup()
        self._queues: set[asyncio.Queue[Event]] = set()
        self._seen: dict[str, tuple[int, int]] = {}
        """Node -> (pid, a descriptor that says when it ends) of those that run."""
        self._ends: dict[str, Exit] = {}
        self._asked: dict[str, int] = {}
        """Node -> the exit code that an end we have asked for has."""

    async def __aenter__(self) -> HostEngine:
        await self._group.__aenter__()
        self._look()
        self._watching = self._group.create_task(self._watch())
        return self

    async def __aexit__(self, *exc: Any) -> None:
        self._watching.cancel()
        for _, fd in self._seen.values():
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)
        self._seen = {}
        await self._group.__aexit__(*exc)

    @property
    def images(self) -> HostImages:
        return self._images

    @property
    def layout(self) -> Layout:
        return layout(self.name)

    def describe(self) -> Mapping[str, Any]:
        return {"runtime": "skepd", "storage_driver": "overlay2", "cgroup_driver": "cgroupfs"}

    async def start_up(self) -> None: ...

    async def shut_down(self) -> None: ...

    # what happens to the nodes

    async def _watch(self) -> None:
        while True:
            await self.clock.sleep(LOOK)
            self._look()

    def _look(self) -> None:
        """Find nodes that run and are not known to."""
        at = self.layout
        for node in at.members:
            if node in self._seen or not (pid := nodes.daemon_pid(at, node)):
                continue
            with contextlib.suppress(ProcessLookupError):
                fd = os.pidfd_open(pid)
                known = node in self._ends
                self._seen[node] = pid, fd
                self._ends.pop(node, None)
                asyncio.get_running_loop().add_reader(fd, self._ended, node)
                if known:
                    self._emit("start", node, None)

    def _ended(self, node: str) -> None:
        _, fd = self._seen.pop(node)
        asyncio.get_running_loop().remove_reader(fd)
        os.close(fd)
        self._ends[node] = Exit(code=self._asked.pop(node, 137), at=self.clock.now())
        self._emit("die", node, self._ends[node])

    def _emit(self, action: str, node: str, ended: Exit | None) -> None:
        for queue in self._queues:
            queue.put_nowait((action, container_id(self.name, node), ended))

    def subscribe(self) -> asyncio.Queue[Event]:
        queue: asyncio.Queue[Event] = asyncio.Queue()
        self._queues.add(queue)
        return queue

    def unsubscribe(self, queue: asyncio.Queue[Event]) -> None:
        self._queues.discard(queue)

    # reading

    async def create(self, config: ContainerConfig) -> None:
        raise NotImplementedHere(REFUSAL.format("creating containers"))

    def all(self) -> Collection[Container]:
        at = self.layout
        return [self._container(at, node) for node in at.members]

    def _container(self, at: Layout, node: str) -> Container:
        pid = nodes.daemon_pid(at, node)
        config = ContainerConfig(
            id=container_id(self.name, node),
            name=node,
            image=IMAGE.id,
            args=("docker-registry",) if node == REGISTRY else ("skepd",),
            hostname=node,
            labels={"skep.cluster": self.name, "skep.address": at.address(node)},
        )
        if pid:
            return Container(config=config, created_at=at.created, started_at=nodes.started_at(pid) or at.created, pid=pid)
        ended = self._ends.get(node)
        if ended is None and node in self._seen:
            # it is just ending
            ended = Exit(code=self._asked.get(node, 137), at=self.clock.now())
        if ended is None:
            # before our time: its last word tells when
            log = at.log(node)
            ended = Exit(code=137, at=log.stat().st_mtime_ns if log.exists() else at.created, known=False)
        return Container(config=config, created_at=at.created, started_at=at.created, exit=ended)

    def get(self, reference: str) -> Container | None:
        reference = reference.removeprefix("/")
        every = self.all()
        for c in every:
            if reference in (c.config.id, c.config.name):
                return c
        matches = [c for c in every if c.config.id.startswith(reference)] if reference else []
        return matches[0] if len(matches) == 1 else None

    def _need(self, id: str) -> Container:
        found = self.get(id)
        if found is None:
            raise NotFound(f"No such container: {id}")
        return found

    def logs(
        self, id: str, *, follow: bool = False, since: int = 0, until: int = 0, tail: int = -1, stdout: bool = True, stderr: bool = True
    ) -> AsyncGenerator[LogRecord, None]:
        at, node = self.layout, self._need(id).config.name
        return hostlog.records(
            at.log(node),
            self.clock,
            follow=follow,
            since=since,
            until=until,
            tail=tail if stderr else 0,
            running=lambda: bool(nodes.daemon_pid(at, node)),
        )

    # doing

    async def start(self, id: str) -> int:
        node, at = self._need(id).config.name, self.layout

        def work() -> int:
            with traces.locked(at.lock, self.name, patience=PATIENCE):
                nodes.start_node(at, node)
                nodes.wait_for_socket(at, node)
            return nodes.daemon_pid(at, node)

        pid = await asyncio.to_thread(work)
        self._look()
        return pid

    async def kill(self, id: str, signal: str = "SIGKILL") -> None:
        node, at = self._need(id).config.name, self.layout
        if signal.upper().removeprefix("SIG") not in ("KILL", "9"):
            self._asked[node] = 0
            nodes.signal_node(at, node, signal)
            return
        self._asked[node] = 137

        def work() -> None:
            with traces.locked(at.lock, self.name, patience=PATIENCE):
                nodes.kill_node(at, node)

        await asyncio.to_thread(work)

    async def stop(self, id: str, *, signal: str = "", grace: int = 0) -> Exit:
        node = self._need(id).config.name
        self._asked[node] = 0
        await asyncio.to_thread(nodes.stop_node, self.layout, node, name=signal or "SIGTERM", grace=grace / SECOND)
        return Exit(code=0, at=self.clock.now())

    async def wait(self, id: str) -> Exit:
        queue = self.subscribe()
        try:
            found = self._need(id)
            while found.running:
                action, ended_id, ended = await queue.get()
                if action == "die" and ended_id == found.config.id and ended is not None:
                    return ended
            return found.exit or Exit(code=0, at=self.clock.now(), known=False)
        finally:
            self.unsubscribe(queue)

    async def remove(self, id: str, *, force: bool = False) -> None:
        raise NotImplementedHere(REFUSAL.format("removing nodes"))

    async def pause(self, id: str) -> None:
        raise NotImplementedHere(REFUSAL.format("pausing nodes"))

    async def unpause(self, id: str) -> None:
        raise NotImplementedHere(REFUSAL.format("pausing nodes"))

    async def amend(
        self,
        id: str,
        *,
        name: str | None = None,
        extra: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
        hosts: Sequence[str] | None = None,
        resolv_conf: str | None = None,
        netns: str | None = None,
        lasting: bool = True,
    ) -> None:
        raise NotImplementedHere(REFUSAL.format("renaming and updating nodes"))

    async def stats(self, id: str) -> Stats:
        raise NotImplementedHere(REFUSAL.format("measuring nodes"))

    async def stat_path(self, id: str, path: str) -> PathStat:
        raise NotImplementedHere(REFUSAL.format("copying files"))

    def read_archive(self, id: str, path: str) -> AsyncGenerator[bytes, None]:
        raise NotImplementedHere(REFUSAL.format("copying files"))

    async def write_archive(
        self, id: str, path: str, data: AsyncIterator[bytes], *, keep_type: bool = False, copy_owner: bool = False
    ) -> None:
        raise NotImplementedHere(REFUSAL.format("copying files"))

    def export(self, id: str) -> AsyncGenerator[bytes, None]:
        raise NotImplementedHere(REFUSAL.format("exporting nodes"))

    async def changes(self, id: str) -> list[tuple[int, str]]:
        raise NotImplementedHere(REFUSAL.format("comparing files"))

    async def size(self, id: str) -> tuple[int, int]:
        """A node has no image of its own to differ from."""
        return 0, 0

    async def attach(self, id: str) -> Streams:
        raise NotImplementedHere(REFUSAL.format("attaching"))

    async def resize(self, id: str, rows: int, columns: int) -> None:
        return None

    async def exec(self, id: str, config: ExecConfig) -> NodeProcess:
        found = self._need(id)
        if not found.running:
            raise Conflict(f"container {found.config.id} is not running")
        at, node = self.layout, found.config.name
        environment = node_environment() | dict(pair.partition("=")[::2] for pair in config.env)
        user = find_user(config.user) if config.user else None
        line = command(at, node, config.args, part="exec", cwd=config.cwd or "/", env=environment, ctty=config.tty, user=user)
        process = NodeProcess()
        await process.start(self._group, line, tty=config.tty, stdin=config.stdin, rows=config.rows, columns=config.columns)
        return process
