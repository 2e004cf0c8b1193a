"""conmon, one per container: holds its standard streams, writes its log, keeps its exit code, and outlives us.

The protocol (conmon 2.1) is in docs/engine.md. Everything here blocks and runs in the threads that `runtime.enter` has put in the right
namespace; nothing here keeps state.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from skep.engine.oci.runtime import Runtime, let_go
from skep.errors import Conflict, NotFound, SkepError

_LINE_LIMIT = 1 << 16
_CREATE_TIMEOUT = 120.0
_ATTACH_PACKET = 8192
SOCKET_PATH_LIMIT = 107


class Places(msgspec.Struct, frozen=True, kw_only=True):
    """Directories of the engine that all containers share, and the programs."""

    conmon: str
    runtime: Runtime
    state: Path
    """Of the OCI runtime (`--root`)."""
    exits: Path
    """conmon writes `exits/ID` when a container has ended."""
    temporary: Path


class Launched(msgspec.Struct, frozen=True, kw_only=True):
    pid: int
    conmon_pid: int


def _base(places: Places, id: str, name: str, bundle: Path, tty: bool) -> list[str]:
    command = [places.conmon, "--api-version", "1", "-c", id, "-u", id, "-n", name, "-r", places.runtime.program, "-b", str(bundle)]
    for option in places.runtime.options(places.state):
        command += ["--runtime-arg", option]
    if tty:  # the runtime's stderr is the terminal then, and its complaint would be lost
        command += ["--runtime-arg", f"--log={bundle}/runtime.log", "-t"]
    return [*command, "--full-attach", "--no-sync-log", "--log-level", "error"]


def create(places: Places, id: str, name: str, bundle: Path, log: Path | None, *, tty: bool, stdin: bool, once: bool = False) -> Launched:
    """Create a container under a conmon of its own; its process waits for `start`. Raises SkepError with the runtime's reason."""
    command = _base(places, id, name, bundle, tty)
    command += ["-p", str(bundle / "pid"), "-P", str(bundle / "conmon.pid"), "--exit-dir", str(places.exits), "-0", str(bundle / "persist")]
    command += ["-l", f"k8s-file:{log}" if log is not None else "off"]
    if stdin:
        command += ["-i"] if once else ["-i", "--leave-stdin-open"]
    (bundle / "persist").mkdir(exist_ok=True)
    said = _spawn(places, command, bundle)
    pid = int(str(said.get("data", -1)))
    if pid <= 0:
        raise failure(str(said.get("message") or "conmon gave no reason"))
    return Launched(pid=pid, conmon_pid=_number(bundle / "conmon.pid"))


def exec_command(places: Places, id: str, exec_id: str, folder: Path) -> list[str]:
    """conmon for a process with a terminal in the running container `id`."""
    command = _base(places, id, exec_id, folder, True)
    command[command.index("-u") + 1] = exec_id
    return [*command, "-l", "off", "-i", "-e", "--exec-attach", "--exec-process-spec", str(folder / "process.json")]


def _spawn(places: Places, command: Sequence[str], bundle: Path) -> dict[str, object]:
    """Run conmon, which forks into the background; its one line of JSON on the sync pipe."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        with open(bundle / "conmon.err", "wb") as errors:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                cwd=bundle,
                pass_fds=(writer,),
                env=environment(_OCI_SYNCPIPE=str(writer), TMPDIR=str(places.temporary)),
            )
        os.close(writer)
        writer = -1
        line = read_line(reader, _CREATE_TIMEOUT)
        process.wait()
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    if not line:
        return {"data": -1, "message": last_words(bundle)}
    return answer(line)


def last_words(bundle: Path) -> str:
    """Why there was no answer: what the runtime logged, or conmon complained of."""
    for name in ("runtime.log", "conmon.err"):
        try:
            text = (bundle / name).read_text(errors="replace").strip()
        except OSError:
            continue
        if text:
            return text
    return "conmon ended without an answer"


def answer(line: bytes) -> dict[str, object]:
    try:
        decoded = json.loads(line)
    except ValueError:
        return {"data": -1, "message": f"conmon said {line[:200]!r}"}
    return decoded if isinstance(decoded, dict) else {"data": -1, "message": f"conmon said {line[:200]!r}"}


def environment(**more: str) -> dict[str, str]:
    """What conmon and the runtime see of ours: nothing but a search path.

    And that memory which was freed stays mapped: conmon (2.1) looks once more at what it knew of a client that has left while the
    process wrote, and died of it when the page was gone; the container's exit code and the rest of its log with it.
    """
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), **more}


def read_line(fd: int, timeout: float) -> bytes:
    """One line and not a byte more: the next one may be there already and is somebody else's. Empty at end of file. Raises SkepError when
    nothing comes in time."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    deadline = time.monotonic() + timeout
    data = b""
    while b"\n" not in data and len(data) < _LINE_LIMIT:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise SkepError(f"conmon did not answer within {timeout:.0f} s")
        chunk = os.read(fd, 1)
        if not chunk:
            break
        data += chunk
    return data.partition(b"\n")[0]


