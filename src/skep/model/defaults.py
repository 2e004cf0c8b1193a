"""What an absent value means (SwarmKit api/defaults/service.go, manager/manager.go; reference: swarmkit-map sections 2, 8, 11, 15).

Specs are stored as they came; defaults are applied where a spec is used, and by `insertDefaults` in answers.
"""

from __future__ import annotations

import msgspec

from skep.clock import DAY, SECOND
from skep.model.enums import Condition, FailureAction, Order
from skep.model.service import Service
from skep.model.spec import ContainerSpec, TaskSpec, UpdateConfig

STOP_GRACE_PERIOD = 10 * SECOND
RESTART_DELAY = 5 * SECOND
MONITOR = 5 * SECOND
HISTORY_LIMIT = 5
HEARTBEAT_PERIOD = 5 * SECOND
HEARTBEAT_GRACE = 3
"""A node is lost after this many periods without a heartbeat; twice as many after a new leader's start."""
ORPHAN_AFTER = DAY
STOPPED_TASK_SHOWN = SECOND
"""How long a stopped task of a removed service stays in the lists (SwarmKit batches its deletions for 250 ms)."""
OLD_TASK_TIMEOUT = 60 * SECOND
"""How long a replacement waits for its predecessor to stop."""
NODE_CERT_EXPIRY = 90 * DAY
DATA_PATH_PORT = 4789
SUBNET_SIZE = 24
ADDRESS_POOL = "10.0.0.0/8"
FIRST_VNI = 4096
DYNAMIC_PORTS = range(30000, 32768)
MAX_FAILURES = 5
FAILURE_WINDOW = 300 * SECOND


class Restarting(msgspec.Struct, frozen=True):
    """A restart policy with nothing left open. `max_attempts` 0 = no limit, `window` 0 = unbounded."""

    condition: Condition
    delay: int
    max_attempts: int
    window: int


class Rollout(msgspec.Struct, frozen=True):
    """An update config with nothing left open. `parallelism` 0 = all at once."""

    parallelism: int
    delay: int
    failure_action: FailureAction
    monitor: int
    max_failure_ratio: int | float
    order: Order


def restarting(spec: TaskSpec) -> Restarting:
    p = spec.restart_policy
    if p is None:
        return Restarting(Condition.ANY, RESTART_DELAY, 0, 0)
    return Restarting(Condition(p.condition or "any"), RESTART_DELAY if p.delay is None else p.delay, p.max_attempts or 0, p.window or 0)


def rollout(config: UpdateConfig | None) -> Rollout:
    """An absent config: one at a time, pause on failure, 5 s of monitoring. In a given one, `parallelism: 0` means all at once."""
    if config is None:
        return Rollout(1, 0, FailureAction.PAUSE, MONITOR, 0, Order.STOP_FIRST)
    return Rollout(
        config.parallelism,
        config.delay,
        FailureAction(config.failure_action or "pause"),
        config.monitor or MONITOR,
        config.max_failure_ratio,
        Order(config.order or "stop-first"),
    )


def stop_grace_period(spec: ContainerSpec) -> int:
    return STOP_GRACE_PERIOD if spec.stop_grace_period is None else spec.stop_grace_period


def replicas(service: Service) -> int:
    """How many slots a replicated service has; 0 for other modes."""
    mode = service.spec.mode.replicated
    return 0 if mode is None else 1 if mode.replicas is None else mode.replicas
