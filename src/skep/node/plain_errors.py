"""What is said of plain containers: errors of a start in Docker's words, warnings, patience."""

from __future__ import annotations

from collections.abc import Collection

from skep.errors import Invalid, SkepError
from skep.node.plain_config import HostConfig, Record

STOP_TIMEOUT = 10


def start_error(error: SkepError, program: str) -> tuple[int, SkepError]:
    """(exit code, the error). A program that is not there is 127, one that cannot be run 126, as the CLI finds them in the text."""
    text, low = error.text, error.text.lower()
    if "OCI runtime" not in text:
        return 128, error
    process = "OCI runtime create failed: unable to start container process: "
    head = "failed to create task for container: failed to create shim task: "
    if "executable file not found" in low:
        return 127, Invalid(f"{head}{text}: unknown")
    low = low.replace("open executable: operation not permitted", "permission denied")
    for phrase in ("permission denied", "is a directory"):
        if phrase in low:  # the runtimes word it in different ways
            return 126, Invalid(f'{head}{process}exec: "{program}": {phrase}: unknown')
    if "not a directory" in low:
        hint = "Are you trying to mount a directory onto a file (or vice-versa)?"
        hint += " Check if the specified host path exists and is the expected type"
        return 127, Invalid(f"{head}{text}: unknown: {hint}")
    if "no such file or directory" in low:
        return 127, Invalid(f"{head}{_lower_errno(text)}: unknown")
    return 128, SkepError(f"{head}{text}: unknown")


def _lower_errno(text: str) -> str:
    """As Go writes it: the CLI looks for these words."""
    return text.replace("No such file or directory", "no such file or directory")


def stop_timeout(record: Record) -> int:
    return record.config.stop_timeout if record.config.stop_timeout is not None else STOP_TIMEOUT


DISCARDED = {
    "blkio_weight": "Block I/O weight or the cgroup is not mounted. Weight discarded.",
    "memory_swappiness": "memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded.",
    "oom_kill_disable": "OomKillDisable. OomKillDisable discarded.",
    "cpu_realtime_period": "CPU real-time period or the cgroup is not mounted. Period discarded.",
    "cpu_realtime_runtime": "CPU real-time runtime or the cgroup is not mounted. Runtime discarded.",
}
"""Limits that some kernels have no file for (cgroup v2 has none of the last four), and what is said when one was asked for."""


def warnings_of(host: HostConfig, missing: Collection[str] = ()) -> list[str]:
    """`missing`: limits, by their names in `Limits`, that the engine leaves out here."""
    found = [
        f"Your kernel does not support {said}"
        for name, said in DISCARDED.items()
        if name in missing and getattr(host, name) not in ((-1,) if name == "memory_swappiness" else (0, False))
    ]
    if host.oom_kill_disable and not host.memory and "oom_kill_disable" not in missing:
        found.append("OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of "
                     "resources.")  # fmt: skip
    if host.network_mode == "host" and (host.port_bindings or host.publish_all_ports):
        found.append("Published ports are discarded when using host network mode")
    return found
