"""`skep system df`, `skep system prune`."""

from __future__ import annotations

from skep.cli.container import HEADERS as CONTAINER_HEADERS
from skep.cli.container import row as container_row
from skep.cli.flags import Command, Flag
from skep.cli.image import HEADERS as IMAGE_HEADERS
from skep.cli.image import NONE, prune_images
from skep.cli.image import row as image_row
from skep.cli.shell import Failed
from skep.cli.table import FORMAT, aligned, render
from skep.cli.volume import HEADERS as VOLUME_HEADERS
from skep.cli.volume import row as volume_row
from skep.cli.words import decimal_size
from skep.client import calls, node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from skep.cli.flags import Values
    from skep.cli.shell import Shell

COLUMNS = [("Type", "TYPE"), ("TotalCount", "TOTAL"), ("Active", "ACTIVE"), ("Size", "SIZE"), ("Reclaimable", "RECLAIMABLE")]
CACHE = ["CACHE ID", "CACHE TYPE", "SIZE", "CREATED", "LAST USED", "USAGE", "SHARED"]
OF_IMAGES = [
    (key, IMAGE_HEADERS[key]) for key in ("Repository", "Tag", "ID", "CreatedSince", "Size", "SharedSize", "UniqueSize", "Containers")
]
OF_CONTAINERS = [
    (key, CONTAINER_HEADERS[key]) for key in ("ID", "Image", "Command", "LocalVolumes", "Size", "RunningFor", "Status", "Names")
]
OF_VOLUMES = [(key, VOLUME_HEADERS[key]) for key in ("Name", "Links", "Size")]


def usage(shell: Shell, values: Values, _: list[str]) -> int:
    found = shell.call(node.disk_usage())
    form = values["format"] or ""
    if values["verbose"]:
        return _verbose(shell, found, form)
    shell.print(render(COLUMNS, summary(found), form, dict(COLUMNS)), end="")
    return 0


