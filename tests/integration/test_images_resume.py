"""Pulls that broke off go on; full disks: one clear error, and nothing half unpacked."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiohttp import web
from image_world import Shelf, images, leftovers, server, small

from skep.errors import SkepError
from skep.local.build import Built, image, layer, program, sha256, text

pytestmark = pytest.mark.root
SIZE = 6 << 20


def big(count: int = 3) -> Built:
    """Layers that do not compress, so that a blob is as long as its files."""
    rng = random.Random(count)
    return image([layer({f"part{n}": program(rng.randbytes(SIZE // count)) for n in range(count)})])


class Lossy(Shelf):
    """Cuts the connection of the layer after `most` bytes, until `mended`; honours ranges."""

    def __init__(self, built: Built, most: int) -> None:
        super().__init__(built)
        self.most = most
        self.mended = False
        self.ranges: list[str] = []
        self.cut = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        digest = json.loads(self.built.manifest)["layers"][0]["digest"]
        if not request.path.endswith(digest):
            return await super().answer(request)
        blob, asked = self.built.blobs[digest], request.headers.get("Range", "")
        self.ranges.append(asked)
        start = int(asked[6:-1]) if asked else 0
        answer = web.StreamResponse(status=206 if asked else 200)
        if asked:
            answer.headers["Content-Range"] = f"bytes {start}-{len(blob) - 1}/{len(blob)}"
        answer.content_length = len(blob) - start
        await answer.prepare(request)
        await answer.write(blob[start:] if self.mended else blob[start : self.most])
        if not self.mended:
            self.cut.set()
            assert request.transport is not None
            request.transport.close()
        return answer


def partial(root: Path) -> list[int]:
    folder = root / "partial"
    return [path.stat().st_size for path in folder.iterdir()] if folder.is_dir() else []


def test_what_came_before_the_connection_was_lost_is_not_fetched_again(tmp_path: Path) -> None:
    async def main() -> None:
        shelf = Lossy(big(), 4 << 20)
        async with server(shelf) as address:
            with pytest.raises(SkepError, match="connection reset|EOF|payload|closed|ContentLength"):
                await images(tmp_path).pull(f"{address}/a/b")
            (kept,) = partial(tmp_path)
            assert 2 << 20 < kept <= 4 << 20 and leftovers(tmp_path) == []
            shelf.mended, shelf.ranges = True, []
            node = images(tmp_path)
            assert (await node.pull(f"{address}/a/b")).id == shelf.built.id
            assert shelf.ranges == [f"bytes={kept}-"], "another process went on where the first had stopped"
            assert partial(tmp_path) == [] and leftovers(tmp_path) == []

    asyncio.run(main())


def test_kept_bytes_that_went_bad_are_fetched_again(tmp_path: Path) -> None:
    async def main() -> None:
        shelf = Lossy(big(), 4 << 20)
        async with server(shelf) as address:
            with pytest.raises(SkepError):
                await images(tmp_path).pull(f"{address}/a/b")
            (kept,) = partial(tmp_path)
            spoil(tmp_path)
            shelf.mended, shelf.ranges = True, []
            assert (await images(tmp_path).pull(f"{address}/a/b")).id == shelf.built.id
            assert shelf.ranges == [f"bytes={kept}-", ""]
            assert partial(tmp_path) == []

    asyncio.run(main())


def spoil(root: Path) -> None:
    (path,) = (root / "partial").iterdir()
    data = bytearray(path.read_bytes())
    data[100_000:100_016] = bytes(16)
    path.write_bytes(data)


def test_blobs_that_are_wrong_are_not_kept_and_tidying_removes_the_rest(tmp_path: Path) -> None:
    async def main() -> None:
        built, other = big(), big(2)
        digest = json.loads(built.manifest)["layers"][0]["digest"]
        wrong = Built(built.manifest, built.config, {**built.blobs, digest: max(other.blobs.values(), key=len)[: len(built.blobs[digest])]})
        shelf = Lossy(wrong, 1)
        shelf.mended = True
        async with server(shelf) as address:
            with pytest.raises(SkepError, match="verification failed|longer than|unexpected EOF"):
                await images(tmp_path).pull(f"{address}/a/b")
        kept = partial(tmp_path)
        assert kept in ([], [len(max(other.blobs.values(), key=len))])
        shelf = Lossy(built, 3 << 20)
        async with server(shelf) as address:
            with pytest.raises(SkepError):
                await images(tmp_path).pull(f"{address}/a/b")
            assert await images(tmp_path).tidy() >= 1 << 20
            assert partial(tmp_path) == []

    asyncio.run(main())


CHILD = """
import asyncio, sys
from pathlib import Path
from image_world import images
asyncio.run(images(Path(sys.argv[1])).pull(sys.argv[2]))
"""


class Stuck(Lossy):
    """Sends a part, and then no more until it is mended."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        digest = json.loads(self.built.manifest)["layers"][0]["digest"]
        if self.mended or not request.path.endswith(digest):
            return await super().answer(request)
        answer = web.StreamResponse()
        answer.content_length = len(self.built.blobs[digest])
        await answer.prepare(request)
        await answer.write(self.built.blobs[digest][: self.most])
        self.cut.set()
        await asyncio.Event().wait()
        return answer


