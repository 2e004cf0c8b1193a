"""A task's container in the words of `docker run`: what inspect shows of it, as Docker's own agent would have asked for it (moby:
daemon/cluster/executor/container/container.go). Kept with the container, so that a restart of the daemon finds it. No I/O.
"""

from __future__ import annotations

from typing import Any

import msgspec

from skep.clock import SECOND
from skep.engine.base import ContainerConfig, Image
from skep.model import defaults
from skep.model.assignment import TaskItem
from skep.model.base import Record as Stored
from skep.model.spec import ContainerSpec, Mount, PortConfig, Ulimit
from skep.node.container import labels, resource_variables
from skep.node.plain_config import Config, DeviceMapping, HostConfig, LogConfig, Point, PortBinding
from skep.node.plain_spec import full_port, merged, normal

KEY = "asked"
"""Of `ContainerConfig.extra`."""


class Asked(Stored, frozen=True, kw_only=True):
    config: Config
    host: HostConfig
    points: tuple[Point, ...] = ()


def asked_for(
    item: TaskItem,
    spec: ContainerSpec,
    image: Image,
    made: ContainerConfig,
    points: tuple[Point, ...],
    ports: tuple[PortConfig, ...],
    *,
    runtime: str = "",
    cgroupns: str = "",
) -> Asked:
    """`spec`: expanded. `made`: what becomes of it. `ports`: host-mode ports as published."""
    config = Config(
        hostname=made.hostname,
        user=spec.user,
        exposed_ports={f"{port.target_port}/{port.protocol}": {} for port in ports},
        tty=spec.tty,
        open_stdin=spec.open_stdin,
        env=(*resource_variables(item), *(spec.env or ())),
        cmd=spec.args,
        entrypoint=spec.command,
        healthcheck=spec.healthcheck,
        image=spec.image,
        working_dir=spec.dir,
        labels=labels(item, spec, image),
        stop_signal=spec.stop_signal,
        stop_timeout=defaults.stop_grace_period(spec) // SECOND,
    )
    dns = spec.dns_config
    limits = made.limits
    host = HostConfig(
        nano_cpus=limits.nano_cpus,
        memory=limits.memory,
        memory_reservation=limits.memory_reservation,
        pids_limit=limits.pids,
        log_config=LogConfig(type=made.log_driver, config=dict(made.extra.get("log_options") or {})),
        network_mode="host" if made.host_network else "bridge",
        port_bindings=_bindings(ports),
        cap_add=made.capabilities_add,
        cap_drop=made.capabilities_drop,
        dns=(dns.nameservers if dns is not None else None) or (),
        dns_options=(dns.options if dns is not None else None) or (),
        dns_search=(dns.search if dns is not None else None) or (),
        extra_hosts=tuple(f"{name}:{entry.split()[0]}" for entry in spec.hosts or () for name in entry.split()[1:]),
        group_add=made.groups,
        oom_score_adj=made.oom_score_adj,
        privileged=made.privileged,
        devices=tuple(
            DeviceMapping(path_on_host=one.source, path_in_container=one.target, cgroup_permissions=one.permissions) for one in made.devices
        ),
        readonly_rootfs=made.read_only,
        security_opt=_security(spec, made.seccomp),
        sysctls=dict(spec.sysctls or {}),
        isolation=spec.isolation or "default",
        ulimits=spec.ulimits or (),
        mounts=spec.mounts or (),
        init=spec.init,
    )
    return Asked(config=merged(config, image, made.id, ""), host=normal(host, runtime, cgroupns), points=points)


def _bindings(ports: tuple[PortConfig, ...]) -> dict[str, tuple[PortBinding, ...]]:
    found: dict[str, tuple[PortBinding, ...]] = {}
    for port in ports:
        key = f"{port.target_port}/{port.protocol}"
        found[key] = (*found.get(key, ()), PortBinding(host_port=str(port.published_port)))
    return found


def _security(spec: ContainerSpec, seccomp: str) -> tuple[str, ...]:
    rights = spec.privileges
    if rights is None:
        return ()
    found = []
    if rights.no_new_privileges:
        found.append("no-new-privileges=true")
    if rights.selinux_context is not None and rights.selinux_context.disable:
        found.append("label=disable")
    if seccomp != "default":
        found.append(f"seccomp={seccomp}")
    if rights.app_armor is not None and rights.app_armor.mode == "disabled":
        found.append("apparmor=unconfined")
    return tuple(found)


def stored(asked: Asked) -> dict[str, Any]:
    """For `ContainerConfig.extra`."""
    return {KEY: msgspec.to_builtins(asked)}


def kept(config: ContainerConfig) -> Asked | None:
    known = config.extra.get(KEY)
    return msgspec.convert(known, Asked) if known is not None else None


def told(config: ContainerConfig, image: Image | None) -> Asked:
    """Where nothing was kept: what can be told from the container itself."""
    mode = "host" if config.host_network else "bridge"
    return Asked(
        config=Config(
            hostname=config.hostname or config.id[:12],
            user=config.user,
            exposed_ports={full_port(port): {} for port in image.config.exposed_ports} if image is not None else {},
            tty=config.tty,
            open_stdin=config.stdin,
            env=config.env,
            cmd=config.args,
            image=str(config.extra.get("image") or config.image),
            working_dir=config.cwd,
            labels=config.labels,
            stop_signal=config.stop_signal,
        ),
        host=normal(
            HostConfig(
                network_mode=mode,
                log_config=LogConfig(type=config.log_driver, config=dict(config.extra.get("log_options") or {})),
                cap_add=config.capabilities_add,
                cap_drop=config.capabilities_drop,
                readonly_rootfs=config.read_only,
                ulimits=tuple(Ulimit(name=one.name, soft=one.soft, hard=one.hard) for one in config.ulimits),
                memory=config.limits.memory,
                nano_cpus=config.limits.nano_cpus,
                pids_limit=config.limits.pids,
                mounts=tuple(Mount(type=one.kind, source=one.source, target=one.target, read_only=one.read_only) for one in config.mounts),
            ),
            "",
            "",
        ),
        points=tuple(
            Point(
                type="volume" if one.volume else one.kind,
                target=one.target,
                source=one.source,
                name=one.volume,
                read_write=not one.read_only,
                propagation=one.propagation,
            )
            for one in config.mounts
        ),
    )
