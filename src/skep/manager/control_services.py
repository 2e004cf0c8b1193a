"""What creating, updating and rolling back a service means for the store. Pure but for the view: `Control` commits what is returned here.

A spec is stored in one canonical form, whichever client sent it: what Docker's types cannot tell apart (an empty list and none, an
absent enumeration and its first value) must not replace tasks when another client sends it back.
"""

from __future__ import annotations

import functools
from typing import Any, TypeVar

import msgspec

from skep.errors import Forbidden, Invalid, NotFound, NotImplementedHere, OutOfSequence, SkepError
from skep.ids import Random, new_id
from skep.manager.control_lookup import find_network
from skep.manager.control_names import random_name
from skep.manager.control_validate import check_service, invalid
from skep.model.base import Spec
from skep.model.cluster import Cluster
from skep.model.enums import UpdateState
from skep.model.labels import parse_labels, patterns, refusal
from skep.model.network import Network
from skep.model.service import Service, UpdateStatus
from skep.model.spec import (
    EndpointSpec,
    Mode,
    NetworkAttachmentConfig,
    PortConfig,
    Replicated,
    ReplicatedJob,
    RestartPolicy,
    ServiceSpec,
    TaskSpec,
    UpdateConfig,
)
from skep.model.tables import SERVICE_BY_NAME
from skep.plan.allocate import own_ports
from skep.plan.ops import Change, Create
from skep.plan.view import View

S = TypeVar("S", bound=Spec)


def in_sequence(version: int, spec_index: int, current: int) -> bool:
    """A user's update is in time when nothing a user may change was changed since `version`; our own writes do not count."""
    return spec_index <= version <= current


def create_service(view: View, spec: ServiceSpec, registry_auth: str, rng: Random) -> Create:
    spec = resolved(view, normalised(spec, view, rng))
    check_service(spec)
    _check_networks(view, spec)
    check_ports(view, spec, "")
    _check_ingress(view, spec)
    check_allowed(view, spec)
    service = Service(id=new_id(rng), spec=spec, spec_version=view.version + 1, registry_auth=registry_auth)
    return Create(service, "created by the user")


def update_service(
    view: View,
    current: Service,
    version: int,
    spec: ServiceSpec,
    *,
    registry_auth: str,
    registry_auth_from: str,
    rollback: str,
    now: int,
    rng: Random,
) -> Change:
    """`current` is what the reference meant; `spec` as the client sent it (also for a rollback, which then drops it)."""
    spec = resolved(view, normalised(spec, view, rng))
    auth = registry_auth or _kept_auth(current, registry_auth_from)
    if rollback not in ("", "none", "previous"):
        raise SkepError(f"unrecognized rollback option {rollback}")
    check_service(spec)
    if spec.networks != current.spec.networks and spec.task_template.networks == current.spec.task_template.networks:
        raise NotImplementedHere("networks must be migrated to TaskSpec before being changed", rpc="Unimplemented")
    if _mode(spec) != _mode(current.spec):
        raise NotImplementedHere("service mode change is not allowed", rpc="Unimplemented")
    if spec.name != current.spec.name:
        raise NotImplementedHere("renaming services is not supported", rpc="Unimplemented")
    fields = _rolled_back(current, now) if rollback == "previous" else _updated(view, current, spec, auth)
    meant: ServiceSpec = fields["spec"]
    _check_networks(view, meant)
    if meant.endpoint_spec is not None and meant.endpoint_spec != current.spec.endpoint_spec:
        check_ports(view, meant, current.id)
    _check_ingress(view, meant)
    check_allowed(view, meant)
    if not in_sequence(version, current.spec_index, current.version):
        raise OutOfSequence
    return Change(Service, current.id, fields, "rolled back by the user" if rollback == "previous" else "updated by the user")


def _updated(view: View, current: Service, spec: ServiceSpec, auth: str) -> dict[str, Any]:
    return {
        "spec": spec,
        "spec_version": view.version + 1 if replaces_tasks(current.spec, spec) else current.spec_version,
        "previous_spec": current.spec,
        "previous_spec_version": current.spec_version,
        "registry_auth": auth,
        "previous_registry_auth": current.registry_auth,
        "update_status": None,
    }


