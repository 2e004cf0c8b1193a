"""A plain container as Docker's clients see it: all that was asked of it is shown again, with what the node made of it."""

from __future__ import annotations

from typing import Any

import msgspec

from skep.api.wire.networks import mac_of
from skep.engine.base import Container
from skep.node.plain_check import split_port
from skep.node.plain_config import Config, HostConfig, Joined, Point, Record, Resources
from skep.node.plain_spec import words

MASKED = [
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
    "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
]  # fmt: skip
READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


def config_form(config: Config) -> dict[str, Any]:
    """`Config` of inspect, in Docker's order."""
    command, entrypoint = words(config.cmd), words(config.entrypoint)
    shown: dict[str, Any] = {
        "Hostname": config.hostname,
        "Domainname": config.domainname,
        "User": config.user,
        "AttachStdin": config.attach_stdin,
        "AttachStdout": config.attach_stdout,
        "AttachStderr": config.attach_stderr,
    }
    if config.exposed_ports:
        shown["ExposedPorts"] = config.exposed_ports
    shown |= {
        "Tty": config.tty,
        "OpenStdin": config.open_stdin,
        "StdinOnce": config.stdin_once,
        "Env": list(config.env) or None,
        "Cmd": list(command) if command else None,
    }
    if config.healthcheck is not None:
        shown["Healthcheck"] = config.healthcheck
    shown |= {
        "Image": config.image,
        "Volumes": config.volumes or None,
        "WorkingDir": config.working_dir,
        "Entrypoint": list(entrypoint) if entrypoint else None,
    }
    if config.network_disabled:
        shown["NetworkDisabled"] = True
    if config.mac_address:
        shown["MacAddress"] = config.mac_address
    shown |= {"OnBuild": None, "Labels": config.labels}
    if config.stop_signal:
        shown["StopSignal"] = config.stop_signal
    if config.stop_timeout is not None:
        shown["StopTimeout"] = config.stop_timeout
    return shown


def _resources(r: Resources) -> dict[str, Any]:
    return {
        "CpuShares": r.cpu_shares,
        "Memory": r.memory,
        "NanoCpus": r.nano_cpus,
        "CgroupParent": "",
        "BlkioWeight": r.blkio_weight,
        "BlkioWeightDevice": [],
        "BlkioDeviceReadBps": [],
        "BlkioDeviceWriteBps": [],
        "BlkioDeviceReadIOps": [],
        "BlkioDeviceWriteIOps": [],
        "CpuPeriod": r.cpu_period,
        "CpuQuota": r.cpu_quota,
        "CpuRealtimePeriod": r.cpu_realtime_period,
        "CpuRealtimeRuntime": r.cpu_realtime_runtime,
        "CpusetCpus": r.cpuset_cpus,
        "CpusetMems": r.cpuset_mems,
        "Devices": [],
        "DeviceCgroupRules": None,
        "DeviceRequests": None,
        "MemoryReservation": r.memory_reservation,
        "MemorySwap": r.memory_swap,
        "MemorySwappiness": r.memory_swappiness if r.memory_swappiness >= 0 else None,
        "OomKillDisable": r.oom_kill_disable,
        "PidsLimit": r.pids_limit or None,
        "Ulimits": [],
        "CpuCount": 0,
        "CpuPercent": 0,
        "IOMaximumIOps": 0,
        "IOMaximumBandwidth": 0,
    }


def _paths(asked: tuple[str, ...] | None, default: list[str], privileged: bool) -> list[str] | None:
    if asked is not None:
        return list(asked)
    return None if privileged else default


def host_form(host: HostConfig) -> dict[str, Any]:
    """`HostConfig` of inspect, in Docker's order."""
    shown: dict[str, Any] = {
        "Binds": list(host.binds) or None,
        "ContainerIDFile": "",
        "LogConfig": {"Type": host.log_config.type, "Config": host.log_config.config},
        "NetworkMode": host.network_mode,
        "PortBindings": {
            port: [{"HostIp": one.host_ip, "HostPort": one.host_port} for one in bound] for port, bound in host.port_bindings.items()
        },
        "RestartPolicy": {"Name": host.restart_policy.name, "MaximumRetryCount": host.restart_policy.maximum_retry_count},
        "AutoRemove": host.auto_remove,
        "VolumeDriver": host.volume_driver,
        "VolumesFrom": list(host.volumes_from) or None,
        "ConsoleSize": list(host.console_size),
        "CapAdd": list(host.cap_add) or None,
        "CapDrop": list(host.cap_drop) or None,
        "CgroupnsMode": host.cgroupns_mode,
        "Dns": list(host.dns),
        "DnsOptions": list(host.dns_options),
        "DnsSearch": list(host.dns_search),
        "ExtraHosts": list(host.extra_hosts) or None,
        "GroupAdd": list(host.group_add) or None,
        "IpcMode": host.ipc_mode,
        "Cgroup": "",
        "Links": list(host.links) or None,
        "OomScoreAdj": host.oom_score_adj,
        "PidMode": host.pid_mode,
        "Privileged": host.privileged,
        "PublishAllPorts": host.publish_all_ports,
        "ReadonlyRootfs": host.readonly_rootfs,
        "SecurityOpt": list(host.security_opt) or None,
    }
    if host.tmpfs:
        shown["Tmpfs"] = host.tmpfs
    shown |= {"UTSMode": host.uts_mode, "UsernsMode": host.userns_mode, "ShmSize": host.shm_size}
    if host.sysctls:
        shown["Sysctls"] = host.sysctls
    shown |= {"Runtime": host.runtime, "Isolation": host.isolation, **_resources(host)}
    shown |= {
        "CgroupParent": host.cgroup_parent,
        "Devices": [
            {"PathOnHost": d.path_on_host, "PathInContainer": d.path_in_container, "CgroupPermissions": d.cgroup_permissions}
            for d in host.devices
        ],
        "DeviceCgroupRules": list(host.device_cgroup_rules) or None,
        "Ulimits": [{"Name": u.name, "Hard": u.hard, "Soft": u.soft} for u in host.ulimits],
    }
    if host.mounts:
        shown["Mounts"] = msgspec.to_builtins(host.mounts)
    shown["MaskedPaths"] = _paths(host.masked_paths, MASKED, host.privileged)
    shown["ReadonlyPaths"] = _paths(host.readonly_paths, READ_ONLY, host.privileged)
    if host.init is not None:
        shown["Init"] = host.init
    return shown


