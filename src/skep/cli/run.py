"""`skep run`, `skep create`: make a container, fetch its image if need be, stay with it until it ends.

The order is what nothing gets lost by: attach, wait, start. Errors before the command runs end in 125, 126 or 127 as `docker run` has it.
"""

from __future__ import annotations

from skep.cli.flags import Command
from skep.cli.image_names import ID, check_trust, named
from skep.cli.run_config import create_request
from skep.cli.run_flags import OF_CREATE, OF_RUN
from skep.cli.shell import Failed, message_of
from skep.cli.words import Bad
from skep.client import node
from skep.client.unix import ApiError
from skep.errors import SkepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from skep.cli.flags import Values
    from skep.cli.shell import Shell

WINDOWS = ("cpu-count", "cpu-percent", "io-maxbandwidth", "io-maxiops")


def create(shell: Shell, values: Values, words: list[str]) -> int:
    request = _request(shell, values, words, "create")
    try:
        shell.print(_create(shell, values, request, words[0]))
    except CidFile as error:
        raise Failed(str(error)) from None
    return 0


def run(shell: Shell, values: Values, words: list[str]) -> int:
    request = _request(shell, values, words, "run")
    detached = bool(values["detach"])
    if detached:
        if values["attach"]:
            raise Failed("conflicting options: cannot specify both --attach and --detach")
        request.update({"AttachStdin": False, "AttachStdout": False, "AttachStderr": False, "StdinOnce": False})
    else:
        from skep.cli.attached import check_terminal

        check_terminal(shell, request["AttachStdin"], request["Tty"])
    try:
        id = _create(shell, values, request, words[0])
    except (SkepError, Failed, CidFile) as error:
        raise _failed(error, "run") from None
    if not request["AttachStdout"] and not request["AttachStderr"]:
        shell.print(id)
        shell.out.flush()
    if detached:
        return _start(shell, id, request)
    from skep.cli.attached import Signals

    if values.get("sig-proxy", True):
        with Signals(shell, id):
            return _foreground(shell, values, request, id)
    return _foreground(shell, values, request, id)


def _start(shell: Shell, id: str, request: dict[str, Any]) -> int:
    """In the background. The wait comes first, as with Docker: a container that removes itself is gone when a failed start is told."""
    waited = shell.engine.open(node.container_wait(id, _condition(request)))
    try:
        shell.call(node.container_start(id))
    except SkepError as error:
        if request["HostConfig"]["AutoRemove"]:
            _ended(waited)
        raise _failed(error, "run") from None
    waited.close()
    return 0


def _foreground(shell: Shell, values: Values, request: dict[str, Any], id: str) -> int:
    from skep.cli import attached

    keys = attached.chosen_keys(shell, values["detach-keys"] or "")
    streams = attached.attach(shell, id, request, keys)
    waited = shell.engine.open(node.container_wait(id, _condition(request)))
    try:
        shell.call(node.container_start(id))
    except SkepError as error:
        attached.drain(shell, streams, request["Tty"])
        if request["HostConfig"]["AutoRemove"]:
            _ended(waited)
        raise _failed(error, "run") from None
    if attached.stream(shell, streams, id, request, keys, waited):
        return 0
    if not request["AttachStdout"] and not request["AttachStderr"]:
        return 0
    return attached.status_of(waited)


def _ended(waited: Any) -> None:
    from skep.cli.attached import status_of

    status_of(waited)


def _condition(request: dict[str, Any]) -> str:
    return "removed" if request["HostConfig"]["AutoRemove"] else "next-exit"


def _failed(error: Exception, name: str) -> Failed:
    from skep.cli.attached import failed_start

    return Failed(f"skep: {message_of(error)}\n\nRun 'skep {name} --help' for more information", failed_start(error))


# making it


class CidFile(Exception):
    """The file for the container's id cannot be had."""


def _request(shell: Shell, values: Values, words: list[str], name: str) -> dict[str, Any]:
    """Raises Failed, with 125 for what can be seen without asking anybody."""
    foreign = [flag for flag in WINDOWS if values.given(flag)]
    if foreign:
        what = "is only supported on a Docker daemon running on windows, but the Docker daemon is running on linux"
        raise Failed("\n".join(f'"--{flag}" {what}' for flag in foreign))
    check_trust(values)
    try:
        pull = values.get("pull", "missing")
        if pull not in ("always", "missing", "never", ""):
            raise Bad(f'invalid pull option: \'{pull}\': must be one of "always", "missing" or "never"')
        request = create_request(values, words[0], words[1:], shell.environ)
    except Bad as error:
        raise Failed(f"skep: {error}\n\nRun 'skep {name} --help' for more information", 125) from None
    request["Env"] = _proxies(shell, request["Env"])
    if values["use-api-socket"]:
        _add_socket(shell, request)
    return request


