"""Logs: joined lines, since, until and tail, following, and rotation while lines flow. Then exec and attach."""

from __future__ import annotations

import asyncio
import random
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from engine_fixture import config, running_engine

from skep.engine.base import LogRecord
from skep.engine.oci.logs import JOINED, Lines, Reader, files, rotate
from skep.errors import SkepError


async def texts(records: AsyncIterator[LogRecord]) -> list[bytes]:
    return [record.data async for record in records]


def line(number: int, text: str, stream: str = "stdout", tag: str = "F") -> bytes:
    return f"2026-11-23T06:13:{number // 1000:02}.{number % 1000:03}000000+00:00 {stream} {tag} {text}\n".encode()


def test_lines_are_joined_for_each_stream() -> None:
    lines = Lines()
    fed = [
        line(1, "out-", tag="P"),
        line(2, "err-", "stderr", "P"),
        line(3, "more-", tag="P"),
        line(4, "end", "stderr"),
        line(5, ""),
        b"rubbish\n",
        line(6, "half", tag="P"),
    ]
    records = [record for one in fed if (record := lines.feed(one.rstrip(b"\n"))) is not None]
    assert [(record.stream, record.data) for record in records] == [(2, b"err-end\n"), (1, b"out-more-\n")]
    assert records[0].at % 1_000_000_000 == 2_000_000
    assert [record.data for record in lines.rest()] == [b"half"]
    assert lines.rest() == []


