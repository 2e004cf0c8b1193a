"""A data path without a kernel: sandboxes and ports in memory, with faults to order."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from skep.clock import Clock
from skep.datapath.base import Place, Sandbox, Snapshot
from skep.errors import Conflict, SkepError
from skep.model.spec import PortConfig


class FakeDatapath:
    """`fail[call]` (attach, detach, publish, unpublish, apply) makes that call raise; `delay[call]` makes it take so many ns."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.places: dict[str, tuple[Place, ...]] = {}
        """By sandbox id."""
        self.sysctls: dict[str, dict[str, str]] = {}
        self.ports: dict[str, tuple[PortConfig, ...]] = {}
        self.snapshot: Snapshot | None = None
        self.fail: dict[str, SkepError] = {}
        self.delay: dict[str, int] = {}
        self.up = False
        self._next_port = 32768

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

    async def attach(self, sandbox_id: str, places: tuple[Place, ...], sysctls: Mapping[str, str] | None = None) -> Sandbox:
        await self._fate("attach")
        self.places.setdefault(sandbox_id, places)
        self.sysctls.setdefault(sandbox_id, dict(sysctls or {}))
        return Sandbox(id=sandbox_id, path=f"/run/netns/{sandbox_id}")

    async def detach(self, sandbox_id: str) -> None:
        await self._fate("detach")
        self.places.pop(sandbox_id, None)
        self.sysctls.pop(sandbox_id, None)
        self.ports.pop(sandbox_id, None)

    async def sandboxes(self) -> list[str]:
        return sorted(self.places)

    async def publish(self, sandbox_id: str, address: str, ports: tuple[PortConfig, ...]) -> tuple[PortConfig, ...]:
        await self._fate("publish")
        taken = {(p.protocol or "tcp", p.published_port) for id, known in self.ports.items() if id != sandbox_id for p in known}
        given = []
        for port in ports:
            protocol, number = port.protocol or "tcp", port.published_port
            if not number:
                number = next(free for free in range(self._next_port, 61000) if (protocol, free) not in taken)
            if (protocol, number) in taken:
                raise Conflict(f"driver failed programming external connectivity: port {number}/{protocol} is already allocated")
            taken.add((protocol, number))
            given.append(msgspec.structs.replace(port, protocol=protocol, published_port=number))
        self.ports[sandbox_id] = tuple(given)
        return self.ports[sandbox_id]

    async def unpublish(self, sandbox_id: str) -> None:
        await self._fate("unpublish")
        self.ports.pop(sandbox_id, None)

    async def apply(self, snapshot: Snapshot) -> None:
        await self._fate("apply")
        self.snapshot = snapshot
