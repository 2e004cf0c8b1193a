"""`skep top`, `diff`, `port`: what can be seen of a container."""

from __future__ import annotations

from skep.cli.flags import Command
from skep.cli.shell import Failed
from skep.cli.words import Bad, parse_uint
from skep.client import calls, node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from skep.cli.flags import Values
    from skep.cli.shell import Shell

COLUMN = 20
KINDS = "CAD"


def top(shell: Shell, _: Values, words: list[str]) -> int:
    found = shell.call(node.container_top(words[0], " ".join(words[1:])))
    rows = [found["Titles"], *(found.get("Processes") or ())]
    widths = [max(COLUMN, *(len(row[n]) + 3 for row in rows)) for n in range(len(rows[0]) - 1)]
    for row in rows:
        shell.print("".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) + "\t".join(row[len(widths) :]))
    return 0


def diff(shell: Shell, _: Values, names: list[str]) -> int:
    if not names[0]:
        raise Failed("Container name cannot be empty")
    for change in shell.call(node.container_changes(names[0])) or ():
        shell.print(f"{KINDS[change['Kind']]} {change['Path']}")
    return 0


def port(shell: Shell, values: Values, words: list[str]) -> int:
    found = shell.call(calls.container_inspect(words[0]))["NetworkSettings"].get("Ports") or {}
    if len(words) == 1:
        lines = [
            (int(private.partition("/")[0]), private, _address(binding))
            for private, bindings in found.items()
            for binding in bindings or ()
        ]
        for _number, private, public in sorted(lines):
            shell.print(f"{private} -> {public}")
        return 0
    number, _, protocol = words[1].partition("/")
    try:
        parse_uint(number, 16)
    except Bad as error:
        raise Failed(f"Error: invalid port ({number}): {error}") from None
    bindings = found.get(f"{number}/{protocol or 'tcp'}") or ()
    if not bindings:
        raise Failed(f"Error: No public port '{words[1]}' published for {words[0]}")
    for public in sorted(map(_address, bindings)):
        shell.print(public)
    return 0


def _address(binding: dict[str, str]) -> str:
    host = binding.get("HostIp", "")
    return f"[{host}]:{binding['HostPort']}" if ":" in host else f"{host}:{binding['HostPort']}"


COMMANDS = {
    "container top": Command(
        "container top",
        "CONTAINER [ps OPTIONS]",
        "Display the running processes of a container",
        top,
        least=1,
        most=None,
        aliases=("container top", "top"),
        interspersed=False,
    ),
    "container diff": Command(
        "container diff",
        "CONTAINER",
        "Inspect changes to files or directories on a container's filesystem",
        diff,
        least=1,
        most=1,
        aliases=("container diff", "diff"),
    ),
    "container port": Command(
        "container port",
        "CONTAINER [PRIVATE_PORT[/PROTO]]",
        "List port mappings or a specific mapping for the container",
        port,
        least=1,
        most=2,
        aliases=("container port", "port"),
    ),
}
