"""`skep node ls|inspect|update|promote|demote|rm`."""

from __future__ import annotations

from skep.cli.flags import Command, Flag
from skep.cli.names import node_reference
from skep.cli.shell import Failed, for_each
from skep.cli.table import FORMAT, FORMAT_INSPECT, render
from skep.cli.words import human_size, natural, title
from skep.client import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from skep.cli.flags import Values
    from skep.cli.shell import Shell

COLUMNS = [
    ("IDMark", "ID"),
    ("Hostname", "HOSTNAME"),
    ("Status", "STATUS"),
    ("Availability", "AVAILABILITY"),
    ("ManagerStatus", "MANAGER STATUS"),
    ("EngineVersion", "ENGINE VERSION"),
]
HEADERS = {**dict(COLUMNS), "ID": "ID", "Self": "", "TLSStatus": "TLS STATUS"}


def list_nodes(shell: Shell, values: Values, _: list[str]) -> int:
    quiet, form = values["quiet"], values["format"] or ""
    nodes = shell.call(calls.node_list(values.filters()))
    swarm: dict[str, Any] = {}
    if nodes and not quiet:
        swarm = shell.call(calls.info()).get("Swarm") or {}
    nodes.sort(key=lambda node: natural(node["Description"]["Hostname"]))
    if quiet and not form:
        for node in nodes:
            shell.print(node["ID"])
        return 0
    rows = [row(node, swarm) for node in nodes]
    if form == "json":
        for one in rows:
            del one["IDMark"]
    shell.print(render(COLUMNS, rows, form, HEADERS), end="")
    return 0


def row(node: dict[str, Any], swarm: dict[str, Any]) -> dict[str, Any]:
    manager = node.get("ManagerStatus")
    self = node["ID"] == swarm.get("NodeID")
    tls, ours = (swarm.get("Cluster") or {}).get("TLSInfo"), node["Description"].get("TLSInfo")
    known = bool(tls and ours and ours.get("TrustRoot"))
    return {
        "ID": node["ID"],
        "IDMark": f"{node['ID']} {'*' if self else ' '}",
        "Self": self,
        "Hostname": node["Description"]["Hostname"],
        "Status": title(node["Status"]["State"]),
        "Availability": title(node["Spec"]["Availability"]),
        "ManagerStatus": ("Leader" if manager.get("Leader") else title(manager.get("Reachability", ""))) if manager else "",
        "EngineVersion": node["Description"]["Engine"].get("EngineVersion", ""),
        "TLSStatus": ("Ready" if ours == tls else "Needs Rotation") if known else "Unknown",
    }


def inspect(shell: Shell, values: Values, names: list[str]) -> int:
    from skep.cli.inspect import show

    if values["pretty"]:
        if values["format"]:
            raise Failed("--format is incompatible with human friendly format")
        return _inspect_pretty(shell, names)

    def get(name: str) -> Any:
        return shell.call(calls.node_inspect(node_reference(shell, name)))

    return show(shell, names, values["format"] or "", get)


def _inspect_pretty(shell: Shell, names: list[str]) -> int:
    for node in [shell.call(calls.node_inspect(node_reference(shell, name))) for name in names]:
        shell.print(pretty(node))
    return 0


def pretty(node: dict[str, Any]) -> str:
    """Docker's template, with its tabs."""
    spec, description, status = node["Spec"], node["Description"], node["Status"]
    lines = [f"ID:\t\t\t{node['ID']}"]
    if spec.get("Name"):
        lines.append(f"Name:\t\t\t{spec['Name']}")
    if spec.get("Labels"):
        lines.append("Labels:")
        lines += [f" - {key}{f'={value}' if value else ''}" for key, value in sorted(spec["Labels"].items())]
    lines.append(f"Hostname:              \t{description['Hostname']}")
    lines.append(f"Joined at:             \t{go_time(node['CreatedAt'])}")
    lines += ["Status:", f" State:\t\t\t{title(status['State'])}"]
    if status.get("Message"):
        lines.append(f" Message:              \t{title(status['Message'])}")
    lines.append(f" Availability:         \t{title(spec['Availability'])}")
    if status.get("Addr"):
        lines.append(f" Address:\t\t{status['Addr']}")
    manager = node.get("ManagerStatus")
    if manager:
        lines += [
            "Manager Status:",
            f" Address:\t\t{manager.get('Addr', '')}",
            f" Raft Status:\t\t{title(manager.get('Reachability', ''))}",
        ]
        lines.append(f" Leader:\t\t{'Yes' if manager.get('Leader') else 'No'}")
    platform, resources = description["Platform"], description["Resources"]
    lines += ["Platform:", f" Operating System:\t{platform.get('OS', '')}", f" Architecture:\t\t{platform.get('Architecture', '')}"]
    lines += ["Resources:", f" CPUs:\t\t\t{resources.get('NanoCPUs', 0) // 1_000_000_000}"]
    lines.append(f" Memory:\t\t{human_size(resources.get('MemoryBytes', 0))}")
    engine = description["Engine"]
    if engine.get("Plugins"):
        lines.append("Plugins:")
        for kind in sorted({plugin["Type"] for plugin in engine["Plugins"]}):
            lines.append(f" {kind}:\t\t{', '.join(p['Name'] for p in engine['Plugins'] if p['Type'] == kind)}")
    lines.append(f"Engine Version:\t\t{engine.get('EngineVersion', '')}")
    if engine.get("Labels"):
        lines.append("Engine Labels:")
        lines += [f" - {key}={value}" for key, value in sorted(engine["Labels"].items())]
    tls = description.get("TLSInfo")
    if tls:
        lines += ["TLS Info:", " TrustRoot:", tls.get("TrustRoot", ""), f" Issuer Subject:\t{tls.get('CertIssuerSubject', '')}"]
        lines.append(f" Issuer Public Key:\t{tls.get('CertIssuerPublicKey', '')}")
    return "\n".join(lines)


