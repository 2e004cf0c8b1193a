# ruff: noqa: ASYNC240 - tests may block
"""What a container has changed and uses, what streams, and what is asked of one that is being removed. Real runtimes."""

from __future__ import annotations

import asyncio
import os
import shutil
import tarfile
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path

import pytest
from engine_fixture import Bench, config, running_engine, started
from tars import pack, read, sent

from skep.engine.base import Limits
from skep.engine.oci.engine import OciEngine
from skep.errors import Conflict, Invalid, NotFound, SkepError

pytestmark = pytest.mark.root


def helping() -> tuple[int, int]:
    """(our child processes, our open pipes): what a program that helps is seen by."""
    children, links = 0, []
    for task in os.listdir("/proc/self/task"):
        with suppress(OSError):  # threads come and go
            children += len(Path(f"/proc/self/task/{task}/children").read_text().split())
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    return children, sum(link.startswith("pipe:") for link in links)


def test_a_large_file_streams_in_little_memory() -> None:
    """200 MB in and out through a process that may not hold them, and a reader that goes away early leaves nothing behind."""
    size = 200 << 20

    async def main() -> None:
        async with running_engine() as engine:
            id = await started(engine, "sleep", "600")
            header = tarfile.TarInfo("big")
            header.size = size

            async def big() -> AsyncIterator[bytes]:
                yield header.tobuf()
                for _ in range(size >> 20):
                    yield bytes(1 << 20)
                yield bytes(1024)

            import resource

            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            await engine.write_archive(id, "/home", big())
            total = 0
            async for chunk in engine.read_archive(id, "/home/big"):
                total += len(chunk)
            assert total >= size
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60 << 10, "KiB"
            before_reading = helping()
            stream = engine.read_archive(id, "/home/big")
            async with asyncio.timeout(20), aclosing(stream):  # type: ignore[type-var]
                async for _ in stream:
                    break
                await asyncio.sleep(0.2)  # the pipe and what reads it are full: it is stopped
                assert helping() != before_reading
            assert helping() == before_reading

            async def endless() -> AsyncIterator[bytes]:
                yield header.tobuf()
                while True:
                    yield bytes(1 << 16)
                    await asyncio.sleep(0)

            copying = asyncio.ensure_future(engine.write_archive(id, "/home", endless()))
            await asyncio.sleep(0.1)
            copying.cancel()
            with pytest.raises(asyncio.CancelledError):
                await copying

    asyncio.run(main())


def test_changes_and_size() -> None:
    bench = Bench()
    lower = bench.folder / "lower"
    (lower / "old/sub").mkdir(parents=True)
    (lower / "old/gone").write_text("x")
    (lower / "old/sub/a").write_text("x")
    (lower / "old/sub/b").write_text("x")
    (lower / "same").mkdir()
    bench.layers.append(str(lower))

    async def main(engine: OciEngine) -> None:
        await engine.start_up()
        try:
            script = "echo 1234567 > /new; mkdir /dir; echo x > /dir/f; rm /old/gone; echo y >> /etc/passwd; ls /same; "
            script += "rm -r /old/sub; mkdir /old/sub; echo a > /old/sub/a; chmod 700 /home"
            made = config("sh", "-c", script)
            await engine.create(made)
            assert await engine.changes(made.id) == [] and await engine.size(made.id) == (0, 0)
            await engine.start(made.id)
            assert (await engine.wait(made.id)).code == 0
            assert await engine.changes(made.id) == [
                (1, "/dir"),
                (1, "/dir/f"),
                (0, "/etc"),
                (0, "/etc/passwd"),
                (0, "/home"),
                (1, "/new"),
                (0, "/old"),
                (2, "/old/gone"),
                (0, "/old/sub"),
                (1, "/old/sub/a"),
                (2, "/old/sub/b"),
            ]
            written, _ = await engine.size(made.id)
            assert written == 8 + 2 + 2 + len((Path(bench.layers[0]) / "etc/passwd").read_text()) + 2
        finally:
            await engine.destroy()

    try:
        asyncio.run(main(bench.engine()))
    finally:
        bench.clear()


