# ruff: noqa: ASYNC240 - tests may block
"""The runtime's copy in memory: what is run is the very program, nobody can change it, and it goes with the engine."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import pytest
from engine_fixture import run, running_engine

from skep.engine.oci.runtime import Runtime
from skep.engine.oci.sealed import seal

pytestmark = pytest.mark.root


def test_containers_are_run_from_a_sealed_copy() -> None:
    async def main() -> None:
        async with running_engine() as engine:
            chosen = engine.runtime
            assert chosen.program == chosen.sealed != chosen.path
            assert engine.describe()["runtime_path"] == chosen.path
            copy = Path(chosen.sealed)
            assert copy.read_bytes() == Path(chosen.path).read_bytes()
            fd = os.open(copy, os.O_RDWR)
            try:
                with pytest.raises(PermissionError):
                    os.write(fd, b"#!")
                with pytest.raises(PermissionError):
                    os.ftruncate(fd, 0)
            finally:
                os.close(fd)
            assert (await run(engine, "true"))[0] == 0
        assert not os.path.exists(chosen.sealed)

    asyncio.run(main())


def test_what_does_not_run_from_memory_is_run_as_it_is(tmp_path: Path) -> None:
    script = tmp_path / "crun"
    script.write_text("no program\n")
    chosen = Runtime(name="crun", path=str(script), version="1", why="")
    before = os.listdir("/proc/self/fd")
    for path in (chosen.path, str(tmp_path / "gone")):
        wanted = msgspec.structs.replace(chosen, path=path)
        assert seal(wanted) == (wanted, -1)
        assert wanted.program == path
    assert os.listdir("/proc/self/fd") == before
