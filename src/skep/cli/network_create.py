"""`skep network create`: the flags, and which gateway, range and auxiliary address belongs to which subnet."""

from __future__ import annotations

from skep.cli.flags import Command, Flag, split_list
from skep.cli.options import key_values, label
from skep.cli.shell import Failed
from skep.client import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network
    from typing import Any

    from skep.cli.flags import Values
    from skep.cli.shell import Shell


def create(shell: Shell, values: Values, names: list[str]) -> int:
    request: dict[str, Any] = {
        "Driver": values.get("driver", "bridge"),
        "Scope": values.get("scope", ""),
        "IPAM": {"Driver": values.get("ipam-driver", "default"), "Options": key_values(values["ipam-opt"]), "Config": ipam(values)},
        "Internal": values["internal"],
        "Attachable": values["attachable"],
        "Ingress": values["ingress"],
        "ConfigOnly": values["config-only"],
        "ConfigFrom": {"Network": values["config-from"]} if values["config-from"] else None,
        "Options": key_values(values["opt"]),
        "Labels": key_values(values["label"]),
        "Name": names[0],
    }
    for flag, field in (("ipv4", "EnableIPv4"), ("ipv6", "EnableIPv6")):
        if values.given(flag):
            request[field] = values[flag]
    shell.print(shell.call(calls.network_create(request))["Id"])
    return 0


def ipam(values: Values) -> list[dict[str, Any]]:
    subnets, ranges, gateways = (split_list(values[flag]) for flag in ("subnet", "ip-range", "gateway"))
    if len(subnets) < len(ranges) or len(subnets) < len(gateways):
        raise Failed("every ip-range or gateway must have a corresponding subnet")
    configs: dict[str, dict[str, Any]] = {}
    for subnet in subnets:
        if any(_matches(subnet, other) or _matches(other, subnet) for other in configs):
            raise Failed("multiple overlapping subnet configuration is not supported")
        configs[subnet] = {"Subnet": subnet}
    for field, texts, what, many in (
        ("IPRange", ranges, "range", "cannot configure multiple ranges ({}, {}) on the same subnet ({})"),
        ("Gateway", gateways, "gateway", "cannot configure multiple gateways ({}, {}) for the same subnet ({})"),
    ):
        for text in texts:
            config = _home(subnets, configs, text, what)
            if field in config:
                raise Failed(many.format(text, config[field], config["Subnet"]))
            config[field] = text
    for key, address in key_values(values["aux-address"]).items():
        _home(subnets, configs, address, "aux-address").setdefault("AuxiliaryAddresses", {})[key] = address
    return list(configs.values())


def _home(subnets: list[str], configs: dict[str, dict[str, Any]], text: str, what: str) -> dict[str, Any]:
    for subnet in subnets:
        if _matches(subnet, text):
            return configs[subnet]
    raise Failed(f"no matching subnet for {what} {text}")


def _matches(subnet: str, text: str) -> bool:
    """Is the address (or the first one of a range) inside?"""
    from ipaddress import ip_address

    try:
        whole = _cidr(subnet)
    except ValueError:
        raise Failed(f"invalid subnet: invalid CIDR address: {subnet}") from None
    try:
        address = ip_address(text.partition("/")[0])
        if "/" in text:
            _cidr(text)
    except ValueError:
        if "/" in text:
            raise Failed(f"invalid CIDR address: {text}") from None
        return False
    return address in whole


def _cidr(text: str) -> IPv4Network | IPv6Network:
    from ipaddress import ip_network

    if "/" not in text:
        raise ValueError(text)
    return ip_network(text, strict=False)


COMMANDS = {
    "network create": Command(
        "network create",
        "[OPTIONS] NETWORK",
        "Create a network",
        create,
        (
            Flag("attachable", "bool", "Enable manual container attachment"),
            Flag("aux-address", "map", "Auxiliary IPv4 or IPv6 addresses used by Network driver", default="map[]"),
            Flag("config-from", "string", "The network from which to copy the configuration"),
            Flag("config-only", "bool", "Create a configuration only network"),
            Flag("driver", "string", "Driver to manage the Network", "d", '"bridge"'),
            Flag("gateway", "strings", "IPv4 or IPv6 Gateway for the master subnet"),
            Flag("ingress", "bool", "Create swarm routing-mesh network"),
            Flag("internal", "bool", "Restrict external access to the network"),
            Flag("ip-range", "strings", "Allocate container ip from a sub-range"),
            Flag("ipam-driver", "string", "IP Address Management Driver", default='"default"'),
            Flag("ipam-opt", "map", "Set IPAM driver specific options", default="map[]"),
            Flag("ipv4", "bool", "Enable or disable IPv4 address assignment", default="true"),
            Flag("ipv6", "bool", "Enable or disable IPv6 address assignment"),
            Flag("label", "list", "Set metadata on a network", parse=label),
            Flag("opt", "map", "Set driver specific options", "o", "map[]"),
            Flag("scope", "string", "Control the network's scope"),
            Flag("subnet", "strings", "Subnet in CIDR format that represents a network segment"),
        ),
        least=1,
        most=1,
    ),
}
