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

RUN, LIFE, FILES, LOOK = "skep.cli.run", "skep.cli.container_life", "skep.cli.container_files", "skep.cli.container_look"
IMAGE, IMAGE_FILES, VOLUME = "skep.cli.image", "skep.cli.image_files", "skep.cli.volume"

GROUPS: dict[str, tuple[str, dict[str, tuple[str, str]]]] = {
    "container": (
        "Manage containers",
        {
            "attach": (LIFE, "Attach local standard input, output, and error streams to a running container"),
            "cp": (FILES, "Copy files/folders between a container and the local filesystem"),
            "create": (RUN, "Create a new container"),
            "diff": (LOOK, "Inspect changes to files or directories on a container's filesystem"),
            "exec": (CONTAINER, "Execute a command in a running container"),
            "export": (FILES, "Export a container's filesystem as a tar archive"),
            "inspect": (CONTAINER, "Display detailed information on one or more containers"),
            "kill": (LIFE, "Kill one or more running containers"),
            "logs": (CONTAINER, "Fetch the logs of a container"),
            "ls": (CONTAINER, "List containers"),
            "pause": (LIFE, "Pause all processes within one or more containers"),
            "port": (LOOK, "List port mappings or a specific mapping for the container"),
            "prune": (LIFE, "Remove all stopped containers"),
            "rename": (LIFE, "Rename a container"),
            "restart": (LIFE, "Restart one or more containers"),
            "rm": (LIFE, "Remove one or more containers"),
            "run": (RUN, "Create and run a new container from an image"),
            "start": (LIFE, "Start one or more stopped containers"),
            "stats": ("skep.cli.container_stats", "Display a live stream of container(s) resource usage statistics"),
            "stop": (LIFE, "Stop one or more running containers"),
            "top": (LOOK, "Display the running processes of a container"),
            "unpause": (LIFE, "Unpause all processes within one or more containers"),
            "update": (LIFE, "Update configuration of one or more containers"),
            "wait": (LIFE, "Block until one or more containers stop, then print their exit codes"),
        },
    ),
    "image": (
        "Manage images",
        {
            "history": (IMAGE, "Show the history of an image"),
            "import": (IMAGE_FILES, "Import the contents from a tarball to create a filesystem image"),
            "inspect": (IMAGE, "Display detailed information on one or more images"),
            "load": (IMAGE_FILES, "Load an image from a tar archive or STDIN"),
            "ls": (IMAGE, "List images"),
            "prune": (IMAGE, "Remove unused images"),
            "pull": (IMAGE_FILES, "Download an image from a registry"),
            "push": (IMAGE_FILES, "Upload an image to a registry"),
            "rm": (IMAGE, "Remove one or more images"),
            "save": (IMAGE_FILES, "Save one or more images to a tar archive (streamed to STDOUT by default)"),
            "tag": (IMAGE, "Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE"),
        },
    ),
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
    "system": (
        "Manage a node",
        {
            "df": ("skep.cli.system_usage", "Show disk usage"),
            "events": (SYSTEM, "Get real time events from the server"),
            "info": (SYSTEM, "Display system-wide information"),
            "prune": ("skep.cli.system_usage", "Remove unused data"),
        },
    ),
    "volume": (
        "Manage volumes",
        {
            "create": (VOLUME, "Create a volume"),
            "inspect": (VOLUME, "Display detailed information on one or more volumes"),
            "ls": (VOLUME, "List volumes"),
            "prune": (VOLUME, "Remove unused local volumes"),
            "rm": (VOLUME, "Remove one or more volumes"),
        },
    ),
}
"""Group -> what it is for, and its commands: module and summary. The module's COMMANDS has them by full name."""

OF_SWARM = frozenset(["config", "node", "secret", "service", "stack", "swarm"])
"""The groups that help lists under the swarm."""

COMMON: dict[str, str] = {
    "run": "container run",
    "exec": "container exec",
    "ps": "container ls",
    "pull": "image pull",
    "push": "image push",
    "images": "image ls",
    "login": "login",
    "logout": "logout",
    "version": "version",
    "info": "system info",
}
"""Commands without a group that everybody needs -> what they are."""

FURTHER: dict[str, str] = {
    **{
        verb: f"container {verb}"
        for verb in (
            *("attach", "cp", "create", "diff", "export", "kill", "logs", "pause", "port", "rename", "restart", "rm", "start", "stats"),
            *("stop", "top", "unpause", "update", "wait"),
        )
    },
    **{verb: f"image {verb}" for verb in ("history", "import", "load", "save", "tag")},
    "events": "system events",
    "inspect": "inspect",
    "rmi": "image rm",
}

