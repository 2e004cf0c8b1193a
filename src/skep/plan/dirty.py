"""Is a task still what its service asks for? (SwarmKit orchestrator/task.go, IsTaskDirty)

What replaces tasks: anything in the task template, and the endpoint spec. What does not: labels of the service, replicas, update and
rollback config, and a changed placement that the task's node meets as it is. All tasks of one spec version are alike, so each version is
compared once.
"""

from __future__ import annotations

import msgspec

from skep.model.node import Node
from skep.model.service import Service
from skep.model.spec import EndpointSpec, TaskSpec
from skep.model.task import Task
from skep.plan.schedule.constraint import node_matches
from skep.plan.slots import Nodes

CLEAN, PLACEMENT, DIRTY = range(3)


def task_spec(service: Service) -> TaskSpec:
    """The spec a task of the service is made with: the template, without the runtime that only services show."""
    template = service.spec.task_template
    return msgspec.structs.replace(template, runtime="") if template.runtime else template


def constraints(service: Service) -> tuple[str, ...]:
    placement = service.spec.task_template.placement
    return (placement.constraints if placement else None) or ()


def is_task_dirty(service: Service, task: Task, node: Node | None) -> bool:
    """`node` is the task's, None when it has none."""
    return _verdict(_difference(service, task), service, node)


class Dirty:
    """The same for many tasks of one service."""

    def __init__(self, service: Service, nodes: Nodes) -> None:
        self._service = service
        self._nodes = nodes
        self._known: dict[int, int] = {service.spec_version: CLEAN}

    def __call__(self, task: Task) -> bool:
        difference = self._known.get(task.spec_version)
        if difference is None:
            difference = self._known[task.spec_version] = _difference(self._service, task)
        if difference == PLACEMENT:
            return _verdict(difference, self._service, self._nodes.get(task.node_id) if task.node_id else None)
        return difference == DIRTY


def _difference(service: Service, task: Task) -> int:
    if task.spec_version == service.spec_version:
        return CLEAN
    if (task.endpoint or EndpointSpec()) != (service.spec.endpoint_spec or EndpointSpec()):
        return DIRTY
    wanted = task_spec(service)
    if task.spec == wanted:
        return CLEAN
    return PLACEMENT if msgspec.structs.replace(wanted, placement=task.spec.placement) == task.spec else DIRTY


def _verdict(difference: int, service: Service, node: Node | None) -> bool:
    if difference == PLACEMENT:
        return node is None or not node_matches(constraints(service), node)
    return difference == DIRTY
