"""What a client asks of a plain container (`POST /containers/create`), and what is kept of one: both under Docker's names.

`Record` is all that is needed to run a container again and to show it. It lives in the engine's record (`ContainerConfig.extra`), so a
restart of the daemon finds it; nothing of it is in memory only. See docs/containers.md.
"""

from __future__ import annotations

from typing import Any

import msgspec

from skep.datapath.base import HostPort
from skep.engine.base import ContainerConfig
from skep.model.base import Record as Stored
from skep.model.base import Spec
from skep.model.spec import Healthcheck, Mount, Ulimit

KEY = "plain"
"""Of `ContainerConfig.extra`."""


def named(default: Any, name: str) -> Any:
    """A field whose JSON name does not follow from its own."""
    return msgspec.field(default=default, name=name)


class EndpointIPAM(Spec, frozen=True, kw_only=True):
    ipv4_address: str = ""
    ipv6_address: str = ""
    link_local_ips: tuple[str, ...] = ()


class EndpointSettings(Spec, frozen=True, kw_only=True):
    """How a container wants to be on a network."""

    ipam_config: EndpointIPAM | None = None
    links: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    mac_address: str = ""
    driver_opts: dict[str, str] = {}
    gw_priority: int = 0
    network_id: str = ""

    @property
    def address(self) -> str:
        return self.ipam_config.ipv4_address if self.ipam_config is not None else ""


class NetworkingConfig(Spec, frozen=True, kw_only=True):
    endpoints_config: dict[str, EndpointSettings] = {}


class PortBinding(Spec, frozen=True, kw_only=True):
    host_ip: str = named("", "HostIp")
    host_port: str = ""


class LogConfig(Spec, frozen=True, kw_only=True):
    type: str = ""
    config: dict[str, str] = {}


class RestartPolicy(Spec, frozen=True, kw_only=True):
    name: str = ""
    """Empty or no, always, unless-stopped, on-failure."""
    maximum_retry_count: int = 0


class DeviceMapping(Spec, frozen=True, kw_only=True):
    path_on_host: str = ""
    path_in_container: str = ""
    cgroup_permissions: str = ""


class DeviceRequest(Spec, frozen=True, kw_only=True):
    driver: str = ""
    capabilities: tuple[tuple[str, ...], ...] = ()


class Resources(Spec, frozen=True, kw_only=True):
    """The part of HostConfig that `docker update` may change too."""

    cpu_shares: int = 0
    memory: int = 0
    nano_cpus: int = named(0, "NanoCpus")
    blkio_weight: int = 0
    blkio_weight_device: tuple[dict[str, Any], ...] = ()
    blkio_device_read_bps: tuple[dict[str, Any], ...] = ()
    blkio_device_write_bps: tuple[dict[str, Any], ...] = ()
    blkio_device_read_iops: tuple[dict[str, Any], ...] = named((), "BlkioDeviceReadIOps")
    blkio_device_write_iops: tuple[dict[str, Any], ...] = named((), "BlkioDeviceWriteIOps")
    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_realtime_period: int = 0
    cpu_realtime_runtime: int = 0
    cpuset_cpus: str = named("", "CpusetCpus")
    cpuset_mems: str = ""
    memory_reservation: int = 0
    memory_swap: int = 0
    memory_swappiness: int = -1
    oom_kill_disable: bool = False
    pids_limit: int = 0
    cpu_count: int = 0
    cpu_percent: int = 0
    io_maximum_iops: int = named(0, "IOMaximumIOps")
    io_maximum_bandwidth: int = named(0, "IOMaximumBandwidth")
    kernel_memory: int = 0
    kernel_memory_tcp: int = named(0, "KernelMemoryTCP")


