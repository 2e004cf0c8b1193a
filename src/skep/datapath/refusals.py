"""Networks that this node cannot lay, a sentence each: everything else is laid without them, and who asks for one of them is told why.

The device cannot be made, as something else on the host has its VXLAN id or UDP port: found out by trying, and tried again with each
change and comparison (`Kernel.taken`). See docs/network.md.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from skep.datapath.base import Snapshot
from skep.datapath.desired import usable, vxlan_name
from skep.model.network import Network

log = logging.getLogger(__name__)


class Refusals:
    """What was found last; `look` again after what may have changed it."""

    def __init__(self) -> None:
        self._all: dict[str, str] = {}
        """By network id."""

    def look(self, snapshot: Snapshot | None, taken: Mapping[str, str]) -> None:
        """`taken`: why a device (by name) could not be made. What is new, and what is well again, is logged."""
        now: dict[str, str] = {}
        for item in snapshot.networks.values() if snapshot is not None and taken else ():
            network = item.network
            if usable(network) and vxlan_name(network) in taken:
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

    def why(self, network_id: str) -> str:
        """Empty: it is not refused."""
        return self._all.get(network_id, "")

    def sentences(self) -> list[str]:
        return [self._all[id] for id in sorted(self._all)]


def _title(network: Network) -> str:
    return f"{network.name} ({network.id[:12]})" if network.name != network.id else network.id
