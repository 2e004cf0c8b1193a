"""A node's own containers: `skep ps`, `logs`, `exec`, `inspect`."""

from __future__ import annotations

from skep.cli.flags import Command, Flag
from skep.cli.names import short
from skep.cli.service_logs import frames, write
from skep.cli.shell import Failed, Shell
from skep.cli.system import timestamp
from skep.cli.table import FORMAT, FORMAT_INSPECT, labelled, labelled_headers, render
from skep.cli.words import decimal_size, human_duration, shorten
from skep.client import calls
from skep.client.unix import ApiError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from skep.cli.flags import Values

COLUMNS = [
    ("ID", "CONTAINER ID"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("RunningFor", "CREATED"),
    ("Status", "STATUS"),
    ("Ports", "PORTS"),
    ("Names", "NAMES"),
]
HEADERS = {
    **dict(COLUMNS),
    "CreatedAt": "CREATED AT",
    "Labels": "LABELS",
    "LocalVolumes": "LOCAL VOLUMES",
    "Mounts": "MOUNTS",
    "Networks": "NETWORKS",
    "Size": "SIZE",
    "State": "STATE",
}


def list_containers(shell: Shell, values: Values, _: list[str]) -> int:
    quiet, form, whole = values["quiet"], values["format"] or "", values["no-trunc"]
    limit = 1 if values["latest"] else values.get("last", -1)
    found = shell.call(calls.container_list(values.filters(), all=values["all"], limit=limit, size=values["size"]))
    if quiet and not form:
        for container in found:
            shell.print(container["Id"] if whole else short(container["Id"]))
        return 0
    columns = [*COLUMNS, ("Size", "SIZE")] if values["size"] else COLUMNS
    rows = [labelled(row(container, shell.now(), whole), container) for container in found]
    shell.print(render(columns, rows, form, labelled_headers(HEADERS)), end="")
    return 0


def row(container: dict[str, Any], now: int, whole: bool) -> dict[str, Any]:
    import time

    from skep.cli.words import SECOND

    created = container.get("Created", 0)
    command = container.get("Command", "")
    image = container.get("Image", "") or "<no image>"
    mounts = [mount.get("Name") or mount.get("Source", "") for mount in container.get("Mounts") or ()]
    return {
        "ID": container["Id"] if whole else short(container["Id"]),
        "Image": image if whole else _image(image, container.get("ImageID", "")),
        "Command": _quoted(command if whole else shorten(command, 20)),
        "CreatedAt": time.strftime("%Y-%m-%d %H:%M:%S %z %Z", time.localtime(created)),
        "RunningFor": f"{human_duration(now - created * SECOND)} ago",
        "Status": container.get("Status", ""),
        "State": container.get("State", ""),
        "Ports": ports(container.get("Ports") or []),
        "Names": ",".join(name.lstrip("/") for name in container.get("Names") or () if whole or name.count("/") == 1),
        "Labels": ",".join(sorted(f"{key}={value}" for key, value in (container.get("Labels") or {}).items())),
        "Mounts": ",".join(mounts if whole else [shorten(mount, 15) for mount in mounts]),
        "LocalVolumes": str(sum(mount.get("Driver") == "local" for mount in container.get("Mounts") or ())),
        "Networks": ",".join(sorted((container.get("NetworkSettings") or {}).get("Networks") or {})),
        "Size": _size(container),
        "Platform": None,
    }


def _quoted(text: str) -> str:
    from skep.cli.flags import quoted

    return quoted(text)


def _image(image: str, id: str) -> str:
    """Without its digest; an id is cut."""
    name = image.partition("@")[0]
    return short(id) if image == id else name


def _size(container: dict[str, Any]) -> str:
    size, virtual = container.get("SizeRw", 0), container.get("SizeRootFs", 0)
    return f"{decimal_size(size)} (virtual {decimal_size(virtual)})" if virtual else decimal_size(size)


def ports(found: list[dict[str, Any]]) -> str:
    """`0.0.0.0:9090->80/tcp, [::]:9090->80/tcp, 81-82/tcp`: neighbours that lead nowhere are joined."""
    shown: list[tuple[tuple[int, str, str], str]] = []
    groups: dict[tuple[str, str], list[int]] = {}
    for port in sorted(found, key=lambda port: (port["PrivatePort"], port.get("PublicPort", 0), port.get("IP", ""))):
        private, public, protocol, address = port["PrivatePort"], port.get("PublicPort", 0), port.get("Type", ""), port.get("IP", "")
        if public and public != private:
            host = f"[{address}]" if ":" in address else address
            shown.append(((private, protocol, address), f"{host}:{public}->{private}/{protocol}"))
        else:
            groups.setdefault((address if public else "", protocol), []).append(private)
    joined = []
    for (address, protocol), numbers in groups.items():
        for first, last in _runs(numbers):
            span = f"{first}-{last}" if last > first else str(first)
            host = f"[{address}]" if ":" in address else address
            joined.append(f"{host}:{span}->{span}/{protocol}" if address else f"{span}/{protocol}")
    return ", ".join([text for _, text in shown] + joined)


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


# logs


def logs(shell: Shell, values: Values, names: list[str]) -> int:
    container = shell.call(calls.container_inspect(names[0]))
    answer = shell.open(
        calls.logs(
            "containers",
            container["Id"],
            follow=values["follow"],
            since=timestamp(values["since"] or "", shell.now()),
            until=timestamp(values["until"] or "", shell.now()),
            tail=values.get("tail", "all"),
            timestamps=values["timestamps"],
            details=values["details"],
        )
    )
    if container["Config"].get("Tty"):
        for block in answer.blocks():
            write(shell, 1, block)
        return 0
    for stream, data in frames(answer.blocks()):
        write(shell, stream, data)
    return 0


# exec


def execute(shell: Shell, values: Values, words: list[str]) -> int:
    name, tty, interactive = words[0], values["tty"], values["interactive"]
    if tty and interactive and not shell.input.isatty():
        raise Failed("the input device is not a TTY")
    from skep.cli.options import environment_file, with_values
    from skep.cli.words import Bad

    try:
        environment = [line for path in values["env-file"] for line in environment_file(path, shell.environ)]
    except Bad as error:
        raise Failed(str(error)) from None
    environment += with_values(values["env"], shell.environ)
    detach = values["detach"]
    keys = values["detach-keys"] or ""
    if tty and interactive:
        from skep.cli.attached import chosen_keys

        keys = chosen_keys(shell, keys)
    request = {
        "User": values.get("user", ""),
        "Privileged": values["privileged"],
        "Tty": tty,
        "AttachStdin": interactive and not detach,
        "AttachStderr": not detach,
        "AttachStdout": not detach,
        "Detach": detach,
        "DetachKeys": keys,
        "Env": environment or None,
        "WorkingDir": values.get("workdir", ""),
        "Cmd": words[1:],
    }
    shell.call(calls.container_inspect(name))
    id = shell.call(calls.exec_create(name, request))["Id"]
    if detach:
        shell.call(calls.exec_start(id, detach=True, tty=tty))
        return 0
    from skep.cli.hijack import attach

    answer = shell.engine.hijack(calls.exec_start(id, tty=tty, size=window(shell) if tty else None))

    def resize(rows: int, columns: int) -> calls.Call:
        return calls.exec_resize(id, rows, columns)

    if attach(shell, answer, tty=tty, interactive=interactive, resize=resize, keys=keys):
        raise Failed("read escape sequence")
    return int(shell.call(calls.exec_inspect(id)).get("ExitCode") or 0)


def window(shell: Shell) -> tuple[int, int] | None:
    import os

    try:
        size = os.get_terminal_size(shell.out.fileno())
    except (OSError, ValueError):
        return None
    return size.lines, size.columns


# inspect

KINDS = ("container", "image", "network", "volume", "service", "task", "node", "plugin", "secret", "config")


def inspect(shell: Shell, values: Values, names: list[str]) -> int:
    from skep.cli.inspect import show

    kind = values["type"] or ""
    if kind and kind not in KINDS:
        raise Failed(f'unknown type: "{kind}": must be one of "' + '", "'.join(sorted(KINDS)) + '"')

    def get(name: str) -> Any:
        return _find(shell, name, (kind,) if kind else KINDS, values["size"])

    return show(shell, names, values["format"] or "", get)


def _find(shell: Shell, name: str, kinds: tuple[str, ...], size: bool) -> Any:
    """The first kind of thing that has this name. Raises Failed, ApiError."""
    for kind in kinds:
        try:
            if kind == "container":
                return shell.call(calls.container_inspect(name, size))
            if kind == "service":
                return shell.call(calls.service_inspect(name, defaults=True))
            return shell.call(calls.inspect(f"{kind}s", name))
        except ApiError as error:
            if error.status not in (404, 501, 503) or len(kinds) == 1:
                raise
    raise Failed(f"Error: No such object: {name}")


def environment(text: str) -> str:
    from skep.cli.options import environment as parse

    return parse(text)


def inspect_containers(shell: Shell, values: Values, names: list[str]) -> int:
    from skep.cli.inspect import show

    def get(name: str) -> Any:
        return shell.call(calls.container_inspect(name, values["size"]))

    return show(shell, names, values["format"] or "", get)


COMMANDS = {
    "container inspect": Command(
        "container inspect",
        "[OPTIONS] CONTAINER [CONTAINER...]",
        "Display detailed information on one or more containers",
        inspect_containers,
        (Flag("format", "string", FORMAT_INSPECT, "f"), Flag("size", "bool", "Display total file sizes", "s")),
        least=1,
        most=None,
    ),
    "container ls": Command(
        "container ls",
        "[OPTIONS]",
        "List containers",
        list_containers,
        (
            Flag("all", "bool", "Show all containers (default shows just running)", "a"),
            Flag("filter", "filter", "Filter output based on conditions provided", "f"),
            Flag("format", "string", FORMAT),
            Flag("last", "int", "Show n last created containers (includes all states)", "n", default="-1"),
            Flag("latest", "bool", "Show the latest created container (includes all states)", "l"),
            Flag("no-trunc", "bool", "Don't truncate output"),
            Flag("quiet", "bool", "Only display container IDs", "q"),
            Flag("size", "bool", "Display total file sizes", "s"),
        ),
        aliases=("container ls", "container list", "container ps", "ps"),
    ),
    "container logs": Command(
        "container logs",
        "[OPTIONS] CONTAINER",
        "Fetch the logs of a container",
        logs,
        (
            Flag("details", "bool", "Show extra details provided to logs"),
            Flag("follow", "bool", "Follow log output", "f"),
            Flag("since", "string", 'Show logs since timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)'),
            Flag("tail", "string", "Number of lines to show from the end of the logs", "n", default='"all"'),
            Flag("timestamps", "bool", "Show timestamps", "t"),
            Flag("until", "string", 'Show logs before a timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)'),
        ),
        least=1,
        most=1,
        aliases=("container logs", "logs"),
    ),
    "container exec": Command(
        "container exec",
        "[OPTIONS] CONTAINER COMMAND [ARG...]",
        "Execute a command in a running container",
        execute,
        (
            Flag("detach", "bool", "Detached mode: run command in the background", "d"),
            Flag("detach-keys", "string", "Override the key sequence for detaching a container"),
            Flag("env", "list", "Set environment variables", "e", parse=environment),
            Flag("env-file", "list", "Read in a file of environment variables"),
            Flag("interactive", "bool", "Keep STDIN open even if not attached", "i"),
            Flag("privileged", "bool", "Give extended privileges to the command"),
            Flag("tty", "bool", "Allocate a pseudo-TTY", "t"),
            Flag("user", "string", 'Username or UID (format: "<name|uid>[:<group|gid>]")', "u"),
            Flag("workdir", "string", "Working directory inside the container", "w"),
        ),
        least=2,
        most=None,
        aliases=("container exec", "exec"),
        interspersed=False,
    ),
    "inspect": Command(
        "inspect",
        "[OPTIONS] NAME|ID [NAME|ID...]",
        "Return low-level information on Docker objects",
        inspect,
        (
            Flag("format", "string", FORMAT_INSPECT, "f"),
            Flag("size", "bool", "Display total file sizes if the type is container", "s"),
            Flag("type", "string", "Only inspect objects of the given type"),
        ),
        least=1,
        most=None,
    ),
}
