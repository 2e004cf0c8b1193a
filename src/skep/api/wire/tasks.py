"""Tasks as Docker's clients see them: each repeats its networks in full, so encoded forms are kept per version of task and networks."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import msgspec

from skep.api.cache import Encoded
from skep.api.wire.networks import store_form
from skep.api.wire.services import head, shown_task_spec
from skep.api.wire.times import stamp
from skep.model.enums import TaskState
from skep.model.network import Network
from skep.model.task import ContainerStatus, Task, TaskStatus
from skep.plan.view import View


def _status(status: TaskStatus) -> dict[str, Any]:
    shown: dict[str, Any] = {"Timestamp": stamp(status.timestamp), "State": status.state.word}
    if status.message:
        shown["Message"] = status.message
    if status.err:
        shown["Err"] = status.err
    container = status.container
    if container is None and status.state in (TaskState.FAILED, TaskState.REJECTED):
        container = ContainerStatus()
    if container is not None:
        shown["ContainerStatus"] = {"ContainerID": container.container_id, "PID": container.pid, "ExitCode": container.exit_code}
    shown["PortStatus"] = {"Ports": status.ports} if status.ports else {}
    return shown


def _attachments(task: Task, networks: list[Network | None]) -> list[dict[str, Any]]:
    """Aliases and driver options stand in the task's spec only."""
    shown = []
    for attachment, network in zip(task.attachments, networks, strict=True):
        item: dict[str, Any] = {"Network": store_form(network) if network is not None else {"ID": attachment.network_id}}
        if attachment.addresses:
            item["Addresses"] = attachment.addresses
        shown.append(item)
    return shown


def _task(task: Task, networks: list[Network | None]) -> dict[str, Any]:
    shown = head(task)
    shown["Labels"] = {}
    shown["Spec"] = shown_task_spec(task.spec, in_service=False)
    if task.service_id:
        shown["ServiceID"] = task.service_id
    if task.slot:
        shown["Slot"] = task.slot
    if task.node_id:
        shown["NodeID"] = task.node_id
    shown["Status"] = _status(task.status)
    shown["DesiredState"] = task.desired_state.word
    if task.attachments:
        shown["NetworksAttachments"] = _attachments(task, networks)
    if task.generic_resources:
        shown["GenericResources"] = task.generic_resources
    if task.job_iteration is not None:
        shown["JobIteration"] = {"Index": task.job_iteration} if task.job_iteration else {}
    shown["Volumes"] = None
    return shown


def renderer(view: View, encoded: Encoded) -> Callable[[Task], msgspec.Raw]:
    """A function that gives a task's JSON, kept as long as the task is the same object and its networks' facts are the same.

    A network's version moves with each address given from it; a task goes on showing the version it was rendered with, as Docker's tasks
    show the network as it was when they were placed.
    """
    networks: dict[str, Network | None] = {}
    facts: dict[str, Hashable] = {}
    find = encoded.kept.get

    def fact(id: str) -> Hashable:
        network = networks[id] = view.get(Network, id)
        known = facts[id] = (network.spec_index, network.vni, network.ipam) if network is not None else None
        return known

    def render(task: Task) -> msgspec.Raw:
        places = task.attachments
        key: Hashable = None
        if places:
            first = places[0].network_id
            key = facts[first] if first in facts else fact(first)
            if len(places) > 1:
                key = (key, *(facts[a.network_id] if a.network_id in facts else fact(a.network_id) for a in places[1:]))
        entry = find(task.id)
        if entry is not None and entry[0] is task and entry[1] == key:
            return entry[2]
        return encoded.put(task, key, _task(task, [networks[a.network_id] for a in places]))

    return render
