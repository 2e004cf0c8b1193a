"""A container's places on disk, made and removed. Everything here blocks and runs in worker threads.

    DATA/containers/ID/   state  upper/  work/  log  log.1 ...
    RUN/c/ID/             the bundle: config.json  hosts  hostname  resolv.conf  rootfs/ (the overlay)  pid  conmon.pid  attach  ctl
    RUN/exits/ID          the exit code, written by conmon
    RUN/state/            the OCI runtime's own

RUN is on a tmpfs: making a file or directory there costs 10 us, on a disk's file system up to 0.4 ms of CPU, which is why so little is in
DATA. What is in RUN can be made again from the record. `state` is written last when a container is made and goes first when it is removed:
a folder without it is what a crash has left.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from skep.engine.base import ContainerConfig, Exit
from skep.engine.oci import bpf, kernel, mounting, seccomp, spec, users
from skep.engine.oci.devices import devices_of
from skep.engine.oci.folders import Folders, remove_tree
from skep.engine.oci.runtime import PROFILE, Runtime, cgroup2
from skep.errors import Invalid, SkepError

_MOUNT_DATA_LIMIT = 4000
"""The kernel takes mount options of one page."""
_RECORD_LIMIT = 256 << 10
_NEW = "state.new"


class Stored(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What outlives us of a container. Ticks name a process together with its pid (kernel.start_ticks); `boot` says in which boot."""

    config: ContainerConfig
    created_at: int
    started_at: int = 0
    pid: int = 0
    pid_ticks: int = 0
    conmon_pid: int = 0
    conmon_ticks: int = 0
    boot: str = ""
    exit: Exit | None = None
    runtime: str = ""
    layers: tuple[str, ...] = ()


class Filters:
    """Seccomp filters, made once for each (profile, capabilities): compiled where the runtime takes them so."""

    def __init__(self, runtime: Runtime) -> None:
        self._compiled = runtime.compiled
        self._default = seccomp.tightened(json.loads(PROFILE.read_bytes()))
        self._lock = threading.Lock()
        self._known: dict[tuple[str, tuple[str, ...]], tuple[dict[str, Any] | None, dict[str, str]]] = {}

    def of(self, config: ContainerConfig, capabilities: tuple[str, ...]) -> tuple[dict[str, Any] | None, dict[str, str]]:
        """(`linux.seccomp`, annotations): the one or the other."""
        if config.privileged or config.seccomp == "unconfined":
            return None, {}
        key = (config.seccomp, capabilities)
        with self._lock:
            if key not in self._known:
                if len(self._known) > 64:
                    self._known.clear()
                self._known[key] = self._make(config.seccomp, capabilities)
            return self._known[key]

    def _make(self, text: str, capabilities: tuple[str, ...]) -> tuple[dict[str, Any] | None, dict[str, str]]:
        profile = self._default
        if text != "default":
            try:
                profile = json.loads(text)
            except ValueError as error:
                raise Invalid(f"Decoding seccomp profile failed: {error}") from None
        uname = platform.uname()
        oci = seccomp.oci_profile(profile, capabilities, uname.machine, uname.release)
        if self._compiled:
            try:
                return None, {"run.oci.seccomp_bpf_data": bpf.annotation(bpf.compile_filter(oci))}
            except bpf.Unsupported:
                pass
        return oci, {}


# the record


