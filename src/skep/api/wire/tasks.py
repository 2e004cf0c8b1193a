"""Tasks as Docker's clients see them: each repeats its networks in full, so encoded forms are kept per version of task and networks."""

from __future__ import annotations

from collections.abc import Callable
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
    shown = []
    for attachment, network in zip(task.attachments, networks, strict=True):
        item: dict[str, Any] = {"Network": store_form(network) if network is not None else {"ID": attachment.network_id}}
        if attachment.addresses:
            item["Addresses"] = attachment.addresses
        if attachment.aliases:
            item["Aliases"] = attachment.aliases
        if attachment.driver_opts:
            item["DriverOpts"] = attachment.driver_opts
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
    """A function that gives a task's JSON. Networks are looked up once per renderer, tasks rendered once per version."""
    networks: dict[str, Network | None] = {}

    def network(id: str) -> Network | None:
        if id not in networks:
            networks[id] = view.get(Network, id)
        return networks[id]

    def render(task: Task) -> msgspec.Raw:
        if not task.attachments:
            return encoded.get(task.id, task.version, lambda: _task(task, []))
        found = [network(a.network_id) for a in task.attachments]
        key = (task.version, *(n.version if n is not None else 0 for n in found))
        return encoded.get(task.id, key, lambda: _task(task, found))

    return render
