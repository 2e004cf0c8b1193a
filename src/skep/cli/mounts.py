"""`--mount type=volume,source=data,target=/data,readonly`: as the API wants it."""

from __future__ import annotations

from skep.cli.options import fields_of, key_values
from skep.cli.words import Bad, parse_bool, parse_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def mount(text: str) -> dict[str, Any]:
    if not text.strip():
        raise Bad("EOF")
    found: dict[str, Any] = {"Type": "volume"}
    for field in fields_of(text):
        _mount_field(found, field)
    _check_mount(found)
    if "VolumeOptions" in found:
        found["VolumeOptions"].setdefault("DriverConfig", {})
    return found


def _mount_field(found: dict[str, Any], field: str) -> None:
    key, equal, value = field.partition("=")
    key = key.lower()
    if not equal and key not in ("readonly", "ro", "volume-nocopy", "bind-nonrecursive"):
        raise Bad(f"invalid field '{field}' must be a key=value pair")
    match key:
        case "type":
            found["Type"] = value.lower()
        case "source" | "src":
            found["Source"] = _absolute(value)
        case "target" | "dst" | "destination":
            found["Target"] = value
        case "readonly" | "ro":
            found["ReadOnly"] = _flag(key, value, bool(equal))
        case "consistency":
            found["Consistency"] = value.lower()
        case "bind-propagation":
            found.setdefault("BindOptions", {})["Propagation"] = value.lower()
        case "bind-nonrecursive":
            found.setdefault("BindOptions", {})["NonRecursive"] = _flag(key, value, bool(equal))
        case "bind-recursive":
            _recursive(found, key, value)
        case "volume-subpath":
            found.setdefault("VolumeOptions", {})["Subpath"] = value
        case "volume-nocopy":
            found.setdefault("VolumeOptions", {})["NoCopy"] = _flag(key, value, bool(equal))
        case "volume-label":
            found.setdefault("VolumeOptions", {}).setdefault("Labels", {}).update(key_values([value]))
        case "volume-driver":
            found.setdefault("VolumeOptions", {}).setdefault("DriverConfig", {})["Name"] = value
        case "volume-opt":
            found.setdefault("VolumeOptions", {}).setdefault("DriverConfig", {}).setdefault("Options", {}).update(key_values([value]))
        case "image-subpath":
            found.setdefault("ImageOptions", {})["Subpath"] = value
        case "tmpfs-size" | "tmpfs-mode":
            _tmpfs(found, key, value)
        case _:
            raise Bad(f"unexpected key '{key}' in '{field}'")


def _absolute(path: str) -> str:
    if not path.startswith("."):
        return path
    import os

    return os.path.abspath(path)


def _flag(key: str, value: str, given: bool) -> bool:
    try:
        return parse_bool(value) if given else True
    except Bad:
        raise Bad(f"invalid value for {key}: {value}") from None


def _recursive(found: dict[str, Any], key: str, value: str) -> None:
    names = {"enabled": "", "disabled": "NonRecursive", "writable": "ReadOnlyNonRecursive", "readonly": "ReadOnlyForceRecursive"}
    if value not in names:
        raise Bad(f'invalid value for {key}: {value} (must be "enabled", "disabled", "writable", or "readonly")')
    if names[value]:
        found.setdefault("BindOptions", {})[names[value]] = True


def _tmpfs(found: dict[str, Any], key: str, value: str) -> None:
    options = found.setdefault("TmpfsOptions", {})
    try:
        if key == "tmpfs-size":
            options["SizeBytes"] = parse_bytes(value)
        else:
            options["Mode"] = int(value, 8)
    except ValueError:
        raise Bad(f"invalid value for {key}: {value}") from None


def _check_mount(found: Mapping[str, Any]) -> None:
    kind = found["Type"]
    if not kind:
        raise Bad("type is required")
    if not found.get("Target"):
        raise Bad("target is required")
    for name, owner in (("VolumeOptions", "volume"), ("ImageOptions", "image"), ("BindOptions", "bind"), ("TmpfsOptions", "tmpfs")):
        if name in found and kind != owner:
            raise Bad(f"cannot mix '{owner}-*' options with mount type '{kind}'")
    bind = found.get("BindOptions", {})
    for name, word in (("ReadOnlyNonRecursive", "writable"), ("ReadOnlyForceRecursive", "readonly")):
        if bind.get(name) and not found.get("ReadOnly"):
            raise Bad(f"option 'bind-recursive={word}' requires 'readonly' to be specified in conjunction")
    if bind.get("ReadOnlyForceRecursive") and bind.get("Propagation") != "rprivate":
        raise Bad("option 'bind-recursive=readonly' requires 'bind-propagation=rprivate' to be specified in conjunction")
