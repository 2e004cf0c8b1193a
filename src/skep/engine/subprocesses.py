"""Programs that the engine has do some of its work: begun whole, and ended with nothing of them left open, whoever is cancelled."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from typing import Any

from skep.engine.threads import settled

_CHUNK = 1 << 16


async def begin(*command: str, **options: Any) -> asyncio.subprocess.Process:
    """`create_subprocess_exec`, all of it or nothing: cancelled half way asyncio closes the pipes, and then takes the exit code from
    under its own watcher's nose. Raises OSError."""
    making = asyncio.ensure_future(asyncio.create_subprocess_exec(*command, **options))
    try:
        return await settled(making)
    except asyncio.CancelledError:
        if making.exception() is None:
            await end(making.result())
        raise


def kill(process: asyncio.subprocess.Process) -> None:
    """Not its own `kill`, which looks first whether it has ended, and thereby takes its exit code from asyncio's watcher."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


async def end(process: asyncio.subprocess.Process) -> None:
    """Kill it if it still runs, read its pipes to their end and reap it.

    Reading comes first: a pipe whose reader is paused (asyncio stops at 128 KiB that nobody took) never sees its end, and `wait` does not
    return before every pipe has. What is read is bounded by what the pipe and the reader hold. Cancelled, it goes through with it: who
    went away is noticed twice, by a write that fails and by the connection's end.
    """
    kill(process)
    await settled(asyncio.ensure_future(_reaped(process)))


async def _reaped(process: asyncio.subprocess.Process) -> None:
    for pipe in (process.stdout, process.stderr):
        while pipe is not None and await pipe.read(_CHUNK):
            pass
    await process.wait()
