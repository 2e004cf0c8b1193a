"""The service labels `skep.*`: what they are called, what they may say, and what they mean when absent.

    skep.mesh.local   true | false: a node hands what comes in by the service's published ports to its own tasks only. Default false.
    skep.drain        a duration such as `5s`, at most 10m: how long a task that must stop stays, out of names, VIP and mesh, before it
                      gets its stop signal, so that its open connections can end. Default 0.

Any other label that begins with `skep.` is a mistake, and a wrong value is one too: what is mistyped must not be silently without effect.
They belong to the service (`--label`), not to its containers, and changing them replaces no task.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping

import msgspec

from skep.clock import HOUR, MILLISECOND, MINUTE, SECOND
from skep.errors import Invalid

PREFIX = "skep."
MESH_LOCAL = "skep.mesh.local"
DRAIN = "skep.drain"
KNOWN = (DRAIN, MESH_LOCAL)
LONGEST_DRAIN = 10 * MINUTE

_UNITS = {"ns": 1, "us": 1_000, "µs": 1_000, "μs": 1_000, "ms": MILLISECOND, "s": SECOND, "m": MINUTE, "h": HOUR}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")


class ServiceLabels(msgspec.Struct, frozen=True):
    """What a service's `skep.*` labels say."""

    mesh_local: bool = False
    drain: int = 0
    """ns."""


def parse_labels(labels: Mapping[str, str]) -> ServiceLabels:
    """Raises Invalid with one sentence for the first label (by name) that is unknown or says nothing sensible."""
    if not any(label.startswith(PREFIX) for label in labels):
        return ServiceLabels()
    for label in sorted(labels):
        if label.startswith(PREFIX) and label not in KNOWN:
            raise _wrong(f'skep knows no label "{label}": the known ones are {" and ".join(KNOWN)}')
    return ServiceLabels(
        mesh_local=_truth(MESH_LOCAL, labels[MESH_LOCAL]) if MESH_LOCAL in labels else False,
        drain=_drain(labels[DRAIN]) if DRAIN in labels else 0,
    )


def service_labels(labels: Mapping[str, str]) -> ServiceLabels:
    """The same for a stored service: what an older version let through counts as absent, for nobody is there to be told."""
    said = ServiceLabels()
    for label in KNOWN:
        if label in labels:
            with contextlib.suppress(Invalid):
                one = parse_labels({label: labels[label]})
                said = ServiceLabels(mesh_local=said.mesh_local or one.mesh_local, drain=said.drain or one.drain)
    return said


def check_container_labels(labels: Mapping[str, str]) -> None:
    """Labels of containers say nothing to skep. Raises Invalid where one looks as if it should."""
    for label in sorted(labels):
        if label in KNOWN:
            raise _wrong(f'"{label}" is a label of the service, not of its containers: give it with --label')
        if label.startswith(PREFIX):
            raise _wrong(f'skep knows no label "{label}": the known ones are {" and ".join(KNOWN)}, on the service')


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
