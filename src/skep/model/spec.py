"""What a user asks for: Docker's service, node, network and cluster specs (engine API 1.50). Times are nanoseconds, sizes bytes.

Strings stay strings where Docker's type is a string with a few allowed values: a value nobody knows is refused by the control API with
Docker's own sentence, which a decoder could not give. `defaults.py` says what an absent value means. Over 400 lines: one tree of
types, in the order in which it nests.
"""

from __future__ import annotations

from typing import Any

from skep.model.base import Spec, always


class Driver(Spec, frozen=True, kw_only=True):
    name: str = ""
    options: dict[str, str] | None = None


class CredentialSpec(Spec, frozen=True, kw_only=True):
    config: str = always("")
    file: str = always("")
    registry: str = always("")


class SELinuxContext(Spec, frozen=True, kw_only=True):
    disable: bool = always(False)
    user: str = always("")
    role: str = always("")
    type: str = always("")
    level: str = always("")


class SeccompOpts(Spec, frozen=True, kw_only=True):
    mode: str = ""
    profile: str = ""
    """Base64 of the profile's JSON."""


class AppArmorOpts(Spec, frozen=True, kw_only=True):
    mode: str = ""


class Privileges(Spec, frozen=True, kw_only=True):
    credential_spec: CredentialSpec | None = always(None)
    selinux_context: SELinuxContext | None = always(None)
    seccomp: SeccompOpts | None = None
    app_armor: AppArmorOpts | None = None
    no_new_privileges: bool = always(False)


class BindOptions(Spec, frozen=True, kw_only=True):
    propagation: str = ""
    non_recursive: bool = False
    create_mountpoint: bool = False
    read_only_non_recursive: bool = False
    read_only_force_recursive: bool = False


class VolumeOptions(Spec, frozen=True, kw_only=True):
    no_copy: bool = False
    labels: dict[str, str] | None = None
    subpath: str = ""
    driver_config: Driver | None = None


class ImageOptions(Spec, frozen=True, kw_only=True):
    subpath: str = ""


class TmpfsOptions(Spec, frozen=True, kw_only=True):
    size_bytes: int = 0
    mode: int = 0
    options: tuple[tuple[str, ...], ...] | None = None


class ClusterOptions(Spec, frozen=True, kw_only=True):
    pass


class Mount(Spec, frozen=True, kw_only=True):
    type: str = ""
    """bind, volume, tmpfs, npipe, cluster or image."""
    source: str = ""
    target: str = ""
    read_only: bool = False
    consistency: str = ""
    bind_options: BindOptions | None = None
    volume_options: VolumeOptions | None = None
    image_options: ImageOptions | None = None
    tmpfs_options: TmpfsOptions | None = None
    cluster_options: ClusterOptions | None = None


class Healthcheck(Spec, frozen=True, kw_only=True):
    test: tuple[str, ...] | None = None
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class DNSConfig(Spec, frozen=True, kw_only=True):
    nameservers: tuple[str, ...] | None = None
    search: tuple[str, ...] | None = None
    options: tuple[str, ...] | None = None


class FileTarget(Spec, frozen=True, kw_only=True):
    name: str = always("")
    uid: str = always("")
    gid: str = always("")
    mode: int = always(0)


class SecretReference(Spec, frozen=True, kw_only=True):
    file: FileTarget | None = None
    secret_id: str = always("")
    secret_name: str = always("")


class RuntimeTarget(Spec, frozen=True, kw_only=True):
    pass


class ConfigReference(Spec, frozen=True, kw_only=True):
    file: FileTarget | None = None
    runtime: RuntimeTarget | None = None
    config_id: str = always("")
    config_name: str = always("")


class Ulimit(Spec, frozen=True, kw_only=True):
    name: str = always("")
    hard: int = always(0)
    soft: int = always(0)


