"""A node's own networks, and its containers' places on the cluster's, without a kernel and without a disk: `skep.node.base`'s contracts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import IPv4Network, ip_address, ip_network

import msgspec

from skep.clock import Clock
from skep.errors import Conflict, Forbidden, Invalid, NotFound
from skep.ids import Random, new_hex
from skep.model.network import Network
from skep.model.spec import IPAMConfig
from skep.node.base import AttachedNetwork, LocalEndpoint, LocalNetwork

PREDEFINED = {"bridge": "bridge", "host": "host", "none": "null"}


class FakeNetworks:
    """Subnets are 172.17.0.0/16 and those that follow, addresses come in turn."""

    def __init__(self, clock: Clock, rng: Random) -> None:
        self._clock = clock
        self._rng = rng
        self._networks: dict[str, LocalNetwork] = {}
        self._endpoints: dict[tuple[str, str], LocalEndpoint] = {}
        """(network id, sandbox id)."""
        for name, driver in PREDEFINED.items():
            self._add(
                LocalNetwork(
                    id=new_hex(rng),
                    name=name,
                    driver=driver,
                    created_at=clock.now(),
                    ipam=self._ipam(()) if driver == "bridge" else (),
                    options={"com.docker.network.bridge.default_bridge": "true"} if name == "bridge" else {},
                    predefined=True,
                )
            )

    def _add(self, network: LocalNetwork) -> LocalNetwork:
        self._networks[network.id] = network
        return network

    def all(self) -> list[LocalNetwork]:
        return list(self._networks.values())

    def get(self, reference: str) -> LocalNetwork | None:
        if reference in self._networks:
            return self._networks[reference]
        named = [n for n in self._networks.values() if n.name == reference]
        found = named or [n for n in self._networks.values() if reference and n.id.startswith(reference)]
        return found[0] if len(found) == 1 else None

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
        if any(n.name == name for n in self._networks.values()):
            raise Conflict(f"network with name {name} already exists")
        source = self.get(config_from) if config_from else None
        if config_from and (source is None or not source.config_only):
            raise NotFound(f'configuration network "{config_from}" does not exist')
        return self._add(
            LocalNetwork(
                id=new_hex(self._rng),
                name=name,
                driver="null" if config_only else driver,
                created_at=self._clock.now(),
                ipam=ipam if config_only else self._ipam(source.ipam if source is not None else ipam),
                ipam_options=dict(ipam_options or {}),
                options=dict(options or {}),
                labels=dict(labels or {}),
                internal=internal,
                attachable=attachable,
                config_only=config_only,
                config_from=config_from,
            )
        )

    def _ipam(self, asked: tuple[IPAMConfig, ...]) -> tuple[IPAMConfig, ...]:
        used = [ip_network(c.subnet) for n in self._networks.values() if not n.config_only for c in n.ipam]
        free = (IPv4Network((f"172.{second}.0.0", 16)) for second in range(17, 32))
        wanted = asked or (IPAMConfig(subnet=str(next(s for s in free if not any(s.overlaps(u) for u in used)))),)
        for config in wanted:
            if any(ip_network(config.subnet).overlaps(u) for u in used):
                raise Forbidden("invalid pool request: Pool overlaps with other one on this address space")
        return tuple(msgspec.structs.replace(c, gateway=c.gateway or str(ip_network(c.subnet)[1])) for c in wanted)

    async def remove(self, reference: str) -> LocalNetwork:
        network = self.get(reference)
        if network is None:
            raise NotFound(f"network {reference} not found")
        if network.predefined:
            raise Forbidden(f"{network.name} is a pre-defined network and cannot be removed")
        users = self.endpoints(network.id)
        if users:
            raise Forbidden(f"error while removing network: network {network.name} has active endpoints (name:{users[0].sandbox_id[:12]})")
        return self._networks.pop(network.id)

    async def reserve(
        self, network_id: str, sandbox_id: str, *, address: str = "", mac: str = "", names: tuple[str, ...] = ()
    ) -> LocalEndpoint:
        known = self._endpoints.get((network_id, sandbox_id))
        if known is not None:
            if names:
                await self.announce(network_id, sandbox_id, names)
            return self._endpoints[network_id, sandbox_id]
        config = self._networks[network_id].ipam[0]
        subnet = ip_network(config.subnet)
        taken = {e.address.partition("/")[0] for e in self.endpoints(network_id)} | {config.gateway}
        if address and ip_address(address) not in subnet:
            raise Invalid(f"invalid address {address}: it is not in {subnet}")
        if address in taken:
            raise Conflict("Address already in use")
        chosen = address or next(str(host) for host in subnet.hosts() if str(host) not in taken)
        endpoint = LocalEndpoint(
            id=new_hex(self._rng),
            network_id=network_id,
            sandbox_id=sandbox_id,
            address=f"{chosen}/{subnet.prefixlen}",
            gateway=config.gateway,
            mac=mac,
            names=names,
        )
        self._endpoints[network_id, sandbox_id] = endpoint
        return endpoint

    async def announce(self, network_id: str, sandbox_id: str, names: tuple[str, ...]) -> None:
        place = self._endpoints[network_id, sandbox_id]
        self._endpoints[network_id, sandbox_id] = msgspec.structs.replace(place, names=names)

    async def release(self, sandbox_id: str, network_id: str = "") -> None:
        for key in [k for k in self._endpoints if k[1] == sandbox_id and network_id in ("", k[0])]:
            del self._endpoints[key]

    def endpoints(self, network_id: str) -> list[LocalEndpoint]:
        return [e for e in self._endpoints.values() if e.network_id == network_id]

    def endpoints_of(self, sandbox_id: str) -> list[LocalEndpoint]:
        return [e for e in self._endpoints.values() if e.sandbox_id == sandbox_id]


class FakeAttachments:
    """`skep.node.base.Attachments`: this node is told of `known`; places there are given in turn, from .200 on."""

    def __init__(self) -> None:
        self.known: list[Network] = []
        self.closed: list[Network] = []
        self.elsewhere: list[Network] = []
        """Attachable, and this node takes no part in them yet: found, but not listed."""
        """The manager's, of which this node is not told."""
        self.places: dict[tuple[str, str], str] = {}
        """(container id, network id) -> address."""
        self._lost: list[Callable[[str, str], None]] = []

    async def attach(
        self, network: str, container_id: str, *, address: str = "", names: tuple[str, ...] = ()
    ) -> tuple[AttachedNetwork, str]:
        found = await self.find(network)
        if found is None:
            raise NotFound(f"network {network} not found")
        if not found.spec.attachable:
            raise Forbidden(f"network {found.name} not manually attachable")
        attached = AttachedNetwork(id=found.id, name=found.name)
        key = (container_id, found.id)
        if key not in self.places:
            subnet = ip_network(found.ipam[0].subnet)
            taken = {place.partition("/")[0] for (_, id), place in self.places.items() if id == found.id}
            if address and ip_address(address) not in subnet:
                raise Invalid(f"invalid address {address}: it is not in {subnet}")
            if address in taken:
                raise Conflict("Address already in use")
            chosen = address or next(text for offset in range(200, 255) if (text := str(subnet[offset])) not in taken)
            self.places[key] = f"{chosen}/{subnet.prefixlen}"
        return attached, self.places[key]

    async def detach(self, container_id: str, network_id: str = "") -> None:
        for key in [k for k in self.places if k[0] == container_id and network_id in ("", k[1])]:
            del self.places[key]

    async def find(self, reference: str, *, joining: bool = False) -> Network | None:
        if joining and (closed := next((n for n in self.closed if reference in (n.id, n.name)), None)) is not None:
            raise Forbidden(f"network {closed.name} not manually attachable", rpc="PermissionDenied")
        known = [*self.known, *self.elsewhere]
        for network in known:
            if reference in (network.id, network.name):
                return network
        found = [network for network in known if reference and network.id.startswith(reference)]
        return found[0] if len(found) == 1 else None

    def networks(self) -> list[Network]:
        return list(self.known)

    def when_lost(self, call: Callable[[str, str], None]) -> None:
        self._lost.append(call)

    def lose(self, container_id: str, network_id: str) -> None:
        """The cluster takes a place away."""
        self.places.pop((container_id, network_id), None)
        for call in self._lost:
            call(container_id, network_id)