def summary(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What can be given back of each kind, and how much is in use."""
    images, containers = found.get("Images") or [], found.get("Containers") or []
    volumes = found.get("Volumes") or []
    layers = found.get("LayersSize", 0)
    used = sum(
        image["Size"] - image["SharedSize"]
        for image in images
        if image["Containers"] != 0 and -1 not in (image["Size"], image["SharedSize"])
    )
    running = [container for container in containers if container["State"] in ("running", "paused", "restarting")]
    size, kept = (sum(container.get("SizeRw", 0) for container in some) for some in (containers, running))
    sizes = [volume.get("UsageData") or {"RefCount": 0, "Size": 0} for volume in volumes]
    total = sum(data["Size"] for data in sizes if data["Size"] != -1)
    free = sum(data["Size"] for data in sizes if data["Size"] != -1 and data["RefCount"] == 0)
    cache = found.get("BuildCache") or []
    return [
        _line("Images", len(images), sum(image["Containers"] > 0 for image in images), layers, layers - used),
        _line("Containers", len(containers), len(running), size, size - kept),
        _line("Local Volumes", len(volumes), sum(data["RefCount"] > 0 for data in sizes), total, free),
        _line("Build Cache", len(cache), 0, 0, 0),
    ]


def _line(kind: str, count: int, active: int, size: int, free: int) -> dict[str, Any]:
    share = f" ({free * 100 // size}%)" if size > 0 else ""
    return {
        "Type": kind,
        "TotalCount": str(count),
        "Active": str(active),
        "Size": decimal_size(size, 4),
        "Reclaimable": decimal_size(free, 4) + share,
    }


def _verbose(shell: Shell, found: dict[str, Any], form: str) -> int:
    table = form in ("", "table")
    now, whole = shell.now(), not table
    images = [image_row(image, _first(image), now, whole) for image in found.get("Images") or ()]
    containers = [container_row({**container, "SizeRootFs": 0}, now, whole) for container in found.get("Containers") or ()]
    volumes = [volume_row(volume) for volume in found.get("Volumes") or ()]
    if not table:
        from skep.cli.gotemplate import Template, to_json

        everything = {"Images": images, "Containers": containers, "Volumes": volumes, "BuildCache": []}
        shell.print(to_json(everything) if form == "json" else Template(form).render(everything), end="")
        return 0
    for title, columns, rows, headers in (
        ("Images space usage:\n\n", OF_IMAGES, images, IMAGE_HEADERS),
        ("\nContainers space usage:\n\n", OF_CONTAINERS, containers, CONTAINER_HEADERS),
        ("\nLocal Volumes space usage:\n\n", OF_VOLUMES, volumes, VOLUME_HEADERS),
    ):
        shell.print(title + render(columns, rows, "", headers), end="")
    shell.print(f"\nBuild cache usage: 0B\n\n{aligned([CACHE])}", end="")
    return 0


def _first(image: dict[str, Any]) -> tuple[str, str, str]:
    names = image.get("RepoTags") or ()
    name, _, tag = names[0].rpartition(":") if names else (NONE, "", NONE)
    return name, tag, ""


# prune


def prune(shell: Shell, values: Values, _: list[str]) -> int:
    if values["volumes"] and "until" in values.filters():
        raise Failed('ERROR: The "until" filter is not supported with "--volumes"')
    if not values["force"] and not _confirmed(shell, values):
        return 0
    filters = values.filters()
    total = 0
    found = shell.call(node.prune("containers", filters))
    total += _told(shell, "Containers", found.get("ContainersDeleted"), found)
    found = shell.call(calls.network_prune(filters))
    total += _told(shell, "Networks", found.get("NetworksDeleted"), found)
    if values["volumes"]:
        found = shell.call(node.prune("volumes", filters))
        total += _told(shell, "Volumes", found.get("VolumesDeleted"), found)
    text, size = prune_images(shell, values, all=values["all"])
    shell.print(text, end="")
    found = shell.call(node.prune("build", filters, {"all": "1"} if values["all"] else None))
    total += size + _told(shell, "build cache objects", found.get("CachesDeleted"), found)
    shell.print(f"Total reclaimed space: {decimal_size(total, 4)}")
    return 0


def _told(shell: Shell, what: str, deleted: list[str] | None, found: dict[str, Any]) -> int:
    if deleted:
        shell.print(f"Deleted {what}:\n" + "".join(f"{name}\n" for name in deleted))
    return int(found.get("SpaceReclaimed") or 0)


def _confirmed(shell: Shell, values: Values) -> bool:
    everything = values["all"]
    lines = ["all stopped containers", "all networks not used by at least one container"]
    if values["volumes"]:
        lines.append("all anonymous volumes not used by at least one container")
    lines.append("all images without at least one container associated to them" if everything else "all dangling images")
    lines.append("all build cache" if everything else "unused build cache")
    warning = "WARNING! This will remove:\n" + "".join(f"  - {line}\n" for line in lines)
    chosen = [f"{key}={value}" for key, found in sorted(values.filters().items()) for value in found]
    if chosen:
        warning += "\n  Items to be pruned will be filtered with:\n" + "".join(f"  - {text}\n" for text in chosen)
    from skep.cli.shell import confirmed

    return confirmed(shell, warning)


COMMANDS = {
    "system df": Command(
        "system df",
        "[OPTIONS]",
        "Show disk usage",
        usage,
        (Flag("format", "string", FORMAT), Flag("verbose", "bool", "Show detailed information on space usage", "v")),
        details="Show skep disk usage",
    ),
    "system prune": Command(
        "system prune",
        "[OPTIONS]",
        "Remove unused data",
        prune,
        (
            Flag("all", "bool", "Remove all unused images not just dangling ones", "a"),
            Flag("filter", "filter", 'Provide filter values (e.g. "label=<key>=<value>")'),
            Flag("force", "bool", "Do not prompt for confirmation", "f"),
            Flag("volumes", "bool", "Prune anonymous volumes"),
        ),
    ),
}
