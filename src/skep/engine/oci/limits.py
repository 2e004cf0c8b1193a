"""Limits and device rules as the OCI runtime takes them (`linux.resources`). Pure. The runtime maps them to cgroup v1 or v2."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from skep.engine.base import ContainerConfig, Limits
from skep.errors import Invalid

DEVICES = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1))
_RULE = re.compile(r"([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})", re.ASCII)
_ACCESS = re.compile(r"[rwm]{1,3}", re.ASCII)


class DeviceNode(msgspec.Struct, frozen=True, kw_only=True):
    """A device as the container shall have it."""

    path: str
    """In the container."""
    kind: str
    """`c` or `b`."""
    major: int
    minor: int
    mode: int = 0o666
    uid: int = 0
    gid: int = 0
    access: str = "rwm"


PIDS_MAX = 4 << 20
"""No kernel has more (PID_MAX_LIMIT), and it takes no larger limit (include/linux/threads.h): one beyond it limits nothing."""


def resources(limits: Limits, swap_limit: bool = True, missing: frozenset[str] = frozenset()) -> dict[str, Any]:
    """`missing`: limits that this kernel does not have, by their names in `Limits`; they are left out, as Docker does with a warning."""
    has = {name: value for name, value in msgspec.structs.asdict(limits).items() if name not in missing}
    out = {"memory": _memory(limits, has, swap_limit), "cpu": _cpu(limits, has)}
    if 0 < limits.pids <= PIDS_MAX:
        out["pids"] = {"limit": limits.pids}
    if has.get("blkio_weight"):
        if not 10 <= limits.blkio_weight <= 1000:
            raise Invalid("Range of blkio weight is from 10 to 1000")
        out["blockIO"] = {"weight": limits.blkio_weight}
    return {name: table for name, table in out.items() if table}


def _memory(limits: Limits, has: dict[str, Any], swap_limit: bool) -> dict[str, Any]:
    memory: dict[str, Any] = {}
    if limits.memory:
        memory["limit"] = limits.memory
        swap = limits.memory_swap or 2 * limits.memory
        if swap_limit and 0 < swap < limits.memory:
            raise Invalid("Minimum memoryswap limit should be larger than memory limit, see usage")
        if swap_limit:
            memory["swap"] = swap
    elif limits.memory_swap > 0:
        raise Invalid("You should always set the Memory limit when using Memoryswap limit, see usage")
    if limits.memory_reservation:
        if limits.memory and limits.memory_reservation > limits.memory:
            raise Invalid("Minimum memory limit can not be less than memory reservation limit, see usage")
        memory["reservation"] = limits.memory_reservation
    if has.get("memory_swappiness", -1) >= 0:
        if limits.memory_swappiness > 100:
            raise Invalid(f"Invalid value: {limits.memory_swappiness}, valid memory swappiness range is 0-100")
        memory["swappiness"] = limits.memory_swappiness
    if has.get("oom_kill_disable"):
        memory["disableOOMKiller"] = True
    return memory


def _cpu(limits: Limits, has: dict[str, Any]) -> dict[str, Any]:
    if limits.nano_cpus and (limits.cpu_period or limits.cpu_quota):
        other = "CPU Period" if limits.cpu_period else "CPU Quota"
        raise Invalid(f"Conflicting options: Nano CPUs and {other} cannot both be set")
    cpu: dict[str, Any] = {}
    if limits.nano_cpus:
        cpu = {"period": 100_000, "quota": max(limits.nano_cpus // 10_000, 1_000)}
    given = (("period", "cpu_period"), ("quota", "cpu_quota"), ("shares", "cpu_shares"), ("cpus", "cpuset_cpus"), ("mems", "cpuset_mems"))
    for name, field in (*given, ("realtimePeriod", "cpu_realtime_period"), ("realtimeRuntime", "cpu_realtime_runtime")):
        if has.get(field):
            cpu[name] = has[field]
    return cpu


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Of limits while a container runs."""

    resources: dict[str, Any]
    """For the runtime's `update`."""
    released: tuple[str, ...]
    """Names in `cgroups.RELEASED` of what had a limit and has none any more."""


def change_of(old: Limits, new: Limits, swap_limit: bool = True, missing: frozenset[str] = frozenset()) -> Change:
    wanted = resources(new, swap_limit, missing)
    memory, cpu = wanted.get("memory", {}), wanted.get("cpu", {})
    released = {
        "swap": old.memory and "swap" not in memory,
        "memory": old.memory and not new.memory,
        "reservation": old.memory_reservation and not new.memory_reservation,
        "quota": (old.nano_cpus or old.cpu_quota > 0) and "quota" not in cpu,
        "shares": old.cpu_shares and not new.cpu_shares,
        "pids": old.pids > 0 and "pids" not in wanted,
    }
    return Change(resources=wanted, released=tuple(name for name, free in released.items() if free))


def device_rules(config: ContainerConfig, nodes: Iterable[DeviceNode]) -> list[dict[str, Any]]:
    """`linux.resources.devices`: everything for a privileged container, else Docker's few, those given, and the rules given."""
    rules = [_rule(text) for text in config.device_rules]
    if config.privileged:
        return [{"allow": True, "access": "rwm"}]
    few = [{"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"} for major, minor in DEVICES]
    return [{"allow": False, "access": "rwm"}, *few, *_allowed(nodes), *rules]


def _allowed(nodes: Iterable[DeviceNode]) -> Iterator[dict[str, Any]]:
    for node in nodes:
        if not _ACCESS.fullmatch(node.access):
            raise Invalid(f"invalid device mode: {node.access}")
        yield {"allow": True, "type": node.kind, "major": node.major, "minor": node.minor, "access": node.access}


def _rule(text: str) -> dict[str, Any]:
    found = _RULE.fullmatch(text)
    if found is None:
        raise Invalid(f"invalid device cgroup rule format: '{text}'")
    kind, major, minor, access = found.groups()
    numbers = {name: int(value) for name, value in (("major", major), ("minor", minor)) if value != "*"}
    return {"allow": True, "type": kind, "access": access, **numbers}
