"""What is said of plain containers: errors of a start in Docker's words, warnings, patience."""

from __future__ import annotations

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


def warnings_of(host: HostConfig) -> list[str]:
    found = []
    if host.oom_kill_disable and not host.memory:
        found.append("OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of "
                     "resources.")  # fmt: skip
    return found
