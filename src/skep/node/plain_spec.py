"""A plain container as the engine takes it: what was asked over what the image says, nothing left to decide. No I/O."""

from __future__ import annotations

import msgspec

from skep.engine.base import ContainerConfig, Device, Image, Mount, Ulimit
from skep.errors import Invalid
from skep.model.spec import Driver, Healthcheck
from skep.node.container import NodeFacts, environment, log_options, working_dir
from skep.node.plain_check import container_of, limits_of, security_of
from skep.node.plain_config import Config, HostConfig, Record, extra_of

DEFAULT_SHM = 64 << 20


def words(value: tuple[str, ...] | str | None) -> tuple[str, ...] | None:
    """Go's strslice: one string stands for a list of one."""
    return (value,) if isinstance(value, str) else value


def merged(asked: Config, image: Image, id: str, hostname: str) -> Config:
    """Docker's merge of the image's config into what was asked (moby, daemon/commit.go)."""
    of = image.config
    command, entrypoint = words(asked.cmd), words(asked.entrypoint)
    if not entrypoint:
        if not command:
            command = of.cmd
        if entrypoint is None:
            entrypoint = of.entrypoint
    if entrypoint == ("",):
        entrypoint = ()
    if not command and not entrypoint:
        raise Invalid("no command specified")
    return msgspec.structs.replace(
        asked,
        hostname=hostname or asked.hostname or id[:12],
        user=asked.user or of.user,
        exposed_ports={**{full_port(port): {} for port in of.exposed_ports}, **{full_port(port): {} for port in asked.exposed_ports}},
        env=tuple(environment(of.env, asked.env)),
        cmd=command or None,
        entrypoint=entrypoint or None,
        healthcheck=_healthcheck(asked.healthcheck, image),
        volumes={**{path: {} for path in of.volumes}, **asked.volumes},
        working_dir=asked.working_dir or of.working_dir,
        labels={**of.labels, **asked.labels},
        stop_signal=asked.stop_signal or of.stop_signal,
    )


def full_port(text: str) -> str:
    return text if "/" in text else f"{text}/tcp"


def _healthcheck(asked: Healthcheck | None, image: Image) -> Healthcheck | None:
    """Field by field, as Docker does."""
    if not image.config.healthcheck:
        return asked
    base = msgspec.convert(image.config.healthcheck, Healthcheck)
    if asked is None:
        return base
    return Healthcheck(**{name: getattr(asked, name) or getattr(base, name) for name in Healthcheck.__struct_fields__})


def arguments(config: Config) -> tuple[str, ...]:
    return (*(words(config.entrypoint) or ()), *(words(config.cmd) or ()))


def normal(host: HostConfig, runtime: str, cgroupns: str) -> HostConfig:
    """With what an empty field stands for, as `inspect` shows it. What was given stays as written (capabilities too): clients compare."""
    mode = "bridge" if host.network_mode in ("", "default") else host.network_mode
    return msgspec.structs.replace(
        host,
        network_mode=mode,
        restart_policy=msgspec.structs.replace(host.restart_policy, name=host.restart_policy.name or "no"),
        log_config=msgspec.structs.replace(host.log_config, type=host.log_config.type or "json-file"),
        ipc_mode=host.ipc_mode or "private",
        shm_size=host.shm_size or DEFAULT_SHM,
        runtime=host.runtime or runtime,
        cgroupns_mode=host.cgroupns_mode or cgroupns,
        memory_swap=host.memory_swap or 2 * host.memory,
        port_bindings={full_port(port): bindings for port, bindings in host.port_bindings.items()},
    )


def build(id: str, name: str, image: Image, record: Record, mounts: tuple[Mount, ...], facts: NodeFacts) -> ContainerConfig:
    """`record`: merged and normal. Its place on networks comes with each start."""
    config, host = record.config, record.host
    driver, max_size, max_files = log_options(Driver(name=host.log_config.type, options=host.log_config.config))
    no_new, seccomp = security_of(host.security_opt)
    return ContainerConfig(
        id=id,
        name=name,
        image=image.id,
        args=arguments(config),
        env=config.env,
        cwd=working_dir(config.working_dir or "/"),
        user=config.user,
        groups=host.group_add,
        hostname=facts.hostname if host.uts_mode == "host" else config.hostname,
        domainname=config.domainname,
        labels=config.labels,
        mounts=mounts,
        capabilities_add=host.cap_add,
        capabilities_drop=host.cap_drop,
        privileged=host.privileged,
        no_new_privileges=no_new,
        seccomp=seccomp,
        read_only=host.readonly_rootfs,
        tty=config.tty,
        stdin=config.open_stdin,
        stdin_once=config.stdin_once and not config.tty,
        init=bool(host.init),
        sysctls={key: value for key, value in host.sysctls.items() if not key.startswith("net.")},
        ulimits=tuple(Ulimit(name=ulimit.name, soft=ulimit.soft, hard=ulimit.hard) for ulimit in host.ulimits),
        limits=limits_of(host),
        oom_score_adj=host.oom_score_adj,
        shm_size=host.shm_size,
        devices=tuple(
            Device(source=d.path_on_host, target=d.path_in_container or d.path_on_host, permissions=d.cgroup_permissions or "rwm")
            for d in host.devices
        ),
        device_rules=host.device_cgroup_rules,
        pid_mode=host.pid_mode,
        ipc_mode=host.ipc_mode,
        uts_mode=host.uts_mode,
        cgroupns_mode=host.cgroupns_mode,
        cgroup_parent=host.cgroup_parent,
        masked_paths=host.masked_paths,
        readonly_paths=host.readonly_paths,
        host_network=host.network_mode == "host",
        resolv_conf="" if container_of(host.network_mode) else facts.resolv_conf,
        stop_signal=config.stop_signal or "SIGTERM",
        log_max_size=max_size,
        log_max_files=max_files,
        log_driver=driver,
        extra=extra_of(record),
    )
