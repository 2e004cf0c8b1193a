"""`skep images`, `tag`, `rmi`, `history`, `image inspect`, `image prune`."""

from __future__ import annotations

import json
import time

from skep.cli.flags import Command, Flag, split_list
from skep.cli.image_names import ID, named
from skep.cli.names import short
from skep.cli.shell import Failed, confirmed, message_of
from skep.cli.table import FORMAT, FORMAT_INSPECT, render
from skep.cli.words import SECOND, decimal_size, human_duration, shorten
from skep.client import calls, node
from skep.client.unix import ApiError
from skep.errors import SkepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from skep.cli.flags import Values
    from skep.cli.shell import Shell

COLUMNS = [("Repository", "REPOSITORY"), ("Tag", "TAG"), ("ID", "IMAGE ID"), ("CreatedSince", "CREATED"), ("Size", "SIZE")]
DIGEST = ("Digest", "DIGEST")
HEADERS = {
    **dict([*COLUMNS, DIGEST]),
    "CreatedAt": "CREATED AT",
    "Containers": "CONTAINERS",
    "VirtualSize": "SIZE",
    "SharedSize": "SHARED SIZE",
    "UniqueSize": "UNIQUE SIZE",
}
NONE = "<none>"
PRUNE = "WARNING! This will remove all images without at least one container associated to them."
PRUNE_DANGLING = "WARNING! This will remove all dangling images."


def list_images(shell: Shell, values: Values, names: list[str]) -> int:
    if values["tree"]:
        raise Failed("--tree shows the platforms of an image: here it has one")
    filters = {key: list(found) for key, found in values.filters().items()}
    if names:
        filters.setdefault("reference", []).append(names[0])
    form = values["format"] or ""
    digests = values["digests"] or ("{{.Digest}}" in form)
    now, whole = shell.now(), values["no-trunc"]
    found = shell.call(node.image_list(filters, all=values["all"]))
    rows = [row(image, names, now, whole) for image in found for names in references(image, digests, values["digests"])]
    if values["quiet"] and not form:
        for one in rows:
            shell.print(one["ID"])
        return 0
    columns = [*COLUMNS[:2], DIGEST, *COLUMNS[2:]] if values["digests"] else COLUMNS
    shell.print(render(columns, rows, form, HEADERS), end="")
    return 0


def references(image: dict[str, Any], with_digest: bool, each_digest: bool) -> list[tuple[str, str, str]]:
    """(repository, tag, digest) for each line: a line for each tag, a line for a repository that is known by digest only."""
    tags: dict[str, list[str]] = {}
    digests: dict[str, list[str]] = {}
    for text in image.get("RepoTags") or ():
        name, _, tag = text.rpartition(":")
        if name != NONE:
            tags.setdefault(name, []).append(tag)
    for text in image.get("RepoDigests") or ():
        name, _, digest = text.partition("@")
        if name != NONE:
            digests.setdefault(name, []).append(digest)
    if not tags and not digests:
        return [(NONE, NONE, NONE)]
    lines = []
    for name, found in tags.items():
        known = digests.pop(name, []) if with_digest else digests.pop(name, []) and []
        lines += [(name, tag, digest) for tag in found for digest in known or [NONE]]
    for name, found in digests.items():
        lines += [(name, NONE, digest) for digest in found] if each_digest else [(name, NONE, "")]
    return lines


def row(image: dict[str, Any], names: tuple[str, str, str], now: int, whole: bool) -> dict[str, Any]:
    created, size, shared, used = image["Created"], image["Size"], image.get("SharedSize", -1), image.get("Containers", -1)
    return {
        "Repository": names[0],
        "Tag": names[1],
        "Digest": names[2],
        "ID": image["Id"] if whole else short(image["Id"]),
        "CreatedSince": f"{human_duration(now - created * SECOND)} ago" if created else "N/A",
        "CreatedAt": time.strftime("%Y-%m-%d %H:%M:%S %z %Z", time.localtime(created)),
        "Size": decimal_size(size),
        "VirtualSize": decimal_size(size, 4),
        "Containers": "N/A" if used == -1 else str(used),
        "SharedSize": "N/A" if shared == -1 else decimal_size(shared, 4),
        "UniqueSize": "N/A" if shared == -1 else decimal_size(size - shared, 4),
    }


