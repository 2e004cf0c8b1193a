"""Volumes as Docker's clients see them."""

from __future__ import annotations

from typing import Any

import msgspec

from skep.api.wire.times import stamp
from skep.clock import SECOND
from skep.node.volumes import Volume


class CreateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /volumes/create."""

    name: str = msgspec.field(name="Name", default="")
    driver: str = msgspec.field(name="Driver", default="")
    options: dict[str, str] = msgspec.field(name="DriverOpts", default_factory=dict)
    labels: dict[str, str] = msgspec.field(name="Labels", default_factory=dict)
    cluster_volume: dict[str, Any] | None = msgspec.field(name="ClusterVolumeSpec", default=None)


def volume_form(volume: Volume, mountpoint: str) -> dict[str, Any]:
    return {
        "CreatedAt": stamp(volume.created_at // SECOND * SECOND),
        "Driver": volume.driver,
        "Labels": volume.labels or None,
        "Mountpoint": mountpoint,
        "Name": volume.name,
        "Options": volume.options or None,
        "Scope": "local",
    }


def with_usage(form: dict[str, Any], size: int, users: int) -> dict[str, Any]:
    """As GET /system/df has it. `size` -1: not known."""
    return form | {"UsageData": {"RefCount": users, "Size": size}}
