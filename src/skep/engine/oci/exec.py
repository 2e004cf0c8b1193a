"""A further process in a running container.

Without a terminal the runtime's `exec` is our child and the process' streams are plain pipes: 5 ms, its exit code is the runtime's. With a
terminal it runs under a conmon of its own (`--exec-attach`), which holds the terminal, hands it out by socket, and reports the exit code.
A command that cannot be run is no error of the call: as with Docker the reason comes as output, and the exit code is 126 or 127.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from skep.engine.base import ExecConfig, Streams
from skep.engine.oci import conmon
from skep.engine.oci.streams import AttachStreams, PipeStreams, Sizes
from skep.errors import SkepError

_TIMEOUT = 60.0
_LOOK_EVERY = 0.005


def explain(text: str, command: str, cwd: str = "") -> tuple[bytes, int]:
    """(what the user reads, exit code) for a command that could not be run: the runtimes' complaints in the words of Docker's."""
    reason = conmon.tidy(text).removeprefix("exec failed: ").removeprefix("unable to start container process: ")
    low = reason.lower()
    missing = ("executable file" in low and "not found" in low) or "no such file or directory" in low
    code = 127 if missing else 126
    if "chdir" in low:
        why = next((words for words in ("no such file or directory", "not a directory", "permission denied") if words in low), low)
        reason = f'chdir to cwd ("{cwd}") set in config.json failed: {why}'
    elif missing:
        found = f"stat {command}: no such file or directory" if "/" in command else "executable file not found in $PATH"
        reason = f'exec: "{command}": {found}'
    elif "format error" in low:
        reason = f"exec {command}: exec format error"
    elif "permission" in low or "permitted" in low:
        reason = f'exec: "{command}": permission denied'
    return f"OCI runtime exec failed: exec failed: unable to start container process: {reason}: unknown\r\n".encode(), code


class ProcessSpec(NamedTuple):
    """For messages."""

    command: str
    cwd: str


class PipeExec:
    """The runtime's exec as our child."""

    def __init__(self, loop: asyncio.AbstractEventLoop, process: subprocess.Popen[bytes], folder: Path, process_spec: ProcessSpec) -> None:
        assert process.stdout is not None and process.stderr is not None
        self._loop = loop
        self._process = process
        self._pid_file = folder / "pid"
        self._folder = folder
        self._spec = process_spec
        self._held = b""
        self._begun = False
        self._pid = 0
        self._code = 0
        self._reason = ""
        self._done: asyncio.Future[int] = loop.create_future()
        stdin = os.dup(process.stdin.fileno()) if process.stdin is not None else -1
        self._streams = PipeStreams(loop, stdin, os.dup(process.stdout.fileno()), os.dup(process.stderr.fileno()))
        self._streams.filtered = self._filter
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        self._fd = os.pidfd_open(process.pid)
        loop.add_reader(self._fd, self._ended)

    def _filter(self, data: bytes) -> bytes:
        """Until the process has begun, what comes on stderr is the runtime's own."""
        if not self._begun:
            self._begun = self._started()
        if self._begun:
            data, self._held = self._held + data, b""
            return data
        self._held += data
        return b""

    def _started(self) -> bool:
        try:
            self._pid = int(self._pid_file.read_text())
        except (OSError, ValueError):
            return False
        return True

    def _ended(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        code = self._process.wait()
        self._code = 128 - code if code < 0 else code
        self._begun = self._begun or self._started()
        self._streams.finish(self._last)
        for file in ("process.json", "pid"):
            (self._folder / file).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._folder.rmdir()
        if not self._done.done():
            self._done.set_result(self._code)

    def _last(self) -> bytes:
        if self._begun:
            return self._held
        text, self._code = explain(self._held.decode("utf-8", "replace"), *self._spec)
        self._reason = text.decode().strip()
        return text

    async def begun(self) -> str:
        """The runtime writes the pid file when the command runs, and tells nobody."""
        while not self.pid and not self._done.done():
            await asyncio.wait((self._done,), timeout=_LOOK_EVERY)
        return self._reason

    @property
    def pid(self) -> int:
        if not self._pid:
            self._started()
        return self._pid

    @property
    def streams(self) -> Streams:
        return self._streams

    def discard(self) -> None:
        self._streams.discard()

    async def wait(self) -> int:
        return await asyncio.shield(self._done)

    async def resize(self, rows: int, columns: int) -> None:
        """A process without a terminal has no size, which Docker says nothing about."""

    def kill(self) -> None:
        """SIGKILL for the process inside; the runtime ends with it."""
        pid = self.pid
        if pid and not self._done.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def spawn_pipes(places: conmon.Places, id: str, folder: Path, process: dict[str, Any], stdin: bool) -> subprocess.Popen[bytes]:
    """Blocks for a few ms."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / "process.json").write_bytes(msgspec.json.encode(process))
    command = [
        *places.runtime.command(places.state),
        "exec",
        "--process",
        str(folder / "process.json"),
        "--pid-file",
        str(folder / "pid"),
        id,
    ]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=conmon.environment(),
    )


class TerminalExec:
    """An exec with a terminal, under a conmon of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop, folder: Path, spawned: InTerminal) -> None:
        self._loop = loop
        self._folder = folder
        self._sync = spawned.sync
        self._pid = spawned.pid
        self._buffer = b""
        self._reason = spawned.reason.decode().strip()
        self.stream = AttachStreams(loop)
        self.sizes = Sizes(loop, lambda rows, columns: conmon.resize(folder, rows, columns))
        self._done: asyncio.Future[int] = loop.create_future()
        if spawned.code is not None or spawned.connection is None:
            os.close(self._sync)
            self.stream.append(spawned.reason)
            self._finish(spawned.code or 126)
        else:
            self.stream.connect(spawned.connection)
            loop.add_reader(self._sync, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._sync, 4096)
        except BlockingIOError:
            return
        self._buffer += data
        if data and b"\n" not in self._buffer:
            return
        self._loop.remove_reader(self._sync)
        os.close(self._sync)
        code = conmon.answer(self._buffer.partition(b"\n")[0]).get("data", -1) if self._buffer else -1
        self._finish(int(str(code)) if str(code).lstrip("-").isdigit() else -1)

    def _finish(self, code: int) -> None:
        self.sizes.stop()
        if not self.stream.connected:
            self.stream.end()
        with contextlib.suppress(OSError):
            # ours and conmon's: its sockets, its complaints, a pid file with a name of its own
            for file in list(self._folder.iterdir()):
                file.unlink(missing_ok=True)
            self._folder.rmdir()
        if not self._done.done():
            self._done.set_result(code if code >= 0 else 137)

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def streams(self) -> Streams:
        return self.stream

    async def begun(self) -> str:
        return self._reason

    def discard(self) -> None:
        self.stream.discard()

    async def wait(self) -> int:
        return await asyncio.shield(self._done)

    async def resize(self, rows: int, columns: int) -> None:
        self.sizes.set(rows, columns)

    def kill(self) -> None:
        if self._pid and not self._done.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)


