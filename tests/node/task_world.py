"""A runtime of tasks over an engine and a data path in memory."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from skep.clock import SECOND
from skep.engine.base import Container, Image, ImageConfig
from skep.model import spec as s
from skep.model.assignment import TaskItem
from skep.model.task import Attachment, Task
from skep.node.container import NodeFacts
from skep.node.tasks import TaskRuntime
from skep.testing.fake_datapath import FakeDatapath
from skep.testing.fake_engine import FakeEngine
from skep.testing.jump_clock import JumpClock

REFERENCE = "registry:5000/web:1"


def image(**fields: Any) -> Image:
    return Image(id="sha256:" + "2" * 64, config=ImageConfig(cmd=("serve",), **fields))


def item(
    id: str = "tid", reference: str = REFERENCE, attachments: tuple[Attachment, ...] = (), endpoint: Any = None, **container: Any
) -> TaskItem:
    spec = s.TaskSpec(container_spec=s.ContainerSpec(image=reference, **container))
    task = Task(id=id, service_id="sid", service_name="web", slot=1, node_id="nid", spec=spec, attachments=attachments, endpoint=endpoint)
    return TaskItem(task=task)


class World:
    def __init__(self) -> None:
        self.clock = JumpClock()
        self.engine = FakeEngine(self.clock)
        self.datapath = FakeDatapath(self.clock)
        self.engine.images_.remote[REFERENCE] = image()
        self.runtime = self.new_runtime()

    def new_runtime(self) -> TaskRuntime:
        return TaskRuntime(self.engine, self.datapath, NodeFacts(hostname="host1"), self.clock, random.Random(1))

    def only(self) -> Container:
        (container,) = self.engine.all()
        return container


def play(story: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            await story(World())

    asyncio.run(main())


CHECK = s.Healthcheck(test=("CMD-SHELL", "probe me"), interval=10 * SECOND, timeout=2 * SECOND, retries=3)
