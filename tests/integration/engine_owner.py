"""A daemon in small: owns an engine until it is killed. `python engine_owner.py FOLDER COUNT COMMAND...`, prints a line per step.

It starts COUNT containers, prints `up`, then goes on starting and removing short-lived ones, so that a kill hits it at work.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

from engine_fixture import StubImages, SystemClock, config

from skep.engine.oci.engine import OciEngine


async def main(folder: Path, count: int, command: tuple[str, ...]) -> None:
    images = StubImages([str(folder / "layer")])
    engine = OciEngine(folder / "d", folder / "r", images, SystemClock(), random.SystemRandom(), f"/{folder.name}")
    await engine.start_up()
    for number in range(count):
        made = config(*command, name=f"kept{number}", log_max_size=200_000, log_max_files=3)
        await engine.create(made)
        print(made.id, await engine.start(made.id), flush=True)
    print("up", flush=True)
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
