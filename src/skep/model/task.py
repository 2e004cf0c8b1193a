"""A task: one container's life in one slot of a service. It is never moved and never started twice; a restart is a new task.

See docs/tasks.md. Who may write which field: `skep.plan.ownership`.
"""

from __future__ import annotations

from skep.model.base import Object, Record
from skep.model.enums import TaskState
from skep.model.spec import Driver, EndpointSpec, GenericResource, PortConfig, TaskSpec


class ContainerStatus(Record, frozen=True, kw_only=True):
    container_id: str = ""
    pid: int = 0
    hostname: str = ""
    """Where its service names one: as it was expanded on the node."""
    exit_code: int = 0
    exit_known: bool = True
    """False when the container ended while nobody watched: the code is then 0 and the error says so."""


class TaskStatus(Record, frozen=True, kw_only=True):
    """What is known of the task. Written by allocator, scheduler and agent, each for its own states."""

    timestamp: int = 0
    """When the state was observed, by the observer's clock."""
    state: TaskState = TaskState.NEW
    message: str = ""
    err: str = ""
    container: ContainerStatus | None = None
    ports: tuple[PortConfig, ...] = ()
    """Host-mode ports really published on the node."""
    applied_at: int = 0
    """When a manager stored it, by the manager's clock: what plans trust."""


class Attachment(Record, frozen=True, kw_only=True):
    """A task's place on a network."""

    network_id: str
    addresses: tuple[str, ...] = ()
    """With the prefix length: `10.0.1.3/24`. Empty for networks local to a node."""
    aliases: tuple[str, ...] = ()
    driver_opts: dict[str, str] = {}


class Restart(Record, frozen=True, kw_only=True):
    """One restart in this slot under this spec version; successors carry the list on, so nothing is kept in a leader's memory."""

    at: int
    """When the predecessor ended (applied_at)."""
    node_id: str = ""
    failed: bool = False
    """It ended in FAILED or REJECTED: counts against the node in the scheduler."""


class Task(Object, frozen=True, kw_only=True):
    service_id: str = ""
    """Empty for a network attachment."""
    service_name: str = ""
    slot: int = 0
    """From 1 (jobs: 0); 0 for global services."""
    node_id: str = ""
    spec: TaskSpec = TaskSpec()
    spec_version: int = 0
    """The service's `spec_version` this task was made for."""
    endpoint: EndpointSpec | None = None
    """The service's endpoint spec this task was made for."""
    desired_state: TaskState = TaskState.RUNNING
    """Only ever rises. READY: prepare, and wait to be let go."""
    status: TaskStatus = TaskStatus()
    running_at: int = 0
    """When a manager first stored RUNNING; 0 = never ran."""
    attachments: tuple[Attachment, ...] = ()
    generic_resources: tuple[GenericResource, ...] = ()
    log_driver: Driver | None = None
    job_iteration: int | None = None
    start_at: int = 0
    """Not to be let go (READY -> RUNNING) before this time: the restart or update delay."""
    starts_after: str = ""
    """Id of the task that must have stopped before this one is let go; at most a minute is waited."""
    restarts: tuple[Restart, ...] = ()
    """The last restarts in this slot under this spec version, oldest first: as many as a decision may ask for."""
    attempts: int = 0
    """How many restarts in this slot under this spec version led to this task; 0 = the first of them."""
    rollout: int = 0
    """`update_status.started_at` of the rollout that brought this spec to the slot, carried on to successors; 0 = none did."""

    @property
    def name(self) -> str:
        """`service.slot.id`; global tasks carry the node's id in the slot's place (SwarmKit api/naming)."""
        if not self.service_id:
            return self.id
        return f"{self.service_name}.{self.slot or self.node_id}.{self.id}"

    @property
    def state(self) -> TaskState:
        return self.status.state

    @property
    def live(self) -> bool:
        """Meant to run and not ended: desired at most RUNNING (jobs: COMPLETE) and observed at most RUNNING."""
        return self.desired_state <= TaskState.COMPLETE and self.status.state <= TaskState.RUNNING

    @property
    def terminal(self) -> bool:
        return self.status.state > TaskState.RUNNING

    @property
    def holds_resources(self) -> bool:
        """Counts against its node: assigned and not ended, whatever is desired of it."""
        return TaskState.ASSIGNED <= self.status.state <= TaskState.RUNNING
