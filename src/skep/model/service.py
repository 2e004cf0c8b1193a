"""A service: what the user asks for (spec), and what became of it."""

from __future__ import annotations

from skep.model.base import Object, Record
from skep.model.enums import UpdateState
from skep.model.spec import EndpointSpec, PortConfig, ServiceSpec


class UpdateStatus(Record, frozen=True, kw_only=True):
    """A rollout's progress. Everything a new leader needs to go on with it is here (rule 3)."""

    state: UpdateState
    started_at: int = 0
    completed_at: int = 0
    message: str = ""
    total: int = 0
    """Slots that had to be replaced when it began: the divisor of the failure ratio. 0 = the planner has not seen it yet."""
    failed: tuple[str, ...] = ()
    """Ids of the tasks counted as failures, each once."""
    last_slot_at: int = 0
    """When the last slot was found done: the monitor window runs from here."""


class VirtualIP(Record, frozen=True, kw_only=True):
    network_id: str
    address: str
    """With the prefix length: `10.0.1.2/24`."""


class Endpoint(Record, frozen=True, kw_only=True):
    """What the allocator gave the service. Owned by the allocator."""

    spec: EndpointSpec | None = None
    """The endpoint spec that `ports` and `vips` were given for."""
    ports: tuple[PortConfig, ...] = ()
    """Ports really published: `published_port` is filled in."""
    vips: tuple[VirtualIP, ...] = ()


class JobStatus(Record, frozen=True, kw_only=True):
    iteration: int = 0
    last_execution: int = 0


class Service(Object, frozen=True, kw_only=True):
    spec: ServiceSpec
    spec_version: int = 0
    """The store's index when `spec` was last changed in a way that replaces tasks; a rollback puts the previous one back."""
    previous_spec: ServiceSpec | None = None
    previous_spec_version: int = 0
    endpoint: Endpoint | None = None
    """None until the allocator has seen the service; its tasks stay NEW until then."""
    update_status: UpdateStatus | None = None
    job_status: JobStatus | None = None
    registry_auth: str = ""
    """The X-Registry-Auth header as it came (base64url JSON). Never in answers, events or logs."""
    previous_registry_auth: str = ""

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def replicated(self) -> bool:
        return self.spec.mode.replicated is not None

    @property
    def global_(self) -> bool:
        return self.spec.mode.global_ is not None

    @property
    def job(self) -> bool:
        return self.spec.mode.replicated_job is not None or self.spec.mode.global_job is not None
