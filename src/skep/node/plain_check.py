"""Is what was asked of a plain container sensible, and can it be done here? Docker's sentences (moby: daemon/container.go,
daemon/daemon_unix.go, runconfig/hostconfig_unix.go); what skep cannot do is refused, never ignored. No I/O."""

from __future__ import annotations

import ipaddress
import os
import re

from skep.clock import MILLISECOND
from skep.engine.base import Limits
from skep.errors import Invalid, NotImplementedHere
from skep.model.spec import Driver, Healthcheck
from skep.node.container import log_options
from skep.node.plain_config import Config, HostConfig, NetworkingConfig, Resources, RestartPolicy
from skep.plan.container import signal_number

SMALLEST_MEMORY = 6 << 20
HAS_CPUS = os.cpu_count() or 1
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+", re.ASCII)
_MAC = re.compile(r"[0-9a-fA-F]{2}(?:[:-][0-9a-fA-F]{2}){5}", re.ASCII)
_HOSTNAME = re.compile(r"[a-zA-Z0-9_](?:[a-zA-Z0-9_.-]{0,62}[a-zA-Z0-9_])?", re.ASCII)
_CPUS = re.compile(r"\d{1,5}(?:-\d{1,5})?(?:,\d{1,5}(?:-\d{1,5})?)*", re.ASCII)
_DEVICE_RULE = re.compile(r"[acb] (?:\d+|\*):(?:\d+|\*) [rwm]{1,3}", re.ASCII)


def container_of(mode: str) -> str:
    """`container:X` -> X; empty for any other mode."""
    return mode.removeprefix("container:") if mode.startswith("container:") else ""


