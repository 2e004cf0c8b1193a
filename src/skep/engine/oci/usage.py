"""What a container uses now, from its control groups and its network namespace. Blocks for a fraction of a millisecond."""

from __future__ import annotations

import os
from typing import Any

from skep.engine.base import Stats
from skep.engine.oci.cgroups import Groups

_TICK = 10**9 // os.sysconf("SC_CLK_TCK")
_FIELDS = ("bytes", "packets", "errors", "dropped")


def measure(groups: Groups, v2: bool, pid: int, at: int) -> Stats:
    """`pid`: whose network is counted; 0: the host's, which is not the container's."""
    system, online = _processors()
    fields = _v2(groups) if v2 else _v1(groups)
    fields["memory_limit"] = fields["memory_limit"] or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    totals = {"Read": 0, "Write": 0}
    for _, _, operation, count in fields["block"]:
        if operation in totals:
            totals[operation] += count
    return Stats(
        at=at,
        system_cpu=system,
        online_cpus=online,
        networks=_networks(pid) if pid else {},
        pids=groups.number("pids", "pids.current"),
        pids_limit=groups.number("pids", "pids.max"),
        read_bytes=totals["Read"],
        written_bytes=totals["Write"],
        **fields,
    )


def _v1(groups: Groups) -> dict[str, Any]:
    times, throttled = groups.table("cpuacct", "cpuacct.stat"), groups.table("cpu", "cpu.stat")
    return {
        "cpu_total": groups.number("cpuacct", "cpuacct.usage"),
        "cpu_user": times.get("user", 0) * _TICK,
        "cpu_kernel": times.get("system", 0) * _TICK,
        "per_cpu": tuple(int(text) for text in groups.read("cpuacct", "cpuacct.usage_percpu").split()),
        "periods": throttled.get("nr_periods", 0),
        "throttled_periods": throttled.get("nr_throttled", 0),
        "throttled_time": throttled.get("throttled_time", 0),
        "memory": groups.number("memory", "memory.usage_in_bytes"),
        "memory_max": groups.number("memory", "memory.max_usage_in_bytes"),
        "memory_limit": groups.number("memory", "memory.limit_in_bytes"),
        "memory_failures": groups.number("memory", "memory.failcnt"),
        "memory_detail": groups.table("memory", "memory.stat"),
        "block": _block_v1(groups),
    }


def _block_v1(groups: Groups) -> tuple[tuple[int, int, str, int], ...]:
    """Of the scheduler that counts, else of the throttling layer, which counts everything."""
    for name in ("blkio.bfq.io_service_bytes_recursive", "blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"):
        found = []
        for words in groups.lines("blkio", name):
            if len(words) == 3:
                major, _, minor = words[0].partition(":")
                found.append((int(major), int(minor), words[1], int(words[2])))
        if any(count for *_, count in found):
            return tuple(found)
    return ()


def _v2(groups: Groups) -> dict[str, Any]:
    times = groups.table("", "cpu.stat")
    return {
        "cpu_total": times.get("usage_usec", 0) * 1000,
        "cpu_user": times.get("user_usec", 0) * 1000,
        "cpu_kernel": times.get("system_usec", 0) * 1000,
        "periods": times.get("nr_periods", 0),
        "throttled_periods": times.get("nr_throttled", 0),
        "throttled_time": times.get("throttled_usec", 0) * 1000,
        "memory": groups.number("", "memory.current"),
        "memory_max": groups.number("", "memory.peak"),
        "memory_limit": groups.number("", "memory.max"),
        "memory_failures": groups.table("", "memory.events").get("max", 0),
        "memory_detail": groups.table("", "memory.stat"),
        "block": _block_v2(groups),
    }


def _block_v2(groups: Groups) -> tuple[tuple[int, int, str, int], ...]:
    found = []
    for device, *values in groups.lines("", "io.stat"):
        major, _, minor = device.partition(":")
        table = dict(value.split("=", 1) for value in values if "=" in value)
        for operation, key in (("Read", "rbytes"), ("Write", "wbytes")):
            found.append((int(major), int(minor), operation, int(table.get(key, 0))))
    return tuple(found)


def _processors() -> tuple[int, int]:
    """(ns that all of them have been busy or idle, how many there are): Docker takes the first seven columns."""
    with open("/proc/stat", encoding="ascii") as file:
        lines = file.read().splitlines()
    online = sum(1 for line in lines if line.startswith("cpu") and line[3:4].isdigit())
    return sum(int(text) for text in lines[0].split()[1:8]) * _TICK, online


def _networks(pid: int) -> dict[str, dict[str, int]]:
    try:
        with open(f"/proc/{pid}/net/dev", encoding="ascii", errors="replace") as file:
            lines = file.read().splitlines()[2:]
    except OSError:
        return {}
    found = {}
    for line in lines:
        name, _, rest = line.partition(":")
        numbers = [int(text) for text in rest.split()]
        if name.strip() != "lo" and len(numbers) >= 12:
            received, sent = numbers[:4], numbers[8:12]
            found[name.strip()] = {
                **{f"rx_{field}": value for field, value in zip(_FIELDS, received, strict=True)},
                **{f"tx_{field}": value for field, value in zip(_FIELDS, sent, strict=True)},
            }
    return found