class InTerminal(NamedTuple):
    """An exec that runs under its conmon, or why it does not."""

    sync: int
    """conmon writes the exit code to this pipe."""
    pid: int
    code: int | None
    """Set if it could not run."""
    reason: bytes
    connection: socket.socket | None


Spawned = subprocess.Popen[bytes] | InTerminal


def spawn(places: conmon.Places, id: str, exec_id: str, folder: Path, config: ExecConfig, process: dict[str, Any]) -> Spawned:
    """Blocks for a few ms."""
    if config.tty:
        return spawn_terminal(places, id, exec_id, folder, process)
    return spawn_pipes(places, id, folder, process, config.stdin)


async def spawned_in(
    loop: asyncio.AbstractEventLoop, pool: Executor, work: Callable[[], Spawned], folder: Path, config: ExecConfig
) -> PipeExec | TerminalExec:
    """What `work` spawns, in the event loop. When nobody waits for it any more it runs on, as Docker's does: its output is thrown away
    then, and nothing of it stays open when it has ended."""
    spawning = loop.run_in_executor(pool, work)

    def unwanted(done: asyncio.Future[Spawned]) -> None:
        if not done.cancelled() and done.exception() is None:
            open_exec(loop, folder, config, done.result()).discard()

    try:
        return open_exec(loop, folder, config, await asyncio.shield(spawning))
    except asyncio.CancelledError:
        spawning.add_done_callback(unwanted)
        raise


def open_exec(loop: asyncio.AbstractEventLoop, folder: Path, config: ExecConfig, spawned: Spawned) -> PipeExec | TerminalExec:
    if isinstance(spawned, subprocess.Popen):
        return PipeExec(loop, spawned, folder, ProcessSpec(config.args[0], config.cwd))
    terminal = TerminalExec(loop, folder, spawned)
    if config.rows and config.columns and spawned.code is None:
        with contextlib.suppress(SkepError):
            terminal.sizes.set(config.rows, config.columns)
    return terminal


def spawn_terminal(places: conmon.Places, id: str, exec_id: str, folder: Path, process: dict[str, Any]) -> InTerminal:
    """Blocks.

    The order is conmon's: a byte lets it open the attach socket, it answers, we connect, a second byte lets the process run.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / "process.json").write_bytes(msgspec.json.encode(process))
    command = conmon.exec_command(places, id, exec_id, folder)
    pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
    (sync_r, sync_w), (attach_r, attach_w), (start_r, start_w) = pipes
    opened = {fd for pair in pipes for fd in pair}
    connection: socket.socket | None = None
    try:
        with open(folder / "conmon.err", "wb") as errors:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                cwd=folder,
                pass_fds=(sync_w, attach_w, start_r),
                env=conmon.environment(
                    _OCI_SYNCPIPE=str(sync_w), _OCI_ATTACHPIPE=str(attach_w), _OCI_STARTPIPE=str(start_r), TMPDIR=str(places.temporary)
                ),
            )
        for fd in (sync_w, attach_w, start_r):
            os.close(fd)
            opened.discard(fd)
        os.write(start_w, b"\0")
        conmon.read_line(attach_r, _TIMEOUT)
        connection = conmon.connect(folder)
        os.write(start_w, b"\0")
        line = conmon.read_line(sync_r, _TIMEOUT)
        child.wait()
        answer = conmon.answer(line) if line else {"data": -1, "message": conmon.last_words(folder)}
        pid = int(str(answer.get("data", -1)))
        os.set_blocking(sync_r, False)
        opened.discard(sync_r)
        if pid > 0:
            return InTerminal(sync_r, pid, None, b"", connection)
        text, code = explain(str(answer.get("message", "")), str(process["args"][0]), str(process["cwd"]))
        connection.close()
        return InTerminal(sync_r, 0, code, text, None)
    except BaseException:
        if connection is not None:
            connection.close()
        raise
    finally:
        for fd in opened:
            os.close(fd)
