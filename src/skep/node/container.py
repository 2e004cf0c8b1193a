"""A task as a container: its spec over its image's, templates expanded, nothing left to decide. No I/O.

What is wrong with it, or not allowed, is refused here with one sentence, before anything is made: a task never runs without a part of its
spec.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from skep.engine.base import ContainerConfig, Device, Image, Limits, Ulimit
from skep.errors import Forbidden, Invalid, SkepError
from skep.model import defaults
from skep.model.assignment import TaskItem
from skep.model.labels import service_labels
from skep.model.spec import ContainerSpec, DNSConfig, Driver, Healthcheck, PortConfig, TaskSpec
from skep.model.spec import Limits as AskedLimits
from skep.model.task import Task
from skep.node.base import LocalEndpoint
from skep.node.logattributes import check_attribute
from skep.plan.container import check_container, seccomp_profile
from skep.plan.template import context_of, expand_spec

TASK_ID = "com.docker.swarm.task.id"
SANDBOX_SYSCTLS = {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}
"""Docker's: a container's user may bind port 80 and ping."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.ASCII | re.IGNORECASE)
_DETAILS = frozenset({"labels", "labels-regex", "env", "env-regex", "tag"})
LOCAL_MAX_SIZE = 20 << 20
LOCAL_MAX_FILES = 5


class NodeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What tasks are told of this node. The node's id comes with the task."""

    hostname: str
    architecture: str = "x86_64"
    os: str = "linux"
    resolv_conf: str = ""
    """Content of the host's file."""
    log_driver: Driver = Driver(name="json-file")
    """Where neither task nor cluster names one."""


def expanded(item: TaskItem, facts: NodeFacts) -> ContainerSpec:
    """The task's container spec with its templates expanded. Raises Invalid."""
    spec = item.task.spec.container_spec
    if spec is None:
        kind = "plugin" if item.task.spec.plugin_spec is not None else "network attachment"
        raise SkepError(f"task is a {kind}: this version runs containers only")
    return expand_spec(spec, context_of(item.task, item.service_labels, facts.hostname, facts.os, facts.architecture))


def refuse_unsupported(item: TaskItem, spec: ContainerSpec) -> None:
    """Raises SkepError naming the first thing that is wrong with it, that skep cannot do, or that the cluster does not allow."""
    if item.refused:
        raise Forbidden(item.refused)
    if spec.secrets:
        raise _not_yet(f"secret {spec.secrets[0].secret_name or spec.secrets[0].secret_id}: secrets are")
    if spec.configs:
        raise _not_yet(f"config {spec.configs[0].config_name or spec.configs[0].config_id}: configs are")
    check_container(spec)
    if on_host_network(item) and (key := next((key for key in spec.sysctls or {} if key.startswith("net.")), "")):
        raise Invalid(f"sysctl '{key}' is not allowed in the host network namespace")


def on_host_network(item: TaskItem) -> bool:
    return any(attachment.network_id == "host" for attachment in item.task.attachments)


def _not_yet(what: str) -> SkepError:
    return SkepError(f"{what} not available in this version of skep")


def own_names(task: Task) -> tuple[str, ...]:
    """What resolves to a task's own address inside it, also before it is announced to others."""
    return (task.name, f"{task.slot}.{task.service_name}") if task.slot else (task.name,)


def chosen_hostname(config: ContainerConfig) -> str:
    """Empty where its service chose none: then it has its short id."""
    return config.hostname if config.hostname != config.id[:12] else ""


