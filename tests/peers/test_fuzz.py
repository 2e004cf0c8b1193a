"""Every call of the API's description with well-shaped and with nonsensical parameters and bodies, against the application with a node
and a cluster in memory: no traceback, no 500 that Docker does not give, errors in Docker's form, and the server answers afterwards.

A round that fails says its seed; `SKEP_FUZZ=SEED:ROUNDS` plays others.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from fuzz import Fuzzer, Request
from fuzz_client import fault
from fuzz_data import API, BASES, FIXED

from skep.clock import SECOND
from skep.engine.base import Image, ImageConfig
from skep.model.cluster import Cluster
from skep.model.node import Node
from skep.model.service import Service
from skep.model.task import Task
from skep.plan.ops import Create
from skep.testing.api_client import Client, serving
from skep.testing.fake_context import FakeContext, StepClock
from skep.testing.scripted_engine import ScriptedStreams

FIRST, ROUNDS = (int(part) for part in os.environ.get("SKEP_FUZZ", "1:20").split(":"))
REQUESTS = 250
"""Of a round."""
ABREAST = 10
"""Rounds."""
IMAGE = "sha256:" + "2d" * 32


class Complaints(logging.Handler):
    """What was logged with a traceback, or as an error."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.name == "asyncio":
            self.said.append(logging.Formatter().format(record))


async def _true(streams: ScriptedStreams) -> int:
    streams.emit(b"a\n")
    return 0


async def furnish(context: FakeContext, client: Client) -> dict[str, list[str]]:
    """A cluster, and one of everything; what it is called."""
    context.engine.scripts = dict.fromkeys(("", "a", "true", "local"), _true)
    context.engine.images.add(Image(id=IMAGE, tags=("box:1",), config=ImageConfig(exposed_ports=("80/tcp",), cmd=("true",))))
    known: dict[str, list[str]] = {"images": ["box:1", IMAGE, "box"], "distribution": ["box:1"]}
    made = [
        ("nodes", "node-1", "/swarm/init", {"ListenAddr": "0.0.0.0:2377"}),
        ("networks", "net", "/networks/create", {"Name": "net", "Driver": "bridge"}),
        ("networks", "over", "/networks/create", {"Name": "over", "Driver": "overlay", "Attachable": True}),
        ("volumes", "vol", "/volumes/create", {"Name": "vol"}),
        ("containers", "c1", "/containers/create?name=c1", {"Image": "box:1", "Cmd": ["true"], "Tty": True}),
        ("containers", "c2", "/containers/create?name=c2", {"Image": "box:1", "Cmd": ["true"], "HostConfig": {"NetworkMode": "net"}}),
        ("services", "web", "/services/create", {"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "box:1"}}}),
        ("containers", "c1", "/containers/c1/start", None),
        ("exec", "", "/containers/c1/exec", {"Cmd": ["true"]}),
        ("exec", "", "/containers/c1/exec", {"Cmd": ["true"], "Tty": True}),
    ]
    for kind, name, path, body in made:
        answer = await client.ask("POST", path, body)
        assert answer.status < 300, (path, answer)
        names = known.setdefault(kind, [])
        names += [name] if name else []
        names += [value for key, value in answer.body.items() if key.lower() == "id"] if isinstance(answer.body, dict) else []
        names += [answer.body] if isinstance(answer.body, str) else []
    assert context.store is not None
    context.store.apply([Create(Task(id="t" * 25, service_id=known["services"][-1], service_name="web", slot=1), "test")])
    return known | {"tasks": ["t" * 25]}


def versions(context: FakeContext) -> tuple[object, ...]:
    """What an update may send, and two that it may not."""
    store = context.store
    kinds = (Service, Node, Cluster)
    return (*(item.version for kind in kinds for item in store.all(kind)), 1, "x") if store is not None else (1,)


async def play(seed: int, folder: Path) -> tuple[list[str], Counter[int]]:
    """What was wrong in one round, and how often each status was the answer."""
    context = FakeContext(StepClock(1_795_405_652 * SECOND), random.Random(seed), volumes=folder / "v")
    wrong: list[str] = []
    statuses: Counter[int] = Counter()
    async with serving(context) as client:
        fuzzer = Fuzzer(seed, await furnish(context, client), dict(FIXED), BASES)
        for number in range(REQUESTS):
            fuzzer.fixed["version"] = versions(context)
            request = fuzzer.next()
            status, bad = await fault(client.path, request)
            statuses[status] += 1
            if bad:
                wrong.append(f"seed {seed}, request {number}: {bad}\n    {request}")
        assert (await client.ask("GET", "/_ping")).status == 200
    return wrong, statuses


async def play_several(seeds: range) -> list[tuple[list[str], Counter[int]]]:
    """Side by side, as most of a round is waiting; each in a world of its own, so that the seed alone says what happens."""
    with tempfile.TemporaryDirectory(prefix=f"skt{os.getpid()}-") as folder:
        async with asyncio.TaskGroup() as group:
            rounds = [group.create_task(play(seed, Path(folder, str(seed)))) for seed in seeds]
        return [one.result() for one in rounds]


@pytest.mark.parametrize("first", range(FIRST, FIRST + ROUNDS, ABREAST))
def test_nonsense_is_refused(first: int) -> None:
    complaints = Complaints()
    logging.getLogger().addHandler(complaints)
    try:
        played = asyncio.run(play_several(range(first, min(first + ABREAST, FIRST + ROUNDS))))
    finally:
        logging.getLogger().removeHandler(complaints)
    wrong = [line for lines, _ in played for line in lines]
    assert not wrong and not complaints.said, "\n".join([*wrong, *complaints.said])
    for _, statuses in played:
        taken = sum(count for status, count in statuses.items() if 200 <= status < 400)
        assert taken > REQUESTS // 20, f"hardly anything was taken: {statuses}"


def test_every_call_is_asked() -> None:
    asked: Counter[str] = Counter()
    fuzzer = Fuzzer(0, {"containers": ["known"]})
    for call in API["calls"]:
        for _ in range(20):
            request = fuzzer.next([call])
            assert isinstance(request, Request) and " " not in request.target
            asked[f"{call['method']} {call['path']}"] += 1
    assert len(asked) == len(API["calls"]) > 100
