"""`skep volume create|ls|inspect|rm|prune`."""

from __future__ import annotations

from skep.cli.flags import Command, Flag
from skep.cli.options import key_values, label
from skep.cli.shell import Failed, confirmed, message_of
from skep.cli.table import FORMAT, FORMAT_INSPECT, labelled, labelled_headers, render
from skep.cli.words import decimal_size, natural
from skep.client import calls, node
from skep.errors import SkepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from skep.cli.flags import Values
    from skep.cli.shell import Shell

COLUMNS = [("Driver", "DRIVER"), ("Name", "VOLUME NAME")]
HEADERS = {
    **dict(COLUMNS),
    "Scope": "SCOPE",
    "Mountpoint": "MOUNTPOINT",
    "Labels": "LABELS",
    "Links": "LINKS",
    "Size": "SIZE",
    "Group": "GROUP",
    "Availability": "AVAILABILITY",
    "Status": "STATUS",
}
OF_CLUSTER = (
    "availability",
    "group",
    "limit-bytes",
    "required-bytes",
    "scope",
    "secret",
    "sharing",
    "topology-preferred",
    "topology-required",
)
NO_CLUSTER = "skep has no cluster volumes: a volume belongs to a node"
PRUNE = "WARNING! This will remove {} local volumes not used by at least one container."


def create(shell: Shell, values: Values, names: list[str]) -> int:
    given = [*OF_CLUSTER, "type"]
    if values.given(*given):
        raise Failed(f"--{next(flag for flag in given if values.given(flag))}: {NO_CLUSTER}")
    name = values["name"] or ""
    if names and name:
        raise Failed("conflicting options: cannot specify a volume-name through both --name and as a positional arg")
    name = name or (names[0] if names else "")
    request: dict[str, Any] = {"Driver": values.get("driver", "local")}
    fields = {"DriverOpts": key_values(values["opt"]), "Labels": key_values(values["label"]), "Name": name}
    request.update({key: value for key, value in fields.items() if value})
    shell.print(shell.call(node.volume_create(request))["Name"])
    return 0


def list_volumes(shell: Shell, values: Values, _: list[str]) -> int:
    if values["cluster"]:
        raise Failed(f"--cluster: {NO_CLUSTER}")
    volumes = sorted(shell.call(node.volume_list(values.filters())).get("Volumes") or (), key=lambda volume: natural(volume["Name"]))
    form = values["format"] or ""
    if values["quiet"] and not form:
        for volume in volumes:
            shell.print(volume["Name"])
        return 0
    shell.print(render(COLUMNS, [labelled(row(volume), volume) for volume in volumes], form, labelled_headers(HEADERS)), end="")
    return 0


def row(volume: dict[str, Any]) -> dict[str, Any]:
    usage, labels = volume.get("UsageData"), volume.get("Labels") or {}
    return {
        "Name": volume["Name"],
        "Driver": volume.get("Driver", ""),
        "Scope": volume.get("Scope", ""),
        "Mountpoint": volume.get("Mountpoint", ""),
        "Labels": ",".join(sorted(f"{key}={value}" for key, value in labels.items())),
        "Links": "N/A" if usage is None else str(usage.get("RefCount", 0)),
        "Size": "N/A" if usage is None else decimal_size(usage.get("Size", 0), 4),
        "Group": "N/A",
        "Availability": "N/A",
        "Status": "N/A",
    }


def inspect(shell: Shell, values: Values, names: list[str]) -> int:
    from skep.cli.inspect import show

    def get(name: str) -> Any:
        return shell.call(calls.inspect("volumes", name))

    return show(shell, names, values["format"] or "", get)


def remove(shell: Shell, values: Values, names: list[str]) -> int:
    failed = []
    for name in names:
        try:
            shell.call(node.volume_remove(name, values["force"]))
        except SkepError as error:
            failed.append(message_of(error))
        else:
            shell.print(name)
    if failed:
        shell.out.flush()
        raise Failed("\n".join(failed))
    return 0


