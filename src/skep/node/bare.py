"""A node without networks of its own: `bridge`, `host` and `none` by name, and nothing can be made, joined or removed.

For the host socket of a one-machine cluster, whose containers are the nodes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

from skep.errors import Forbidden, NotFound, NotImplementedHere
from skep.model.network import Network
from skep.model.spec import IPAMConfig
from skep.node.base import AttachedNetwork, LocalEndpoint, LocalNetwork

DRIVERS = {"bridge": "bridge", "host": "host", "none": "null"}


class BareNetworks:
    """`skep.node.base.LocalNetworks`. `why`: the sentence that refuses."""

    def __init__(self, node: str, why: str) -> None:
        self._why = why
        self._networks = [
            LocalNetwork(id=hashlib.sha256(f"network/{node}/{name}".encode()).hexdigest(), name=name, driver=driver, predefined=True)
            for name, driver in DRIVERS.items()
        ]

    def all(self) -> list[LocalNetwork]:
        return list(self._networks)

    def get(self, reference: str) -> LocalNetwork | None:
        for network in self._networks:
            if reference in (network.id, network.name):
                return network
        return None

    async def create(
        self,
        name: str,
        *,
        driver: str = "bridge",
        ipam: tuple[IPAMConfig, ...] = (),
        ipam_options: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        internal: bool = False,
        attachable: bool = False,
        config_only: bool = False,
        config_from: str = "",
    ) -> LocalNetwork:
        raise NotImplementedHere(self._why)

    async def remove(self, reference: str) -> LocalNetwork:
        network = self.get(reference)
        if network is None:
            raise NotFound(f"network {reference} not found")
        raise Forbidden(f"{network.name} is a pre-defined network and cannot be removed")

    async def reserve(
        self, network_id: str, sandbox_id: str, *, address: str = "", mac: str = "", names: tuple[str, ...] = ()
    ) -> LocalEndpoint:
        raise NotImplementedHere(self._why)

    async def announce(self, network_id: str, sandbox_id: str, names: tuple[str, ...]) -> None:
        raise NotImplementedHere(self._why)

    async def release(self, sandbox_id: str, network_id: str = "") -> None: ...

    def endpoints(self, network_id: str) -> list[LocalEndpoint]:
        return []

    def endpoints_of(self, sandbox_id: str) -> list[LocalEndpoint]:
        return []


class NoAttachments:
    """`skep.node.base.Attachments` of a node in no cluster."""

    async def attach(
        self, network: str, container_id: str, *, address: str = "", names: tuple[str, ...] = ()
    ) -> tuple[AttachedNetwork, str]:
        raise NotFound(f"network {network} not found")

    async def detach(self, container_id: str, network_id: str = "") -> None: ...

    async def find(self, reference: str, *, joining: bool = False) -> Network | None:
        return None

    def networks(self) -> list[Network]:
        return []

    def when_lost(self, call: Callable[[str, str], None]) -> None: ...