def _proxies(shell: Shell, environment: list[str] | None) -> list[str] | None:
    """What Docker's config.json says about proxies is set in each container that does not say otherwise."""
    from skep.cli.registry import kept

    proxies = kept(shell).get("proxies") or {}
    chosen = proxies.get(shell.address.text) or proxies.get("default") or {}
    given = {line.partition("=")[0] for line in environment or ()}
    found = []
    for key, name in (
        ("httpProxy", "HTTP_PROXY"),
        ("httpsProxy", "HTTPS_PROXY"),
        ("noProxy", "NO_PROXY"),
        ("ftpProxy", "FTP_PROXY"),
        ("allProxy", "ALL_PROXY"),
    ):
        for variable in (name, name.lower()):
            if chosen.get(key) and variable not in given:
                found.append(f"{variable}={chosen[key]}")
    return [*(environment or ()), *found] or None


def _add_socket(shell: Shell, request: dict[str, Any]) -> None:
    from skep.cli.registry import kept

    if not shell.address.path:
        raise Failed("--use-api-socket: the daemon is not reached through a socket of this machine", 125)
    config = kept(shell)
    if config.get("auths") or config.get("credsStore") or config.get("credHelpers"):
        what = f"mount the socket with -v {shell.address.path}:/var/run/docker.sock"
        raise Failed(f"--use-api-socket would give the kept logins to the container: {what}", 125)
    mount = {"Type": "bind", "Source": shell.address.path, "Target": "/var/run/docker.sock", "BindOptions": {}}
    request["HostConfig"]["Mounts"] = [*request["HostConfig"].get("Mounts", ()), mount]


def _create(shell: Shell, values: Values, request: dict[str, Any], image: str) -> str:
    """The new container's id. Raises ApiError, Failed, CidFile."""
    _warn(shell, request["HostConfig"])
    path = values["cidfile"] or ""
    file = _cid_file(path) if path else None
    try:
        id = _create_with_image(shell, values, request, image)
        if file is not None:
            file.write(id)
    except BaseException:
        if file is not None:
            import os

            os.unlink(path)
        raise
    finally:
        if file is not None:
            file.close()
    return id


def _cid_file(path: str) -> Any:
    try:
        return open(path, "x")
    except FileExistsError:
        raise CidFile(f"container ID file found, make sure the other container isn't running or delete {path}") from None
    except OSError as error:
        raise CidFile(f"failed to create the container ID file: open {path}: {(error.strerror or '').lower()}") from None


def _warn(shell: Shell, host: dict[str, Any]) -> None:
    import re

    for server in host["Dns"]:
        if re.match(r"127\.|::1$", server):
            shell.warn(f"WARNING: Localhost DNS ({server}) may fail in containers.")
            break


def _create_with_image(shell: Shell, values: Values, request: dict[str, Any], image: str) -> str:
    name, platform = values["name"] or "", values["platform"] or ""
    reference = None if ID.fullmatch(image) else named(image)
    pull = values.get("pull", "missing") or "missing"
    if reference is not None and pull == "always":
        fetch(shell, image, platform, quiet=values["quiet"])
    if shell.out.isatty():
        from skep.cli.container import window

        size = window(shell)
        request["HostConfig"]["ConsoleSize"] = list(size) if size else [0, 0]
    call = node.container_create(request, name, platform)
    try:
        answer = shell.call(call)
    except ApiError as error:
        if error.status != 404 or reference is None or pull != "missing" or "image" not in str(error):
            raise
        if not values["quiet"]:
            shell.warn(f"Unable to find image '{reference.shown}' locally")
        fetch(shell, image, platform, quiet=values["quiet"])
        answer = shell.call(call)
    for warning in answer.get("Warnings") or ():
        shell.warn(f"WARNING: {warning}")
    return str(answer["Id"])


def fetch(shell: Shell, image: str, platform: str, *, quiet: bool) -> None:
    """Pulls; says so on the error stream, the output is for the container."""
    from skep.cli.image_progress import show
    from skep.cli.registry import credentials

    reference = named(image)
    call = node.image_pull(reference.name, reference.wanted, credentials(shell, image), platform)
    show(shell.open(call), None if quiet else shell.err)


COMMANDS = {
    "container run": Command(
        "container run",
        "[OPTIONS] IMAGE [COMMAND] [ARG...]",
        "Create and run a new container from an image",
        run,
        OF_RUN,
        least=1,
        most=None,
        aliases=("container run", "run"),
        interspersed=False,
    ),
    "container create": Command(
        "container create",
        "[OPTIONS] IMAGE [COMMAND] [ARG...]",
        "Create a new container",
        create,
        OF_CREATE,
        least=1,
        most=None,
        aliases=("container create", "create"),
        interspersed=False,
    ),
}