@pytest.mark.parametrize("runtime", ["auto", "runc"])
def test_stats_count_what_is_used(runtime: str) -> None:
    async def main() -> None:
        async with running_engine(runtime) as engine:
            script = "x=$(head -c 20000000 /dev/zero | tr '\\0' x); i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; "
            script += "echo ready; exec sleep 600"
            id = await started(engine, "sh", "-c", script, limits=Limits(memory=256 << 20, pids=20))
            async for _ in engine.logs(id, follow=True):
                break
            one = await engine.stats(id)
            assert one.cpu_total > 10**7 and one.cpu_user + one.cpu_kernel > 0 and one.online_cpus == os.cpu_count()
            assert one.memory_limit == 256 << 20 and 10**5 < one.memory <= one.memory_max < one.memory_limit and one.memory_max > 10**7
            assert (one.pids, one.pids_limit) == (1, 20) and one.memory_detail and one.networks == {}
            two = await engine.stats(id)
            assert two.at > one.at and two.system_cpu >= one.system_cpu > 0
            await engine.pause(id)
            assert (await engine.stats(id)).pids == 1
            await engine.kill(id)
            await engine.wait(id)
            ended = await engine.stats(id)
            assert ended.at and (ended.memory, ended.cpu_total, ended.memory_limit) == (0, 0, 0)

    asyncio.run(main())


def test_a_container_that_nests_folders_without_end_is_measured_and_removed() -> None:
    bench = Bench()

    async def main(engine: OciEngine) -> None:
        await engine.start_up()
        try:
            made = config("sh", "-c", "echo 12345 > /f; i=0; while [ $i -lt 2500 ]; do mkdir d && cd d; i=$((i+1)); done")
            await engine.create(made)
            await engine.start(made.id)
            assert (await engine.wait(made.id)).code == 0
            assert (await engine.size(made.id))[0] == 6
            with pytest.raises(SkepError, match="nested too deeply"):
                await engine.changes(made.id)
            with pytest.raises(Invalid, match="nested too deeply"):
                await engine.write_archive(made.id, "/", sent(pack(("d", b"a file"))))
            await engine.remove(made.id)
            assert engine.get(made.id) is None and not (bench.data / "containers" / made.id).exists()
        finally:
            await engine.destroy()

    try:
        asyncio.run(main(bench.engine()))
    finally:
        bench.clear()


def test_changes_of_what_is_being_removed() -> None:
    async def main() -> None:
        async with running_engine() as engine:
            made = config("true")
            await engine.create(made)
            shutil.rmtree(Path(engine.describe()["root"]) / "containers" / made.id / "upper")
            with pytest.raises(Conflict, match="try again"):
                await engine.changes(made.id)

    asyncio.run(main())


def test_whoever_looks_into_what_is_being_removed_is_told_so() -> None:
    async def main() -> None:
        async with running_engine() as engine:

            async def look(id: str) -> str:
                try:
                    await engine.stat_path(id, "/etc")
                except NotFound as error:
                    return error.message
                return "seen"

            told = set()
            for turn in range(30):
                made = config("true")
                await engine.create(made)
                async with asyncio.TaskGroup() as group:
                    looks = [group.create_task(look(made.id)) for _ in range(3)]
                    for _ in range(turn):
                        await asyncio.sleep(0)
                    group.create_task(engine.remove(made.id))
                told |= {look.result().replace(made.id, "X") for look in looks}
            assert told <= {"seen", "No such container: X"} and told

    asyncio.run(main())


def test_whoever_writes_into_what_is_being_removed_is_told_so() -> None:
    archive = pack(*[(f"in/{n}/{n}/{n}", b"x" * 100) for n in range(300)])

    async def main() -> None:
        async with running_engine() as engine:

            async def write(id: str, begun: asyncio.Event) -> str:
                async def data() -> AsyncIterator[bytes]:
                    async for piece in sent(archive, 20_000):
                        yield piece
                        begun.set()

                try:
                    await engine.write_archive(id, "/tmp", data())
                except SkepError as error:
                    return error.message
                return "written"

            told = set()
            for _ in range(20):
                made, begun = config("true"), asyncio.Event()
                await engine.create(made)
                async with asyncio.TaskGroup() as group:
                    writing = group.create_task(write(made.id, begun))
                    await begun.wait()
                    group.create_task(engine.remove(made.id))
                told.add(writing.result().replace(made.id, "X"))
            assert told <= {"written", "No such container: X"} and told

    asyncio.run(main())


def test_a_container_has_the_files_that_tell_it_is_one() -> None:
    async def main() -> None:
        async with running_engine() as engine:
            made = config("sleep", "600", read_only=True)
            await engine.create(made)
            names = (".dockerenv", "etc/hosts", "etc/hostname", "etc/resolv.conf")
            for _ in range(2):
                found = await read(engine.export(made.id))
                assert {name: (found[name].mode & 0o7777, found[name].size) for name in names} == dict.fromkeys(names, (0o755, 0))
                await engine.start(made.id)
            assert await engine.changes(made.id) == []

    asyncio.run(main())
