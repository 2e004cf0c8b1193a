"""Who may write what: one row for each (field, transition), one owner for each row (rule 4 of the design).

Components never call each other; each watches the store and changes what it owns, so this table is what keeps two of them from working
against each other. `violations` says what an operation breaks; a store takes `refuse` as its guard. A field that has no row is set when its
object is created and never again. See docs/ownership.md, which shows the same table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec

from skep.errors import SkepError
from skep.model.base import Object
from skep.model.cluster import Cluster
from skep.model.enums import TaskState, UpdateState
from skep.model.network import Network
from skep.model.node import Node
from skep.model.service import Service, UpdateStatus
from skep.model.task import Attachment, Task, TaskStatus
from skep.plan.ops import Create, Delete, Op

OWNERS: dict[str, str] = {
    "control": "what users ask for",
    "services": "slots: creation, scale, restart, rollout",
    "allocator": "addresses, networks, ports, node indexes",
    "scheduler": "which node a task goes to",
    "dispatcher": "what nodes report, and whether they are there",
    "enforcer": "tasks on a node that no longer suits them",
    "liveness": "tasks of nodes that are gone",
    "reaper": "tasks nobody needs any more",
    "roles": "the role of a node in force",
    "ca": "certificates and keys",
}

CREATE = "(create)"
DELETE = "(delete)"

Fields = Mapping[str, Any]


class Row(msgspec.Struct, frozen=True):
    kind: type[Object]
    field: str
    owner: str
    transition: str
    """In words, for the reader and the error."""
    allows: Callable[[Any, Fields], bool]
    """(object before, fields written); for a creation (None, all fields)."""


class Trespass(SkepError):
    """A component wrote what it does not own: a fault of ours, never a user's."""


def _any(old: Any, new: Fields) -> bool:
    return True


def _state(owner: str, transition: str, allows: Callable[[TaskState, TaskState], bool]) -> Row:
    """A row for steps of `status.state`; rewriting the text of a state belongs to whoever makes the next step."""

    def check(old: Task, new: Fields) -> bool:
        return allows(old.status.state, cast(TaskStatus, new["status"]).state)

    return Row(Task, "status", owner, transition, check)


def _raises_desired(of_service: bool) -> Callable[[Any, Fields], bool]:
    def check(old: Task, new: Fields) -> bool:
        return bool(old.service_id) is of_service and new["desired_state"] > old.desired_state

    return check


def _creates_task(of_service: bool) -> Callable[[Any, Fields], bool]:
    def check(_: Any, new: Fields) -> bool:
        return bool(new["service_id"]) is of_service and cast(TaskStatus, new["status"]).state is TaskState.NEW

    return check


def _renames(old: Task, new: Fields) -> bool:
    def places(attachments: tuple[Attachment, ...]) -> list[tuple[str, tuple[str, ...]]]:
        return [(place.network_id, place.addresses) for place in attachments]

    return not old.service_id and places(old.attachments) == places(new["attachments"])


def _finished(old: Task, _: Fields) -> bool:
    """Not running anywhere and not about to."""
    return old.terminal or (old.desired_state > TaskState.RUNNING and old.status.state < TaskState.ASSIGNED)


def _clears_status(old: Service, new: Fields) -> bool:
    status: UpdateStatus | None = new["update_status"]
    return status is None or status.state is UpdateState.ROLLBACK_STARTED


SWAPPED = ("spec", "spec_version", "previous_spec", "previous_spec_version", "registry_auth", "previous_registry_auth")
"""What an automatic rollback puts back."""


def swap(service: Service) -> dict[str, Any]:
    """The fields of control's rollback as a rollout carries it: the previous spec comes back and is used up."""
    return {
        "spec": service.previous_spec,
        "spec_version": service.previous_spec_version,
        "previous_spec": None,
        "previous_spec_version": 0,
        "registry_auth": service.previous_registry_auth,
        "previous_registry_auth": "",
    }


def _rolls_back(old: Service, new: Fields) -> bool:
    """Exactly control's rollback, and only out of a running update."""
    status: UpdateStatus | None = new.get("update_status")
    begins = status is not None and status.state is UpdateState.ROLLBACK_STARTED
    runs = old.update_status is not None and old.update_status.state is UpdateState.UPDATING
    wanted = swap(old)
    return old.previous_spec is not None and begins and runs and all(new.get(name, getattr(old, name)) == wanted[name] for name in SWAPPED)


def _not_backwards(old: TaskState, new: TaskState) -> bool:
    return TaskState.ASSIGNED <= old <= new <= TaskState.REJECTED


def _rows(kind: type[Object], fields: str, owner: str, transition: str = "any") -> tuple[Row, ...]:
    return tuple(Row(kind, field, owner, transition, _any) for field in fields.split())


N, P, A, R = TaskState.NEW, TaskState.PENDING, TaskState.ASSIGNED, TaskState.RUNNING

