"""A container started, and what a restart of ours finds. Everything here blocks."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress

import msgspec

from skep.clock import Clock
from skep.engine.base import Exit
from skep.engine.oci import bundle, conmon, kernel
from skep.engine.oci.bundle import Folders, Stored
from skep.errors import SkepError

Launched = tuple[Stored, list[socket.socket]]


def launch(folders: Folders, places: conmon.Places, clock: Clock, stored: Stored, attached: int) -> Launched:
    """conmon and the runtime's create, `attached` attach sockets, then the go: no output can be missed. Raises SkepError."""
    config = stored.config
    folder = folders.bundle(config.id)
    connections: list[socket.socket] = []
    created = None
    try:
        conmon.forget(places, config.id, folder)
        log = folders.log(config.id) if config.log_driver != "none" else None
        created = conmon.create(places, config.id, config.name, folder, log, tty=config.tty, stdin=config.stdin, once=config.stdin_once)
        connections += [conmon.connect(folder) for _ in range(attached)]
        if connections:
            conmon.settle()
        conmon.start(places, config.id, created.pid)
        new = running(stored, created, clock.now(), places.runtime.name)
        bundle.append(folders, new)
        return new, connections
    except (OSError, SkepError) as error:
        for connection in connections:
            connection.close()
        if created is not None:
            with suppress(SkepError):
                conmon.run(places, "delete", "--force", config.id)
        conmon.forget(places, config.id, folder)
        raise error if isinstance(error, SkepError) else SkepError(f"cannot start the container: {reason(error)}") from None


def running(stored: Stored, pids: conmon.Launched, now: int, runtime: str) -> Stored:
    return msgspec.structs.replace(
        stored,
        started_at=now,
        exit=None,
        pid=pids.pid,
        pid_ticks=kernel.start_ticks(pids.pid),
        conmon_pid=pids.conmon_pid,
        conmon_ticks=kernel.start_ticks(pids.conmon_pid),
        boot=kernel.boot_id(),
        runtime=runtime,
    )


def find(folders: Folders, clock: Clock) -> list[tuple[Stored, bool]]:
    """What is there, oldest first, and whether its root is mounted. What a crash left is removed, or taken for what it has become."""
    found = []
    boot = kernel.boot_id()
    for id in sorted(os.listdir(folders.data / "containers")):
        stored = bundle.load(folders, id)
        if stored is None:
            bundle.remove(folders, id)
            continue
        now = _as_it_is(folders, stored, boot, clock.now())
        if now is not stored:
            bundle.append(folders, now)
        found.append(now)
    for leftover in (folders.run / "x").iterdir():
        bundle.remove_tree(leftover)
    found.sort(key=lambda stored: stored.created_at)
    return [(stored, os.path.ismount(folders.rootfs(stored.config.id))) for stored in found]


def _as_it_is(folders: Folders, stored: Stored, boot: str, now: int) -> Stored:
    id = stored.config.id
    if stored.started_at and stored.exit is None:
        if stored.boot == boot:
            return stored
        lost = Exit(code=0, at=now, known=False, error="the host was started anew; the exit code is not known")
        return msgspec.structs.replace(stored, exit=lost)
    # a start may have been under way when we were killed: its process runs, or waits for a go that will not come
    pids = conmon.pids(folders.bundle(id))
    if not _belongs(pids.pid, id):
        return stored
    if (folders.state / id / "exec.fifo").exists():
        with suppress(ProcessLookupError):
            os.kill(pids.pid, signal.SIGKILL)
        return stored
    return running(stored, pids, now, stored.runtime)


def _belongs(pid: int, id: str) -> bool:
    """The process is in the container's cgroup: the pid was not given to somebody else meanwhile."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
            return pid > 0 and kernel.start_ticks(pid) > 0 and f"/{id}" in file.read()
    except OSError:
        return False


def reason(error: Exception) -> str:
    """An OSError without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)
