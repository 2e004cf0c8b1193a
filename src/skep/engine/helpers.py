"""The end of a program that was started to help: it is reaped, and nothing of it stays open."""

from __future__ import annotations

import asyncio
from contextlib import suppress

_CHUNK = 1 << 16


async def end(process: asyncio.subprocess.Process) -> None:
    """Kill it if it still runs, read its pipes to their end and reap it.

    Reading comes first: a pipe whose reader is paused (asyncio stops at 128 KiB that nobody took) never sees its end, and `wait` does not
    return before every pipe has. What is read is bounded by what the pipe and the reader hold.
    """
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
    for pipe in (process.stdout, process.stderr):
        while pipe is not None and await pipe.read(_CHUNK):
            pass
    await process.wait()