def tag(shell: Shell, _: Values, names: list[str]) -> int:
    source, target = names
    try:
        name = named(target)
    except Failed as error:
        raise Failed(f'Error parsing reference: "{target}" is not a valid repository/tag: {error}') from None
    if name.digest:
        raise Failed("refusing to create a tag with a digest reference")
    if not ID.fullmatch(source):
        try:
            named(source)
        except Failed as error:
            raise Failed(f'Error parsing reference: "{source}" is not a valid repository/tag: {error}') from None
    shell.call(node.image_tag(source, name.name, name.tag or "latest"))
    return 0


def remove(shell: Shell, values: Values, names: list[str]) -> int:
    failed, gone = [], True
    platforms = [platform(text) for text in split_list(values["platform"])]
    for name in names:
        try:
            deleted = shell.call(node.image_remove(name, force=values["force"], keep_parents=values["no-prune"], platforms=platforms))
        except SkepError as error:
            failed.append(message_of(error))
            gone = gone and isinstance(error, ApiError) and error.status == 404
            continue
        for one in deleted or ():
            shell.print(f"Deleted: {one['Deleted']}" if one.get("Deleted") else f"Untagged: {one.get('Untagged', '')}")
    shell.out.flush()
    for text in failed:
        shell.warn(text)
    return 1 if failed and not (values["force"] and gone) else 0


def platform(text: str) -> str:
    """`linux/arm/v7` -> what the API wants: JSON. Raises Failed."""
    parts = text.split("/")
    if not 1 <= len(parts) <= 3 or not all(parts):
        raise Failed(f'"{text}": unknown operating system or architecture: invalid argument')
    return json.dumps(dict(sorted(zip(("os", "architecture", "variant"), parts, strict=False))), separators=(",", ":"))


# history

HISTORY = [("ID", "IMAGE"), ("CreatedSince", "CREATED"), ("CreatedBy", "CREATED BY"), ("Size", "SIZE"), ("Comment", "COMMENT")]
BY_CLOCK = [(key, "CREATED AT") if key == "CreatedSince" else (key, title) for key, title in HISTORY]


def history(shell: Shell, values: Values, names: list[str]) -> int:
    whole, human, form = values["no-trunc"], values.get("human", True), values["format"] or ""
    chosen = platform(values["platform"]) if values["platform"] else ""
    layers = shell.call(node.image_history(names[0], chosen))
    rows = [_layer(layer, shell.now(), whole, human) for layer in layers]
    if values["quiet"] and not form:
        for one in rows:
            shell.print(one["ID"])
        return 0
    shell.print(render(HISTORY if human else BY_CLOCK, rows, form, {**dict(HISTORY), "CreatedAt": "CREATED AT"}), end="")
    return 0


def _layer(layer: dict[str, Any], now: int, whole: bool, human: bool) -> dict[str, Any]:
    command = layer.get("CreatedBy", "").replace("\t", " ")
    created = layer["Created"]
    clock = _local(created)
    return {
        "ID": layer["Id"] if whole or layer["Id"] == "<missing>" else short(layer["Id"]),
        "CreatedAt": clock,
        "CreatedSince": (f"{human_duration(now - created * SECOND)} ago" if human else clock) if created else "",
        "CreatedBy": command if whole else shorten(command, 45),
        "Size": decimal_size(layer["Size"]) if human else str(layer["Size"]),
        "Comment": layer.get("Comment", ""),
    }


def _local(seconds: int) -> str:
    zone = time.strftime("%z", time.localtime(seconds))
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds)) + ("Z" if zone == "+0000" else f"{zone[:3]}:{zone[3:]}")


def inspect(shell: Shell, values: Values, names: list[str]) -> int:
    from skep.cli.inspect import show

    chosen = platform(values["platform"]) if values["platform"] else None

    def get(name: str) -> Any:
        call = calls.inspect("images", name)
        if chosen:
            call.query["platform"] = chosen
        return shell.call(call)

    return show(shell, names, values["format"] or "", get)