def build(
    item: TaskItem,
    spec: ContainerSpec,
    image: Image,
    facts: NodeFacts,
    id: str,
    netns: str,
    ports: tuple[PortConfig, ...],
    local: tuple[LocalEndpoint, ...] = (),
) -> ContainerConfig:
    """All but the mounts, which only exist once its volumes do. `spec`: expanded. `ports`: host-mode ports as published. `local`: its
    places on this node's own networks. Field after field: it reads longer than it is."""
    task = item.task
    driver = task.log_driver or task.spec.log_driver or facts.log_driver
    log_driver, max_size, max_files = log_options(driver)
    hostname = spec.hostname or id[:12]
    rights = spec.privileges
    said = service_labels(item.service_labels)
    return ContainerConfig(
        id=id,
        name=task.name,
        image=image.id,
        args=arguments(spec, image),
        env=environment(image.config.env, (*resource_variables(item), *(spec.env or ()))),
        cwd=working_dir(spec.dir or image.config.working_dir or "/"),
        user=spec.user or image.config.user,
        groups=spec.groups or (),
        hostname=hostname,
        labels=labels(item, spec, image),
        capabilities_add=spec.capability_add or (),
        capabilities_drop=spec.capability_drop or (),
        privileged=said.privileged,
        devices=tuple(Device(source=one.source, target=one.target, permissions=one.permissions) for one in said.devices),
        no_new_privileges=rights is not None and rights.no_new_privileges,
        seccomp=seccomp_profile(rights),
        read_only=spec.read_only,
        tty=spec.tty,
        stdin=spec.open_stdin,
        init=bool(spec.init),
        sysctls={key: value for key, value in (spec.sysctls or {}).items() if not key.startswith("net.")},
        ulimits=tuple(Ulimit(name=ulimit.name, soft=ulimit.soft, hard=ulimit.hard) for ulimit in spec.ulimits or ()),
        limits=limits_of(task.spec),
        oom_score_adj=spec.oom_score_adj,
        netns=netns,
        host_network=on_host_network(item),
        hosts=hosts(spec, hostname, [*(a.addresses for a in task.attachments), *((e.address,) for e in local)]),
        resolv_conf=resolv_conf(spec.dns_config, facts.resolv_conf, embedded=bool(netns)),
        stop_signal=spec.stop_signal or image.config.stop_signal or "SIGTERM",
        log_max_size=max_size,
        log_max_files=max_files,
        log_driver=log_driver,
        extra={
            "task": task.id,
            "image": spec.image,
            "ports": msgspec.to_builtins(ports),
            "healthcheck": msgspec.to_builtins(spec.healthcheck) if spec.healthcheck is not None else None,
            "stop_grace_period": defaults.stop_grace_period(spec),
            "log_options": dict(driver.options or {}),
            "networks": [
                *(
                    {"id": attachment.network_id, "addresses": list(attachment.addresses), "aliases": list(attachment.aliases)}
                    for attachment in task.attachments
                    if attachment.addresses or attachment.network_id == "host"
                ),
                *(
                    {"id": endpoint.network_id, "addresses": [endpoint.address], "aliases": [], "gateway": endpoint.gateway}
                    for endpoint in local
                ),
            ],
        },
    )


def limits_of(task: TaskSpec) -> Limits:
    """Of memory also what is reserved: the least that the kernel leaves it when the node runs short."""
    if task.resources is None:
        return Limits()
    asked = task.resources.limits or AskedLimits()
    reserved = task.resources.reservations.memory_bytes if task.resources.reservations is not None else 0
    if asked.memory_bytes:
        reserved = min(reserved, asked.memory_bytes)
    return Limits(nano_cpus=asked.nano_cpus, memory=asked.memory_bytes, memory_reservation=reserved, pids=asked.pids)


def lowered(ulimits: Iterable[Ulimit], ceilings: Mapping[str, int]) -> list[str]:
    """A sentence for each ulimit that is above what this host lets its containers have. `ceilings`: `RLIMIT_X` -> its most, -1: none."""
    said = []
    for ulimit in ulimits:
        most = ceilings.get(f"RLIMIT_{ulimit.name.upper()}", -1)
        if most >= 0 and (ulimit.hard < 0 or ulimit.hard > most):
            asked = "unlimited" if ulimit.hard < 0 else str(ulimit.hard)
            said.append(f"ulimit {ulimit.name} is {most} instead of {asked}: this host allows no more")
    return said


def arguments(spec: ContainerSpec, image: Image) -> tuple[str, ...]:
    """The service's command replaces the image's entrypoint, and with it the image's command; its args replace the image's command."""
    if spec.command:
        args = (*spec.command, *(spec.args or ()))
    else:
        args = (*image.config.entrypoint, *(spec.args or image.config.cmd))
    if not args:
        raise Invalid("no command specified")
    return args


def environment(image: Iterable[str], own: Iterable[str]) -> tuple[str, ...]:
    """The image's variables with the task's over them; `NAME` alone takes one away."""
    merged: dict[str, str] = {}
    for item in (*image, *own):
        name, equals, value = item.partition("=")
        if equals:
            merged[name] = value
        else:
            merged.pop(name, None)
    return tuple(f"{name}={value}" for name, value in merged.items())


def resource_variables(item: TaskItem) -> list[str]:
    """Generic resources the scheduler gave the task: `DOCKER_RESOURCE_GPU=UUID1,UUID2`."""
    found: dict[str, list[str]] = {}
    for resource in item.task.generic_resources:
        if resource.named_resource_spec is not None:
            found.setdefault(resource.named_resource_spec.kind, []).append(resource.named_resource_spec.value)
        if resource.discrete_resource_spec is not None:
            found.setdefault(resource.discrete_resource_spec.kind, []).append(str(resource.discrete_resource_spec.value))
    return [f"DOCKER_RESOURCE_{kind.upper().replace('-', '_')}={','.join(values)}" for kind, values in found.items()]


