"""What a spec must be to be stored, in Docker's words (reference: SwarmKit's manager/controlapi, the engine's spec conversion).

Errors of the engine's layer (enumerations, runtime) carry no gRPC prefix, those of the store's do: scripts look for both.
"""

from __future__ import annotations

import json
import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import msgspec

from skep.clock import MILLISECOND
from skep.errors import Forbidden, Invalid, NotImplementedHere
from skep.model.enums import Condition, FailureAction, Order
from skep.model.labels import check_container_labels, parse_labels
from skep.model.spec import (
    ContainerSpec,
    EndpointSpec,
    Healthcheck,
    IPAMOptions,
    Limits,
    NetworkSpec,
    PortConfig,
    Reservations,
    ServiceSpec,
    TaskSpec,
    UpdateConfig,
)
from skep.plan.container import check_container
from skep.plan.schedule.constraint import validate_constraints
from skep.plan.template import DUMMY, expand_spec

NAME = re.compile(r"[a-zA-Z0-9](?:[-_]*[A-Za-z0-9]+)*", re.ASCII)
MOUNT_TYPES = frozenset({"bind", "volume", "tmpfs", "npipe", "cluster", "image"})
PROTOCOLS = frozenset({"tcp", "udp", "sctp"})
PREDEFINED_LABEL = "com.docker.swarm.predefined"
MTU = "com.docker.network.driver.mtu"
MAX_REPLICAS = 1_000_000
"""What one service may ask for: a slip of the finger must not fill the manager's memory."""

_HOST = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_HOST}(?:\.{_HOST})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?", re.ASCII)
_PATH = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*", re.ASCII)
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}", re.ASCII)
_IMAGE_ID = re.compile(r"[a-f0-9]{64}", re.ASCII)


def invalid(text: str) -> Invalid:
    return Invalid(text, rpc="InvalidArgument")


def quoted(text: str) -> str:
    """As Go prints %q."""
    return json.dumps(text, ensure_ascii=False)


def check_service(spec: ServiceSpec) -> None:
    """All that can be said of a normalised spec without looking at the store."""
    _check_words(spec)
    check_name(spec.name)
    _check_labels(spec)
    check_task(spec.task_template)
    check_expanded(spec)
    _check_mode(spec)
    for config in (spec.update_config, spec.rollback_config):
        _check_rollout(config)
    _check_endpoint(spec.endpoint_spec)


def check_name(name: str) -> None:
    if not name:
        raise invalid("meta: name must be provided")
    if not NAME.fullmatch(name):
        raise invalid("name must be valid as a DNS name component")
    if len(name) > 63:
        raise invalid("name must be 63 characters or fewer")


def _check_words(spec: ServiceSpec) -> None:
    """What the engine's layer refuses before the store sees it."""
    task = spec.task_template
    if task.runtime == "plugin":
        raise NotImplementedHere("skep does not run plugins as services")
    if task.runtime not in ("", "container"):
        raise Invalid("unsupported runtime")
    if task.container_spec is None:
        raise Invalid("mismatched Runtime and *Spec fields")
    for mount in task.container_spec.mounts or ():
        if mount.type not in MOUNT_TYPES:
            raise Invalid(f"invalid MountType: {quoted(mount.type)}")
    if task.restart_policy is not None and task.restart_policy.condition not in list(Condition):
        raise Invalid(f"invalid RestartCondition: {quoted(task.restart_policy.condition)}")
    for config in (spec.update_config, spec.rollback_config):
        if config is not None and config.failure_action not in list(FailureAction):
            raise Invalid(f"unrecognized update failure action {config.failure_action}")
        if config is not None and config.order not in list(Order):
            raise Invalid(f"unrecognized update order {config.order}")
    if spec.endpoint_spec is not None and spec.endpoint_spec.mode not in ("vip", "dnsrr"):
        raise Invalid(f"invalid resolution mode: {quoted(spec.endpoint_spec.mode)}")
    if sum(mode is not None for mode in (spec.mode.replicated, spec.mode.global_, spec.mode.replicated_job, spec.mode.global_job)) > 1:
        raise Invalid("must specify only one service mode")


def _check_labels(spec: ServiceSpec) -> None:
    parse_labels(spec.labels)
    container = spec.task_template.container_spec
    check_container_labels((container.labels if container else None) or {})


