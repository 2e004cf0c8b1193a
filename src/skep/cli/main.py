"""`skep`: Docker's swarm commands with Docker's words, and what Docker lacks.

Starting costs more than working here, so nothing is imported before it is known that it is needed: one module per group of commands, named
in a table as text.
"""

from __future__ import annotations

import sys

from skep.cli.flags import Command, Flag, Usage, check_arguments, flag_usages, help_text, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from skep.cli.shell import Shell

SERVICE, NODE, SWARM = "skep.cli.service", "skep.cli.node", "skep.cli.swarm"
SYSTEM, CONTAINER = "skep.cli.system", "skep.cli.container"
NETWORK = "skep.cli.network"

GROUPS: dict[str, tuple[str, dict[str, tuple[str, str]]]] = {
    "network": (
        "Manage networks",
        {
            "check": ("skep.cli.network_check", "Ask every node whether its network is well"),
            "connect": (NETWORK, "Connect a container to a network"),
            "create": ("skep.cli.network_create", "Create a network"),
            "disconnect": (NETWORK, "Disconnect a container from a network"),
            "inspect": (NETWORK, "Display detailed information on one or more networks"),
            "ls": (NETWORK, "List networks"),
            "prune": (NETWORK, "Remove all unused networks"),
            "rm": (NETWORK, "Remove one or more networks"),
        },
    ),
    "node": (
        "Manage Swarm nodes",
        {
            "demote": (NODE, "Demote one or more nodes from manager in the swarm"),
            "inspect": (NODE, "Display detailed information on one or more nodes"),
            "ls": (NODE, "List nodes in the swarm"),
            "promote": (NODE, "Promote one or more nodes to manager in the swarm"),
            "ps": ("skep.cli.tasks", "List tasks running on one or more nodes, defaults to current node"),
            "rm": (NODE, "Remove one or more nodes from the swarm"),
            "update": (NODE, "Update a node"),
        },
    ),
    "service": (
        "Manage Swarm services",
        {
            "create": ("skep.cli.service_create", "Create a new service"),
            "inspect": ("skep.cli.service_inspect", "Display detailed information on one or more services"),
            "logs": ("skep.cli.service_logs", "Fetch the logs of a service or task"),
            "ls": (SERVICE, "List services"),
            "ps": ("skep.cli.tasks", "List the tasks of one or more services"),
            "rm": (SERVICE, "Remove one or more services"),
            "rollback": ("skep.cli.service_change", "Revert changes to a service's configuration"),
            "scale": ("skep.cli.service_change", "Scale one or multiple replicated services"),
            "update": ("skep.cli.service_update", "Update a service"),
        },
    ),
    "swarm": (
        "Manage Swarm",
        {
            "ca": (SWARM, "Display and rotate the root CA"),
            "init": (SWARM, "Initialize a swarm"),
            "join": (SWARM, "Join a swarm as a node and/or manager"),
            "join-token": (SWARM, "Manage join tokens"),
            "leave": (SWARM, "Leave the swarm"),
            "unlock": (SWARM, "Unlock swarm"),
            "unlock-key": (SWARM, "Manage the unlock key"),
            "update": (SWARM, "Update the swarm"),
        },
    ),
}
"""Group -> what it is for, and its commands: module and summary. The module's COMMANDS has them by full name."""

OF_SWARM = frozenset(["config", "node", "secret", "service", "stack", "swarm"])
"""The groups that help lists under the swarm."""

SINGLE: dict[str, tuple[str, str]] = {
    "events": (SYSTEM, "Get real time events from the server"),
    "exec": (CONTAINER, "Execute a command in a running container"),
    "info": (SYSTEM, "Display system-wide information"),
    "inspect": (CONTAINER, "Return low-level information on Docker objects"),
    "logs": (CONTAINER, "Fetch the logs of a container"),
    "ps": (CONTAINER, "List containers"),
    "version": (SYSTEM, "Show the version information of skep and its daemon"),
}

OTHER = {"cluster": "A cluster on this machine, for trying, developing and testing"}

ALIASES = {
    ("network", "list"): "ls",
    ("network", "remove"): "rm",
    ("node", "list"): "ls",
    ("node", "remove"): "rm",
    ("service", "list"): "ls",
    ("service", "remove"): "rm",
    ("system", "info"): "info",
    ("system", "events"): "events",
    ("container", "ls"): "ps",
    ("container", "list"): "ps",
    ("container", "ps"): "ps",
    ("container", "logs"): "logs",
    ("container", "exec"): "exec",
    ("container", "inspect"): "inspect",
}

GLOBAL = Command(
    "",
    "[OPTIONS] COMMAND [ARG...]",
    "A container orchestrator that speaks the Docker Engine API",
    lambda: 0,
    (
        Flag(
            "host", "string", "Daemon to connect to: unix://PATH or tcp://HOST:PORT (else SKEP_HOST, DOCKER_HOST, skepd's own socket)", "H"
        ),
        Flag("tls", "bool", "Use TLS; implied by --tlsverify"),
        Flag("tlscert", "string", "Folder with ca.pem, cert.pem and key.pem (else DOCKER_CERT_PATH, ~/.docker)"),
        Flag("tlsverify", "bool", "Use TLS and verify the remote"),
        Flag("version", "bool", "Print version information and quit", "v"),
    ),
    most=None,
    interspersed=False,
)


