"""Devices of this host for containers: those that a configuration names, or all of them. Blocks."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from skep.engine.base import ContainerConfig, Device
from skep.engine.oci.limits import DeviceNode
from skep.errors import SkepError

_NOT_FOR_CONTAINERS = {"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console", "tty", "ptmx"}
"""Docker's list, and what every container has of its own."""


def devices_of(config: ContainerConfig) -> list[DeviceNode]:
    """Raises SkepError for one that is not there, or is no device."""
    found = {node.path: node for node in _below("/dev", "/dev", "rwm")} if config.privileged else {}
    for device in config.devices:
        found.update({node.path: node for node in _given(device)})
    return list(found.values())


def _given(device: Device) -> list[DeviceNode]:
    source, target = os.path.realpath(device.source), device.target or device.source
    complaint = f'error gathering device information while adding custom device "{device.source}": '
    try:
        status = os.stat(source)
    except OSError as error:
        raise SkepError(complaint + str(error.strerror).lower()) from None
    if stat.S_ISDIR(status.st_mode):
        nodes = list(_below(source, target, device.permissions))
    else:
        node = _node(status, target, device.permissions)
        nodes = [node] if node is not None else []
    if not nodes:
        raise SkepError(complaint + "not a device node")
    return nodes


def _below(folder: str, target: str, access: str) -> Iterator[DeviceNode]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if folder == "/dev" and entry.name in _NOT_FOR_CONTAINERS:
            continue
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError:
            continue  # gone meanwhile
        if stat.S_ISDIR(status.st_mode):
            yield from _below(entry.path, f"{target}/{entry.name}", access)
        elif (node := _node(status, f"{target}/{entry.name}", access)) is not None:
            yield node


def _node(status: os.stat_result, path: str, access: str) -> DeviceNode | None:
    kind = "c" if stat.S_ISCHR(status.st_mode) else "b" if stat.S_ISBLK(status.st_mode) else ""
    if not kind:
        return None
    major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
    mode = stat.S_IMODE(status.st_mode)
    return DeviceNode(path=path, kind=kind, major=major, minor=minor, mode=mode, uid=status.st_uid, gid=status.st_gid, access=access)