TABLE: tuple[Row, ...] = (
    Row(Task, CREATE, "services", "a service's task, NEW", _creates_task(True)),
    Row(Task, CREATE, "control", "a network attachment, NEW", _creates_task(False)),
    Row(Task, DELETE, "reaper", "one that has ended or never began", _finished),
    Row(Task, "desired_state", "services", "upwards, a service's task", _raises_desired(True)),
    Row(Task, "desired_state", "control", "upwards, a network attachment", _raises_desired(False)),
    _state("allocator", "NEW to PENDING, and the text of NEW", lambda old, new: old is N and new in (N, P)),
    _state("scheduler", "PENDING to ASSIGNED, and the text of PENDING", lambda old, new: old is P and new in (P, A)),
    _state("dispatcher", "from ASSIGNED on, never back", _not_backwards),
    _state("enforcer", "ASSIGNED..RUNNING to REJECTED", lambda old, new: A <= old <= R and new is TaskState.REJECTED),
    _state("liveness", "ASSIGNED..RUNNING to ORPHANED", lambda old, new: A <= old <= R and new is TaskState.ORPHANED),
    Row(Task, "node_id", "scheduler", "once", lambda old, new: not old.node_id),
    *_rows(Task, "generic_resources", "scheduler"),
    Row(Task, "running_at", "dispatcher", "once", lambda old, new: not old.running_at),
    *_rows(Task, "attachments", "allocator"),
    Row(Task, "attachments", "control", "the names of a network attachment", _renames),
    *_rows(Service, f"{CREATE} {DELETE}", "control"),
    *_rows(Service, " ".join(SWAPPED), "control"),
    *_rows(Service, "job_status", "control"),
    Row(Service, "update_status", "control", "to nothing, or to ROLLBACK_STARTED", _clears_status),
    *_rows(Service, "update_status", "services"),
    *(Row(Service, field, "services", "an automatic rollback: control's swap, carried", _rolls_back) for field in SWAPPED),
    *_rows(Service, "endpoint", "allocator"),
    *_rows(Node, CREATE, "ca", "a node that joins"),
    *_rows(Node, CREATE, "control", "the first manager"),
    *_rows(Node, f"{DELETE} spec", "control"),
    *_rows(Node, "status description applied_version manager_addr", "dispatcher"),
    *_rows(Node, "role", "roles"),
    *_rows(Node, "membership certificate", "ca"),
    *_rows(Node, "index", "allocator"),
    *_rows(Network, f"{CREATE} {DELETE} spec", "control"),
    *_rows(Network, "driver options ipam vni cursor", "allocator"),
    *_rows(Cluster, f"{CREATE} {DELETE} spec default_addr_pool subnet_size data_path_port", "control"),
    *_rows(Cluster, "tokens", "control", "rotation"),
    *_rows(Cluster, "tokens", "ca", "a new root"),
    *_rows(Cluster, "revoked", "control", "a removed node's certificate comes in"),
    *_rows(Cluster, "revoked", "ca", "an expired one goes"),
    *_rows(Cluster, "root_ca", "ca"),
    *_rows(Cluster, "subnet_cursor vni_cursor port_cursor node_cursor", "allocator"),
)


def _index() -> dict[tuple[type[Object], str], tuple[Row, ...]]:
    rows: dict[tuple[type[Object], str], tuple[Row, ...]] = {}
    for row in TABLE:
        rows[row.kind, row.field] = (*rows.get((row.kind, row.field), ()), row)
    return rows


_ROWS = _index()


def violations(by: str, op: Op, old: Object | None) -> list[str]:
    """What `by` may not do of this operation on `old` (None: there is no such object); empty = all of it is its own. An unnamed writer
    ("": tests, the first start) is not checked."""
    if not by:
        return []
    if by not in OWNERS:
        return [f"nobody is called {by!r}"]
    if isinstance(op, Create):
        kind, id = type(op.object), op.object.id
        written: dict[str, Any] = {CREATE: None}
        fields: Fields = {name: getattr(op.object, name) for name in op.object.__struct_fields__}
    else:
        kind, id = op.kind, op.id
        if old is None:
            return [f"{by}: there is no {kind.__name__} {id}"]
        if isinstance(op, Delete):
            written, fields = {DELETE: None}, {}
        else:
            written = {name: value for name, value in op.fields.items() if getattr(old, name) != value}
            fields = op.fields
    return [text for name in written if (text := _refusal(by, kind, id, name, old, fields))]


def _refusal(by: str, kind: type[Object], id: str, name: str, old: Object | None, fields: Fields) -> str:
    rows = _ROWS.get((kind, name), ())
    mine = [row for row in rows if row.owner == by]
    if any(row.allows(old, fields) for row in mine):
        return ""
    what = f"{by} may not write {kind.__name__}.{name} of {id}"
    if name == "status" and isinstance(old, Task):
        what += f" ({old.status.state.name} to {fields['status'].state.name})"
    if mine:
        return f"{what}: only {' or '.join(row.transition for row in mine)}"
    owners = ", ".join(sorted({row.owner for row in rows})) or "nobody, once the object is there"
    return f"{what}: it belongs to {owners}"


def refuse(by: str, op: Op, old: Object | None) -> None:
    """The store's guard. Raises Trespass."""
    if found := violations(by, op, old):
        raise Trespass("; ".join(found))
