"""`skep service ls` and `rm`."""

from __future__ import annotations

from skep.cli.flags import Command, Flag
from skep.cli.names import familiar, short
from skep.cli.shell import for_each
from skep.cli.table import FORMAT, render
from skep.cli.words import natural
from skep.client import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from skep.cli.flags import Values
    from skep.cli.shell import Shell

COLUMNS = [("ID", "ID"), ("Name", "NAME"), ("Mode", "MODE"), ("Replicas", "REPLICAS"), ("Image", "IMAGE"), ("Ports", "PORTS")]
MODES = {"Replicated": "replicated", "Global": "global", "ReplicatedJob": "replicated job", "GlobalJob": "global job"}


def list_services(shell: Shell, values: Values, _: list[str]) -> int:
    quiet, form = values["quiet"], values["format"] or ""
    services = shell.call(calls.service_list(values.filters(), status=not quiet))
    if not quiet:
        _count_here(shell, services)
    services.sort(key=lambda service: natural(service["Spec"]["Name"]))
    if quiet and not form:
        for service in services:
            shell.print(short(service["ID"]))
        return 0
    shell.print(render(COLUMNS, [row(service) for service in services], form, dict(COLUMNS)), end="")
    return 0


def row(service: dict[str, Any]) -> dict[str, str]:
    spec = service["Spec"]
    return {
        "ID": short(service["ID"]),
        "Name": spec["Name"],
        "Mode": next((MODES[mode] for mode in spec["Mode"] if mode in MODES), ""),
        "Replicas": replicas(service),
        "Image": familiar((spec["TaskTemplate"].get("ContainerSpec") or {}).get("Image", "")),
        "Ports": ports((service.get("Endpoint") or {}).get("Ports") or []),
    }


def replicas(service: dict[str, Any]) -> str:
    """`2/3`, `2/3 (max 1 per node)`, `0/2 (3/3 completed)`."""
    status = service.get("ServiceStatus") or {}
    running, desired, completed = (status.get(key, 0) for key in ("RunningTasks", "DesiredTasks", "CompletedTasks"))
    mode = service["Spec"]["Mode"]
    if "ReplicatedJob" in mode:
        return f"{running}/{desired} ({completed}/{mode['ReplicatedJob'].get('TotalCompletions', 0)} completed)"
    if "GlobalJob" in mode:
        return f"{running}/{desired} ({completed}/{desired + completed} completed)"
    most = (service["Spec"]["TaskTemplate"].get("Placement") or {}).get("MaxReplicas", 0)
    return f"{running}/{desired} (max {most} per node)" if most and "Replicated" in mode else f"{running}/{desired}"


def ports(published: list[dict[str, Any]]) -> str:
    """`*:8080-8081->80-81/tcp, *:30000->53/udp`: ingress ports, neighbours joined."""
    ranges: list[list[Any]] = []
    for port in sorted(published, key=lambda port: (port.get("Protocol", ""), port.get("PublishedPort", 0))):
        if port.get("PublishMode") != "ingress":
            continue
        protocol, public, target = port.get("Protocol", ""), port.get("PublishedPort", 0), port.get("TargetPort", 0)
        last = ranges[-1] if ranges else None
        joins = last and protocol == last[4] and public - last[1] in (0, 1) and target - last[3] in (0, 1)
        if last and joins and not (last[2] != last[3] and target <= last[3]):
            last[1], last[3] = public, target
        else:
            ranges.append([public, public, target, target, protocol])
    return ", ".join(f"*:{_range(a, b)}->{_range(c, d)}/{protocol}" for a, b, c, d, protocol in ranges if a)


def _range(first: int, last: int) -> str:
    return f"{first}-{last}" if last > first else str(first)


def _count_here(shell: Shell, services: list[dict[str, Any]]) -> None:
    """A daemon older than API 1.41 counts no tasks: done here from all tasks and nodes."""
    lacking = {service["ID"]: service for service in services if not service.get("ServiceStatus")}
    if not lacking:
        return
    tasks, nodes = shell.call(calls.task_list()), shell.call(calls.node_list())
    up = {node["ID"] for node in nodes if node["Status"]["State"] != "down"}
    for service in lacking.values():
        mine = [task for task in tasks if task.get("ServiceID") == service["ID"]]
        wanted = (service["Spec"]["Mode"].get("Replicated") or {}).get("Replicas")
        service["ServiceStatus"] = {
            "RunningTasks": sum(task["Status"]["State"] == "running" and task.get("NodeID") in up for task in mine),
            "DesiredTasks": sum(task["DesiredState"] != "shutdown" for task in mine) if wanted is None else wanted,
            "CompletedTasks": sum(task["Status"]["State"] == "complete" for task in mine),
        }


def remove(shell: Shell, _: Values, names: list[str]) -> int:
    def one(name: str) -> None:
        shell.call(calls.service_remove(name))
        shell.print(name)

    return for_each(shell, names, one)


COMMANDS = {
    "service ls": Command(
        "service ls",
        "[OPTIONS]",
        "List services",
        list_services,
        (
            Flag("filter", "filter", "Filter output based on conditions provided", "f"),
            Flag("format", "string", FORMAT),
            Flag("quiet", "bool", "Only display IDs", "q"),
        ),
        aliases=("service ls", "service list"),
    ),
    "service rm": Command(
        "service rm",
        "SERVICE [SERVICE...]",
        "Remove one or more services",
        remove,
        least=1,
        most=None,
        aliases=("service rm", "service remove"),
    ),
}
