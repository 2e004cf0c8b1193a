# ruff: noqa: ASYNC240 - tests may block
"""Whatever is killed, and whenever: what the engine says afterwards is what the kernel says, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from engine_fixture import Bench, config, until

from skep.engine.base import Container, Mount
from skep.engine.oci import kernel
from skep.engine.oci.engine import OciEngine
from skep.engine.oci.folders import remove_tree
from skep.errors import SkepError

pytestmark = pytest.mark.root
OWNER = Path(__file__).with_name("engine_owner.py")


def frozen(bench: Bench, id: str) -> bool:
    v1, v2 = Path(f"/sys/fs/cgroup/freezer{bench.cgroup}/{id}/freezer.state"), Path(f"/sys/fs/cgroup{bench.cgroup}/{id}/cgroup.freeze")
    return v1.read_text() != "THAWED\n" if v1.exists() else v2.read_text() == "1\n"


def work_and_die(bench: Bench, seconds: float) -> None:
    """An owner that controls its containers, killed at work."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OWNER_WORK": "control"}
    argv = [sys.executable, str(OWNER), str(bench.folder), "4", "sleep", "600"]
    if list((bench.data / "containers").glob("*")) if bench.data.exists() else []:
        argv[3] = "0"
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line == "up\n":
                    break
            time.sleep(seconds)
            assert process.poll() is None, "it died by itself"
        finally:
            process.kill()


def known(engine: OciEngine, id: str) -> Container:
    """As it is now: what was found a while ago may have ended since."""
    container = engine.get(id)
    assert container is not None
    return container


async def adopted(bench: Bench) -> OciEngine:
    engine = bench.engine()
    await engine.start_up()
    return engine


def test_kill_nine_of_the_owner_while_it_controls() -> None:
    """Pauses, changes, stops and starts are hit at random moments: records, kernel and answers agree, and everything can go on."""
    bench = Bench()
    seconds = random.Random(11)

    async def check() -> None:
        engine = await adopted(bench)
        try:
            assert len(engine.all()) == 4
            for id in [container.config.id for container in engine.all()]:
                container = known(engine, id)
                if container.running and not kernel.start_ticks(container.pid):
                    async with asyncio.timeout(10):  # it is just ending: that must be noticed
                        await engine.wait(id)
                    container = known(engine, id)
                if container.running:
                    assert container.paused == frozen(bench, id)
                    assert container.config.extra.get("turn", 1) > 0
                    if container.paused:
                        await engine.unpause(id)
                        container = known(engine, id)
                if not container.running:  # also one whose owner's last word was a kill
                    assert container.exit is None or not container.exit.known or container.exit.code == 137
                    await engine.start(id)
                found = known(engine, id)
                assert found.running and not found.paused
                assert engine.get(found.config.name) == found, "names are right"
                assert (await engine.stat_path(id, "/etc/passwd")).size
        finally:
            await engine.shut_down()

    try:
        for _ in range(6):
            work_and_die(bench, seconds.uniform(0.05, 0.6))
            asyncio.run(check())

        async def end() -> None:
            engine = await adopted(bench)
            await engine.destroy()
            await until(lambda: not bench.left(), bench.left)

        asyncio.run(end())
    finally:
        bench.clear()


@pytest.mark.parametrize("restart", [False, True])
def test_conmon_killed_while_it_is_paused(restart: bool) -> None:
    bench = Bench()

    async def main() -> None:
        engine = await adopted(bench)
        made = config("sleep", "600")
        await engine.create(made)
        pid = await engine.start(made.id)
        await engine.pause(made.id)
        conmon = int((bench.run / "c" / made.id / "conmon.pid").read_text())
        os.kill(conmon, signal.SIGKILL)
        await until(lambda: not kernel.start_ticks(conmon))
        if restart:
            await engine.shut_down()
            engine = await adopted(bench)
        try:
            container = engine.get(made.id)
            assert container is not None and container.running and container.paused and container.pid == pid
            async with asyncio.timeout(20):
                exit = await engine.stop(made.id, grace=0)
                assert not exit.known
                again = await engine.start(made.id)
            container = engine.get(made.id)
            assert container is not None and container.pid == again and not container.paused and container.exit is None
        finally:
            await engine.destroy()
        await until(lambda: not bench.left(), bench.left)

    try:
        asyncio.run(main())
    finally:
        bench.clear()