def check_task(task: TaskSpec) -> None:
    if task.resources is not None:
        _check_resources(task.resources.limits)
        _check_resources(task.resources.reservations)
    if task.restart_policy is not None:
        if (task.restart_policy.delay or 0) < 0:
            raise invalid("TaskSpec: restart-delay cannot be negative")
        if (task.restart_policy.window or 0) < 0:
            raise invalid("TaskSpec: restart-window cannot be negative")
    if task.placement is not None:
        validate_constraints(task.placement.constraints or ())
        if task.placement.max_replicas < 0:
            raise invalid("TaskSpec: max-replicas cannot be negative")
    if task.container_spec is not None:
        _check_container(task.container_spec)


def _check_resources(resources: Limits | Reservations | None) -> None:
    if resources is None:
        return
    if resources.nano_cpus and resources.nano_cpus < 1_000_000:
        raise invalid(f"invalid cpu value {resources.nano_cpus / 1e9!r}: Must be at least 0.001")
    if resources.memory_bytes and resources.memory_bytes < 4 << 20:
        raise invalid(f"invalid memory value {resources.memory_bytes}: Must be at least 4MiB")
    if isinstance(resources, Reservations):
        for generic in resources.generic_resources or ():
            if generic.named_resource_spec is not None:
                raise invalid(f"invalid argument for resource {generic.named_resource_spec.kind}")
            if (
                generic.discrete_resource_spec is None
                or not generic.discrete_resource_spec.kind
                or generic.discrete_resource_spec.value < 0
            ):
                raise invalid("invalid generic resource: a kind and a number are needed")


def _check_container(container: ContainerSpec) -> None:
    if container.secrets:
        raise NotImplementedHere("skep does not keep secrets yet: take them out of the service")
    if container.configs:
        raise NotImplementedHere("skep does not keep configs yet: take them out of the service")
    if not container.image:
        raise invalid("ContainerSpec: image reference must be provided")
    if not image_reference(container.image):
        raise invalid(f"ContainerSpec: {quoted(container.image)} is not a valid repository/tag")
    if container.healthcheck is not None:
        _check_health(container.healthcheck)


def check_expanded(spec: ServiceSpec) -> None:
    """A dry run: what the templates make of it must be something that a node can run. A node's own words are stood in for."""
    container = spec.task_template.container_spec
    if container is None:
        return
    context = msgspec.structs.replace(DUMMY, service_name=spec.name, service_labels=spec.labels)
    try:
        expanded = expand_spec(container, context)
    except Invalid as error:
        raise invalid(error.text) from None
    targets: set[str] = set()
    for mount in expanded.mounts or ():
        if mount.target in targets:
            raise invalid(f"ContainerSpec: duplicate mount point: {mount.target}")
        targets.add(mount.target)
    check_container(expanded, hostname="{{" not in container.hostname)


def image_reference(text: str) -> bool:
    """Does it name an image as Docker's clients write it (the normalised form: a short name is one of Docker Hub's)?"""
    if _IMAGE_ID.fullmatch(text):
        return False
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        return False
    head, slash, tail = rest.partition("/")
    if slash and ("." in head or ":" in head or head == "localhost" or head.lower() != head):
        if not _DOMAIN.fullmatch(head):
            return False
        rest = tail
    name, colon, tag = rest.partition(":")
    if colon and not _TAG.fullmatch(tag):
        return False
    return bool(_PATH.fullmatch(name)) and len(text.partition("@")[0]) <= 384


def _check_health(health: Healthcheck) -> None:
    for name, value in (
        ("Interval", health.interval),
        ("Timeout", health.timeout),
        ("StartPeriod", health.start_period),
        ("StartInterval", health.start_interval),
    ):
        if value and value < MILLISECOND:
            raise invalid(f"ContainerSpec: {name} in HealthConfig cannot be less than 1ms")
    if (health.retries or 0) < 0:
        raise invalid("ContainerSpec: Retries in HealthConfig cannot be negative")


def _check_mode(spec: ServiceSpec) -> None:
    if spec.mode.replicated_job is not None or spec.mode.global_job is not None:
        if spec.update_config is not None:
            raise invalid("Jobs may not have an update config")
        raise NotImplementedHere('skep does not run jobs yet: use a replicated or global service with restart condition "none"')
    if spec.mode.replicated is not None:
        replicas = spec.mode.replicated.replicas or 0
        if replicas < 0:
            raise invalid("Number of replicas must be non-negative")
        if replicas > MAX_REPLICAS:
            raise invalid(f"Number of replicas must be at most {MAX_REPLICAS}")


def _check_rollout(config: UpdateConfig | None) -> None:
    if config is None:
        return
    if config.delay < 0:
        raise invalid("TaskSpec: update-delay cannot be negative")
    if config.monitor < 0:
        raise invalid("TaskSpec: update-monitor cannot be negative")
    if not 0 <= config.max_failure_ratio <= 1:
        raise invalid("TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1")
    if config.parallelism < 0:
        raise invalid("TaskSpec: update-parallelism cannot be negative")