class ContainerSpec(Spec, frozen=True, kw_only=True):
    image: str = ""
    labels: dict[str, str] | None = None
    command: tuple[str, ...] | None = None
    """Replaces the image's ENTRYPOINT."""
    args: tuple[str, ...] | None = None
    """Replaces the image's CMD."""
    hostname: str = ""
    env: tuple[str, ...] | None = None
    dir: str = ""
    user: str = ""
    groups: tuple[str, ...] | None = None
    privileges: Privileges | None = None
    init: bool | None = None
    stop_signal: str = ""
    tty: bool = False
    open_stdin: bool = False
    read_only: bool = False
    mounts: tuple[Mount, ...] | None = None
    stop_grace_period: int | None = None
    healthcheck: Healthcheck | None = None
    hosts: tuple[str, ...] | None = None
    """`IP name...`, as in hosts(5)."""
    dns_config: DNSConfig | None = None
    secrets: tuple[SecretReference, ...] | None = None
    configs: tuple[ConfigReference, ...] | None = None
    isolation: str = ""
    sysctls: dict[str, str] | None = None
    capability_add: tuple[str, ...] | None = None
    capability_drop: tuple[str, ...] | None = None
    ulimits: tuple[Ulimit, ...] | None = None
    oom_score_adj: int = 0


class NamedGenericResource(Spec, frozen=True, kw_only=True):
    kind: str = ""
    value: str = ""


class DiscreteGenericResource(Spec, frozen=True, kw_only=True):
    kind: str = ""
    value: int = 0


class GenericResource(Spec, frozen=True, kw_only=True):
    named_resource_spec: NamedGenericResource | None = None
    discrete_resource_spec: DiscreteGenericResource | None = None


class Limits(Spec, frozen=True, kw_only=True):
    nano_cpus: int = 0
    memory_bytes: int = 0
    pids: int = 0


class Reservations(Spec, frozen=True, kw_only=True):
    nano_cpus: int = 0
    memory_bytes: int = 0
    generic_resources: tuple[GenericResource, ...] | None = None


class ResourceRequirements(Spec, frozen=True, kw_only=True):
    limits: Limits | None = None
    reservations: Reservations | None = None


class RestartPolicy(Spec, frozen=True, kw_only=True):
    condition: str = ""
    delay: int | None = None
    max_attempts: int | None = None
    window: int | None = None


class SpreadOver(Spec, frozen=True, kw_only=True):
    spread_descriptor: str = always("")


class PlacementPreference(Spec, frozen=True, kw_only=True):
    spread: SpreadOver | None = None


class Platform(Spec, frozen=True, kw_only=True):
    architecture: str = ""
    os: str = ""


class Placement(Spec, frozen=True, kw_only=True):
    constraints: tuple[str, ...] | None = None
    preferences: tuple[PlacementPreference, ...] | None = None
    max_replicas: int = 0
    platforms: tuple[Platform, ...] | None = None


class NetworkAttachmentConfig(Spec, frozen=True, kw_only=True):
    target: str = ""
    """The network's id (a name is resolved by the control API)."""
    aliases: tuple[str, ...] | None = None
    driver_opts: dict[str, str] | None = None


class AttachmentSpec(Spec, frozen=True, kw_only=True):
    """A plain container's place on an attachable network."""

    container_id: str = always("")


class TaskSpec(Spec, frozen=True, kw_only=True):
    """`Spec.TaskTemplate` of a service, and `Spec` of a task."""

    container_spec: ContainerSpec | None = None
    plugin_spec: dict[str, Any] | None = None
    network_attachment_spec: AttachmentSpec | None = None
    resources: ResourceRequirements | None = None
    restart_policy: RestartPolicy | None = None
    placement: Placement | None = None
    networks: tuple[NetworkAttachmentConfig, ...] | None = None
    log_driver: Driver | None = None
    force_update: int = always(0)
    runtime: str = ""


class Replicated(Spec, frozen=True, kw_only=True):
    replicas: int | None = None


class Global(Spec, frozen=True, kw_only=True):
    pass


class ReplicatedJob(Spec, frozen=True, kw_only=True):
    max_concurrent: int | None = None
    total_completions: int | None = None


class GlobalJob(Spec, frozen=True, kw_only=True):
    pass