def test_after_a_reboot() -> None:
    """Everything killed, /run empty: what ran has ended with an unknown code, what had ended keeps its code, files and logs are there,
    and all can be started again."""
    bench = Bench()
    (bench.folder / "v").mkdir()

    async def main() -> None:
        engine = await adopted(bench)
        mounts = (Mount(target="/v", source=str(bench.folder / "v")),)
        running = config("sh", "-c", "echo x >> /count; echo x >> /v/count; wc -l < /count; exec sleep 600", mounts=mounts, name="running")
        paused, ended, created = config("sleep", "600"), config("sh", "-c", "exit 7"), config("true")
        shared = config("sleep", "600", ipc_mode="shareable")
        every = (running, paused, ended, created, shared)
        for made in every:
            await engine.create(made)
            if made is not created:
                await engine.start(made.id)
        await engine.wait(ended.id)
        await engine.pause(paused.id)
        await engine.amend(running.id, name="renamed", extra={"kept": 1})
        async for _ in engine.logs(running.id, follow=True):
            break
        await engine.shut_down()
        bench.wipe()
        remove_tree(bench.run)
        engine = await adopted(bench)
        try:
            states = {made.id: engine.get(made.id) for made in every}
            assert all(states.values())
            assert not any(state.running or state.paused for state in states.values())  # type: ignore[union-attr]
            exits = [state.exit for id, state in states.items() if id in (running.id, paused.id, shared.id)]  # type: ignore[union-attr]
            assert all(exit is not None and not exit.known and exit.error for exit in exits)
            assert states[ended.id].exit.code == 7 and states[ended.id].exit.known  # type: ignore[union-attr]
            assert states[created.id].exit is None and states[created.id].started_at == 0  # type: ignore[union-attr]
            assert states[running.id].config.name == "renamed" and states[running.id].config.extra == {"kept": 1}  # type: ignore[union-attr]
            assert (await engine.stat_path(running.id, "/count")).size == 2
            for made in every:
                await engine.start(made.id)
            got: list[bytes] = []
            async for record in engine.logs(running.id, follow=True):
                got.append(record.data)
                if len(got) == 2:
                    break
            assert got == [b"1\n", b"2\n"], "its files and its log are those of before"
            assert (bench.folder / "v" / "count").read_text() == "x\nx\n"
        finally:
            await engine.destroy()
        await until(lambda: not bench.left(), bench.left)

    try:
        asyncio.run(main())
    finally:
        bench.clear()


def test_a_container_and_all_its_watchers_killed_at_once() -> None:
    """Its process, its conmon and the owner: afterwards it has ended, with a code if conmon lived to write it, else unknown."""
    bench = Bench()

    async def main() -> None:
        engine = await adopted(bench)
        made = [config("sleep", "600") for _ in range(6)]
        for one in made:
            await engine.create(one)
            await engine.start(one.id)
        await engine.shut_down()
        for turn, one in enumerate(made):
            pids = [int((bench.run / "c" / one.id / name).read_text()) for name in ("pid", "conmon.pid")]
            for pid in pids if turn % 2 else pids[::-1]:
                with suppress(ProcessLookupError):  # a monitor whose container has ended is quick to go by itself
                    os.kill(pid, signal.SIGKILL)
            await until(lambda: not any(kernel.start_ticks(pid) for pid in pids))  # noqa: B023
        engine = await adopted(bench)
        try:
            for one in made:
                async with asyncio.timeout(10):
                    exit = await engine.wait(one.id)
                assert (exit.code == 137) if exit.known else exit.error
                try:
                    await engine.kill(one.id)
                    raise AssertionError("it has ended")
                except SkepError as error:
                    assert "is not running" in error.text
                await engine.start(one.id)
        finally:
            await engine.destroy()
        await until(lambda: not bench.left(), bench.left)

    try:
        asyncio.run(main())
    finally:
        bench.clear()
