"""Agents and a manager in real time: over TLS on 127.0.0.1, and the manager's own agent in the same process."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest
from link_world import network, task
from tls_world import CLOCK, Manager, serving, until

from skep.agent.agent import Agent
from skep.agent.state import FileState, MemoryState
from skep.datapath.base import Snapshot
from skep.engine.base import LogRecord
from skep.errors import NotFound, SkepError
from skep.link.channel import Closed, encode
from skep.link.messages import LogLine
from skep.manager.local import LocalLink
from skep.model.enums import NodeState, TaskState
from skep.model.node import Node, NodeDescription
from skep.model.task import Task
from skep.plan.ops import Change, Create, Delete
from skep.testing.fake_tasks import FakeTasks


def state(manager: Manager, id: str) -> TaskState:
    found = manager.store.get(Task, id)
    assert found is not None
    return found.state


class Wanted(msgspec.Struct, frozen=True):
    stdout: bool = True
    stderr: bool = True
    follow: bool = False
    since: int = 0
    until: int = 0
    tail: int = -1


def test_tasks_run_stop_and_go_over_tls(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(Manager(tmp_path)) as manager, asyncio.TaskGroup() as group:
            tasks = FakeTasks(CLOCK)
            snapshots: list[Snapshot] = []

            async def apply(snapshot: Snapshot) -> None:
                snapshots.append(snapshot)

            agent = manager.agent(manager.add("n1"), tasks, apply_network=apply)
            running = group.create_task(agent.run())
            await until(lambda: agent.session.welcomed)
            manager.apply(Create(network("in", "10.0.0.0/24", ingress=True), ""))
            manager.apply(Create(task("t1", "n1", TaskState.ASSIGNED, ("in", "10.0.0.3/24")), ""), Create(task("t2", "n1"), ""))
            await until(lambda: state(manager, "t1") is state(manager, "t2") is TaskState.RUNNING)
            assert list(snapshots[-1].networks) == ["network/in"] and "endpoint/t1/in" in snapshots[-1].endpoints
            stored = manager.store.get(Task, "t1")
            assert stored is not None and stored.status.container is not None and stored.status.container.pid == 4711
            tasks.exit("t1", 3)
            await until(lambda: state(manager, "t1") is TaskState.FAILED)
            assert manager.store.get(Task, "t1").status.err == "task: non-zero exit (3)"  # type: ignore[union-attr]
            manager.apply(Change(Task, "t2", {"desired_state": TaskState.SHUTDOWN}, ""))
            await until(lambda: state(manager, "t2") is TaskState.SHUTDOWN)
            assert manager.store.get(Task, "t2").status.container.exit_code == 143  # type: ignore[union-attr]
            manager.apply(Delete(Task, "t1", ""), Delete(Task, "t2", ""))
            await until(lambda: tasks.items == {} and agent.worker.empty)
            await agent.leave()
            async with asyncio.timeout(30):
                await running
            assert manager.store.get(Node, "n1").status.state is NodeState.DOWN  # type: ignore[union-attr]

    asyncio.run(body())


def test_a_restarted_agent_touches_no_container(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(Manager(tmp_path)) as manager, asyncio.TaskGroup() as group:
            tasks, certificates = FakeTasks(CLOCK), manager.add("n1")
            file = FileState(tmp_path / "agent.state")
            running = group.create_task(manager.agent(certificates, tasks, file).run())
            manager.apply(*(Create(task(f"t{n}", "n1"), "") for n in range(5)))
            await until(lambda: len(tasks.running) == 5 and all(state(manager, f"t{n}") is TaskState.RUNNING for n in range(5)))
            running.cancel()
            await asyncio.wait([running])
            file.close()
            tasks.exit("t1", 1)
            tasks.calls.clear()
            again = FileState(tmp_path / "agent.state")
            running = group.create_task(manager.agent(certificates, tasks, again).run())
            await until(lambda: state(manager, "t1") is TaskState.FAILED)
            assert {call for call, _ in tasks.calls} == {"wait"} and tasks.running == {"t0", "t2", "t3", "t4"}
            running.cancel()
            await asyncio.wait([running])
            again.close()

    asyncio.run(body())


def test_tasks_go_on_while_the_manager_is_away_and_are_reported_when_it_is_back(tmp_path: Path) -> None:
    async def body() -> None:
        manager = Manager(tmp_path)
        tasks = FakeTasks(CLOCK)
        async with asyncio.TaskGroup() as group:
            agent = manager.agent(manager.add("n1"), tasks)
            running = group.create_task(agent.run())
            async with serving(manager):
                manager.apply(Create(task("t1", "n1"), ""), Create(task("t2", "n1"), ""))
                await until(lambda: state(manager, "t1") is state(manager, "t2") is TaskState.RUNNING)
            await until(lambda: not agent.session.welcomed)
            tasks.exit("t1", 0)
            await until(lambda: agent.worker.status("t1").state is TaskState.COMPLETE)  # type: ignore[union-attr]
            assert tasks.running == {"t2"}
            manager.restart()
            async with serving(manager):
                await until(lambda: state(manager, "t1") is TaskState.COMPLETE)
                assert state(manager, "t2") is TaskState.RUNNING
                assert [call for call in tasks.calls if call[0] in ("start", "shutdown")] == [("start", "t1"), ("start", "t2")]
            running.cancel()

    asyncio.run(body())


def test_the_managers_own_agent_needs_no_port(tmp_path: Path) -> None:
    async def body() -> None:
        manager = Manager(tmp_path)
        async with asyncio.TaskGroup() as group:
            link = LocalLink("manager", manager.sessions, manager.logs)
            parts = [group.create_task(part) for part in (manager.store.run(), manager.sessions.run(), manager.logs.run(), link.run())]
            tasks = FakeTasks(CLOCK)
            tasks.lines["t1"] = [LogRecord(at=1, stream=1, data=b"one\n"), LogRecord(at=2, stream=2, data=b"two\n")]
            agent = Agent(
                tasks=tasks,
                state=MemoryState(),
                connect=link.session,
                open_logs=link.logs,
                describe=lambda: NodeDescription(hostname="m"),
                clock=CLOCK,
                rng=manager.rng,
                address="192.0.2.1",
                logs=tasks,
            )
            parts.append(group.create_task(agent.run()))
            manager.apply(Create(task("t1", "manager"), ""))
            await until(lambda: state(manager, "t1") is TaskState.RUNNING)
            assert manager.store.get(Node, "manager").status.addr == "192.0.2.1"  # type: ignore[union-attr]
            found = [line async for line in manager.logs.logs([manager.store.get(Task, "t1")], Wanted())]  # type: ignore[list-item]
            assert [(line.task_id, line.stream, line.data) for line in found] == [("t1", 1, b"one\n"), ("t1", 2, b"two\n")]
            for part in parts:
                part.cancel()

    asyncio.run(body())


def test_logs_come_from_every_node_and_what_is_missing_is_said(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(Manager(tmp_path)) as manager, asyncio.TaskGroup() as group:
            nodes = {}
            for name in ("n1", "n2"):
                tasks = nodes[name] = FakeTasks(CLOCK)
                agent = manager.agent(manager.add(name), tasks, logs=tasks)
                nodes[name + "running"] = group.create_task(agent.run())  # type: ignore[assignment]
            manager.add("n3")
            manager.apply(Create(task("t1", "n1"), ""), Create(task("t2", "n2"), ""), Create(task("t3", "n3"), ""))
            await until(lambda: state(manager, "t1") is state(manager, "t2") is TaskState.RUNNING)
            for number, name in ((1, "n1"), (2, "n2")):
                nodes[name].lines[f"t{number}"] = [LogRecord(at=n, stream=1, data=b"x" * 1000 + b"\n") for n in range(1000)]
            both = [manager.store.get(Task, id) for id in ("t1", "t2")]
            found = [line async for line in manager.logs.logs(both, Wanted())]  # type: ignore[arg-type]
            for id in ("t1", "t2"):
                assert [line.at for line in found if line.task_id == id] == list(range(1000))
            found = [line async for line in manager.logs.logs(both, Wanted(tail=3))]  # type: ignore[arg-type]
            assert len(found) == 6
            found = []
            with pytest.raises(SkepError, match="warning: incomplete log stream.*node n3 is not available"):
                async for line in manager.logs.logs([*both, manager.store.get(Task, "t3")], Wanted(tail=1)):  # type: ignore[list-item]
                    found.append(line)
            assert len(found) == 2
            for name in ("n1", "n2"):
                nodes[name + "running"].cancel()  # type: ignore[attr-defined]

    asyncio.run(body())


def test_following_a_service_picks_up_new_tasks_and_ends_with_its_reader(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(Manager(tmp_path)) as manager, asyncio.TaskGroup() as group:
            tasks = FakeTasks(CLOCK)
            running = group.create_task(manager.agent(manager.add("n1"), tasks, logs=tasks).run())
            tasks.lines = {id: [LogRecord(at=1, stream=1, data=id.encode() + b"\n")] for id in ("t1", "t2", "other")}
            manager.apply(Create(task("t1", "n1"), ""))
            await until(lambda: state(manager, "t1") is TaskState.RUNNING)
            async with aclosing(manager.logs.logs([manager.store.get(Task, "t1")], Wanted(follow=True), service_id="web")) as lines:  # type: ignore
                assert (await anext(lines)).data == b"t1\n"
                manager.apply(Create(task("other", "n1", service="db"), ""), Create(task("t2", "n1"), ""))
                async with asyncio.timeout(30):
                    assert (await anext(lines)).data == b"t2\n"
                assert tasks.logs_closed == 0
            await until(lambda: tasks.logs_closed == 2)
            assert not manager.logs._readers and not manager.logs._following
            running.cancel()

    asyncio.run(body())


def test_a_log_stream_is_taken_only_from_the_node_that_was_asked(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(Manager(tmp_path)) as manager, asyncio.TaskGroup() as group:
            silent = FakeTasks(CLOCK)
            running = group.create_task(manager.agent(manager.add("n1"), silent, logs=silent).run())
            other = manager.client(manager.add("n2"))
            await (await other.session()).close()
            manager.apply(Create(task("t1", "n1"), ""))
            await until(lambda: state(manager, "t1") is TaskState.RUNNING)
            reading = manager.logs.logs([manager.store.get(Task, "t1")], Wanted(follow=True), service_id="web")  # type: ignore[list-item]
            first = group.create_task(anext(reading))  # type: ignore[arg-type]
            await until(lambda: manager.logs._readers)
            stream = next(iter(manager.logs._readers))
            with pytest.raises(NotFound):
                await manager.logs.serve("n2", stream, None)  # type: ignore[arg-type]
            channel = await other.logs(stream)
            with pytest.raises(Closed, match="is not wanted"):
                await channel.send(encode([LogLine(task_id="t1", stream=1, at=1, data=b"forged\n")]))
                await channel.receive()
            await channel.close()
            first.cancel()
            await asyncio.wait([first])
            running.cancel()

    asyncio.run(body())