def working_dir(path: str) -> str:
    if not path.startswith("/"):
        raise Invalid(f"the working directory '{path}' is invalid, it needs to be an absolute path")
    return posixpath.normpath(path)


def labels(item: TaskItem, spec: ContainerSpec, image: Image) -> dict[str, str]:
    task = item.task
    return {
        **image.config.labels,
        **(spec.labels or {}),
        "com.docker.swarm.node.id": task.node_id,
        "com.docker.swarm.service.id": task.service_id,
        "com.docker.swarm.service.name": task.service_name,
        "com.docker.swarm.task": "",
        TASK_ID: task.id,
        "com.docker.swarm.task.name": task.name,
    }


def hosts(spec: ContainerSpec, hostname: str, addresses: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """Lines of /etc/hosts: those of the spec, one name a line, then the container's own name."""
    lines = []
    for entry in spec.hosts or ():
        address, *names = entry.split()
        lines += [f"{address}\t{name}" for name in names]
    lines += [f"{own.partition('/')[0]}\t{hostname}" for group in addresses for own in group]
    return tuple(lines)


EMBEDDED = "127.0.0.11"
"""Where a container asks for names: skep.datapath.resolver."""


def resolv_conf(asked: DNSConfig | None, host: str, *, embedded: bool = False) -> str:
    """The host's resolvers but those on its loopback, which a container cannot reach; what the service asks for takes their place.
    `embedded`: names are asked of the node's resolver, which asks those."""
    servers, search, options = [], [], []
    for line in host.splitlines():
        word, _, rest = line.partition("#")[0].strip().partition(" ")
        values = rest.split()
        if word == "nameserver" and values and not values[0].startswith("127.") and values[0] != "::1":
            servers.append(values[0])
        elif word in ("search", "domain") and values:
            search = values
        elif word == "options":
            options += values
    if asked is not None:
        servers = list(asked.nameservers or servers)
        search = [name for name in asked.search if name != "."] if asked.search else search
        options = list(asked.options or options)
    if embedded:
        servers = [EMBEDDED]
        options = options if any(o.startswith("ndots:") for o in options) else [*options, "ndots:0"]
    lines = [f"nameserver {server}" for server in servers]
    lines += [f"search {' '.join(search)}"] if search else []
    lines += [f"options {' '.join(options)}"] if options else []
    return "".join(f"{line}\n" for line in lines)


def log_options(driver: Driver) -> tuple[str, int, int]:
    """(driver, bytes after which to rotate, files kept). Raises Invalid in Docker's words for what there is not."""
    name = driver.name or "json-file"
    if name not in ("json-file", "local", "none"):
        raise SkepError(f"logging driver {name} is not available: this node keeps logs with json-file, local or none")
    max_size, max_files = (LOCAL_MAX_SIZE, LOCAL_MAX_FILES) if name == "local" else (0, 1)
    for key, value in (driver.options or {}).items():
        if key == "max-size" and name != "none":
            max_size = parse_size(value)
        elif key == "max-file" and name != "none":
            if not value.isdigit() or int(value) < 1:
                raise Invalid("max-file cannot be less than 1" if value.isdigit() else f'strconv.Atoi: parsing "{value}": invalid syntax')
            max_files = int(value)
        elif key in _DETAILS:
            check_attribute(key, value)
        elif (key == "mode" and value == "blocking") or (key == "compress" and value == "false"):
            continue
        elif key in ("mode", "max-buffer-size", "compress"):
            raise SkepError(f"log option {key}={value} is not available in this version of skep")
        else:
            raise Invalid(f"unknown log opt '{key}' for {name} log driver")
    if max_files > 1 and not max_size:
        raise Invalid("max-file requires max-size to be set" if name == "local" else "max-file cannot be used without max-size")
    return name, max_size, max_files


def parse_size(text: str) -> int:
    """`10m`, `1.5g`, `-1` (no limit) in bytes."""
    if text == "-1":
        return 0
    match = _SIZE.fullmatch(text.strip())
    if match is None or float(match[1]) == 0:
        raise Invalid(f"invalid size: '{text}'")
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2].lower() or " "))


def healthcheck_of(extra: Mapping[str, Any]) -> Healthcheck | None:
    """The spec's health check, as it was stored with the container."""
    stored = extra.get("healthcheck")
    return msgspec.convert(stored, Healthcheck) if stored else None
