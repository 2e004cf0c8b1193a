"""The engine over crun or runc and conmon. Implements `skep.engine.base.Engine`; theory and measurements in docs/engine.md.

Everything that blocks runs in two small pools of threads: one stands in the mount namespace where the runtime runs (`inside`), one in ours
(`outside`: mounts, files). An operation, once begun, goes on to its end even if its caller is cancelled, and what comes next on that
container waits for it: so no start is ever half done. Running containers need nothing of us: conmon holds them, exit codes wait in files.
The calls on a running container are in control.py, those on its files and figures in contents.py.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal as signals
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from skep.clock import Clock
from skep.engine.base import Container, ContainerConfig, Exec, ExecConfig, Exit, Images, LogRecord
from skep.engine.oci import bundle, conmon, kernel, logs, runtime, spec
from skep.engine.oci.bundle import Filters, Stored
from skep.engine.oci.contents import Contents
from skep.engine.oci.control import Control, in_use
from skep.engine.oci.core import LayeredImages
from skep.engine.oci.entry import Entry
from skep.engine.oci.exec import Spawned, spawn, spawned_in
from skep.engine.oci.folders import remove_tree
from skep.engine.oci.hostfacts import host_facts
from skep.engine.oci.inotify import Inotify
from skep.engine.oci.launch import Launched, find, launch, reason
from skep.engine.oci.operations import Operations
from skep.engine.oci.rotation import Rotation
from skep.engine.oci.sealed import seal
from skep.engine.oci.streams import AttachStreams, Sizes
from skep.engine.oci.unwritten import Unwritten
from skep.engine.oci.watching import Watching
from skep.errors import Conflict, Invalid, NotFound, SkepError, Unavailable
from skep.ids import Random, new_hex

_ID = re.compile(r"[0-9a-f]{64}", re.ASCII)


class OciEngine(Control, Contents):
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
        super().__init__(data_root, run_root, images, clock, rng, cgroup_parent)
        self._wanted = runtime
        if hasattr(images, "users"):
            images.users = self._users  # the images ask who uses one before it is removed

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
        self._making = bundle.Making(
            folders=self._folders, host=host, filters=filters, cgroup_parent=self._cgroup_parent, apart=bool(chosen.namespace)
        )
        self._places = conmon.Places(
            conmon=program, runtime=chosen, state=self._folders.state, exits=self._folders.exits, temporary=self._folders.temporary
        )
        self._operations = Operations(self._loop, chosen.namespace, self._folders.data)
        self._inotify = Inotify(self._loop)
        self._watching = Watching(self._loop, self._inotify, self._folders, self._places, self._clock, self._entries, self._ended)
        self._rotation = Rotation(self._operations, self._folders, self._entries)
        self._unwritten = Unwritten(self._operations, self._folders, self._entries)
        for found in await self._loop.run_in_executor(self._operations.outside, find, self._folders, self._clock):
            entry = Entry(found.stored)
            entry.made, entry.cgroup = True, found.cgroup
            self._entries[entry.id] = entry
            self._names[found.stored.config.name] = entry.id
            if entry.running:
                entry.ready = True
                groups = self._groups(entry)
                if groups.frozen() and kernel.kill_pending(entry.stored.pid):  # we died between the signal and letting it go on
                    groups.thaw()
                entry.paused = groups.frozen()
                self._watching.add(entry)
            elif found.unfinished:
                self._retire(entry)
            if found.unwritten is not None:
                self._unwritten.add(entry, found.unwritten)
        self._rotation.arm()

    def _prepare(self) -> tuple[runtime.Runtime, spec.Host, Filters]:
        self._folders.data.mkdir(parents=True, exist_ok=True, mode=0o711)
        self._folders.run.mkdir(parents=True, exist_ok=True, mode=0o755)
        self._lock = kernel.lock(str(self._folders.run / "engine.lock"))
        kernel.make_shared_root(str(self._folders.run))
        self._folders.make()
        chosen, self._sealed = seal(runtime.choose(self._wanted, self._folders.run, self._cgroup_parent))
        return chosen, host_facts(), Filters(chosen)

    async def shut_down(self) -> None:
        self._rotation.stop()
        await self._operations.shut_down(self._entries.values())
        await asyncio.to_thread(self._unwritten.finish)
        for entry in self._entries.values():
            self._watching.drop(entry)
            for streams in (*entry.waiting, *entry.attached):
                await streams.close()
        self._inotify.close()
        for fd in (self._lock, self._sealed):
            if fd >= 0:
                os.close(fd)

    async def destroy(self) -> None:
        """Remove all containers and everything else of ours but images; instead of `shut_down`."""
        for id in list(self._entries):
            await self.remove(id, force=True)
        await self.shut_down()

        await asyncio.to_thread(self._clear)

    def _clear(self) -> None:
        run = self._folders.run
        runtime.release_view(run)
        bundle.remove_cgroups(self._cgroup_parent)
        self._folders.clear()
        if not any(point.path.startswith(f"{os.path.realpath(run)}/") for point in kernel.mounts()):
            kernel.umount(str(run))

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
            "direct_start": chosen.direct,
            "storage_driver": "overlay2",
            "cgroup_driver": "cgroupfs",
            "cgroup_version": "2" if self._host.cgroup2 else "1",
            "cgroup_parent": self._cgroup_parent,
            "security_options": ["name=seccomp,profile=builtin"],
            "init": self._host.init,
            "swap_limit": self._host.swap_limit,
            "limits_missing": sorted(self._host.missing),
            "rlimits": dict(self._host.rlimits),
            "root": str(self._folders.data),
        }

    def get(self, reference: str) -> Container | None:
        entry = self._lookup(reference)
        return entry.container() if entry is not None else None

    def all(self) -> Collection[Container]:
        return [entry.container() for entry in self._entries.values() if entry.made]

    # operations

    async def create(self, config: ContainerConfig) -> None:
        if not _ID.fullmatch(config.id) or config.id in self._entries:
            raise Conflict(f"container id {config.id} is in use or malformed")
        while holder := self._free_name(config.name):
            making = self._entries[holder]
            if not making.made and making.busy is not None:  # a create whose caller has gone: it ends well, or the name is free
                await self._operations.settle(making)
                continue
            raise in_use(config.name, holder)
        image = self._images.get(config.image)
        if image is None:
            raise NotFound(f"No such image: {config.image}")
        for mode in (config.pid_mode, config.ipc_mode):
            if spec.shares(mode):
                self._entry(spec.shares(mode))
        layers = tuple(self._images.rootfs_layers(image.id))
        stored = Stored(config=config, created_at=self._clock.now(), runtime=self._runtime.name, layers=layers)
        entry = Entry(stored)
        self._entries[config.id] = entry
        self._names[config.name] = config.id

        def work() -> None:
            try:
                bundle.make(self._making, stored)
            except (OSError, SkepError) as error:
                with suppress(OSError):
                    bundle.remove(self._folders, config.id)
                raise error if isinstance(error, SkepError) else SkepError(f"cannot make the container: {reason(error)}") from None

        def apply(_: None) -> None:
            entry.made = entry.ready = True
            self._emit("create", entry)

        await self._operations.run(entry, self._operations.outside, work, apply, lambda error: self._forget(entry))

    async def start(self, id: str) -> int:
        entry = self._entry(id)
        operations = self._operations
        await operations.settle(entry)
        if entry.running:
            return entry.stored.pid
        joined = self._joined(entry.stored.config)
        if not entry.ready or joined is not None:
            made = partial(bundle.make_bundle, self._making, entry.stored, joined or spec.Joined())
            await operations.run(entry, operations.outside, made, lambda _: setattr(entry, "ready", True))
        streams, entry.waiting = entry.waiting, []

        def work() -> Launched:
            return launch(self._folders, self._places, self._clock, entry.stored, len(streams))

        def failed(error: BaseException) -> None:
            for waiting in streams:
                waiting.end()

        await operations.run(entry, operations.inside, work, lambda launched: self._started(entry, launched, streams), failed)
        return entry.stored.pid

    def _joined(self, config: ContainerConfig) -> spec.Joined | None:
        """What it shares with containers that run now; None: nothing. Raises in Docker's words."""
        found: dict[str, Entry] = {}
        for kind, mode in (("pid", config.pid_mode), ("ipc", config.ipc_mode)):
            if reference := spec.shares(mode):
                found[kind] = donor = self._entry(reference)
                if not donor.running:
                    raise Conflict(f"cannot join {kind.upper()} of a non running container: {donor.id}")
        if not found:
            return None
        shm = ""
        if donor_of_ipc := found.get("ipc"):
            mode = donor_of_ipc.stored.config.ipc_mode
            if mode not in ("shareable", "host"):
                hint = "non-shareable IPC (hint: use IpcMode:shareable for the donor container)"
                raise Invalid(f"cannot join IPC of container {donor_of_ipc.id}: {hint}")
            shm = "/dev/shm" if mode == "host" else str(self._folders.bundle(donor_of_ipc.id) / "shm")
        return spec.Joined(namespaces={kind: f"/proc/{one.stored.pid}/ns/{kind}" for kind, one in found.items()}, shm=shm)

    def _started(self, entry: Entry, launched: Launched, streams: list[AttachStreams]) -> None:
        entry.stored, connections = launched
        entry.ended.clear()
        for waiting, connection in zip(streams, connections, strict=True):
            waiting.connect(connection)
        entry.attached += streams
        self._emit("start", entry)
        self._watching.add(entry)
        self._rotation.arm()

    # the end of a container

    def _ended(self, entry: Entry, exit: Exit) -> None:
        entry.end(exit)
        if exit.oom:
            self._emit("oom", entry)
        self._emit("die", entry, exit)
        if self._operations.stopping:
            self._unwritten.write(entry)
        else:
            self._retire(entry)

    def _retire(self, entry: Entry) -> None:
        """The runtime's state, the cgroups and the mount go now; files and logs stay until `remove`."""
        if entry.busy is not None:
            entry.next.append(lambda: self._retire(entry))
            return

        def delete() -> None:
            self._unwritten.write(entry)  # first of all: the exit code outlives a boot
            cgroup, state = self._cgroup(entry), self._folders.state / entry.id
            entry.cgroup = ""
            # what the runtime's `delete` does where no process is left, without one of its own
            if not bundle.remove_cgroups(cgroup):
                with suppress(SkepError, OSError):
                    conmon.run(self._places, "delete", "--force", entry.id)
                if state.exists():  # a create that was killed has left too little for the runtime to know it
                    bundle.remove_cgroups(cgroup)
            remove_tree(state)

        def unmount() -> None:
            if not entry.viewers:
                bundle.unmount(self._folders, entry.id)

        entry.ready = False

        def then(_: None) -> None:
            if not self._operations.stopping:
                self._operations.begin(entry, self._operations.outside, unmount)

        self._operations.begin(entry, self._operations.inside, delete, then)

    async def remove(self, id: str, *, force: bool = False) -> None:
        entry = self._entries.get(id) or self._lookup(id)
        if entry is None:
            return
        await self._settle_start(entry)
        if entry.running:
            if not force:
                raise Conflict(f'cannot remove container "{id}": container is running: stop the container before removing or force remove')
            await self._signal(entry, signals.SIGKILL)
            await entry.ended.wait()
        await self._operations.settle(entry)
        if self._entries.get(entry.id) is not entry:
            return

        def apply(_: None) -> None:
            self._forget(entry)
            self._emit("destroy", entry)

        def failed(_: BaseException) -> None:
            entry.going = False

        entry.going = True
        await self._operations.run(entry, self._operations.outside, lambda: bundle.remove(self._folders, entry.id), apply, failed)

    def _forget(self, entry: Entry) -> None:
        self._entries.pop(entry.id, None)
        self._names.pop(entry.stored.config.name, None)
        entry.ended.set()
        for streams in entry.waiting:
            streams.end()

    # logs, streams, exec

    def logs(
        self, id: str, *, follow: bool = False, since: int = 0, until: int = 0, tail: int = -1, stdout: bool = True, stderr: bool = True
    ) -> AsyncGenerator[LogRecord, None]:
        entry = self._entry(id)
        if entry.stored.config.log_driver == "none":
            raise SkepError("configured logging driver does not support reading")
        streams = frozenset(stream for stream, asked in ((1, stdout), (2, stderr)) if asked)
        folder = self._folders.container(entry.id)
        return logs.records(
            logs.Opened(folder),
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

    async def resize(self, id: str, rows: int, columns: int) -> None:
        entry = self._entry(id)
        if not entry.running:
            raise Conflict(f"container {entry.id} is not running")
        if entry.sizes is None:
            entry.sizes = Sizes(self._loop, lambda rows, columns: conmon.resize(self._folders.bundle(entry.id), rows, columns))
        entry.sizes.set(rows, columns)

    async def exec(self, id: str, config: ExecConfig) -> Exec:
        entry = self._entry(id)
        if not entry.running:
            raise Conflict(f"container {entry.id} is not running")
        if entry.paused:
            raise Conflict(f"Container {entry.id} is paused, unpause the container before exec")
        if not config.args:
            raise Invalid("No exec command specified")
        rootfs = str(self._folders.rootfs(entry.id))
        exec_id = new_hex(self._rng)
        folder = self._folders.exec_bundle(exec_id[:24])

        def work() -> Spawned:
            stored = entry.stored.config
            identity = bundle.identify(rootfs, config.user or stored.user, stored.groups)
            return spawn(self._places, entry.id, exec_id, folder, config, spec.exec_process(stored, config, identity, self._host))

        return await spawned_in(self._loop, self._operations.inside, work, folder, config)
