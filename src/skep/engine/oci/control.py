"""A container's life after its start: signals, stop, pause, and what may be changed of it while it runs.

A signal for a paused container lets it go on where Docker does: for SIGKILL, and for what would stop it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal as signals
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from skep.engine.base import ContainerConfig, Exit, Limits, Streams
from skep.engine.oci import bundle, conmon
from skep.engine.oci.core import Core
from skep.engine.oci.entry import Entry
from skep.engine.oci.limits import Change, change_of
from skep.engine.oci.signals import signal_number
from skep.engine.oci.streams import AttachStreams
from skep.errors import Conflict, Invalid, SkepError

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+", re.ASCII)
TELLS_WITHIN = 2.0
"""Seconds from a monitor's last sign to the end being known here."""


class Control(Core):
    async def _settle_start(self, entry: Entry) -> None:
        """A pause or a change of a running container is settled too: it comes before what is asked now."""
        if entry.busy is not None:
            await self._operations.settle(entry)

    # signals

    async def kill(self, id: str, signal: str = "SIGKILL") -> None:
        entry = self._entry(id)
        number = signal_number(signal)
        await self._settle_start(entry)
        if not entry.running:
            raise Conflict(f"cannot kill container: {id}: container {entry.id} is not running")
        await self._signal(entry, number)

    async def _signal(self, entry: Entry, number: int) -> None:
        if entry.pidfd >= 0:
            with suppress(ProcessLookupError):
                signals.pidfd_send_signal(entry.pidfd, number)
        if entry.paused and _ends(entry.stored.config, number):
            # said first: once it goes on, its end may be known here before the thaw is
            entry.paused = False
            self._emit("unpause", entry)
            try:
                await asyncio.shield(self._loop.run_in_executor(self._operations.outside, self._groups(entry).thaw))
            except (OSError, SkepError):
                entry.paused = not entry.ended.is_set()
                raise

    async def stop(self, id: str, *, signal: str = "", grace: int = 0) -> Exit:
        entry = self._entry(id)
        number = signal_number(signal or entry.stored.config.stop_signal or "SIGTERM")
        await self._settle_start(entry)
        if entry.running:
            await self._signal(entry, number)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(grace, 0) / 1e9):
                    await entry.ended.wait()
            if not entry.ended.is_set():
                await self._signal(entry, signals.SIGKILL)
                await entry.ended.wait()
        return entry.stored.exit or Exit(code=0, at=entry.stored.created_at, known=False)

    async def wait(self, id: str) -> Exit:
        entry = self._entry(id)
        await entry.ended.wait()
        return entry.stored.exit or Exit(code=0, at=self._clock.now(), known=False, error="the container was removed")

    async def attach(self, id: str) -> Streams:
        entry = self._entry(id)
        streams = AttachStreams(self._loop)
        await self._settle_start(entry)
        if not entry.running:
            entry.waiting = [known for known in entry.waiting if not known.closed] + [streams]
            return streams
        try:
            streams.connect(conmon.connect(self._folders.bundle(entry.id)))
        except SkepError:
            # a monitor takes its socket away before it tells the end
            with suppress(TimeoutError):
                async with asyncio.timeout(TELLS_WITHIN):
                    await entry.ended.wait()
            if not entry.ended.is_set():
                raise
            streams.end()
            return streams
        entry.attached = [known for known in entry.attached if not known.closed] + [streams]
        return streams

    # pause

    async def pause(self, id: str) -> None:
        entry = self._entry(id)
        await self._settle_start(entry)
        if not entry.running:
            raise Conflict(f"container {entry.id} is not running")
        if entry.paused:
            raise Conflict(f"Container {entry.id} is already paused")
        groups = self._groups(entry)

        def work() -> None:
            try:
                groups.freeze()
            except SkepError as error:
                raise SkepError(f"Cannot pause container {entry.id}: {error.text}") from None

        def apply(_: None) -> None:
            if entry.running:
                entry.paused = True
                self._emit("pause", entry)

        await self._operations.run(entry, self._operations.outside, work, apply)

    async def unpause(self, id: str) -> None:
        entry = self._entry(id)
        await self._settle_start(entry)
        if not entry.paused:
            raise SkepError(f"Container {entry.id} is not paused")

        def apply(_: None) -> None:
            if entry.paused:
                entry.paused = False
                self._emit("unpause", entry)

        await self._operations.run(entry, self._operations.outside, self._groups(entry).thaw, apply)

    # changes

    def _free_name(self, name: str, entry: Entry | None = None) -> str:
        """The container that holds it, if that is not `entry`; raises Invalid for what is no name."""
        if not _NAME.fullmatch(name):
            raise Invalid(f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
        holder = self._names.get(name, "")
        return "" if entry is not None and holder == entry.id else holder

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
        entry = self._entry(id)
        await self._settle_start(entry)
        old = entry.stored.config
        fields: dict[str, Any] = {"name": name, "extra": None if extra is None else dict(extra), "limits": limits, "netns": netns}
        fields |= {"hosts": None if hosts is None else tuple(hosts), "resolv_conf": resolv_conf}
        new = msgspec.structs.replace(old, **{field: value for field, value in fields.items() if value is not None})
        if new == old:
            return
        if new.name != old.name:
            if holder := self._free_name(new.name, entry):
                raise in_use(new.name, holder)
            self._names[new.name] = entry.id
        running = entry.running
        kernel = (self._host.swap_limit, self._host.missing)

        def work() -> None:
            if new.limits != old.limits:
                wanted = change_of(old.limits, new.limits, *kernel)
                if running:
                    self._update_kernel(entry, wanted, change_of(new.limits, old.limits, *kernel))
            try:
                bundle.amend(self._folders, msgspec.structs.replace(entry.stored, config=new))
            except OSError as error:
                if lasting:
                    raise
                self._unwritten.add(entry, error)
            if entry.ready:
                bundle.write_etc(self._folders, new)

        def apply(_: None) -> None:
            entry.change(config=new)
            if new.name != old.name:
                self._names.pop(old.name, None)
            if not entry.running:
                entry.ready = entry.ready and new.limits == old.limits and new.netns == old.netns

        def failed(_: BaseException) -> None:
            if new.name != old.name:
                self._names.pop(new.name, None)

        await self._operations.run(entry, self._operations.inside, work, apply, failed)

    def _update_kernel(self, entry: Entry, wanted: Change, before: Change) -> None:
        """All of it or, as far as the kernel lets us, nothing."""
        try:
            self._update(entry, wanted)
        except (SkepError, OSError) as error:
            with suppress(SkepError, OSError):
                self._update(entry, before)
            reason = error.text.removeprefix("OCI runtime create failed: ") if isinstance(error, SkepError) else str(error.strerror)
            # what the kernel does not take is the request's fault; the runtimes quote it, each in its own letters
            refused = any(os.strerror(number).lower() in reason.lower() for number in (errno.EINVAL, errno.ERANGE))
            kind = Invalid if refused else SkepError
            raise kind(f"Cannot update container {entry.id}: {reason}") from None

    def _update(self, entry: Entry, change: Change) -> None:
        """What is to be unlimited is written by us: crun 1.8 writes numbers that the kernel refuses."""
        self._groups(entry).release(change.released)
        if not change.resources:
            return
        file = self._folders.bundle(entry.id) / "update.json"
        file.write_bytes(msgspec.json.encode(change.resources))
        try:
            conmon.run(self._places, "update", "--resources", str(file), entry.id)
        finally:
            file.unlink(missing_ok=True)


def in_use(name: str, holder: str) -> Conflict:
    return Conflict(
        f'Conflict. The container name "/{name}" is already in use by container "{holder}". '
        "You have to remove (or rename) that container to be able to reuse that name."
    )


def _ends(config: ContainerConfig, number: int) -> bool:
    """Docker: SIGKILL always; any signal where the image names no stop signal of its own; else only that one."""
    if number == signals.SIGKILL or config.stop_signal in ("", "SIGTERM"):
        return True
    return number == signal_number(config.stop_signal)
