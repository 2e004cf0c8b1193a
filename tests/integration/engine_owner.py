"""A daemon in small: owns an engine until it is killed. `python engine_owner.py FOLDER COUNT COMMAND...`, prints a line per step.

It starts COUNT containers, prints `up`, then goes on starting and removing short-lived ones, so that a kill hits it at work. With
OWNER_WORK=control it pauses, changes, stops and starts those that it has instead.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

from engine_fixture import StubImages, SystemClock, config

from skep.engine.base import Container
from skep.engine.oci.engine import OciEngine


def known(engine: OciEngine, id: str) -> Container:
    container = engine.get(id)
    assert container is not None
    return container


async def control(engine: OciEngine, id: str) -> None:
    turn = 0
    if not known(engine, id).running:
        await engine.start(id)
    elif known(engine, id).paused:
        await engine.unpause(id)
    while True:
        turn += 1
        await engine.pause(id)
        await engine.amend(id, extra={"turn": turn}, name=f"{id[-4:]}-{turn}")
        await engine.stat_path(id, "/etc/passwd")
        if turn % 2:
            await engine.unpause(id)
        await engine.kill(id)
        await engine.wait(id)
        await engine.stat_path(id, "/etc/passwd")
        await engine.start(id)


async def main(folder: Path, count: int, command: tuple[str, ...]) -> None:
    images = StubImages([str(folder / "layer")])
    engine = OciEngine(folder / "d", folder / "r", images, SystemClock(), random.SystemRandom(), f"/{folder.name}")
    await engine.start_up()
    for number in range(count):
        made = config(*command, name=f"kept{number}", log_max_size=200_000, log_max_files=3)
        await engine.create(made)
        print(made.id, await engine.start(made.id), flush=True)
    print("up", flush=True)
    if os.environ.get("OWNER_WORK") == "control":
        async with asyncio.TaskGroup() as group:
            for container in engine.all():
                group.create_task(control(engine, container.config.id))
    turn = 0
    while True:
        turn += 1
        made = config("sleep", "0.01", name=f"passing{os.getpid()}-{turn}")
        await engine.create(made)
        await engine.start(made.id)
        if turn % 2:
            await engine.remove(made.id, force=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), tuple(sys.argv[3:])))
