"""Tasks in real containers: health checks, stop, a restart of the daemon in between. The network is a fake that gives no namespace."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from engine_fixture import Bench, SystemClock, until

from skep.clock import MILLISECOND, SECOND
from skep.datapath.base import Place, Resolving, Sandbox
from skep.engine.base import ExecConfig
from skep.errors import SkepError
from skep.model import spec as s
from skep.model.assignment import TaskItem
from skep.model.task import Task
from skep.node.container import NodeFacts
from skep.node.tasks import TaskRuntime
from skep.testing.fake_datapath import FakeDatapath

pytestmark = pytest.mark.root


class NoNetwork(FakeDatapath):
    async def attach(
        self, sandbox_id: str, places: tuple[Place, ...], sysctls: Mapping[str, str] | None = None, resolving: Resolving | None = None
    ) -> Sandbox:
        await super().attach(sandbox_id, places, sysctls, resolving)
        return Sandbox(id=sandbox_id, path="")


def item(id: str, script: str, **container: Any) -> TaskItem:
    fields = {"stop_grace_period": SECOND, **container}
    spec = s.TaskSpec(container_spec=s.ContainerSpec(image="busybox", command=("sh", "-c", script), **fields))
    return TaskItem(task=Task(id=id, service_id="sid", service_name="web", slot=1, node_id="nid", spec=spec))


def test_health_in_a_real_container_and_a_restart() -> None:
    bench = Bench()
    check = s.Healthcheck(
        test=("CMD-SHELL", "test -f /ok || { touch /asked; echo not yet; exit 1; }"),
        interval=100 * MILLISECOND,
        timeout=10 * SECOND,
        retries=30,
    )
    # it is well once it has been asked
    script = "trap 'exit 0' TERM; until [ -e /asked ]; do sleep 0.05; done; touch /ok; while :; do sleep 0.05; done"
    given = item("t1", script, healthcheck=check)
    datapath = NoNetwork(SystemClock())

    async def main() -> None:
        engine = bench.engine()
        await engine.start_up()
        runtime = TaskRuntime(engine, datapath, NodeFacts(hostname="h"), SystemClock(), random.Random(1))
        await runtime.start_up()
        await runtime.prepare(given)
        async with asyncio.timeout(60):
            await runtime.start(given)
        health = runtime.health("t1")
        assert health is not None and health.status == "healthy"
        assert "not yet" in {result.output.strip() for result in health.results}
        before = runtime.status("t1")
        await engine.shut_down()

        engine = bench.engine()
        await engine.start_up()
        try:
            runtime = TaskRuntime(engine, datapath, NodeFacts(hostname="h"), SystemClock(), random.Random(1))
            await runtime.start_up()
            assert runtime.known() == ["t1"] and runtime.status("t1") == before
            await engine.exec("web.1.t1", ExecConfig(args=("rm", "/ok")))
            with pytest.raises(SkepError, match="^unhealthy container$"):
                async with asyncio.timeout(60):
                    await runtime.wait(given)
            await runtime.shutdown(given)
            ended = await runtime.wait(given)
            assert ended.code == 0
            await runtime.remove("t1")
        finally:
            await engine.destroy()
        await until(lambda: not bench.left(), bench.left)

    try:
        asyncio.run(main())
    finally:
        bench.clear()


class Watched(NoNetwork):
    """Says when a task has its place: its container is made next."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.attached = asyncio.Event()

    async def attach(
        self, sandbox_id: str, places: tuple[Place, ...], sysctls: Mapping[str, str] | None = None, resolving: Resolving | None = None
    ) -> Sandbox:
        self.attached.set()
        return await super().attach(sandbox_id, places, sysctls, resolving)


def test_a_task_that_is_taken_back_while_its_container_is_made_leaves_none() -> None:
    """The engine carries a create to its end, whoever waits for it: what comes of it is the task's, and goes with the task."""
    bench = Bench()

    async def main() -> None:
        engine = bench.engine()
        await engine.start_up()
        datapath = Watched()
        runtime = TaskRuntime(engine, datapath, NodeFacts(hostname="h"), SystemClock(), random.Random(1))
        try:
            for turns in range(8):
                given = item(f"t{turns}", "sleep 100")
                datapath.attached.clear()
                preparing = asyncio.ensure_future(runtime.prepare(given))
                await datapath.attached.wait()
                for _ in range(turns):
                    await asyncio.sleep(0)
                preparing.cancel()
                with suppress(asyncio.CancelledError):
                    await preparing
                await runtime.shutdown(given)
                await runtime.remove(given.task.id)
                other = item("other", "sleep 100")
                await runtime.prepare(other)  # whatever was under way has ended by then
                await runtime.remove("other")
                assert [container.config.name for container in engine.all()] == [] == runtime.known(), turns
        finally:
            await engine.destroy()

    try:
        asyncio.run(main())
    finally:
        bench.clear()


def test_a_probe_that_hangs_is_killed() -> None:
    bench = Bench()
    check = s.Healthcheck(test=("CMD", "sleep", "300"), interval=50 * MILLISECOND, timeout=300 * MILLISECOND, retries=1)
    given = item("t2", "while :; do sleep 0.05; done", healthcheck=check)

    async def main() -> None:
        engine = bench.engine()
        await engine.start_up()
        try:
            runtime = TaskRuntime(engine, NoNetwork(SystemClock()), NodeFacts(hostname="h"), SystemClock(), random.Random(1))
            await runtime.prepare(given)
            with pytest.raises(SkepError, match="^unhealthy container$"):
                async with asyncio.timeout(60):
                    await runtime.start(given)
            health = runtime.health("t2")
            assert health is not None and health.results[-1].output == "Health check exceeded timeout (0.3s)"
            status = runtime.status("t2")
            assert status is not None and status.container is not None
            children = f"/proc/{status.container.pid}/root/proc"

            def hanging() -> bool:
                for file in Path(children).glob("[0-9]*/cmdline"):
                    with suppress(OSError):
                        if file.read_text().startswith("sleep\x00300"):
                            return True
                return False

            await until(lambda: not hanging())
            await runtime.remove("t2")
        finally:
            await engine.destroy()
        await until(lambda: not bench.left(), bench.left)

    try:
        asyncio.run(main())
    finally:
        bench.clear()
