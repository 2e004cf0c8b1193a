"""Enumerations, with SwarmKit's numbers where these have a meaning (api/types.proto, api/specs.proto)."""

from __future__ import annotations

from enum import IntEnum, StrEnum


class TaskState(IntEnum):
    """A Lamport clock: of two observations the greater is the truth, states never go back. See docs/tasks.md."""

    NEW = 0
    PENDING = 64
    ASSIGNED = 192
    ACCEPTED = 256
    PREPARING = 320
    READY = 384
    STARTING = 448
    RUNNING = 512
    COMPLETE = 576
    SHUTDOWN = 640
    FAILED = 704
    REJECTED = 768
    REMOVE = 800
    """Only ever a desired state: stop it and forget it."""
    ORPHANED = 832

    @property
    def word(self) -> str:
        """Docker's word for it: `running`."""
        return self.name.lower()


class NodeState(StrEnum):
    UNKNOWN = "unknown"
    DOWN = "down"
    READY = "ready"
    DISCONNECTED = "disconnected"


class Availability(StrEnum):
    ACTIVE = "active"
    PAUSE = "pause"
    DRAIN = "drain"


class Role(StrEnum):
    WORKER = "worker"
    MANAGER = "manager"


class Membership(StrEnum):
    PENDING = "pending"
    ACCEPTED = "accepted"


class UpdateState(StrEnum):
    UPDATING = "updating"
    PAUSED = "paused"
    COMPLETED = "completed"
    ROLLBACK_STARTED = "rollback_started"
    ROLLBACK_PAUSED = "rollback_paused"
    ROLLBACK_COMPLETED = "rollback_completed"


class Condition(StrEnum):
    """When a task is restarted."""

    NONE = "none"
    ON_FAILURE = "on-failure"
    ANY = "any"


class FailureAction(StrEnum):
    PAUSE = "pause"
    CONTINUE = "continue"
    ROLLBACK = "rollback"


class Order(StrEnum):
    STOP_FIRST = "stop-first"
    START_FIRST = "start-first"
