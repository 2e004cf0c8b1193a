"""What a command may touch of the world: where it prints, the time, the environment, the daemon. Tests give their own."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, TextIO

    from skep.client.address import Address
    from skep.client.calls import Call
    from skep.client.unix import Answer, Engine


class Failed(Exception):
    """A command's own error: printed as it is. `code` is the exit status."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class Shell:
    """`now` in ns since 1970, `sleep` in seconds."""

    def __init__(
        self,
        out: TextIO,
        err: TextIO,
        environ: Mapping[str, str],
        now: Callable[[], int],
        sleep: Callable[[float], None],
        input: TextIO | None = None,
    ) -> None:
        self.out = out
        self.err = err
        self.environ = environ
        self.now = now
        self.sleep = sleep
        self.input = input or sys.stdin
        self.host = ""
        self.tls: tuple[str, bool] | None = None
        self._engine: Engine | None = None

    @property
    def address(self) -> Address:
        from skep.client.address import find_address

        return find_address(self.host, self.environ, self.tls)

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            from skep.client.unix import Engine

            self._engine = Engine(self.address)
        return self._engine

    def call(self, call: Call) -> Any:
        """The answer's JSON."""
        return self.engine.call(call)

    def open(self, call: Call) -> Answer:
        return self.engine.open(call)

    def print(self, text: str = "", end: str = "\n") -> None:
        self.out.write(text + end)

    def warn(self, text: str) -> None:
        self.err.write(text + "\n")

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()


def width_of(stream: TextIO) -> int:
    """Columns of the terminal; 80 where there is none."""
    import os

    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def message_of(error: Exception) -> str:
    """As Docker's command line shows it."""
    from skep.client.unix import ApiError

    text = getattr(error, "message", None) or str(error)
    return f"Error response from daemon: {text}" if isinstance(error, ApiError) else text


def for_each(shell: Shell, names: list[str], act: Callable[[str], None]) -> int:
    """Do all, then say what failed; 1 if anything did."""
    from skep.errors import SkepError

    failed = []
    for name in names:
        try:
            act(name)
        except (SkepError, Failed) as error:
            failed.append(message_of(error))
    shell.out.flush()
    for text in failed:
        shell.warn(text)
    return 1 if failed else 0


def confirmed(shell: Shell, warning: str) -> bool:
    shell.print(f"{warning}\nAre you sure you want to continue? [y/N] ", end="")
    shell.out.flush()
    return shell.input.readline().strip().lower() == "y"


def side_by_side(shell: Shell, names: list[str], make: Callable[[str], Call], forgiven: Callable[[Exception], bool] | None = None) -> int:
    """One call for each name, all at the same time (stopping ten containers takes as long as one); names in their order, then what
    failed. What is `forgiven` is told and no failure.
    """
    from skep.errors import SkepError

    results: list[Exception | None] = [None] * len(names)

    def act(n: int) -> None:
        from skep.client.unix import Engine

        engine = Engine(shell.address)
        try:
            engine.call(make(names[n]))
        except (SkepError, OSError) as error:
            results[n] = error
        finally:
            engine.close()

    if len(names) == 1:
        act(0)
    else:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(50) as pool:
            list(pool.map(act, range(len(names))))
    failed = []
    for name, error in zip(names, results, strict=True):
        if error is None:
            shell.print(name)
        elif forgiven is not None and forgiven(error):
            shell.warn(message_of(error))
        else:
            failed.append(message_of(error))
    if failed:
        shell.out.flush()
        raise Failed("\n".join(failed))
    return 0
