"""Which unused images make room on a full disk, and what is kept whatever happens."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skep.clock import SECOND
from skep.engine.base import Container, ContainerConfig, Image
from skep.node.imagegc import EVERY, MINIMUM_AGE, SERVICE, Disk, ImageGarbage, Marks, Uses, choose, note
from skep.testing.fake_engine import FakeEngine

NOW = 10 * MINIMUM_AGE
GB = 1 << 30
MARKS = Marks(high=85, low=80)


def image(name: str, *layers: str, size: int = GB, at: int = 0, digests: bool = True) -> Image:
    shown = layers or (name,)
    return Image(
        id=name,
        tags=(f"{name}:1",),
        digests=(f"{name}@sha256:1",) if digests else (),
        layers=shown,
        layer_sizes=(size,) * len(shown),
        tagged_at=at,
    )


def chosen(
    images: list[Image], percent: int, in_use: set[str] | None = None, pinned: set[str] | None = None, **last: int
) -> tuple[str, ...]:
    disk = Disk(total=100 * GB, free=(100 - percent) * GB)
    return choose(images, in_use or set(), pinned or set(), last, disk, MARKS, NOW).ids


def test_nothing_below_the_high_mark() -> None:
    assert chosen([image("a")], 84) == ()
    assert chosen([image("a")], 85) == ("a",)
    assert choose([image("a")], (), (), {}, Disk(total=100, free=1), Marks(high=100, low=80), NOW).ids == ()


def test_the_longest_unused_go_first_and_no_more_than_needed() -> None:
    images = [image(name, size=3 * GB) for name in "abcd"]
    assert chosen(images, 85, a=4, b=1, c=3, d=2) == ("b", "d"), "5 GB are needed"
    images[1] = image("b", size=3 * GB, at=5)
    assert chosen(images, 85, a=4, b=1, c=3, d=2) == ("d", "c"), "what was pulled again counts from then on"


def test_layers_that_others_share_make_no_room() -> None:
    images = [image("a", "base", "a"), image("b", "base", "b"), image("c", size=9 * GB)]
    assert chosen(images, 85, {"b"}, a=1, c=2) == ("a", "c"), "1 GB of a's own is not enough"
    assert chosen(images, 85, a=1, b=2, c=3) == ("a", "b", "c"), "1 GB of a, and 2 when the last user of the base goes"
    assert chosen(images, 83, a=1, b=2, c=3) == ()


def test_what_is_kept_whatever_happens() -> None:
    images = [image("used"), image("pinned"), image("young", at=NOW - 1), image("only-here", digests=False), image("free")]
    disk = Disk(total=100 * GB, free=GB)
    found = choose(images, {"used"}, {"pinned"}, {}, disk, MARKS, NOW)
    assert found.ids == ("free",)
    assert found.short == 18 * GB
    assert found.because == "the disk is 99% full, and from 85% on the longest unused images make room until it is 80%"
    untagged = Image(id="dangling", layers=("x",), layer_sizes=(GB,))
    assert choose([untagged], (), (), {}, disk, MARKS, NOW).ids == ("dangling",)


@given(
    st.lists(st.tuples(st.sets(st.integers(0, 8), min_size=1), st.integers(0, 20), st.booleans(), st.booleans()), max_size=8),
    st.integers(0, 100),
)
def test_it_stops_when_enough_is_free_and_not_before(given_: list[tuple[set[int], int, bool, bool]], free: int) -> None:
    images = [
        Image(id=str(n), digests=("x",), layers=tuple(map(str, layers)), layer_sizes=tuple(layer + 1 for layer in layers), tagged_at=0)
        for n, (layers, _, _, _) in enumerate(given_)
    ]
    used = {str(n) for n, one in enumerate(given_) if one[2]}
    pinned = {str(n) for n, one in enumerate(given_) if one[3]}
    last = {str(n): one[1] for n, one in enumerate(given_)}
    disk = Disk(total=100, free=free)
    found = choose(images, used, pinned, last, disk, MARKS, NOW)

    def freed(gone: tuple[str, ...]) -> int:
        left = {layer for image in images if image.id not in gone for layer in image.layers}
        return sum(int(layer) + 1 for layer in {layer for image in images for layer in image.layers} - left)

    assert not set(found.ids) & (used | pinned)
    if disk.percent < 85:
        assert not found.ids
        return
    needed = disk.used - 80
    assert found.short == max(0, needed - freed(found.ids))
    if found.ids:
        assert freed(found.ids[:-1]) < needed
    if found.short:
        assert set(found.ids) == {image.id for image in images} - used - pinned


def container(image: str, service: str = "", id: str = "c") -> Container:
    labels = {SERVICE: service} if service else {}
    return Container(config=ContainerConfig(id=id, name=id, image=image, args=("x",), labels=labels), created_at=1)


def test_a_services_image_and_the_one_before_are_remembered() -> None:
    uses = Uses()
    assert note(uses, [container("1", "s")], 5) and uses.services == {"s": ["1"]}
    assert not note(uses, [container("1", "s")], 6) and uses.last == {"1": 6}
    note(uses, [container("2", "s"), container("1", "s")], 7)
    assert uses.services == {"s": ["2", "1"]}
    note(uses, [container("3", "s")], 8)
    assert uses.services == {"s": ["3", "2"]}
    assert not note(uses, [container("3", "s"), container("2", "s")], 9), "a rollback changes nothing"


class HandClock:
    """Goes on when told to."""

    def __init__(self) -> None:
        self.time = NOW
        self._sleeping: list[tuple[int, asyncio.Future[None]]] = []

    def now(self) -> int:
        return self.time

    async def sleep(self, ns: int) -> None:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleeping.append((self.time + ns, waiting))
        await waiting

    async def advance(self, ns: int) -> None:
        await self._settle()
        end = self.time + ns
        while due := sorted((at, n) for n, (at, waiting) in enumerate(self._sleeping) if at <= end and not waiting.done()):
            self.time = due[0][0]
            self._sleeping[due[0][1]][1].set_result(None)
            await self._settle()
        self.time = end

    async def _settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)


class World:
    def __init__(self, root: Path, percent: int = 90) -> None:
        self.clock = HandClock()
        self.engine = FakeEngine(self.clock)
        self.percent = percent
        self.file = root / "uses.json"
        self.tidied = 0
        self.garbage = self.again()

    def again(self) -> ImageGarbage:
        async def tidy() -> int:
            self.tidied += 1
            return 0

        made = ImageGarbage(self.engine, self.file.parent, self.file, MARKS, self.clock, tidy)
        made._disk = lambda: Disk(total=100 * GB, free=(100 - self.percent) * GB)  # type: ignore[method-assign]
        return made

    def add(self, name: str, size: int = 4 * GB) -> None:
        made = image(name, size=size)
        self.engine.images_.add(f"{name}:1", made)


def test_once_a_minute_and_after_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        world = World(tmp_path, percent=50)
        for name in ("old", "before", "now", "used"):
            world.add(name)
        config = container("before", "web").config
        await world.engine.create(config)
        running = asyncio.ensure_future(world.garbage.run())
        await world.clock.advance(EVERY + SECOND)
        await world.engine.remove(config.id, force=True)
        await world.engine.create(container("now", "web", "d").config)
        await world.engine.create(container("used", "", "e").config)
        await world.clock.advance(2 * EVERY)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert world.tidied == 0 and len(world.engine.images_.all()) == 4
        world.percent = 95
        world.garbage = world.again()
        assert await world.garbage.look() == ["old"], "the service's own two are pinned, also after a restart"
        assert world.tidied == 1
        await world.engine.remove("d", force=True)
        await world.clock.advance(2 * MINIMUM_AGE)
        assert await world.garbage.look() == ["before", "now"], "no task of the service is here any more"

    asyncio.run(main())


@pytest.mark.parametrize("damaged", ["", "{", '{"last": 3}'])
def test_what_cannot_be_read_is_begun_anew(tmp_path: Path, damaged: str) -> None:
    (tmp_path / "uses.json").write_text(damaged)
    assert World(tmp_path).garbage.uses == Uses()
