"""`skep service ps` and `skep node ps`: tables of tasks."""

from __future__ import annotations

from skep.cli.flags import Command, Flag
from skep.cli.names import Resolver, familiar, node_reference, short
from skep.cli.shell import Failed, message_of
from skep.cli.table import render
from skep.cli.words import ago, natural, parse_time, title
from skep.client import calls
from skep.errors import SkepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from skep.cli.flags import Values
    from skep.cli.shell import Shell

COLUMNS = [
    ("ID", "ID"),
    ("Name", "NAME"),
    ("Image", "IMAGE"),
    ("Node", "NODE"),
    ("DesiredState", "DESIRED STATE"),
    ("CurrentState", "CURRENT STATE"),
    ("Error", "ERROR"),
    ("Ports", "PORTS"),
]
ERROR_LENGTH = 30


def service_ps(shell: Shell, values: Values, names: list[str]) -> int:
    filters, missing = _services(shell, values, names)
    tasks = shell.call(calls.task_list(filters))
    show(shell, values, tasks)
    if missing:
        raise Failed("\n".join(missing))
    return 0


def _services(shell: Shell, values: Values, names: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The filter that names the services: by full id, full name or an id's beginning; and which there are not."""
    by_id = shell.call(calls.service_list({"id": names}))
    by_name = shell.call(calls.service_list({"name": names}))
    filters = {key: list(found) for key, found in values.filters().items()}
    missing = []
    for name in names:
        found = [s["ID"] for s in by_id if s["ID"] == name] or [s["ID"] for s in by_name if s["Spec"]["Name"] == name]
        if not found:
            found = [s["ID"] for s in by_id if s["ID"].startswith(name)]
            if len(found) > 1:
                raise Failed(f"multiple services found with provided prefix: {name}")
        if found:
            filters.setdefault("service", []).append(found[0])
        else:
            missing.append(f"no such service: {name}")
    if not filters.get("service"):
        raise Failed("\n".join(missing))
    if "node" in filters:
        filters["node"] = [node_reference(shell, node) for node in filters["node"]]
    return filters, missing


def node_ps(shell: Shell, values: Values, names: list[str]) -> int:
    failed = []
    tasks: list[dict[str, Any]] = []
    for name in names or ["self"]:
        try:
            node = shell.call(calls.node_inspect(node_reference(shell, name)))
            filters = {key: list(found) for key, found in values.filters().items()}
            filters.setdefault("node", []).append(node["ID"])
            tasks += shell.call(calls.task_list(filters))
        except (SkepError, Failed) as error:
            failed.append(message_of(error))
    if not failed or tasks:
        show(shell, values, tasks)
    if failed:
        raise Failed("\n".join(failed))
    return 0


def show(shell: Shell, values: Values, tasks: list[dict[str, Any]]) -> None:
    whole, quiet, form = values["no-trunc"], values["quiet"], values["format"] or ""
    resolver = Resolver(shell, plain=values["no-resolve"])
    names = {task["ID"]: name_of(task, resolver) for task in tasks}
    tasks = sorted(tasks, key=lambda task: -parse_time(task.get("CreatedAt", "")))
    tasks.sort(key=lambda task: natural(names[task["ID"]]))
    rows, before = [], None
    indented = form in ("", "table") or form.startswith("table ")
    for task in tasks:
        name = names[task["ID"]]
        rows.append(
            row(task, f" \\_ {name}" if indented and name == before else name, resolver.node(task.get("NodeID", "")), shell.now(), whole)
        )
        before = name
    if quiet and not form:
        for task in tasks:
            shell.print(task["ID"])
        return
    shell.print(render(COLUMNS, rows, form, dict(COLUMNS)), end="")


def name_of(task: dict[str, Any], resolver: Resolver) -> str:
    """`web.1`; without a slot `agent.<node id>`."""
    service = resolver.service(task.get("ServiceID", ""))
    return f"{service}.{task.get('Slot') or task.get('NodeID', '')}"


def row(task: dict[str, Any], name: str, node: str, now: int, whole: bool) -> dict[str, str]:
    status = task["Status"]
    image = (task["Spec"].get("ContainerSpec") or {}).get("Image", "")
    err = status.get("Err", "")
    if err and not whole and len(err) > ERROR_LENGTH:
        err = err[: ERROR_LENGTH - 1] + "…"
    published = (status.get("PortStatus") or {}).get("Ports") or []
    return {
        "ID": task["ID"] if whole else short(task["ID"]),
        "Name": name,
        "Image": image if whole else familiar(image),
        "Node": node,
        "DesiredState": title(task["DesiredState"]),
        "CurrentState": f"{title(status['State'])} {ago(now, status['Timestamp']).lower()}",
        "Error": f'"{err}"' if err else "",
        "Ports": ",".join(
            f"*:{port.get('PublishedPort', 0)}->{port.get('TargetPort', 0)}/{port.get('Protocol', '')}" for port in published
        ),
    }


FLAGS = (
    Flag("filter", "filter", "Filter output based on conditions provided", "f"),
    Flag("format", "string", "Pretty-print tasks using a Go template"),
    Flag("no-resolve", "bool", "Do not map IDs to Names"),
    Flag("no-trunc", "bool", "Do not truncate output"),
    Flag("quiet", "bool", "Only display task IDs", "q"),
)

COMMANDS = {
    "service ps": Command(
        "service ps",
        "[OPTIONS] SERVICE [SERVICE...]",
        "List the tasks of one or more services",
        service_ps,
        FLAGS,
        least=1,
        most=None,
    ),
    "node ps": Command(
        "node ps",
        "[OPTIONS] [NODE...]",
        "List tasks running on one or more nodes, defaults to current node",
        node_ps,
        FLAGS,
        most=None,
    ),
}