def mounts_form(points: tuple[Point, ...]) -> list[dict[str, Any]]:
    shown = []
    for point in points:
        one: dict[str, Any] = {"Type": point.type}
        if point.type == "volume":
            one["Name"] = point.name
        one |= {"Source": point.source, "Destination": point.target}
        if point.type == "volume":
            one["Driver"] = "local"
        one |= {"Mode": point.mode, "RW": point.read_write, "Propagation": point.propagation}
        shown.append(one)
    return shown


def networks_form(record: Record) -> dict[str, Any]:
    return {one.network: _place(one) for one in record.joined}


def _place(one: Joined) -> dict[str, Any]:
    settings = one.settings
    address, _, prefix = one.address.partition("/")
    ipam: dict[str, Any] | None = None
    if settings.ipam_config is not None:
        ipam = {"IPv4Address": settings.address} if settings.address else {}
    return {
        "IPAMConfig": ipam,
        "Links": list(settings.links) or None,
        "Aliases": list(settings.aliases) or None,
        "MacAddress": one.mac or settings.mac_address or mac_of(one.address),
        "DriverOpts": settings.driver_opts or None,
        "GwPriority": settings.gw_priority,
        "NetworkID": one.network_id,
        "EndpointID": one.endpoint_id,
        "Gateway": one.gateway,
        "IPAddress": address,
        "IPPrefixLen": int(prefix or 0),
        "IPv6Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "DNSNames": (list(one.names) or None) if one.network != "bridge" else None,
    }


def _has_ports(record: Record) -> bool:
    """Not on the host's network, on none, or on another container's."""
    return any(one.network not in ("host", "none") for one in record.joined)


def ports_list(record: Record, container: Container) -> list[dict[str, Any]]:
    """`Ports` of the list: published ones and those that are only exposed."""
    if not container.running or not _has_ports(record):
        return []
    shown: list[dict[str, Any]] = [
        {"IP": port.address or "0.0.0.0", "PrivatePort": port.target, "PublicPort": port.published, "Type": port.protocol}
        for port in record.ports
    ]
    bound = {(port.target, port.protocol) for port in record.ports}
    for text in record.config.exposed_ports:
        if (key := split_port(text)) not in bound:
            shown.append({"PrivatePort": key[0], "Type": key[1]})
    return sorted(shown, key=lambda port: (port["PrivatePort"], port["Type"], port.get("PublicPort", 0)))


def ports_map(record: Record, container: Container) -> dict[str, Any]:
    """`NetworkSettings.Ports`."""
    if not container.running or not _has_ports(record):
        return {}
    shown: dict[str, Any] = dict.fromkeys(record.config.exposed_ports)
    for port in record.ports:
        held = shown.get(f"{port.target}/{port.protocol}") or []
        shown[f"{port.target}/{port.protocol}"] = [*held, {"HostIp": port.address or "0.0.0.0", "HostPort": str(port.published)}]
    return dict(sorted(shown.items()))


def network_settings(record: Record, container: Container) -> dict[str, Any]:
    networks = networks_form(record)
    first = networks.get("bridge", {})
    running = container.running
    return {
        "Bridge": "",
        "SandboxID": container.config.id if running and container.config.netns else "",
        "SandboxKey": container.config.netns if running else "",
        "Ports": ports_map(record, container),
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
        "EndpointID": first.get("EndpointID", ""),
        "Gateway": first.get("Gateway", ""),
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "IPAddress": first.get("IPAddress", ""),
        "IPPrefixLen": first.get("IPPrefixLen", 0),
        "IPv6Gateway": "",
        "MacAddress": first.get("MacAddress", ""),
        "Networks": networks,
    }
