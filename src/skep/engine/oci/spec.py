"""A container's configuration as the OCI runtime's config.json. Pure: what it needs to know of the host comes as `Host`.

The values are Docker's: capabilities, masked and read-only paths, devices, limits. See docs/engine.md.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

import msgspec

from skep.engine.base import ContainerConfig, ExecConfig, Limits, Mount
from skep.engine.oci.users import Identity
from skep.errors import Invalid

CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)
ALL_CAPABILITIES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
    "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK",
    "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
)  # fmt: skip
"""In the order of their numbers (linux/capability.h)."""
MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
DEVICES = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1))
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NOFILE = 1 << 20
INIT = "/sbin/docker-init"


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """What a spec depends on besides the container's configuration."""

    capabilities: frozenset[str] = frozenset(ALL_CAPABILITIES)
    """In the daemon's own bounding set: no container can have others."""
    rlimits: Mapping[str, int] = {}
    """`RLIMIT_X` -> the daemon's hard limit: no container can have more (without CAP_SYS_RESOURCE the kernel refuses). -1 = none."""
    cgroup2: bool = False
    swap_limit: bool = True
    """The kernel counts swap per cgroup."""
    init: str = ""
    """Path of a static init (tini-static); empty if there is none."""
    devices: tuple[tuple[str, str, int, int, int], ...] = ()
    """(path, `c` or `b`, major, minor, mode) of the host's devices, for privileged containers."""


class Paths(msgspec.Struct, frozen=True, kw_only=True):
    """Where the container's own files are on the host."""

    rootfs: str
    hosts: str = ""
    hostname: str = ""
    resolv_conf: str = ""
    cgroup: str = ""


def capabilities(config: ContainerConfig, host: Host) -> tuple[str, ...]:
    """Names in Docker's order. Raises Invalid for a name that Linux does not have."""
    if config.privileged:
        return tuple(cap for cap in ALL_CAPABILITIES if cap in host.capabilities)
    add, drop = ({_capability(name) for name in names} for names in (config.capabilities_add, config.capabilities_drop))
    if "CAP_ALL" in add:
        wanted = set(ALL_CAPABILITIES) - drop
    else:
        wanted = (set() if "CAP_ALL" in drop else set(CAPABILITIES) - drop) | add
    order = CAPABILITIES + tuple(cap for cap in ALL_CAPABILITIES if cap not in CAPABILITIES)
    return tuple(cap for cap in order if cap in wanted and cap in host.capabilities)


def _capability(name: str) -> str:
    full = name.upper() if name.upper().startswith("CAP_") else f"CAP_{name.upper()}"
    if full != "CAP_ALL" and full not in ALL_CAPABILITIES:
        raise Invalid(f'invalid capability: unknown capability: "{full}"')
    return full


def environment(config: ContainerConfig, identity: Identity) -> list[str]:
    """The container's variables: ours first, the given ones win, in their order; a name without a value is not set."""
    own = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname(config)}
    if config.tty:
        own["TERM"] = "xterm"
    given: dict[str, str] = {}
    for item in config.env:
        name, equals, value = item.partition("=")
        if equals and name:
            given[name] = value
        else:
            given.pop(name, None)
    merged = {**own, **given}
    merged.setdefault("HOME", identity.home)
    return [f"{name}={value}" for name, value in merged.items()]


def hostname(config: ContainerConfig) -> str:
    return config.hostname or config.id[:12]


def process(
    config: ContainerConfig, identity: Identity, host: Host, *, args: tuple[str, ...], terminal: bool, cwd: str, privileged: bool
) -> dict[str, Any]:
    caps = list(ALL_CAPABILITIES if privileged else capabilities(config, host))
    caps = [cap for cap in caps if cap in host.capabilities]
    held = caps if identity.uid == 0 else []
    return {
        "terminal": terminal,
        "user": {"uid": identity.uid, "gid": identity.gid, "additionalGids": [identity.gid, *identity.groups], "umask": 0o022},
        "args": list(args),
        "env": environment(config, identity),
        "cwd": cwd or "/",
        "capabilities": {"bounding": caps, "effective": held, "permitted": held},
        "rlimits": rlimits(config, host),
        "noNewPrivileges": config.no_new_privileges,
        "oomScoreAdj": config.oom_score_adj,
    }


