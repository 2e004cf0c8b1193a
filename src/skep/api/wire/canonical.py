"""What a decoder in Go would refuse of a spec, and what exists on Windows only. The rest is the control API's to check and to normalise."""

from __future__ import annotations

from typing import Any

import msgspec

from skep.errors import Invalid, NotImplementedHere
from skep.model.spec import ServiceSpec

_UNSIGNED = frozenset(
    {
        "force_update", "keep_old_snapshots", "log_entries_for_slow_followers", "max_attempts", "max_concurrent", "max_replicas", "mode",
        "parallelism", "published_port", "replicas", "snapshot_interval", "target_port", "total_completions",
    }
)  # fmt: skip


def service_spec(spec: ServiceSpec) -> ServiceSpec:
    """The same spec; what Docker says of it before it looks at the store. Raises Invalid, or NotImplementedHere."""
    template = spec.task_template
    if template.runtime not in ("", "container", "plugin", "attachment"):
        raise Invalid("unsupported runtime")
    if template.container_spec is None and template.runtime != "plugin":
        raise Invalid("mismatched Runtime and *Spec fields")
    container = template.container_spec
    if container is not None:
        if container.isolation in ("process", "hyperv"):
            raise NotImplementedHere(f"isolation {container.isolation} exists on Windows only")
        if container.isolation not in ("", "default"):
            raise Invalid(f'invalid Isolation: "{container.isolation}"')
        if container.privileges is not None and container.privileges.credential_spec is not None:
            raise NotImplementedHere("credential specs exist on Windows only")
    return spec


def check_numbers(value: Any) -> None:
    """Refuse what does not fit Docker's number types: negative where unsigned, beyond 64 bits anywhere. Walks structs, tuples and JSON."""
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            item = getattr(value, name)
            if type(item) is int:
                unsigned = name in _UNSIGNED
                if (unsigned and item < 0) or not -(1 << 63) <= item < (1 << 63):
                    kind = "uint64" if unsigned else "int64"
                    raise Invalid(f"invalid JSON: json: cannot unmarshal number {item} into Go struct field {name} of type {kind}")
            elif isinstance(item, (msgspec.Struct, tuple, dict)):
                check_numbers(item)
    elif isinstance(value, tuple | list):
        for item in value:
            check_numbers(item)
    elif isinstance(value, dict):
        for item in value.values():
            check_numbers(item)
    elif isinstance(value, int) and not -(1 << 63) <= value < (1 << 63):
        raise Invalid(f"invalid JSON: json: cannot unmarshal number {value} into Go value of type int64")