class Change(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A later line of the record: what a start or an end has changed."""

    started_at: int
    pid: int = 0
    pid_ticks: int = 0
    conmon_pid: int = 0
    conmon_ticks: int = 0
    boot: str = ""
    exit: Exit | None = None
    runtime: str = ""


class Amendment(msgspec.Struct, frozen=True, kw_only=True):
    """A later line of the record: the configuration, changed."""

    config: ContainerConfig


Line = TypeVar("Line", Change, Amendment)


def save(folders: Folders, stored: Stored) -> None:
    """The record of a new container."""
    fd = os.open(folders.record(stored.config.id), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        _write_whole(fd, msgspec.json.encode(stored) + b"\n")
    finally:
        os.close(fd)


def _write_whole(fd: int, data: bytes) -> None:
    """Raises OSError where a full disk takes a part only, which the kernel does not call an error."""
    while data:
        data = data[os.write(fd, data) :]


def append(folders: Folders, stored: Stored) -> None:
    """One more line: cheaper than a new file, and a line cut short by a crash takes nothing of those before it."""
    _append(folders.record(stored.config.id), Change(**{name: getattr(stored, name) for name in Change.__struct_fields__}))


def _append(file: Path, line: msgspec.Struct) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        _write_whole(fd, b"\n" + msgspec.json.encode(line) + b"\n")
    finally:
        os.close(fd)


def amend(folders: Folders, stored: Stored) -> None:
    """A line with the configuration as it is now. A record that has grown long is written anew."""
    file = folders.record(stored.config.id)
    if file.stat().st_size < _RECORD_LIMIT:
        _append(file, Amendment(config=stored.config))
        return
    temporary = file.with_name(_NEW)
    try:
        temporary.touch(mode=0o600)
        temporary.write_bytes(msgspec.json.encode(stored) + b"\n")
        temporary.rename(file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def forget_unfinished(folders: Folders, id: str) -> None:
    """What a kill amid `amend` has left."""
    folders.record(id).with_name(_NEW).unlink(missing_ok=True)


def load(folders: Folders, id: str) -> Stored | None:
    """None: unfinished or unreadable."""
    try:
        first, *later = folders.record(id).read_bytes().split(b"\n")
        stored = msgspec.json.decode(first, type=Stored)
    except (OSError, msgspec.MsgspecError):
        return None
    change = _last(later, Change)
    if change is not None:
        stored = msgspec.structs.replace(stored, **msgspec.structs.asdict(change))
    amendment = _last(later, Amendment)
    return stored if amendment is None else msgspec.structs.replace(stored, config=amendment.config)


def _last(lines: list[bytes], kind: type[Line]) -> Line | None:
    for line in reversed(lines):
        try:
            return msgspec.json.decode(line, type=kind)
        except msgspec.MsgspecError:
            continue
    return None


# making


class Making(msgspec.Struct, frozen=True, kw_only=True):
    """What the bundles of all containers are made with."""

    folders: Folders
    host: spec.Host
    filters: Filters
    cgroup_parent: str
    apart: bool
    """The runtime runs in a mount namespace of its own."""


OWN_FILES = ("/.dockerenv", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
"""Empty files that Docker puts into every container where the image has none: many a program takes the first as the sign that it runs
in a container, over the others ours are mounted."""


def make(making: Making, stored: Stored) -> None:
    """Root file system, bundle, first contents of new volumes, and record."""
    config = stored.config
    folder = making.folders.container(config.id)
    mounting.check_propagation(config.mounts, making.apart)
    for path, mode in ((folder, 0o711), (folder / "upper", 0o755), (folder / "work", 0o755)):
        path.mkdir(mode=mode, exist_ok=True)
    make_bundle(making, stored)
    for name in OWN_FILES:
        with suppress(OSError, SkepError):  # a link of the image that leads nowhere stays as it is
            kernel.make_file_in_root(str(making.folders.rootfs(config.id)), name, 0o755)
    mounting.fill_volumes(config, str(making.folders.rootfs(config.id)))
    save(making.folders, stored)


def mount_root(folders: Folders, stored: Stored) -> str:
    """The container's root file system, mounted. Idempotent."""
    id = stored.config.id
    rootfs = folders.rootfs(id)
    for path in (folders.bundle(id), rootfs):
        path.mkdir(mode=0o700, exist_ok=True)
    if not os.path.ismount(rootfs):
        mount_overlay(folders, stored.layers, folders.container(id), str(rootfs))
    return str(rootfs)


def make_bundle(making: Making, stored: Stored, joined: spec.Joined = spec.Joined()) -> None:
    """Mount the root file system, write the files of /etc and config.json."""
    config, folders, host = stored.config, making.folders, making.host
    bundle = folders.bundle(config.id)
    rootfs = mount_root(folders, stored)
    write_etc(folders, config)
    if config.cwd not in ("", "/"):
        kernel.make_directory_in_root(rootfs, config.cwd)
    shm = "/dev/shm" if config.ipc_mode == "host" else joined.shm
    if config.ipc_mode == "shareable":
        shm = str(bundle / "shm")
        mounting.mount_shm(shm, config.shm_size)
    config = msgspec.structs.replace(config, mounts=mounting.reachable(config.mounts, str(bundle / "m"), making.apart))
    identity = identify(rootfs, config.user, config.groups)
    paths = spec.Paths(
        rootfs=rootfs,
        hosts=str(bundle / "hosts"),
        hostname=str(bundle / "hostname"),
        resolv_conf=str(bundle / "resolv.conf"),
        cgroup=spec.cgroup_path(config, making.cgroup_parent),
        shm=shm,
    )
    oci, annotations = making.filters.of(config, spec.capabilities(config, host))
    document = spec.oci_spec(config, identity, paths, host, seccomp=oci, annotations=annotations, devices=devices_of(config), joined=joined)
    (bundle / "config.json").write_bytes(msgspec.json.encode(document))


def unmount(folders: Folders, id: str) -> None:
    kernel.umount(str(folders.rootfs(id)))
    bundle = folders.bundle(id)
    kernel.umount(str(bundle / "shm"))
    if (bundle / "m").exists():
        for path in sorted((bundle / "m").iterdir()):
            kernel.take_down(str(path))


def write_etc(folders: Folders, config: ContainerConfig) -> None:
    """In place: a container that runs has these very files mounted."""
    bundle = folders.bundle(config.id)
    texts = {"hosts": spec.hosts_file(config), "hostname": spec.hostname(config) + "\n", "resolv.conf": config.resolv_conf}
    for name, text in texts.items():
        data = text.encode()
        fd = os.open(bundle / name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            _write_whole(fd, data)
            os.ftruncate(fd, len(data))
        finally:
            os.close(fd)


def identify(rootfs: str, user: str, groups: tuple[str, ...]) -> users.Identity:
    """The image's own files say who that is; they are read inside its root, so that a link in it cannot lead to the host's."""
    return users.identify(user, groups, kernel.read_in_root(rootfs, "etc/passwd"), kernel.read_in_root(rootfs, "etc/group"))


def mount_overlay(folders: Folders, layers: Sequence[str], folder: Path, rootfs: str) -> None:
    """Many layers make a string longer than a page: then each goes by a short link, relative to DATA, where our threads stand."""
    if not layers:
        raise Invalid("the image has no layers")
    lower = ":".join(layers)
    if len(lower) + 3 * len(str(folder)) > _MOUNT_DATA_LIMIT or any(character in path for path in layers for character in ":,\\"):
        lower = ":".join(_short(folders, path) for path in layers)
    data = f"lowerdir={lower},upperdir={folder}/upper,workdir={folder}/work"
    for _ in range(2):
        kernel.mount("overlay", rootfs, "overlay", 0, data)
        if not os.statvfs(rootfs).f_flag & os.ST_RDONLY:
            return
        # the kernel could not make its directory in workdir, as on a full disk: it mounts read-only then, and says why in its log alone
        kernel.umount(rootfs)
        (folder / "work" / "work").mkdir(exist_ok=True)  # raises the reason, if it still holds
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), rootfs)