def _rolled_back(current: Service, now: int) -> dict[str, Any]:
    """The spec left becomes the previous one: rolling back twice returns to it."""
    if current.previous_spec is None:
        raise Invalid(f"service {current.id} does not have a previous spec", rpc="FailedPrecondition")
    return {
        "spec": current.previous_spec,
        "spec_version": current.previous_spec_version,
        "previous_spec": current.spec,
        "previous_spec_version": current.spec_version,
        "registry_auth": current.previous_registry_auth,
        "previous_registry_auth": current.registry_auth,
        "update_status": UpdateStatus(state=UpdateState.ROLLBACK_STARTED, started_at=now, message="manually requested rollback"),
    }


def replaces_tasks(old: ServiceSpec, new: ServiceSpec) -> bool:
    """Whether tasks of the old spec may have to go. Replicas, service labels and update configs never replace any."""
    return old.task_template != new.task_template or old.endpoint_spec != new.endpoint_spec or old.networks != new.networks


def _kept_auth(current: Service, source: str) -> str:
    if source in ("", "spec"):
        return current.registry_auth
    if source != "previous-spec":
        raise SkepError("unsupported registryAuthFrom value")
    if current.previous_spec is None:
        raise SkepError("service does not have a previous spec")
    return current.previous_registry_auth


def _mode(spec: ServiceSpec) -> tuple[bool, ...]:
    mode = spec.mode
    return (mode.replicated is not None, mode.global_ is not None, mode.replicated_job is not None, mode.global_job is not None)


# what the store keeps


def normalised(spec: ServiceSpec, view: View, rng: Random) -> ServiceSpec:
    """The canonical form. What is wrong in it is left for `check_service` to say."""
    template = _without_empties(spec.task_template)
    container = template.container_spec
    if container is not None and container.isolation == "default":
        container = msgspec.structs.replace(container, isolation="")
    return msgspec.structs.replace(
        spec,
        name=spec.name or random_name(rng, lambda name: bool(view.find(SERVICE_BY_NAME, name))),
        task_template=msgspec.structs.replace(
            template,
            container_spec=container,
            runtime="" if template.runtime == "container" else template.runtime,
            restart_policy=_policy(template.restart_policy),
        ),
        mode=_full_mode(spec.mode),
        update_config=_rollout(spec.update_config),
        rollback_config=_rollout(spec.rollback_config),
        networks=tuple(_without_empties(network) for network in spec.networks) if spec.networks else None,
        endpoint_spec=_endpoint(spec.endpoint_spec),
    )


def _without_empties(spec: S) -> S:
    """Go's types do not tell an empty list or map from an absent one; neither may we."""
    changes: dict[str, Any] = {}
    for field in _fields(type(spec)):
        value = getattr(spec, field.name)
        if isinstance(value, Spec):
            new: Any = _without_empties(value)
        elif isinstance(value, (tuple, dict)) and not value and field.default is None:
            new = None
        elif isinstance(value, tuple) and value and isinstance(value[0], Spec):
            new = tuple(_without_empties(item) for item in value)
        else:
            continue
        if new is not value:
            changes[field.name] = new
    return msgspec.structs.replace(spec, **changes) if changes else spec


