"""`skep network check`: who reaches whom on every network, and what is wrong, one line each. Exit code 1 when anything is."""

from __future__ import annotations

import json

from skep.cli.flags import Command, Flag
from skep.cli.shell import Failed
from skep.cli.table import aligned
from skep.client import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from skep.cli.flags import Values
    from skep.cli.shell import Shell


def check(shell: Shell, values: Values, names: list[str]) -> int:
    form = values["format"] or "table"
    if form not in ("table", "json"):
        raise Failed(f"--format {form}: must be table or json")
    answer = shell.open(calls.network_check(names[0] if names else "", bool(values["repair"])))
    found: dict[str, list[Any]] = {}
    for line in answer.lines():
        if form == "json":
            shell.print(line.decode())
        for kind, what in json.loads(line).items():
            found.setdefault(kind, []).append(what)
    if "Done" not in found:
        raise Failed("the daemon ended before the check did")
    if form == "table":
        shell.print(shown(found), end="")
    return 1 if found["Done"][0]["Problems"] else 0


def shown(found: dict[str, list[Any]]) -> str:
    done = found["Done"][0]
    nodes = [node["Hostname"] for node in found.get("Node", ())]
    out = ""
    for network in found.get("Network", ()):
        reached = network["Reached"]
        rows = [name for name in nodes if name in reached]
        if not rows:
            continue
        columns = sorted({to for row in reached.values() for to in row})
        lines = [[f"NETWORK {network['Name']}", *columns]]
        lines += [[name, *(_cell(reached[name].get(to)) for to in columns)] for name in rows]
        out += aligned(lines) + "\n"
    lines = [["NODE", "SNAPSHOT", "ANSWERED", "SECONDS"]]
    for node in found.get("Node", ()):
        tried = f"{node['Answered']}/{node['Tried']}" + (f" ({node['Skipped']} not tried)" if node["Skipped"] else "")
        lines.append([node["Hostname"], str(node["Version"]), tried, f"{node['Milliseconds'] / 1000:.1f}"])
    lines += [[name, "-", why, "-"] for name, why in done["Silent"].items()]
    out += aligned(lines) + f"\nThe store stands at version {done['Version']}.\n"
    for problem in found.get("Problem", ()):
        if problem["mended"]:
            out += f"{problem['node']}: {problem['text']}: mended\n"
        else:
            out += f"{problem['node']}: {problem['text']}" + (f": {problem['advice']}" if problem["advice"] else "") + "\n"
    wrong, mended = done["Problems"], done["Mended"]
    return out + (f"{wrong} wrong" if wrong else "All is well") + (f", {mended} mended" if mended else "") + "\n"


def _cell(counts: list[int] | None) -> str:
    if not counts:
        return "-"
    return "ok" if counts[0] == counts[1] else f"{counts[0]}/{counts[1]}"


COMMANDS = {
    "network check": Command(
        "network check",
        "[OPTIONS] [NETWORK]",
        "Ask every node whether its network is well: kernel and names against the store, and every pair of tasks",
        check,
        (
            Flag("format", "string", "table (default) or json"),
            Flag("repair", "bool", "Mend what differs in kernels and resolvers"),
        ),
        most=1,
    )
}
