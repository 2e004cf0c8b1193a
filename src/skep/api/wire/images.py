"""Images as Docker's clients see them, and references as they write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from skep.api.wire.times import stamp
from skep.clock import SECOND
from skep.engine.base import Image, Progress
from skep.errors import Invalid

_HOST = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_HOST}(?:\.{_HOST})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_PATH = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[\w][\w.-]{0,127}")
_DIGEST = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}")


def split_reference(text: str) -> tuple[str, str, str]:
    """`host/a/b:tag@digest` -> (name, tag, digest), tag and digest may be empty. Raises Invalid with Docker's sentences."""
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise Invalid("invalid reference format")
    head, slash, path = rest.partition("/")
    if not slash or not ("." in head or ":" in head or head == "localhost" or head.lower() != head):
        head, path = "", rest
    name, colon, tag = path.rpartition(":")
    if not colon or "/" in tag:
        name, colon, tag = path, "", ""
    if (head and not _DOMAIN.fullmatch(head)) or (colon and not (name and tag)) or len(text) > 512:
        raise Invalid("invalid reference format")
    if name.lower() != name and _PATH.fullmatch(name.lower()):
        full = name if head or "/" in name else f"library/{name}"
        raise Invalid(f"invalid reference format: repository name ({full}) must be lowercase")
    if not _PATH.fullmatch(name) or (tag and not _TAG.fullmatch(tag)):
        raise Invalid("invalid reference format")
    return (f"{head}/{name}" if head else name), tag, digest


def tagged(text: str) -> str:
    """A reference with `latest` where it says nothing, as Docker's errors show it; ids and odd texts as they are."""
    try:
        name, tag, digest = split_reference(text)
    except Invalid:
        return text
    return text if tag or digest else f"{name}:latest"


def familiar(text: str) -> str:
    """Without what everybody leaves out: `docker.io/library/`."""
    text = text.removeprefix("index.docker.io/").removeprefix("docker.io/")
    return text.removeprefix("library/") if "/" not in text.removeprefix("library/") else text


def image_summary(image: Image) -> dict[str, Any]:
    """An element of GET /images/json."""
    return {
        "Containers": -1,
        "Created": image.created // SECOND,
        "Id": image.id,
        "Labels": image.config.labels or None,
        "ParentId": "",
        "RepoDigests": list(image.digests),
        "RepoTags": list(image.tags),
        "SharedSize": -1,
        "Size": image.size,
    }


def image_config(image: Image) -> dict[str, Any]:
    """Docker's form of the image's config; absent where empty, as in Docker's answer."""
    config = image.config
    shown: dict[str, Any] = {}
    if config.user:
        shown["User"] = config.user
    if config.exposed_ports:
        shown["ExposedPorts"] = {port: {} for port in config.exposed_ports}
    if config.env:
        shown["Env"] = config.env
    if config.entrypoint:
        shown["Entrypoint"] = config.entrypoint
    if config.cmd:
        shown["Cmd"] = config.cmd
    if config.volumes:
        shown["Volumes"] = {volume: {} for volume in config.volumes}
    if config.working_dir:
        shown["WorkingDir"] = config.working_dir
    if config.labels:
        shown["Labels"] = config.labels
    if config.stop_signal:
        shown["StopSignal"] = config.stop_signal
    if config.healthcheck:
        shown["Healthcheck"] = config.healthcheck
    if config.on_build:
        shown["OnBuild"] = config.on_build
    if config.shell:
        shown["Shell"] = config.shell
    return shown


def _directories(image: Image) -> dict[str, str] | None:
    """Where its layers lie, in overlay2's names."""
    if not image.directories:
        return None
    top, *rest = image.directories
    return {"UpperDir": top, **({"LowerDir": ":".join(rest)} if rest else {})}


def _of_old(image: Image, version: tuple[int, int]) -> dict[str, Any]:
    """What versions of the API had whose clients do without a check for it: docker-compose 1.29 makes no container anew without."""
    shown: dict[str, Any] = {"Container": "", "ContainerConfig": image_config(image)} if version < (1, 45) else {}
    return shown | ({"VirtualSize": image.size} if version < (1, 44) else {})


def image_details(image: Image, driver: str, version: tuple[int, int]) -> dict[str, Any]:
    """GET /images/{name}/json."""
    return {
        "Id": image.id,
        "RepoTags": list(image.tags),
        "RepoDigests": list(image.digests),
        "Parent": "",
        "Comment": image.comment or (str(image.history[-1].get("comment", "")) if image.history else ""),
        "Created": stamp(image.created),
        "DockerVersion": image.docker_version,
        "Author": image.author,
        "Config": image_config(image),
        "Architecture": image.architecture,
        **({"Variant": image.variant} if image.variant else {}),
        "Os": image.os,
        "Size": image.size,
        "GraphDriver": {"Data": _directories(image), "Name": driver},
        "RootFS": {"Type": "layers", "Layers": list(image.layers)},
        "Metadata": {"LastTagTime": stamp(image.tagged_at)},
        **_of_old(image, version),
    }


def _created(step: Mapping[str, Any], otherwise: int) -> int:
    try:
        return int(datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", str(step.get("created", ""))).replace("Z", "+00:00")).timestamp())
    except ValueError:
        return otherwise


def history(image: Image) -> list[dict[str, Any]]:
    """GET /images/{name}/history, newest first. A step that made no layer has no size."""
    sizes = iter(image.layer_sizes)
    shown: list[dict[str, Any]] = []
    for step in image.history or [{}] * max(1, len(image.layer_sizes)):
        shown.append(
            {
                "Comment": str(step.get("comment", "")),
                "Created": _created(step, image.created // SECOND),
                "CreatedBy": str(step.get("created_by", "")),
                "Id": "<missing>",
                "Size": 0 if step.get("empty_layer") else next(sizes, 0),
                "Tags": None,
            }
        )
    shown.reverse()
    shown[0] |= {"Id": image.id, "Tags": list(image.tags) or None}
    return shown


def progress_line(progress: Progress) -> dict[str, Any]:
    """One line of a pull's stream, with Docker's bar."""
    line: dict[str, Any] = {"status": progress.status}
    if progress.id and not progress.status.startswith(("Digest:", "Status:", "Pulling from")):
        detail = {"current": progress.current, "total": progress.total} if progress.current or progress.total else {}
        line["progressDetail"] = detail
        if progress.total:
            filled = min(50, progress.current * 50 // progress.total)
            bar = "=" * filled + (">" if filled < 50 else "") + " " * max(0, 49 - filled)
            line["progress"] = f"[{bar}] {_size(progress.current)}/{_size(progress.total)}"
    if progress.id:
        line["id"] = progress.id
    return line


def _size(count: int) -> str:
    """Go's units.HumanSize: four significant digits, decimal units."""
    value, unit = float(count), 0
    units = ("B", "kB", "MB", "GB", "TB", "PB")
    while value >= 1000 and unit < len(units) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.4g}{units[unit]}"
