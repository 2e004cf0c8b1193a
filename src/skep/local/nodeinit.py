"""Puts a process where a node of the one-machine cluster lives: its cgroups, its namespaces, its terminal; then becomes it.

Run as a file by the same Python (`python -I -S nodeinit.py JSON`) with nothing but the standard library, so that entering a node costs
some 20 ms. It is what `nsenter`, `unshare`, `setsid` and a shell would be together, without a shell. Its argument is a JSON object, whose
parts are done in this order:

    cgroups   folders whose cgroup.procs this process joins first
    ns        files of namespaces to enter, in order
    new       make a mount namespace (a slave of the host's) and a UTS namespace
    mounts    [source, target, type, flags, data] to mount; a null source: unmount everything below target, and all nsfs
    hostname  name to set in the (new) UTS namespace
    hold      say `ready`, and wait until standard input ends: somebody pins the namespaces
    daemon    no limit of open files that was meant for a shell, a plain umask, no signal ignored
    detach    leave the caller: go on as a child of the host's first process, in a session of its own
    ctty      make standard input the controlling terminal of a new session
    user      [uid, gid, other gids]
    cwd, env, argv    what to become; no argv: that was all

What fails is one line on standard error, and exit code 126 (127: no such program).
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import signal
import sys
import termios

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

CLONE_NEWNS, CLONE_NEWUTS = 0x20000, 0x4000000
MS_REC, MS_SLAVE, MNT_DETACH = 16384, 1 << 19, 2
FILES = 1 << 20

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def main(job: dict[str, Any]) -> None:
    for folder in job.get("cgroups", ()):
        with open(f"{folder}/cgroup.procs", "w") as f:
            f.write("0")
    fds = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in job.get("ns", ())]
    for fd in fds:
        checked(libc.setns(fd, 0), "setns")
        os.close(fd)
    if job.get("new"):
        checked(libc.unshare(CLONE_NEWNS | CLONE_NEWUTS), "unshare")
        checked(libc.mount(None, b"/", None, ctypes.c_ulong(MS_REC | MS_SLAVE), None), "/")
    for source, target, kind, flags, data in job.get("mounts", ()):
        if source is None:
            clear(target)
        else:
            checked(
                libc.mount(source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None),
                f"mount {source} on {target}",
            )
    if name := job.get("hostname"):
        checked(libc.sethostname(name.encode(), len(name.encode())), "sethostname")
    if job.get("hold"):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.read()
    if job.get("daemon"):
        as_daemon()
    if job.get("detach"):
        if os.fork():
            os._exit(0)
        os.setsid()
    if job.get("ctty"):
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    if job.get("argv"):
        become(job)


def clear(target: str) -> None:
    """Unmount all that is mounted below, and pins of namespaces wherever they are. Copies of others' mounts would keep what they stand for
    alive after its end."""
    below = os.fsencode(target).rstrip(b"/") + b"/"
    with open("/proc/self/mountinfo", "rb") as table:
        lines = [(line.split(b" ")[4].decode("unicode_escape").encode("latin-1"), b" - nsfs " in line) for line in table]
    for path, pin in reversed(lines):
        if pin or path.startswith(below):
            libc.umount2(path, MNT_DETACH)


def as_daemon() -> None:
    os.umask(0o022)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for most in (max(hard, FILES), hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            return
        except (OSError, ValueError):
            continue


def become(job: dict[str, Any]) -> None:
    # Python ignores it, and what is started would too: `yes | head -1` would complain
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if user := job.get("user"):
        os.setgroups(user[2])
        os.setgid(user[1])
        os.setuid(user[0])
    cwd, argv = job.get("cwd") or "/", job["argv"]
    try:
        os.chdir(cwd)
    except OSError as e:
        fail(f'chdir to cwd ("{cwd}"): {why(e)}', 126)
    env = job.get("env") or dict(os.environ)
    # not os.execvpe: it imports more, which a user without rights cannot read
    folders = [""] if "/" in argv[0] else [f"{folder}/" for folder in env.get("PATH", os.defpath).split(":") if folder]
    denied = ""
    for folder in folders:
        try:
            os.execve(folder + argv[0], argv, env)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as e:
            denied = denied or why(e)
    if denied:
        fail(f'exec: "{argv[0]}": {denied}', 126)
    fail(f'exec: "{argv[0]}": ' + ("no such file or directory" if "/" in argv[0] else "executable file not found in $PATH"), 127)


def why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def fail(text: str, code: int) -> NoReturn:
    os.write(2, (text + "\n").encode(errors="replace"))
    os._exit(code)


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]))
    except OSError as error:
        fail(f"{error.filename or 'nodeinit'}: {why(error)}", 126)
