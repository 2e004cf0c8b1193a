"""The contract between a node and what runs its containers: images, containers, logs, exec. Knows nothing of services or HTTP.

`skep.engine.oci` implements it with crun or runc under conmon; `skep.testing` with a fake for simulations. An engine keeps its containers
through its own restart: `start_up` finds what is there and takes it over without touching it. What streams is an async generator:
whoever may leave it before its end closes it (`contextlib.aclosing`), or what it holds is freed whenever the collector comes.
Over 400 lines: one contract, read whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import msgspec


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What an image says about how to run it (OCI image config, `config`)."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    labels: dict[str, str] = {}
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""
    healthcheck: dict[str, Any] | None = None
    """Docker's form: Test, Interval, ..."""
    on_build: tuple[str, ...] = ()
    shell: tuple[str, ...] = ()


class Image(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    """`sha256:` + digest of the config."""
    tags: tuple[str, ...] = ()
    """`registry:5000/a/b:tag`, in the familiar form (no docker.io/library/)."""
    digests: tuple[str, ...] = ()
    """`registry:5000/a/b@sha256:...`."""
    layers: tuple[str, ...] = ()
    """Diff ids, lowest first."""
    size: int = 0
    created: int = 0
    architecture: str = ""
    os: str = "linux"
    config: ImageConfig = ImageConfig()
    history: tuple[dict[str, Any], ...] = ()
    variant: str = ""
    author: str = ""
    comment: str = ""
    docker_version: str = ""
    layer_sizes: tuple[int, ...] = ()
    """Bytes of the files of each of `layers`; empty where nobody knows."""
    tagged_at: int = 0
    """When it was last pulled or given a name here."""
    directories: tuple[str, ...] = ()
    """Its layers unpacked on this host, topmost first."""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a pull's or push's progress (Docker's JSON stream without its framing)."""

    status: str
    id: str = ""
    current: int = 0
    total: int = 0


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """A mount with nothing left to resolve: sources exist on the host."""

    target: str
    source: str = ""
    """Host path; empty for tmpfs."""
    kind: str = "bind"
    """bind or tmpfs."""
    read_only: bool = False
    propagation: str = "rprivate"
    recursive: bool = True
    options: tuple[str, ...] = ()
    """More mount options (`size=1048576`, `mode=1777`)."""
    copy_up: bool = False
    """A volume that is still empty gets what the image has at `target` (contents, owner, mode) before the container is first started."""
    volume: str = ""
    """Name of the volume that `source` belongs to; empty: a plain bind or tmpfs. Only for those who ask."""


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A device of the host (or a directory of them) inside the container."""

    source: str
    target: str
    permissions: str = "rwm"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """0 = no limit."""

    nano_cpus: int = 0
    memory: int = 0
    memory_reservation: int = 0
    memory_swap: int = 0
    """Memory plus swap; 0 = twice the memory, -1 = unlimited."""
    memory_swappiness: int = -1
    """0 to 100; -1 = the host's."""
    oom_kill_disable: bool = False
    pids: int = 0
    cpu_shares: int = 0
    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_realtime_period: int = 0
    cpu_realtime_runtime: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    blkio_weight: int = 0
    """10 to 1000."""


class Ulimit(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    soft: int
    hard: int


class ContainerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A container with nothing left to decide. All paths are the host's, all values final (templates expanded)."""

    id: str
    """64 hex digits."""
    name: str
    image: str
    """Image id."""
    args: tuple[str, ...]
    """Entrypoint and command."""
    env: tuple[str, ...] = ()
    cwd: str = "/"
    user: str = ""
    """uid, name, uid:gid, name:group; resolved in the image's /etc/passwd and /etc/group by the engine."""
    groups: tuple[str, ...] = ()
    hostname: str = ""
    domainname: str = ""
    labels: dict[str, str] = {}
    mounts: tuple[Mount, ...] = ()
    capabilities_add: tuple[str, ...] = ()
    """`CAP_X` or `ALL`."""
    capabilities_drop: tuple[str, ...] = ()
    privileged: bool = False
    no_new_privileges: bool = False
    seccomp: str = "default"
    """default, unconfined, or a profile's JSON."""
    read_only: bool = False
    tty: bool = False
    stdin: bool = False
    """Keep stdin open for attach."""
    stdin_once: bool = False
    """The first attached client's end of input, or its going away, ends the process' input too (`docker run -i`)."""
    init: bool = False
    sysctls: dict[str, str] = {}
    ulimits: tuple[Ulimit, ...] = ()
    limits: Limits = Limits()
    oom_score_adj: int = 0
    shm_size: int = 64 << 20
    devices: tuple[Device, ...] = ()
    device_rules: tuple[str, ...] = ()
    """cgroup device rules: `c 1:3 rwm`."""
    pid_mode: str = ""
    """Empty: its own; `host`; `container:ID`."""
    ipc_mode: str = ""
    """Empty, `private` or `shareable`: its own; `none` (no /dev/shm); `host`; `container:ID`."""
    uts_mode: str = ""
    """Empty or `host`."""
    cgroupns_mode: str = ""
    """Empty: the host kind's default; `private` or `host`."""
    cgroup_parent: str = ""
    masked_paths: tuple[str, ...] | None = None
    """None: Docker's list."""
    readonly_paths: tuple[str, ...] | None = None
    netns: str = ""
    """Path of a prepared network namespace; empty: a new one with only loopback."""
    host_network: bool = False
    hosts: tuple[str, ...] = ()
    """Lines of /etc/hosts beyond the standard ones."""
    resolv_conf: str = ""
    """Content of /etc/resolv.conf."""
    stop_signal: str = "SIGTERM"
    log_max_size: int = 0
    """Bytes after which the log file is rotated; 0 = never."""
    log_max_files: int = 1
    log_driver: str = "json-file"
    """json-file and local keep logs that can be read; none keeps nothing."""
    extra: dict[str, Any] = {}
    """What the caller wants to find again after a restart (opaque to the engine, stored with the container)."""


UNSEEN = 255
"""The exit code that stands for one that nobody saw, as in Docker: not 0, which would be success."""


class Exit(msgspec.Struct, frozen=True, kw_only=True):
    code: int
    at: int
    known: bool = True
    """False: ended while nobody watched, or never started; `code` means nothing then and is UNSEEN if it ran."""
    oom: bool = False
    error: str = ""


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine knows of a container now."""

    config: ContainerConfig
    created_at: int
    started_at: int = 0
    pid: int = 0
    """Of its first process, in the engine's pid namespace; 0 unless running."""
    exit: Exit | None = None
    paused: bool = False

    @property
    def running(self) -> bool:
        return self.started_at > 0 and self.exit is None


class LogRecord(msgspec.Struct, frozen=True, kw_only=True):
    at: int
    stream: int
    """1 stdout, 2 stderr."""
    data: bytes
    """One line with its newline (a partial line ends without one)."""


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """What a container uses now; times in ns, sizes in bytes. `docker stats` computes its columns from two of them."""

    at: int
    cpu_total: int = 0
    cpu_user: int = 0
    cpu_kernel: int = 0
    per_cpu: tuple[int, ...] = ()
    system_cpu: int = 0
    """Of all processors, busy and idle, since boot."""
    online_cpus: int = 0
    throttled_periods: int = 0
    throttled_time: int = 0
    periods: int = 0
    memory: int = 0
    memory_max: int = 0
    memory_limit: int = 0
    memory_failures: int = 0
    memory_detail: dict[str, int] = {}
    """memory.stat."""
    pids: int = 0
    pids_limit: int = 0
    """0 = none."""
    read_bytes: int = 0
    written_bytes: int = 0
    block: tuple[tuple[int, int, str, int], ...] = ()
    """(major, minor, Read|Write|..., bytes)."""
    networks: dict[str, dict[str, int]] = {}
    """Interface -> rx_bytes, rx_packets, rx_errors, rx_dropped, tx_... as /proc/PID/net/dev has them; without lo."""


class PathStat(msgspec.Struct, frozen=True, kw_only=True):
    """Of a path in a container; `mode` is Go's os.FileMode number, as Docker's header has it."""

    name: str
    size: int
    mode: int
    mtime: int
    link_target: str = ""


class ExecConfig(msgspec.Struct, frozen=True, kw_only=True):
    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str = ""
    user: str = ""
    tty: bool = False
    stdin: bool = False
    privileged: bool = False
    rows: int = 0
    columns: int = 0


class Streams(Protocol):
    """A process' standard streams, while somebody is attached. Output never gets lost: it starts with the process."""

    def output(self) -> AsyncGenerator[tuple[int, bytes], None]:
        """(1 stdout | 2 stderr, bytes); ends when the process has ended and all was read."""
        ...

    async def write(self, data: bytes) -> None: ...

    async def close_stdin(self) -> None:
        """Half-close: end of file for the process, output goes on."""
        ...

    async def close(self) -> None:
        """Nobody is attached any more. A container goes on, and so does a process that exec began: its output is thrown away then."""
        ...


class Exec(Protocol):
    """A process started in a running container."""

    @property
    def pid(self) -> int: ...

    @property
    def streams(self) -> Streams: ...

    async def begun(self) -> str:
        """Empty as soon as the command runs; why it cannot be run, where it cannot."""
        ...

    async def wait(self) -> int:
        """Exit code (126 not executable, 127 not found; 128 + signal)."""
        ...

    async def resize(self, rows: int, columns: int) -> None: ...

    def kill(self) -> None:
        """SIGKILL. Fine if it has ended."""
        ...


class Images(Protocol):
    async def pull(
        self, reference: str, *, auth: str = "", platform: str = "", on_progress: Callable[[Progress], None] | None = None
    ) -> Image:
        """Fetch and unpack; two pulls of one layer are one. `auth`: X-Registry-Auth as it came.

        Raises NotFound (`manifest for X not found: manifest unknown: manifest unknown`), Unauthorized, or SkepError with the
        registry's reason.
        """
        ...

    async def login(self, server: str, auth: str) -> None:
        """Does this registry (`host[:port]`, or a URL; empty: Docker Hub) take these credentials (as X-Registry-Auth has them)?

        Raises Unauthorized where it does not, SkepError where it cannot be asked.
        """
        ...

    async def resolve(self, reference: str, *, auth: str = "") -> tuple[dict[str, Any], list[dict[str, str]]]:
        """Descriptor {mediaType, digest, size} and platforms [{architecture, os}] of what the registry has (`GET /distribution`)."""
        ...

    def get(self, reference: str) -> Image | None:
        """By id, id prefix, `name[:tag]`, `name@digest` or `name:tag@digest`; present on this node."""
        ...

    def all(self) -> Collection[Image]: ...

    async def remove(self, reference: str, *, force: bool = False) -> list[dict[str, str]]:
        """Docker's list of {Untagged}|{Deleted}; Conflict while a container uses it."""
        ...

    async def push(self, reference: str, *, auth: str = "", on_progress: Callable[[Progress], None] | None = None) -> dict[str, Any]:
        """Returns {Tag, Digest, Size}, as Docker's last line has it."""
        ...

    async def tag(self, source: str, reference: str) -> None: ...

    async def load(self, data: AsyncIterator[bytes]) -> list[str]:
        """From a `docker save` or OCI layout archive: the lines to show (`Loaded image: X`)."""
        ...

    def save(self, references: Sequence[str]) -> AsyncGenerator[bytes, None]:
        """A `docker save` archive (with index.json, readable as an OCI layout too)."""
        ...

    async def import_archive(
        self, data: AsyncIterator[bytes], *, reference: str = "", message: str = "", changes: Sequence[str] = ()
    ) -> str:
        """One layer from a tar of a root file system; its id. `changes`: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, USER, VOLUME, WORKDIR, ..."""
        ...

    async def usage(self) -> tuple[int, dict[str, int]]:
        """Bytes of all layers on disk, and by image id the bytes that no other image shares."""
        ...


class Engine(Protocol):
    @property
    def images(self) -> Images: ...

    def describe(self) -> Mapping[str, Any]:
        """What `info` shows: runtime chosen and why, its version, storage driver, cgroup driver and version, security options."""
        ...

    async def start_up(self) -> None:
        """Find the containers that are there and take them over. None of them is touched."""
        ...

    async def shut_down(self) -> None:
        """Let go of everything; containers go on."""
        ...

    async def create(self, config: ContainerConfig) -> None:
        """Make bundle and root file system. Raises Conflict for a name in use, NotFound for a missing image."""
        ...

    async def start(self, id: str) -> int:
        """Start it, also again after it has ended (its files are as they were left, logs go on, `exit` is cleared); returns its pid.

        Raises SkepError with the runtime's reason (`exec: "x": executable file not found in $PATH`).
        """
        ...

    async def pause(self, id: str) -> None:
        """Freeze. Raises Conflict (`Container X is already paused`, `container X is not running`)."""
        ...

    async def unpause(self, id: str) -> None: ...

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
        """Change what may change: `name` (Conflict when taken), `extra` (replaced as a whole), `limits` (in the kernel too while it runs),
        `hosts` and `resolv_conf` (a running container sees the new files), `netns` (from the next start on). Kept on disk before it
        returns; not `lasting`: where the disk is full only in memory, and on disk with the next change."""
        ...

    async def stats(self, id: str) -> Stats:
        """All zero but `at` when it does not run."""
        ...

    async def stat_path(self, id: str, path: str) -> PathStat:
        """Of a path in its file system, running or not; never outside of it. Raises NotFound in Docker's words."""
        ...

    def read_archive(self, id: str, path: str) -> AsyncGenerator[bytes, None]:
        """A tar stream of the path (`docker cp FROM`): the member names begin with its last component."""
        ...

    async def write_archive(
        self, id: str, path: str, data: AsyncIterator[bytes], *, keep_type: bool = False, copy_owner: bool = False
    ) -> None:
        """Unpack a tar stream into the directory `path` (`docker cp TO`). `keep_type`: noOverwriteDirNonDir."""
        ...

    def export(self, id: str) -> AsyncGenerator[bytes, None]:
        """Its whole file system as one tar stream."""
        ...

    async def changes(self, id: str) -> list[tuple[int, str]]:
        """(0 modified, 1 added, 2 deleted; path) against its image, in order of path."""
        ...

    async def size(self, id: str) -> tuple[int, int]:
        """Bytes of (what it has written, its whole file system)."""
        ...

    async def kill(self, id: str, signal: str = "SIGKILL") -> None: ...

    async def stop(self, id: str, *, signal: str = "", grace: int = 0) -> Exit:
        """Signal, wait at most `grace` ns, then SIGKILL."""
        ...

    async def wait(self, id: str) -> Exit:
        """Until it has ended; at once if it has."""
        ...

    async def remove(self, id: str, *, force: bool = False) -> None:
        """Bundle, root file system, logs, cgroups; idempotent."""
        ...

    def get(self, reference: str) -> Container | None:
        """By id, name or unambiguous id prefix."""
        ...

    def all(self) -> Collection[Container]: ...

    def logs(
        self, id: str, *, follow: bool = False, since: int = 0, until: int = 0, tail: int = -1, stdout: bool = True, stderr: bool = True
    ) -> AsyncGenerator[LogRecord, None]: ...

    async def attach(self, id: str) -> Streams: ...

    async def resize(self, id: str, rows: int, columns: int) -> None: ...

    async def exec(self, id: str, config: ExecConfig) -> Exec: ...

    def subscribe(self) -> asyncio.Queue[tuple[str, str, Exit | None]]:
        """(action, container id, exit) of create, start, pause, unpause, die, oom, destroy, as they happen. `unsubscribe` ends it."""
        ...

    def unsubscribe(self, queue: asyncio.Queue[tuple[str, str, Exit | None]]) -> None: ...