def rlimits(config: ContainerConfig, host: Host) -> list[dict[str, Any]]:
    """Ulimits asked for, and Docker's wish for open files, none above what the daemon itself may have."""
    wanted = {"RLIMIT_NOFILE": (NOFILE, NOFILE)}
    for ulimit in config.ulimits:
        name = f"RLIMIT_{ulimit.name.upper()}"
        if name not in host.rlimits:
            raise Invalid(f"invalid ulimit type: {ulimit.name}")
        wanted[name] = (ulimit.soft, ulimit.hard)
    out = []
    for name, (soft, hard) in wanted.items():
        ceiling = host.rlimits.get(name, -1)
        hard, soft = _clamp(hard, ceiling), _clamp(soft, ceiling)
        out.append({"type": name, "soft": soft, "hard": hard})
    return out


_UNLIMITED = (1 << 64) - 1


def _clamp(value: int, ceiling: int) -> int:
    wanted = _UNLIMITED if value < 0 else value
    return min(wanted, _UNLIMITED if ceiling < 0 else ceiling)


def resources(limits: Limits, host: Host, privileged: bool = False) -> dict[str, Any]:
    allow = [{"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"} for major, minor in DEVICES]
    out: dict[str, Any] = {"devices": [{"allow": True, "access": "rwm"}] if privileged else [{"allow": False, "access": "rwm"}, *allow]}
    memory: dict[str, int] = {}
    if limits.memory:
        memory["limit"] = limits.memory
        swap = limits.memory_swap or 2 * limits.memory
        if host.swap_limit and swap > 0 and swap < limits.memory:
            raise Invalid("Minimum memoryswap limit should be larger than memory limit, see usage")
        if host.swap_limit:
            memory["swap"] = swap
    if limits.memory_reservation:
        memory["reservation"] = limits.memory_reservation
    if memory:
        out["memory"] = memory
    cpu: dict[str, Any] = {}
    if limits.nano_cpus:
        cpu["period"] = 100_000
        cpu["quota"] = max(limits.nano_cpus // 10_000, 1_000)
    if limits.cpu_shares:
        cpu["shares"] = limits.cpu_shares
    if limits.cpuset_cpus:
        cpu["cpus"] = limits.cpuset_cpus
    if cpu:
        out["cpu"] = cpu
    if limits.pids > 0:
        out["pids"] = {"limit": limits.pids}
    return out


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Of limits while a container runs."""

    resources: dict[str, Any]
    """For the runtime's `update`."""
    released: tuple[str, ...]
    """Names in `cgroups.RELEASED` of what had a limit and has none any more."""


def change_of(old: Limits, new: Limits, host: Host) -> Change:
    wanted = resources(new, host)
    del wanted["devices"]
    memory, cpu = wanted.get("memory", {}), wanted.get("cpu", {})
    released = {
        "swap": old.memory and "swap" not in memory,
        "memory": old.memory and not new.memory,
        "reservation": old.memory_reservation and not new.memory_reservation,
        "quota": (old.nano_cpus or old.cpu_quota) and "quota" not in cpu,
        "shares": old.cpu_shares and not new.cpu_shares,
        "pids": old.pids > 0 and new.pids <= 0,
    }
    return Change(resources=wanted, released=tuple(name for name, free in released.items() if free))


def cgroup_path(config: ContainerConfig, parent: str) -> str:
    return f"/{(config.cgroup_parent or parent).strip('/')}/{config.id}"


def mounts(config: ContainerConfig, paths: Paths, host: Host) -> list[dict[str, Any]]:
    """The runtime's mounts, ours, then the user's, parents before what lies in them. A user's mount takes the place of ours."""
    access = "rw" if config.privileged else "ro"
    base = {
        "/proc": _mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
        "/dev": _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        "/dev/pts": _mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        "/sys": _mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", access),
        "/sys/fs/cgroup": _mount("/sys/fs/cgroup", "cgroup", "cgroup", access, "nosuid", "noexec", "nodev"),
        "/dev/mqueue": _mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        "/dev/shm": _mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", f"size={config.shm_size}"),
    }
    own = {
        target: _mount(target, "bind", source, "rbind", "rprivate")
        for target, source in (("/etc/resolv.conf", paths.resolv_conf), ("/etc/hostname", paths.hostname), ("/etc/hosts", paths.hosts))
        if source
    }
    if config.init:
        own[INIT] = _mount(INIT, "bind", host.init, "bind", "ro")
    user = {posixpath.normpath(mount.target): _user_mount(mount) for mount in config.mounts}
    runtime = [mount for target, mount in base.items() if target not in user]
    rest = {**own, **user}
    return runtime + [rest[target] for target in sorted(rest, key=lambda target: (target.count("/"), target))]


def _mount(target: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source, "options": list(options)}


def _user_mount(mount: Mount) -> dict[str, Any]:
    if not mount.target.startswith("/"):
        raise Invalid(f"invalid mount config: mount path must be absolute: {mount.target}")
    if mount.kind == "tmpfs":
        options = ["nosuid", "nodev", "noexec", *mount.options, *(["ro"] if mount.read_only else [])]
        return _mount(mount.target, "tmpfs", "tmpfs", *options)
    options = ["rbind" if mount.recursive else "bind", "ro" if mount.read_only else "rw", mount.propagation or "rprivate", *mount.options]
    return _mount(mount.target, "bind", mount.source, *options)


def oci_spec(
    config: ContainerConfig,
    identity: Identity,
    paths: Paths,
    host: Host,
    *,
    seccomp: Mapping[str, Any] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """config.json. `seccomp`: the OCI profile, or None when the runtime gets it compiled by annotation (or not at all)."""
    if not config.args:
        raise Invalid("no command specified")
    if config.init and not host.init:
        raise Invalid('exec: "docker-init": executable file not found in $PATH: this host has no static init (tini-static)')
    args = (INIT, "--", *config.args) if config.init else config.args
    namespaces: list[dict[str, str]] = [{"type": kind} for kind in ("mount", "uts", "ipc", "pid")]
    if host.cgroup2 and not config.privileged:
        namespaces.append({"type": "cgroup"})
    if not config.host_network:
        namespaces.append({"type": "network", "path": config.netns} if config.netns else {"type": "network"})
    linux: dict[str, Any] = {
        "cgroupsPath": paths.cgroup,
        "namespaces": namespaces,
        "resources": resources(config.limits, host, config.privileged),
        "sysctl": dict(config.sysctls),
    }
    if config.privileged:
        linux["devices"] = [
            {"path": path, "type": kind, "major": major, "minor": minor, "fileMode": mode, "uid": 0, "gid": 0}
            for path, kind, major, minor, mode in host.devices
        ]
    else:
        linux["maskedPaths"] = list(MASKED)
        linux["readonlyPaths"] = list(READ_ONLY)
        if seccomp is not None:
            linux["seccomp"] = dict(seccomp)
    if any(mount.propagation in ("rshared", "shared") for mount in config.mounts):
        linux["rootfsPropagation"] = "shared"
    elif any(mount.propagation in ("rslave", "slave") for mount in config.mounts):
        linux["rootfsPropagation"] = "slave"
    return {
        "ociVersion": "1.0.2",
        "process": process(config, identity, host, args=args, terminal=config.tty, cwd=config.cwd, privileged=config.privileged),
        "root": {"path": paths.rootfs, "readonly": config.read_only},
        "hostname": hostname(config),
        "mounts": mounts(config, paths, host),
        "linux": linux,
        "annotations": dict(annotations or {}),
    }


def exec_process(config: ContainerConfig, wanted: ExecConfig, identity: Identity, host: Host) -> dict[str, Any]:
    """The process spec of an exec: the container's own with what was asked changed."""
    changed = msgspec.structs.replace(config, env=config.env + wanted.env, tty=wanted.tty)
    out = process(
        changed,
        identity,
        host,
        args=wanted.args,
        terminal=wanted.tty,
        cwd=wanted.cwd or config.cwd,
        privileged=wanted.privileged or config.privileged,
    )
    if wanted.tty and wanted.rows and wanted.columns:
        out["consoleSize"] = {"height": wanted.rows, "width": wanted.columns}
    return out


def hosts_file(config: ContainerConfig) -> str:
    """Docker's standard lines, then the container's."""
    lines = [
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "fe00::\tip6-localnet",
        "ff00::\tip6-mcastprefix",
        "ff02::1\tip6-allnodes",
        "ff02::2\tip6-allrouters",
        *config.hosts,
    ]
    return "\n".join(lines) + "\n"
