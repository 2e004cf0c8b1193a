"""One request of the fuzzer's on the wire, and as much of its answer as comes soon: streams and waiting calls have no end of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from fuzz import Request, complaint

T = TypeVar("T")
HEAD_WITHIN = 10.0
"""Seconds for the status line; what may wait longer is named in WAITS."""
REST_WITHIN = 0.15
MOST = 4 << 20
WAITS = (
    "/wait",
    "/stop",
    "/restart",
    "/attach",
    "/start",
    "/swarm/join",
    "/logs",
    "/stats",
    "/events",
    "/images/create",
    "/push",
    "/distribution/",
    "/auth",
)
"""Calls that may wait for a container, a registry or another node before they answer: they are left after WAITING."""
WAITING = 0.5


class Unanswered(Exception):
    """Said nothing within bounds."""


async def _within(what: Awaitable[T], seconds: float) -> T | None:
    try:
        async with asyncio.timeout(seconds):
            return await what
    except TimeoutError:
        return None


async def ask(path: str, request: Request) -> tuple[int, str, bytes] | None:
    """(status, content type, body so far); None where a call that may wait does so. Raises Unanswered, and OSError when nobody is there."""
    reader, writer = await asyncio.open_unix_connection(path, limit=MOST)
    try:
        # what is no text of HTTP's cannot be sent as a header
        lines = [f"{request.method} {request.target} HTTP/1.1", "Host: docker", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in request.headers.items()]
        if request.body is not None:
            lines.append(f"Content-Length: {len(request.body)}")
        writer.write("\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + (request.body or b""))
        waits = any(part in request.target for part in WAITS)
        try:
            head = await _within(reader.readuntil(b"\r\n\r\n"), WAITING if waits else HEAD_WITHIN)
        except asyncio.IncompleteReadError as error:
            raise Unanswered(f"the connection ended after {error.partial[:200]!r}") from None
        if head is None:
            if waits:
                return None
            raise Unanswered(f"no answer in {HEAD_WITHIN} s")
        words, *fields = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in fields)}
        status, body = int(words.split()[1]), b""
        if request.method != "HEAD" and status not in (101, 204, 304):
            length = int(headers.get("content-length", "-1"))
            if length >= 0:
                body = await reader.readexactly(length)
            elif status >= 400:
                body = await reader.read()
            else:
                body = await _within(reader.read(MOST), REST_WITHIN) or b""
        return status, headers.get("content-type", ""), body
    finally:
        writer.close()


async def fault(path: str, request: Request) -> tuple[int, str]:
    """(status or 0, what is wrong with the answer)."""
    try:
        answer = await ask(path, request)
    except (Unanswered, asyncio.IncompleteReadError) as error:
        return 0, str(error)
    if answer is None:
        return 0, ""
    status, kind, body = answer
    return status, complaint(request, status, kind, body)
