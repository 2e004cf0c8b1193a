"""Which objects are stored, and by what they are found: the one list of tables and indexes.

A key function gives all keys under which an object is found (often one, sometimes none). Results come in order of creation.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

from skep.model.base import Object
from skep.model.cluster import Cluster
from skep.model.enums import TaskState
from skep.model.network import Network
from skep.model.node import Node
from skep.model.service import Service
from skep.model.task import Task

T = TypeVar("T", bound=Object)

TABLES: dict[str, type[Object]] = {"cluster": Cluster, "node": Node, "service": Service, "task": Task, "network": Network}
"""Name on disk and in events -> type."""

NAMES: dict[type[Object], str] = {kind: name for name, kind in TABLES.items()}


class Index(Generic[T]):
    """One way to find objects of a table. `unique` ones refuse a second object under the same key."""

    def __init__(self, kind: type[T], name: str, keys: Callable[[T], Iterable[Hashable]], unique: bool = False) -> None:
        self.kind = kind
        self.name = name
        self.keys = keys
        self.unique = unique


def slot_key(task: Task) -> tuple[str, int, str]:
    """Where a task stands in its service: its slot, or for global services its node."""
    return (task.service_id, task.slot, "" if task.slot else task.node_id)


SERVICE_BY_NAME: Index[Service] = Index(Service, "name", lambda s: (s.spec.name.lower(),), unique=True)
SERVICE_BY_NETWORK: Index[Service] = Index(
    Service, "network", lambda s: {a.target for a in (s.spec.task_template.networks or s.spec.networks or ())}
)
NETWORK_BY_NAME: Index[Network] = Index(Network, "name", lambda n: (n.spec.name.lower(),), unique=True)
NODE_BY_HOSTNAME: Index[Node] = Index(Node, "hostname", lambda n: (n.hostname.lower(),) if n.hostname else ())
TASK_BY_SERVICE: Index[Task] = Index(Task, "service", lambda t: (t.service_id,) if t.service_id else ())
TASK_BY_NODE: Index[Task] = Index(Task, "node", lambda t: (t.node_id,) if t.node_id else ())
TASK_BY_SLOT: Index[Task] = Index(Task, "slot", lambda t: (slot_key(t),) if t.service_id else ())
TASK_BY_NETWORK: Index[Task] = Index(Task, "network", lambda t: {a.network_id for a in t.attachments})
TASK_UNALLOCATED: Index[Task] = Index(
    Task, "unallocated", lambda t: ("",) if t.status.state == TaskState.NEW and t.desired_state <= TaskState.COMPLETE else ()
)
TASK_UNASSIGNED: Index[Task] = Index(
    Task, "unassigned", lambda t: ("",) if t.status.state == TaskState.PENDING and t.desired_state <= TaskState.COMPLETE else ()
)
TASK_TO_REMOVE: Index[Task] = Index(Task, "to remove", lambda t: ("",) if t.desired_state is TaskState.REMOVE else ())

INDEXES: tuple[Index[Service] | Index[Network] | Index[Node] | Index[Task], ...] = (
    SERVICE_BY_NAME,
    SERVICE_BY_NETWORK,
    NETWORK_BY_NAME,
    NODE_BY_HOSTNAME,
    TASK_BY_SERVICE,
    TASK_BY_NODE,
    TASK_BY_SLOT,
    TASK_BY_NETWORK,
    TASK_UNALLOCATED,
    TASK_UNASSIGNED,
    TASK_TO_REMOVE,
)
