"""A resolver without a process: it answers by the same rules, from memory, and does what it is told to fail at."""

from __future__ import annotations

from skep.datapath.base import LocalState, Resolving, Sandbox, Snapshot
from skep.datapath.names import Answer, look_up, view_of
from skep.datapath.tables import Facts, plain, told
from skep.errors import SkepError


class FakeNames:
    """`fail[call]` (serve, withdraw, forget, apply, apply_local) makes that call raise; `drift` is what the next `compare` mends."""

    def __init__(self) -> None:
        self.facts = Facts()
        self.served: dict[str, tuple[tuple[str, ...], Resolving]] = {}
        """By sandbox id: networks, and how names resolve."""
        self.snapshot: Snapshot | None = None
        self.fail: dict[str, SkepError] = {}
        self.drift: list[str] = []
        self.up = False

    def _fate(self, call: str) -> None:
        if call in self.fail:
            raise self.fail[call]

    async def start_up(self) -> None:
        self.up = True

    async def shut_down(self) -> None:
        self.up = False

    async def destroy(self) -> None:
        self.facts, self.served, self.snapshot, self.up = Facts(), {}, None, False

    async def serve(self, sandbox: Sandbox, networks: tuple[str, ...], resolving: Resolving) -> None:
        self._fate("serve")
        self.served[sandbox.id] = networks, resolving

    async def withdraw(self, sandbox_id: str, network_id: str) -> None:
        self._fate("withdraw")
        if sandbox_id in self.served:
            networks, resolving = self.served[sandbox_id]
            self.served[sandbox_id] = tuple(n for n in networks if n != network_id), resolving

    async def forget(self, sandbox_id: str) -> None:
        self._fate("forget")
        self.served.pop(sandbox_id, None)

    async def apply(self, snapshot: Snapshot) -> None:
        self._fate("apply")
        self.snapshot = snapshot
        self.facts.change(told(snapshot).values(), whole=True)

    async def apply_local(self, state: LocalState) -> None:
        self._fate("apply_local")
        self.facts.change_local(state)

    async def compare(self) -> list[str]:
        said, self.drift = self.drift, []
        return said

    def resolve(self, sandbox_id: str, name: str, own: tuple[str, ...] = ()) -> tuple[str, ...]:
        """What the container would be answered: addresses, or the name of an address in reverse. `own`: its addresses."""
        networks, resolving = self.served[sandbox_id]
        found = look_up(self.facts.tables, view_of(networks, resolving, own), plain(name))
        return tuple(x for x in (*found.addresses, found.pointer) if x) if isinstance(found, Answer) else ()