def main(argv: Sequence[str] | None = None, shell: Shell | None = None) -> int:
    """Runs one command and returns its exit status."""
    from skep.cli.shell import Failed, Shell, message_of
    from skep.errors import SkepError

    words = list(sys.argv[1:] if argv is None else argv)
    if shell is None:
        import os
        import time

        shell = Shell(sys.stdout, sys.stderr, os.environ, time.time_ns, time.sleep)
    try:
        code = _run(words, shell)
        shell.out.flush()
        return code
    except Usage as error:
        return _misused(shell, error)
    except (Failed, SkepError) as error:
        shell.out.flush()
        shell.warn(message_of(error))
        return error.code if isinstance(error, Failed) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _forget_output()
        return 141
    finally:
        try:
            shell.close()
        except KeyboardInterrupt:
            pass


def _forget_output() -> None:
    """Whoever read us has gone; the interpreter must not stumble over it when it ends."""
    import os

    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        pass


def _run(words: list[str], shell: Shell) -> int:
    values, rest = parse(GLOBAL, words)
    if values["version"]:
        from skep.cli.system import VERSION

        shell.print(f"skep version {VERSION}")
        return 0
    if values.given("help") or not rest:
        shell.print(_overview(), end="")
        return 0
    shell.host = values["host"] or ""
    if values["tls"] or values["tlsverify"]:
        folder = values["tlscert"] or shell.environ.get("DOCKER_CERT_PATH") or shell.environ.get("HOME", "") + "/.docker"
        shell.tls = (folder, bool(values["tlsverify"]))
    if rest[0] == "cluster":
        from skep.local.command import main as cluster

        return cluster(rest[1:])
    command, words = find(rest, shell)
    if command is None:
        return 0
    given, arguments = parse(command, words)
    if given.given("help"):
        from skep.cli.shell import width_of

        shell.print(help_text(command, width_of(shell.out)), end="")
        return 0
    check_arguments(command, arguments)
    return command.run(shell, given, arguments)


def find(words: list[str], shell: Shell) -> tuple[Command | None, list[str]]:
    """The command and what follows its name; None when a group's help was all that was asked for. Raises Usage."""
    from importlib import import_module

    noun, verb = words[0], words[1] if len(words) > 1 else ""
    if (noun, verb) in ALIASES and noun not in GROUPS:
        noun, words = ALIASES[noun, verb], words[1:]
    if noun in SINGLE:
        return import_module(SINGLE[noun][0]).COMMANDS[noun], words[1:]
    if noun not in GROUPS:
        raise Usage(f"skep: unknown command: skep {noun}\n\nRun 'skep --help' for more information", code=1)
    summary, commands = GROUPS[noun]
    if verb in ("", "-h", "--help", "help"):
        text = f"Usage:  skep {noun} COMMAND\n\n{summary}\n\nCommands:\n{_listed({k: v[1] for k, v in commands.items()})}"
        (shell.out if verb else shell.err).write(f"{text}\nRun 'skep {noun} COMMAND --help' for more information on a command.\n")
        return None, []
    verb = ALIASES.get((noun, verb), verb)
    if verb.startswith("-"):
        raise Usage(f"unknown flag: {verb}\n\nUsage:  skep {noun}\n\nRun 'skep {noun} --help' for more information")
    if verb not in commands:
        raise Usage(
            f"skep: unknown command: skep {noun} {verb}\n\nUsage:  skep {noun}\n\nRun 'skep {noun} --help' for more information", code=1
        )
    return import_module(commands[verb][0]).COMMANDS[f"{noun} {verb}"], words[2:]


def _misused(shell: Shell, error: Usage) -> int:
    command = error.command
    if command is None:
        shell.warn(str(error))
    elif command is GLOBAL:
        shell.warn(f"{error}\n\nUsage:  skep {command.usage}\n\nRun 'skep --help' for more information")
    else:
        shell.warn(f"{error}\n\nUsage:  {command.line}\n\n{error.hint} 'skep {command.name} --help' for more information")
    return error.code


def _listed(commands: dict[str, str]) -> str:
    edge = max(11, *(len(name) for name in commands)) + 1
    return "".join(f"  {name.ljust(edge)}{summary}\n" for name, summary in sorted(commands.items()))


def _overview() -> str:
    groups = {name: text for name, (text, _) in GROUPS.items()}
    swarm = {name: groups.pop(name) for name in sorted(OF_SWARM) if name in groups}
    return (
        f"Usage:  skep {GLOBAL.usage}\n\n{GLOBAL.summary}\n\nCommands:\n{_listed({name: text for name, (_, text) in SINGLE.items()})}"
        f"\nManagement Commands:\n{_listed(groups)}\nSwarm Commands:\n{_listed(swarm)}\nOn one machine:\n{_listed(OTHER)}"
        f"\nGlobal Options:\n{flag_usages(GLOBAL.flags, 79)}\nRun 'skep COMMAND --help' for more information on a command.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
