"""A service spec as it came -> the one form it is stored in, so that what an answer shows and a client sends back changes nothing.

What has no meaning of its own (`Runtime: container`, `Isolation: default`) is dropped here and shown again by `skep.api.wire.services`;
defaults of enumerations and modes are the control API's. Numbers that do not fit Docker's types are refused here, where Go's decoder would.
"""

from __future__ import annotations

from typing import Any

import msgspec

from skep.errors import Invalid, NotImplementedHere
from skep.model.spec import ContainerSpec, NodeSpec, ServiceSpec, TaskSpec

_UNSIGNED = frozenset(
    {
        "force_update", "keep_old_snapshots", "log_entries_for_slow_followers", "max_attempts", "max_concurrent", "max_replicas", "mode",
        "parallelism", "published_port", "replicas", "snapshot_interval", "target_port", "total_completions",
    }
)  # fmt: skip


def service_spec(spec: ServiceSpec) -> ServiceSpec:
    """Raises Invalid with Docker's sentences."""
    check_numbers(spec)
    return msgspec.structs.replace(spec, task_template=_task_spec(spec.task_template))


def _task_spec(spec: TaskSpec) -> TaskSpec:
    changes: dict[str, Any] = {}
    if spec.runtime == "container" and spec.container_spec is not None:
        changes["runtime"] = ""
    if spec.container_spec is not None:
        changes["container_spec"] = _container_spec(spec.container_spec)
    return msgspec.structs.replace(spec, **changes)


def _container_spec(spec: ContainerSpec) -> ContainerSpec:
    if spec.isolation in ("process", "hyperv"):
        raise NotImplementedHere(f"isolation {spec.isolation} exists on Windows only")
    if spec.isolation not in ("", "default"):
        raise Invalid(f'invalid Isolation: "{spec.isolation}"')
    if spec.privileges is not None and spec.privileges.credential_spec is not None:
        raise NotImplementedHere("credential specs exist on Windows only")
    return msgspec.structs.replace(spec, isolation="") if spec.isolation else spec


def node_spec(spec: NodeSpec) -> NodeSpec:
    """Raises Invalid for words that are no role or availability, as Docker's own conversion does before it looks at the node."""
    if spec.role not in ("worker", "manager"):
        raise Invalid(f'invalid Role: "{spec.role}"')
    if spec.availability not in ("active", "pause", "drain"):
        raise Invalid(f'invalid Availability: "{spec.availability}"')
    return spec


def check_numbers(value: Any) -> None:
    """Refuse what does not fit Docker's number types: negative where unsigned, beyond 64 bits anywhere. Walks structs and tuples."""
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            item = getattr(value, name)
            if type(item) is int:
                unsigned = name in _UNSIGNED
                if (unsigned and item < 0) or not -(1 << 63) <= item < (1 << 63):
                    kind = "uint64" if unsigned else "int64"
                    raise Invalid(f"invalid JSON: json: cannot unmarshal number {item} into Go struct field {name} of type {kind}")
            elif isinstance(item, (msgspec.Struct, tuple)):
                check_numbers(item)
    elif isinstance(value, tuple):
        for item in value:
            check_numbers(item)