def go_time(text: str) -> str:
    """`2026-11-23 03:47:33.470487684 +0000 utc`."""
    return f"{text.rstrip('Z').replace('T', ' ')} +0000 utc"


def update(shell: Shell, values: Values, names: list[str]) -> int:
    def change(spec: dict[str, Any]) -> bool:
        for flag, field in (("role", "Role"), ("availability", "Availability")):
            if values.given(flag):
                spec[field] = values[flag]
        labels = dict(spec.get("Labels") or {})
        for text in values["label-add"]:
            key, _, value = text.partition("=")
            labels[key] = value
        for key in values["label-rm"]:
            if key not in labels:
                raise Failed(f"key {key} doesn't exist in node's labels")
            del labels[key]
        spec["Labels"] = labels
        return True

    return _update(shell, names, change, lambda name: name)


def promote(shell: Shell, _: Values, names: list[str]) -> int:
    return _give_role(shell, names, "manager", "Node {} is already a manager.", "Node {} promoted to a manager in the swarm.")


def demote(shell: Shell, _: Values, names: list[str]) -> int:
    return _give_role(shell, names, "worker", "Node {} is already a worker.", "Manager {} demoted in the swarm.")


def _give_role(shell: Shell, names: list[str], role: str, already: str, done: str) -> int:
    for name in names:
        node = shell.call(calls.node_inspect(name))
        if node["Spec"]["Role"] == role:
            shell.print(already.format(node["ID"]))
            continue
        shell.call(calls.node_update(node["ID"], node["Version"]["Index"], {**node["Spec"], "Role": role}))
        shell.print(done.format(name))
    return 0


def _update(shell: Shell, names: list[str], change: Any, text: Any) -> int:
    for name in names:
        node = shell.call(calls.node_inspect(name))
        spec = dict(node["Spec"])
        change(spec)
        shell.call(calls.node_update(node["ID"], node["Version"]["Index"], spec))
        shell.print(text(name))
    return 0


def remove(shell: Shell, values: Values, names: list[str]) -> int:
    def one(name: str) -> None:
        shell.call(calls.node_remove(name, values["force"]))
        shell.print(name)

    return for_each(shell, names, one)


COMMANDS = {
    "node ls": Command(
        "node ls",
        "[OPTIONS]",
        "List nodes in the swarm",
        list_nodes,
        (
            Flag("filter", "filter", "Filter output based on conditions provided", "f"),
            Flag("format", "string", FORMAT),
            Flag("quiet", "bool", "Only display IDs", "q"),
        ),
        aliases=("node ls", "node list"),
    ),
    "node inspect": Command(
        "node inspect",
        "[OPTIONS] self|NODE [NODE...]",
        "Display detailed information on one or more nodes",
        inspect,
        (
            Flag("format", "string", FORMAT_INSPECT, "f"),
            Flag("pretty", "bool", "Print the information in a human friendly format"),
        ),
        least=1,
        most=None,
    ),
    "node update": Command(
        "node update",
        "[OPTIONS] NODE",
        "Update a node",
        update,
        (
            Flag("availability", "string", 'Availability of the node ("active", "pause", "drain")'),
            Flag("label-add", "list", 'Add or update a node label ("key=value")'),
            Flag("label-rm", "list", "Remove a node label if exists"),
            Flag("role", "string", 'Role of the node ("worker", "manager")'),
        ),
        least=1,
        most=1,
    ),
    "node promote": Command(
        "node promote", "NODE [NODE...]", "Promote one or more nodes to manager in the swarm", promote, least=1, most=None
    ),
    "node demote": Command(
        "node demote", "NODE [NODE...]", "Demote one or more nodes from manager in the swarm", demote, least=1, most=None
    ),
    "node rm": Command(
        "node rm",
        "[OPTIONS] NODE [NODE...]",
        "Remove one or more nodes from the swarm",
        remove,
        (Flag("force", "bool", "Force remove a node from the swarm", "f"),),
        least=1,
        most=None,
        aliases=("node rm", "node remove"),
    ),
}
