"""`docker top`: the processes of a container, which are those in its pid namespace, in the columns `ps` prints."""

from __future__ import annotations

import asyncio
import os
import shlex
from typing import Any

from skep.engine.subprocesses import begin, end
from skep.errors import Invalid, NotImplementedHere, SkepError


def _members(pid: int) -> set[int]:
    """All processes in the same pid namespace as `pid`."""
    try:
        namespace = os.readlink(f"/proc/{pid}/ns/pid")
        own = os.readlink("/proc/self/ns/pid")
    except OSError:
        return {pid}
    if namespace == own:
        return _descendants(pid)
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.readlink(f"/proc/{name}/ns/pid") == namespace:
                    found.add(int(name))
            except OSError:
                continue
    return found


def _descendants(pid: int) -> set[int]:
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


async def top_table(pid: int, arguments: str) -> dict[str, Any]:
    """`{"Titles": [...], "Processes": [[...], ...]}`. Raises SkepError with ps' own words."""
    try:
        words = shlex.split(arguments)
    except ValueError as error:
        raise Invalid(f"invalid ps_args: {error}") from None
    if len(words) > 50:
        raise Invalid("invalid ps_args: too many")
    if "\0" in arguments:
        raise Invalid("invalid ps_args: they hold a null byte")
    members = _members(pid)
    # named one by one: without -e or the like ps shows those of its own terminal only; some options (f) do not go with -q
    code, out, err = await _ps(*words, f"-q{','.join(map(str, sorted(members)))}")
    if code:
        code, out, err = await _ps(*words)
    if code:
        raise SkepError(f"error running ps: {err.decode(errors='replace').strip().splitlines()[0] if err.strip() else code}")
    lines = out.decode(errors="replace").splitlines()
    titles = lines[0].split() if lines else []
    if "PID" not in titles:
        raise SkepError("Couldn't find PID field in ps output")
    at = titles.index("PID")
    rows = []
    for line in lines[1:]:
        fields = line.split(None, len(titles) - 1)
        if len(fields) > at and fields[at].isdigit() and int(fields[at]) in members:
            rows.append(fields)
    return {"Titles": titles, "Processes": rows}


async def _ps(*words: str) -> tuple[int, bytes, bytes]:
    """(exit code, output, complaints)."""
    try:
        process = await begin(
            "ps", *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    except FileNotFoundError:
        raise NotImplementedHere("top needs the ps program on this node (package procps)") from None
    try:
        out, err = await process.communicate()
    finally:
        await end(process)
    return process.returncode or 0, out, err
