"""The volumes of this node: named folders that outlive the containers which write to them. Driver `local`, with Docker's options.

    <root>/NAME/_data          what containers see, for a volume without options
    <root>/NAME/volume.json    labels, options, when it was made
    <mounts>/NAME              where a volume with options (type, device, o) is mounted while a container uses it
    <mounts>/.sub/NAME/PATH    a part of a volume, pinned: nobody who writes to the volume can make it lead elsewhere afterwards

Who uses a volume is asked of the containers each time, never kept: there is nothing to go wrong. A folder is made and removed under a name
with a dot and renamed, so a volume is there as a whole or not at all. See docs/images.md.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

import msgspec

from skep.clock import Clock
from skep.engine import trees
from skep.engine.base import Container, Mount
from skep.errors import Conflict, Invalid, NotFound, SkepError
from skep.ids import Random, new_hex
from skep.node import mounting

T = TypeVar("T")
ANONYMOUS = "com.docker.volume.anonymous"
"""Label of a volume that nobody named, as in Docker: prune takes these only, unless told otherwise."""
OPTIONS = ("type", "device", "o", "size")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+", re.ASCII)
_LONGEST = 255


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    driver: str = "local"
    labels: dict[str, str] = {}
    options: dict[str, str] = {}
    """type, device, o: as mount(8) takes them. Empty: a plain folder."""
    created_at: int = 0

    @property
    def anonymous(self) -> bool:
        return ANONYMOUS in self.labels

    @property
    def mounted(self) -> bool:
        """Is a mount while it is used, not a plain folder."""
        return bool(self.options)


class Volumes:
    """`containers`: all of this node (`Engine.all`), to know who uses what; may be set later. `mounts`: a folder whose mounts the runtime
    sees (below the run root); without it `root/.mounts`.
    """

    def __init__(
        self,
        root: Path,
        clock: Clock,
        rng: Random,
        *,
        containers: Callable[[], Collection[Container]] = lambda: (),
        mounts: Path | None = None,
    ) -> None:
        self._root = root
        self._mounts = mounts or root / ".mounts"
        self._clock = clock
        self._rng = rng
        self._volumes: dict[str, Volume] = {}
        self._held: Counter[str] = Counter()
        self._lock = asyncio.Lock()
        self._mounting: dict[str, asyncio.Lock] = {}
        self._waiting = ThreadPoolExecutor(64, "skep-mount")
        """A mount may take minutes to fail: not in the threads that everybody shares."""
        self.containers = containers
        self.warnings: list[str] = []
        """What was found unusable at the start, a line each."""
        self._load()

    def _load(self) -> None:
        if not self._root.is_dir():
            return
        for entry in sorted(self._root.iterdir()):
            if entry.name.startswith("."):
                if entry.name != ".mounts":
                    with suppress(OSError):
                        trees.remove(entry)
            elif (entry / "_data").is_dir() and _NAME.fullmatch(entry.name):
                self._volumes[entry.name] = self._read(entry)

    def _read(self, folder: Path) -> Volume:
        try:
            return msgspec.structs.replace(msgspec.json.decode((folder / "volume.json").read_bytes(), type=Volume), name=folder.name)
        except FileNotFoundError:
            pass
        except (OSError, msgspec.MsgspecError) as error:
            self.warnings.append(f"volume {folder.name}: its labels and options are lost: {error}")
        return Volume(name=folder.name, created_at=folder.stat().st_mtime_ns)

    # reading

    def get(self, name: str) -> Volume:
        """Raises NotFound."""
        found = self._volumes.get(name)
        if found is None:
            raise NotFound(f"get {name}: no such volume")
        return found

    def has(self, name: str) -> bool:
        return name in self._volumes

    def all(self) -> list[Volume]:
        return [self._volumes[name] for name in sorted(self._volumes)]

    def mountpoint(self, volume: Volume) -> str:
        """The host path of its data; for a volume with options a mount is there only between `ready` and `release`."""
        return str(self._mounts / volume.name if volume.mounted else self._root / volume.name / "_data")

    def subpath(self, volume: Volume, path: str) -> str:
        """The host path that stands for a part of it (`volume-subpath`), from `ready` on. Raises Invalid in Docker's words."""
        if path.startswith("/"):
            raise Invalid(f"subpath must be a relative path within the volume: {path}")
        clean = os.path.normpath(path)
        if clean == ".." or clean.startswith("../"):
            raise Invalid(f"subpath must be a relative path within the volume: {path}")
        if clean == ".":
            return self.mountpoint(volume)
        quoted = quote(clean, safe="")
        if len(quoted) > _LONGEST:
            raise Invalid(f"the subpath of volume {volume.name} is too long: {path}")
        return str(self._mounts / ".sub" / volume.name / quoted)

    def users(self, name: str) -> list[str]:
        """Ids of the containers that have it mounted, running or not."""
        return [c.config.id for c in self.containers() if any(mount.volume == name for mount in c.config.mounts)]

    async def usage(self, names: Iterable[str] | None = None) -> dict[str, int]:
        """Bytes of the files of each; none of one with options that is not mounted."""
        wanted = [self._volumes[name] for name in (self._volumes if names is None else names) if name in self._volumes]
        return await _thread(lambda: {volume.name: trees.size(self.mountpoint(volume)) for volume in wanted})

    # making and removing

    async def create(
        self, name: str = "", *, driver: str = "", options: Mapping[str, str] | None = None, labels: Mapping[str, str] | None = None
    ) -> Volume:
        """The volume; one that is there is given as it is, unless other options are asked for. Without a name: an anonymous one.

        Raises Invalid, NotFound (driver) or Conflict in Docker's words.
        """
        marked = dict(labels or {})
        if not name:
            name, marked[ANONYMOUS] = new_hex(self._rng, 64), ""
        options = dict(options or {})
        _check(name, driver, options)
        async with self._lock:
            known = self._volumes.get(name)
            if known is not None:
                if options and options != known.options:
                    raise Conflict(f"create {name}: a volume of this name with other options exists: volume name must be unique")
                return known
            volume = Volume(name=name, labels=marked, options=options, created_at=self._clock.now())
            try:
                await _thread(self._make, volume)
            except OSError as error:
                raise SkepError(f"create {name}: {error.strerror}: {self._root / name}") from None
            return volume

    def _make(self, volume: Volume) -> None:
        making = self._root / f".{volume.name[:200]}.new"
        trees.remove(making)
        self._root.mkdir(mode=0o711, parents=True, exist_ok=True)
        try:
            making.mkdir(mode=0o701)
            (making / "_data").mkdir()
            (making / "_data").chmod(0o755)
            with open(making / "volume.json", "wb") as file:
                file.write(msgspec.json.encode(volume))
                if not volume.anonymous:
                    # labels and options must outlive a power cut; nobody asks for those of an anonymous volume
                    file.flush()
                    os.fsync(file.fileno())
            making.rename(self._root / volume.name)
            self._volumes[volume.name] = volume
        except BaseException:
            with suppress(OSError):
                trees.remove(making)
            raise

    async def remove(self, name: str, *, force: bool = False) -> bool:
        """Was it there? Raises NotFound (not with `force`), or Conflict while a container has it, running or not."""
        async with self._lock:
            if name not in self._volumes:
                if force:
                    return False
                raise NotFound(f"get {name}: no such volume")
            if users := self.users(name):
                raise Conflict(f"remove {name}: volume is in use - [{', '.join(users)}]")
            if self._held[name]:
                raise Conflict(f"remove {name}: volume is in use - []")
            await self._remove(name)
            return True

    async def prune(self, *, all: bool = False, wanted: Callable[[Volume], bool] = lambda volume: True) -> tuple[list[str], int]:
        """Remove what no container has: the anonymous ones, or `all`. Returns (names, bytes)."""

        def unused() -> list[str]:
            used = {mount.volume for container in self.containers() for mount in container.config.mounts}
            return [v.name for v in self.all() if v.name not in used and not self._held[v.name] and (all or v.anonymous) and wanted(v)]

        # measured while others go on: that may take long
        sizes = await self.usage(unused())
        async with self._lock:
            gone = [name for name in unused() if name in sizes]
            mounted = {name for name in gone if self._volumes[name].mounted}
            for name in gone:
                await self._remove(name)
            return gone, sum(sizes[name] for name in gone if name not in mounted)

    async def _remove(self, name: str) -> None:
        """Nobody holds it; from now on nobody finds it either, unless it cannot be removed."""
        volume = self._volumes.pop(name)
        gone = self._root / f".{name[:200]}.gone"
        try:
            async with self._using(name):
                for path in self._pins(name):
                    await _thread(mounting.unmount, path)
                if volume.mounted:
                    await _thread(mounting.unmount, Path(self.mountpoint(volume)))
                await _thread(_erase, self._root / name, gone)
        except BaseException as error:
            if (self._root / name).is_dir():
                self._volumes[name] = volume
            if isinstance(error, OSError):
                raise SkepError(f"remove {name}: {error.strerror}") from None
            raise

    # use

    @contextmanager
    def hold(self, *names: str) -> Iterator[None]:
        """While it lasts these are neither removed nor unmounted: until a container that has them exists, or runs."""
        self._held.update(names)
        try:
            yield
        finally:
            self._held.subtract(names)
            self._held = +self._held

    async def ready(self, mounts: Iterable[Mount]) -> None:
        """Make the sources of these exist: mount volumes with options, pin parts. Before a container is made, and before each start; hold
        them (`hold`) until it is done. Raises SkepError in Docker's words.
        """
        wanted = [mount for mount in mounts if mount.volume]
        if not any(self._needs_work(mount) for mount in wanted):
            for mount in wanted:
                self.get(mount.volume)
            return
        for mount in wanted:
            async with self._using(mount.volume):
                volume = self.get(mount.volume)
                if volume.mounted:
                    await self._mount(volume)
                if self._is_pin(mount.source):
                    await self._pin(volume, Path(mount.source))

    def _needs_work(self, mount: Mount) -> bool:
        return self._is_pin(mount.source) or self.get(mount.volume).mounted

    def _is_pin(self, source: str) -> bool:
        return source.startswith(f"{self._mounts / '.sub'}/")

    async def release(self, mounts: Iterable[Mount]) -> None:
        """After a container has ended: unmount what no other one that may still run has. Fine if there is nothing to do."""
        wanted = [mount for mount in mounts if mount.volume and mount.volume in self._volumes and self._needs_work(mount)]
        if not wanted:
            return
        for mount in wanted:
            async with self._using(mount.volume):
                alive = [mount for c in self.containers() if c.exit is None for mount in c.config.mounts]
                if self._held[mount.volume]:
                    continue
                if self._is_pin(mount.source) and not any(other.source == mount.source for other in alive):
                    await _thread(mounting.unmount, Path(mount.source))
                volume = self._volumes.get(mount.volume)
                if volume is not None and volume.mounted and not any(other.volume == volume.name for other in alive):
                    await _thread(mounting.unmount, Path(self.mountpoint(volume)))

    @asynccontextmanager
    async def _using(self, name: str) -> AsyncIterator[None]:
        """One at a time mounts or unmounts a volume. A server that does not answer holds up its own volume only."""
        lock = self._mounting.setdefault(name, asyncio.Lock())
        try:
            async with lock:
                yield
        finally:
            if name not in self._volumes and not lock.locked():
                self._mounting.pop(name, None)

    async def _mount(self, volume: Volume) -> None:
        target = Path(self.mountpoint(volume))
        if mounting.is_mount_point(target):
            return
        kind, device, o = (volume.options.get(option, "") for option in ("type", "device", "o"))
        if failed := await _thread(mounting.mount, kind, device, o, target, pool=self._waiting):
            raise SkepError(f"error while mounting volume '{target}': failed to mount local volume: mount {device}:{target}: {failed}")

    def _pins(self, name: str) -> list[Path]:
        folder = self._mounts / ".sub" / name
        return list(folder.iterdir()) if folder.is_dir() else []

    async def _pin(self, volume: Volume, target: Path) -> None:
        if mounting.is_mount_point(target):
            if any(mount.source == str(target) for c in self.containers() if c.running for mount in c.config.mounts):
                return
            await _thread(mounting.unmount, target)
        root, path = self.mountpoint(volume), unquote(target.name)
        try:
            failed = await _thread(mounting.pin, root, path, target)
        except FileNotFoundError:
            raise NotFound(f"cannot access path {root}/{path}: no such file or directory") from None
        except OSError as error:
            failed = error.strerror or str(error)
        if failed:
            raise SkepError(f"cannot access path {root}/{path}: {failed}")


