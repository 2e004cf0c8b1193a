"""A plain container's place on networks: made when it starts, given back when it has ended, changed while it runs.

The sandbox has the container's id. Networks of this node are `LocalNetworks`', those of the cluster `Attachments`'; a container may be on
both kinds. See docs/containers.md and docs/network.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial

import msgspec

from skep.clock import SECOND, Clock
from skep.datapath.base import Datapath, HostPort, Place, Resolving
from skep.engine.base import Container, Engine
from skep.errors import Conflict, Forbidden, Invalid, NotFound, SkepError, Unavailable
from skep.ids import Random, endpoint_id, new_hex
from skep.node.base import Attachments, LocalNetwork, LocalNetworks, is_task_sandbox
from skep.node.container import SANDBOX_SYSCTLS, NodeFacts
from skep.node.plain_adopt import Lock, adopt, adopt_attached
from skep.node.plain_check import container_of
from skep.node.plain_config import EndpointSettings, Joined, Record, blank
from skep.node.plain_files import (
    check_settings,
    host_gateway,
    mode_is_none,
    own_names,
    own_resolv,
    read_text,
    resolver_conf,
    standard_less,
    wanted_ports,
)
from skep.node.plain_links import links_of

ASK_AGAIN = 2 * SECOND
HOST_STAYS = "container cannot be disconnected from host network or connected to host network"
NO_SUCH = "failed to set up container networking: {}"


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """What a start must know of the container's network."""

    netns: str = ""
    hosts: tuple[str, ...] = ()
    resolv_conf: str = ""
    joined: tuple[Joined, ...] = ()
    ports: tuple[HostPort, ...] = ()


