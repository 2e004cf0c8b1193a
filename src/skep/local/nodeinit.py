"""Puts a process where a node of the one-machine cluster lives: its cgroups, its namespaces, its terminal; then becomes it.

Run as a file by the same Python (`python -I -S nodeinit.py JSON`) with nothing but the standard library, so that entering a node costs
some 20 ms. It is what `nsenter`, `setsid` and a shell would be together, without a shell. Its argument is a JSON object:

    cgroups   folders whose cgroup.procs this process joins first
    ns        files of namespaces to enter, in order
    mounts    [source, target, type, flags, data] to mount, in order (when a node's mount namespace is made)
    hostname  name to set in the (new) UTS namespace
    detach    leave the caller: go on as a child of the host's first process, in a session of its own
    ctty      make standard input the controlling terminal of a new session
    cwd, env, argv    what to become; no argv: exit after the mounts
"""

import ctypes
import fcntl
import json
import os
import sys
import termios


def main(argument: str) -> None:
    job = json.loads(argument)
    libc = ctypes.CDLL(None, use_errno=True)
    for folder in job.get("cgroups", ()):
        with open(f"{folder}/cgroup.procs", "w") as f:
            f.write("0")
    fds = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in job.get("ns", ())]
    for fd in fds:
        if libc.setns(fd, 0):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(fd)
    for source, target, kind, flags, data in job.get("mounts", ()):
        if libc.mount(source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None):
            number = ctypes.get_errno()
            raise OSError(number, f"mount {source} on {target}: {os.strerror(number)}")
    if name := job.get("hostname"):
        raw = name.encode()
        if libc.sethostname(raw, len(raw)):
            raise OSError(ctypes.get_errno(), "sethostname")
    if job.get("detach"):
        if os.fork():
            os._exit(0)
        os.setsid()
    if job.get("ctty"):
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    if not job.get("argv"):
        return
    try:
        os.chdir(job.get("cwd") or "/")
    except OSError as e:
        fail(f"{job['cwd']}: {e.strerror}", 126)
    env = job.get("env") or dict(os.environ)
    try:
        os.execvpe(job["argv"][0], job["argv"], env)
    except FileNotFoundError:
        fail(f'exec: "{job["argv"][0]}": executable file not found in $PATH', 127)
    except OSError as e:
        fail(f'exec: "{job["argv"][0]}": {e.strerror}', 126)


def fail(text: str, code: int) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1])
