"""A manager with networks, spoken to over its API."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from api_world import World

from skep.testing.api_client import Client, serving

INIT = {"AdvertiseAddr": "10.0.99.1"}


def play(scene: Callable[[Client, World], Awaitable[None]], *, swarm: bool = True) -> None:
    async def run() -> None:
        world = World()
        async with serving(world) as client:
            if swarm:
                assert (await client.ask("POST", "/swarm/init", INIT)).status == 200
            await scene(client, world)

    asyncio.run(run())


async def overlay(client: Client, name: str, **more: Any) -> str:
    answer = await client.ask("POST", "/networks/create", {"Name": name, "Driver": "overlay", **more})
    assert answer.status == 201, answer.body
    assert (len(answer.body["Id"]), answer.body["Warning"]) == (25, "")
    return str(answer.body["Id"])


async def service(client: Client, name: str, networks: list[dict[str, Any]], **more: Any) -> str:
    template = {"ContainerSpec": {"Image": "local:1"}, "Networks": networks, "Placement": {"Constraints": ["node.role==manager"]}}
    answer = await client.ask("POST", "/services/create", {"Name": name, "TaskTemplate": template, **more})
    assert answer.status == 201, answer.body
    return str(answer.body["ID"])


async def running(client: Client, world: World, name: str, count: int = 1) -> list[dict[str, Any]]:
    for _ in range(100):
        tasks: list[dict[str, Any]] = (await client.ask("GET", '/tasks?filters={"service":["%s"],"desired-state":["running"]}' % name)).body  # noqa: UP031
        up = [task for task in tasks if task["Status"]["State"] == "running"]
        if len(up) == count:
            return up
        world.step()
    raise AssertionError(f"{name} does not run: {tasks}")