@functools.cache
def _fields(kind: type[Spec]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """Working them out takes longer than all the rest of a request."""
    return msgspec.structs.fields(kind)


def _policy(policy: RestartPolicy | None) -> RestartPolicy | None:
    if policy is None:
        return None
    return msgspec.structs.replace(policy, condition=policy.condition or "any", max_attempts=policy.max_attempts or 0)


def _full_mode(mode: Mode) -> Mode:
    if mode.replicated_job is not None:
        job = mode.replicated_job
        at_once = 1 if job.max_concurrent is None else job.max_concurrent
        total = at_once if job.total_completions is None else job.total_completions
        return msgspec.structs.replace(mode, replicated_job=ReplicatedJob(max_concurrent=at_once, total_completions=total))
    if mode.global_ is not None or mode.global_job is not None:
        return mode
    replicas = mode.replicated.replicas if mode.replicated is not None else None
    return Mode(replicated=Replicated(replicas=1 if replicas is None else replicas))


def _rollout(config: UpdateConfig | None) -> UpdateConfig | None:
    if config is None:
        return None
    return msgspec.structs.replace(config, failure_action=config.failure_action or "pause", order=config.order or "stop-first")


def _endpoint(endpoint: EndpointSpec | None) -> EndpointSpec | None:
    if endpoint is None:
        return None
    return EndpointSpec(mode=endpoint.mode or "vip", ports=tuple(_port(port) for port in endpoint.ports) if endpoint.ports else None)


def _port(port: PortConfig) -> PortConfig:
    return msgspec.structs.replace(port, protocol=port.protocol.lower() or "tcp", publish_mode=port.publish_mode.lower() or "ingress")


def resolved(view: View, spec: ServiceSpec) -> ServiceSpec:
    """Names of networks (`docker stack deploy` sends them) become ids. Raises NotFound."""
    template = spec.task_template
    return msgspec.structs.replace(
        spec,
        task_template=msgspec.structs.replace(template, networks=_resolved(view, template.networks)),
        networks=_resolved(view, spec.networks),
    )


def _resolved(view: View, networks: tuple[NetworkAttachmentConfig, ...] | None) -> tuple[NetworkAttachmentConfig, ...] | None:
    if networks is None:
        return None
    return tuple(msgspec.structs.replace(network, target=find_network(view, network.target).id) for network in networks)


# what the store says


def _targets(spec: ServiceSpec) -> tuple[NetworkAttachmentConfig, ...]:
    template: TaskSpec = spec.task_template
    return template.networks or spec.networks or ()


def _check_networks(view: View, spec: ServiceSpec) -> None:
    for attachment in _targets(spec):
        network = view.get(Network, attachment.target)
        if network is None:  # of a spec to go back to; names are looked up where one is new
            raise NotFound(f"network {attachment.target} not found")
        if network.spec.ingress:
            raise invalid(f'Service cannot be explicitly attached to the ingress network "{network.name}"')
        if network.driver == "null":
            raise Forbidden(
                f"The network {network.name} cannot be used with services. Only networks scoped to the swarm can be used, such as those"
                " created with the overlay driver."
            )


def check_ports(view: View, spec: ServiceSpec, service_id: str) -> None:
    """No ingress port of one service may be a port of another, ingress or host. Equal host ports are left to the scheduler."""
    wanted: dict[tuple[str, int], set[str]] = {}
    for port in (spec.endpoint_spec.ports if spec.endpoint_spec else None) or ():
        if port.published_port:
            wanted.setdefault((port.protocol, port.published_port), set()).add(port.publish_mode)
    if not wanted:
        return
    for key in sorted(own_ports(view) & wanted.keys()):
        if "ingress" in wanted[key]:
            raise invalid(f"port '{key[1]}' is already in use by the cluster itself ({key[0]}): its nodes would lose one another")
    for service in view.all(Service):
        if service.id == service_id:
            continue
        taken = (service.spec.endpoint_spec.ports if service.spec.endpoint_spec else None) or ()
        for port in (*taken, *(service.endpoint.ports if service.endpoint else ())):
            modes = wanted.get((port.protocol, port.published_port), set())
            if "ingress" in modes or modes and port.publish_mode == "ingress":
                form = "an ingress port" if port.publish_mode == "ingress" else "a host-published port"
                raise invalid(f"port '{port.published_port}' is already in use by service '{service.name}' ({service.id}) as {form}")


def check_allowed(view: View, spec: ServiceSpec) -> None:
    """What makes root of a container root of its node is allowed by the cluster, not by whoever may create services."""
    cluster = next(iter(view.all(Cluster)), None)
    refused = refusal(parse_labels(spec.labels), spec.name, patterns(cluster.spec.labels) if cluster is not None else ())
    if refused:
        raise Forbidden(refused, rpc="PermissionDenied")


def needs_ingress(spec: ServiceSpec) -> bool:
    return any(port.publish_mode == "ingress" for port in (spec.endpoint_spec.ports if spec.endpoint_spec else None) or ())


def _check_ingress(view: View, spec: ServiceSpec) -> None:
    if needs_ingress(spec) and not any(network.spec.ingress for network in view.all(Network)):
        raise Invalid("service needs ingress network, but no ingress network is present", rpc="FailedPrecondition")
