"""Plain containers over an engine, a data path and networks in memory."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import msgspec

from skep.engine.base import Image, ImageConfig
from skep.node.container import NodeFacts
from skep.node.plain import Plain
from skep.node.plain_config import CreateRequest, record_of
from skep.node.volumes import Volumes
from skep.testing.fake_datapath import FakeDatapath
from skep.testing.fake_engine import FakeEngine
from skep.testing.fake_networks import FakeNetworks
from skep.testing.jump_clock import JumpClock

IMAGE = "box:1"


class World:
    def __init__(self, folder: Path) -> None:
        self.clock = JumpClock()
        self.rng = random.Random(1)
        self.engine = FakeEngine(self.clock)
        self.datapath = FakeDatapath(self.clock)
        self.networks = FakeNetworks(self.clock, self.rng)
        self.volumes = Volumes(folder, self.clock, self.rng, containers=self.engine.all)
        config = ImageConfig(cmd=("serve",), env=("A=1",), volumes=("/data",), exposed_ports=("80/tcp",))
        self.engine.images_.add(IMAGE, Image(id="sha256:" + "2" * 64, tags=(IMAGE,), architecture="amd64", config=config))
        self.told: list[str] = []
        self.plain = self.new_plain()

    def new_plain(self) -> Plain:
        facts = NodeFacts(hostname="host1", resolv_conf="nameserver 10.0.2.3\n")
        plain = Plain(self.engine, self.datapath, self.networks, self.volumes, self.clock, self.rng, facts)

        def tell(kind: str, action: str, subject: Any, attributes: Mapping[str, str]) -> None:
            self.told.append(f"{kind} {action}")

        plain.tell = tell
        return plain

    async def create(self, name: str = "c1", **body: Any) -> str:
        return (await self.plain.create(msgspec.convert({"Image": IMAGE, **body}, CreateRequest), name))[0]

    async def run(self, name: str = "c1", **body: Any) -> str:
        id = await self.create(name, **body)
        await self.plain.start(id)
        return id

    def record(self, id: str) -> Any:
        container = self.engine.get(id)
        assert container is not None
        return record_of(container.config)

    async def until(self, holds: Callable[[], Any]) -> None:
        for _ in range(100_000):
            if holds():
                return
            await asyncio.sleep(0)
        raise AssertionError("did not happen")


def play(folder: Path, story: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        w = World(folder)
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            await w.plain.start_up()
            running = group.create_task(w.plain.run())
            await asyncio.sleep(0)
            try:
                await story(w)
            finally:
                running.cancel()

    asyncio.run(main())
