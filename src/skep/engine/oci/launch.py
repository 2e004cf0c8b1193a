"""A container started, and what a restart of ours finds. Everything here blocks."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from skep.clock import Clock
from skep.engine.base import UNSEEN, Exit
from skep.engine.oci import bundle, conmon, kernel
from skep.engine.oci.bundle import Stored
from skep.engine.oci.folders import Folders, remove_tree
from skep.errors import SkepError

_PATIENCE = 10.0
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


class Found(NamedTuple):
    stored: Stored
    unfinished: bool
    """A start was under way and has been stopped, or an end was not yet dealt with: what the runtime has of it is to be deleted."""
    unwritten: OSError | None = None
    """What has become of it could not be written down: the disk is full."""
    cgroup: str = ""
    """Where the runtime has put what runs of it, or is left."""


def find(folders: Folders, clock: Clock) -> list[Found]:
    """What is there, oldest first. What a crash left is removed, or taken for what it has become."""
    found = []
    boot = kernel.boot_id()
    starting = _starting(folders)
    for id in sorted(os.listdir(folders.data / "containers")):
        stored = bundle.load(folders, id)
        if stored is None:
            _stop_start(folders, id, starting)
            bundle.remove(folders, id)
            continue
        bundle.forget_unfinished(folders, id)
        now = _as_it_is(folders, stored, boot, clock.now())
        unfinished, running_on = False, bool(now.started_at and now.exit is None)
        if not running_on:
            unfinished = _stop_start(folders, id, starting) or (folders.state / id).exists()
            bundle.unmount(folders, id)
        unwritten = None
        if now is not stored:
            try:
                bundle.append(folders, now)
            except OSError as error:
                unwritten = error
        cgroup = _cgroup(folders.bundle(id)) if running_on or unfinished else ""
        found.append(Found(now, unfinished, unwritten, cgroup))
    _sweep(folders, {one.stored.config.id for one in found})
    found.sort(key=lambda one: one.stored.created_at)
    return found


class _Linux(msgspec.Struct, frozen=True):
    cgroups_path: str = msgspec.field(default="", name="cgroupsPath")


class _Document(msgspec.Struct, frozen=True):
    linux: _Linux = _Linux()


def _cgroup(folder: Path) -> str:
    """By its config.json: the parent that new ones get may be another one by now. Empty: not said."""
    try:
        return msgspec.json.decode((folder / "config.json").read_bytes(), type=_Document).linux.cgroups_path
    except (OSError, msgspec.MsgspecError):
        return ""


def _sweep(folders: Folders, known: set[str]) -> None:
    """What is left in RUN of a container whose removal was cut short, and of execs."""
    for id in set(os.listdir(folders.run / "c")) - known:
        bundle.unmount(folders, id)
        remove_tree(folders.bundle(id))
    for id in set(os.listdir(folders.exits)) - known:
        (folders.exits / id).unlink(missing_ok=True)
    for leftover in (folders.run / "x").iterdir():
        remove_tree(leftover)


def _as_it_is(folders: Folders, stored: Stored, boot: str, now: int) -> Stored:
    id = stored.config.id
    if stored.started_at and stored.exit is None:
        if stored.boot == boot:
            return stored
        lost = Exit(code=UNSEEN, at=now, known=False, error="the host was started anew; the exit code is not known")
        return msgspec.structs.replace(stored, exit=lost)
    # a start may have been under way when we were killed, and got as far as letting it go
    pids = conmon.pids(folders.bundle(id))
    if _belongs(pids.pid, id) and not (folders.state / id / "exec.fifo").exists():
        return running(stored, pids, now, stored.runtime)
    return stored


def _starting(folders: Folders) -> dict[str, set[int]]:
    """Container -> processes that name its bundle or its id: conmon, and the runtime until it has become the container's first process."""
    prefix, state = f"{folders.run}/c/".encode(), str(folders.state).encode()
    found: dict[str, set[int]] = {}
    for pid in os.listdir("/proc"):
        if not pid.isdigit():
            continue
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        ours = state in words
        for word in words:
            if word.startswith(prefix) or (ours and len(word) == 64):
                found.setdefault(word.removeprefix(prefix).split(b"/")[0].decode("ascii", "replace"), set()).add(int(pid))
    return found


def _stop_start(folders: Folders, id: str, starting: dict[str, set[int]]) -> bool:
    """Nobody will ever let this one go: its conmon, the runtime at work for it and what waits for the go are killed."""
    stopped = False
    end = time.monotonic() + _PATIENCE
    while (pids := starting.get(id)) and time.monotonic() < end:
        stopped = True
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while any(kernel.start_ticks(pid) for pid in pids) and time.monotonic() < end:
            time.sleep(0.002)
        starting = _starting(folders)  # what one of them has started meanwhile
    return stopped


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
