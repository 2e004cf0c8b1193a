# ruff: noqa: ASYNC240 - tests may block
"""Clients that leave while the process writes: its monitor lives on."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest
from engine_fixture import running_engine, started

from skep.engine.base import Mount

pytestmark = pytest.mark.root


def test_the_monitor_survives_clients_that_leave_in_the_midst() -> None:
    async def main() -> None:
        async with running_engine() as engine:
            told = Path(engine.describe()["root"]).parent / "told"
            told.mkdir()
            script = "until [ -e /told/stop ]; do echo line; usleep 300; done; exit 7"
            id = await started(engine, "sh", "-c", script, mounts=(Mount(target="/told", source=str(told)),))
            for turn in range(1000):
                attached = [await engine.attach(id) for _ in range(3)]
                if turn % 2:
                    async with aclosing(attached[0].output()) as output:
                        await anext(output)
                for streams in attached:
                    await streams.close()
            (told / "stop").touch()  # not by an exec, which may be ended with the container
            ended = await engine.wait(id)
            assert (ended.code, ended.known) == (7, True)

    asyncio.run(main())


def test_the_monitor_s_own_files_lie_with_ours() -> None:
    """It is killed now and then, and leaves the socket of a terminal behind: not among the host's temporary files."""

    async def main() -> None:
        async with running_engine() as engine:
            id = await started(engine, "sleep", "600", tty=True)
            run = Path(engine.describe()["root"]).parent / "r"
            monitor = (run / "c" / id / "conmon.pid").read_text().strip()
            assert f"TMPDIR={run / 't'}".encode() in Path(f"/proc/{monitor}/environ").read_bytes().split(b"\0")
            assert list((run / "t").iterdir()) == []

    asyncio.run(main())
