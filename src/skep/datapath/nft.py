"""nftables, in this process through libnftables (0.2 ms an update), or through `nft -f -` where the library is missing (5 ms).

Promises: one text is one transaction: it takes effect as a whole or not at all. A handle belongs to the namespace its thread was in when
it was made, and to one thread. What the kernel refuses comes back as NftError with the line and the caret below it. See docs/network.md.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from functools import cache
from typing import Protocol

from skep.datapath.netns import entered
from skep.errors import SkepError


class NftError(SkepError):
    """The text was refused. `message` is one line: what is wrong, and the words the caret points at. `details` is all that nft said."""

    def __init__(self, details: str, script: str) -> None:
        lines = [line for line in details.splitlines() if line.strip()]
        self.details, self.script = "\n".join(lines), script
        first = lines[0] if lines else "failed without a word"
        said = first.partition("Error: ")[2] or first
        marks = next((i for i, line in enumerate(lines) if i and set(line) <= set(" ^~")), 0)
        if marks:
            start, end = lines[marks].index("^"), len(lines[marks].rstrip())
            said += f", at: {lines[marks - 1][start:end].strip()}"
        super().__init__(f"nft: {said}")


class Rules(Protocol):
    """Runs texts in one namespace."""

    changes: int
    """Texts carried out that were no `list`: each is one generation of the namespace's rules."""

    def run(self, script: str) -> str:
        """Returns what a `list` printed."""
        ...

    def close(self) -> None: ...


@cache
def _library() -> ctypes.CDLL | None:
    """libnftables, or None. Loaded once."""
    try:
        lib = ctypes.CDLL("libnftables.so.1")
    except OSError:
        return None
    lib.nft_ctx_new.restype = ctypes.c_void_p
    lib.nft_ctx_new.argtypes = [ctypes.c_uint32]
    lib.nft_ctx_free.argtypes = [ctypes.c_void_p]
    lib.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    for kind in ("output", "error"):
        getattr(lib, f"nft_ctx_buffer_{kind}").argtypes = [ctypes.c_void_p]
        get = getattr(lib, f"nft_ctx_get_{kind}_buffer")
        get.argtypes, get.restype = [ctypes.c_void_p], ctypes.c_char_p
    return lib


def _program() -> str | None:
    return shutil.which("nft", path="/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin")


class Library:
    """libnftables. `namespace` is an open descriptor: some versions open their socket with the context, some with each command."""

    def __init__(self, lib: ctypes.CDLL, namespace: int) -> None:
        self._lib, self._namespace = lib, namespace
        self.changes = 0
        with entered(namespace):
            self._context = ctypes.c_void_p(lib.nft_ctx_new(0))
        lib.nft_ctx_buffer_output(self._context)
        lib.nft_ctx_buffer_error(self._context)

    def run(self, script: str) -> str:
        with entered(self._namespace):
            failed = self._lib.nft_run_cmd_from_buffer(self._context, script.encode())
        said: bytes = self._lib.nft_ctx_get_output_buffer(self._context) or b""
        wrong: bytes = self._lib.nft_ctx_get_error_buffer(self._context) or b""
        if failed:
            raise NftError(self._located(script) or wrong.decode(errors="replace"), script)
        self.changes += not script.startswith("list ")
        return said.decode(errors="replace")

    def _located(self, script: str) -> str:
        """What the program says of the refused text: the library shows its caret below the first line, whichever line is meant."""
        program = _program()
        if program is None or "\n" not in script.strip():
            return ""
        with entered(self._namespace):
            done = subprocess.run([program, "-c", "-f", "-"], input=script, capture_output=True, text=True, timeout=60, check=False)
        return done.stderr if done.returncode else ""

    def close(self) -> None:
        if self._context:
            self._lib.nft_ctx_free(self._context)
            self._context = ctypes.c_void_p(None)


class Command:
    """`nft -f -`, a process for each text."""

    def __init__(self, program: str, namespace: int) -> None:
        self._program, self._namespace = program, namespace
        self.changes = 0

    def run(self, script: str) -> str:
        with entered(self._namespace):
            done = subprocess.run([self._program, "-f", "-"], input=script, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise NftError(done.stderr, script)
        self.changes += not script.startswith("list ")
        return done.stdout

    def close(self) -> None:
        pass


def rules(namespace: int, *, library: bool = True) -> Rules:
    """A handle for the namespace of this descriptor, which must stay open as long as the handle is used."""
    lib = _library() if library else None
    if lib is not None:
        return Library(lib, namespace)
    program = _program()
    if program is None:
        raise SkepError("neither libnftables.so.1 nor the program nft is here: install nftables (the library alone does)")
    return Command(program, namespace)
