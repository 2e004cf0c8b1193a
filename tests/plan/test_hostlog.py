"""A node's log file as a container's log: times, last lines, what is still to come."""

from __future__ import annotations

import asyncio
import io
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from skep.local.hostlog import records, tail_start, time_of
from skep.local.nodes import _only_loopback

SECOND = 1_000_000_000


def test_the_time_a_line_bears() -> None:
    assert time_of(b"2026-11-23T05:36:01.123Z info skep.daemon: x\n") == 1795412161123 * 1_000_000
    assert time_of(b'time="2026-11-23T05:36:01.123456789Z" level=info\n') == 1795412161123456 * 1000
    assert time_of(b"1970-01-01T00:00:01Z x") == SECOND
    for line in (b"", b"Traceback (most recent call last):\n", b"2026-13-99T99:99:99Z x", b" 2026-11-23T05:36:01Z"):
        assert time_of(line) == 0


@given(st.lists(st.binary(max_size=90_000).map(lambda b: b.replace(b"\n", b".")), max_size=6), st.booleans(), st.integers(0, 8))
def test_the_last_lines(lines: list[bytes], ended: bool, tail: int) -> None:
    data = b"\n".join(lines) + (b"\n" if ended and lines else b"")
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        shown = data[tail_start(Path(file.name), tail) :]
    assert shown == b"".join(io.BytesIO(data).readlines()[-tail:] if tail else [])


class Ticking:
    """A clock on which waiting is the moment for something to happen."""

    def __init__(self, *steps: object) -> None:
        self.steps = list(steps)

    def now(self) -> int:
        return 0

    async def sleep(self, ns: int) -> None:
        step = self.steps.pop(0)
        step()  # type: ignore[operator]


def read(path: Path, clock: Ticking, running: object = lambda: False, **more: object) -> list[bytes]:
    chosen = {"follow": False, "since": 0, "until": 0, "tail": -1} | more

    async def collect() -> list[bytes]:
        return [r.data async for r in records(path, clock, running=running, **chosen)]  # type: ignore[arg-type]

    return asyncio.run(collect())


def test_since_until_and_lines_without_a_time(tmp_path: Path) -> None:
    log = tmp_path / "skepd.log"
    log.write_text("1970-01-01T00:00:01Z a\n more of a\n1970-01-01T00:00:03Z b\n")
    assert read(log, Ticking()) == [b"1970-01-01T00:00:01Z a\n", b" more of a\n", b"1970-01-01T00:00:03Z b\n"]
    assert read(log, Ticking(), since=2 * SECOND) == [b"1970-01-01T00:00:03Z b\n"]
    assert read(log, Ticking(), until=2 * SECOND) == [b"1970-01-01T00:00:01Z a\n", b" more of a\n"]
    assert read(log, Ticking(), tail=1) == [b"1970-01-01T00:00:03Z b\n"]
    assert read(tmp_path / "none", Ticking()) == []


def test_following_ends_with_the_node_and_loses_nothing(tmp_path: Path) -> None:
    log = tmp_path / "skepd.log"
    log.write_text("1970-01-01T00:00:01Z a\n")
    running = [True]

    def say(text: str) -> None:
        with log.open("a") as file:
            file.write(text)

    def end() -> None:
        say("last\n")
        running.clear()

    clock = Ticking(lambda: say("more\n"), lambda: None, end)
    assert read(log, clock, lambda: bool(running), follow=True) == [b"1970-01-01T00:00:01Z a\n", b"more\n", b"last\n"]
    assert clock.steps == []


def test_resolvers_that_a_node_cannot_reach() -> None:
    assert _only_loopback("# by hand\nnameserver 127.0.0.53\noptions edns0\n") and _only_loopback("nameserver ::1\n")
    assert not _only_loopback("nameserver 127.0.0.1\nnameserver 192.0.2.1\n") and not _only_loopback("search x\n")
