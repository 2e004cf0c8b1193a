# ruff: noqa: ASYNC240 - tests may block
"""The engine's owner dies by SIGKILL at work, or starts anew: running containers do not notice, and no exit code is lost."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from engine_fixture import Bench, config, until

from skep.engine.base import Mount
from skep.engine.oci import kernel

pytestmark = pytest.mark.root
OWNER = Path(__file__).with_name("engine_owner.py")


@contextmanager
def owner(bench: Bench, count: int, *command: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, int]]]:
    """A process that owns an engine, and the pids of the containers it keeps; killed at the end."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    argv = [sys.executable, str(OWNER), str(bench.folder), str(count), *command]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        pids: dict[str, int] = {}
        try:
            for line in process.stdout:
                if line == "up\n":
                    break
                id, pid = line.split()
                pids[id] = int(pid)
            yield process, pids
        finally:
            process.kill()


def test_kill_nine_of_the_owner_under_load() -> None:
    """Killed again and again at random moments while containers come and go: those that run are the same processes throughout."""
    bench = Bench()
    seconds = random.Random(7)
    try:
        with owner(bench, 8, "sh", "-c", "while :; do echo line; sleep 0.01; done") as (process, pids):
            assert len(pids) == 8
            time.sleep(seconds.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            process.wait()
        born = {pid: kernel.start_ticks(pid) for pid in pids.values()}
        assert all(born.values()), "they run while nobody owns them"
        for _ in range(3):
            with owner(bench, 0) as (process, _none):
                time.sleep(seconds.uniform(0, 0.3))
                process.send_signal(signal.SIGKILL)
                process.wait()

        async def adopt() -> None:
            engine = bench.engine()
            await engine.start_up()
            try:
                for id, pid in pids.items():
                    container = engine.get(id)
                    assert container is not None and container.running and container.pid == pid
                    assert kernel.start_ticks(pid) == born[pid], "not one was restarted"
                    lines = [record.data async for record in engine.logs(id, tail=5)]
                    assert lines == [b"line\n"] * 5
                for container in engine.all():
                    assert container.running == (container.config.name.startswith("kept")) or container.exit is None
                exits = await asyncio.gather(*[engine.stop(id, signal="SIGKILL") for id in pids])
                assert [exit.code for exit in exits] == [137] * 8
            finally:
                await engine.destroy()
            await until(lambda: not bench.left(), bench.left)

        asyncio.run(adopt())
    finally:
        bench.clear()


def test_an_end_while_nobody_watches_keeps_its_code() -> None:
    bench = Bench()

    async def main() -> None:
        engine = bench.engine()
        await engine.start_up()
        told = bench.folder / "told"
        told.mkdir()
        mounts = (Mount(target="/told", source=str(told)),)
        ending = config("sh", "-c", "until [ -e /told/end ]; do sleep 0.05; done; exit 42", mounts=mounts)
        staying = config("sleep", "600")
        for made in (ending, staying):
            await engine.create(made)
            await engine.start(made.id)
        await engine.shut_down()
        (told / "end").touch()
        await until(lambda: (bench.run / "exits" / ending.id).exists())
        engine = bench.engine()
        await engine.start_up()
        try:
            exit = await engine.wait(ending.id)
            assert (exit.code, exit.known) == (42, True)
            assert 0 <= exit.at - engine.get(ending.id).started_at < 10_000_000_000  # type: ignore[union-attr]
            container = engine.get(staying.id)
            assert container is not None and container.running
            await engine.kill(staying.id)
            assert (await engine.wait(staying.id)).code == 137
        finally:
            await engine.destroy()
        await until(lambda: not bench.left(), bench.left)

    try:
        asyncio.run(main())
    finally:
        bench.clear()


@pytest.mark.parametrize("restart", [False, True])
def test_conmon_killed(restart: bool) -> None:
    """The container goes on; its end is noticed, its code is not known. With a restart of ours in between as well."""
    bench = Bench()

    async def main() -> None:
        engine = bench.engine()
        await engine.start_up()
        made = config("sleep", "600")
        await engine.create(made)
        pid = await engine.start(made.id)
        conmon = int((bench.run / "c" / made.id / "conmon.pid").read_text())
        os.kill(conmon, signal.SIGKILL)
        await until(lambda: not kernel.start_ticks(conmon))
        if restart:
            await engine.shut_down()
            engine = bench.engine()
            await engine.start_up()
        try:
            container = engine.get(made.id)
            assert container is not None and container.running and container.pid == pid
            await engine.kill(made.id)
            exit = await engine.wait(made.id)
            assert not exit.known and exit.error
            await engine.remove(made.id)
        finally:
            await engine.destroy()
        await until(lambda: not bench.left(), bench.left)

    try:
        asyncio.run(main())
    finally:
        bench.clear()


def test_what_a_crash_left_unfinished_is_removed() -> None:
    """A folder without its record; a record whose start was under way: a process that waits for its go; what a removal had not got to."""
    bench = Bench()

    async def main() -> None:
        engine = bench.engine()
        await engine.start_up()
        made, half, gone = config("sleep", "600"), config("sleep", "600"), config("sleep", "600")
        for one in (made, half, gone):
            await engine.create(one)
        await engine.start(made.id)
        await engine.shut_down()
        shutil.rmtree(bench.data / "containers" / gone.id)
        (bench.run / "exits" / gone.id).write_text("0")
        (bench.data / "containers" / half.id / "state").unlink()
        record = bench.data / "containers" / made.id / "state"
        # as if we had died between the go and writing it down, or while writing
        made_line, _, started = record.read_text().partition("\n")
        record.write_text(f"{made_line}\n\n{started.strip()[:-7]}")
        engine = bench.engine()
        await engine.start_up()
        try:
            assert engine.get(half.id) is None
            assert os.listdir(bench.run / "c") == [made.id] and not os.listdir(bench.run / "exits")
            container = engine.get(made.id)
            assert container is not None and container.running and container.pid > 0
        finally:
            await engine.destroy()
        await until(lambda: not bench.left(), bench.left)

    try:
        asyncio.run(main())
    finally:
        bench.clear()


def test_the_choice_of_runtime_is_remembered() -> None:
    bench = Bench()

    async def main() -> None:
        engine = bench.engine()
        await engine.start_up()
        first = dict(engine.describe())
        await engine.shut_down()
        engine = bench.engine()
        begin = time.monotonic()
        await engine.start_up()
        try:
            assert time.monotonic() - begin < 5
            assert dict(engine.describe()) == first
            assert first["runtime"] in ("crun", "runc") and first["runtime_why"]
        finally:
            await engine.destroy()
        await until(lambda: not bench.left(), bench.left)

    try:
        asyncio.run(main())
    finally:
        bench.clear()


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_another_parent_of_cgroups_is_that_of_new_containers(runtime: str) -> None:
    """What was started before stays where it is, is paused there, and leaves nothing there."""
    bench = Bench(runtime)
    parents = (bench.cgroup, f"{bench.cgroup}/other")

    def groups(parent: str, id: str) -> list[Path]:
        tops = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]
        return [top for top in tops if os.path.isdir(f"{top}{parent}/{id}")]

    async def main() -> None:
        made = config("sleep", "1000")
        engine = bench.engine()
        await engine.start_up()
        await engine.create(made)
        await engine.start(made.id)
        await engine.shut_down()
        bench.cgroup = parents[1]
        engine = bench.engine()
        bench.cgroup = parents[0]
        await engine.start_up()
        try:
            for parent in parents:
                await engine.pause(made.id)
                await engine.unpause(made.id)
                assert groups(parent, made.id)
                await engine.stop(made.id, signal="SIGKILL")
                await engine.start(made.id)
                assert not groups(parents[0], made.id)
        finally:
            await engine.destroy()
        assert not groups(parents[1], made.id)

    try:
        asyncio.run(main())
    finally:
        bench.clear()
