"""What a pull, a push or a load says while it works: lines of JSON, shown as Docker shows them.

On a terminal each layer has a line of its own that is written over; elsewhere only what is done is said.
"""

from __future__ import annotations

import json

from skep.cli.shell import Failed, width_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TextIO

    from skep.client.unix import Answer


def show(answer: Answer, out: TextIO | None, aux: Callable[[dict[str, Any]], None] | None = None) -> None:
    """To the stream's end; `out` None says nothing. Raises Failed with what the daemon reports."""
    terminal = out is not None and out.isatty()
    lines: dict[str, int] = {}
    for text in answer.lines():
        if not text.strip():
            continue
        message = json.loads(text)
        if "aux" in message:
            if aux is not None:
                aux(message["aux"])
            continue
        problem = (message.get("errorDetail") or {}).get("message") or message.get("error")
        if problem:
            raise Failed(problem)
        if out is None:
            continue
        id, up = message.get("id", ""), 0
        if terminal and id and ("progressDetail" in message or message.get("progress")):
            if id not in lines:
                lines[id] = len(lines)
                out.write("\n")
            up = len(lines) - lines[id]
            out.write(f"\x1b[{up}A")
        else:
            lines = {}
        out.write(_line(message, width_of(out) if terminal else 0))
        if up:
            out.write(f"\x1b[{up}B")
        out.flush()


def _line(message: dict[str, Any], width: int) -> str:
    """`width` 0 where there is no terminal."""
    detail = message.get("progressDetail")
    bar = progress_bar(detail or {}, width or 200)
    start = end = ""
    if width and "stream" not in message and detail is not None:
        start, end = "\x1b[2K\r", "\r"
    elif bar:
        return ""
    id = f"{message['id']}: " if message.get("id") else ""
    status = message.get("status", "")
    if detail is not None and width:
        return f"{start}{id}{status} {bar}{end}"
    if message.get("progress"):
        return f"{id}{status} {message['progress']}{end}"
    if message.get("stream"):
        return f"{id}{message['stream']}{end}"
    return f"{id}{status}{end}\n"


def progress_bar(detail: dict[str, Any], width: int) -> str:
    """`[====>      ]  1.2MB/3.6MB`."""
    from skep.cli.words import decimal_size

    current, total = detail.get("current", 0), detail.get("total", 0)
    if not current and not total:
        return ""
    done = decimal_size(current, 4)
    if total <= 0:
        return f"{done:>8}"
    half = min(int(current / total * 100) // 2, 50)
    box = f"[{'=' * half}>{' ' * (50 - half)}] " if width > 110 else ""
    return box + (f"{done:>8}" if current > total else f"{done:>8}/{decimal_size(total, 4)}")
