"""`skep stats`: what containers use, once or again and again until it is interrupted.

One connection for each container, all watched by one loop: no threads, and an interrupt ends it at once.
"""

from __future__ import annotations

import json

from skep.cli.flags import Command, Flag
from skep.cli.names import short
from skep.cli.shell import Failed, message_of
from skep.cli.table import FORMAT, render
from skep.cli.words import decimal_size, human_size
from skep.client import calls, node
from skep.errors import SkepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from skep.cli.flags import Values
    from skep.cli.shell import Shell
    from skep.client.unix import Engine

COLUMNS = [
    ("ID", "CONTAINER ID"),
    ("Name", "NAME"),
    ("CPUPerc", "CPU %"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"),
    ("NetIO", "NET I/O"),
    ("BlockIO", "BLOCK I/O"),
    ("PIDs", "PIDS"),
]
HEADERS = {**dict(COLUMNS), "Container": "CONTAINER"}
EVERY = 1.0
"""Seconds from one picture to the next; the daemon measures once a second."""


def stats(shell: Shell, values: Values, names: list[str]) -> int:
    form, whole = values["format"] or "", values["no-trunc"]
    if values["no-stream"]:
        chosen = names or _running(shell, values["all"])
        found = _once(shell, chosen)
        shell.print(render(COLUMNS, [row(name, found.get(name), whole) for name in chosen], form, HEADERS), end="")
        return 0
    return _watch(shell, names, values["all"], form, whole)


def _running(shell: Shell, all: bool) -> list[str]:
    return [short(container["Id"]) for container in shell.call(calls.container_list(all=all))]


def _once(shell: Shell, names: list[str]) -> dict[str, Any]:
    """All at the same time: the daemon measures each for a second."""
    from concurrent.futures import ThreadPoolExecutor

    def ask(name: str) -> Any:
        from skep.client.unix import Engine

        engine = Engine(shell.address)
        try:
            return engine.call(node.container_stats(name, stream=False))
        except SkepError as error:
            return error
        finally:
            engine.close()

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(ask, names))
    failed = [message_of(answer) for answer in answers if isinstance(answer, SkepError)]
    if failed:
        raise Failed("\n".join(failed))
    return dict(zip(names, answers, strict=True))


class Watched:
    """A stream of measurements of one container; the last one is kept."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.name = name
        self.engine = engine
        self.answer = engine.open(node.container_stats(name, stream=True))
        self.lines: Iterator[bytes] = self.answer.lines()
        self.last: dict[str, Any] | None = None

    @property
    def sock(self) -> Any:
        return self.answer.connection.sock

    def read(self) -> bool:
        """False at the stream's end. Waits for a whole line, which comes in one piece."""
        line = next(self.lines, None)
        if line is None:
            return False
        if line.strip():
            self.last = json.loads(line)
        return True


def _watch(shell: Shell, names: list[str], all: bool, form: str, whole: bool) -> int:
    from skep.client.unix import Engine

    watched: dict[str, Watched] = {}
    try:
        while True:
            chosen = names or _running(shell, all)
            for name in [name for name in watched if name not in chosen]:
                watched.pop(name).engine.close()
            for name in chosen:
                if name not in watched:
                    engine = Engine(shell.address)
                    try:
                        watched[name] = Watched(engine, name)
                    except SkepError:
                        engine.close()
                        if names:
                            raise
            _collect(watched, EVERY)
            rows = [row(name, watched[name].last if name in watched else None, whole) for name in chosen]
            shell.print("\x1b[H" if shell.out.isatty() else "", end="")
            text = render(COLUMNS, rows, form, HEADERS)
            if shell.out.isatty():
                text = "".join(f"{line}\x1b[K\n" for line in text.splitlines()) + "\x1b[J"
            shell.print(text, end="")
            shell.out.flush()
    finally:
        for one in watched.values():
            one.engine.close()


def _collect(watched: dict[str, Watched], seconds: float) -> None:
    """What comes in for a while; who has nothing more to say is asked no more."""
    import select
    import time

    end = time.monotonic() + seconds
    open_ones = dict(watched)
    while (left := end - time.monotonic()) > 0:
        if not open_ones:
            time.sleep(left)
            return
        ready = select.select([one.sock for one in open_ones.values()], [], [], left)[0]
        for name, one in list(open_ones.items()):
            if one.sock not in ready:
                continue
            try:
                alive = one.read()
            except (OSError, SkepError):
                alive = False
            if not alive:
                one.last = None
                del open_ones[name]


def row(name: str, found: dict[str, Any] | None, whole: bool) -> dict[str, Any]:
    if found is None:
        nothing = dict.fromkeys(("CPUPerc", "MemPerc", "NetIO", "BlockIO", "PIDs"), "--")
        return {"Container": name, "ID": "", "Name": "--", "MemUsage": "-- / --", **nothing}
    used, limit = memory_used(found.get("memory_stats") or {}), (found.get("memory_stats") or {}).get("limit", 0)
    networks = (found.get("networks") or {}).values()
    read, written = blocks(found.get("blkio_stats") or {})
    id = found.get("id", "")
    return {
        "Container": name,
        "ID": id if whole else short(id),
        "Name": found.get("name", "").removeprefix("/") or "--",
        "CPUPerc": f"{cpu_percent(found):.2f}%",
        "MemUsage": f"{human_size(used)} / {human_size(limit)}",
        "MemPerc": f"{used / limit * 100 if limit else 0:.2f}%",
        "NetIO": f"{decimal_size(sum(net['rx_bytes'] for net in networks))} / {decimal_size(sum(net['tx_bytes'] for net in networks))}",
        "BlockIO": f"{decimal_size(read)} / {decimal_size(written)}",
        "PIDs": str((found.get("pids_stats") or {}).get("current", 0)),
    }


def cpu_percent(found: dict[str, Any]) -> float:
    """Of one processor: two that are busy are 200%."""
    now, before = found.get("cpu_stats") or {}, found.get("precpu_stats") or {}
    used = (now.get("cpu_usage") or {}).get("total_usage", 0) - (before.get("cpu_usage") or {}).get("total_usage", 0)
    passed = now.get("system_cpu_usage", 0) - before.get("system_cpu_usage", 0)
    count = now.get("online_cpus") or len((now.get("cpu_usage") or {}).get("percpu_usage") or ())
    return float(used / passed * count * 100) if used > 0 and passed > 0 else 0.0


def memory_used(memory: dict[str, Any]) -> int:
    """Without what is only kept because there is room for it."""
    usage, details = memory.get("usage", 0), memory.get("stats") or {}
    for key in ("total_inactive_file", "inactive_file"):
        if details.get(key, usage) < usage:
            return int(usage - details[key])
    return int(usage)


def blocks(found: dict[str, Any]) -> tuple[int, int]:
    entries = found.get("io_service_bytes_recursive") or ()
    read, written = (sum(e["value"] for e in entries if e.get("op", "")[:1].lower() == letter) for letter in "rw")
    return read, written


COMMANDS = {
    "container stats": Command(
        "container stats",
        "[OPTIONS] [CONTAINER...]",
        "Display a live stream of container(s) resource usage statistics",
        stats,
        (
            Flag("all", "bool", "Show all containers (default shows just running)", "a"),
            Flag("format", "string", FORMAT),
            Flag("no-stream", "bool", "Disable streaming stats and only pull the first result"),
            Flag("no-trunc", "bool", "Do not truncate output"),
        ),
        most=None,
        aliases=("container stats", "stats"),
    )
}
