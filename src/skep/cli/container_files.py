"""`skep cp`, `skep export`: files of a container. The tar archives themselves are in `archive`."""

from __future__ import annotations

import base64
import json
import os

from skep.cli.flags import Command, Flag
from skep.cli.image_files import standard_input, write_bytes, write_out
from skep.cli.shell import Failed
from skep.client import node
from skep.client.unix import ApiError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from skep.cli.flags import Values
    from skep.cli.shell import Shell
    from skep.client.unix import Answer

DIRECTORY, LINK = 1 << 31, 1 << 27
"""Go's bits in a mode."""


def export(shell: Shell, values: Values, names: list[str]) -> int:
    write_out(shell, node.container_export(names[0]), values["output"] or "", "export container")
    return 0


def copy(shell: Shell, values: Values, paths: list[str]) -> int:
    for path, what in zip(paths, ("source", "destination"), strict=True):
        if not path:
            raise Failed(f"{what} can not be empty")
    (from_container, source), (to_container, target) = (split(path) for path in paths)
    if from_container and to_container:
        raise Failed("copying between containers is not supported")
    if from_container:
        return _out(shell, values, from_container, source, target)
    if to_container:
        return _in(shell, values, to_container, source, target)
    raise Failed("must specify at least one container source")


def split(text: str) -> tuple[str, str]:
    """`container:path`; a path of this machine that has a colon is written with its folder (`./a:b`)."""
    name, found, path = text.partition(":")
    if text.startswith("/") or not found or name.startswith("."):
        return "", text
    return name, path


def local(path: str) -> str:
    """Absolute; what the end of the path says (`/`, `/.`) is kept."""
    whole = os.path.abspath(path)
    if path.endswith("/.") or path == ".":
        return whole.rstrip("/") + "/."
    return whole if not path.endswith("/") or whole.endswith("/") else whole + "/"


def parent(path: str) -> str:
    return os.path.dirname(path.rstrip("/")) or "/"


def base(path: str) -> str:
    """The last name; "." where the contents of a folder are meant."""
    return os.path.basename(path if path.endswith("/.") else path.rstrip("/")) or "/"


# out of a container


def _out(shell: Shell, values: Values, container: str, source: str, target: str) -> int:
    from skep.cli.archive import Unpacked

    if target != "-":
        target = local(target)
        folder = os.path.dirname(os.path.normpath(target))
        if not os.path.exists(folder):
            raise Failed(f'invalid output path: directory "{folder}" does not exist')
        if os.path.exists(target) and not os.path.isdir(target) and not os.path.isfile(target):
            raise Failed(f'invalid output path: "{target}" must be a directory or a regular file')
    name = base(source)
    if values["follow-link"]:
        source = _followed(shell, container, source)
    answer = shell.open(node.archive_get(container, source))
    if target == "-":
        if shell.out.isatty():
            raise Failed("cowardly refusing to write an archive to a terminal: redirect the output")
        for block in answer.blocks():
            write_bytes(shell, block)
        return 0
    folder_wanted = bool(_stat(answer)["mode"] & DIRECTORY)
    place, new = destination(target, os.path.exists(target), os.path.isdir(target), folder_wanted, name)
    unpacked = Unpacked(os.path.realpath(place), base(source), new, owners=values["archive"])
    size = unpacked.run(answer.blocks())
    _tell(shell, values, size, target)
    return 0


def destination(path: str, exists: bool, is_folder: bool, from_folder: bool, name: str) -> tuple[str, str]:
    """(the folder to unpack in, the name there). Docker's rules, which are those of cp -r but for a folder that is not there."""
    if exists and is_folder:
        return path, name
    if exists and from_folder:
        raise Failed("cannot copy directory")
    if not exists and not from_folder and path.endswith(("/", "/.")):
        raise Failed("no such directory")
    return parent(path), base(path.removesuffix("/."))


def _followed(shell: Shell, container: str, path: str) -> str:
    stat = _stat_of(shell, container, path)
    if stat is None or not stat["mode"] & LINK:
        return path
    target = str(stat["linkTarget"])
    return target if target.startswith("/") else os.path.normpath(os.path.join(parent(path), target))


def _stat(answer: Answer) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(base64.b64decode(answer.headers["x-docker-container-path-stat"]))
    return found


def _stat_of(shell: Shell, container: str, path: str) -> dict[str, Any] | None:
    try:
        answer = shell.open(node.archive_stat(container, path))
    except ApiError:
        return None
    answer.read()
    return _stat(answer)


# into a container


def _in(shell: Shell, values: Values, container: str, source: str, target: str) -> int:
    from skep.cli.archive import packed

    path = target
    stat = _stat_of(shell, container, path)
    if stat is not None and stat["mode"] & LINK:
        path = _followed(shell, container, path)
        stat = _stat_of(shell, container, path)
    is_folder = stat is not None and bool(stat["mode"] & DIRECTORY)
    if source == "-":
        if not is_folder:
            raise Failed(f'destination "{container}:{target}" must be a directory')
        shell.call(node.archive_put(container, path, standard_input(shell), values["archive"]))
        return 0
    source = local(source)
    found = os.path.realpath(source) if values["follow-link"] else source
    try:
        from_folder = os.path.isdir(found) and (found.endswith(("/", "/.")) or not os.path.islink(found))
        os.lstat(found)
    except OSError as error:
        raise Failed(f"lstat {source}: {(error.strerror or '').lower()}") from None
    if source.endswith(("/", "/.")) and not from_folder:
        raise Failed("not a directory")
    place, new = destination(path, stat is not None, is_folder, from_folder, base(source))
    sent = 0

    def counted() -> Iterator[bytes]:
        nonlocal sent
        for block in packed(found, new):
            sent += len(block)
            yield block

    shell.call(node.archive_put(container, place, counted(), values["archive"]))
    _tell(shell, values, sent, f"{container}:{path}")
    return 0


def _tell(shell: Shell, values: Values, size: int, where: str) -> None:
    from skep.cli.words import decimal_size

    if not values.get("quiet", not shell.out.isatty()):
        shell.warn(f"Successfully copied {decimal_size(size)} to {where}")


COMMANDS = {
    "container cp": Command(
        "container cp",
        "[OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-\n\tskep cp [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH",
        "Copy files/folders between a container and the local filesystem",
        copy,
        (
            Flag("archive", "bool", "Archive mode (copy all uid/gid information)", "a"),
            Flag("follow-link", "bool", "Always follow symbol link in SRC_PATH", "L"),
            Flag(
                "quiet",
                "bool",
                "Suppress progress output during copy. Progress output is automatically suppressed if no terminal is attached",
                "q",
            ),
        ),
        least=2,
        most=2,
        aliases=("container cp", "cp"),
        details=(
            "Copy files/folders between a container and the local filesystem\n\nUse '-' as the source to read a tar archive from stdin\n"
            "and extract it to a directory destination in a container.\nUse '-' as the destination to stream a tar archive of a\n"
            "container source to stdout."
        ),
    ),
    "container export": Command(
        "container export",
        "[OPTIONS] CONTAINER",
        "Export a container's filesystem as a tar archive",
        export,
        (Flag("output", "string", "Write to a file, instead of STDOUT", "o"),),
        least=1,
        most=1,
        aliases=("container export", "export"),
    ),
}
