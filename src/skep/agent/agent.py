"""The node's agent in real time: the synchronous cores (session, worker) between a connection and `skep.node.base.Tasks`.

One loop decides; connections, calls of the runtime and log streams are tasks of one group that tell it what happened. See docs/link.md.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from skep.agent.attachments import ClusterAttachments, Questions, is_place
from skep.agent.check import Checks, Examine
from skep.agent.logs import LogSource, send_logs
from skep.agent.session import Session
from skep.agent.state import State
from skep.agent.worker import Apply, Cancel, Do, Instruction, Worker
from skep.clock import SECOND, Clock, Drift
from skep.datapath.base import Snapshot
from skep.errors import SkepError
from skep.ids import Random
from skep.link.channel import Channel, Closed, Refused, decode_from_manager, encode
from skep.link.messages import FromAgent, FromManager, LogsWanted
from skep.model.enums import TaskState
from skep.model.node import NodeDescription
from skep.node.base import Tasks
from skep.plan.workload import Call, Ended

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
LEAVE = 2 * SECOND
"""How long the manager's answer to a goodbye is waited for."""
INBOX = 64
STREAMS = 64
"""Log streams at once."""


class Agent:
    """`run` returns when the node has left the cluster (`leave`, or `session.removed` by the manager) and nothing of its tasks is left."""

    def __init__(
        self,
        *,
        tasks: Tasks,
        state: State,
        connect: Callable[[], Awaitable[Channel]],
        open_logs: Callable[[str], Awaitable[Channel]],
        describe: Callable[[], NodeDescription],
        clock: Clock,
        rng: Random,
        address: str = "",
        managers: tuple[str, ...] = (),
        logs: LogSource | None = None,
        apply_network: Callable[[Snapshot], Awaitable[None]] | None = None,
        on_session: Callable[[], None] = lambda: None,
        attachments: ClusterAttachments | None = None,
        sandboxes: Callable[[], Awaitable[Sequence[str]]] | None = None,
        examine: Examine | None = None,
    ) -> None:
        """`connect` and `open_logs`: `skep.link.client.Client.session` and `.logs`, or `skep.manager.local.LocalLink`'s.

        `on_session` is called when a session begins, ends, or brings a new spec or list of managers (see `session`).
        `attachments`: the daemon's, for plain containers; `sandboxes`: which containers are there.
        """
        self._tasks = tasks
        self._state = state
        self._connect = connect
        self._open_logs = open_logs
        self._clock = clock
        self._drift: Drift | None = None
        self._logs = logs
        self._apply = apply_network
        self._on_session = on_session
        self._wake = asyncio.Event()
        self._inbox: asyncio.Queue[FromManager] = asyncio.Queue(INBOX)
        self._outbox: list[FromAgent] = []
        self._out = asyncio.Event()
        self._calls: dict[str, asyncio.Task[Ended]] = {}
        self._streams: dict[str, asyncio.Task[None]] = {}
        self._linking: asyncio.Task[None] | None = None
        self._started = asyncio.Event()
        self._leaving = self._at_once = False
        self._leave_by = 0
        self._ending = False
        self.worker = Worker(state, clock.now(), tasks.known())
        self.session = Session(self.worker, describe, rng, clock.now(), address=address, managers=managers)
        self._checks = Checks(examine)
        self._attachments = attachments or ClusterAttachments(rng)
        self._questions = Questions(self.session, self.worker, sandboxes or _none, self._wake.set)

    def _now(self) -> int:
        now, steady = self._clock.now(), int(asyncio.get_running_loop().time() * SECOND)
        self._drift = self._drift or Drift(now, steady)
        if moved := self._drift.since(now, steady):
            log.warning("the clock was set by %.1f s", moved / SECOND)
            self.session.shift(moved)
            self.worker.shift(moved)
            self._leave_by = self._leave_by and self._leave_by + moved
        return now

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                try:
                    with self._attachments.bound(self._questions):
                        while not self._over():
                            await self._turn(group)
                finally:
                    self._ending = True
                for task in (*self._streams.values(), *self._checks.under_way, *([self._linking] if self._linking else [])):
                    task.cancel()
        finally:
            self._flush()
        try:
            self._state.clear()
        except OSError as error:
            log.error("the agent's state could not be cleared", extra={"reason": error.strerror})

    def _over(self) -> bool:
        linked = self._linking is not None and self._now() < self._leave_by
        return self.session.removed and self.worker.empty and not linked

    async def _turn(self, group: asyncio.TaskGroup) -> None:
        """Decide, carry out, and wait until something happens or is due."""
        due = [self.worker.tick(self._now())]
        self._step(group)
        due += [self.session.next_time(), self._leave_by or None]
        for instruction in self.worker.take():
            self._begin(group, instruction)
        self._flush()
        if self._over():
            return
        times = [time for time in due if time is not None]
        try:
            async with asyncio.timeout(max(min(times) - self._now(), 0) / SECOND if times else None):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def leave(self, *, at_once: bool = False) -> None:
        """Tell the manager, stop and remove all tasks (`at_once`: kill them); `run` then returns."""
        self._leaving, self._at_once = True, at_once
        self._wake.set()

    def _step(self, group: asyncio.TaskGroup) -> None:
        now = self._now()
        session = self.session
        if self._leaving and not session.removed:
            goodbye = session.leave()
            self._send(goodbye)
            if goodbye:
                self._leave_by = now + LEAVE
            elif self._linking is not None:
                self._linking.cancel()
        if self._leave_by and now >= self._leave_by:
            self._leave_by = 0
        if session.connect_at is not None and now >= session.connect_at and self._linking is None:
            session.connecting()
            self._linking = group.create_task(self._link())
        before = (session.welcomed, session.spec, session.managers)
        while not self._inbox.empty() and not session.broken:
            self._send(session.received(self._inbox.get_nowait(), now))
            self._inbox.task_done()
        self._send(session.tick(now))
        self._questions.deliver()
        if before != (session.welcomed, session.spec, session.managers):
            self._on_session()
        for message in session.logs:
            if isinstance(message, LogsWanted):
                self._open_stream(group, message)
            elif message.stream in self._streams:
                self._streams[message.stream].cancel()
        session.logs.clear()
        for question in session.checks:
            self._checks.begin(group, question, self._tell)
        session.checks.clear()
        if session.broken and self._linking is not None:
            self._linking.cancel()
        if session.removed:
            self.worker.withdraw_all(now, at_once=self._at_once)

    def _tell(self, message: FromAgent) -> None:
        if self.session.welcomed:
            self._send([message])

    def _send(self, messages: list[FromAgent]) -> None:
        if messages:
            self._outbox += messages
            self._out.set()

    def _flush(self) -> None:
        """A full disk must not stop the node's tasks: what is not remembered is learnt again from manager and runtime."""
        try:
            self._state.flush()
        except OSError as error:
            log.error("the agent's state could not be written", extra={"reason": error.strerror})

    # the connection

    async def _link(self) -> None:
        """One connection, from the attempt to its end."""
        session = self.session
        reason = ""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                channel = await self._connect()
            try:
                while not self._inbox.empty():
                    self._inbox.get_nowait()
                    self._inbox.task_done()
                self._outbox = session.connected(self._now())
                self._out.set()
                async with asyncio.TaskGroup() as group:
                    writing = group.create_task(self._write(channel))
                    reason = await self._read(channel)
                    writing.cancel()
            finally:
                await channel.close()
        except (SkepError, TimeoutError) as error:
            reason = error.message if isinstance(error, SkepError) else "no manager answers"
            session.removed = session.removed or (isinstance(error, Refused) and error.removed)
        finally:
            reason = session.broken or reason
            if not self._ending and not session.removed:
                log.warning("no session with a manager", extra={"reason": reason})
            session.lost(self._now(), reason)
            self._linking = None
            self._on_session()
            self._wake.set()

    async def _read(self, channel: Channel) -> str:
        while True:
            try:
                message = decode_from_manager(await channel.receive())
            except SkepError as error:
                await self._inbox.join()  # a Closing that came before the end counts
                return error.reason if isinstance(error, Closed) and error.reason else error.message
            await self._inbox.put(message)
            self._wake.set()

    async def _write(self, channel: Channel) -> None:
        try:
            while True:
                await self._out.wait()
                self._out.clear()
                messages, self._outbox = self._outbox, []
                for message in messages:
                    await channel.send(encode(message))
        except Closed:
            return

    # the tasks

    def _begin(self, group: asyncio.TaskGroup, instruction: Instruction) -> None:
        match instruction:
            case Do():
                task = self._calls[instruction.task_id] = group.create_task(self._call(instruction))
                task.add_done_callback(partial(self._called, instruction))
            case Cancel():
                if (running := self._calls.get(instruction.task_id)) is not None:
                    running.cancel()
            case Apply():
                group.create_task(self._apply_network(instruction.snapshot))

    async def _call(self, do: Do) -> Ended:
        try:
            if is_place(do.item):
                await self._attachments.call(do.call, do.item)
                return Ended()
            match do.call:
                case Call.PREPARE:
                    await self._tasks.prepare(do.item)
                case Call.START:
                    await self._tasks.start(do.item)
                case Call.WAIT:
                    exit = await self._tasks.wait(do.item)
                    return Ended(code=exit.code, known=exit.known, oom=exit.oom, detail=exit.error)
                case Call.SHUTDOWN:
                    await self._tasks.shutdown(do.item)
                case Call.REMOVE:
                    await self._tasks.remove(do.task_id)
        except SkepError as error:
            return Ended(error=error.message)
        except Exception as error:
            log.exception("a task's %s failed", do.call.value, extra={"task": do.task_id})
            return Ended(error=f"{type(error).__name__}: {error}")
        return Ended()

    def _called(self, do: Do, task: asyncio.Task[Ended]) -> None:
        """In a callback, so that a call cancelled before its first step is noticed too."""
        if self._calls.get(do.task_id) is task:
            del self._calls[do.task_id]
        if self._ending:
            return
        ended = Ended(cancelled=True) if task.cancelled() else task.result()
        self.worker.finished(do.task_id, do.call, ended, self._tasks.status(do.task_id), self._now())
        self._started.set()
        self._started = asyncio.Event()
        self._wake.set()

    async def _apply_network(self, snapshot: Snapshot) -> None:
        error = ""
        if self._apply is not None:
            try:
                await self._apply(snapshot)
            except SkepError as failure:
                error = failure.message
            except Exception as failure:
                log.exception("the node's network could not be brought to version %d", snapshot.version)
                error = f"{type(failure).__name__}: {failure}"
        self.worker.network_applied(snapshot.version, error, self._now())
        self._wake.set()

    # logs

    def _open_stream(self, group: asyncio.TaskGroup, wanted: LogsWanted) -> None:
        if len(self._streams) < STREAMS and wanted.stream not in self._streams:
            task = self._streams[wanted.stream] = group.create_task(self._stream(wanted))
            task.add_done_callback(lambda _: self._streams.pop(wanted.stream, None))

    async def _stream(self, wanted: LogsWanted) -> None:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                channel = await self._open_logs(wanted.stream)
        except (SkepError, TimeoutError) as error:
            log.warning("a log stream could not be opened", extra={"reason": str(error)})
            return
        if self._logs is None:
            await channel.close("this node keeps no logs")
            return
        await send_logs(wanted, self._logs, channel, self._until_started)

    async def _until_started(self, task_id: str) -> None:
        """Until the task has a container, or has ended without one."""
        while True:
            status = self.worker.status(task_id)
            if status is None or status.container is not None or status.state > TaskState.RUNNING:
                return
            await self._started.wait()


async def _none() -> Sequence[str]:
    return ()
