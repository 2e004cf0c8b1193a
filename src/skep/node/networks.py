"""This node's own networks: `bridge`, `host`, `none`, and those the user makes. Implements `skep.node.base.LocalNetworks`.

    <root>/ID/network.json      a network as it is in force
    <root>/ID/SANDBOX           a container's (or task's) place on it

Files are written under another name and renamed: each is there as a whole or not at all. A place is recorded before its address is told to
anybody, and the data path is told of every change before a call returns; so a crash loses no address, and what it left without a sandbox is
given back at the next start. See docs/network.md.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from ipaddress import IPv4Network
from pathlib import Path

import msgspec

from skep.clock import Clock
from skep.datapath.base import Datapath, LocalName, LocalState
from skep.datapath.desired import container_mac
from skep.datapath.local import FIRST_GROUP, LAST_GROUP, HostNetwork
from skep.errors import Conflict, Forbidden, Invalid, NotFound, SkepError
from skep.ids import Random, new_hex
from skep.model.spec import IPAMConfig
from skep.node import netoptions
from skep.node.base import LocalEndpoint, LocalNetwork
from skep.node.ipam import asked_address, free_pool, next_address, settled

log = logging.getLogger(__name__)
PREDEFINED = {"bridge": "bridge", "host": "host", "none": "null"}
RECORD = "network.json"


class _Record(msgspec.Struct, kw_only=True):
    network: LocalNetwork
    chosen: bool = False
    """Its subnet is one that we chose."""


class Networks:
    """`start_up` once, after the data path's. `host`: what this host has addresses in and routes to, for the choice of subnets."""

    def __init__(
        self, root: Path, datapath: Datapath, clock: Clock, rng: Random, *, host: Callable[[], Collection[HostNetwork]] = lambda: ()
    ) -> None:
        self._root = root
        self._datapath = datapath
        self._clock = clock
        self._rng = rng
        self._host = host
        self.overlays: Callable[[], Collection[IPv4Network]] = lambda: ()
        """Subnets of the cluster's networks that this node takes part in: the router has one way to an address."""
        self._records: dict[str, _Record] = {}
        self._endpoints: dict[str, dict[str, LocalEndpoint]] = {}
        """By network id, then sandbox id."""
        self._last: dict[str, str] = {}
        """Network id -> the address given last."""
        self._making = asyncio.Lock()
        self._telling = asyncio.Lock()
        self._changes = self._told = 0

    # start

    async def start_up(self) -> None:
        """Find what there is, make the predefined ones, give back the places of sandboxes that are gone, and tell the data path."""
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._load()
        for name, driver in PREDEFINED.items():
            if not any(r.network.name == name for r in self._records.values()):
                await self._make_predefined(name, driver)
        self._forget_all_but(set(await self._datapath.sandboxes()))
        await self._move_aside()
        self._changes += 1
        await self._tell()

    def _load(self) -> None:
        for folder in sorted(self._root.iterdir()):
            if not folder.is_dir():
                folder.unlink()
                continue
            try:
                record = msgspec.json.decode((folder / RECORD).read_bytes(), type=_Record)
                if record.network.id != folder.name:
                    raise ValueError("it is another's")
            except FileNotFoundError:
                shutil.rmtree(folder, ignore_errors=True)
                continue
            except (OSError, ValueError, msgspec.MsgspecError) as error:
                log.error("the network %s is left aside: %s", folder, error)
                continue
            self._records[folder.name] = record
            places = self._endpoints[folder.name] = {}
            for file in sorted((f for f in folder.iterdir() if f.name != RECORD), key=lambda f: f.stat().st_mtime_ns):
                try:
                    endpoint = msgspec.json.decode(file.read_bytes(), type=LocalEndpoint)
                except (OSError, msgspec.MsgspecError):
                    file.unlink(missing_ok=True)
                    continue
                places[endpoint.sandbox_id] = endpoint
                self._last[folder.name] = endpoint.address.partition("/")[0]

    def _forget_all_but(self, alive: Collection[str]) -> None:
        for network_id, places in self._endpoints.items():
            for sandbox_id in [s for s in places if s not in alive]:
                self._drop(network_id, sandbox_id)

    async def _move_aside(self) -> None:
        """A subnet that we chose may be somebody else's since (another engine's, after a reboot): nobody on it yet, so choose anew."""
        host = await asyncio.to_thread(self._host)
        for record in self._records.values():
            for config in record.network.ipam:
                subnet = IPv4Network(config.subnet)
                theirs = next((h.network for h in host if h.connected and h.network.overlaps(subnet)), None)
                if theirs is None:
                    continue
                if not record.chosen or self._endpoints.get(record.network.id):
                    log.warning("network %s: its subnet %s overlaps %s of this host", record.network.name, subnet, theirs)
                    continue
                new = free_pool(self._used(), host)
                log.warning("network %s is %s from now on: %s overlaps %s of this host", record.network.name, new, subnet, theirs)
                ipam = IPAMConfig(subnet=str(new), gateway=str(new[1]))
                record.network = msgspec.structs.replace(record.network, ipam=(ipam,))
                await self._save(record)

    async def _make_predefined(self, name: str, driver: str) -> None:
        bridge = driver == "bridge"
        record = _Record(
            network=LocalNetwork(
                id=new_hex(self._rng),
                name=name,
                driver=driver,
                created_at=self._clock.now(),
                ipam=(settled((), self._used(), await asyncio.to_thread(self._host)),) if bridge else (),
                options=dict(netoptions.DEFAULT_BRIDGE) if bridge else {},
                group=FIRST_GROUP if bridge else 0,
                predefined=True,
            ),
            chosen=bridge,
        )
        await self._save(record)
        self._keep(record)

    # reading

    def all(self) -> list[LocalNetwork]:
        return [r.network for r in self._records.values()]

    def get(self, reference: str) -> LocalNetwork | None:
        if reference in self._records:
            return self._records[reference].network
        named = [n for n in self.all() if n.name == reference]
        found = named or [n for n in self.all() if reference and n.id.startswith(reference)]
        return found[0] if len(found) == 1 else None

    def endpoints(self, network_id: str) -> list[LocalEndpoint]:
        return list(self._endpoints.get(network_id, {}).values())

    def endpoints_of(self, sandbox_id: str) -> list[LocalEndpoint]:
        return [places[sandbox_id] for places in self._endpoints.values() if sandbox_id in places]

    def _used(self) -> list[IPv4Network]:
        return [IPv4Network(c.subnet) for n in self.all() if not n.config_only for c in n.ipam]

    # making and removing

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
        if not name.strip():
            raise Invalid("invalid name: name is empty")
        netoptions.check_driver(driver)
        async with self._making:
            if any(n.name == name for n in self.all()):
                raise Conflict(f"network with name {name} already exists")
            own_labels, own_options = dict(labels or {}), dict(options or {})
            if config_from:
                source = self._source(config_from)
                ipam, ipam_options = source.ipam, source.ipam_options
                own_labels, own_options = {**source.labels, **own_labels}, dict(source.options)
            netoptions.check_options(own_options)
            netoptions.check_ipam_options(ipam_options or {})
            used = [*self._used(), *self.overlays()]
            laid = () if config_only else (settled(ipam, used, await asyncio.to_thread(self._host)),)
            record = _Record(
                network=LocalNetwork(
                    id=new_hex(self._rng),
                    name=name,
                    driver="null" if config_only else driver,
                    created_at=self._clock.now(),
                    ipam=ipam if config_only else laid,
                    ipam_options=dict(ipam_options or {}),
                    options=own_options,
                    labels=own_labels,
                    internal=internal,
                    attachable=attachable,
                    group=0 if config_only else self._free_group(),
                    config_only=config_only,
                    config_from=config_from,
                ),
                chosen=not ipam,
            )
            await self._save(record)
            self._keep(record)
            try:
                await self._tell()
            except BaseException:
                self._forget(record.network.id)
                raise
            return record.network

    def _source(self, reference: str) -> LocalNetwork:
        found = self.get(reference)
        if found is None or not found.config_only:
            raise NotFound(f'configuration network "{reference}" does not exist')
        return found

    def _free_group(self) -> int:
        taken = {n.group for n in self.all()}
        group = next((g for g in range(FIRST_GROUP + 1, LAST_GROUP + 1) if g not in taken), 0)
        if not group:
            raise SkepError(f"a node has at most {LAST_GROUP - FIRST_GROUP} networks of its own")
        return group

    async def remove(self, reference: str) -> LocalNetwork:
        async with self._making:
            network = self.get(reference)
            if network is None:
                raise NotFound(f"network {reference} not found")
            if network.predefined:
                raise Forbidden(f"{network.name} is a pre-defined network and cannot be removed")
            user = next(iter(self.endpoints(network.id)), None)
            if user is not None:
                shown = f'name:"{user.names[0] if user.names else user.sandbox_id[:12]}" id:"{user.id[:12]}"'
                raise Forbidden(f"error while removing network: network {network.name} has active endpoints ({shown})")
            if network.config_only and any(n.config_from in (network.name, network.id) for n in self.all()):
                raise Forbidden(f'configuration network "{network.name}" is in use')
            self._forget(network.id)
            await self._tell()
            return network

    # places

    async def reserve(
        self, network_id: str, sandbox_id: str, *, address: str = "", mac: str = "", names: tuple[str, ...] = ()
    ) -> LocalEndpoint:
        network = self._bridge(network_id)
        places = self._endpoints[network_id]
        known = before = places.get(sandbox_id)
        if known is None:
            config = network.ipam[0]
            taken = {e.address.partition("/")[0] for e in places.values()}
            if address:
                chosen = asked_address(config, address, taken)
            else:
                chosen = next_address(config, taken, self._last.get(network_id, ""), network.name)
                self._last[network_id] = chosen
            known = LocalEndpoint(
                id=new_hex(self._rng),
                network_id=network_id,
                sandbox_id=sandbox_id,
                address=f"{chosen}/{IPv4Network(config.subnet).prefixlen}",
                gateway=config.gateway,
                mac=mac or container_mac(chosen),
                names=names,
            )
            self._place(known)
        elif address and address.partition("/")[0] != known.address.partition("/")[0]:
            raise Conflict(f"Address already in use: this container has {known.address} on network {network.name}")
        elif names and names != known.names:
            known = msgspec.structs.replace(known, names=names)
            self._place(known)
        try:
            await self._tell()
        except BaseException:
            if before is None and places.get(sandbox_id) is known:
                self._drop(network_id, sandbox_id)
            raise
        return known

    def _bridge(self, network_id: str) -> LocalNetwork:
        record = self._records.get(network_id)
        if record is None:
            raise NotFound(f"network {network_id} not found")
        if not record.network.group:
            raise Invalid(f"container cannot be connected to network {record.network.name}")
        return record.network

    async def announce(self, network_id: str, sandbox_id: str, names: tuple[str, ...]) -> None:
        known = self._endpoints.get(network_id, {}).get(sandbox_id)
        if known is None:
            raise NotFound(f"container {sandbox_id} is not connected to network {network_id}")
        if names != known.names:
            self._place(msgspec.structs.replace(known, names=names))
        await self._tell()

    async def release(self, sandbox_id: str, network_id: str = "") -> None:
        for id, places in self._endpoints.items():
            if network_id in ("", id) and sandbox_id in places:
                self._drop(id, sandbox_id)
        await self._tell()

    # the data path

    def state(self) -> LocalState:
        """What the data path is told."""
        return LocalState(
            networks={n.id: netoptions.datapath_form(n) for n in self.all() if n.group},
            names=tuple(
                LocalName(network_id=e.network_id, address=e.address.partition("/")[0], names=e.names)
                for places in self._endpoints.values()
                for e in places.values()
                if e.names
            ),
        )

    async def _tell(self) -> None:
        """When this returns, every change up to now is in force. Those who wait at the same time are served by one call."""
        async with self._telling:
            changes = self._changes
            if self._told != changes:
                await self._datapath.apply_local(self.state())
                self._told = changes

    # the disk

    def _keep(self, record: _Record) -> None:
        self._records[record.network.id] = record
        self._endpoints[record.network.id] = {}
        self._changes += 1

    def _forget(self, network_id: str) -> None:
        """The record goes first: a folder without one is no network."""
        folder = self._root / network_id
        (folder / RECORD).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        for known in (self._records, self._endpoints, self._last):
            known.pop(network_id, None)
        self._changes += 1

    def _place(self, endpoint: LocalEndpoint) -> None:
        _write(self._root / endpoint.network_id / endpoint.sandbox_id, msgspec.json.encode(endpoint))
        self._endpoints[endpoint.network_id][endpoint.sandbox_id] = endpoint
        self._changes += 1

    def _drop(self, network_id: str, sandbox_id: str) -> None:
        (self._root / network_id / sandbox_id).unlink(missing_ok=True)
        self._endpoints[network_id].pop(sandbox_id, None)
        self._changes += 1

    async def _save(self, record: _Record) -> None:
        """A network that cannot be written down leaves no folder behind."""
        folder = self._root / record.network.id
        await asyncio.to_thread(_write, folder / RECORD, msgspec.json.encode(record), True)


def _write(file: Path, content: bytes, lasting: bool = False) -> None:
    """As a whole or not at all; `lasting`: also through a power failure. Places need not last: they end with the machine."""
    new = file.parent.parent / f".{file.parent.name[:12]}-{file.name}.new"
    try:
        with open(new, "wb") as out:
            out.write(content)
            if lasting:
                out.flush()
                os.fsync(out.fileno())
        if lasting:
            file.parent.mkdir(exist_ok=True, mode=0o700)
        new.replace(file)
    except OSError as error:
        with suppress(OSError):
            new.unlink(missing_ok=True)
            if lasting:
                file.parent.rmdir()
        raise SkepError(f"{file.parent} cannot be written: {error.strerror}") from None
