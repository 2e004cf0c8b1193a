"""The network of a node as one thing: the kernel's part and the resolver's, one behind the other, so that nobody forgets half of it.

`NodeNetwork` lives as long as the daemon, cluster or no cluster. `MemberNetwork` is what a membership sees of it: joining a cluster names
the node's address, leaving it takes away the cluster's part and nothing else. See docs/network.md.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Protocol

from skep.datapath.base import Datapath, HostPort, LocalState, Names, Place, Resolving, Sandbox, Snapshot
from skep.errors import SkepError

log = logging.getLogger(__name__)


class ClusterAware(Datapath, Protocol):
    async def join(self, address: str) -> None:
        """This node's address on the underlay, from now on."""
        ...

    async def leave(self) -> None:
        """Forget the last snapshot and take all of the cluster's out of the kernel; sandboxes and local networks stay."""
        ...

    def networks_of(self, sandbox_id: str) -> tuple[str, ...]:
        """Ids of the networks that the sandbox is on, in order of its interfaces."""
        ...

    def path_of(self, sandbox_id: str) -> str:
        """Of its network namespace."""
        ...


class NodeNetwork:
    """Implements `Datapath` over a kernel's part and a resolver."""

    def __init__(self, kernel: ClusterAware, names: Names) -> None:
        self._kernel = kernel
        self._names = names

    async def start_up(self) -> None:
        await self._kernel.start_up()
        await self._names.start_up()

    async def shut_down(self) -> None:
        await self._names.shut_down()
        await self._kernel.shut_down()

    async def destroy(self) -> None:
        await self._names.destroy()
        await self._kernel.destroy()

    async def attach(
        self, sandbox_id: str, places: tuple[Place, ...], sysctls: Mapping[str, str] | None = None, resolving: Resolving | None = None
    ) -> Sandbox:
        sandbox = await self._kernel.attach(sandbox_id, places, sysctls, resolving)
        if resolving is not None:
            try:
                await self._names.serve(sandbox, self._kernel.networks_of(sandbox_id), resolving)
            except BaseException:
                await self.detach(sandbox_id)
                raise
        return sandbox

    async def connect(self, sandbox_id: str, place: Place, resolving: Resolving | None = None) -> None:
        await self._kernel.connect(sandbox_id, place, resolving)
        if resolving is not None:
            await self._serve_again(sandbox_id, resolving)

    async def disconnect(self, sandbox_id: str, network_id: str) -> None:
        """The interface first: whoever finds it there after a kill finds its names too. A resolver that does not answer is told later."""
        await self._kernel.disconnect(sandbox_id, network_id)
        try:
            await self._names.withdraw(sandbox_id, network_id)
        except SkepError as error:
            log.warning("names in sandbox %s: %s", sandbox_id, error.message)

    async def _serve_again(self, sandbox_id: str, resolving: Resolving) -> None:
        sandbox = Sandbox(id=sandbox_id, path=self._kernel.path_of(sandbox_id))
        await self._names.serve(sandbox, self._kernel.networks_of(sandbox_id), resolving)

    async def detach(self, sandbox_id: str) -> None:
        """Where the resolver does not answer, the address and ports are given back all the same: whoever serves by then finds the
        namespace gone."""
        try:
            await self._names.forget(sandbox_id)
        except SkepError as error:
            log.warning("names in sandbox %s: %s", sandbox_id, error.message)
        finally:
            await self._kernel.detach(sandbox_id)

    async def sandboxes(self) -> list[str]:
        return await self._kernel.sandboxes()

    async def publish(self, sandbox_id: str, address: str, ports: tuple[HostPort, ...]) -> tuple[HostPort, ...]:
        return await self._kernel.publish(sandbox_id, address, ports)

    async def unpublish(self, sandbox_id: str) -> None:
        await self._kernel.unpublish(sandbox_id)

    async def apply(self, snapshot: Snapshot) -> None:
        """Names of what is new follow the way to it; what leaves has left both when this returns."""
        await self._kernel.apply(snapshot)
        await self._names.apply(snapshot)

    async def apply_local(self, state: LocalState) -> None:
        await self._kernel.apply_local(state)
        await self._names.apply_local(state)

    async def compare(self) -> list[str]:
        mended, renamed = await asyncio.gather(self._kernel.compare(), self._names.compare())
        return [*mended, *renamed]

    async def join(self, address: str) -> None:
        await self._kernel.join(address)

    async def leave(self) -> None:
        try:
            await self._names.apply(Snapshot())
        finally:
            await self._kernel.leave()


class MemberNetwork:
    """`Datapath` of one membership: starting and ending it are joining and leaving; the node's network itself goes on."""

    def __init__(self, node: NodeNetwork, address: str) -> None:
        self._node = node
        self._address = address

    async def start_up(self) -> None:
        await self._node.join(self._address)

    async def shut_down(self) -> None:
        """The kernel keeps the cluster's part: containers go on talking while the node is away from it."""

    async def destroy(self) -> None:
        await self._node.leave()

    async def attach(
        self, sandbox_id: str, places: tuple[Place, ...], sysctls: Mapping[str, str] | None = None, resolving: Resolving | None = None
    ) -> Sandbox:
        return await self._node.attach(sandbox_id, places, sysctls, resolving)

    async def connect(self, sandbox_id: str, place: Place, resolving: Resolving | None = None) -> None:
        await self._node.connect(sandbox_id, place, resolving)

    async def disconnect(self, sandbox_id: str, network_id: str) -> None:
        await self._node.disconnect(sandbox_id, network_id)

    async def detach(self, sandbox_id: str) -> None:
        await self._node.detach(sandbox_id)

    async def sandboxes(self) -> list[str]:
        return await self._node.sandboxes()

    async def publish(self, sandbox_id: str, address: str, ports: tuple[HostPort, ...]) -> tuple[HostPort, ...]:
        return await self._node.publish(sandbox_id, address, ports)

    async def unpublish(self, sandbox_id: str) -> None:
        await self._node.unpublish(sandbox_id)

    async def apply(self, snapshot: Snapshot) -> None:
        await self._node.apply(snapshot)

    async def apply_local(self, state: LocalState) -> None:
        await self._node.apply_local(state)

    async def compare(self) -> list[str]:
        return await self._node.compare()
