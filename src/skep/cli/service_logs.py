"""`skep service logs`, and what `skep logs` shares with it: reading the frames of a log stream."""

from __future__ import annotations

from skep.cli.flags import Command, Flag
from skep.cli.names import Resolver, short
from skep.cli.shell import Failed
from skep.cli.system import timestamp
from skep.client import calls
from skep.client.unix import ApiError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from skep.cli.flags import Values
    from skep.cli.shell import Shell

MAX_FRAME = 1 << 24


def frames(blocks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """A multiplexed stream as (1 stdout or 2 stderr, payload). Raises Failed for what is none."""
    data = b""
    for block in blocks:
        data += block
        while len(data) >= 8:
            size = int.from_bytes(data[4:8], "big")
            if data[0] > 3 or data[1:4] != b"\0\0\0" or size > MAX_FRAME:
                raise Failed(f"Unrecognized input header: {data[0]}")
            if len(data) < 8 + size:
                break
            yield data[0], data[8 : 8 + size]
            data = data[8 + size :]


def write(shell: Shell, stream: int, data: bytes) -> None:
    """Bytes go out as they came: they may be anything, and a letter may be cut in two."""
    out = shell.err if stream == 2 else shell.out
    raw = getattr(out, "buffer", None)
    if raw is None:
        out.write(data.decode(errors="replace"))
    else:
        out.flush()
        raw.write(data)
    out.flush()


def service_logs(shell: Shell, values: Values, names: list[str]) -> int:
    name, raw = names[0], values["raw"]
    kind, width = "services", 1
    try:
        service = shell.call(calls.service_inspect(name))
        tty = (service["Spec"]["TaskTemplate"].get("ContainerSpec") or {}).get("TTY", False)
        width = len(str((service["Spec"]["Mode"].get("Replicated") or {}).get("Replicas", 1)))
    except ApiError as error:
        if error.status != 404:
            raise
        kind = "tasks"
        try:
            task = shell.call(calls.task_inspect(name))
        except ApiError as missing:
            raise Failed(
                f"no such task or service: {name}" if missing.status == 404 else f"Error response from daemon: {missing}"
            ) from None
        tty = (task["Spec"].get("ContainerSpec") or {}).get("TTY", False)
        width = len(str(task.get("Slot", 0)))
    if tty and not raw:
        raise Failed("tty service logs only supported with --raw")
    answer = shell.open(_call(shell, values, kind, name))
    if tty:
        for block in answer.blocks():
            write(shell, 1, block)
        return 0
    prefix = _Prefix(shell, values, width)
    for stream, data in frames(answer.blocks()):
        write(shell, stream, data if raw else prefix.line(data))
    return 0


def _call(shell: Shell, values: Values, kind: str, name: str) -> calls.Call:
    return calls.logs(
        kind,
        name,
        follow=values["follow"],
        since=timestamp(values["since"] or "", shell.now()),
        tail=values.get("tail", "all"),
        timestamps=values["timestamps"],
        details=values["details"] or not values["raw"],
    )


class _Prefix:
    """`web.1.wxw8c5p4km9z@node-1    | ` before each line; who a line is from stands in its details."""

    def __init__(self, shell: Shell, values: Values, width: int) -> None:
        self.shell = shell
        self.values = values
        self.width = width
        self.resolver = Resolver(shell, plain=values["no-resolve"])
        self._known: dict[tuple[str, str, str], str] = {}

    def line(self, data: bytes) -> bytes:
        stamp = b""
        if self.values["timestamps"]:
            stamp, _, data = data.partition(b" ")
            stamp += b" "
        context, _, text = data.partition(b" ")
        details = _details(context.decode(errors="replace"))
        ids = []
        for kind in ("node", "service", "task"):
            key = f"com.docker.swarm.{kind}.id"
            if key not in details:
                raise Failed(f"missing {kind} id in details")
            ids.append(details.pop(key))
        shown = b""
        if self.values["details"]:
            shown = ",".join(f"{key}={value}" for key, value in sorted(details.items())).encode() + b" "
        return stamp + self._name(ids[0], ids[1], ids[2]).encode() + b"    | " + shown + text

    def _name(self, node: str, service: str, task: str) -> str:
        known = self._known.get((node, service, task))
        if known is None:
            where, name = self.resolver.node(node), self.resolver.service(service)
            slot = self.shell.call(calls.task_inspect(task)).get("Slot", 0)
            name += f".{slot}"
            if not self.values["no-task-ids"]:
                name += f".{task if self.values['no-trunc'] else short(task)}"
            known = self._known[node, service, task] = f"{name}@{where}" + " " * (self.width - len(str(slot)))
        return known


def _details(text: str) -> dict[str, str]:
    """`k=v,k=v`, percent-encoded."""
    from urllib.parse import unquote_plus

    pairs = (part.partition("=") for part in text.split(",") if part)
    return {unquote_plus(key): unquote_plus(value) for key, _, value in pairs}


COMMANDS = {
    "service logs": Command(
        "service logs",
        "[OPTIONS] SERVICE|TASK",
        "Fetch the logs of a service or task",
        service_logs,
        (
            Flag("details", "bool", "Show extra details provided to logs"),
            Flag("follow", "bool", "Follow log output", "f"),
            Flag("no-resolve", "bool", "Do not map IDs to Names in output"),
            Flag("no-task-ids", "bool", "Do not include task IDs in output"),
            Flag("no-trunc", "bool", "Do not truncate output"),
            Flag("raw", "bool", "Do not neatly format logs"),
            Flag("since", "string", 'Show logs since timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)'),
            Flag("tail", "string", "Number of lines to show from the end of the logs", "n", default='"all"'),
            Flag("timestamps", "bool", "Show timestamps", "t"),
        ),
        least=1,
        most=1,
    ),
}