def _check_endpoint(endpoint: EndpointSpec | None) -> None:
    if endpoint is None:
        return
    published: set[tuple[int, str]] = set()
    for port in endpoint.ports or ():
        _check_port(port)
        if endpoint.mode == "dnsrr" and port.publish_mode == "ingress":
            raise invalid("EndpointSpec: port published with ingress mode can't be used with dnsrr mode")
        if port.published_port == 0:
            continue
        if (port.published_port, port.protocol) in published:
            raise invalid("EndpointSpec: duplicate published ports provided")
        published.add((port.published_port, port.protocol))


def _check_port(port: PortConfig) -> None:
    if port.protocol not in PROTOCOLS:
        raise invalid(f"EndpointSpec: invalid protocol {quoted(port.protocol)}")
    if port.publish_mode not in ("ingress", "host"):
        raise invalid(f"EndpointSpec: invalid publish mode {quoted(port.publish_mode)}")
    if not 1 <= port.target_port <= 65535:
        raise invalid(f"EndpointSpec: invalid target port {port.target_port}")
    if not 0 <= port.published_port <= 65535:
        raise invalid(f"EndpointSpec: invalid published port {port.published_port}")


def check_network(spec: NetworkSpec) -> None:
    """A cluster network: an overlay."""
    if spec.attachable and spec.ingress:
        raise invalid("ingress network cannot be attachable")
    if spec.internal and spec.ingress:
        raise invalid("ingress network cannot be internal")
    check_name(spec.name)
    if PREDEFINED_LABEL in spec.labels:
        raise Forbidden(
            f"label {PREDEFINED_LABEL} is for internally created predefined networks and cannot be applied by users", rpc="PermissionDenied"
        )
    if spec.ipv6_enabled:
        raise NotImplementedHere("skep's overlay networks carry IPv4 only: leave IPv6 out")
    options = (spec.driver_configuration.options if spec.driver_configuration else None) or {}
    if options.get("encrypted", "false").lower() not in ("false", "0", "f"):
        raise NotImplementedHere("skep does not encrypt overlay networks: leave the option encrypted out, and encrypt between the hosts")
    mtu = options.get(MTU, "")
    if mtu and not (mtu.isascii() and mtu.isdigit() and 68 <= int(mtu[:9]) <= 65535):
        raise invalid(f"invalid value for {MTU}: {mtu}")
    _check_ipam(spec.ipam_options)


def _check_ipam(options: IPAMOptions | None) -> None:
    """The clients' own mistakes; the API has said them in more words already."""
    if options is None:
        return
    if options.driver is not None and options.driver.name not in ("", "default"):
        raise invalid(f"invalid IPAM specified: {options.driver.name}")
    for config in options.configs or ():
        try:
            subnet = ip_network(config.subnet, strict=False)
        except ValueError:
            raise invalid(f"ipam configuration: invalid subnet {config.subnet}") from None
        if subnet.version == 6:
            raise NotImplementedHere(f"skep's overlay networks carry IPv4 only: leave the subnet {config.subnet} out")
        if subnet.prefixlen > 30:
            raise invalid(f"ipam configuration: subnet {config.subnet} has no room for a gateway and a task: it must be a /30 or wider")
        if config.ip_range:
            try:
                part = ip_network(config.ip_range, strict=False)
            except ValueError:
                raise invalid(f"ipam configuration: invalid range {config.ip_range}") from None
            _inside(subnet, part.network_address, config.subnet, "range", config.ip_range)
            _inside(subnet, part.broadcast_address, config.subnet, "range", config.ip_range)
        if config.gateway:
            gateway = _address("gateway", config.gateway)
            _inside(subnet, gateway, config.subnet, "gateway", config.gateway)
            if gateway in (subnet.network_address, subnet.broadcast_address):
                raise invalid(f"ipam configuration: gateway {config.gateway} is no address of a host in subnet {config.subnet}")
        for name, address in (config.auxiliary_addresses or {}).items():
            _inside(subnet, _address(f"auxiliary address {name}", address), config.subnet, "auxiliary address", address)


def _address(what: str, text: str) -> IPv4Address | IPv6Address:
    try:
        return ip_address(text)
    except ValueError:
        raise invalid(f"ipam configuration: invalid {what} {text}") from None


def _inside(subnet: IPv4Network | IPv6Network, address: IPv4Address | IPv6Address, written: str, what: str, value: str) -> None:
    if address not in subnet:
        raise invalid(f"ipam configuration: subnet {written} does not contain {what} {value}")
