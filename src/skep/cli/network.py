"""`skep network ls|inspect|rm|prune|connect|disconnect`; `create` is in network_create."""

from __future__ import annotations

from skep.cli.flags import Command, Flag, split_list
from skep.cli.shell import Failed, message_of
from skep.cli.table import FORMAT, FORMAT_INSPECT, labelled, labelled_headers, render
from skep.cli.words import natural
from skep.client import calls
from skep.errors import SkepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from skep.cli.flags import Values
    from skep.cli.shell import Shell

COLUMNS = [("ID", "NETWORK ID"), ("Name", "NAME"), ("Driver", "DRIVER"), ("Scope", "SCOPE")]
HEADERS = {**dict(COLUMNS), "IPv4": "IPV4", "IPv6": "IPV6", "Internal": "INTERNAL", "Labels": "LABELS", "CreatedAt": "CREATED AT"}
INGRESS = (
    "WARNING! Before removing the routing-mesh network, make sure all the nodes in your swarm run the same skep engine version. Otherwise, "
    "removal may not be effective and functionality of newly create ingress networks will be impaired."
)
PRUNE = "WARNING! This will remove all custom networks not used by at least one container."


def list_networks(shell: Shell, values: Values, _: list[str]) -> int:
    quiet, form, whole = values["quiet"], values["format"] or "", values["no-trunc"]
    networks = sorted(shell.call(calls.network_list(values.filters())), key=lambda network: natural(network["Name"]))
    if quiet and not form:
        for network in networks:
            shell.print(network["Id"] if whole else network["Id"][:12])
        return 0
    rows = [labelled(row(network, whole), network) for network in networks]
    shell.print(render(COLUMNS, rows, form, labelled_headers(HEADERS)), end="")
    return 0


def row(network: dict[str, Any], whole: bool) -> dict[str, Any]:
    created = network.get("Created", "").rstrip("Z").replace("T", " ")
    return {
        "ID": network["Id"] if whole else network["Id"][:12],
        "Name": network["Name"],
        "Driver": network["Driver"],
        "Scope": network["Scope"],
        "IPv4": _word(network.get("EnableIPv4")),
        "IPv6": _word(network.get("EnableIPv6")),
        "Internal": _word(network.get("Internal")),
        "Labels": ",".join(sorted(f"{key}={value}" for key, value in (network.get("Labels") or {}).items())),
        "CreatedAt": f"{created} +0000 UTC",
    }


def _word(value: object) -> str:
    return "true" if value else "false"


def inspect(shell: Shell, values: Values, names: list[str]) -> int:
    from skep.cli.inspect import show

    def get(name: str) -> Any:
        return shell.call(calls.network_inspect(name, verbose=values["verbose"]))

    return show(shell, names, values["format"] or "", get)


def remove(shell: Shell, values: Values, names: list[str]) -> int:
    from skep.client.unix import ApiError

    code = 0
    for name in names:
        try:
            ingress = shell.call(calls.network_inspect(name)).get("Ingress")
        except (SkepError, Failed):
            ingress = False
        if ingress and not confirmed(shell, INGRESS):
            continue
        try:
            shell.call(calls.network_remove(name))
        except (SkepError, Failed) as error:
            if values["force"] and isinstance(error, ApiError) and error.status == 404:
                continue
            shell.out.flush()
            shell.warn(message_of(error))
            code = 1
            continue
        shell.print(name)
    if code:
        shell.warn(f"exit status {code}")
    return code


def prune(shell: Shell, values: Values, _: list[str]) -> int:
    if not values["force"] and not confirmed(shell, PRUNE):
        return 0
    deleted = shell.call(calls.network_prune(values.filters())).get("NetworksDeleted") or ()
    if deleted:
        shell.print("Deleted Networks:\n" + "".join(f"{name}\n" for name in deleted))
    return 0


