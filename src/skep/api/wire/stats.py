"""What a container uses, as `docker stats` reads it: two samples, the CPU's part of which the client divides."""

from __future__ import annotations

from typing import Any

from skep.api.wire.times import ZERO, stamp
from skep.engine.base import Stats


def stats_form(id: str, name: str, now: Stats, before: Stats) -> dict[str, Any]:
    """A container that does not run has zeros and no times, as in Docker."""
    measured = bool(now.system_cpu or now.memory or now.pids or now.cpu_total)
    shown: dict[str, Any] = {
        "name": f"/{name}",
        "id": id,
        "read": stamp(now.at) if measured else ZERO,
        "preread": stamp(before.at),
        "pids_stats": _known(current=now.pids, limit=now.pids_limit),
        "blkio_stats": {
            "io_service_bytes_recursive": [
                {"major": major, "minor": minor, "op": what.lower(), "value": count} for major, minor, what, count in now.block
            ]
            or None,
            "io_serviced_recursive": None,
            "io_queue_recursive": None,
            "io_service_time_recursive": None,
            "io_wait_time_recursive": None,
            "io_merged_recursive": None,
            "io_time_recursive": None,
            "sectors_recursive": None,
        },
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": _cpu(now),
        "precpu_stats": _cpu(before),
        "memory_stats": _memory(now) if measured else {},
    }
    if now.networks:
        shown["networks"] = {device: {key: counts.get(key, 0) for key in _COUNTS} for device, counts in now.networks.items()}
    return shown


_COUNTS = ("rx_bytes", "rx_packets", "rx_errors", "rx_dropped", "tx_bytes", "tx_packets", "tx_errors", "tx_dropped")


def _known(**values: int) -> dict[str, int]:
    return {name: value for name, value in values.items() if value}


def _cpu(stats: Stats) -> dict[str, Any]:
    usage: dict[str, Any] = {"total_usage": stats.cpu_total}
    if stats.per_cpu:
        usage["percpu_usage"] = list(stats.per_cpu)
    usage |= {"usage_in_kernelmode": stats.cpu_kernel, "usage_in_usermode": stats.cpu_user}
    return {
        "cpu_usage": usage,
        **_known(system_cpu_usage=stats.system_cpu, online_cpus=stats.online_cpus),
        "throttling_data": {
            "periods": stats.periods,
            "throttled_periods": stats.throttled_periods,
            "throttled_time": stats.throttled_time,
        },
    }


def _memory(stats: Stats) -> dict[str, Any]:
    shown: dict[str, Any] = {"usage": stats.memory}
    shown |= _known(max_usage=stats.memory_max)
    shown["stats"] = stats.memory_detail
    shown |= _known(failcnt=stats.memory_failures)
    return shown | {"limit": stats.memory_limit}
