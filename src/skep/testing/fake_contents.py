"""What the engines without containers share beyond a container's life: pause, amend, stats, and files in memory.

`files[id]` is a container's file system: absolute path -> content; a path ending in `/` is a directory.
"""

from __future__ import annotations

import io
import posixpath
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec

from skep.clock import Clock
from skep.engine.base import Container, Limits, PathStat, Stats
from skep.errors import Conflict, Invalid, NotFound, SkepError

GO_DIRECTORY = 1 << 31


class FakeContents:
    """Mixed into an engine that has `get`, `all`, `_change` and `_emit`."""

    _clock: Clock
    disk_full = False

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.usage: dict[str, Stats] = {}
        """What `stats` answers, by container id."""
        self.differences: dict[str, list[tuple[int, str]]] = {}

    def get(self, reference: str) -> Container | None:
        raise NotImplementedError

    def _change(self, id: str, **fields: Any) -> Container:
        raise NotImplementedError

    def _emit(self, action: str, id: str) -> None:
        raise NotImplementedError

    def _known(self, reference: str) -> Container:
        found = self.get(reference)
        if found is None:
            raise NotFound(f"No such container: {reference}")
        return found

    async def pause(self, id: str) -> None:
        container = self._known(id)
        if not container.running:
            raise Conflict(f"container {container.config.id} is not running")
        if container.paused:
            raise Conflict(f"Container {container.config.id} is already paused")
        self._change(container.config.id, paused=True)
        self._emit("pause", container.config.id)

    async def unpause(self, id: str) -> None:
        container = self._known(id)
        if not container.paused:
            raise SkepError(f"Container {container.config.id} is not paused")
        self._change(container.config.id, paused=False)
        self._emit("unpause", container.config.id)

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
        container = self._known(id)
        if lasting and self.disk_full:
            raise SkepError("No space left on device")
        config = container.config
        if name is not None and name != config.name:
            holder = self.get(name)
            if holder is not None and holder.config.name == name:
                raise Conflict(
                    f'Conflict. The container name "/{name}" is already in use by container "{holder.config.id}". '
                    "You have to remove (or rename) that container to be able to reuse that name."
                )
            config = msgspec.structs.replace(config, name=name)
        given: dict[str, Any] = {
            "extra": None if extra is None else dict(extra),
            "limits": limits,
            "resolv_conf": resolv_conf,
            "netns": netns,
        }
        given["hosts"] = None if hosts is None else tuple(hosts)
        config = msgspec.structs.replace(config, **{field: value for field, value in given.items() if value is not None})
        self._change(config.id, config=config)

    async def stats(self, id: str) -> Stats:
        container = self._known(id)
        given = self.usage.get(container.config.id) if container.running else None
        return msgspec.structs.replace(given or Stats(at=0), at=self._clock.now())

    # files

    def _tree(self, id: str) -> dict[str, bytes]:
        return self.files.setdefault(self._known(id).config.id, {"/": b"", "/etc/": b"", "/etc/hostname": b"fake\n", "/tmp/": b""})

    def _find_path(self, id: str, path: str) -> tuple[str, bool]:
        tree = self._tree(id)
        plain = posixpath.normpath("/" + path.lstrip("/"))
        if plain == "/" or f"{plain}/" in tree:
            return plain, True
        if plain in tree and not path.endswith("/"):
            return plain, False
        raise NotFound(f"Could not find the file {path} in container {id}")

    async def stat_path(self, id: str, path: str) -> PathStat:
        plain, directory = self._find_path(id, path)
        mode = GO_DIRECTORY | 0o755 if directory else 0o644
        return PathStat(name=posixpath.basename(plain) or "/", size=0 if directory else len(self._tree(id)[plain]), mode=mode, mtime=0)

    async def read_archive(self, id: str, path: str) -> AsyncGenerator[bytes, None]:
        plain, directory = self._find_path(id, path)
        base = posixpath.basename(plain) or "/"
        below = plain.rstrip("/") + "/"
        members = {plain: (base, directory)}
        if directory:
            members |= {
                known: (posixpath.join(base, known.removeprefix(below)), known.endswith("/"))
                for known in sorted(self._tree(id))
                if known.startswith(below) and known != below
            }
        yield _archive([(name, is_directory, self._tree(id).get(known, b"")) for known, (name, is_directory) in members.items()])

    async def write_archive(
        self, id: str, path: str, data: AsyncIterator[bytes], *, keep_type: bool = False, copy_owner: bool = False
    ) -> None:
        plain, directory = self._find_path(id, path)
        if not directory:
            raise Invalid("extraction point is not a directory")
        whole = b"".join([chunk async for chunk in data])
        tree = self._tree(id)
        try:
            archive = tarfile.open(fileobj=io.BytesIO(whole))  # noqa: SIM115
        except tarfile.TarError as error:
            raise Invalid(f"Error processing tar file: {error}".splitlines()[0]) from None
        with archive:
            for member in archive:
                target = posixpath.normpath(posixpath.join(plain, member.name))
                if member.isdir():
                    if keep_type and target in tree:
                        raise Invalid("cannot overwrite non-directory with directory")
                    tree[target + "/"] = b""
                elif member.isfile():
                    if keep_type and f"{target}/" in tree:
                        raise Invalid("cannot overwrite directory with non-directory")
                    content = archive.extractfile(member)
                    tree[target] = content.read() if content is not None else b""

    async def export(self, id: str) -> AsyncGenerator[bytes, None]:
        tree = self._tree(id)
        yield _archive([(name.strip("/"), name.endswith("/"), data) for name, data in sorted(tree.items()) if name != "/"])

    async def changes(self, id: str) -> list[tuple[int, str]]:
        return self.differences.get(self._known(id).config.id, [])

    async def size(self, id: str) -> tuple[int, int]:
        written = sum(len(data) for data in self._tree(id).values())
        return written, written


def _archive(members: list[tuple[str, bool, bytes]]) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for name, directory, data in members:
            header = tarfile.TarInfo(name)
            header.type, header.mode, header.size = (tarfile.DIRTYPE, 0o755, 0) if directory else (tarfile.REGTYPE, 0o644, len(data))
            archive.addfile(header, io.BytesIO(data))
    return whole.getvalue()