def _erase(folder: Path, gone: Path) -> None:
    """It is gone once it has another name; what cannot be removed then is tried again at the next start."""
    with suppress(OSError):
        trees.remove(gone)
    with suppress(FileNotFoundError):
        folder.rename(gone)
    with suppress(OSError):
        trees.remove(gone)


async def _thread(work: Callable[..., T], *args: Any, pool: Executor | None = None) -> T:
    """In a worker thread; when cancelled, not before that is done: what it changes is behind the caller's lock."""
    running = asyncio.get_running_loop().run_in_executor(pool, work, *args)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


def _check(name: str, driver: str, options: Mapping[str, str]) -> None:
    if driver not in ("", "local"):
        raise NotFound(f'create {name}: error looking up volume plugin {driver}: plugin "{driver}" not found')
    if len(name) == 1:
        raise Invalid(f"create {name}: volume name is too short, names should be at least two alphanumeric characters")
    if not _NAME.fullmatch(name):
        raise Invalid(
            f'create {name}: "{name}" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. '
            "If you intended to pass a host directory, use absolute path"
        )
    if len(name) > _LONGEST:
        raise Invalid(f"create {name}: volume name is longer than {_LONGEST} characters")
    for option in options:
        if option not in OPTIONS:
            raise Invalid(f'create {name}: invalid option: "{option}"')
    if "size" in options:
        raise Invalid(f"create {name}: quota size requested but no quota support")
    for option, needed in (("device", ("type",)), ("type", ("device",)), ("o", ("device", "type"))):
        for missing in needed:
            if option in options and missing not in options:
                raise Invalid(f'create {name}: missing required option: "{missing}"')