def prune(shell: Shell, values: Values, _: list[str]) -> int:
    filters = {key: list(found) for key, found in values.filters().items()}
    if values["all"]:
        if "all" in filters:
            raise Failed(f"conflicting options: cannot specify both --all and --filter all={filters['all'][0]}")
        filters["all"] = ["true"]
    if not values["force"] and not confirmed(shell, PRUNE.format("all" if values["all"] else "anonymous")):
        return 0
    found = shell.call(node.prune("volumes", filters))
    deleted = found.get("VolumesDeleted") or ()
    if deleted:
        shell.print("Deleted Volumes:\n" + "".join(f"{name}\n" for name in deleted))
    shell.print(f"Total reclaimed space: {decimal_size(found.get('SpaceReclaimed', 0), 4)}")
    return 0


CREATE_FLAGS = (
    Flag("availability", "string", 'Cluster Volume availability ("active", "pause", "drain")', default='"active"'),
    Flag("driver", "string", "Specify volume driver name", "d", '"local"'),
    Flag("group", "string", "Cluster Volume group (cluster volumes)"),
    Flag("label", "list", "Set metadata for a volume", parse=label),
    Flag("limit-bytes", "bytes", "Minimum size of the Cluster Volume in bytes"),
    Flag("name", "string", "", hidden=True),
    Flag("opt", "map", "Set driver specific options", "o", "map[]"),
    Flag("required-bytes", "bytes", "Maximum size of the Cluster Volume in bytes"),
    Flag("scope", "string", 'Cluster Volume access scope ("single", "multi")', default='"single"'),
    Flag("secret", "map", "Cluster Volume secrets", default="map[]"),
    Flag("sharing", "string", 'Cluster Volume access sharing ("none", "readonly", "onewriter", "all")', default='"none"'),
    Flag("topology-preferred", "list", "A topology that the Cluster Volume would be preferred in"),
    Flag("topology-required", "list", "A topology that the Cluster Volume must be accessible from"),
    Flag("type", "string", 'Cluster Volume access type ("mount", "block")', default='"block"'),
)

COMMANDS = {
    "volume create": Command("volume create", "[OPTIONS] [VOLUME]", "Create a volume", create, CREATE_FLAGS, most=1),
    "volume ls": Command(
        "volume ls",
        "[OPTIONS]",
        "List volumes",
        list_volumes,
        (
            Flag("cluster", "bool", "Display only cluster volumes, and use cluster volume list formatting"),
            Flag("filter", "filter", 'Provide filter values (e.g. "dangling=true")', "f"),
            Flag("format", "string", FORMAT),
            Flag("quiet", "bool", "Only display volume names", "q"),
        ),
        aliases=("volume ls", "volume list"),
    ),
    "volume inspect": Command(
        "volume inspect",
        "[OPTIONS] VOLUME [VOLUME...]",
        "Display detailed information on one or more volumes",
        inspect,
        (Flag("format", "string", FORMAT_INSPECT, "f"),),
        least=1,
        most=None,
    ),
    "volume rm": Command(
        "volume rm",
        "[OPTIONS] VOLUME [VOLUME...]",
        "Remove one or more volumes",
        remove,
        (Flag("force", "bool", "Force the removal of one or more volumes", "f"),),
        least=1,
        most=None,
        aliases=("volume rm", "volume remove"),
        details="Remove one or more volumes. You cannot remove a volume that is in use by a container.",
    ),
    "volume prune": Command(
        "volume prune",
        "[OPTIONS]",
        "Remove unused local volumes",
        prune,
        (
            Flag("all", "bool", "Remove all unused volumes, not just anonymous ones", "a"),
            Flag("filter", "filter", 'Provide filter values (e.g. "label=<label>")'),
            Flag("force", "bool", "Do not prompt for confirmation", "f"),
        ),
    ),
}
