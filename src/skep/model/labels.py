"""The service labels `skep.*`: what they are called, what they may say, and what they mean when absent.

    skep.mesh.local   true | false: a node hands what comes in by the service's published ports to its own tasks only. Default false.
    skep.drain        a duration such as `5s`, at most 10m: how long a task that must stop stays, out of names, VIP and mesh, before it
                      gets its stop signal, so that its open connections can end. Default 0.
    skep.privileged   true | false: its containers are privileged, as with `docker run --privileged`. Default false.
    skep.devices      `/dev/x[:target[:permissions]]`, several with commas between: devices of the node, as with `docker run --device`.

The last two make root of a container root of its node: the cluster must allow them, by its own label `skep.allow.privileged`
(`skep swarm update --allow-privileged PATTERNS`): names of services, or patterns such as `agent-*`, with commas between.

Any other label that begins with `skep.` is a mistake, and a wrong value is one too: what is mistyped must not be silently without effect.
They belong to the service (`--label`), not to its containers, and changing them replaces no task: what they say of a container holds for
tasks that are prepared afterwards.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase

import msgspec

from skep.clock import HOUR, MILLISECOND, MINUTE, SECOND
from skep.errors import Invalid

PREFIX = "skep."
MESH_LOCAL = "skep.mesh.local"
DRAIN = "skep.drain"
PRIVILEGED = "skep.privileged"
DEVICES = "skep.devices"
KNOWN = (DEVICES, DRAIN, MESH_LOCAL, PRIVILEGED)
NAMED = f"{', '.join(KNOWN[:-1])} and {KNOWN[-1]}"
ALLOW_PRIVILEGED = "skep.allow.privileged"
"""Of the cluster."""
LONGEST_DRAIN = 10 * MINUTE

_UNITS = {"ns": 1, "us": 1_000, "µs": 1_000, "μs": 1_000, "ms": MILLISECOND, "s": SECOND, "m": MINUTE, "h": HOUR}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")


_DEVICE = re.compile(r"(/[^:,]+)(?::(/[^:,]+))?(?::([rwm]{1,3}))?")
_PATTERN = re.compile(r"[A-Za-z0-9_*?-]+", re.ASCII)


class DeviceLabel(msgspec.Struct, frozen=True):
    source: str
    target: str
    permissions: str = "rwm"


class ServiceLabels(msgspec.Struct, frozen=True):
    """What a service's `skep.*` labels say."""

    mesh_local: bool = False
    drain: int = 0
    """ns."""
    privileged: bool = False
    devices: tuple[DeviceLabel, ...] = ()

    @property
    def needs_allowance(self) -> bool:
        return self.privileged or bool(self.devices)


def parse_labels(labels: Mapping[str, str]) -> ServiceLabels:
    """Raises Invalid with one sentence for the first label (by name) that is unknown or says nothing sensible."""
    if not any(label.startswith(PREFIX) for label in labels):
        return ServiceLabels()
    for label in sorted(labels):
        if label.startswith(PREFIX) and label not in KNOWN:
            raise _wrong(f'skep knows no label "{label}": the known ones are {NAMED}')
    return ServiceLabels(
        mesh_local=_truth(MESH_LOCAL, labels[MESH_LOCAL]) if MESH_LOCAL in labels else False,
        drain=_drain(labels[DRAIN]) if DRAIN in labels else 0,
        privileged=_truth(PRIVILEGED, labels[PRIVILEGED]) if PRIVILEGED in labels else False,
        devices=_devices(labels[DEVICES]) if DEVICES in labels else (),
    )


def service_labels(labels: Mapping[str, str]) -> ServiceLabels:
    """The same for a stored service: what an older version let through counts as absent, for nobody is there to be told."""
    known = {}
    for label in KNOWN:
        if label in labels:
            with contextlib.suppress(Invalid):
                parse_labels({label: labels[label]})
                known[label] = labels[label]
    return parse_labels(known)


def check_container_labels(labels: Mapping[str, str]) -> None:
    """Labels of containers say nothing to skep. Raises Invalid where one looks as if it should."""
    for label in sorted(labels):
        if label in KNOWN:
            raise _wrong(f'"{label}" is a label of the service, not of its containers: give it with --label')
        if label.startswith(PREFIX):
            raise _wrong(f'skep knows no label "{label}": the known ones are {NAMED}, on the service')


# what the cluster must allow


def check_cluster_labels(labels: Mapping[str, str]) -> None:
    for label in sorted(labels):
        if label.startswith(PREFIX) and label != ALLOW_PRIVILEGED:
            raise _wrong(f'skep knows no label "{label}" of a cluster: the known one is {ALLOW_PRIVILEGED}')
    for pattern in patterns(labels):
        if not _PATTERN.fullmatch(pattern):
            raise _wrong(f'label {ALLOW_PRIVILEGED}: "{pattern}" is no name of a service, and no pattern such as agent-*')


def patterns(labels: Mapping[str, str]) -> tuple[str, ...]:
    """Names of services that may be privileged, or have devices, in this cluster."""
    return tuple(part for part in (text.strip() for text in labels.get(ALLOW_PRIVILEGED, "").split(",")) if part)


def allows(allowed: tuple[str, ...], name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in allowed)


def refusal(labels: ServiceLabels, name: str, allowed: tuple[str, ...]) -> str:
    """One sentence; empty: nothing is asked that is not allowed."""
    if not labels.needs_allowance or allows(allowed, name):
        return ""
    what = f"be privileged (label {PRIVILEGED})" if labels.privileged else f"have devices of its node (label {DEVICES})"
    return f"service {name} may not {what}: allow it with skep swarm update --allow-privileged {','.join((*allowed, name))}"


def _devices(value: str) -> tuple[DeviceLabel, ...]:
    found = []
    for text in value.split(","):
        match = _DEVICE.fullmatch(text.strip())
        if match is None or ".." in text.split("/"):
            raise _wrong(f'label {DEVICES} must be /dev/x[:target[:permissions]], several with commas between, not "{value}"')
        found.append(DeviceLabel(match[1], match[2] or match[1], match[3] or "rwm"))
    return tuple(found)


def _truth(label: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise _wrong(f'label {label} must be true or false, not "{value}"')
    return value == "true"


def _drain(value: str) -> int:
    """As Go writes durations."""
    total, at = 0.0, 0
    while at < len(value) and (part := _PART.match(value, at)) is not None:
        total += float(part[1]) * _UNITS[part[2]]
        at = part.end()
    if value == "0":
        return 0
    if not value or at != len(value):
        raise _wrong(f'label {DRAIN} must be a duration such as 5s or 1m30s, not "{value}"')
    if total > LONGEST_DRAIN:
        raise _wrong(f"label {DRAIN} must be at most 10m, not {value}")
    return round(total)


def _wrong(text: str) -> Invalid:
    return Invalid(text, rpc="InvalidArgument")