def check_name(name: str) -> str:
    plain = name.removeprefix("/")
    if not _NAME.fullmatch(plain):
        raise Invalid(f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
    return plain


def check(config: Config, host: HostConfig, runtime: str, networking: NetworkingConfig = NetworkingConfig()) -> None:
    """Raises Invalid or NotImplementedHere with one sentence. `runtime`: the name of the one that runs containers here."""
    check_config(config)
    check_restart(host.restart_policy)
    if host.auto_remove and host.restart_policy.name not in ("", "no"):
        raise Invalid("can't create 'AutoRemove' container with restart policy")
    check_network_mode(config, host)
    check_mac_address(config, host.network_mode, networking)
    check_modes(host)
    check_resources(host)
    check_rest(host, runtime)
    check_refused(config, host)
    log_options(Driver(name=host.log_config.type, options=host.log_config.config))


def check_config(config: Config) -> None:
    if config.working_dir and not config.working_dir.startswith("/"):
        raise Invalid(f"the working directory '{config.working_dir}' is invalid, it needs to be an absolute path")
    for item in config.env:
        if not item or item.startswith("="):
            raise Invalid(f"invalid environment variable: {item}")
    if config.hostname and not _HOSTNAME.fullmatch(config.hostname):
        raise Invalid(f"invalid hostname format: {config.hostname}")
    if config.stop_signal:
        signal_number(config.stop_signal)
    if config.mac_address:
        check_mac(config.mac_address)
    for port in config.exposed_ports:
        split_port(port)
    if config.healthcheck is not None:
        _check_health(config.healthcheck)


def _check_health(asked: Healthcheck) -> None:
    for value, name in (
        (asked.interval, "Interval"),
        (asked.timeout, "Timeout"),
        (asked.start_period, "StartPeriod"),
        (asked.start_interval, "StartInterval"),
    ):
        if value and value < MILLISECOND:
            raise Invalid(f"{name} in Healthcheck cannot be less than one millisecond")
    if asked.retries < 0:
        raise Invalid("Retries in Healthcheck cannot be negative")
    if asked.test and asked.test[0] not in ("NONE", "CMD", "CMD-SHELL"):
        raise Invalid(f'Unknown healthcheck type "{asked.test[0]}" (expected "NONE", "CMD", or "CMD-SHELL")')


def check_restart(policy: RestartPolicy) -> None:
    if policy.name not in ("", "no", "always", "on-failure", "unless-stopped"):
        raise Invalid(
            f"invalid restart policy: unknown policy '{policy.name}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        )
    if policy.maximum_retry_count < 0:
        raise Invalid("invalid restart policy: maximum retry count cannot be negative")
    if policy.maximum_retry_count and policy.name != "on-failure":
        raise Invalid("invalid restart policy: maximum retry count can only be used with 'on-failure'")


def split_port(text: str) -> tuple[int, str]:
    """`80/tcp` -> (80, tcp). Raises Invalid."""
    number, _, protocol = text.partition("/")
    protocol = protocol.lower() or "tcp"
    if not number.isascii() or not number.isdigit() or not 0 < int(number) < 65536:
        raise Invalid(f"invalid port specification: {text}")
    if protocol == "sctp":
        raise NotImplementedHere(f"port {text}: skep publishes tcp and udp ports")
    if protocol not in ("tcp", "udp"):
        raise Invalid(f"invalid port specification: unsupported protocol {protocol}")
    return int(number), protocol


def split_range(text: str) -> tuple[int, int]:
    """A host port: `8080` -> (8080, 0), `8000-8010` -> (8000, 8010), empty -> (0, 0)."""
    first, dash, last = text.partition("-")
    if not text:
        return 0, 0
    if not all(part.isascii() and part.isdigit() and int(part) < 65536 for part in ((first, last) if dash else (first,))):
        raise Invalid(f"invalid port specification: {text}")
    if dash and int(last) < int(first):
        raise Invalid(f"invalid port specification: {text}")
    return int(first), int(last) if dash else 0


def check_mac(text: str) -> None:
    if not _MAC.fullmatch(text):
        raise Invalid(f"invalid MAC address: address {text}: invalid MAC address")


def check_network_mode(config: Config, host: HostConfig) -> None:
    mode, conflict = host.network_mode, ""
    for port, bindings in host.port_bindings.items():
        split_port(port)
        for binding in bindings:
            split_range(binding.host_port)
            _check_host_address(binding.host_ip)
    if container_of(mode):
        if config.hostname:
            conflict = "hostname and the network mode"
        elif host.links:
            conflict = "container type network can't be used with links. This would result in undefined behavior"
        elif host.dns:
            conflict = "dns and the network mode"
        elif host.extra_hosts:
            conflict = "custom host-to-IP mapping and the network mode"
        elif config.mac_address:
            conflict = "mac-address and the network mode"
        elif host.port_bindings or host.publish_all_ports:
            conflict = "port publishing and the container type network mode"
        elif config.exposed_ports:
            conflict = "port exposing and the container type network mode"
    elif mode == "container:":
        raise Invalid("invalid container format container:<name|id>")
    elif mode == "host" and host.links:
        conflict = "host type networking can't be used with links. This would result in undefined behavior"
    if host.uts_mode == "host" and config.hostname:
        conflict = "hostname and the UTS mode"
    if conflict:
        raise Invalid(f"conflicting options: {conflict}")
    setting = next((key for key in host.sysctls if key.startswith("net.")), "")
    if setting and mode == "host":
        raise Invalid(f'sysctl "{setting}" not allowed in host network namespace')
    if setting and container_of(mode):
        raise NotImplementedHere(f"sysctl {setting}: the network is that of container {container_of(mode)}, set it there")
    for server in host.dns:
        _address(server, f"invalid DNS address: {server}")
    for entry in host.extra_hosts:
        name, colon, address = entry.partition(":")
        if not name or not colon:
            raise Invalid(f'bad format for add-host: "{entry}"')
        if address != "host-gateway":
            _address(address.strip("[]"), f'invalid IP address in add-host: "{address}"')


def _check_host_address(text: str) -> None:
    if not text:
        return
    if _address(text, f"invalid IP address: {text}").version == 6 and text != "::":
        raise NotImplementedHere(f"publishing at {text}: skep publishes ports at IPv4 addresses only")


def _address(text: str, complaint: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise Invalid(complaint) from None


def check_mac_address(config: Config, mode: str, networking: NetworkingConfig) -> None:
    """Where the interface is not the container's own, or there is none, it can have no address."""
    asked = config.mac_address or any(settings.mac_address for settings in networking.endpoints_config.values())
    if asked and (mode in ("host", "none") or container_of(mode)):
        raise Invalid("conflicting options: mac-address and the network mode")


def check_modes(host: HostConfig) -> None:
    if host.ipc_mode not in ("", "private", "shareable", "none", "host") and not container_of(host.ipc_mode):
        raise Invalid(f"invalid IPC mode: {host.ipc_mode}")
    if host.pid_mode not in ("", "host") and not container_of(host.pid_mode):
        raise Invalid(f"invalid PID mode: {host.pid_mode}")
    if host.uts_mode not in ("", "host"):
        raise Invalid(f"invalid UTS mode: {host.uts_mode}")
    if host.cgroupns_mode not in ("", "private", "host"):
        raise Invalid(f"invalid cgroup namespace mode: {host.cgroupns_mode}")
    if host.userns_mode not in ("", "host"):
        raise Invalid(f"invalid user namespace mode: {host.userns_mode}: skep runs containers in the host's user namespace")


def check_resources(r: Resources, cpus: int = HAS_CPUS) -> None:
    if r.memory and r.memory < SMALLEST_MEMORY:
        raise Invalid("Minimum memory limit allowed is 6MB")
    if r.memory_swap > 0 and not r.memory:
        raise Invalid("You should always set the Memory limit when using Memoryswap limit, see usage")
    if r.memory and 0 < r.memory_swap < r.memory:
        raise Invalid("Minimum memoryswap limit should be larger than memory limit, see usage")
    if r.memory_swap < -1:
        raise Invalid(f"invalid memory swap limit: {r.memory_swap}")
    if not -1 <= r.memory_swappiness <= 100:
        raise Invalid(f"invalid value: {r.memory_swappiness}, valid memory swappiness range is 0-100")
    if r.memory_reservation and r.memory_reservation < SMALLEST_MEMORY:
        raise Invalid("Minimum memory reservation allowed is 6MB")
    if 0 < r.memory < r.memory_reservation:
        raise Invalid("Minimum memory limit can not be less than memory reservation limit, see usage")
    if r.nano_cpus and (r.cpu_period or r.cpu_quota):
        other = "Period" if r.cpu_period else "Quota"
        raise Invalid(f"Conflicting options: Nano CPUs and CPU {other} cannot both be set")
    if not 0 <= r.nano_cpus <= cpus * 10**9:
        raise Invalid(f"range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available")
    if r.cpu_period and not 1000 <= r.cpu_period <= 1_000_000:
        raise Invalid("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
    if 0 < r.cpu_quota < 1000:
        raise Invalid("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    if r.cpuset_cpus and not _CPUS.fullmatch(r.cpuset_cpus):
        raise Invalid(f"Invalid value {r.cpuset_cpus} for cpuset cpus")
    if r.cpuset_cpus and max(int(number) for number in re.findall(r"\d+", r.cpuset_cpus)) >= cpus:
        there = f"0-{cpus - 1}" if cpus > 1 else "0"
        raise Invalid(f"Requested CPUs are not available - requested {r.cpuset_cpus}, available: {there}")
    if r.cpuset_mems and not _CPUS.fullmatch(r.cpuset_mems):
        raise Invalid(f"Invalid value {r.cpuset_mems} for cpuset mems")
    if r.blkio_weight and not 10 <= r.blkio_weight <= 1000:
        raise Invalid("Range of blkio weight is from 10 to 1000")
    if r.cpu_shares < 0:
        raise Invalid(f"invalid CPU shares ({r.cpu_shares}): value must be a positive integer")
    if r.blkio_weight_device or r.blkio_device_read_bps or r.blkio_device_write_bps:
        raise NotImplementedHere("skep does not limit single block devices yet: use --blkio-weight")
    if r.blkio_device_read_iops or r.blkio_device_write_iops:
        raise NotImplementedHere("skep does not limit single block devices yet: use --blkio-weight")
    if r.kernel_memory or r.kernel_memory_tcp:
        raise NotImplementedHere("limits of kernel memory are not available: current kernels do not have them")
    if r.cpu_count or r.cpu_percent or r.io_maximum_iops or r.io_maximum_bandwidth:
        raise Invalid("CpuCount, CpuPercent, IOMaximumIOps and IOMaximumBandwidth are for Windows containers")


def limits_of(r: Resources) -> Limits:
    return Limits(
        nano_cpus=r.nano_cpus,
        memory=r.memory,
        memory_reservation=r.memory_reservation,
        memory_swap=r.memory_swap,
        memory_swappiness=r.memory_swappiness,
        oom_kill_disable=r.oom_kill_disable,
        pids=max(r.pids_limit, 0),
        cpu_shares=r.cpu_shares,
        cpu_period=r.cpu_period,
        cpu_quota=r.cpu_quota,
        cpu_realtime_period=r.cpu_realtime_period,
        cpu_realtime_runtime=r.cpu_realtime_runtime,
        cpuset_cpus=r.cpuset_cpus,
        cpuset_mems=r.cpuset_mems,
        blkio_weight=r.blkio_weight,
    )


def check_rest(host: HostConfig, runtime: str) -> None:
    if host.shm_size < 0:
        raise Invalid("SHM size can not be less than 0")
    if not -1000 <= host.oom_score_adj <= 1000:
        raise Invalid(f"Invalid value {host.oom_score_adj}, range for oom score adj is [-1000, 1000]")
    if host.isolation not in ("", "default"):
        raise Invalid(f"invalid isolation '{host.isolation}' on linux")
    if host.runtime not in ("", runtime):
        raise Invalid(f"unknown or invalid runtime name: {host.runtime}")
    if host.cgroup_parent and (".." in host.cgroup_parent.split("/") or host.cgroup_parent.endswith(".slice")):
        raise Invalid(f"invalid cgroup parent {host.cgroup_parent}: give a path below the cgroup root, /name")
    for rule in host.device_cgroup_rules:
        if not _DEVICE_RULE.fullmatch(rule):
            raise Invalid(f"invalid device cgroup rule format: '{rule}'")
    for device in host.devices:
        if not device.path_on_host.startswith("/") or device.cgroup_permissions.strip("rwm"):
            raise Invalid(f"invalid device mapping: {device.path_on_host}:{device.path_in_container}:{device.cgroup_permissions}")
    for ulimit in host.ulimits:
        if -1 < ulimit.hard < ulimit.soft or (ulimit.soft == -1 and ulimit.hard != -1):
            raise Invalid(f"ulimit soft limit must be less than or equal to hard limit: {ulimit.soft} > {ulimit.hard}")
    security_of(host.security_opt)


def check_refused(config: Config, host: HostConfig) -> None:
    """What Docker has and skep has not."""
    if host.annotations:
        raise NotImplementedHere("skep does not pass annotations to the runtime: use labels")
    if host.storage_opt:
        raise Invalid("--storage-opt is supported only for overlay over xfs with 'pquota' mount option")
    if host.device_requests:
        request = host.device_requests[0]
        capabilities = " ".join("[" + " ".join(group) + "]" for group in request.capabilities)
        raise Invalid(f'could not select device driver "{request.driver}" with capabilities: [{capabilities}]')
    if host.volume_driver not in ("", "local"):
        raise NotImplementedHere(f"volume driver {host.volume_driver}: skep has the local driver only")
    if host.cgroup:
        raise Invalid(f"invalid cgroup mode: {host.cgroup}")
    if config.on_build:
        raise Invalid("OnBuild belongs into an image: skep does not build images")


def security_of(options: tuple[str, ...]) -> tuple[bool, str]:
    """`--security-opt`: (no new privileges, seccomp: default, unconfined or JSON). Raises Invalid."""
    no_new, seccomp = False, "default"
    for option in options:
        key, equals, value = option.partition("=")
        if not equals and ":" in key:
            key, equals, value = option.partition(":")
        if key == "no-new-privileges" and value in ("", "true", "1", "false", "0"):
            no_new = value not in ("false", "0")
        elif key == "seccomp" and equals:
            seccomp = "default" if value == "builtin" else value
        elif key == "apparmor" and equals:
            if value != "unconfined":
                raise NotImplementedHere(f"AppArmor profile {value}: skep does not load AppArmor profiles, use apparmor=unconfined")
        elif key == "label" and equals:
            if value not in ("disable", "disabled"):
                raise NotImplementedHere(f"label {value}: skep does not set SELinux labels, use label=disable")
        else:
            raise Invalid(f'invalid --security-opt 2: "{option}"' if equals else f'invalid --security-opt 1: "{option}"')
    return no_new, seccomp


def with_tag(reference: str) -> str:
    """`x` -> `x:latest`, as Docker's errors show it."""
    if "@" in reference or reference.startswith("sha256:") or ":" in reference.rpartition("/")[2]:
        return reference
    return f"{reference}:latest"