class Places:
    """`attachments` may be set later, when this node is a member of a cluster."""

    def __init__(
        self,
        engine: Engine,
        datapath: Datapath,
        networks: LocalNetworks,
        facts: NodeFacts,
        rng: Random,
        attachments: Attachments | None = None,
    ) -> None:
        self._engine = engine
        self._datapath = datapath
        self._networks = networks
        self._rng = rng
        self.facts = facts
        self.attachments = attachments

    async def sandboxes(self) -> list[str]:
        """Of plain containers."""
        return [id for id in await self._datapath.sandboxes() if not is_task_sandbox(id)]

    def driver(self, network_id: str) -> str:
        known = self._networks.get(network_id)
        return known.driver if known is not None else "overlay"

    # what is asked for

    async def wanted(self, mode: str, asked: dict[str, EndpointSettings], mac: str) -> tuple[Joined, ...]:
        """The networks a new container is to join; `mode`: its NetworkMode, no longer empty. Raises Invalid. What they are is looked at
        when it starts, as Docker does: they may be made until then."""
        if container_of(mode):
            return ()
        asked = {"bridge" if name == "default" else name: settings for name, settings in asked.items()}
        main = await self._local(mode)
        name = main.name if main is not None else mode
        first = asked.pop(mode, None) or asked.pop(name, None) or (asked.pop(main.id, None) if main is not None else None)
        first = first or EndpointSettings()
        if mac and not first.mac_address:
            first = msgspec.structs.replace(first, mac_address=mac)
        if name in ("host", "none") and asked:
            raise Invalid(f"container cannot be connected to multiple networks with one of the networks in {name} mode")
        joined = [await self._asked(name, first), *[await self._asked(other, settings) for other, settings in asked.items()]]
        if any(one.network in ("host", "none") for one in joined[1:]):
            raise Invalid("container cannot be connected to host network or disconnected from it")
        return tuple(joined)

    async def _asked(self, reference: str, settings: EndpointSettings) -> Joined:
        known = await self._local(reference)
        name = known.name if known is not None else reference
        check_settings(name, settings)
        return Joined(network=name, network_id=known.id if known is not None else "", settings=settings)

    async def _local(self, reference: str) -> LocalNetwork | None:
        """By id, by name, or by how its id begins: unless a network of the cluster bears just that name (`b` beside an id `b6d5…`)."""
        known = self._networks.get(reference)
        if known is None or reference in (known.id, known.name) or self.attachments is None:
            return known
        try:
            cluster = await self.attachments.find(reference, joining=True)
        except Forbidden:  # there is one, and its start will say that it is closed
            return None
        return None if cluster is not None and cluster.spec.name == reference else known

    # start and end

    async def join(self, container: Container, record: Record) -> Placed:
        """Make its sandbox, take its addresses, publish its ports. Where that fails, nothing of it stays."""
        mode = record.host.network_mode
        if mode == "host":
            return self._of_host(record)
        if other := container_of(mode):
            return self._of_container(other)
        try:
            return await self._join(container, record)
        except BaseException:
            with suppress(SkepError):
                await self.leave(container.config.id)
            raise

    async def _join(self, container: Container, record: Record) -> Placed:
        id = container.config.id
        sysctls = {**SANDBOX_SYSCTLS, **{key: value for key, value in record.host.sysctls.items() if key.startswith("net.")}}
        if mode_is_none(record):
            sandbox = await self._datapath.attach(id, (), sysctls)
            return Placed(
                netns=sandbox.path, hosts=self._hosts(record, ()), resolv_conf=own_resolv(record, self.facts), joined=self._found(record)
            )
        joined: list[Joined] = []
        places: list[Place] = []
        for one in record.joined:
            found, place = await self._reserve(container, record, one)
            joined.append(found)
            places.append(place)
        resolving = self._resolving(container, record, joined)
        sandbox = await self._datapath.attach(id, tuple(places), sysctls, resolving)
        ports = await self._publish(container, record, joined)
        return Placed(
            netns=sandbox.path,
            hosts=self._hosts(record, joined),
            resolv_conf=resolver_conf(record, self.facts),
            joined=tuple(joined),
            ports=ports,
        )

    def _found(self, record: Record) -> tuple[Joined, ...]:
        """`none` and `host`, which are networks by name only."""
        found = []
        for one in record.joined:
            known = self._networks.get(one.network)
            found.append(msgspec.structs.replace(one, network_id=known.id if known is not None else "", endpoint_id=new_hex(self._rng)))
        return tuple(found)

    async def _reserve(self, container: Container, record: Record, one: Joined) -> tuple[Joined, Place]:
        config = container.config
        settings = one.settings
        names = own_names(container, record, settings)
        local = self._networks.get(one.network_id) if one.network_id else None
        local = local or await self._local(one.network)
        if local is not None:
            if local.config_only or local.driver != "bridge":
                raise Invalid(f"container cannot be connected to network {local.name}")
            wanted = {"address": settings.address, "mac": settings.mac_address}
            endpoint = await self._networks.reserve(local.id, config.id, names=names, **wanted)
            address, gateway, place_id = endpoint.address, endpoint.gateway, endpoint.id
            network_id, name, mac = local.id, local.name, endpoint.mac or settings.mac_address
        else:
            if self.attachments is None:
                raise NotFound(NO_SUCH.format(f"network {one.network} not found"))
            if settings.mac_address:
                raise Invalid(f"network {one.network}: a MAC address can be chosen on this node's own networks only")
            reference = one.network_id or one.network
            try:
                attached, address = await self.attachments.attach(reference, config.id, address=settings.address, names=names)
            except Forbidden as error:
                raise Forbidden(f"Could not attach to network {one.network}: {error.message}") from None
            except NotFound as error:
                raise NotFound(NO_SUCH.format(error.text)) from None
            network_id, name, gateway, mac = attached.id, attached.name, "", ""
            place_id = endpoint_id(config.id, network_id)
        found = msgspec.structs.replace(
            one, network=name, network_id=network_id, endpoint_id=place_id, address=address, gateway=gateway, mac=mac, names=names
        )
        place = Place(network_id=network_id, address=address, gateway=gateway, mac=mac, network_name=name, priority=settings.gw_priority)
        return found, place

    async def _publish(self, container: Container, record: Record, joined: Iterable[Joined]) -> tuple[HostPort, ...]:
        wanted = wanted_ports(record)
        if not wanted:
            return ()
        for one in joined:
            if self._may_publish(one):
                address = one.address.partition("/")[0]
                try:
                    return await self._datapath.publish(container.config.id, address, wanted)
                except Conflict as error:
                    raise SkepError(
                        "failed to set up container networking: driver failed programming external connectivity on endpoint "
                        f"{container.config.name} ({one.endpoint_id}): {error.text}"
                    ) from None
        raise Invalid("port publishing needs a network that is not internal")

    async def leave(self, id: str) -> None:
        """Sandbox, ports and addresses. Idempotent."""
        await self._datapath.unpublish(id)
        await self._datapath.detach(id)
        await self._networks.release(id)
        if self.attachments is not None:
            await self.attachments.detach(id)

    # while it runs

    async def connect(
        self, container: Container, record: Record, reference: str, settings: EndpointSettings
    ) -> tuple[Joined, Placed | None]:
        """One more network; `Placed` when it runs: what has changed. Raises in Docker's words."""
        name = await self._name_of(reference)
        self._refuse_change(container, record, name)
        check_settings(name, settings)
        if any(name in (one.network, one.network_id) for one in record.joined):
            raise Forbidden(f"endpoint with name {container.config.name} already exists in network {name}")
        known = await self._local(name)
        one = Joined(network=name, network_id=known.id if known is not None else "", settings=settings)
        if not container.running:
            return one, None
        found, place = await self._reserve(container, record, one)
        joined = (*record.joined, found)
        try:
            await self._datapath.connect(container.config.id, place, self._resolving(container, record, joined))
            ports = record.ports or await self._publish(container, record, joined)
        except BaseException:
            await self.undo(container.config.id, found)
            raise
        return found, Placed(hosts=self._hosts(record, joined), resolv_conf=resolver_conf(record, self.facts), joined=joined, ports=ports)

    async def undo(self, id: str, found: Joined) -> None:
        """A place made for nothing: its interface goes before its address, for the data path makes it even when we are cancelled."""
        with suppress(SkepError):
            await self._datapath.disconnect(id, found.network_id)
        await self._give_back(id, found)

    async def disconnect(self, container: Container, record: Record, reference: str) -> tuple[Joined, Placed]:
        """Raises Forbidden where it is not on it."""
        name = await self._name_of(reference, gone=True)
        gone = next((one for one in record.joined if name in (one.network, one.network_id)), None)
        if "host" in (name, record.host.network_mode):
            raise Forbidden(HOST_STAYS)
        if gone is None:
            raise Forbidden(f"container {container.config.id} is not connected to network {name}")
        left = tuple(one for one in record.joined if one is not gone)
        ports = record.ports
        if container.running:
            published = self._published_at(record)
            if published is gone and ports:
                await self._datapath.unpublish(container.config.id)
                ports = ()
            await self._datapath.disconnect(container.config.id, gone.network_id)
            await self._give_back(container.config.id, gone)
            if not ports and published is gone and any(one.address for one in left):
                with suppress(SkepError):  # somebody may have taken them meanwhile
                    ports = await self._publish(container, record, left)
        return gone, Placed(hosts=self._hosts(record, left), resolv_conf=resolver_conf(record, self.facts), joined=left, ports=ports)

    async def lose(self, container: Container, record: Record, network_id: str) -> Placed:
        """Without the place that is given to others now; the network is joined again with the next start."""
        await self._datapath.disconnect(container.config.id, network_id)
        joined = tuple(blank(one) if one.network_id == network_id else one for one in record.joined)
        return Placed(hosts=self._hosts(record, joined), joined=joined, ports=record.ports)

    def _published_at(self, record: Record) -> Joined | None:
        return next((one for one in record.joined if self._may_publish(one)), None)

    def _may_publish(self, one: Joined) -> bool:
        local = self._networks.get(one.network_id)
        return bool(one.address) and (local is None or not local.internal)

    async def _give_back(self, id: str, one: Joined) -> None:
        if self._networks.get(one.network_id) is not None:
            await self._networks.release(id, one.network_id)
        elif self.attachments is not None:
            await self.attachments.detach(id, one.network_id)

    async def _name_of(self, reference: str, *, gone: bool = False) -> str:
        known = await self._local(reference)
        if known is not None:
            return known.name
        if self.attachments is not None:
            cluster = await self.attachments.find(reference)
            if cluster is not None:
                return cluster.spec.name
        if gone:
            return reference
        raise NotFound(f"network {reference} not found")

    def _refuse_change(self, container: Container, record: Record, name: str) -> None:
        mode = record.host.network_mode
        if "host" in (name, mode):
            raise Forbidden(HOST_STAYS)
        if container_of(mode):
            raise Forbidden("container sharing network namespace with another container or host cannot be connected to any other network")
        if name == "none" or any(one.network == "none" for one in record.joined):
            raise Forbidden("container cannot be connected to multiple networks with one of the networks in private (none) mode")

    async def rename(self, container: Container, record: Record) -> tuple[Joined, ...]:
        """Its names on all networks after a rename. `container`: as it is now."""
        joined = []
        for one in record.joined:
            names = own_names(container, record, one.settings)
            if container.running and one.address and self._networks.get(one.network_id) is not None:
                await self._networks.announce(one.network_id, container.config.id, names)
            elif container.running and one.address and self.attachments is not None:
                await self.attachments.attach(one.network_id, container.config.id, names=names)
            joined.append(msgspec.structs.replace(one, names=names) if one.names else one)
        return tuple(joined)

    async def adopt(self, container: Container, record: Record) -> Record:
        """It has run on while the daemon was away: it is where its record says, and that place stays taken."""
        resolving = partial(self._resolving, container, record, record.joined)
        return await adopt(container, record, self._networks, self._datapath, resolving, self._published_at(record))

    async def adopt_attached(self, container: Container, record: Record, clock: Clock, lock: Lock) -> None:
        """The same for the cluster's networks: asked for again until a manager answers, or the container has ended."""
        id = container.config.id
        for one in record.joined:
            if not one.address or self._networks.get(one.network_id) is not None or self.attachments is None:
                continue
            while (now := self._engine.get(id)) is not None and now.running and now.started_at == container.started_at:
                try:
                    await self.attachments.attach(one.network_id, id, address=one.address.partition("/")[0], names=one.names)
                except Unavailable:
                    await clock.sleep(ASK_AGAIN)
                    continue
                async with lock(id):
                    await adopt_attached(id, one, self._engine, self.attachments, self._datapath, self._resolving)
                break

    # files of /etc, names

    def _of_host(self, record: Record) -> Placed:
        own = standard_less(read_text("/etc/hosts"))
        asked = record.host.dns or record.host.dns_search or record.host.dns_options
        text = own_resolv(record, self.facts) if asked else read_text("/etc/resolv.conf")
        hosts = (*own, *self._extra_hosts(record))
        return Placed(hosts=hosts, resolv_conf=text, joined=self._found(record))

    def _of_container(self, reference: str) -> Placed:
        other = self._engine.get(reference)
        if other is None:
            raise NotFound(f"No such container: {reference}")
        if not other.running:
            status = "exited" if other.exit is not None else "created"
            raise Conflict(f"cannot join network namespace of a non running container: container {other.config.name} is {status}")
        return Placed(netns=f"/proc/{other.pid}/ns/net", hosts=other.config.hosts, resolv_conf=other.config.resolv_conf)

    def _resolving(self, container: Container, record: Record, joined: Sequence[Joined]) -> Resolving:
        names = own_names(container, record, EndpointSettings())
        aliases = {one.network_id: tuple(one.settings.aliases) for one in joined if one.settings.aliases}
        links: dict[str, str] = {}
        for one in joined:  # on a bridge of the user's the other's address is what it is when it is asked for
            known = self._networks.get(one.network_id)
            for link in links_of(self._engine, record, one, predefined=known is not None and known.predefined):
                fixed = link.address if known is None or known.predefined else ""
                links |= dict.fromkeys(link.names, fixed or link.meaning)
        return Resolving(servers=record.host.dns, own_names=names, aliases=aliases, links=links)

    def _hosts(self, record: Record, joined: Iterable[Joined]) -> tuple[str, ...]:
        config = record.config
        name = f"{config.hostname}.{config.domainname} {config.hostname}" if config.domainname else config.hostname
        lines = list(self._extra_hosts(record))
        for one in joined:
            if one.network == "bridge":
                lines += [f"{link.address}\t{' '.join(link.names)}" for link in links_of(self._engine, record, one, predefined=True)]
        lines += [f"{one.address.partition('/')[0]}\t{name}" for one in joined if one.address]
        return tuple(lines)

    def _extra_hosts(self, record: Record) -> list[str]:
        lines = []
        for entry in record.host.extra_hosts:
            name, _, address = entry.partition(":")
            if address == "host-gateway":
                address = host_gateway(self._networks.get("bridge"))
            lines.append(f"{address.strip('[]')}\t{name}")
        return lines