SINGLE: dict[str, tuple[str, str]] = {
    "inspect": (CONTAINER, "Return low-level information on Docker objects"),
    "login": ("skep.cli.login", "Authenticate to a registry"),
    "logout": ("skep.cli.login", "Log out from a registry"),
    "version": (SYSTEM, "Show the version information of skep and its daemon"),
}
"""Commands that are in no group."""

BUILDING = "skep builds no images: build with docker, podman or buildah elsewhere and push to a registry, or load an archive (skep load)"

STACKS = "skep reads no Compose files yet: use docker stack, with the address of skepd in DOCKER_HOST"

REFUSED = {
    "build": BUILDING,
    "builder": BUILDING,
    "buildx": BUILDING,
    "commit": BUILDING,
    "search": "skep has no search: look at the registry's own page",
    "plugin": "skep has no plugins",
    "context": "skep has no contexts: use -H, SKEP_HOST or DOCKER_HOST",
    "stack": STACKS,
    "compose": STACKS,
    "secret": "skep does not keep secrets yet",
    "config": "skep does not keep configs yet",
    "checkpoint": "skep has no checkpoints",
    "manifest": "skep does not edit manifests: use skopeo or docker manifest",
    "trust": "skep signs and verifies no images",
}
REFUSED_OF = {
    ("container", "commit"): BUILDING,
    ("image", "build"): BUILDING,
    ("volume", "update"): "skep has no cluster volumes",
}
"""What Docker has and skep has not, and what to do instead."""

OTHER = {"cluster": "A cluster on this machine, for trying, developing and testing"}

ALIASES = {
    ("network", "list"): "ls",
    ("network", "remove"): "rm",
    ("node", "list"): "ls",
    ("node", "remove"): "rm",
    ("service", "list"): "ls",
    ("service", "remove"): "rm",
    ("container", "list"): "ls",
    ("container", "ps"): "ls",
    ("container", "remove"): "rm",
    ("image", "list"): "ls",
    ("image", "remove"): "rm",
    ("volume", "list"): "ls",
    ("volume", "remove"): "rm",
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
    if noun in SINGLE:
        return import_module(SINGLE[noun][0]).COMMANDS[noun], words[1:]
    whole = COMMON.get(noun) or FURTHER.get(noun)
    if whole:
        command: Command = import_module(_place(whole)[0]).COMMANDS[whole]
        return command.called(noun), words[1:]
    if noun in REFUSED or (noun, verb) in REFUSED_OF:
        from skep.cli.shell import Failed

        raise Failed(REFUSED.get(noun) or REFUSED_OF[noun, verb])
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


def _place(whole: str) -> tuple[str, str]:
    """Module and summary of a command by its full name."""
    noun, _, verb = whole.partition(" ")
    return GROUPS[noun][1][verb] if verb else SINGLE[noun]


def _misused(shell: Shell, error: Usage) -> int:
    command = error.command
    if command is None:
        shell.warn(str(error))
    elif command is GLOBAL:
        shell.warn(f"{error}\n\nUsage:  skep {command.usage}\n\nRun 'skep --help' for more information")
    else:
        shell.warn(f"{error}\n\nUsage:  {command.line}\n\n{error.hint} 'skep {command.name} --help' for more information")
    return error.code


def _listed(commands: dict[str, str], sort: bool = True) -> str:
    edge = max(11, *(len(name) for name in commands)) + 1
    return "".join(f"  {name.ljust(edge)}{summary}\n" for name, summary in (sorted(commands.items()) if sort else commands.items()))


def _overview() -> str:
    groups = {name: text for name, (text, _) in GROUPS.items()}
    swarm = {name: groups.pop(name) for name in sorted(OF_SWARM) if name in groups}
    common = {name: _place(whole)[1] for name, whole in COMMON.items()}
    further = {name: _place(whole)[1] for name, whole in FURTHER.items()}
    return (
        f"Usage:  skep {GLOBAL.usage}\n\n{GLOBAL.summary}\n\nCommon Commands:\n{_listed(common, sort=False)}"
        f"\nManagement Commands:\n{_listed(groups)}\nSwarm Commands:\n{_listed(swarm)}\nOn one machine:\n{_listed(OTHER)}"
        f"\nCommands:\n{_listed(further)}"
        f"\nGlobal Options:\n{flag_usages(GLOBAL.flags, 79)}\nRun 'skep COMMAND --help' for more information on a command.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
