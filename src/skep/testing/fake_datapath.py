"""A data path without a kernel: sandboxes and ports in memory, with faults to order."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from skep.clock import Clock
from skep.datapath.base import HostPort, LocalState, Place, Resolving, Sandbox, Snapshot
from skep.errors import Conflict, NotFound, SkepError


class FakeDatapath:
    """A `ClusterAware` data path. `fail[call]` (attach, connect, detach, publish, apply_local ...) makes that call raise; `delay[call]`
    makes it take so many ns."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.places: dict[str, tuple[Place, ...]] = {}
        """By sandbox id."""
        self.sysctls: dict[str, dict[str, str]] = {}
        self.resolving: dict[str, Resolving] = {}
        self.ports: dict[str, tuple[HostPort, ...]] = {}
        self.snapshot: Snapshot | None = None
        self.local = LocalState()
        self.address = ""
        """Named by `join`."""
        self.fail: dict[str, SkepError] = {}
        self.delay: dict[str, int] = {}
        self.up = False

    async def _fate(self, call: str) -> None:
        if self.delay.get(call):
            await self._clock.sleep(self.delay[call])
        if call in self.fail:
            raise self.fail[call]

    async def start_up(self) -> None:
        self.up = True

    async def shut_down(self) -> None:
        self.up = False

    async def destroy(self) -> None:
        self.places.clear()
        self.ports.clear()
        self.snapshot = None
        self.up = False

    async def join(self, address: str) -> None:
        self.address = address

    async def leave(self) -> None:
        self.snapshot, self.address = None, ""

    async def attach(
        self, sandbox_id: str, places: tuple[Place, ...], sysctls: Mapping[str, str] | None = None, resolving: Resolving | None = None
    ) -> Sandbox:
        await self._fate("attach")
        self.places.setdefault(sandbox_id, places)
        self.sysctls.setdefault(sandbox_id, dict(sysctls or {}))
        if resolving is not None:
            self.resolving[sandbox_id] = resolving
        return Sandbox(id=sandbox_id, path=self.path_of(sandbox_id))

    async def connect(self, sandbox_id: str, place: Place, resolving: Resolving | None = None) -> None:
        await self._fate("connect")
        if sandbox_id not in self.places:
            raise NotFound(f"No such sandbox: {sandbox_id}")
        if place.network_id in self.networks_of(sandbox_id):
            raise Conflict(f"endpoint with name {sandbox_id} already exists in network {place.network_id}")
        self.places[sandbox_id] = (*self.places[sandbox_id], place)
        if resolving is not None:
            self.resolving[sandbox_id] = resolving

    async def disconnect(self, sandbox_id: str, network_id: str) -> None:
        await self._fate("disconnect")
        if sandbox_id in self.places:
            self.places[sandbox_id] = tuple(p for p in self.places[sandbox_id] if p.network_id != network_id)

    def networks_of(self, sandbox_id: str) -> tuple[str, ...]:
        return tuple(p.network_id for p in self.places.get(sandbox_id, ()))

    def path_of(self, sandbox_id: str) -> str:
        return f"/run/netns/{sandbox_id}"

    async def detach(self, sandbox_id: str) -> None:
        await self._fate("detach")
        self.places.pop(sandbox_id, None)
        self.sysctls.pop(sandbox_id, None)
        self.resolving.pop(sandbox_id, None)
        self.ports.pop(sandbox_id, None)

    async def sandboxes(self) -> list[str]:
        return sorted(self.places)

    async def publish(self, sandbox_id: str, address: str, ports: tuple[HostPort, ...]) -> tuple[HostPort, ...]:
        await self._fate("publish")
        taken = {(p.address, p.protocol, p.published) for id, known in self.ports.items() if id != sandbox_id for p in known}
        given = []
        for port in ports:
            numbers = range(port.published, max(port.last, port.published) + 1) if port.published else range(32768, 61000)
            number = next((n for n in numbers if (port.address, port.protocol, n) not in taken), 0)
            if not number:
                raise Conflict(f"Bind for {port.address or '0.0.0.0'}:{port.published} failed: port is already allocated")
            taken.add((port.address, port.protocol, number))
            given.append(msgspec.structs.replace(port, published=number))
        self.ports[sandbox_id] = tuple(given)
        return self.ports[sandbox_id]

    async def unpublish(self, sandbox_id: str) -> None:
        await self._fate("unpublish")
        self.ports.pop(sandbox_id, None)

    async def apply(self, snapshot: Snapshot) -> None:
        await self._fate("apply")
        self.snapshot = snapshot

    async def apply_local(self, state: LocalState) -> None:
        await self._fate("apply_local")
        self.local = state

    async def compare(self) -> list[str]:
        await self._fate("compare")
        return []
