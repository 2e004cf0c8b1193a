"""When a plain container is started again by its policy. Pure; Docker's rules and numbers (moby, daemon/internal/restartmanager).

The delay doubles from 100 ms to a minute while the container dies young, and begins anew when it has run for 10 s.
"""

from __future__ import annotations

from skep.clock import MILLISECOND, MINUTE, SECOND
from skep.engine.base import Exit
from skep.node.plain_config import RestartPolicy

FIRST = 100 * MILLISECOND
LONGEST = MINUTE
STEADY = 10 * SECOND


def again(policy: RestartPolicy, ended: Exit, *, stopped: bool, restarts: int) -> bool:
    """Is it to be started again? An end that nobody saw counts as a failure."""
    if stopped:
        return False
    if policy.name in ("always", "unless-stopped"):
        return True
    if policy.name != "on-failure" or (policy.maximum_retry_count and restarts >= policy.maximum_retry_count):
        return False
    return ended.code != 0 or not ended.known


def again_at_boot(policy: RestartPolicy, ended: Exit, *, stopped: bool, restarts: int) -> bool:
    """The same when the daemon starts: `always` forgets then that it was stopped by hand, as Docker does."""
    return policy.name == "always" or again(policy, ended, stopped=stopped, restarts=restarts)


def next_delay(last: int, ran: int) -> int:
    """`last`: the delay before; `ran`: how long it ran since, both ns."""
    if not last or ran >= STEADY:
        return FIRST
    return min(last * 2, LONGEST)
