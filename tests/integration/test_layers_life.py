"""Layers that come by two ways at once, whose pull or removal is given up half way, or that are nested deeper than anybody expects."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import tarfile
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from skep.engine.oci.layers import Layers

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def cleared(tmp_path: Path) -> Iterator[None]:
    """What is nested too deep would be too much for pytest as well."""
    yield
    subprocess.run(["rm", "-rf", str(tmp_path)], check=True)


def packed(*names: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            if name.endswith("/"):
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
    return out.getvalue()


async def stream(data: bytes, gate: asyncio.Event | None = None) -> AsyncIterator[bytes]:
    yield data
    if gate is not None:
        await gate.wait()


def test_a_layer_nested_two_thousand_deep_comes_and_goes(tmp_path: Path) -> None:
    data = packed("d/" * 1900, "etc/file")

    async def main() -> None:
        layers = Layers(tmp_path)
        diff_id = await layers.put("", "", stream(data))
        again = Layers(tmp_path)
        assert again.present(diff_id)
        assert await again.collect([]) == [diff_id]
        assert os.listdir(tmp_path / "layers") == []

    asyncio.run(main())


def test_what_a_kill_left_of_one_does_not_keep_the_daemon_from_starting(tmp_path: Path) -> None:
    left = tmp_path / "layers" / "import.tmp"
    left.mkdir(parents=True)
    at = os.open(left, os.O_RDONLY)
    for _ in range(1900):
        os.mkdir("d", dir_fd=at)
        at, last = os.open("d", os.O_RDONLY, dir_fd=at), at
        os.close(last)
    os.close(at)
    Layers(tmp_path)
    assert not left.exists()


def test_one_layer_by_two_ways_at_once(tmp_path: Path) -> None:
    """A pull knows the diff id beforehand, an archive does not: each unpacks it, and one of the two is kept."""
    data = packed("etc/file")

    async def main() -> None:
        layers = Layers(tmp_path)
        diff_id = await Layers(tmp_path / "other").put("", "", stream(data))
        gate = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            made = [group.create_task(layers.put(known, "", stream(data, gate))) for known in ("", diff_id)]
            gate.set()
        assert [task.result() for task in made] == [diff_id, diff_id]
        assert os.listdir(f"{layers.lower(diff_id)}/etc") == ["file"]
        assert os.listdir(tmp_path / "layers") == [diff_id.partition(":")[2]]

    asyncio.run(main())


def test_who_sends_slowly_keeps_nobody_else_waiting(tmp_path: Path) -> None:
    """`docker import -` at a terminal, say."""

    async def main() -> None:
        layers = Layers(tmp_path, parallel=1)
        gate = asyncio.Event()
        slow = asyncio.ensure_future(layers.put("", "", stream(packed("slow/file"), gate)))
        async with asyncio.timeout(20):
            other = await layers.put("", "", stream(packed("other/file")))
            assert await layers.put(other, "", stream(packed("other/file"))) == other
        gate.set()
        assert {await slow, other} == layers.all()

    asyncio.run(main())


class Gated(ThreadPoolExecutor):
    """Stops before or after the step that puts a layer in its place, until it is let go on."""

    def __init__(self, after: bool) -> None:
        super().__init__(2)
        self._after = after
        self.reached, self.go = threading.Event(), threading.Event()

    def submit(self, work: Any, /, *arguments: Any, **more: Any) -> Any:
        if getattr(work, "__name__", "") != "_settle" or self.reached.is_set():
            return super().submit(work, *arguments, **more)

        def gated() -> None:
            if self._after:
                work(*arguments)
            self.reached.set()
            self.go.wait()
            if not self._after:
                work(*arguments)

        return super().submit(gated)


@pytest.mark.parametrize("after", [False, True])
def test_given_up_while_it_is_put_in_its_place(tmp_path: Path, after: bool) -> None:
    """Whenever that happens: it is there as a whole or not at all, and can be fetched again."""
    data = packed("etc/file")

    async def main() -> None:
        layers = Layers(tmp_path)
        layers.executor = gate = Gated(after)
        task = asyncio.ensure_future(layers.put("", "", stream(data)))
        await asyncio.to_thread(gate.reached.wait)
        task.cancel()
        asyncio.get_running_loop().call_later(0.1, gate.go.set)
        with pytest.raises(asyncio.CancelledError):
            await task
        diff_id = await layers.put("", "", stream(data))
        assert os.listdir(f"{layers.lower(diff_id)}/etc") == ["file"]
        assert os.listdir(tmp_path / "layers") == [diff_id.partition(":")[2]]
        assert Layers(tmp_path).present(diff_id)

    asyncio.run(main())


@pytest.mark.parametrize("busy", [False, True])
def test_a_removal_that_is_given_up_goes_on(tmp_path: Path, busy: bool) -> None:
    """Also one that waits for its turn."""

    async def main() -> None:
        layers = Layers(tmp_path, parallel=1)
        for name in ("one", "two", "three"):
            await layers.put("", "", stream(packed(f"{name}/file")))
        free = threading.Event()
        if busy:
            layers.executor.submit(free.wait)
        task = asyncio.ensure_future(layers.collect([]))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        free.set()
        layers.executor.shutdown()
        assert os.listdir(tmp_path / "layers") == []

    asyncio.run(main())
