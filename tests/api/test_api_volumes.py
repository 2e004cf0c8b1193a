"""`/volumes` on the wire: Docker's forms, filters, errors and events."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from skep.clock import SECOND
from skep.engine.base import Container, ContainerConfig, Mount
from skep.node.volumes import ANONYMOUS
from skep.testing.api_client import Client, serving
from skep.testing.fake_context import FakeContext, StepClock

NOON = 1_795_406_400 * SECOND


def play(root: Path, scene: Callable[[Client, FakeContext], Awaitable[None]]) -> None:
    async def run() -> None:
        context = FakeContext(StepClock(NOON), random.Random(5), volumes=root)
        async with serving(context) as client:
            await scene(client, context)

    asyncio.run(run())


def filters(**values: Any) -> str:
    return "filters=" + quote(json.dumps({key.replace("_", "!"): value for key, value in values.items()}))


async def names(client: Client, **wanted: Any) -> list[str]:
    answer = await client.ask("GET", f"/volumes?{filters(**wanted)}")
    assert answer.status == 200, answer.raw
    return [volume["Name"] for volume in answer.body["Volumes"]]


def test_a_volumes_life(tmp_path: Path) -> None:
    async def scene(client: Client, context: FakeContext) -> None:
        made = await client.ask("POST", "/v1.50/volumes/create", {"Driver": "local", "Labels": {"a": "b"}, "Name": "v1"})
        form = {
            "CreatedAt": "2026-11-23T04:00:00Z",
            "Driver": "local",
            "Labels": {"a": "b"},
            "Mountpoint": f"{tmp_path}/v1/_data",
            "Name": "v1",
            "Options": None,
            "Scope": "local",
        }
        assert (made.status, made.body) == (201, form)
        assert (await client.ask("POST", "/v1.50/volumes/create", {"Name": "v1"})).body == form
        assert (await client.ask("GET", "/v1.50/volumes/v1")).body == form
        assert (await client.ask("GET", "/v1.50/volumes")).body == {"Volumes": [form], "Warnings": None}
        removed = await client.ask("DELETE", "/v1.50/volumes/v1")
        assert (removed.status, removed.raw) == (204, b"")
        assert (await client.ask("DELETE", "/v1.50/volumes/v1?force=1")).status == 204
        for method in ("GET", "DELETE"):
            lost = await client.ask(method, "/v1.50/volumes/v1")
            assert (lost.status, lost.body) == (404, {"message": "get v1: no such volume"})
        await client.ask("POST", "/swarm/init", {"AdvertiseAddr": "10.0.99.1"})
        assert (await client.ask("GET", "/v1.50/volumes/v1")).body == {"message": "volume v1 not found"}
        told = [(e["Action"], e["Actor"]) for e in context.events.past() if e["Type"] == "volume"]
        actor = {"ID": "v1", "Attributes": {"driver": "local"}}
        assert told == [("create", actor), ("destroy", actor)]

    play(tmp_path, scene)


def test_refusals(tmp_path: Path) -> None:
    async def scene(client: Client, context: FakeContext) -> None:
        for body, status, text in (
            ({"Name": "x"}, 400, "create x: volume name is too short, names should be at least two alphanumeric characters"),
            ({"Name": "xx", "Driver": "nfs"}, 404, 'create xx: error looking up volume plugin nfs: plugin "nfs" not found'),
            ({"Name": "xx", "DriverOpts": {"q": "1"}}, 400, 'create xx: invalid option: "q"'),
        ):
            answer = await client.ask("POST", "/volumes/create", body)
            assert (answer.status, answer.body["message"]) == (status, text)
        assert (await client.ask("POST", "/volumes/create", {"Name": "xx", "ClusterVolumeSpec": {}})).status == 501
        assert (await client.ask("PUT", "/volumes/xx?version=1", {})).status == 503
        answer = await client.ask("GET", f"/volumes?{filters(bogus=['1'])}")
        assert (answer.status, answer.body) == (400, {"message": "invalid filter 'bogus'"})
        assert not await names(client)

    play(tmp_path, scene)


def test_filters_and_what_is_in_use(tmp_path: Path) -> None:
    async def scene(client: Client, context: FakeContext) -> None:
        for name, labels in (("data", {"a": "b"}), ("date", {"a": "c"}), ("used", {})):
            await client.ask("POST", "/volumes/create", {"Name": name, "Labels": labels})
        config = ContainerConfig(id="c" * 64, name="c", image="i", args=("x",), mounts=(Mount(target="/x", volume="used"),))
        context.volumes.containers = lambda: [Container(config=config, created_at=1)]
        assert await names(client, name=["dat"]) == ["data", "date"]
        assert await names(client, label=["a=b"]) == ["data"]
        assert await names(client, label=["a"], driver=["local"]) == ["data", "date"]
        assert await names(client, driver=["other"]) == []
        busy = await client.ask("DELETE", "/volumes/used")
        assert (busy.status, busy.body["message"]) == (409, f"remove used: volume is in use - [{'c' * 64}]")

    play(tmp_path, scene)


def test_prune(tmp_path: Path) -> None:
    async def scene(client: Client, context: FakeContext) -> None:
        async def prune(version: str, **wanted: Any) -> list[str]:
            answer = await client.ask("POST", f"/v{version}/volumes/prune?{filters(**wanted)}")
            assert answer.status == 200, answer.raw
            return list(answer.body["VolumesDeleted"])

        anonymous = (await client.ask("POST", "/volumes/create", {})).body
        assert anonymous["Labels"] == {ANONYMOUS: ""} and len(anonymous["Name"]) == 64
        for name, labels in (("one", {"keep": "1"}), ("two", {})):
            await client.ask("POST", "/volumes/create", {"Name": name, "Labels": labels})
        assert await prune("1.50") == [anonymous["Name"]]
        assert await prune("1.50") == []
        assert await prune("1.50", all=["1"], label_=["keep"]) == ["two"]
        assert await prune("1.41") == ["one"]
        assert [e["Action"] for e in context.events.past() if e["Type"] == "volume"].count("prune") == 4

    play(tmp_path, scene)
