"""Clocks that are set, and managers that sleep: nobody is taken for dead because of the time."""

from __future__ import annotations

import asyncio
import random
import time

import pytest
from link_world import World, node, ready, task
from tls_world import until

from skep.agent.agent import Agent
from skep.agent.state import MemoryState
from skep.clock import HOUR, MILLISECOND, SECOND, Drift
from skep.link.channel import Channel, decode_from_agent, encode
from skep.link.memory import pair
from skep.link.messages import Beaten, Heartbeat, Hello, Welcome
from skep.manager.ca import new_root, new_tokens
from skep.manager.sessions import Sessions
from skep.model.cluster import Cluster
from skep.model.enums import NodeState
from skep.model.node import Node, NodeDescription
from skep.model.spec import ClusterSpec, DispatcherConfig, NodeSpec
from skep.model.task import Task
from skep.plan.ops import Create
from skep.store.backends import NullBackend
from skep.store.memory import MemoryStore
from skep.system import SystemClock
from skep.testing.fake_tasks import FakeTasks


class Settable(SystemClock):
    """The real time, and what it was set by."""

    offset = 0

    def now(self) -> int:
        return super().now() + self.offset


@pytest.mark.parametrize("by", [HOUR, -HOUR, 50 * 365 * 24 * HOUR])
def test_how_far_a_clock_was_set(by: int) -> None:
    drift = Drift(1000 * SECOND, 7)
    assert drift.since(1005 * SECOND, 7 + 5 * SECOND) == 0
    assert drift.since(1005 * SECOND + by, 7 + 5 * SECOND) == by
    assert drift.since(1006 * SECOND + by, 7 + 6 * SECOND) == 0


def test_a_clock_that_runs_wrong_is_followed_in_steps() -> None:
    drift = Drift(0, 0)
    moved = [drift.since(n * 1100 * MILLISECOND, n * SECOND) for n in range(1, 7)]
    assert moved == [0, 0, 300 * MILLISECOND, 0, 0, 300 * MILLISECOND]


@pytest.mark.parametrize("by", [HOUR, -HOUR])
def test_deadlines_and_batches_move_with_the_clock(by: int) -> None:
    world = World()
    world.put(ready("n1"))
    session = world.connect("n1")
    world.hear(session)
    world.put(task("t1", "n1"))
    world.settle()
    world.clock.time += by
    world.dispatcher.shift(by)
    assert len(world.hear(session, 60 * MILLISECOND)) == 1, "the assignment waits no longer than it would have"
    world.pass_time(5 * SECOND)
    assert world.node("n1").status.state is NodeState.READY
    world.pass_time(20 * SECOND)
    assert world.node("n1").status.state is NodeState.DOWN


@pytest.mark.parametrize("by", [HOUR, -HOUR])
def test_a_manager_whose_clock_is_set_keeps_its_nodes(by: int) -> None:
    async def body() -> None:
        clock = Settable()
        store = MemoryStore(NullBackend(), clock)
        store.apply([Create(thing, "for the test") for thing in (node("n1", 1), node("n2", 2))])
        sessions = Sessions(store, clock, random.Random(1))
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(store.run()), group.create_task(sessions.run())]
            ends = [await greeted(group, sessions, name) for name in ("n1", "n2")]
            clock.offset = by
            await ends[0].send(encode(Heartbeat()))
            await ends[0].receive()
            store.apply([Create(task("t1", "n1"), "for the test")])
            await ends[0].receive()
            assert {n.status.state for n in store.all(Node)} == {NodeState.READY}
            for end in ends:
                await end.close()
            for part in running:
                part.cancel()

    async def greeted(group: asyncio.TaskGroup, sessions: Sessions, name: str) -> Channel:
        ours, theirs = pair()
        group.create_task(sessions.serve(name, theirs, "192.0.2.1"))
        await ours.send(encode(Hello(description=NodeDescription(hostname=name))))
        await ours.receive()
        await ours.receive()
        return ours

    asyncio.run(body())


def test_a_manager_that_was_held_up_gives_its_nodes_as_much_more_time() -> None:
    """Its loop is blocked for longer than a node may be silent, as it is when the machine freezes it."""

    async def body() -> None:
        clock = SystemClock()
        store = MemoryStore(NullBackend(), clock)
        spec = ClusterSpec(name="default", dispatcher=DispatcherConfig(heartbeat_period=300 * MILLISECOND))
        root = new_root(clock.now())
        cluster = Cluster(id="cluster", spec=spec, root_ca=root, tokens=new_tokens(root, random.Random(1)))
        store.apply([Create(thing, "for the test") for thing in (cluster, node("n1", 1))])
        sessions = Sessions(store, clock, random.Random(1))
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(store.run()), group.create_task(sessions.run())]
            ours, theirs = pair()
            group.create_task(sessions.serve("n1", theirs, "192.0.2.1"))
            await ours.send(encode(Hello(description=NodeDescription(hostname="n1"))))
            await ours.receive()
            await asyncio.sleep(0.01)
            time.sleep(2.2)  # noqa: ASYNC251
            await asyncio.sleep(0.05)
            found = store.get(Node, "n1")
            assert found is not None and found.status.state is NodeState.READY
            await ours.close()
            for part in running:
                part.cancel()

    asyncio.run(body())


@pytest.mark.parametrize("by", [HOUR, -HOUR])
def test_an_agent_whose_clock_is_set_goes_on_beating(by: int) -> None:
    async def body() -> None:
        clock = Settable()
        ours, theirs = pair()
        connects = 0

        async def connect() -> Channel:
            nonlocal connects
            connects += 1
            return theirs

        async def no_logs(stream: str) -> Channel:
            raise AssertionError

        agent = Agent(
            tasks=FakeTasks(clock),
            state=MemoryState(),
            connect=connect,
            open_logs=no_logs,
            describe=lambda: NodeDescription(hostname="n1"),
            clock=clock,
            rng=random.Random(1),
        )
        period = 50 * MILLISECOND
        async with asyncio.TaskGroup() as group, asyncio.timeout(5):
            running = group.create_task(agent.run())
            assert isinstance(decode_from_agent(await ours.receive()), Hello)
            await ours.send(encode(Welcome(session_id="s", node_id="n1", heartbeat_period=period, spec=NodeSpec())))
            for beat in range(4):
                assert isinstance(decode_from_agent(await ours.receive()), Heartbeat)
                if beat == 1:
                    clock.offset = by
                await ours.send(encode(Beaten(period=period)))
            await until(lambda: agent.session.welcomed)
            assert connects == 1
            running.cancel()

    asyncio.run(body())


def test_what_a_worker_tries_again_moves_with_the_clock() -> None:
    from skep.agent.worker import Worker
    from skep.link.messages import Assignments
    from skep.model.assignment import TaskItem
    from skep.plan.workload import Call, Ended

    worker = Worker(MemoryState(), 1000 * SECOND)
    worker.assign(Assignments(complete=True, results_in=1, version=1, set=(TaskItem(task=Task(id="t1")),)), 1000 * SECOND)
    worker.withdraw_all(1000 * SECOND)
    call = worker.take()[-1]
    worker.finished("t1", Call.PREPARE, Ended(cancelled=True), None, 1000 * SECOND)
    call = worker.take()[-1]
    assert getattr(call, "call", None) is Call.SHUTDOWN
    worker.finished("t1", Call.SHUTDOWN, Ended(error="busy"), None, 1000 * SECOND)
    due = worker.tick(1000 * SECOND)
    assert due is not None
    worker.shift(-HOUR)
    assert worker.tick(1000 * SECOND - HOUR) == due - HOUR
