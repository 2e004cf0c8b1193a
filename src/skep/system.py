"""The host's own clock, randomness, log and lock: what the programs hand to the parts, which know them as arguments only."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import random
import socket
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from skep.errors import ConfigError


class SystemClock:
    """`skep.clock.Clock` of this host."""

    def now(self) -> int:
        return time.time_ns()

    async def sleep(self, ns: int) -> None:
        await asyncio.sleep(max(0, ns) / 1e9)


def system_random() -> random.Random:
    """The system's randomness, in the form of `skep.ids.Random`."""
    return random.SystemRandom()


_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {k: v for k, v in record.__dict__.items() if k not in _STANDARD}


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t"}


def one_line(text: str) -> str:
    """What came from images, registries, users or other nodes must not look like lines of ours, nor move a terminal's cursor."""
    return text if text.isprintable() else text.translate(_CONTROLS)


class TextFormatter(logging.Formatter):
    """`2026-11-23T05:36:01.123Z info skep.manager.loop: sentence key=value`"""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        more = "".join(f" {k}={v}" for k, v in _extra(record).items())
        text = one_line(f"{at} {record.levelname.lower()} {record.name}: {record.getMessage()}{more}")
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {k: v if isinstance(v, str | int | float | bool) or v is None else str(v) for k, v in _extra(record).items()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def start_logging(level: str, form: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def lock(path: Path) -> int:
    """Take the lock of a data root until this process ends. Raises ConfigError when another has it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.read(file, 20).decode(errors="replace").strip()
        os.close(file)
        raise ConfigError(
            f"{path.parent} is in use by another skepd (pid {pid or 'unknown'}): stop it, or give this one a --data-root of its own"
        ) from None
    os.ftruncate(file, 0)
    os.write(file, f"{os.getpid()}\n".encode())
    return file


def notify(state: str) -> None:
    """Tell systemd (`READY=1`), where it asked for it: sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as s:
        try:
            s.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError:
            logging.getLogger(__name__).warning("systemd could not be told %s", state)


def own_group(paths: Iterable[Path], group: str) -> None:
    """Give sockets to a group, if there is one of that name."""
    import grp

    try:
        gid = grp.getgrnam(group).gr_gid
    except KeyError:
        return
    for path in paths:
        os.chown(path, 0, gid)
