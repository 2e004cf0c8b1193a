"""Services as Docker's clients see them. Specs are shown as they are stored, with what Docker's store adds on the way out."""

from __future__ import annotations

from typing import Any

import msgspec

from skep.api.wire.times import stamp
from skep.model import defaults
from skep.model.base import Object
from skep.model.enums import TaskState
from skep.model.service import Endpoint, Service, UpdateStatus
from skep.model.spec import ContainerSpec, DNSConfig, Placement, ResourceRequirements, RestartPolicy, ServiceSpec, TaskSpec, UpdateConfig
from skep.model.tables import TASK_BY_SERVICE
from skep.plan.view import View

_ENCODER = msgspec.json.Encoder()


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(_ENCODER.encode(value))


def head(object: Object) -> dict[str, Any]:
    """What every object of the cluster begins with."""
    return {
        "ID": object.id,
        "Version": {"Index": object.version},
        "CreatedAt": stamp(object.created_at),
        "UpdatedAt": stamp(object.updated_at),
    }


def shown_container(spec: ContainerSpec) -> ContainerSpec:
    return spec if spec.isolation else msgspec.structs.replace(spec, isolation="default")


def shown_task_spec(spec: TaskSpec, *, in_service: bool) -> TaskSpec:
    """`Isolation: default` always; `Runtime: container` in services only."""
    container = spec.container_spec
    changes: dict[str, Any] = {"runtime": "container" if in_service and container is not None else ""}
    if container is not None:
        changes["container_spec"] = shown_container(container)
    return msgspec.structs.replace(spec, **changes)


def shown_spec(spec: ServiceSpec) -> ServiceSpec:
    return msgspec.structs.replace(spec, task_template=shown_task_spec(spec.task_template, in_service=True))


def with_defaults(spec: ServiceSpec) -> ServiceSpec:
    """`insertDefaults`: what absent values mean, written out (the answer only, never stored)."""
    template = spec.task_template
    changes: dict[str, Any] = {}
    if (container := template.container_spec) is not None:
        grace = defaults.stop_grace_period(container)
        container = msgspec.structs.replace(container, stop_grace_period=grace, dns_config=container.dns_config or DNSConfig())
        changes["container_spec"] = container
    policy = template.restart_policy or RestartPolicy()
    changes["restart_policy"] = msgspec.structs.replace(
        policy,
        condition=policy.condition or "any",
        delay=defaults.RESTART_DELAY if policy.delay is None else policy.delay,
        max_attempts=policy.max_attempts or 0,
    )
    changes["resources"] = template.resources or ResourceRequirements()
    changes["placement"] = template.placement or Placement()
    more: dict[str, Any] = {"task_template": msgspec.structs.replace(template, **changes)}
    if spec.mode.replicated is not None or spec.mode.global_ is not None:
        more["update_config"] = _rollout(spec.update_config)
        more["rollback_config"] = _rollout(spec.rollback_config)
    return msgspec.structs.replace(spec, **more)


def _rollout(config: UpdateConfig | None) -> UpdateConfig:
    meant = defaults.rollout(config)
    return UpdateConfig(
        parallelism=meant.parallelism,
        delay=meant.delay,
        failure_action=meant.failure_action,
        monitor=meant.monitor,
        max_failure_ratio=meant.max_failure_ratio,
        order=meant.order,
    )


def _endpoint(endpoint: Endpoint | None) -> dict[str, Any]:
    if endpoint is None or not (endpoint.ports or endpoint.vips):
        return {"Spec": {}}
    shown: dict[str, Any] = {"Spec": endpoint.spec or {}}
    if endpoint.ports:
        shown["Ports"] = endpoint.ports
    if endpoint.vips:
        shown["VirtualIPs"] = [{"NetworkID": vip.network_id, "Addr": vip.address} for vip in endpoint.vips]
    return shown


def _update_status(status: UpdateStatus) -> dict[str, Any]:
    shown: dict[str, Any] = {"State": status.state.value}
    if status.started_at:
        shown["StartedAt"] = stamp(status.started_at)
    if status.completed_at:
        shown["CompletedAt"] = stamp(status.completed_at)
    if status.message:
        shown["Message"] = status.message
    return shown


def service(object: Service, *, insert_defaults: bool = False, status: dict[str, int] | None = None) -> dict[str, Any]:
    spec = shown_spec(object.spec)
    shown = head(object)
    shown["Spec"] = with_defaults(spec) if insert_defaults else spec
    if object.previous_spec is not None:
        shown["PreviousSpec"] = shown_spec(object.previous_spec)
    shown["Endpoint"] = _endpoint(object.endpoint)
    if object.update_status is not None:
        shown["UpdateStatus"] = _update_status(object.update_status)
    if status is not None:
        shown["ServiceStatus"] = status
    if object.job:
        job = object.job_status
        shown["JobStatus"] = {
            "JobIteration": {"Index": job.iteration} if job is not None and job.iteration else {},
            "LastExecution": stamp(job.last_execution if job is not None and job.last_execution else object.created_at),
        }
    return shown


def service_status(object: Service, view: View) -> dict[str, int]:
    """How many tasks run, should run, and have completed: what `service ls` prints."""
    tasks = view.find(TASK_BY_SERVICE, object.id)
    running = sum(1 for t in tasks if t.status.state == TaskState.RUNNING)
    iteration = object.job_status.iteration if object.job_status is not None else 0
    completed = 0
    mode = object.spec.mode
    if object.job:
        current = [t for t in tasks if (t.job_iteration or 0) == iteration]
        completed = sum(1 for t in current if t.status.state == TaskState.COMPLETE)
        if mode.replicated_job is not None:
            desired = mode.replicated_job.max_concurrent or 0
        else:
            desired = sum(1 for t in current if t.desired_state == TaskState.COMPLETE and t.status.state != TaskState.COMPLETE)
    elif mode.global_ is not None:
        desired = sum(1 for t in tasks if t.desired_state == TaskState.RUNNING)
    else:
        desired = defaults.replicas(object)
    return {"RunningTasks": running, "DesiredTasks": desired, "CompletedTasks": completed}
