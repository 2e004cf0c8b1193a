"""`skep start`, `stop`, `restart`, `kill`, `pause`, `unpause`, `rename`, `update`, `wait`, `rm`, `container prune`, `attach`."""

from __future__ import annotations

from skep.cli.flags import Command, Flag
from skep.cli.run_values import restart, swap
from skep.cli.shell import Failed, confirmed, message_of, side_by_side
from skep.cli.words import Bad, decimal_size
from skep.client import calls, node
from skep.client.unix import ApiError
from skep.errors import SkepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from skep.cli.flags import Values
    from skep.cli.shell import Shell
    from skep.client.calls import Call

PRUNE = "WARNING! This will remove all stopped containers."

# start, attach


def start(shell: Shell, values: Values, names: list[str]) -> int:
    if values["attach"] or values["interactive"]:
        if len(names) > 1:
            raise Failed("you cannot start and attach multiple containers at once")
        return _start_attached(shell, values, names[0])
    failed = []
    for name in names:
        try:
            shell.call(node.container_start(name))
        except SkepError as error:
            shell.out.flush()
            shell.warn(message_of(error))
            failed.append(name)
        else:
            shell.print(name)
    if failed:
        shell.out.flush()
        raise Failed(f"Error: failed to start containers: {', '.join(failed)}")
    return 0


def _start_attached(shell: Shell, values: Values, name: str) -> int:
    from skep.cli import attached

    found = shell.call(calls.container_inspect(name))
    id = found["Id"]
    config = _streams(found["Config"], bool(values["interactive"]))
    keys = attached.chosen_keys(shell, values["detach-keys"] or "")
    with attached.Signals(shell, id, there=not config["Tty"]):
        streams = attached.attach(shell, id, config, keys)
        removed = bool(found["HostConfig"].get("AutoRemove"))
        waited = shell.engine.open(node.container_wait(id, "removed" if removed else "next-exit"))
        try:
            shell.call(node.container_start(id))
        except SkepError:
            attached.drain(shell, streams, config["Tty"])
            if removed:
                attached.status_of(waited)
            raise
        if attached.stream(shell, streams, id, config, keys):
            return 0
    return attached.status_of(waited)


def _streams(config: dict[str, Any], stdin: bool) -> dict[str, Any]:
    return {
        "Tty": bool(config.get("Tty")),
        "AttachStdin": stdin and bool(config.get("OpenStdin")),
        "AttachStdout": True,
        "AttachStderr": True,
    }


def attach(shell: Shell, values: Values, names: list[str]) -> int:
    from skep.cli import attached

    name = names[0]
    try:
        waited = shell.engine.open(node.container_wait(name))
    except ApiError as error:
        if error.status != 404:
            raise
        waited = None
    found = _attachable(shell, name)
    config = _streams(found["Config"], not values["no-stdin"])
    attached.check_terminal(shell, not values["no-stdin"], config["Tty"])
    keys = attached.chosen_keys(shell, values["detach-keys"] or "")
    with attached.Signals(shell, name, there=values.get("sig-proxy", True) and not config["Tty"]):
        streams = attached.attach(shell, name, config, keys)
        _attachable(shell, name)
        if config["Tty"] and shell.out.isatty():
            attached.redraw(shell, name)
        if attached.stream(shell, streams, name, config, keys):
            raise Failed("read escape sequence")
    return attached.status_of(waited) if waited is not None else 0


def _attachable(shell: Shell, name: str) -> dict[str, Any]:
    found: dict[str, Any] = shell.call(calls.container_inspect(name))
    state = found["State"]
    for there, what in (
        (not state["Running"], "a stopped container, start it first"),
        (state["Paused"], "a paused container, unpause it first"),
        (state["Restarting"], "a restarting container, wait until it is running"),
    ):
        if there:
            raise Failed(f"You cannot attach to {what}")
    return found


# one call for each name


def _each(make: Callable[[Values, str], Call]) -> Callable[[Shell, Values, list[str]], int]:
    """A command that does one thing to each container, all at the same time, and prints the names of those it was done to."""

    def act(shell: Shell, values: Values, names: list[str]) -> int:
        return side_by_side(shell, names, lambda name: make(values, name))

    return act


