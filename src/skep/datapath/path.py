"""`KernelDatapath`: the contract of skep.datapath.base over a router namespace, packed netlink and nft. See docs/network.md.

The work is layout.py's; the kernel is touched by one thread, one call after another, so there is nothing to lock. What
was last applied is kept in memory; after a start and an error the next `apply` compares with the kernel itself, and `compare` does so
whenever somebody has touched anything of ours; what differs is mended (inspection.py, repair.py). Between a start and the first `apply`
nothing of the cluster's is touched: containers go on talking.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from skep.datapath.base import HostPort, LocalState, Place, Resolving, Sandbox, Snapshot
from skep.datapath.desired import Here, LocalPlace
from skep.datapath.layout import Layout

T = TypeVar("T")


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What this node's network is according to, for those who try it out (skep.datapath.check)."""

    snapshot: Snapshot | None
    here: Here
    router: Path
    """Its namespace."""
    places: tuple[tuple[LocalPlace, Path], ...] = ()
    """Of the containers here, each with its namespace."""
    refused: frozenset[str] = frozenset()
    """Ids of networks that this node cannot lay: nobody is asked over them."""


class KernelDatapath(Layout):
    """The contract: each call is one whole step in the one thread."""

    _thread: ThreadPoolExecutor | None = None

    async def _run(self, call: Callable[[], T]) -> T:
        """In the one thread. A cancelled caller leaves the call to finish: it is one whole step."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="datapath")
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    # -- the contract

    async def start_up(self) -> None:
        await self._run(self._start_up)

    async def shut_down(self) -> None:
        await self._run(self._close)
        self._end_thread()

    async def destroy(self) -> None:
        await self._run(self._destroy)
        self._end_thread()

    async def join(self, address: str) -> None:
        await self._run(lambda: self._join(address))

    async def leave(self) -> None:
        await self._run(self._leave)

    async def attach(
        self, sandbox_id: str, places: tuple[Place, ...], sysctls: Mapping[str, str] | None = None, resolving: Resolving | None = None
    ) -> Sandbox:
        return await self._run(lambda: self._attach(sandbox_id, places, sysctls))

    async def connect(self, sandbox_id: str, place: Place, resolving: Resolving | None = None) -> None:
        await self._run(lambda: self._connect(sandbox_id, place))

    async def disconnect(self, sandbox_id: str, network_id: str) -> None:
        await self._run(lambda: self._disconnect(sandbox_id, network_id))

    async def detach(self, sandbox_id: str) -> None:
        await self._run(lambda: self._detach(sandbox_id))

    async def sandboxes(self) -> list[str]:
        return await self._run(lambda: sorted(self._sandboxes.records))

    async def publish(self, sandbox_id: str, address: str, ports: tuple[HostPort, ...]) -> tuple[HostPort, ...]:
        return await self._run(lambda: self._publish(sandbox_id, address, ports))

    async def unpublish(self, sandbox_id: str) -> None:
        await self._run(lambda: self._unpublish(sandbox_id))

    async def apply(self, snapshot: Snapshot) -> None:
        await self._run(lambda: self._apply(snapshot))

    async def apply_local(self, state: LocalState) -> None:
        await self._run(lambda: self._apply_local(state))

    async def compare(self) -> list[str]:
        return await self._run(lambda: self._compare(mend=True))

    async def explain(self) -> list[str]:
        """What `compare` would mend now, a sentence each; nothing is changed."""
        return await self._run(lambda: self._compare(mend=False))

    async def refused(self) -> list[str]:
        """A sentence for each network that this node cannot lay."""
        return await self._run(self._refusals.sentences)

    async def standing(self) -> Standing:
        """What was applied last, and from where it can be tried out."""
        return await self._run(self._standing)

    def _standing(self) -> Standing:
        places = tuple((place, self._sandboxes.path(record.id)) for record in self._sandboxes.records.values() for place in record.places)
        return Standing(
            snapshot=self._snapshot,
            here=Here(address=self._address, mtu=self._mtu),
            router=self._router.pin,
            places=places,
            refused=self._refusals.ids,
        )

    def _end_thread(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=False)
            self._thread = None
