"""`/tasks…` (managers only)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aiohttp import web

from skep.api.context import Cluster
from skep.api.filters import Filters, swarm_labels
from skep.api.logs import task_logs
from skep.api.routing import Call, Routes, answer
from skep.api.wire.tasks import renderer
from skep.errors import SkepError
from skep.model.enums import TaskState
from skep.model.node import Node
from skep.model.service import Service
from skep.model.tables import TASK_BY_NODE, TASK_BY_SERVICE
from skep.model.task import Task
from skep.plan.dirty import is_task_dirty

ROUTES = Routes()
CONTAINERS = ("container", "")
"""Which runtimes are shown to who names none: not the places of plain containers, in which clients look for an image."""
_STATES = {state.word: state for state in TaskState}


@ROUTES.add("GET", "/tasks")
async def ls(call: Call) -> web.StreamResponse:
    cluster = call.cluster
    wanted = call.filters("_up-to-date", "desired-state", "id", "label", "name", "node", "runtime", "service")
    services = {cluster.service(reference).id for reference in wanted.get("service")}
    nodes = {cluster.node(reference).id for reference in wanted.get("node")}
    states = set()
    for word in wanted.get("desired-state"):
        if word not in _STATES:
            raise SkepError(f"Invalid desired-state filter: '{word}'")
        states.add(_STATES[word])
    render = renderer(cluster.view, call.state.encoded)
    _prune(call, cluster)
    if not wanted:
        return answer([render(task) for task in cluster.view.all(Task) if task.spec.network_attachment_spec is None])
    passes = _Passes(cluster, wanted)
    shown = [
        render(task)
        for task in _candidates(cluster, services, nodes)
        if (not nodes or task.node_id in nodes) and (not states or task.desired_state in states) and passes(task)
    ]
    return answer(shown)


def _prune(call: Call, cluster: Cluster) -> None:
    view = cluster.view

    def alive() -> set[str]:
        return {task.id for task in view.all(Task)} | {service.id for service in view.all(Service)}

    call.state.encoded.prune(alive, len(view.all(Task)) + len(view.all(Service)))


def _candidates(cluster: Cluster, services: set[str], nodes: set[str]) -> Iterable[Task]:
    """The smallest set that an index gives."""
    if services:
        return (task for id in services for task in cluster.view.find(TASK_BY_SERVICE, id))
    if nodes:
        return (task for id in nodes for task in cluster.view.find(TASK_BY_NODE, id))
    return cluster.view.all(Task)


class _Passes:
    """The filters that look at single tasks; services are looked up, and spec versions compared, once."""

    def __init__(self, cluster: Cluster, wanted: Filters) -> None:
        self.view = cluster.view
        self.wanted = wanted
        self.services: dict[str, Service | None] = {}
        self.named = bool(wanted.get("id") or wanted.get("name"))
        self.runtimes = wanted.get("runtime") or CONTAINERS
        self.labelled = wanted.get("label")
        self.current = bool(wanted.get("_up-to-date"))

    def service(self, id: str) -> Service | None:
        if id not in self.services:
            self.services[id] = self.view.get(Service, id)
        return self.services[id]

    def labels(self, task: Task) -> Mapping[str, str] | None:
        """The service's labels; of a removed service only those remain that its containers carry (a stack's name is among them)."""
        service = self.service(task.service_id)
        if service is not None:
            return service.spec.labels
        return task.spec.container_spec.labels if task.spec.container_spec is not None else None

    def __call__(self, task: Task) -> bool:
        wanted = self.wanted
        if self.named and not (wanted.prefix("id", task.id) and wanted.prefix("name", task.name)):
            return False
        attachment = task.spec.network_attachment_spec is not None
        if ("attachment" if attachment else "container") not in self.runtimes and (attachment or "" not in self.runtimes):
            return False
        if self.labelled and not swarm_labels(self.labels(task), self.labelled):
            return False
        return not self.current or self.up_to_date(task)

    def up_to_date(self, task: Task) -> bool:
        service = self.service(task.service_id)
        if service is None or task.spec_version == service.spec_version:
            return service is not None
        return not is_task_dirty(service, task, self.view.get(Node, task.node_id) if task.node_id else None)


@ROUTES.add("GET", "/tasks/{id}")
async def inspect(call: Call) -> web.StreamResponse:
    cluster = call.cluster
    return answer(renderer(cluster.view, call.state.encoded)(cluster.task(call.path["id"])))


ROUTES.add("GET", "/tasks/{id}/logs")(task_logs)