async def until(root: Path, size: int) -> None:
    while not any(found >= size for found in partial(root)):  # noqa: ASYNC110  (it happens in another process)
        await asyncio.sleep(0.02)


def test_after_a_kill_9_the_download_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        shelf = Stuck(big(), 5 << 20)
        async with server(shelf) as address:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-c", CHILD, str(tmp_path), f"{address}/a/b", env={**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
            )
            await asyncio.wait_for(until(tmp_path, 4 << 20), 20)
            child.send_signal(signal.SIGKILL)
            await child.wait()
            node = images(tmp_path)
            assert leftovers(tmp_path) == [] and node.all() == []
            kept = partial(tmp_path)
            shelf.mended = True
            assert (await node.pull(f"{address}/a/b")).id == shelf.built.id
            assert shelf.ranges == [f"bytes={kept[0]}-"] and partial(tmp_path) == []

    asyncio.run(main())


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A small file system: `size=...,nr_inodes=...`."""
    path = tmp_path / f"skt{os.getpid()}-disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", request.param, "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 100_000):
        yield data[start : start + 100_000]


@pytest.mark.parametrize("disk", ["size=10m"], indirect=True)
def test_a_full_disk_is_one_clear_error(disk: Path) -> None:
    async def main() -> None:
        rng = random.Random(9)
        heavy = image([layer({"fits": text("x")}), layer({f"f{n}": program(rng.randbytes(1 << 20)) for n in range(16)})])
        node = images(disk)
        async with server(Shelf(heavy)) as address:
            with pytest.raises(SkepError) as caught:
                await node.pull(f"{address}/a/b")
            assert caught.value.message.startswith("no space left for the layer on ") and "\n" not in caught.value.message
        assert node.all() == [] and leftovers(disk) == [] and partial(disk) == []
        await node.tidy()
        assert files(disk) == ["tags.json"] or files(disk) == []
        async with server(Shelf(small())) as address:
            assert (await node.pull(f"{address}/a/b")).id == small().id
        with pytest.raises(SkepError, match="no space left for the archive on "):
            await node.load(pieces(rng.randbytes(16 << 20)))
        with pytest.raises(SkepError, match="no space left for the layer on "):
            await node.import_archive(pieces(layer({"zeros": program(rng.randbytes(16 << 20))})))
        assert len(node.all()) == 1 and leftovers(disk) == []

    asyncio.run(main())


@pytest.mark.parametrize("disk", ["size=50m,nr_inodes=400"], indirect=True)
def test_no_inodes_left_is_said_so(disk: Path) -> None:
    async def main() -> None:
        node = images(disk)
        async with server(Shelf(image([layer({f"d{n}/f": text("x") for n in range(500)})]))) as address:
            with pytest.raises(SkepError, match="^no inodes left for the layer on "):
                await node.pull(f"{address}/a/b")
        assert node.all() == [] and leftovers(disk) == []
        async with server(Shelf(small())) as address:
            assert (await node.pull(f"{address}/a/b")).id == small().id

    asyncio.run(main())


def test_ten_thousand_layers_and_huge_manifests_are_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    async def main() -> None:
        one = small()
        manifest = json.loads(one.manifest)
        manifest["layers"] *= 10_000
        huge = json.loads(one.manifest) | {"annotations": {"x": "y" * (5 << 20)}}
        for document, words in ((manifest, "the image has 10000 layers; at most 127"), (huge, "answered with more than 4194304 bytes")):
            shelf = Shelf(Built(json.dumps(document).encode(), one.config, one.blobs))
            async with server(shelf) as address:
                with pytest.raises(SkepError, match=words):
                    await images(tmp_path).pull(f"{address}/a/b")
            assert shelf.count("/blobs/") == 0
        assert files(tmp_path) == []

    asyncio.run(main())


def test_the_whole_is_still_what_was_asked_for(tmp_path: Path) -> None:
    """Resumed bytes count for the diff id, too."""
    built = big()

    async def main() -> None:
        shelf = Lossy(built, 3 << 20)
        async with server(shelf) as address:
            with pytest.raises(SkepError):
                await images(tmp_path).pull(f"{address}/a/b")
            shelf.mended = True
            node = images(tmp_path)
            found = await node.pull(f"{address}/a/b")
            whole = b"".join([piece async for piece in node.save([found.id])])
            assert any(sha256(whole[at : at + length]) == found.layers[0] for at, length in members(whole))

    asyncio.run(main())


def members(data: bytes) -> list[tuple[int, int]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as made:
        return [(entry.offset_data, entry.size) for entry in made]
