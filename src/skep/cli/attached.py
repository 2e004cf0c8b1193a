"""A container in the foreground: its streams, the signals that it gets, and how it ended. For `run`, `start -a` and `attach`."""

from __future__ import annotations

import json
import signal

from skep.cli.hijack import attach as join
from skep.cli.hijack import detach_keys
from skep.cli.shell import Failed
from skep.client import node
from skep.errors import SkepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from skep.cli.shell import Shell
    from skep.client.unix import Answer

NOT_PASSED_ON = frozenset(["SIGKILL", "SIGSTOP", "SIGCHLD", "SIGCLD", "SIGPIPE", "SIGURG", "SIGWINCH", "SIGTTIN", "SIGTTOU"])
"""The window's size goes another way, and a command in the background is not to stop its container."""


def chosen_keys(shell: Shell, given: str) -> str:
    """`--detach-keys`, else what Docker's config.json says; "" for the usual ones."""
    from skep.cli.registry import kept

    return given or str(kept(shell).get("detachKeys") or "")


def check_terminal(shell: Shell, attach_stdin: bool, tty: bool) -> None:
    if attach_stdin and tty and not shell.input.isatty():
        raise Failed("the input device is not a TTY")


class Signals:
    """While it is entered, signals go to the container instead of ending this command. `there` False: nothing is changed."""

    def __init__(self, shell: Shell, container: str, *, there: bool = True) -> None:
        self.shell = shell
        self.container = container
        self.there = there
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for one in signal.Signals if self.there else ():
            if one.name not in NOT_PASSED_ON and one < signal.SIGRTMIN:
                try:
                    self.before[one] = signal.signal(one, self._pass_on)
                except (OSError, ValueError):
                    pass
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            if handler is not None:
                signal.signal(number, handler)

    def _pass_on(self, number: int, _: object) -> None:
        from skep.client.unix import Engine

        name = signal.Signals(number).name.removeprefix("SIG")
        engine = Engine(self.shell.address)
        try:
            engine.call(node.container_kill(self.container, name))
        except (OSError, SkepError):
            pass
        finally:
            engine.close()


def attach(shell: Shell, id: str, config: dict[str, Any], keys: str) -> Answer:
    """`config` says which streams. Before the start, so that nothing is lost."""
    if keys:
        detach_keys(keys)
    return shell.engine.hijack(
        node.container_attach(id, stdin=config["AttachStdin"], stdout=config["AttachStdout"], stderr=config["AttachStderr"], keys=keys)
    )


def stream(shell: Shell, answer: Answer, id: str, config: dict[str, Any], keys: str, waited: Answer | None = None) -> bool:
    """Until the container's streams end; True when the user has detached."""
    return join(
        shell,
        answer,
        tty=config["Tty"],
        interactive=config["AttachStdin"],
        resize=lambda rows, columns: node.container_resize(id, rows, columns),
        keys=keys,
        ends=None if config["AttachStdout"] or config["AttachStderr"] else waited,
    )


def drain(shell: Shell, answer: Answer, tty: bool) -> None:
    """What is there already, without waiting for more."""
    from skep.cli.hijack import ready_blocks
    from skep.cli.service_logs import frames, write

    blocks = ready_blocks(answer)
    for number, data in ((1, block) for block in blocks) if tty else frames(blocks):
        write(shell, number, data)
    answer.close()


def status_of(answer: Answer) -> int:
    """How it ended, from POST /wait; 125 when that cannot be told."""
    try:
        found = json.loads(answer.read())
    except (OSError, ValueError, SkepError):
        return 125
    return 125 if (found.get("Error") or {}).get("Message") else int(found.get("StatusCode", 125))


def failed_start(error: Exception) -> int:
    """127: there is no such command. 126: it may not be executed. 125: anything else."""
    text = str(error)
    if any(part in text for part in ("executable file not found", "no such file or directory", "system cannot find the file specified")):
        return 127
    return 126 if "permission denied" in text or "is a directory" in text else 125


def redraw(shell: Shell, id: str) -> None:
    """A program draws its screen again when its size changes: it is told another one, the right one follows."""
    import os

    try:
        size = os.get_terminal_size(shell.out.fileno())
        shell.call(node.container_resize(id, size.lines + 1, size.columns + 1))
    except (OSError, ValueError, SkepError):
        pass