def confirmed(shell: Shell, warning: str) -> bool:
    shell.print(f"{warning}\nAre you sure you want to continue? [y/N] ", end="")
    shell.out.flush()
    return shell.input.readline().strip().lower() == "y"


def connect(shell: Shell, values: Values, names: list[str]) -> int:
    options = {}
    for text in split_list(values["driver-opt"]):
        key, equal, value = text.partition("=")
        if not equal or not key:
            raise Failed("invalid key/value pair format in driver options")
        options[key] = value
    ipam: dict[str, Any] = {}
    for flag, field in (("ip", "IPv4Address"), ("ip6", "IPv6Address")):
        if values[flag]:
            ipam[field] = values[flag]
    if values["link-local-ip"]:
        ipam["LinkLocalIPs"] = split_list(values["link-local-ip"])
    endpoint = {
        "IPAMConfig": ipam,
        "Links": values["link"] or None,
        "Aliases": split_list(values["alias"]),
        "MacAddress": "",
        "DriverOpts": options,
        "GwPriority": values["gw-priority"] or 0,
        "NetworkID": "",
        "EndpointID": "",
        "Gateway": "",
        "IPAddress": "",
        "IPPrefixLen": 0,
        "IPv6Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "DNSNames": None,
    }
    shell.call(calls.network_connect(names[0], names[1], endpoint))
    return 0


def disconnect(shell: Shell, values: Values, names: list[str]) -> int:
    shell.call(calls.network_disconnect(names[0], names[1], values["force"]))
    return 0


COMMANDS = {
    "network ls": Command(
        "network ls",
        "[OPTIONS]",
        "List networks",
        list_networks,
        (
            Flag("filter", "filter", 'Provide filter values (e.g. "driver=bridge")', "f"),
            Flag("format", "string", FORMAT),
            Flag("no-trunc", "bool", "Do not truncate the output"),
            Flag("quiet", "bool", "Only display network IDs", "q"),
        ),
        aliases=("network ls", "network list"),
    ),
    "network inspect": Command(
        "network inspect",
        "[OPTIONS] NETWORK [NETWORK...]",
        "Display detailed information on one or more networks",
        inspect,
        (Flag("format", "string", FORMAT_INSPECT, "f"), Flag("verbose", "bool", "Verbose output for diagnostics", "v")),
        least=1,
        most=None,
    ),
    "network rm": Command(
        "network rm",
        "NETWORK [NETWORK...]",
        "Remove one or more networks",
        remove,
        (Flag("force", "bool", "Do not error if the network does not exist", "f"),),
        least=1,
        most=None,
        aliases=("network rm", "network remove"),
    ),
    "network prune": Command(
        "network prune",
        "[OPTIONS]",
        "Remove all unused networks",
        prune,
        (
            Flag("filter", "filter", 'Provide filter values (e.g. "until=<timestamp>")'),
            Flag("force", "bool", "Do not prompt for confirmation", "f"),
        ),
    ),
    "network connect": Command(
        "network connect",
        "[OPTIONS] NETWORK CONTAINER",
        "Connect a container to a network",
        connect,
        (
            Flag("alias", "strings", "Add network-scoped alias for the container"),
            Flag("driver-opt", "strings", "driver options for the network"),
            Flag("gw-priority", "int", "Highest gw-priority provides the default gateway. Accepts positive and negative values."),
            Flag("ip", "string", 'IPv4 address (e.g., "172.30.100.104")'),
            Flag("ip6", "string", 'IPv6 address (e.g., "2001:db8::33")'),
            Flag("link", "list", "Add link to another container"),
            Flag("link-local-ip", "strings", "Add a link-local address for the container"),
        ),
        least=2,
        most=2,
    ),
    "network disconnect": Command(
        "network disconnect",
        "[OPTIONS] NETWORK CONTAINER",
        "Disconnect a container from a network",
        disconnect,
        (Flag("force", "bool", "Force the container to disconnect from a network", "f"),),
        least=2,
        most=2,
    ),
}