def _stop(restart: bool) -> Callable[[Values, str], Call]:
    return lambda values, name: node.container_stop(name, values["timeout"], values["signal"] or "", restart=restart)


def rename(shell: Shell, _: Values, names: list[str]) -> int:
    old, new = (name.strip() for name in names)
    if not old or not new:
        raise Failed("Error: Neither old nor new names may be empty")
    try:
        shell.call(node.container_rename(old, new))
    except SkepError as error:
        shell.warn(message_of(error))
        raise Failed(f"Error: failed to rename container named {old}") from None
    return 0


def wait(shell: Shell, _: Values, names: list[str]) -> int:
    import json

    failed = []
    for name in names:
        try:
            found = json.loads(shell.open(node.container_wait(name)).read())
        except SkepError as error:
            failed.append(message_of(error))
            continue
        problem = (found.get("Error") or {}).get("Message")
        if problem:
            failed.append(problem)
        else:
            shell.print(str(found["StatusCode"]))
            shell.out.flush()
    if failed:
        raise Failed("\n".join(failed))
    return 0


def remove(shell: Shell, values: Values, names: list[str]) -> int:
    force, volumes, link = values["force"], values["volumes"], values["link"]
    for name in names:
        if not name.strip("/"):
            raise Failed("container name cannot be empty")
    return side_by_side(
        shell,
        [name.strip("/") for name in names],
        lambda name: node.container_remove(name, force=force, volumes=volumes, link=link),
        forgiven=lambda error: force and isinstance(error, ApiError) and error.status == 404,
    )


NOT_CHANGED = (
    *("BlkioWeightDevice", "BlkioDeviceReadBps", "BlkioDeviceWriteBps", "BlkioDeviceReadIOps", "BlkioDeviceWriteIOps", "Devices"),
    *("DeviceCgroupRules", "DeviceRequests", "MemorySwappiness", "OomKillDisable", "Ulimits"),
)


def update(shell: Shell, values: Values, names: list[str]) -> int:
    from skep.cli.run_config import resources

    if not values.count:
        raise Failed("you must provide one or more flags when using this command")
    try:
        policy = restart(values["restart"]) if values["restart"] else {"Name": "", "MaximumRetryCount": 0}
    except Bad as error:
        raise Failed(str(error)) from None
    request = {
        **resources(values),
        **dict.fromkeys(NOT_CHANGED),
        "CgroupParent": "",
        "PidsLimit": values["pids-limit"],
        "CpuCount": 0,
        "CpuPercent": 0,
        "IOMaximumIOps": 0,
        "IOMaximumBandwidth": 0,
        "RestartPolicy": policy,
    }
    failed: list[str] = []
    warnings: list[str] = []
    for name in names:
        try:
            answer = shell.call(node.container_update(name, request))
        except SkepError as error:
            failed.append(message_of(error))
        else:
            shell.print(name)
            warnings += answer.get("Warnings") or ()
    if warnings:
        shell.print("\n".join(warnings))
    if failed:
        raise Failed("\n".join(failed))
    return 0


def prune(shell: Shell, values: Values, _: list[str]) -> int:
    if not values["force"] and not confirmed(shell, PRUNE):
        return 0
    found = shell.call(node.prune("containers", values.filters()))
    deleted = found.get("ContainersDeleted") or ()
    if deleted:
        shell.print("Deleted Containers:\n" + "".join(f"{id}\n" for id in deleted))
    shell.print(f"Total reclaimed space: {decimal_size(found.get('SpaceReclaimed', 0), 4)}")
    return 0


KEYS = Flag("detach-keys", "string", "Override the key sequence for detaching a container")
SIGNAL = Flag("signal", "string", "Signal to send to the container", "s")
TIMEOUT = Flag("timeout", "int", "Seconds to wait before killing the container", "t", other="time")
SEVERAL = "CONTAINER [CONTAINER...]"


def _command(
    verb: str, usage: str, summary: str, run: Callable[..., int], flags: tuple[Flag, ...] = (), least: int = 1, most: int | None = None
) -> Command:
    aliases = () if verb == "prune" else (f"container {verb}", *(("container remove",) if verb == "rm" else ()), verb)
    return Command(f"container {verb}", usage, summary, run, flags, least=least, most=most, aliases=aliases)