def _short(folders: Folders, path: str) -> str:
    """`l/NAME`, a link to the layer: relative to the data root."""
    links = folders.data / "l"
    links.mkdir(mode=0o711, exist_ok=True)
    name = f"{hash_of(path):012x}"
    link = links / name
    if not link.is_symlink():
        temporary = links / f"{name}.{threading.get_ident()}"
        temporary.symlink_to(path)
        temporary.rename(link)
    return f"l/{name}"


def hash_of(text: str) -> int:
    """48 bits, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big")


# removing


def remove(folders: Folders, id: str) -> None:
    """Everything on disk; what runs is not looked at. Idempotent."""
    folder = folders.container(id)
    folders.record(id).unlink(missing_ok=True)
    unmount(folders, id)
    for path in (folder, folders.bundle(id)):
        remove_tree(path)
    (folders.exits / id).unlink(missing_ok=True)


def remove_cgroups(path: str, root: str = "/sys/fs/cgroup") -> bool:
    """The directory and all below it, in every hierarchy; processes in them are left alone, and so are their directories: False then."""
    gone = True
    tops = [root] if cgroup2(root) else [f"{root}/{name}" for name in os.listdir(root) if os.path.isdir(f"{root}/{name}")]
    for top in tops:
        for folder, _, _ in os.walk(f"{top}/{path.strip('/')}", topdown=False):
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                pass
            except OSError:
                gone = False
    return gone
