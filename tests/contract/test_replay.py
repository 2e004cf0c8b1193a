"""The recorded exchanges of a real engine, replayed in their order against one running server. What is left out, and why, is in SKIPPED."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

from api_replay import Replay, load
from api_world import World

from skep.testing.api_client import Client, serving

NET1 = "y1fxxl4xkp8bpqzpj1se3bd08"

SKIPPED: dict[str, dict[str, str]] = {
    "swarm-and-nodes.jsonl": {
        "25-30": "autolock: skep refuses it (501)",
        "41-44": "promotion and demotion: refused (501) until there is a store for several managers",
    },
}


def numbers(text: str) -> set[int]:
    found: set[int] = set()
    for part in text.split():
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


Hook = Callable[[World, Client], Awaitable[None]]


async def play(file: str, hooks: dict[int, Hook], **options: Any) -> tuple[Replay, list[str]]:
    skipped = {n for part in SKIPPED.get(file, {}) for n in numbers(part)}
    world = World()
    async with serving(world) as client:
        replay = Replay(client, world, **options)
        for entry in load(file):
            if (hook := hooks.get(entry["n"])) is not None:
                await hook(world, client)
            if entry["n"] not in skipped:
                await replay.run(entry)
    return replay, replay.failures


def check(file: str, hooks: dict[int, Hook], **options: Any) -> None:
    replay, failures = asyncio.run(play(file, hooks, **options))
    assert not failures, f"{len(failures)} of {replay.compared + len(failures)} differ\n" + "\n".join(failures)


async def join_node_2(world: World, client: Client) -> None:
    world.join("node-2", "10.0.99.2")


def info_only_swarm(body: Any, path: str) -> Any:
    """Of /info and /version only what is not the host's: the swarm's part, the API's versions, the keys."""
    if re.search(r"/version$", path) and isinstance(body, dict):
        return {"keys": sorted(body), "ApiVersion": body["ApiVersion"], "MinAPIVersion": body["MinAPIVersion"], "Os": body["Os"]}
    if re.search(r"/info$", path) and isinstance(body, dict):
        return {"Swarm": body.get("Swarm"), "Name": body.get("Name")}
    return body


def test_swarm_and_nodes() -> None:
    check("swarm-and-nodes.jsonl", {32: join_node_2}, ignored=info_only_swarm)
