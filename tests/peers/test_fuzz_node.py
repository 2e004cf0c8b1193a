"""The same requests as test_fuzz.py's, against a whole skepd: its real engine, networks, volumes, store and cluster, several at a time.

No traceback in its log, no 500 that Docker does not give, and afterwards it answers. A run that fails says its seed;
`SKEP_FUZZ_NODE=SEED:ROUNDS` plays others.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzz import Fuzzer
from fuzz_client import fault
from fuzz_data import BASES, FIXED
from peer_world import PeerWorld, peer_world
from wire_nonsense import send_all

FIRST, ROUNDS = (int(part) for part in os.environ.get("SKEP_FUZZ_NODE", "1:2").split(":"))
SOAK_ROUNDS = 60
REQUESTS = 250
"""Of a round."""
ABREAST = 6
SWARM = {"ListenAddr": "192.0.2.1:2377", "AdvertiseAddr": "192.0.2.1"}
FURNITURE: tuple[tuple[str, str, str, Any], ...] = (
    ("networks", "net", "/networks/create", {"Name": "net", "Driver": "bridge"}),
    ("networks", "over", "/networks/create", {"Name": "over", "Driver": "overlay", "Attachable": True}),
    ("volumes", "vol", "/volumes/create", {"Name": "vol"}),
    ("containers", "c1", "/containers/create?name=c1", {"Image": "box:1", "Cmd": ["sleep", "1000"], "Tty": True}),
    ("containers", "c2", "/containers/create?name=c2", {"Image": "box:1", "Cmd": ["true"], "HostConfig": {"NetworkMode": "net"}}),
    (
        "services",
        "web",
        "/services/create",
        {"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "box:1", "Args": ["sleep", "1000"]}}},
    ),
    ("", "", "/containers/c1/start", None),
    ("exec", "", "/containers/c1/exec", {"Cmd": ["true"]}),
    ("exec", "", "/containers/c1/exec", {"Cmd": ["true"], "Tty": True}),
)
"""What is there when a round begins: (kind, name, how it is made)."""

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def world(hub: Path) -> Iterator[PeerWorld]:
    with peer_world(hub) as found:
        yield found


def ask(world: PeerWorld, method: str, target: str, body: Any = None) -> tuple[int, Any]:
    status, said = world.ask(method, target, None if body is None else json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        return status, json.loads(said) if said else None
    except ValueError:
        return status, said


def clear(world: PeerWorld) -> None:
    """What earlier requests have made and any user can remove."""
    for one in ask(world, "GET", "/services")[1] if ask(world, "GET", "/swarm")[0] == 200 else ():
        assert ask(world, "DELETE", f"/services/{one['ID']}")[0] == 200
    for one in ask(world, "GET", "/containers/json?all=1")[1]:
        status, said = ask(world, "DELETE", f"/containers/{one['Id']}?force=1&v=1")
        assert status in (204, 404, 409), (one, said)


def furnish(world: PeerWorld) -> dict[str, list[str]]:
    """One of everything; what it is called."""
    clear(world)
    assert ask(world, "POST", "/images/create?fromImage=busybox&tag=latest")[0] == 200
    assert ask(world, "POST", "/images/busybox:latest/tag?repo=box&tag=1")[0] == 201
    known: dict[str, list[str]] = {"images": ["box:1", "box"], "distribution": ["box:1"]}
    if ask(world, "GET", "/swarm")[0] != 200:
        assert ask(world, "POST", "/swarm/init", SWARM)[0] == 200
    for kind, name, path, body in FURNITURE:
        status, answer = ask(world, "POST", path, body)
        names = known.setdefault(kind, [])
        names += [name] if name else []
        if status < 300 and isinstance(answer, dict):
            names += [value for key, value in answer.items() if key.lower() == "id"]
    known.pop("")
    for kind in ("nodes", "tasks", "services", "networks"):
        status, listed = ask(world, "GET", f"/{kind}")
        known[kind] = known.get(kind, []) + ([one.get("ID") or one.get("Id") for one in listed] if status == 200 else [])
    return {kind: names for kind, names in known.items() if names}


def versions(world: PeerWorld) -> tuple[object, ...]:
    """What an update may send, and two that it may not."""
    listed = [ask(world, "GET", path)[1] for path in ("/services", "/nodes")] + [[ask(world, "GET", "/swarm")[1]]]
    return (*(one["Version"]["Index"] for many in listed for one in many if isinstance(one, dict) and "Version" in one), 1, "x")


async def play(world: PeerWorld, seed: int) -> tuple[list[str], Counter[int]]:
    fuzzer = Fuzzer(seed, await asyncio.to_thread(furnish, world), {**FIXED, "ListenAddr": tuple(SWARM.values())}, BASES)
    wrong: list[str] = []
    statuses: Counter[int] = Counter()
    numbers = iter(range(REQUESTS))

    async def sender() -> None:
        for number in numbers:
            if number % 10 == 0:
                fuzzer.fixed["version"] = await asyncio.to_thread(versions, world)
            request = fuzzer.next()
            status, bad = await fault(str(world.socket), request)
            statuses[status] += 1
            if bad:
                wrong.append(f"seed {seed}, request {number}: {bad}\n    {request}")

    async with asyncio.TaskGroup() as group:
        for _ in range(ABREAST):
            group.create_task(sender())
    return wrong, statuses


@contextlib.contextmanager
def untroubled(world: PeerWorld, wrong: list[str]) -> Iterator[None]:
    """Meanwhile nothing is added to `wrong`, and afterwards skepd answers and has logged no traceback."""
    before = world.log.stat().st_size
    yield
    assert world.answers(), world.log.read_text(errors="replace")[-5000:]
    with world.log.open(errors="replace") as log:
        log.seek(before)
        said = log.read()
    if "Traceback" in said:
        at = said.index("Traceback")
        wrong.append(f"in the log:\n{said[max(0, at - 1000) : at + 4000]}")
    if wrong and (keep := os.environ.get("SKEP_PEERS_KEEP")):
        Path(keep).with_suffix(".log").write_text(said)
    assert not wrong, "\n".join(wrong)


def check(world: PeerWorld, seed: int) -> None:
    wrong: list[str] = []
    with untroubled(world, wrong):
        found, statuses = asyncio.run(play(world, seed))
        wrong += found
    assert sum(count for status, count in statuses.items() if 200 <= status < 400) > REQUESTS // 20, statuses


@pytest.mark.parametrize("seed", range(FIRST, FIRST + ROUNDS))
def test_nonsense_is_refused(world: PeerWorld, seed: int) -> None:
    check(world, seed)


def test_no_proper_http(world: PeerWorld) -> None:
    wrong: list[str] = []
    with untroubled(world, wrong):
        wrong += asyncio.run(send_all(str(world.socket)))


@pytest.mark.soak
def test_much_nonsense_is_refused(world: PeerWorld) -> None:
    """All rounds are played, whatever one of them finds."""
    seeds = os.environ.get("SKEP_FUZZ_SEEDS", "")
    chosen = [int(seed) for seed in seeds.split(",")] if seeds else random.Random(ROUNDS).sample(range(1000, 1_000_000), SOAK_ROUNDS)
    wrong = []
    for seed in chosen:
        try:
            check(world, seed)
        except AssertionError as error:
            wrong.append(f"seed {seed}: {error}")
    assert not wrong, "\n\n".join(wrong)