def prune(shell: Shell, values: Values, _: list[str]) -> int:
    if not values["force"] and not confirmed(shell, PRUNE if values["all"] else PRUNE_DANGLING):
        return 0
    text, size = prune_images(shell, values, all=values["all"])
    shell.print(f"{text}Total reclaimed space: {decimal_size(size, 4)}")
    return 0


def prune_images(shell: Shell, values: Values, *, all: bool) -> tuple[str, int]:
    """(what was deleted, bytes)."""
    filters = {**values.filters(), "dangling": ["false" if all else "true"]}
    found = shell.call(node.prune("images", filters))
    lines = [
        f"untagged: {one['Untagged']}\n" if one.get("Untagged") else f"deleted: {one.get('Deleted', '')}\n"
        for one in found.get("ImagesDeleted") or ()
    ]
    return ("Deleted Images:\n" + "".join(lines) + "\n" if lines else ""), found.get("SpaceReclaimed", 0)


COMMANDS = {
    "image ls": Command(
        "image ls",
        "[OPTIONS] [REPOSITORY[:TAG]]",
        "List images",
        list_images,
        (
            Flag("all", "bool", "Show all images (default hides intermediate images)", "a"),
            Flag("digests", "bool", "Show digests"),
            Flag("filter", "filter", "Filter output based on conditions provided", "f"),
            Flag("format", "string", FORMAT),
            Flag("no-trunc", "bool", "Don't truncate output"),
            Flag("quiet", "bool", "Only show image IDs", "q"),
            Flag("tree", "bool", "List multi-platform images as a tree (EXPERIMENTAL)"),
        ),
        most=1,
        aliases=("image ls", "image list", "images"),
    ),
    "image tag": Command(
        "image tag",
        "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]",
        "Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE",
        tag,
        least=2,
        most=2,
        aliases=("image tag", "tag"),
    ),
    "image rm": Command(
        "image rm",
        "[OPTIONS] IMAGE [IMAGE...]",
        "Remove one or more images",
        remove,
        (
            Flag("force", "bool", "Force removal of the image", "f"),
            Flag("no-prune", "bool", "Do not delete untagged parents"),
            Flag("platform", "strings", 'Remove only the given platform variant. Formatted as "os[/arch[/variant]]" (e.g., "linux/amd64")'),
        ),
        least=1,
        most=None,
        aliases=("image rm", "image remove", "rmi"),
    ),
    "image history": Command(
        "image history",
        "[OPTIONS] IMAGE",
        "Show the history of an image",
        history,
        (
            Flag("format", "string", FORMAT),
            Flag("human", "bool", "Print sizes and dates in human readable format", "H", "true"),
            Flag("no-trunc", "bool", "Don't truncate output"),
            Flag("platform", "string", 'Show history for the given platform. Formatted as "os[/arch[/variant]]" (e.g., "linux/amd64")'),
            Flag("quiet", "bool", "Only show image IDs", "q"),
        ),
        least=1,
        most=1,
        aliases=("image history", "history"),
    ),
    "image inspect": Command(
        "image inspect",
        "[OPTIONS] IMAGE [IMAGE...]",
        "Display detailed information on one or more images",
        inspect,
        (
            Flag("format", "string", FORMAT_INSPECT, "f"),
            Flag(
                "platform",
                "string",
                "Inspect a specific platform of the multi-platform image.\nIf the image or the server is not multi-platform capable, the "
                "command will error out if the platform does not match.\n'os[/arch[/variant]]': Explicit platform (eg. linux/amd64)",
            ),
        ),
        least=1,
        most=None,
    ),
    "image prune": Command(
        "image prune",
        "[OPTIONS]",
        "Remove unused images",
        prune,
        (
            Flag("all", "bool", "Remove all unused images, not just dangling ones", "a"),
            Flag("filter", "filter", 'Provide filter values (e.g. "until=<timestamp>")'),
            Flag("force", "bool", "Do not prompt for confirmation", "f"),
        ),
    ),
}
