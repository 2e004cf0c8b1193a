"""`skep.node.base.Attachments` in real time: agents over TLS, the manager's controllers at work, containers that come and go."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from test_attaching import overlay
from tls_world import CLOCK, Manager, serving, until

from skep.agent import attachments as attachments_module
from skep.agent.agent import Agent
from skep.agent.attachments import ClusterAttachments
from skep.agent.state import FileState
from skep.datapath.base import Snapshot
from skep.errors import Conflict, Forbidden, Invalid, NotFound, SkepError, Unavailable
from skep.link.tls import Certificates
from skep.manager.controllers import controllers
from skep.manager.loop import Loop
from skep.model.enums import TaskState as S
from skep.model.node import Node
from skep.model.task import Task
from skep.node.base import AttachedNetwork, Attachments
from skep.plan.ops import Create, Delete
from skep.testing.fake_tasks import FakeTasks

A, B = "a" * 64, "b" * 64


@asynccontextmanager
async def deciding(manager: Manager) -> AsyncIterator[Manager]:
    """A manager with its controllers, listening."""
    async with serving(manager), asyncio.TaskGroup() as group:
        running = group.create_task(Loop(manager.store, CLOCK, manager.rng, controllers()).run())
        yield manager
        running.cancel()


class Host:
    """A node: its daemon's attachments live longer than its agent."""

    def __init__(self, manager: Manager, name: str, folder: Path) -> None:
        self.manager = manager
        self.certificates: Certificates = manager.add(name)
        self.attachments = ClusterAttachments(random.Random(name))
        self.attachments.is_member = lambda: True
        self.sandboxes: set[str] = set()
        self.snapshots: list[Snapshot] = []
        self.tasks = FakeTasks(CLOCK)
        self.lost: list[tuple[str, str]] = []
        self.attachments.when_lost(lambda container, network: self.lost.append((container, network)))
        self._path = folder / f"{name}.state"
        self.agent: Agent
        self._running: asyncio.Task[None] | None = None

    def start(self, group: asyncio.TaskGroup) -> None:
        async def apply(snapshot: Snapshot) -> None:
            self.snapshots.append(snapshot)

        async def sandboxes() -> Sequence[str]:
            return list(self.sandboxes)

        self._file = FileState(self._path)
        self.agent = self.manager.agent(
            self.certificates, self.tasks, self._file, apply_network=apply, attachments=self.attachments, sandboxes=sandboxes
        )
        self._running = group.create_task(self.agent.run())

    async def stop(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
            self._file.close()

    @property
    def ended(self) -> bool:
        return self._running is not None and self._running.done()

    async def runs(self, container: str = A, network: str = "net-name", **more: object) -> str:
        """docker run: a place, then a sandbox. Returns its address."""
        attached, address = await self.attachments.attach(network, container, **more)  # type: ignore[arg-type]
        assert attached == AttachedNetwork(id="net", name="net-name")
        assert f"network/{attached.id}" in self.snapshots[-1].networks, "its data path has the network"
        self.sandboxes.add(container)
        return address

    async def ends(self, container: str = A) -> None:
        self.sandboxes.discard(container)
        await self.attachments.detach(container)


def run(tmp_path: Path, body: Callable[[Manager, Host, asyncio.TaskGroup], Awaitable[None]]) -> None:
    async def whole() -> None:
        manager = Manager(tmp_path)
        manager.store.apply([Create(overlay("net", "10.9.0.0/24"), ""), Create(overlay("closed", "10.8.0.0/24", attachable=False), "")])
        manager.store.flush()
        host = Host(manager, "n1", tmp_path)
        async with asyncio.TaskGroup() as group:
            try:
                await body(manager, host, group)
            finally:
                await host.stop()

    asyncio.run(whole())


def places(manager: Manager) -> list[S]:
    return [task.state for task in manager.store.all(Task)]


def test_a_container_comes_and_goes(tmp_path: Path) -> None:
    async def body(manager: Manager, host: Host, group: asyncio.TaskGroup) -> None:
        async with deciding(manager):
            host.start(group)
            attachments: Attachments = host.attachments
            address = await host.runs(names=("client",))
            assert address == "10.9.0.2/24"
            await until(lambda: places(manager) == [S.RUNNING])
            assert [network.id for network in attachments.networks()] == ["net"]
            await until(lambda: any(e.serving and e.names == ("client", A[:12]) for e in host.snapshots[-1].endpoints.values()))
            assert await host.runs(names=("client",)) == address, "idempotent"
            await host.ends()
            assert places(manager) == [], "the network may be removed at once"
            await until(lambda: not host.snapshots[-1].networks)
            assert host.tasks.calls == [] and host.lost == []
            await host.ends()

    run(tmp_path, body)


def test_what_is_refused_in_dockers_words(tmp_path: Path) -> None:
    async def body(manager: Manager, host: Host, group: asyncio.TaskGroup) -> None:
        async with deciding(manager):
            host.start(group)
            await host.runs(A, address="10.9.0.9")
            for network, address, kind, text in (
                ("closed-name", "", Forbidden, "rpc error: code = PermissionDenied desc = network closed-name not manually attachable"),
                ("nothing", "", NotFound, "network nothing not found"),
                ("net", "10.9.0.9", Conflict, "Address already in use"),
                ("net", "10.7.0.9", Invalid, "invalid address 10.7.0.9: It does not belong to any of this network's subnets"),
            ):
                with pytest.raises(kind) as refused:
                    await host.attachments.attach(network, B, address=address)
                assert refused.value.message == text
            await until(lambda: places(manager) == [S.RUNNING])

    run(tmp_path, body)


def test_find_asks_the_manager_and_knows_the_nodes_own_without(tmp_path: Path) -> None:
    async def body(manager: Manager, host: Host, group: asyncio.TaskGroup) -> None:
        assert await ClusterAttachments(random.Random(1)).find("net") is None, "in no cluster"
        async with deciding(manager):
            host.start(group)
            await until(lambda: host.agent.session.welcomed)
            found = await host.attachments.find("net-name")
            assert found is not None and found.id == "net"
            assert await host.attachments.find("closed") is None
            await host.runs()
        await until(lambda: not host.agent.session.welcomed)
        for reference, there in (("net", True), ("net-name", True), ("ne", True), ("closed", False), ("", False)):
            assert (await host.attachments.find(reference) is not None) is there

    run(tmp_path, body)


def test_places_survive_the_daemon_and_the_manager(tmp_path: Path) -> None:
    async def body(manager: Manager, host: Host, group: asyncio.TaskGroup) -> None:
        async with deciding(manager):
            host.start(group)
            address = await host.runs(A)
            await host.runs(B)
            await until(lambda: places(manager) == [S.RUNNING, S.RUNNING])
            await host.stop()
            host.attachments = ClusterAttachments(random.Random(5))
        # a manager and a daemon that have just started; of the two containers one has ended meanwhile
        host.sandboxes.discard(B)
        manager.restart()
        async with deciding(manager):
            host.start(group)
            await until(lambda: places(manager) == [S.RUNNING])
            assert await host.runs(A) == address
            assert places(manager) == [S.RUNNING]
            # the greeting said which one has ended: the manager may have acted on it before it is heard from
            await until(lambda: host.agent.session.welcomed)
            await host.ends(A)
            assert places(manager) == []

    run(tmp_path, body)


def test_a_place_that_the_daemon_was_killed_over_ends_though_its_container_runs(tmp_path: Path) -> None:
    async def body(manager: Manager, host: Host, group: asyncio.TaskGroup) -> None:
        async with deciding(manager):
            host.start(group)
            await host.runs(A)
            await host.runs(B)
            await until(lambda: places(manager) == [S.RUNNING, S.RUNNING])
            await host.stop()
            host.attachments = ClusterAttachments(random.Random(5))
            host.attachments.when_lost(lambda container, network: host.lost.append((container, network)))
            host.attachments.claimed = lambda container, network: (container, network) == (A, "net")
            host.start(group)
            await until(lambda: places(manager) == [S.RUNNING])
            assert host.lost == [(B, "net")], "its interface goes"
            await host.runs(B)
            await until(lambda: places(manager) == [S.RUNNING, S.RUNNING])
            assert host.lost == [(B, "net")]

    run(tmp_path, body)


def test_a_place_is_given_back_that_ended_while_no_manager_was_there(tmp_path: Path) -> None:
    async def body(manager: Manager, host: Host, group: asyncio.TaskGroup) -> None:
        async with deciding(manager):
            host.start(group)
            await host.runs()
            await until(lambda: places(manager) == [S.RUNNING])
        await until(lambda: not host.agent.session.welcomed)
        await host.ends()
        assert places(manager) == [S.RUNNING]
        manager.restart()
        async with deciding(manager):
            await until(lambda: places(manager) == [])

    run(tmp_path, body)


def test_a_running_container_keeps_its_place_without_a_manager_and_a_new_one_says_why_not(tmp_path: Path) -> None:
    async def body(manager: Manager, host: Host, group: asyncio.TaskGroup) -> None:
        async with deciding(manager):
            host.start(group)
            address = await host.runs()
        await until(lambda: not host.agent.session.welcomed)
        host.attachments.patience = 0.5
        assert await host.runs() == address
        with pytest.raises(Unavailable, match="no manager gave a place on network net-name"):
            await host.attachments.attach("net-name", B)

    run(tmp_path, body)


def test_what_was_asked_for_and_given_up_leaves_nothing(tmp_path: Path) -> None:
    """The container's start was cancelled; the place was on its way."""

    async def body(manager: Manager, host: Host, group: asyncio.TaskGroup) -> None:
        async with deciding(manager):
            host.start(group)
            await until(lambda: host.agent.session.welcomed)
            for wait in (0.0, 0.002, 0.005, 0.02):
                asking = group.create_task(host.attachments.attach("net", A))
                await asyncio.wait([asking], timeout=wait)
                asking.cancel()
                await asyncio.wait([asking])
                await until(lambda: places(manager) in ([], [S.RUNNING]))
                await host.ends(A)
                await until(lambda: places(manager) == [])

    run(tmp_path, body)


def test_a_removed_node_loses_its_places_and_its_containers_are_told(tmp_path: Path) -> None:
    async def body(manager: Manager, host: Host, group: asyncio.TaskGroup) -> None:
        async with deciding(manager):
            host.start(group)
            await host.runs()
            await until(lambda: places(manager) == [S.RUNNING])
            manager.store.apply([Delete(Node, "n1", "")])
            await until(lambda: places(manager) == [] and host.lost == [(A, "net")])

    run(tmp_path, body)


def test_a_node_that_leaves_takes_its_containers_off_the_network(tmp_path: Path) -> None:
    async def body(manager: Manager, host: Host, group: asyncio.TaskGroup) -> None:
        async with deciding(manager):
            host.start(group)
            await host.runs()
            await host.agent.leave()
            await until(lambda: host.lost == [(A, "net")] and host.ended)
            host.attachments.is_member = lambda: False
            with pytest.raises(NotFound, match="network net not found"):
                await host.attachments.attach("net", A)

    run(tmp_path, body)


def test_an_attach_before_the_agent_runs_waits_for_it(tmp_path: Path) -> None:
    async def body(manager: Manager, host: Host, group: asyncio.TaskGroup) -> None:
        async with deciding(manager):
            asking = group.create_task(host.attachments.attach("net", A))
            host.start(group)
            assert (await asking)[1] == "10.9.0.2/24"

    run(tmp_path, body)


def test_a_container_on_two_networks_started_again_and_again(tmp_path: Path) -> None:
    async def body(manager: Manager, host: Host, group: asyncio.TaskGroup) -> None:
        manager.store.apply([Create(overlay("two", "10.7.0.0/24"), "")])
        async with deciding(manager):
            host.start(group)
            for _ in range(5):
                await asyncio.gather(host.runs(A, address="10.9.0.7"), host.attachments.attach("two", A, address="10.7.0.7"))
                await until(lambda: places(manager) == [S.RUNNING, S.RUNNING])
                await host.ends(A)
            assert places(manager) == []

    run(tmp_path, body)


def test_every_error_of_a_manager_is_one_that_the_api_knows() -> None:
    assert all(issubclass(kind, SkepError) and kind.status == status for status, kind in attachments_module._ERRORS.items())
