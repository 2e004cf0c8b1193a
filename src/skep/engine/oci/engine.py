"""The engine over crun or runc and conmon. Implements `skep.engine.base.Engine`; theory and measurements in docs/engine.md.

Everything that blocks runs in two small pools of threads: one stands in the mount namespace where the runtime runs (`inside`), one in ours
(`outside`: mounts, files). An operation, once begun, goes on to its end even if its caller is cancelled, and what comes next on that
container waits for it: so no start is ever half done. Running containers need nothing of us: conmon holds them, exit codes wait in files.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import signal as signals
import socket
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from skep.clock import Clock
from skep.engine.base import Container, ContainerConfig, Exec, ExecConfig, Exit, Images, LogRecord, Streams
from skep.engine.oci import bundle, conmon, kernel, logs, runtime, spec
from skep.engine.oci.bundle import Filters, Folders, Stored
from skep.engine.oci.entry import Entry, open_process
from skep.engine.oci.exec import PipeExec, TerminalExec, spawn_pipes, spawn_terminal
from skep.engine.oci.inotify import CLOSE_WRITE, MOVED_TO, Inotify
from skep.engine.oci.streams import AttachStreams
from skep.errors import Conflict, Invalid, NotFound, SkepError, Unavailable
from skep.ids import Random, new_hex

T = TypeVar("T")
log = logging.getLogger("skep.engine")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+", re.ASCII)
_ID = re.compile(r"[0-9a-f]{64}", re.ASCII)


class LayeredImages(Images, Protocol):
    def rootfs_layers(self, image_id: str) -> list[str]:
        """Directories of the unpacked layers, topmost first."""
        ...


class OciEngine:
    """`data_root` and `run_root` are this engine's alone; `run_root` is short (sockets lie below it) and may vanish with a boot.
    `runtime`: auto, crun or runc. `cgroup_parent`: `/name`, the parent of the containers' cgroups.
    """

    def __init__(
        self,
        data_root: Path,
        run_root: Path,
        images: LayeredImages,
        clock: Clock,
        rng: Random,
        cgroup_parent: str,
        runtime: str = "auto",
    ) -> None:
        self._folders = Folders(data_root.absolute(), run_root.absolute())
        self._images = images
        self._clock = clock
        self._rng = rng
        self._cgroup_parent = "/" + cgroup_parent.strip("/")
        self._wanted = runtime
        self._entries: dict[str, Entry] = {}
        self._names: dict[str, str] = {}
        self._queues: list[asyncio.Queue[tuple[str, str, Exit | None]]] = []
        self._stopping = False
        self._rotation: asyncio.TimerHandle | None = None
        users = getattr(images, "users", None)
        if users is not None:
            images.users = self._users  # type: ignore[attr-defined]

    # start and end

    async def start_up(self) -> None:
        self._loop = asyncio.get_running_loop()
        longest = self._folders.bundle("0" * 64) / "attach"
        if len(str(longest)) > conmon.SOCKET_PATH_LIMIT:
            raise Invalid(
                f"the run directory {self._folders.run} is too long: sockets in it may have {conmon.SOCKET_PATH_LIMIT} characters"
            )
        program = shutil.which("conmon")
        if program is None:
            raise Unavailable("conmon is not installed")
        chosen, host, filters = await asyncio.to_thread(self._prepare)
        self._runtime = chosen
        self._host = host
        self._filters = filters
        self._places = conmon.Places(conmon=program, runtime=chosen, state=self._folders.state, exits=self._folders.exits)
        width = 2 * (os.cpu_count() or 1)
        self._inside = ThreadPoolExecutor(width, "skep-runtime", initializer=runtime.enter, initargs=(chosen.namespace,))
        self._outside = ThreadPoolExecutor(width, "skep-files", initializer=_stand_in, initargs=(self._folders.data,))
        self._inotify = Inotify(self._loop)
        self._inotify.watch(str(self._folders.exits), self._exit_written, MOVED_TO | CLOSE_WRITE)
        for stored, mounted in await self._loop.run_in_executor(self._outside, self._find):
            entry = Entry(stored)
            entry.made = True
            entry.ready = mounted
            self._entries[entry.id] = entry
            self._names[stored.config.name] = entry.id
            if entry.running:
                self._watch(entry)
        self._arm_rotation()

    def _prepare(self) -> tuple[runtime.Runtime, spec.Host, Filters]:
        self._folders.data.mkdir(parents=True, exist_ok=True, mode=0o711)
        kernel.make_shared_root(str(self._folders.data))
        self._folders.make()
        chosen = runtime.choose(self._wanted, self._folders.run, self._cgroup_parent)
        return chosen, bundle.host_facts(), Filters(chosen)

    def _find(self) -> list[tuple[Stored, bool]]:
        """What is there, and whether its root is mounted. What a crash left unfinished is removed, or taken for what it has become."""
        found = []
        boot = kernel.boot_id()
        for id in sorted(os.listdir(self._folders.data / "containers")):
            stored = bundle.load(self._folders, id)
            if stored is None:
                bundle.remove(self._folders, id)
                continue
            found.append(self._take_over(stored, boot))
        for folder in (self._folders.run / "x").iterdir():
            bundle.remove_tree(folder)
        found.sort(key=lambda stored: stored.created_at)
        return [(stored, os.path.ismount(self._folders.container(stored.config.id) / "rootfs")) for stored in found]

    def _take_over(self, stored: Stored, boot: str) -> Stored:
        id = stored.config.id
        pids = conmon.pids(self._folders.bundle(id))
        if stored.started_at == 0 or stored.exit is not None:
            # a start may have been under way when we were killed: its process runs, or waits for a go that will not come
            ticks = kernel.start_ticks(pids.pid)
            if not ticks or pids.pid == stored.pid and ticks == stored.pid_ticks:
                return stored
            if (self._folders.state / id / "exec.fifo").exists():
                with suppress(ProcessLookupError):
                    os.kill(pids.pid, signals.SIGKILL)
                return stored
            stored = msgspec.structs.replace(
                stored,
                started_at=self._clock.now(),
                exit=None,
                pid=pids.pid,
                pid_ticks=ticks,
                conmon_pid=pids.conmon_pid,
                conmon_ticks=kernel.start_ticks(pids.conmon_pid),
                boot=boot,
            )
            bundle.save(self._folders, stored)
        elif stored.boot != boot:
            lost = Exit(code=0, at=self._clock.now(), known=False, error="the host was started anew; the exit code is not known")
            stored = msgspec.structs.replace(stored, exit=lost)
            bundle.save(self._folders, stored)
        return stored

    async def shut_down(self) -> None:
        self._stopping = True
        if self._rotation is not None:
            self._rotation.cancel()
        while busy := [entry.busy for entry in self._entries.values() if entry.busy is not None]:
            await asyncio.wait(busy)
        for entry in self._entries.values():
            self._let_go(entry)
            for streams in (*entry.waiting, *entry.attached):
                await streams.close()
        self._inotify.close()
        await asyncio.to_thread(self._inside.shutdown)
        await asyncio.to_thread(self._outside.shutdown)

    async def destroy(self) -> None:
        """Remove all containers and everything else of ours but images; instead of `shut_down`."""
        for id in list(self._entries):
            await self.remove(id, force=True)
        await self.shut_down()

        def clear() -> None:
            runtime.release_view(self._folders.run)
            bundle.remove_cgroups(self._cgroup_parent)
            bundle.remove_tree(self._folders.run)
            bundle.remove_tree(self._folders.data / "containers")
            bundle.remove_tree(self._folders.data / "l")
            kernel.umount(str(self._folders.data))

        await asyncio.to_thread(clear)

    # reading

    @property
    def images(self) -> Images:
        return self._images

    @property
    def runtime(self) -> runtime.Runtime:
        return self._runtime

    def describe(self) -> Mapping[str, Any]:
        chosen = self._runtime
        return {
            "runtime": chosen.name,
            "runtime_path": chosen.path,
            "runtime_version": chosen.version,
            "runtime_why": chosen.why,
            "seccomp_compiled": chosen.compiled,
            "storage_driver": "overlay2",
            "cgroup_driver": "cgroupfs",
            "cgroup_version": "2" if self._host.cgroup2 else "1",
            "cgroup_parent": self._cgroup_parent,
            "security_options": ["name=seccomp,profile=builtin"],
            "init": self._host.init,
            "swap_limit": self._host.swap_limit,
            "root": str(self._folders.data),
        }

    def get(self, reference: str) -> Container | None:
        entry = self._lookup(reference)
        return entry.container() if entry is not None else None

    def _lookup(self, reference: str) -> Entry | None:
        reference = reference.removeprefix("/")
        id = reference if reference in self._entries else self._names.get(reference)
        if id is None:
            matches = [known for known in self._entries if known.startswith(reference)] if reference else []
            id = matches[0] if len(matches) == 1 else None
        entry = self._entries.get(id) if id is not None else None
        return entry if entry is not None and entry.made else None

    def _entry(self, reference: str) -> Entry:
        entry = self._lookup(reference)
        if entry is None:
            raise NotFound(f"No such container: {reference}")
        return entry

    def all(self) -> Collection[Container]:
        return [entry.container() for entry in self._entries.values() if entry.made]

    def _users(self, image: str) -> Sequence[tuple[str, bool]]:
        return [(entry.id, entry.running) for entry in self._entries.values() if entry.stored.config.image == image]

    # operations

    async def _settle(self, entry: Entry) -> None:
        while entry.busy is not None:
            await asyncio.wait((entry.busy,))

    async def _operate(self, entry: Entry, pool: ThreadPoolExecutor, work: Callable[[], T], apply: Callable[[T], None]) -> T:
        """Do `work` in the pool and `apply` its result in the loop, to the end even if the caller is cancelled."""
        if self._stopping:
            raise Unavailable("the engine is shutting down")
        return await asyncio.shield(self._begin(entry, pool, work, apply))

    def _begin(self, entry: Entry, pool: ThreadPoolExecutor, work: Callable[[], T], apply: Callable[[T], None]) -> asyncio.Future[T]:
        assert entry.busy is None
        over: asyncio.Future[None] = self._loop.create_future()
        entry.busy = over
        result: asyncio.Future[T] = self._loop.create_future()

        def finished(done: asyncio.Future[T]) -> None:
            entry.busy = None
            error = done.exception()
            if error is None:
                apply(done.result())
            if not result.done():
                if error is None:
                    result.set_result(done.result())
                else:
                    result.set_exception(error)
                    result.exception()
            over.set_result(None)

        self._loop.run_in_executor(pool, work).add_done_callback(finished)
        return result

    async def create(self, config: ContainerConfig) -> None:
        if not _ID.fullmatch(config.id) or config.id in self._entries:
            raise Conflict(f"container id {config.id} is in use or malformed")
        if not _NAME.fullmatch(config.name):
            raise Invalid(f"Invalid container name ({config.name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
        holder = self._names.get(config.name)
        if holder is not None:
            raise Conflict(
                f'Conflict. The container name "/{config.name}" is already in use by container "{holder}". '
                "You have to remove (or rename) that container to be able to reuse that name."
            )
        image = self._images.get(config.image)
        if image is None:
            raise NotFound(f"No such image: {config.image}")
        layers = tuple(self._images.rootfs_layers(image.id))
        stored = Stored(config=config, created_at=self._clock.now(), runtime=self._runtime.name, layers=layers)
        entry = Entry(stored)
        self._entries[config.id] = entry
        self._names[config.name] = config.id

        def work() -> Exception | None:
            try:
                bundle.make(self._folders, stored, self._host, self._filters, self._cgroup_parent)
            except (OSError, SkepError) as error:
                with suppress(OSError):
                    bundle.remove(self._folders, config.id)
                return error
            return None

        def apply(error: Exception | None) -> None:
            if error is None:
                entry.made = entry.ready = True
                self._emit("create", entry)
            else:
                self._forget(entry)

        error = await self._operate(entry, self._outside, work, apply)
        if error is not None:
            raise error if isinstance(error, SkepError) else SkepError(f"cannot make the container: {_reason(error)}")

    async def start(self, id: str) -> int:
        entry = self._entry(id)
        await self._settle(entry)
        if entry.running:
            return entry.stored.pid
        if not entry.ready:
            await self._operate(entry, self._outside, lambda: self._remake(entry), lambda _: setattr(entry, "ready", True))
        streams, entry.waiting = entry.waiting, []
        error = await self._operate(
            entry, self._inside, lambda: self._launch(entry.stored, streams), lambda e: self._started(entry, e, streams)
        )
        if isinstance(error, Exception):
            raise error
        return entry.stored.pid

    def _remake(self, entry: Entry) -> None:
        bundle.make_bundle(self._folders, entry.stored, self._host, self._filters, self._cgroup_parent)

    def _launch(self, stored: Stored, streams: list[AttachStreams]) -> tuple[Stored, list[socket.socket]] | Exception:
        """conmon and the runtime's create, the attach sockets, then the go: no output can be missed."""
        config = stored.config
        folder = self._folders.bundle(config.id)
        connections: list[socket.socket] = []
        launched = None
        try:
            conmon.forget(self._places, config.id, folder)
            log_file = self._folders.container(config.id) / "logs" / logs.NAME if config.log_driver != "none" else None
            launched = conmon.create(
                self._places, config.id, config.name, folder, log_file, tty=config.tty, stdin=config.stdin, once=config.stdin_once
            )
            connections += [conmon.connect(folder) for _ in streams]
            conmon.start(self._places, config.id)
            new = msgspec.structs.replace(
                stored,
                started_at=self._clock.now(),
                exit=None,
                pid=launched.pid,
                pid_ticks=kernel.start_ticks(launched.pid),
                conmon_pid=launched.conmon_pid,
                conmon_ticks=kernel.start_ticks(launched.conmon_pid),
                boot=kernel.boot_id(),
                runtime=self._runtime.name,
            )
            bundle.save(self._folders, new)
            return new, connections
        except (OSError, SkepError) as error:
            for connection in connections:
                connection.close()
            if launched is not None:
                with suppress(SkepError):
                    conmon.run(self._places, "delete", "--force", config.id)
            conmon.forget(self._places, config.id, folder)
            return error if isinstance(error, SkepError) else SkepError(f"cannot start the container: {_reason(error)}")

    def _started(self, entry: Entry, outcome: tuple[Stored, list[socket.socket]] | Exception, streams: list[AttachStreams]) -> None:
        if isinstance(outcome, Exception):
            for waiting in streams:
                waiting.end()
            return
        entry.stored, connections = outcome
        entry.ended.clear()
        for waiting, connection in zip(streams, connections, strict=True):
            waiting.connect(connection)
        entry.attached += streams
        self._emit("start", entry)
        self._watch(entry)
        self._arm_rotation()

    # the end of a container

    def _watch(self, entry: Entry) -> None:
        stored = entry.stored
        entry.pidfd = open_process(stored.pid, stored.pid_ticks)
        entry.conmon_fd = open_process(stored.conmon_pid, stored.conmon_ticks)
        if entry.conmon_fd >= 0:
            self._loop.add_reader(entry.conmon_fd, self._conmon_ended, entry)
            self._look_for_exit(entry)
        else:
            self._conmon_ended(entry)

    def _exit_written(self, name: str) -> None:
        for entry in [self._entries.get(name)] if name else list(self._entries.values()):
            if entry is not None and entry.running and entry.busy is None:
                self._look_for_exit(entry)

    def _look_for_exit(self, entry: Entry) -> bool:
        found = conmon.exit_code(self._places, entry.id)
        if found is None:
            return False
        code, at = found
        oom = conmon.out_of_memory(self._folders.bundle(entry.id))
        error = f"out of memory (limit {_size(entry.stored.config.limits.memory)})" if oom else ""
        self._end(entry, Exit(code=code, at=max(at, entry.stored.started_at), oom=oom, error=error))
        return True

    def _conmon_ended(self, entry: Entry) -> None:
        """After an exit file this is as it should be; without one, conmon was killed and the container goes on unattended."""
        self._close(entry, "conmon_fd")
        if not entry.running or self._look_for_exit(entry):
            return
        if entry.pidfd < 0:
            self._container_ended(entry)
            return
        log.warning(
            "the monitor of container %s (%s) was killed; it runs on, its exit code will not be known", entry.stored.config.name, entry.id
        )
        self._loop.add_reader(entry.pidfd, self._container_ended, entry)

    def _container_ended(self, entry: Entry) -> None:
        self._close(entry, "pidfd")
        if entry.running and not self._look_for_exit(entry):
            error = "ended without its monitor; the exit code is not known"
            self._end(entry, Exit(code=0, at=self._clock.now(), known=False, error=error))

    def _close(self, entry: Entry, name: str) -> None:
        fd = getattr(entry, name)
        if fd >= 0:
            self._loop.remove_reader(fd)
            os.close(fd)
            setattr(entry, name, -1)

    def _let_go(self, entry: Entry) -> None:
        self._close(entry, "conmon_fd")
        self._close(entry, "pidfd")

    def _end(self, entry: Entry, exit: Exit) -> None:
        self._let_go(entry)
        entry.end(exit)
        if exit.oom:
            self._emit("oom", entry)
        self._emit("die", entry, exit)
        if not self._stopping:
            self._retire(entry)

    def _retire(self, entry: Entry) -> None:
        """The runtime's state, the cgroups and the mount go now; files and logs stay until `remove`."""

        def delete() -> None:
            with suppress(SkepError, OSError):
                conmon.run(self._places, "delete", "--force", entry.id)

        def unmount() -> None:
            kernel.umount(str(self._folders.container(entry.id) / "rootfs"))
            with suppress(OSError):
                bundle.save(self._folders, entry.stored)

        entry.ready = False
        self._begin(entry, self._inside, delete, lambda _: None if self._stopping else self._then(entry, unmount))

    def _then(self, entry: Entry, work: Callable[[], None]) -> None:
        self._begin(entry, self._outside, work, lambda _: None)

    async def kill(self, id: str, signal: str = "SIGKILL") -> None:
        entry = self._entry(id)
        number = signal_number(signal)
        await self._settle_start(entry)
        if not entry.running:
            raise Conflict(f"cannot kill container: {id}: container {entry.id} is not running")
        self._signal(entry, number)

    async def _settle_start(self, entry: Entry) -> None:
        if entry.busy is not None and not entry.running:
            await self._settle(entry)

    def _signal(self, entry: Entry, number: int) -> None:
        if entry.pidfd >= 0:
            with suppress(ProcessLookupError):
                signals.pidfd_send_signal(entry.pidfd, number)

    async def stop(self, id: str, *, signal: str = "", grace: int = 0) -> Exit:
        entry = self._entry(id)
        await self._settle_start(entry)
        if entry.running:
            self._signal(entry, signal_number(signal or entry.stored.config.stop_signal or "SIGTERM"))
            with suppress(TimeoutError):
                async with asyncio.timeout(max(grace, 0) / 1e9):
                    await entry.ended.wait()
            if not entry.ended.is_set():
                self._signal(entry, signals.SIGKILL)
                await entry.ended.wait()
        return entry.stored.exit or Exit(code=0, at=entry.stored.created_at, known=False)

    async def wait(self, id: str) -> Exit:
        entry = self._entry(id)
        await entry.ended.wait()
        assert entry.stored.exit is not None
        return entry.stored.exit

    async def remove(self, id: str, *, force: bool = False) -> None:
        entry = self._entries.get(id) or self._lookup(id)
        if entry is None:
            return
        await self._settle_start(entry)
        if entry.running:
            if not force:
                raise Conflict(f'cannot remove container "{id}": container is running: stop the container before removing or force remove')
            self._signal(entry, signals.SIGKILL)
            await entry.ended.wait()
        await self._settle(entry)
        if self._entries.get(entry.id) is not entry:
            return

        def apply(_: None) -> None:
            self._forget(entry)
            self._emit("destroy", entry)

        await self._operate(entry, self._outside, lambda: bundle.remove(self._folders, entry.id), apply)

    def _forget(self, entry: Entry) -> None:
        self._entries.pop(entry.id, None)
        self._names.pop(entry.stored.config.name, None)
        for streams in entry.waiting:
            streams.end()

    # logs, streams, exec

    def logs(
        self, id: str, *, follow: bool = False, since: int = 0, until: int = 0, tail: int = -1, stdout: bool = True, stderr: bool = True
    ) -> AsyncIterator[LogRecord]:
        entry = self._entry(id)
        if entry.stored.config.log_driver == "none":
            raise SkepError("configured logging driver does not support reading")
        streams = frozenset(stream for stream, asked in ((1, stdout), (2, stderr)) if asked)
        folder = self._folders.container(entry.id) / "logs"
        return logs.records(
            folder,
            self._inotify,
            lambda: entry.stored.exit is not None or entry.id not in self._entries,
            entry.wakers,
            follow=follow,
            since=since,
            until=until,
            tail=tail,
            streams=streams,
        )

    def _arm_rotation(self) -> None:
        if self._rotation is None and any(entry.running and entry.stored.config.log_max_size for entry in self._entries.values()):
            self._rotation = self._loop.call_later(1.0, self._rotate)

    def _rotate(self) -> None:
        """Look at the logs that have a limit: soon again while one is close to it, every ten seconds while all are far from it."""
        limited = [entry for entry in self._entries.values() if entry.running and entry.stored.config.log_max_size]
        self._rotation = None
        if not limited or self._stopping:
            return

        def work() -> float:
            return min(self._rotate_one(entry) for entry in limited)

        def finished(done: asyncio.Future[float]) -> None:
            error = done.exception()
            if error is not None:
                log.error("log rotation: %s", error)
            if not self._stopping:
                self._rotation = self._loop.call_later(1.0 if error else done.result(), self._rotate)

        self._loop.run_in_executor(self._outside, work).add_done_callback(finished)

    def _rotate_one(self, entry: Entry) -> float:
        """Rotates if it is time; returns the seconds after which to look again."""
        config = entry.stored.config
        folder = self._folders.container(entry.id) / "logs"
        try:
            size = (folder / logs.NAME).stat().st_size
            grown = max(size - entry.log_seen, 0)
            if size >= config.log_max_size:
                logs.rotate(folder, config.log_max_files, lambda: conmon.reopen_log(self._folders.bundle(entry.id)))
                entry.log_seen = 0
                return 0.2
            entry.log_seen = size
        except (OSError, SkepError) as error:
            if entry.running and (folder / logs.NAME).exists():
                log.warning("log of container %s cannot be rotated: %s", config.name, error)
            return 10.0
        if grown == 0:
            return 10.0
        return min(10.0, max(0.2, (config.log_max_size - size) / grown / 4))

    async def attach(self, id: str) -> Streams:
        entry = self._entry(id)
        streams = AttachStreams(self._loop)
        await self._settle_start(entry)
        if entry.running:
            streams.connect(conmon.connect(self._folders.bundle(entry.id)))
            entry.attached = [known for known in entry.attached if not known.closed] + [streams]
        else:
            entry.waiting = [known for known in entry.waiting if not known.closed] + [streams]
        return streams

    async def resize(self, id: str, rows: int, columns: int) -> None:
        entry = self._entry(id)
        if not entry.running:
            raise Conflict(f"container {entry.id} is not running")
        conmon.resize(self._folders.bundle(entry.id), rows, columns)

    async def exec(self, id: str, config: ExecConfig) -> Exec:
        entry = self._entry(id)
        if not entry.running:
            raise Conflict(f"container {entry.id} is not running")
        if not config.args:
            raise Invalid("No exec command specified")
        exec_id = new_hex(self._rng)
        folder = self._folders.exec_bundle(exec_id[:24])

        def work() -> Any:
            rootfs = str(self._folders.container(entry.id) / "rootfs")
            stored = entry.stored.config
            identity = bundle.identify(rootfs, config.user or stored.user, stored.groups)
            process = spec.exec_process(stored, config, identity, self._host)
            if config.tty:
                return spawn_terminal(self._places, entry.id, exec_id, folder, process)
            return spawn_pipes(self._places, entry.id, folder, process, config.stdin)

        spawned = await self._loop.run_in_executor(self._inside, work)
        if not config.tty:
            return PipeExec(self._loop, spawned, folder, config.args[0])
        sync, pid, code, text, connect = spawned
        terminal = TerminalExec(self._loop, folder, sync, pid, code, text)
        connect(terminal.stream)
        if config.rows and config.columns and code is None:
            with suppress(SkepError):
                await terminal.resize(config.rows, config.columns)
        return terminal

    # events

    def subscribe(self) -> asyncio.Queue[tuple[str, str, Exit | None]]:
        queue: asyncio.Queue[tuple[str, str, Exit | None]] = asyncio.Queue()
        self._queues.append(queue)
        return queue

    def unsubscribe(self, queue: asyncio.Queue[tuple[str, str, Exit | None]]) -> None:
        if queue in self._queues:
            self._queues.remove(queue)

    def _emit(self, action: str, entry: Entry, exit: Exit | None = None) -> None:
        for queue in self._queues:
            queue.put_nowait((action, entry.id, exit))


def _stand_in(folder: Path) -> None:
    """The thread's own working directory: short layer links are relative to it."""
    kernel.unshare(kernel.CLONE_FS)
    os.chdir(folder)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def _size(number: int) -> str:
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= factor:
            return f"{number / factor:.4g}{unit}"
    return f"{number}B" if number else "of the host"


def signal_number(name: str) -> int:
    """`SIGTERM`, `term`, `15`, `RTMIN+3`. Raises Invalid (`invalid signal: X`)."""
    text = name.upper().removeprefix("SIG")
    if text.isdigit() and 0 < int(text) < 65:
        return int(text)
    base, sign, offset = text.partition("+") if "+" in text else text.partition("-")
    found = signals.Signals.__members__.get(f"SIG{base}")
    if found is not None and (not sign or (base in ("RTMIN", "RTMAX") and offset.isdigit())):
        number = int(found) + (int(offset or 0) if sign != "-" else -int(offset or 0))
        if 0 < number < 65:
            return number
    raise Invalid(f"invalid signal: {name}")
