"""What `docker network create` may say of a bridge, and what that means to the data path. Pure. See docs/network.md."""

from __future__ import annotations

from collections.abc import Mapping

from skep.datapath import base
from skep.datapath.desired import is_ipv4
from skep.errors import Forbidden, Invalid, NotFound, NotImplementedHere
from skep.node.base import LocalNetwork

BRIDGE = "com.docker.network.bridge."
ICC, MASQUERADE, BINDING, NAME = (BRIDGE + o for o in ("enable_icc", "enable_ip_masquerade", "host_binding_ipv4", "name"))
MTU = "com.docker.network.driver.mtu"
SERIAL = "com.docker.network.ipam.serial"
ONLY = {
    BRIDGE + "gateway_mode_ipv4": "nat",
    BRIDGE + "inhibit_ipv4": "false",
    BRIDGE + "default_bridge": "false",
    "com.docker.network.enable_ipv6": "false",
}
"""Options that may say what is so anyway."""
DEFAULT_BRIDGE = {BRIDGE + "default_bridge": "true", ICC: "true", MASQUERADE: "true", BINDING: "0.0.0.0"}
_TRUE, _FALSE = ("1", "t", "T", "TRUE", "true", "True"), ("0", "f", "F", "FALSE", "false", "False")


def check_driver(driver: str) -> None:
    if driver in ("host", "null"):
        raise Forbidden(f'only one instance of "{driver}" network is allowed')
    if driver in ("macvlan", "ipvlan"):
        raise NotImplementedHere(f"skep has no network driver {driver}: a node's own networks are bridges, the cluster's are overlays")
    if driver == "overlay":
        raise Invalid("overlay networks belong to the cluster")
    if driver != "bridge":
        raise NotFound(f'plugin "{driver}" not found')


def check_options(options: Mapping[str, str]) -> None:
    """Raises for the first that is wrong or cannot be had."""
    for name, value in options.items():
        if name in (ICC, MASQUERADE):
            truth(options, name)
        elif name == MTU:
            mtu(value)
        elif name == BINDING:
            if not is_ipv4(value) or not _address(value):
                raise Invalid(f"failed to parse {name} value: {value} (invalid address)")
        elif name in ONLY:
            if value != ONLY[name]:
                raise NotImplementedHere(f"network option {name}={value} is not available in skep: only {ONLY[name]}")
        elif name == NAME:
            raise NotImplementedHere(f"skep's bridges are devices in a namespace of its own, not of the host: leave {name} out")
        else:
            raise NotImplementedHere(f"network option {name} is not known to skep's bridge networks: leave it out")


def check_ipam_options(options: Mapping[str, str]) -> None:
    for name in options:
        if name != SERIAL:
            raise NotImplementedHere(f"IPAM option {name} is not known to skep: leave it out")


def truth(options: Mapping[str, str], name: str) -> bool:
    """True where it is not said."""
    value = options.get(name, "true")
    if value not in (*_TRUE, *_FALSE):
        raise Invalid(f'failed to parse {name} value: "{value}" (strconv.ParseBool: parsing "{value}": invalid syntax)')
    return value in _TRUE


def mtu(value: str) -> int:
    """0 (which is also how Docker says it): the way out's."""
    if not value.isdecimal() or (int(value) and not 68 <= int(value) <= 65535):
        raise Invalid(f"failed to parse {MTU} value: {value} (an MTU is 68 to 65535)")
    return int(value)


def _address(text: str) -> bool:
    parts = text.split(".")
    return len(parts) == 4 and all(p.isdecimal() and int(p) < 256 for p in parts)


def datapath_form(network: LocalNetwork) -> base.LocalNetwork:
    """Of a bridge."""
    config, options = network.ipam[0], network.options
    binding = options.get(BINDING, "")
    return base.LocalNetwork(
        id=network.id,
        name=network.name,
        group=network.group,
        subnet=config.subnet,
        gateway=config.gateway,
        internal=network.internal,
        isolated=not truth(options, ICC),
        masquerade=truth(options, MASQUERADE),
        mtu=mtu(options.get(MTU, "0")),
        binding="" if binding == "0.0.0.0" else binding,
        resolves=not network.predefined,
    )