class Mode(Spec, frozen=True, kw_only=True):
    """Exactly one of them is set (the control API normalises)."""

    replicated: Replicated | None = None
    global_: Global | None = None
    replicated_job: ReplicatedJob | None = None
    global_job: GlobalJob | None = None


class UpdateConfig(Spec, frozen=True, kw_only=True):
    parallelism: int = always(0)
    """0 = all at once. An absent UpdateConfig means 1."""
    delay: int = 0
    failure_action: str = ""
    monitor: int = 0
    max_failure_ratio: int | float = always(0)
    """Shown as it was said: 0 stays 0, as Go writes it."""
    order: str = always("")


class PortConfig(Spec, frozen=True, kw_only=True):
    name: str = ""
    protocol: str = ""
    """tcp, udp or sctp."""
    target_port: int = 0
    published_port: int = 0
    """0 in ingress mode: one from 30000 to 32767 is given."""
    publish_mode: str = ""
    """ingress or host."""


class EndpointSpec(Spec, frozen=True, kw_only=True):
    mode: str = ""
    ports: tuple[PortConfig, ...] | None = None


class ServiceSpec(Spec, frozen=True, kw_only=True):
    name: str = ""
    labels: dict[str, str] = always({})
    task_template: TaskSpec = TaskSpec()
    mode: Mode = always(Mode())
    update_config: UpdateConfig | None = None
    rollback_config: UpdateConfig | None = None
    networks: tuple[NetworkAttachmentConfig, ...] | None = None
    """Deprecated by Docker in favour of the task template's; still read."""
    endpoint_spec: EndpointSpec | None = None


class NodeSpec(Spec, frozen=True, kw_only=True):
    name: str = ""
    labels: dict[str, str] = always({})
    role: str = ""
    availability: str = ""


class IPAMConfig(Spec, frozen=True, kw_only=True):
    subnet: str = ""
    ip_range: str = ""
    gateway: str = ""
    auxiliary_addresses: dict[str, str] | None = None


class IPAMOptions(Spec, frozen=True, kw_only=True):
    driver: Driver | None = None
    configs: tuple[IPAMConfig, ...] | None = None


class NetworkSpec(Spec, frozen=True, kw_only=True):
    """A cluster network, in the form that tasks carry (`NetworksAttachments[].Network.Spec`)."""

    name: str = ""
    labels: dict[str, str] = always({})
    driver_configuration: Driver | None = None
    ipv6_enabled: bool = False
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    ipam_options: IPAMOptions | None = None
    scope: str = ""


class OrchestrationConfig(Spec, frozen=True, kw_only=True):
    task_history_retention_limit: int | None = None


class RaftConfig(Spec, frozen=True, kw_only=True):
    snapshot_interval: int = 0
    keep_old_snapshots: int | None = None
    log_entries_for_slow_followers: int = 0
    election_tick: int = always(0)
    heartbeat_tick: int = always(0)


class DispatcherConfig(Spec, frozen=True, kw_only=True):
    heartbeat_period: int = 0


class ExternalCA(Spec, frozen=True, kw_only=True):
    protocol: str = always("")
    url: str = always("")
    options: dict[str, str] | None = None
    ca_cert: str = always("")


class CAConfig(Spec, frozen=True, kw_only=True):
    node_cert_expiry: int = 0
    external_cas: tuple[ExternalCA, ...] | None = None
    signing_ca_cert: str = ""
    signing_ca_key: str = ""
    force_rotate: int = 0


class TaskDefaults(Spec, frozen=True, kw_only=True):
    log_driver: Driver | None = None


class EncryptionConfig(Spec, frozen=True, kw_only=True):
    auto_lock_managers: bool = always(False)


class ClusterSpec(Spec, frozen=True, kw_only=True):
    name: str = ""
    labels: dict[str, str] = always({})
    orchestration: OrchestrationConfig = always(OrchestrationConfig())
    raft: RaftConfig = always(RaftConfig())
    dispatcher: DispatcherConfig = always(DispatcherConfig())
    ca_config: CAConfig = always(CAConfig())
    task_defaults: TaskDefaults = always(TaskDefaults())
    encryption_config: EncryptionConfig = always(EncryptionConfig())
