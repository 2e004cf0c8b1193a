"""Networks in Docker's two forms: the engine's (`GET /networks`) and the store's (inside tasks)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from skep.api.wire.services import head
from skep.api.wire.times import stamp
from skep.model.base import Spec
from skep.model.network import Network
from skep.model.spec import Driver, IPAMConfig, IPAMOptions, NetworkSpec
from skep.node.base import LocalNetwork
from skep.node.plain_config import EndpointSettings

VXLAN_OPTION = "com.docker.network.driver.overlay.vxlanid_list"
SERIAL = "com.docker.network.ipam.serial"
"""Shown where a network has IPAM options, as Docker shows it: addresses come in turn."""


def _options(network: Network) -> dict[str, str]:
    options = dict(network.options)
    if network.vni and VXLAN_OPTION not in options:
        options[VXLAN_OPTION] = str(network.vni)
    return options


def store_form(network: Network) -> dict[str, Any]:
    """As `NetworksAttachments[].Network` has it."""
    shown = head(network)
    spec = network.spec
    shown["Spec"] = spec if spec.scope else msgspec.structs.replace(spec, scope="swarm")
    state: dict[str, Any] = {"Name": network.driver}
    if options := _options(network):
        state["Options"] = options
    shown["DriverState"] = state
    if network.ipam:
        shown["IPAMOptions"] = {"Driver": {"Name": "default"}, "Configs": network.ipam}
    return shown


def _configs(configs: Iterable[IPAMConfig]) -> list[dict[str, Any]]:
    shown = []
    for config in configs:
        entry: dict[str, Any] = {"Subnet": config.subnet}
        if config.ip_range:
            entry["IPRange"] = config.ip_range
        if config.gateway:
            entry["Gateway"] = config.gateway
        if config.auxiliary_addresses:
            entry["AuxiliaryAddresses"] = config.auxiliary_addresses
        shown.append(entry)
    return shown


def _ipam(configs: Iterable[IPAMConfig], driver: Driver | None = None) -> dict[str, Any]:
    options = driver.options if driver is not None else None
    return {
        "Driver": (driver.name if driver is not None else "") or "default",
        "Options": {**options, SERIAL: "true"} if options else None,
        "Config": _configs(configs),
    }


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `Containers`: somebody's place on a network, on this node."""

    key: str
    """The container's id."""
    name: str
    id: str
    address: str
    """With prefix length."""
    mac: str = ""


def engine_form(network: Network, endpoints: Iterable[Endpoint] = (), peers: list[dict[str, str]] | None = None) -> dict[str, Any]:
    """As `GET /networks` has it: a list leaves `Containers` empty."""
    spec = network.spec
    options = spec.ipam_options
    shown = _form(
        name=spec.name,
        id=network.id,
        created=network.created_at,
        scope=spec.scope or "swarm",
        driver=network.driver,
        ipam=_ipam(network.ipam or (options.configs if options is not None else None) or (), options.driver if options else None),
        endpoints=endpoints,
        options=_options(network),
        labels=spec.labels,
    )
    shown |= {"EnableIPv6": spec.ipv6_enabled, "Internal": spec.internal, "Attachable": spec.attachable, "Ingress": spec.ingress}
    if peers:
        shown["Peers"] = peers
    return shown


def local_form(network: LocalNetwork, endpoints: Iterable[Endpoint] = ()) -> dict[str, Any]:
    """The same for a network of this node."""
    shown = _form(
        name=network.name,
        id=network.id,
        created=network.created_at,
        scope="local",
        driver=network.driver,
        ipam={
            "Driver": "default",
            "Options": None if network.predefined else network.ipam_options,
            "Config": _configs(network.ipam) if network.ipam or network.config_only else None,
        },
        endpoints=endpoints,
        options=network.options,
        labels=network.labels,
    )
    shown |= {"Internal": network.internal, "Attachable": network.attachable, "ConfigOnly": network.config_only}
    shown["ConfigFrom"] = {"Network": network.config_from}
    return shown


def _form(
    *,
    name: str,
    id: str,
    created: int,
    scope: str,
    driver: str,
    ipam: dict[str, Any],
    endpoints: Iterable[Endpoint],
    options: Mapping[str, str],
    labels: Mapping[str, str],
) -> dict[str, Any]:
    """In Docker's order of keys."""
    return {
        "Name": name,
        "Id": id,
        "Created": stamp(created),
        "Scope": scope,
        "Driver": driver,
        "EnableIPv4": True,
        "EnableIPv6": False,
        "IPAM": ipam,
        "Internal": False,
        "Attachable": False,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": {
            e.key: {
                "Name": e.name,
                "EndpointID": e.id,
                "MacAddress": e.mac or mac_of(e.address),
                "IPv4Address": e.address,
                "IPv6Address": "",
            }
            for e in endpoints
        },
        "Options": options,
        "Labels": labels,
    }


def mac_of(address: str) -> str:
    """Docker's rule: 02:42 and the four bytes of the address."""
    parts = address.partition("/")[0].split(".")
    if len(parts) != 4 or not all(p.isdigit() for p in parts):
        return ""
    return "02:42:" + ":".join(f"{int(p):02x}" for p in parts)


class IPAMRequest(Spec, frozen=True, kw_only=True):
    driver: str = ""
    options: dict[str, str] | None = None
    config: tuple[IPAMConfig, ...] | None = None


class ConfigFrom(Spec, frozen=True, kw_only=True):
    network: str = ""


class NetworkRequest(Spec, frozen=True, kw_only=True):
    """Body of `POST /networks/create`: Docker's engine form, which names a few things otherwise than the store's."""

    name: str = ""
    driver: str = ""
    scope: str = ""
    enable_ipv4: bool | None = msgspec.field(default=None, name="EnableIPv4")
    enable_ipv6: bool | None = msgspec.field(default=None, name="EnableIPv6")
    ipam: IPAMRequest | None = None
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    config_only: bool = False
    config_from: ConfigFrom | None = None
    options: dict[str, str] | None = None
    labels: dict[str, str] = {}


def network_spec(request: NetworkRequest) -> NetworkSpec:
    """The store's form of a network to be created."""
    ipam: IPAMOptions | None = None
    if (given := request.ipam) is not None:
        driver = Driver(name=given.driver or "default", options=given.options or None)
        ipam = IPAMOptions(driver=driver, configs=given.config or None)
    return NetworkSpec(
        name=request.name,
        labels=request.labels,
        driver_configuration=Driver(name=request.driver or "overlay", options=request.options or None),
        ipv6_enabled=bool(request.enable_ipv6),
        internal=request.internal,
        attachable=request.attachable,
        ingress=request.ingress,
        ipam_options=ipam,
        scope="swarm",
    )


class ConnectRequest(Spec, frozen=True, kw_only=True):
    """Body of `POST /networks/{id}/connect`."""

    container: str = ""
    endpoint_config: EndpointSettings = EndpointSettings()


class DisconnectRequest(Spec, frozen=True, kw_only=True):
    container: str = ""
    force: bool = False
