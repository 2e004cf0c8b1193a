"""What a measurement makes is removed by a process of its own, once the measurement has ended: by itself, by a signal, by SIGKILL.

`cleared(...)` starts that process and holds a pipe to it; when the pipe closes, it removes. So there is one way for all ends, and it is
used each time. Things are words: ["cluster", NAME]; ["swarm", PROGRAM, DIR, NAME, NET]; ["folder", PATH], which is the processes that have
PATH in their command line, the mounts below it, and itself.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from skep.local import cluster


@contextmanager
def cleared(*things: list[str]) -> Iterator[None]:
    """Remove these things before the block (an earlier run may have been killed with its remover) and after it."""
    remove(things)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    argv = [sys.executable, __file__, json.dumps(things)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True) as remover:
        try:
            yield
        finally:
            assert remover.stdin
            remover.stdin.close()
            # a second Ctrl-C would only leave the remover alone with its work
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            remover.wait()
            signal.signal(signal.SIGINT, signal.default_int_handler)


def swarm_environment(folder: str, name: str, net: str) -> dict[str, str]:
    return {**os.environ, "CLUSTER_DIR": folder, "CLUSTER_NAME": name, "CLUSTER_NET": net}


def remove(things: list[list[str]] | tuple[list[str], ...]) -> None:
    for thing in things:
        try:
            remove_one(*thing)
        except Exception as error:
            print(f"bench: {' '.join(thing)}: {error}", file=sys.stderr)


def remove_one(kind: str, *words: str) -> None:
    if kind == "cluster":
        cluster.down(words[0], say=lambda text: None)
    elif kind == "swarm":
        program, folder, name, net = words
        if not Path(folder).exists():
            return
        try:
            subprocess.run([program, "down"], env=swarm_environment(folder, name, net), check=False, stdout=subprocess.DEVNULL)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    else:
        remove_folder(words[0])


def remove_folder(folder: str) -> None:
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if int(process.name) != os.getpid() and any(word.startswith(folder) for word in words):
                os.kill(int(process.name), signal.SIGKILL)
    for _ in range(100):
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        below = sorted((m for m in mounts if m.startswith(f"{folder}/")), key=len, reverse=True)
        if not below:
            break
        subprocess.run(["umount", "-l", *below], check=False, stderr=subprocess.DEVNULL)
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    remove(json.loads(sys.argv[1]))