def test_a_line_without_end_is_given_in_pieces() -> None:
    lines = Lines()
    got = [record for _ in range(3 * JOINED // 8192) if (record := lines.feed(line(1, "x" * 8192, tag="P").rstrip(b"\n"))) is not None]
    assert [len(record.data) for record in got] == [JOINED] * 3


def test_times_are_exact_and_zones_are_heard() -> None:
    lines = Lines()
    one = lines.feed(b"1970-01-01T01:00:01.000000007+01:00 stdout F x")
    two = lines.feed(b"1970-01-01T00:00:01.000000008+00:00 stdout F x")
    assert one is not None and two is not None
    assert (one.at, two.at) == (1_000_000_007, 1_000_000_008)


@pytest.mark.parametrize("seed", range(20))
def test_tail_over_rotated_files(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    total = rng.randrange(0, 4000)
    written = [line(number, f"{number} " + "y" * rng.choice([0, 1, 100, 3000])) for number in range(total)]
    cuts = sorted(rng.randrange(0, total + 1) for _ in range(3))
    parts = [written[: cuts[0]], written[cuts[0] : cuts[1]], written[cuts[1] : cuts[2]], written[cuts[2] :]]
    for name, part in zip(("log.3", "log.2", "log.1", "log"), parts, strict=True):
        (tmp_path / name).write_bytes(b"".join(part))
    wanted = rng.choice([0, 1, 2, total // 2, total, total + 5, -1])
    reader = Reader(tmp_path, wanted, {1, 2})
    got: list[LogRecord] = []
    while (found := reader.read()) is not None:
        got += found
    reader.close()
    expected = [one.split(b" ", 3)[3] for one in (written if wanted < 0 else written[len(written) - min(wanted, total) :])]
    assert [record.data for record in got] == expected


def test_a_tail_is_as_long_as_asked_while_more_is_written(tmp_path: Path) -> None:
    ended = threading.Event()

    def write() -> None:
        with (tmp_path / "log").open("ab", buffering=0) as log:
            while not ended.is_set():
                log.write(line(1, "x" * 50))

    log = tmp_path / "log"
    log.write_bytes(line(0, "x" * 50) * 2000)
    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(200):
            reader = Reader(tmp_path, 5, {1, 2}, bounded=True)
            got: list[LogRecord] = []
            while (found := reader.read()) is not None:
                got += found
            reader.close()
            assert len(got) == 5
    finally:
        ended.set()
        writer.join()


def test_a_reader_follows_through_rotations(tmp_path: Path) -> None:
    """However far it lags behind, as long as its file's successors are still there, it misses no line and sees none twice."""
    rng = random.Random(3)
    (tmp_path / "log").touch()
    reader = Reader(tmp_path, -1, {1})
    got: list[bytes] = []
    written = 0
    for _ in range(60):
        with (tmp_path / "log").open("ab") as log:
            for _ in range(rng.randrange(5)):
                log.write(line(written, str(written)))
                written += 1
        if rng.random() < 0.3:
            rotate(tmp_path, 20, (tmp_path / "log").touch)
        if rng.random() < 0.3:
            while (found := reader.read()) is not None:
                got += [record.data for record in found]
    while (found := reader.read()) is not None:
        got += [record.data for record in found]
    reader.close()
    assert got == [f"{number}\n".encode() for number in range(written)]


def test_rotation_keeps_so_many_files(tmp_path: Path) -> None:
    for keep, names in ((1, ["log"]), (2, ["log.1", "log"]), (3, ["log.2", "log.1", "log"])):
        folder = tmp_path / str(keep)
        folder.mkdir()
        for _ in range(5):
            (folder / "log").touch()
            rotate(folder, keep, (folder / "log").touch)
        assert [path.name for path in files(folder)] == names


def test_a_rotation_that_fails_leaves_the_log_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("x")

    def gone() -> None:
        raise SkepError("nobody reads")

    with pytest.raises(SkepError):
        rotate(tmp_path, 3, gone)
    assert (tmp_path / "log").read_text() == "x"


@pytest.mark.root
def test_a_log_whose_container_was_removed_ends(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(line(0, "0"))
    reader = Reader(tmp_path, -1, {1})
    shutil.rmtree(tmp_path)
    assert [record.data for record in reader.read() or ()] == [b"0\n"]
    assert reader.read() is None
    reader.close()


def test_partial_lines_streams_and_windows() -> None:
    async def main() -> None:
        async with running_engine() as engine:
            long = "head -c 30000 /dev/zero | tr '\\0' x; echo; "
            made = config("sh", "-c", long + "for i in 1 2 3 4 5; do echo $i; echo e$i >&2; done; printf unfinished")
            await engine.create(made)
            await engine.start(made.id)
            await engine.wait(made.id)
            records = [record async for record in engine.logs(made.id)]
            out = [record.data for record in records if record.stream == 1]
            assert out[0] == b"x" * 30000 + b"\n"
            assert out[1:] == [b"1\n", b"2\n", b"3\n", b"4\n", b"5\n", b"unfinished"]
            assert [record.data for record in records if record.stream == 2] == [b"e1\n", b"e2\n", b"e3\n", b"e4\n", b"e5\n"]
            assert await texts(engine.logs(made.id, stdout=False, tail=2)) == [b"e4\n", b"e5\n"]
            middle = sorted(records, key=lambda record: record.at)[5].at
            early = await texts(engine.logs(made.id, until=middle))
            late = await texts(engine.logs(made.id, since=middle + 1))
            assert len(early) + len(late) == len(records)

    asyncio.run(main())


@pytest.mark.root
def test_following_and_rotation_while_lines_flow() -> None:
    """Every line reaches the follower once and in order, while the file is rotated many times under it."""

    async def main() -> None:
        async with running_engine() as engine:
            count = 40000
            script = f"i=0; while [ $i -lt {count} ]; do i=$((i+1)); echo $i; [ $((i % 200)) = 0 ] && sleep 0.01; done"
            made = config("sh", "-c", script, log_max_size=100_000, log_max_files=3)
            await engine.create(made)
            got: list[int] = []

            async def follow() -> None:
                async for record in engine.logs(made.id, follow=True):
                    got.append(int(record.data))

            async with asyncio.TaskGroup() as group:
                group.create_task(follow())
                await engine.start(made.id)
            assert (await engine.wait(made.id)).code == 0
            assert got == list(range(1, count + 1))
            kept = await texts(engine.logs(made.id))
            folder = Path(engine.describe()["root"]) / "containers" / made.id
            names = [path.name for path in files(folder)]
            assert 2 <= len(names) <= 3, names
            assert kept == [f"{number}\n".encode() for number in range(count - len(kept) + 1, count + 1)]

    asyncio.run(main())


@pytest.mark.root
def test_a_follower_ends_with_the_container_and_when_told_to() -> None:
    async def main() -> None:
        async with running_engine() as engine:
            made = config("sh", "-c", "echo a; sleep 0.2; echo b; sleep 600")
            await engine.create(made)
            await engine.start(made.id)
            seen: list[bytes] = []

            async def follow() -> None:
                async for record in engine.logs(made.id, follow=True):
                    seen.append(record.data)
                    if record.data == b"b\n":
                        await engine.kill(made.id)

            async with asyncio.timeout(20):
                await follow()
            assert seen == [b"a\n", b"b\n"]
            silent = config("sh", "-c", "echo x", log_driver="none")
            await engine.create(silent)
            await engine.start(silent.id)
            await engine.wait(silent.id)
            with pytest.raises(SkepError, match="configured logging driver does not support reading"):
                await texts(engine.logs(silent.id))

    asyncio.run(main())


@pytest.mark.root
@pytest.mark.parametrize("follow", [True, False])
def test_a_log_asked_for_is_read_though_its_container_is_removed(follow: bool) -> None:
    """Python's docker asks for the log, waits for the end, removes, and reads then."""

    async def main() -> None:
        async with running_engine() as engine:
            made = config("sh", "-c", "seq 2000; printf rest")
            await engine.create(made)
            await engine.start(made.id)
            asked = engine.logs(made.id, follow=follow)
            never_read = engine.logs(made.id, follow=follow)
            await engine.wait(made.id)
            await engine.remove(made.id)
            del never_read
            if follow:
                assert b"".join(await texts(asked)) == b"".join(b"%d\n" % number for number in range(1, 2001)) + b"rest"
            else:
                assert (await texts(asked))[:3] == [b"1\n", b"2\n", b"3\n"]

    asyncio.run(main())