class HostConfig(Resources, frozen=True, kw_only=True):
    binds: tuple[str, ...] = ()
    log_config: LogConfig = LogConfig()
    network_mode: str = ""
    port_bindings: dict[str, tuple[PortBinding, ...]] = {}
    restart_policy: RestartPolicy = RestartPolicy()
    auto_remove: bool = False
    volume_driver: str = ""
    volumes_from: tuple[str, ...] = ()
    console_size: tuple[int, int] = (0, 0)
    annotations: dict[str, str] = {}
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    cgroupns_mode: str = ""
    dns: tuple[str, ...] = named((), "Dns")
    dns_options: tuple[str, ...] = named((), "DnsOptions")
    dns_search: tuple[str, ...] = named((), "DnsSearch")
    extra_hosts: tuple[str, ...] = ()
    group_add: tuple[str, ...] = ()
    ipc_mode: str = ""
    cgroup: str = ""
    links: tuple[str, ...] = ()
    oom_score_adj: int = 0
    pid_mode: str = ""
    privileged: bool = False
    publish_all_ports: bool = False
    readonly_rootfs: bool = False
    security_opt: tuple[str, ...] = ()
    storage_opt: dict[str, str] = {}
    tmpfs: dict[str, str] = {}
    uts_mode: str = named("", "UTSMode")
    userns_mode: str = ""
    shm_size: int = 0
    sysctls: dict[str, str] = {}
    runtime: str = ""
    isolation: str = ""
    cgroup_parent: str = ""
    devices: tuple[DeviceMapping, ...] = ()
    device_cgroup_rules: tuple[str, ...] = ()
    device_requests: tuple[DeviceRequest, ...] = ()
    ulimits: tuple[Ulimit, ...] = ()
    mounts: tuple[Mount, ...] = ()
    init: bool | None = None
    masked_paths: tuple[str, ...] | None = None
    readonly_paths: tuple[str, ...] | None = None


class Config(Spec, frozen=True, kw_only=True):
    """Docker's `Config`: the portable half. After `merged` with the image's part, as `inspect` shows it."""

    hostname: str = ""
    domainname: str = ""
    user: str = ""
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    exposed_ports: dict[str, dict[str, Any]] = {}
    tty: bool = named(False, "Tty")
    open_stdin: bool = False
    stdin_once: bool = False
    env: tuple[str, ...] = ()
    cmd: tuple[str, ...] | str | None = None
    healthcheck: Healthcheck | None = None
    args_escaped: bool = False
    image: str = ""
    volumes: dict[str, dict[str, Any]] = {}
    working_dir: str = ""
    entrypoint: tuple[str, ...] | str | None = None
    network_disabled: bool = False
    mac_address: str = ""
    on_build: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    stop_signal: str = ""
    stop_timeout: int | None = None
    shell: tuple[str, ...] = ()


class CreateRequest(Config, frozen=True, kw_only=True):
    """The body."""

    host_config: HostConfig = HostConfig()
    networking_config: NetworkingConfig = NetworkingConfig()


class UpdateRequest(Resources, frozen=True, kw_only=True):
    """Body of POST /containers/{id}/update: what is absent or zero stays as it is."""

    restart_policy: RestartPolicy | None = None


# what is kept


class Point(Stored, frozen=True, kw_only=True):
    """A mount as `inspect` lists it."""

    type: str
    """bind, volume or tmpfs."""
    target: str
    source: str = ""
    name: str = ""
    mode: str = ""
    read_write: bool = True
    propagation: str = ""
    anonymous: bool = False
    """Its volume was made for this container alone: `docker rm -v` and --rm take it along."""
    make_source: bool = False
    """A folder of the host that is made when it is not there (`-v /path:...`)."""


class Joined(Stored, frozen=True, kw_only=True):
    """A network that the container is on, or joins when it starts."""

    network: str
    """Name, as it was asked for or as the network says."""
    network_id: str = ""
    """Empty until it was found."""
    settings: EndpointSettings = EndpointSettings()
    endpoint_id: str = ""
    """This and the rest: only while it runs."""
    address: str = ""
    """With prefix length."""
    gateway: str = ""
    mac: str = ""
    names: tuple[str, ...] = ()


def blank(one: Joined) -> Joined:
    """As it is while the container does not run."""
    return msgspec.structs.replace(one, endpoint_id="", address="", gateway="", mac="", names=())


class Record(Stored, frozen=True, kw_only=True):
    config: Config
    host: HostConfig
    points: tuple[Point, ...] = ()
    joined: tuple[Joined, ...] = ()
    ports: tuple[HostPort, ...] = ()
    """As published now."""
    stopped: bool = False
    """By hand: `unless-stopped` leaves it so."""
    restarts: int = 0
    delay: int = 0
    """Of the last restart by policy; the next one waits longer."""
    due: int = 0
    """When it is started again by its policy; 0: it is not."""
    error: str = ""
    """Why the last start failed, with this code."""
    error_code: int = 0
    health: str = ""
    """As last told; empty: not checked."""


def extra_of(record: Record) -> dict[str, Any]:
    """For `ContainerConfig.extra`; `image` is what others look for there."""
    return {"image": record.config.image, KEY: msgspec.to_builtins(record)}


def record_of(config: ContainerConfig) -> Record | None:
    """None: not a plain container of ours (a task's)."""
    stored = config.extra.get(KEY)
    return msgspec.convert(stored, Record) if stored is not None else None
