"""A container's configuration as the OCI runtime's config.json. Pure: what it needs to know of the host comes as `Host`.

The values are Docker's: capabilities, masked and read-only paths, devices, limits. See docs/engine.md.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from skep.engine.base import ContainerConfig, ExecConfig, Mount
from skep.engine.oci.limits import DeviceNode, device_rules, resources
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
TMPFS_FLAGS = frozenset(
    "exec noexec suid nosuid dev nodev rw ro sync async dirsync remount mand nomand atime noatime diratime nodiratime bind rbind "
    "unbindable runbindable private rprivate shared rshared slave rslave relatime norelatime strictatime nostrictatime defaults".split()
)
TMPFS_DATA = frozenset({"size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol"})
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
    missing: frozenset[str] = frozenset()
    """Fields of `Limits` that this kernel does not have."""
    init: str = ""
    """Path of a static init (tini-static); empty if there is none."""


class Paths(msgspec.Struct, frozen=True, kw_only=True):
    """Where the container's own files are on the host."""

    rootfs: str
    hosts: str = ""
    hostname: str = ""
    resolv_conf: str = ""
    cgroup: str = ""
    shm: str = ""
    """A mounted /dev/shm to be bound; empty: the runtime mounts one of its own."""


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """What a container shares with another one that runs."""

    namespaces: dict[str, str] = {}
    """`pid`, `ipc` -> path."""
    shm: str = ""


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


def shares(mode: str) -> str:
    """The container that a mode `container:X` names; empty: another mode."""
    kind, _, reference = mode.partition(":")
    return reference if kind == "container" else ""


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
    if paths.shm:
        base["/dev/shm"] = _mount("/dev/shm", "bind", paths.shm, "bind", "rw", "nosuid", "nodev", "noexec", "rprivate")
    elif config.ipc_mode == "none":
        del base["/dev/shm"]
    user = {posixpath.normpath(mount.target): _user_mount(mount) for mount in config.mounts}
    runtime = [mount for target, mount in base.items() if target not in user]
    rest = {**own, **user}
    return runtime + [rest[target] for target in sorted(rest, key=lambda target: (target.count("/"), target))]


def _mount(target: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source, "options": list(options)}


def _tmpfs_options(given: Iterable[str]) -> list[str]:
    """Docker's own, with what is given in their place: `exec` takes `noexec` away."""
    merged: dict[str, str] = {}
    for option in ("noexec", "nosuid", "nodev", *given):
        name = option.partition("=")[0]
        if option not in TMPFS_FLAGS and name not in TMPFS_DATA:
            raise Invalid(f'Invalid tmpfs option "{option}"')
        kind = "rw" if name in ("rw", "ro") else name.removeprefix("no") if name.removeprefix("no") in TMPFS_FLAGS else name
        merged[kind] = option
    return list(merged.values())


def _user_mount(mount: Mount) -> dict[str, Any]:
    if not mount.target.startswith("/"):
        raise Invalid(f"invalid mount config: mount path must be absolute: {mount.target}")
    if mount.kind == "tmpfs":
        options = _tmpfs_options(mount.options) + (["ro"] if mount.read_only else [])
        return _mount(mount.target, "tmpfs", "tmpfs", *options)
    options = ["rbind" if mount.recursive else "bind", "ro" if mount.read_only else "rw", mount.propagation or "rprivate", *mount.options]
    return _mount(mount.target, "bind", mount.source, *options)


def namespaces(config: ContainerConfig, joined: Joined, host: Host) -> list[dict[str, str]]:
    """Its own, another container's, or (left out) the host's."""
    out: list[dict[str, str]] = [{"type": "mount"}]
    if config.uts_mode not in ("", "host", "private"):
        raise Invalid(f"invalid UTS mode: {config.uts_mode}")
    if config.uts_mode != "host":
        out.append({"type": "uts"})
    for kind, mode, known in (
        ("ipc", config.ipc_mode, ("", "private", "shareable", "none", "host")),
        ("pid", config.pid_mode, ("", "private", "host")),
    ):
        if shares(mode):
            out.append({"type": kind, "path": joined.namespaces.get(kind, "")})
        elif mode not in known:
            raise Invalid(f"invalid {kind.upper()} mode: {mode}")
        elif mode != "host":
            out.append({"type": kind})
    if config.cgroupns_mode not in ("", "private", "host"):
        raise Invalid(f"invalid cgroup namespace mode: {config.cgroupns_mode}")
    if config.cgroupns_mode == "private" or (host.cgroup2 and not config.cgroupns_mode):
        out.append({"type": "cgroup"})
    if not config.host_network:
        out.append({"type": "network", "path": config.netns} if config.netns else {"type": "network"})
    return out


def _linux(config: ContainerConfig, paths: Paths, host: Host, devices: Sequence[DeviceNode], joined: Joined) -> dict[str, Any]:
    linux: dict[str, Any] = {
        "cgroupsPath": paths.cgroup,
        "namespaces": namespaces(config, joined, host),
        "resources": {"devices": device_rules(config, devices), **resources(config.limits, host.swap_limit, host.missing)},
        "sysctl": dict(config.sysctls),
    }
    if config.domainname:  # Docker's way; `domainname` in config.json is newer than the runtimes
        linux["sysctl"].setdefault("kernel.domainname", config.domainname)
    if devices:
        linux["devices"] = [
            {
                "path": one.path,
                "type": one.kind,
                "major": one.major,
                "minor": one.minor,
                "fileMode": one.mode,
                "uid": one.uid,
                "gid": one.gid,
            }
            for one in devices
        ]
    for name, usual, given in (("maskedPaths", MASKED, config.masked_paths), ("readonlyPaths", READ_ONLY, config.readonly_paths)):
        if wanted := given if given is not None else () if config.privileged else usual:
            linux[name] = list(wanted)
    if any(mount.propagation in ("rshared", "shared") for mount in config.mounts):
        linux["rootfsPropagation"] = "shared"
    elif any(mount.propagation in ("rslave", "slave") for mount in config.mounts):
        linux["rootfsPropagation"] = "slave"
    return linux


def oci_spec(
    config: ContainerConfig,
    identity: Identity,
    paths: Paths,
    host: Host,
    *,
    seccomp: Mapping[str, Any] | None = None,
    annotations: Mapping[str, str] | None = None,
    devices: Sequence[DeviceNode] = (),
    joined: Joined = Joined(),
) -> dict[str, Any]:
    """config.json. `seccomp`: the OCI profile, or None when the runtime gets it compiled by annotation (or not at all)."""
    if not config.args:
        raise Invalid("no command specified")
    if config.init and not host.init:
        raise Invalid('exec: "docker-init": executable file not found in $PATH: this host has no static init (tini-static)')
    args = (INIT, "--", *config.args) if config.init else config.args
    linux = _linux(config, paths, host, devices, joined)
    if seccomp is not None and not config.privileged:
        linux["seccomp"] = dict(seccomp)
    out = {
        "ociVersion": "1.0.2",
        "process": process(config, identity, host, args=args, terminal=config.tty, cwd=config.cwd, privileged=config.privileged),
        "root": {"path": paths.rootfs, "readonly": config.read_only},
        "mounts": mounts(config, paths, host),
        "linux": linux,
        "annotations": dict(annotations or {}),
    }
    if config.uts_mode != "host":
        out["hostname"] = hostname(config)
    return out


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
