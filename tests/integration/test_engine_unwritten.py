# ruff: noqa: ASYNC240 - tests may block
"""On a full disk what happens to a container counts all the same, and is written down when there is room again."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from engine_fixture import Bench, config, until

from skep.engine.base import UNSEEN
from skep.engine.oci import bundle
from skep.engine.oci.bundle import Stored
from skep.engine.oci.engine import OciEngine
from skep.engine.oci.folders import Folders

pytestmark = pytest.mark.root


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    # not below its folder, where `wipe` unmounts everything
    made.data = Path(tempfile.mkdtemp(prefix=f"skt{os.getpid()}-disk-", dir="/tmp"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(made.data)], check=True)
    try:
        yield made
    finally:
        made.clear()
        subprocess.run(["umount", "-l", str(made.data)], check=False)
        made.data.rmdir()


@contextmanager
def full(folder: Path) -> Iterator[None]:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass
    try:
        yield
    finally:
        filler.unlink()


@asynccontextmanager
async def started(bench: Bench) -> AsyncIterator[OciEngine]:
    engine = bench.engine()
    await engine.start_up()
    try:
        yield engine
    finally:
        await engine.shut_down()


def on_disk(bench: Bench, id: str) -> Stored:
    found = bundle.load(Folders(bench.data, bench.run), id)
    assert found is not None
    return found


async def with_full_pages(bench: Bench, engine: OciEngine) -> str:
    """A container that runs, whose record fills its last page: one more line needs room that a full disk has not."""
    made = config("sleep", "600")
    await engine.create(made)
    await engine.start(made.id)
    record = bench.data / "containers" / made.id / "state"
    with record.open("ab") as file:
        file.write(b"\n" * (-os.fstat(file.fileno()).st_size % 4096))
    return made.id


@pytest.mark.parametrize("how", ["room", "end"])
def test_what_a_full_disk_does_not_take_is_written_later(bench: Bench, how: str) -> None:
    """When there is room, or when the daemon ends and there is."""

    async def main() -> None:
        async with started(bench) as engine:
            id = await with_full_pages(bench, engine)
            with full(bench.data):
                await engine.amend(id, extra={"stopped": True}, lasting=False)
                with pytest.raises(Exception, match="No space left"):
                    await engine.amend(id, extra={"stopped": False})
                assert (await engine.stop(id, signal="SIGKILL")).code == 137
                assert on_disk(bench, id).exit is None and not on_disk(bench, id).config.extra
            if how == "room":
                await until(lambda: on_disk(bench, id).exit is not None)
        kept = on_disk(bench, id)
        assert kept.exit is not None and (kept.exit.code, kept.exit.known) == (137, True)
        assert kept.config.extra == {"stopped": True}
        bench.wipe()

    asyncio.run(main())


def test_it_starts_on_a_full_disk(bench: Bench) -> None:
    async def main() -> None:
        async with started(bench) as engine:
            id = await with_full_pages(bench, engine)
        bench.wipe()
        # as after a boot
        record = bench.data / "containers" / id / "state"
        record.write_bytes(record.read_bytes().replace(on_disk(bench, id).boot.encode(), b"another"))
        with full(bench.data):
            engine = bench.engine()
            await engine.start_up()
            container = engine.get(id)
            assert container is not None and container.exit is not None
            assert (container.exit.code, container.exit.known) == (UNSEEN, False) and container.exit.error
            assert on_disk(bench, id).exit is None
        await until(lambda: on_disk(bench, id).exit is not None)
        await engine.destroy()

    asyncio.run(main())
