"""Fields newer than the request's API version are dropped from a service spec, as Docker drops them for old clients."""

from __future__ import annotations

from typing import Any

_CONTAINER_SINCE: tuple[tuple[tuple[int, int], tuple[str, ...]], ...] = (
    ((1, 40), ("Sysctls",)),
    ((1, 41), ("CapabilityAdd", "CapabilityDrop", "Ulimits")),
    ((1, 46), ("OomScoreAdj",)),
)
_PRIVILEGES_SINCE = ((1, 44), ("Seccomp", "AppArmor", "NoNewPrivileges"))


def as_of(version: tuple[int, int], body: Any) -> Any:
    """`body`: decoded JSON of a service spec, not changed; returned as that version of the API knows it."""
    template = body.get("TaskTemplate") if isinstance(body, dict) else None
    if version >= (1, 46) or not isinstance(template, dict):
        return body
    template = dict(template)
    container = template.get("ContainerSpec")
    if isinstance(container, dict):
        gone = {name for since, names in _CONTAINER_SINCE if version < since for name in names}
        container = {name: value for name, value in container.items() if name not in gone}
        if version < _PRIVILEGES_SINCE[0] and isinstance(container.get("Privileges"), dict):
            container["Privileges"] = {n: v for n, v in container["Privileges"].items() if n not in _PRIVILEGES_SINCE[1]}
        if version < (1, 44) and isinstance(container.get("Healthcheck"), dict):
            container["Healthcheck"] = {n: v for n, v in container["Healthcheck"].items() if n != "StartInterval"}
        template["ContainerSpec"] = container
    if version < (1, 40) and isinstance(template.get("Placement"), dict):
        template["Placement"] = {n: v for n, v in template["Placement"].items() if n != "MaxReplicas"}
    resources = template.get("Resources")
    if version < (1, 41) and isinstance(resources, dict) and isinstance(resources.get("Limits"), dict):
        template["Resources"] = {**resources, "Limits": {n: v for n, v in resources["Limits"].items() if n != "Pids"}}
    return {**body, "TaskTemplate": template}
