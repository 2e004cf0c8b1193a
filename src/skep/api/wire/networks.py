"""Networks in Docker's two forms: the engine's (`GET /networks`) and the store's (inside tasks)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import msgspec

from skep.api.wire.services import head
from skep.api.wire.times import stamp
from skep.model.base import Spec
from skep.model.network import Network
from skep.model.spec import Driver, IPAMConfig, IPAMOptions, NetworkSpec
from skep.model.task import Task

VXLAN_OPTION = "com.docker.network.driver.overlay.vxlanid_list"


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


def _ipam(configs: Iterable[IPAMConfig], driver: Driver | None = None) -> dict[str, Any]:
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
    return {
        "Driver": (driver.name if driver is not None else "") or "default",
        "Options": driver.options if driver else None,
        "Config": shown,
    }


def engine_form(network: Network, tasks: Iterable[Task] | None = None, peers: list[dict[str, str]] | None = None) -> dict[str, Any]:
    """As `GET /networks` has it. `tasks`: this node's tasks with a place on it (inspect); None leaves `Containers` empty (list)."""
    spec = network.spec
    options = spec.ipam_options
    shown: dict[str, Any] = {
        "Name": spec.name,
        "Id": network.id,
        "Created": stamp(network.created_at),
        "Scope": spec.scope or "swarm",
        "Driver": network.driver,
        "EnableIPv4": True,
        "EnableIPv6": spec.ipv6_enabled,
        "IPAM": _ipam(network.ipam, options.driver if options is not None else None),
        "Internal": spec.internal,
        "Attachable": spec.attachable,
        "Ingress": spec.ingress,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": {} if tasks is None else _containers(network, tasks),
        "Options": _options(network),
        "Labels": spec.labels,
    }
    if peers:
        shown["Peers"] = peers
    return shown


def _containers(network: Network, tasks: Iterable[Task]) -> dict[str, Any]:
    shown = {}
    for task in tasks:
        container = task.status.container
        if container is None or not container.container_id or task.terminal:
            continue
        for attachment in task.attachments:
            if attachment.network_id != network.id or not attachment.addresses:
                continue
            address = attachment.addresses[0]
            shown[container.container_id] = {
                "Name": task.name,
                "EndpointID": endpoint_id(task.id, network.id),
                "MacAddress": mac_of(address),
                "IPv4Address": address,
                "IPv6Address": "",
            }
    return shown


def endpoint_id(owner: str, network_id: str) -> str:
    """A stable 64-digit name of one's place on a network: Docker draws it, here it follows from both ids."""
    return hashlib.sha256(f"{owner}/{network_id}".encode()).hexdigest()


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


LOCAL: dict[str, str] = {"bridge": "bridge", "host": "host", "none": "null"}
"""The networks every node has of its own: name -> driver."""


def local_id(name: str, node: str) -> str:
    """A node's own network has the same id for as long as the node has its name."""
    return hashlib.sha256(f"network/{node}/{name}".encode()).hexdigest()


def local_form(name: str, node: str, created: int) -> dict[str, Any]:
    options = {}
    if name == "bridge":
        options = {
            "com.docker.network.bridge.default_bridge": "true",
            "com.docker.network.bridge.enable_icc": "true",
            "com.docker.network.bridge.enable_ip_masquerade": "true",
            "com.docker.network.bridge.host_binding_ipv4": "0.0.0.0",
            "com.docker.network.driver.mtu": "1500",
        }
    return {
        "Name": name,
        "Id": local_id(name, node),
        "Created": stamp(created),
        "Scope": "local",
        "Driver": LOCAL[name],
        "EnableIPv4": True,
        "EnableIPv6": False,
        "IPAM": {"Driver": "default", "Options": None, "Config": None},
        "Internal": False,
        "Attachable": False,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": {},
        "Options": options,
        "Labels": {},
    }
