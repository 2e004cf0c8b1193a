"""A container's files and figures: `docker cp`, `export`, `diff`, `ps --size` and `stats`.

A container that does not run has its root file system mounted as long as somebody looks at it. See view.py for what is seen.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import socket
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from typing import TypeVar

from skep.engine import trees
from skep.engine.base import Mount, PathStat, Stats
from skep.engine.oci import archive, bundle, changes, usage
from skep.engine.oci.core import Core
from skep.engine.oci.entry import Entry
from skep.engine.oci.view import View, open_view
from skep.engine.threads import settled
from skep.errors import Conflict, NotFound, SkepError

T = TypeVar("T")


class Contents(Core):
    async def stats(self, id: str) -> Stats:
        entry = self._entry(id)
        at = self._clock.now()
        if not entry.running:
            return Stats(at=at)
        pid = 0 if entry.stored.config.host_network else entry.stored.pid
        return await self._outside(partial(usage.measure, self._groups(entry), self._host.cgroup2, pid, at))

    async def changes(self, id: str) -> list[tuple[int, str]]:
        entry = self._entry(id)
        upper = str(self._folders.container(entry.id) / "upper")
        try:
            return await self._outside(partial(changes.changes, upper, entry.stored.layers))
        except FileNotFoundError:
            self._entry(id)  # removed meanwhile
            raise Conflict(f"the files of container {entry.id} change while they are looked at: try again") from None

    async def size(self, id: str) -> tuple[int, int]:
        entry = self._entry(id)
        image = self._images.get(entry.stored.config.image)
        own = await self._outside(partial(trees.size, self._folders.container(entry.id) / "upper"))
        return own, own + (image.size if image is not None else 0)

    async def stat_path(self, id: str, path: str) -> PathStat:
        entry = self._entry(id)
        async with self._view(entry) as view:
            return await self._inside(partial(view.stat, clean(path)))

    async def read_archive(self, id: str, path: str) -> AsyncGenerator[bytes, None]:
        entry = self._entry(id)
        async with self._view(entry) as view:
            folder, arguments = await self._inside(partial(archive.source, view, clean(path)), lambda found: os.close(found[0]))
            async with aclosing(self._tar(folder, arguments)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def export(self, id: str) -> AsyncGenerator[bytes, None]:
        entry = self._entry(id)
        async with self._view(entry, volumes=False) as view:

            def everything() -> tuple[int, list[str]]:
                names = sorted(os.listdir(f"/proc/self/fd/{view.root}"))
                return view.open("/", os.O_RDONLY | os.O_DIRECTORY), [f"--add-file={name}" for name in names] or ["--files-from=/dev/null"]

            folder, arguments = await self._inside(everything, lambda found: os.close(found[0]))
            async with aclosing(self._tar(folder, arguments)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def _tar(self, folder: int, arguments: list[str]) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(archive.stream(folder, arguments)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            os.close(folder)

    async def write_archive(
        self, id: str, path: str, data: AsyncIterator[bytes], *, keep_type: bool = False, copy_owner: bool = False
    ) -> None:
        entry = self._entry(id)
        config = entry.stored.config
        async with self._view(entry) as view:

            def prepare() -> archive.Unpacking:
                owner = None
                if copy_owner and config.user:
                    identity = bundle.identify(str(self._folders.rootfs(entry.id)), config.user, config.groups)
                    owner = identity.uid, identity.gid
                return archive.Unpacking(view, clean(path), keep_type=keep_type, owner=owner, stopped=lambda: entry.going)

            await self._pour(data, await self._inside(prepare))

    async def _pour(self, data: AsyncIterator[bytes], unpacking: archive.Unpacking) -> None:
        """The data through a socket to a thread of its own, which takes as long as the sender does. When the thread fails nobody reads
        any more; when we are cancelled it finds the end of its input. Either way it has ended when this returns."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        done: asyncio.Future[None] = self._loop.create_future()
        loop = self._loop

        def finish(error: BaseException | None) -> None:
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)
                done.exception()

        def work() -> None:
            error: BaseException | None = None
            try:
                with theirs, theirs.makefile("rb") as file:
                    unpacking.run(file)
            except BaseException as problem:
                error = problem
            loop.call_soon_threadsafe(finish, error)

        thread = threading.Thread(target=work, name="skep-unpack")
        thread.start()
        try:
            with suppress(BrokenPipeError, ConnectionResetError):
                async for chunk in data:
                    if done.done():
                        break
                    await loop.sock_sendall(ours, chunk)
        finally:
            ours.close()
            try:
                with suppress(Exception):  # told below, where nothing else comes first
                    await settled(done)
            finally:
                thread.join()
        done.result()

    # the view

    async def _outside(self, work: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._operations.outside, work)

    async def _inside(self, work: Callable[[], T], close: Callable[[T], None] = lambda _: None) -> T:
        """What uses or opens descriptors. A thread cannot be cancelled: this does not return before it has ended, so nothing is closed
        under its hands, and what it has opened for somebody who does not wait any more is closed."""
        opening = self._loop.run_in_executor(self._operations.outside, work)
        try:
            return await settled(opening)
        except asyncio.CancelledError:
            if opening.exception() is None:
                close(opening.result())
            raise

    @asynccontextmanager
    async def _view(self, entry: Entry, *, volumes: bool = True) -> AsyncIterator[View]:
        entry.viewers += 1
        try:
            await self._operations.settle(entry)
            if self._entries.get(entry.id) is not entry:
                raise NotFound(f"No such container: {entry.id}")
            if not entry.running and not entry.ready:
                mount = partial(bundle.mount_root, self._folders, entry.stored)
                await self._operations.run(entry, self._operations.outside, mount)
            config = entry.stored.config
            mounts = (*self._etc(entry), *config.mounts) if volumes else ()
            rootfs = str(self._folders.rootfs(entry.id))
            try:
                view = await self._inside(partial(open_view, entry.id, rootfs, mounts, config.read_only and volumes), View.close)
            except OSError as error:
                await self._operations.settle(entry)
                self._entry(entry.id)  # removed meanwhile
                raise SkepError(f"cannot look into container {entry.id}: {error.strerror}") from None
            try:
                yield view
            except (SkepError, OSError):
                await self._operations.settle(entry)
                self._entry(entry.id)  # a file, or the place for one, is gone because all of it goes
                raise
            finally:
                view.close()
        finally:
            entry.viewers -= 1
            self._leave(entry)

    def _etc(self, entry: Entry) -> list[Mount]:
        """The files of /etc that are ours: a mount of the user at the same place comes later and wins."""
        folder = self._folders.bundle(entry.id)
        return [Mount(target=f"/etc/{name}", source=str(folder / name)) for name in ("hosts", "hostname", "resolv.conf")]

    def _leave(self, entry: Entry) -> None:
        """The last who looked at a container that does not run takes its root file system down again."""
        if entry.viewers or entry.running or entry.ready or self._operations.stopping or entry.id not in self._entries:
            return
        if entry.busy is not None:
            entry.next.append(lambda: self._leave(entry))
            return
        self._operations.begin(entry, self._operations.outside, partial(bundle.unmount, self._folders, entry.id))


def clean(path: str) -> str:
    """Absolute, `..` taken away as Docker does it, a `/` or `/.` at the end kept: they mean what a link leads to."""
    whole = posixpath.normpath("/" + path.lstrip("/"))
    if path.endswith("/.") or path in (".", ""):
        return whole.rstrip("/") + "/."
    return whole + "/" if path.endswith("/") and whole != "/" else whole