def start(places: Places, id: str, pid: int) -> None:
    """Let a created container's process go."""
    if not (places.runtime.direct and let_go(places.runtime.name, places.state, id, pid)):
        run(places, "start", id)


def run(places: Places, *arguments: str) -> str:
    """One call of the runtime. Raises SkepError with its reason."""
    done = subprocess.run(
        [*places.runtime.command(places.state), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment(),
        check=False,
        timeout=_CREATE_TIMEOUT,
    )
    if done.returncode:
        raise failure(done.stderr.decode("utf-8", "replace"))
    return done.stdout.decode("utf-8", "replace")


def failure(text: str) -> SkepError:
    """The runtime's complaint as Docker words it; NotFound for a command that is not in the image."""
    reason = tidy(text)
    low = reason.lower()
    if "executable file" in low and "not found" in low:
        name = reason.split("`")[1] if reason.count("`") >= 2 else _quoted(reason)
        if name:
            reason = f'exec: "{name}": executable file not found in $PATH'
        return NotFound(f"OCI runtime create failed: unable to start container process: {reason}")
    return SkepError(f"OCI runtime create failed: {reason}")


def _quoted(text: str) -> str:
    parts = text.split('exec: "')
    return parts[1].split('"')[0] if len(parts) > 1 else ""


def tidy(text: str) -> str:
    """The last line without the decoration of crun (a time) or runc (`time="..." level=error msg="..."`)."""
    lines = [line.strip() for line in text.replace("\\n", "\n").strip().splitlines() if line.strip()]
    if not lines:
        return "the runtime gave no reason"
    line = next((line for line in lines if "level=error" in line or "rror" in line), lines[-1])
    if 'msg="' in line:
        line = line.split('msg="', 1)[1]
        line = line[: line.rindex('"')] if '"' in line else line
        line = line.replace('\\"', '"')
    head, _, rest = line.partition(": ")
    if rest and head[:4].isdigit() and head.endswith("Z"):
        line = rest
    for prefix in ("runc create failed: ", "runc exec failed: ", "unable to start container process: ", "OCI runtime error: "):
        line = line.removeprefix(prefix)
    return line


# what conmon leaves behind


def _number(file: Path) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0


def pids(bundle: Path) -> Launched:
    """Of the last launch; zeros where there is none."""
    return Launched(pid=_number(bundle / "pid"), conmon_pid=_number(bundle / "conmon.pid"))


def exit_code(places: Places, id: str) -> tuple[int, int] | None:
    """(code, time in ns) if conmon has written it."""
    file = places.exits / id
    try:
        with open(file, "rb") as opened:
            text = opened.read(32)
            at = os.fstat(opened.fileno()).st_mtime_ns
    except OSError:
        return None
    try:
        return int(text), at
    except ValueError:
        return None


def out_of_memory(bundle: Path) -> bool:
    return (bundle / "persist" / "oom").exists()


def forget(places: Places, id: str, bundle: Path) -> None:
    """Remove what a former run has left, so that nothing old is taken for new."""
    for file in (places.exits / id, bundle / "persist" / "oom", bundle / "persist" / "exit", bundle / "pid", bundle / "conmon.pid"):
        file.unlink(missing_ok=True)
    for name in ("attach", "ctl", "winsz"):
        (bundle / name).unlink(missing_ok=True)
    (bundle / "runtime.log").unlink(missing_ok=True)


# talking to it


def _control(bundle: Path, message: str) -> None:
    """Raises Conflict when nobody reads: the container has ended, or its conmon was killed."""
    try:
        fd = os.open(bundle / "ctl", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.write(fd, message.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise Conflict(f"the container's monitor is gone: {error.strerror}") from None


def resize(bundle: Path, rows: int, columns: int) -> None:
    _control(bundle, f"1 {rows} {columns}\n")


def reopen_log(bundle: Path) -> None:
    """After its file was renamed: later lines go to a new one of the old name."""
    _control(bundle, "2 0 0\n")


def settle() -> None:
    """Until conmon has taken every connection to an attach socket that waits to be accepted; a second at most.

    conmon sends what it reads to whom it has accepted: output that came first would be lost to us. A connection that waits has no inode
    of its own yet and is listed as connecting (state 02 of a SEQPACKET socket, 0005).
    """
    end = time.monotonic() + 1
    while time.monotonic() < end:
        with open("/proc/net/unix", errors="replace") as table:
            if not any(line.rstrip().endswith("/attach") and line.split()[4:6] == ["0005", "02"] for line in table):
                return
        time.sleep(0.001)


def connect(bundle: Path) -> socket.socket:
    """A connection to the attach socket, non-blocking. Goes through a descriptor, so that the path may have any length."""
    base = os.open(bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        connection.connect(f"/proc/self/fd/{base}/attach")
        connection.setblocking(False)
    except OSError as error:
        connection.close()
        raise SkepError(f"cannot attach: the container's monitor is gone: {error.strerror}") from None
    finally:
        os.close(base)
    return connection