COMMANDS = {
    command.name: command
    for command in (
        _command(
            "attach",
            "[OPTIONS] CONTAINER",
            "Attach local standard input, output, and error streams to a running container",
            attach,
            (
                KEYS,
                Flag("no-stdin", "bool", "Do not attach STDIN"),
                Flag("sig-proxy", "bool", "Proxy all received signals to the process", default="true"),
            ),
            most=1,
        ),
        _command(
            "kill",
            f"[OPTIONS] {SEVERAL}",
            "Kill one or more running containers",
            _each(lambda values, name: node.container_kill(name, values["signal"] or "")),
            (SIGNAL,),
        ),
        _command(
            "pause", SEVERAL, "Pause all processes within one or more containers", _each(lambda _, name: node.container_act(name, "pause"))
        ),
        _command(
            "prune",
            "[OPTIONS]",
            "Remove all stopped containers",
            prune,
            (
                Flag("filter", "filter", 'Provide filter values (e.g. "until=<timestamp>")'),
                Flag("force", "bool", "Do not prompt for confirmation", "f"),
            ),
            least=0,
            most=0,
        ),
        _command("rename", "CONTAINER NEW_NAME", "Rename a container", rename, least=2, most=2),
        _command("restart", f"[OPTIONS] {SEVERAL}", "Restart one or more containers", _each(_stop(True)), (SIGNAL, TIMEOUT)),
        _command(
            "rm",
            f"[OPTIONS] {SEVERAL}",
            "Remove one or more containers",
            remove,
            (
                Flag("force", "bool", "Force the removal of a running container (uses SIGKILL)", "f"),
                Flag("link", "bool", "Remove the specified link", "l"),
                Flag("volumes", "bool", "Remove anonymous volumes associated with the container", "v"),
            ),
        ),
        _command(
            "start",
            f"[OPTIONS] {SEVERAL}",
            "Start one or more stopped containers",
            start,
            (
                Flag("attach", "bool", "Attach STDOUT/STDERR and forward signals", "a"),
                KEYS,
                Flag("interactive", "bool", "Attach container's STDIN", "i"),
            ),
        ),
        _command("stop", f"[OPTIONS] {SEVERAL}", "Stop one or more running containers", _each(_stop(False)), (SIGNAL, TIMEOUT)),
        _command(
            "unpause",
            SEVERAL,
            "Unpause all processes within one or more containers",
            _each(lambda _, name: node.container_act(name, "unpause")),
        ),
        _command(
            "update",
            f"[OPTIONS] {SEVERAL}",
            "Update configuration of one or more containers",
            update,
            (
                Flag("blkio-weight", "uint16", "Block IO (relative weight), between 10 and 1000, or 0 to disable", default="0"),
                Flag("cpu-period", "int", "Limit CPU CFS (Completely Fair Scheduler) period"),
                Flag("cpu-quota", "int", "Limit CPU CFS (Completely Fair Scheduler) quota"),
                Flag("cpu-rt-period", "int", "Limit the CPU real-time period in microseconds"),
                Flag("cpu-rt-runtime", "int", "Limit the CPU real-time runtime in microseconds"),
                Flag("cpu-shares", "int", "CPU shares (relative weight)", "c"),
                Flag("cpus", "decimal", "Number of CPUs"),
                Flag("cpuset-cpus", "string", "CPUs in which to allow execution (0-3, 0,1)"),
                Flag("cpuset-mems", "string", "MEMs in which to allow execution (0-3, 0,1)"),
                Flag("memory", "bytes", "Memory limit", "m"),
                Flag("memory-reservation", "bytes", "Memory soft limit"),
                Flag("memory-swap", "bytes", "Swap limit equal to memory plus swap: -1 to enable unlimited swap", parse=swap),
                Flag("pids-limit", "int", "Tune container pids limit (set -1 for unlimited)"),
                Flag("restart", "string", "Restart policy to apply when a container exits"),
            ),
        ),
        _command("wait", SEVERAL, "Block until one or more containers stop, then print their exit codes", wait),
    )
}
