"""Networks that this node cannot lay, a sentence each: everything else is laid without them, and who asks for one of them is told why.
And ports of the mesh that do not lead to their service here, since a container of this node has them.

The causes. The device cannot be made, as something else on the host has its VXLAN id or UDP port: found out by trying, and tried again
with each change and comparison (`Kernel.taken`). Or the subnet overlaps that of one of the node's own networks, or of the node's way to
its router: the router has one way to an address, and what was on the node before, and may have containers without a cluster, keeps it.
See docs/network.md.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache

from skep.datapath.base import LocalNetwork, LocalState, Snapshot
from skep.datapath.desired import LocalPort, is_ipv4, usable, vxlan_name
from skep.model.assignment import ServiceItem
from skep.model.network import Network

log = logging.getLogger(__name__)


class Refusals:
    """What was found last; `look` again after what may have changed it."""

    def __init__(self) -> None:
        self._all: dict[str, str] = {}
        """By network id."""
        self.overlapping: dict[str, str] = {}
        """Likewise: never tried."""
        self._shadowed: dict[str, str] = {}
        self._told: dict[str, str] = {}
        """By `PROTOCOL/PORT`: as it is, and as it was when it was logged."""

    def compare(self, snapshot: Snapshot | None, local: LocalState, uplink: str, ports: Iterable[LocalPort]) -> Collection[str]:
        """Find the overlapping ones: their ids. `ports`: those that containers of this node have."""
        self._shadowed = shadowed(snapshot.services.values() if snapshot is not None else (), ports)
        networks = (item.network for item in snapshot.networks.values()) if snapshot is not None else ()
        self.overlapping = overlapping(networks, local.networks.values(), uplink)
        return self.overlapping

    def look(self, snapshot: Snapshot | None, taken: Mapping[str, str]) -> None:
        """`taken`: why a device (by name) could not be made. What is new, and what is well again, is logged."""
        now = dict(self.overlapping)
        for item in snapshot.networks.values() if snapshot is not None and taken else ():
            network = item.network
            if network.id not in now and usable(network) and vxlan_name(network) in taken:
                now[network.id] = (
                    f"network {_title(network)} cannot be laid on this node: {taken[vxlan_name(network)]}: end what has it, or make the "
                    "network again with another id (--opt com.docker.network.driver.overlay.vxlanid_list=ID); it is tried again with "
                    "each change and comparison"
                )
        for id in now.keys() - self._all.keys():
            log.warning("%s", now[id])
        for id in self._all.keys() - now.keys():
            log.info("network %s is refused on this node no more", id[:12])
        self._all = now
        for port in self._shadowed.keys() - self._told.keys():
            log.warning("%s", self._shadowed[port])
        for port in self._told.keys() - self._shadowed.keys():
            log.info("port %s is shadowed on this node no more", port)
        self._told = self._shadowed

    def why(self, network_id: str) -> str:
        """Empty: it is not refused."""
        return self._all.get(network_id, "")

    @property
    def ids(self) -> frozenset[str]:
        return frozenset(self._all)

    def sentences(self) -> list[str]:
        return [found[key] for found in (self._all, self._shadowed) for key in sorted(found)]


def overlapping(networks: Iterable[Network], own: Iterable[LocalNetwork], uplink: str) -> dict[str, str]:
    """By id: those of the cluster's networks that have no room beside these of the node's own, and its uplink (a subnet). Pure."""
    mine = [(_own_network(n), *_ends(n.subnet)) for n in own if is_ipv4(n.subnet)]
    mine.append(
        (f"{uplink} between the node and its router: make it again with another subnet, or set the node's `uplink`", *_ends(uplink))
    )
    out: dict[str, str] = {}
    for network in networks:
        for config in network.ipam if usable(network) else ():
            first, last = _ends(config.subnet) if is_ipv4(config.subnet) else (1, 0)
            other = next((what for what, low, high in mine if first <= last and low <= last and first <= high), "")
            if other:
                out[network.id] = f"network {_title(network)} cannot be laid on this node: its subnet {config.subnet} overlaps {other}"
    return out


def _own_network(network: LocalNetwork) -> str:
    title = network.name or network.id[:12]
    return (
        f"{network.subnet} of the node's own network {title}, which keeps it: remove that network, or make one of the two again with "
        "another subnet"
    )


def shadowed(services: Iterable[ServiceItem], ports: Iterable[LocalPort]) -> dict[str, str]:
    """By `PROTOCOL/PORT`: those that a container has at all addresses of this node, and a service at every node. The container had it
    first, or a service could not tell: it keeps it. Pure."""
    mine = {(port.protocol, port.port): port.sandbox_id[:12] for port in ports if not port.at}
    out: dict[str, str] = {}
    for service in services if mine else ():
        for port in service.ports:
            protocol, number = port.protocol or "tcp", port.published_port
            if (protocol, number) in mine and port.publish_mode != "host":
                out[f"{protocol}/{number}"] = (
                    f"port {number}/{protocol} of service {service.name} leads to container {mine[protocol, number]} on this node, which "
                    "has published it too: other nodes lead to the service; remove the container, or publish another port"
                )
    return out


@lru_cache(maxsize=8192)
def _ends(subnet: str) -> tuple[int, int]:
    found = ipaddress.IPv4Network(subnet, strict=False)
    return int(found[0]), int(found[-1])


def _title(network: Network) -> str:
    return f"{network.name} ({network.id[:12]})" if network.name != network.id else network.id
