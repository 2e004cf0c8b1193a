"""Restart truth: whatever is done and whatever is killed, afterwards disk, kernel, processes and Docker agree, exit codes are kept
or said to be unknown, and nothing is left over. From a seed (printed; SKEP_SEED=n replays the draws, not the kernel's timing)."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from node_chaos_deeds import IMAGE, Deed, Deeds, Lost
from node_chaos_model import ENDS, adopt, wrong
from node_chaos_truth import Containers, command_of, differences
from node_chaos_world import ChaosWorld, kill_exactly

pytestmark = pytest.mark.root
PATIENCE = 30.0
"""Seconds until everything has settled."""
GROWTH = 80 << 20
"""Bytes that one life of skepd may grow by."""


@pytest.fixture
def world() -> Iterator[ChaosWorld]:
    with ChaosWorld() as found:
        found.docker("pull", "-q", IMAGE)
        yield found


class Chaos(Deeds):
    def __init__(self, world: ChaosWorld, seed: int) -> None:
        super().__init__(world, random.Random(seed))
        self.base_fds = self.base_memory = 0
        self.done = 0
        self.measure()

    def measure(self) -> None:
        """After a start of skepd."""
        assert self.world.daemon is not None
        self.base_fds = len(os.listdir(f"/proc/{self.world.daemon.pid}/fd"))
        self.base_memory = self.memory()

    def memory(self) -> int:
        assert self.world.daemon is not None
        return int(Path(f"/proc/{self.world.daemon.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    # what goes wrong

    def failures(self) -> list[Deed]:
        often = [*[self.daemon_killed] * 4, *[self.conmon_killed, self.process_killed] * 2]
        return [*often, self.daemon_ended, self.resolver_killed, self.tables_flushed, self.all_killed, self.rebooted, self.disk_full,
                self.disk_full_and_killed, self.started_without_room]  # fmt: skip

    async def daemon_killed(self) -> None:
        await asyncio.sleep(self.rng.uniform(0, 0.5))
        self.world.stop(signal.SIGKILL)

    async def daemon_ended(self) -> None:
        await asyncio.sleep(self.rng.uniform(0, 0.3))
        await asyncio.to_thread(self.world.stop)

    async def conmon_killed(self) -> None:
        for _ in range(2):
            if (box := self.pick(lambda box: box.run and box.pid)) is not None:
                # its process may not survive that its output goes nowhere
                if box.program == "talk" or box.tty:
                    box.unsure()
                with suppress(FileNotFoundError, ValueError):
                    if kill_exactly(int((self.world.folder / "r" / "c" / box.id / "conmon.pid").read_text()), box.id):
                        box.lost = True

    async def process_killed(self) -> None:
        for _ in range(2):
            # one that is paused dies when it goes on: that is the kernel's way
            if (box := self.pick(lambda box: box.run and box.pid and box.paused is False)) is not None:
                if kill_exactly(box.pid, box.id):
                    box.ended(137)
                else:
                    box.unsure()

    async def resolver_killed(self) -> None:
        await asyncio.sleep(self.rng.uniform(0, 0.3))
        for pid in self.world.left():
            if "skep.datapath.resolver" in command_of(str(pid)):
                kill_exactly(pid, self.world.folder.name)

    async def tables_flushed(self) -> None:
        """Somebody else's hand: the router's table is emptied, the host's is deleted. A restart of skepd looks at once."""
        self.world.run_in_router("nft", "flush", "table", "ip", "skep_skep")
        self.world.run_inside("nft", "delete", "table", "ip", "skep_skep")
        self.world.stop()

    async def all_killed(self) -> None:
        self.world.kill_everything()
        self.everything_ended({137, 255})

    async def rebooted(self) -> None:
        """Without the start, which follows anyway."""
        self.world.power_off()
        self.everything_ended({255})

    def everything_ended(self, codes: set[int]) -> None:
        for box in self.boxes:
            if box.program in ENDS:
                box.run, box.codes = None, set()
            if box.name in self.busy and box.codes:  # it had hardly ended
                box.codes |= codes
            box.ended(*codes)

    async def disk_full(self) -> None:
        with self.world.full_disk():
            await asyncio.gather(*[self.guarded(deed) for deed in self.rng.choices(self.ordinary(), k=4)])
        self.without_room()

    def without_room(self) -> None:
        """What was started again meanwhile may have failed at that, and says so."""
        for box in self.boxes:
            if box.program in ENDS:
                box.codes = set()

    def forgetful(self) -> None:
        """skepd was killed before the disk had room: it may have forgotten that something was stopped by hand, and may not have got going
        what it started."""
        self.without_room()
        for box in self.boxes:
            if box.name in self.busy:
                box.networks = None
            if box.policy:
                box.run = box.by_hand = None
                box.codes = set()

    async def disk_full_and_killed(self) -> None:
        with self.world.full_disk():
            await asyncio.gather(*[self.guarded(deed) for deed in self.rng.choices(self.ordinary(), k=4)])
            self.world.stop(signal.SIGKILL)
        self.forgetful()

    async def started_without_room(self) -> None:
        """Started, and then ended in good order: what it could not write meanwhile it writes then."""
        self.world.stop(signal.SIGKILL)
        with self.world.full_disk():
            self.world.start()
            self.forgetful()
        self.world.stop()

    # rounds

    async def guarded(self, deed: Deed) -> None:
        with suppress(Lost):
            await deed()

    async def round(self) -> None:
        rng = self.rng
        deeds = rng.choices(self.ordinary(), k=rng.randint(3, 8))
        failure = rng.choice(self.failures()) if rng.random() < 0.6 else None
        self.said.append(f"round: {[deed.__name__ for deed in deeds]} {failure.__name__ if failure else ''}")  # type: ignore[attr-defined]
        self.rough = failure is not None
        self.done += len(deeds) + (failure is not None)
        amid = rng.random() < 0.6 and failure not in (self.all_killed, self.rebooted)
        together = [*deeds, failure] if failure is not None and amid else deeds
        await asyncio.gather(*[self.guarded(deed) for deed in together])
        if failure is not None and not amid:
            await failure()
        if self.world.daemon is None:
            self.world.start()
            self.measure()
            for box in self.boxes:
                box.daemon_started()
        self.busy.clear()
        self.rough = False
        self.settle()

    def settle(self) -> None:
        assert self.world.daemon is not None and self.world.daemon.poll() is None, f"skepd has died:\n{self.world.log.read_text()[-3000:]}"
        left = self.world.until_none(self.all_wrong, PATIENCE)
        left += self.wrong + self.complaints()
        if self.memory() > self.base_memory + GROWTH:
            left.append(f"skepd has grown from {self.base_memory >> 20} to {self.memory() >> 20} MiB")
        if left:
            left += [f"is: {line}" for line in Containers(self.world).short()] + [f"meant: {box}" for box in self.boxes]
            story, log = "\n".join(self.said[-60:]), self.world.log.read_text()[-5000:]
            raise AssertionError("not so:\n" + "\n".join(left) + f"\n\nwhat was done:\n{story}\n\nskepd's log:\n{log}")
        found = Containers(self.world).all
        self.boxes = adopt(self.boxes, found)

    def complaints(self) -> list[str]:
        """What skepd says in its log of its own faults: whatever happens to it, there are none."""
        signs = ("Traceback", "Task exception", "never awaited", "Unclosed", "ResourceWarning", "Exception ignored")
        return [line for line in self.world.log.read_text().splitlines() if any(sign in line for sign in signs)][:5]

    def all_wrong(self) -> list[str]:
        known = Containers(self.world)
        said = differences(self.world, known, self.base_fds) + wrong(self.boxes, known.all)
        _, volumes = self.world.api("GET", "/volumes")
        said += _names("volume", {one["Name"] for one in volumes["Volumes"] or []}, self.volumes)
        _, networks = self.world.api("GET", "/networks")
        said += _names("network", {one["Name"] for one in networks}, self.networks)
        _, images = self.world.api("GET", "/images/json")
        tags = {tag.rpartition(":")[0] for one in images for tag in one["RepoTags"] or []}
        return said + _names("image", tags, self.images)

    async def end(self) -> None:
        """All is removed: nothing is left, in the kernel or on disk."""
        for box in self.boxes:
            await self.ask("DELETE", f"/containers/{box.id}?force=1&v=1")
            box.exists = False
        for name in self.networks:
            self.networks[name] = False
            await self.ask("DELETE", f"/networks/{name}")
        await self.ask("POST", '/volumes/prune?filters={"all":["true"]}')
        for name in self.volumes:
            self.volumes[name] = False
        _, images = await self.ask("GET", "/images/json?all=1")
        for image in images:
            await self.ask("DELETE", f"/images/{image['Id']}?force=1")
        for name in self.images:
            self.images[name] = False
        self.settle()
        data = self.world.folder / "d"
        for empty in ("containers", "volumes", "images/layers", "images/images", "images/l"):
            assert not os.listdir(data / empty), empty
        assert len(os.listdir(data / "networks")) == 3


def _names(kind: str, there: set[str], wanted: dict[str, bool | None]) -> list[str]:
    return [
        f"{kind} {name} {'is missing' if sure else 'is there'}"
        for name, sure in wanted.items()
        if sure is not None and sure != (name in there)
    ]


def run(world: ChaosWorld, deeds: int, seconds: float) -> None:
    seed = int(os.environ.get("SKEP_SEED") or random.SystemRandom().randrange(1 << 31))
    print(f"SKEP_SEED={seed}")
    chaos = Chaos(world, seed)
    end = time.monotonic() + seconds

    async def main() -> None:
        while chaos.done < deeds and time.monotonic() < end:
            await chaos.round()
        await chaos.end()

    try:
        asyncio.run(main())
    except BaseException:
        print(f"after {chaos.done} deeds and {world.starts} starts of skepd")
        raise
    print(f"{chaos.done} deeds, {world.starts} starts of skepd")


def test_a_short_chaos(world: ChaosWorld) -> None:
    run(world, 120, 20)


@pytest.mark.soak
def test_chaos(world: ChaosWorld) -> None:
    run(world, 500, 1800)
