"""`/images` and `/system/df` on the wire: Docker's forms, streams, filters and events."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from skep.clock import SECOND
from skep.engine.base import ContainerConfig, Image, ImageConfig
from skep.testing.api_client import Client, serving
from skep.testing.fake_context import FakeContext, StepClock

NOON = 1_795_406_400 * SECOND
HOUR = 3600 * SECOND
WEB = "10.0.99.1:5000/web"
ONE = Image(
    id="sha256:" + "1" * 64,
    tags=(f"{WEB}:1", "local:1"),
    digests=(f"{WEB}@sha256:" + "c" * 64,),
    layers=("sha256:" + "a" * 64, "sha256:" + "b" * 64),
    layer_sizes=(300, 20),
    size=320,
    created=NOON - 2 * HOUR,
    config=ImageConfig(cmd=("serve",), labels={"tier": "web"}, on_build=("RUN x",), shell=("/bin/sh", "-c")),  # noqa: S604
    history=(
        {"created": "2026-11-23T02:00:00.123456789Z", "created_by": "ADD rootfs", "comment": "base"},
        {"created": "2026-11-23T02:00:01Z", "created_by": "ENV A=b", "empty_layer": True},
        {"created": "2026-11-23T02:00:02Z", "created_by": "COPY site"},
    ),
    author="ann",
    comment="said",
    docker_version="28.2.2",
    tagged_at=NOON - HOUR,
    directories=("/l/b", "/l/a"),
    architecture="amd64",
)
TWO = Image(id="sha256:" + "2" * 64, layers=("sha256:" + "d" * 64,), layer_sizes=(50,), size=50, created=NOON - 10 * HOUR)


def play(scene: Callable[[Client, FakeContext], Awaitable[None]], volumes: Path | None = None) -> None:
    async def run() -> None:
        context = FakeContext(StepClock(NOON), random.Random(5), volumes=volumes)
        context.engine.images.add(ONE)
        context.engine.images.add(TWO)
        async with serving(context) as client:
            await scene(client, context)

    asyncio.run(run())


def filters(**values: Any) -> str:
    return "filters=" + quote(json.dumps({key.replace("_", "!"): value for key, value in values.items()}))


def told(context: FakeContext) -> list[tuple[str, str, str]]:
    return [
        (e["Action"], e["Actor"]["ID"], e["Actor"]["Attributes"].get("name", "")) for e in context.events.past() if e["Type"] == "image"
    ]


def lines(raw: bytes) -> list[Any]:
    return [json.loads(line) for line in raw.decode().splitlines()]


def test_history_and_details() -> None:
    async def scene(client: Client, context: FakeContext) -> None:
        steps = (await client.ask("GET", "/images/local:1/history")).body
        assert [(s["Id"][:9], s["CreatedBy"], s["Size"], s["Comment"]) for s in steps] == [
            ("sha256:11", "COPY site", 20, ""),
            ("<missing>", "ENV A=b", 0, ""),
            ("<missing>", "ADD rootfs", 300, "base"),
        ]
        assert steps[0]["Tags"] == [f"{WEB}:1", "local:1"] and steps[2]["Created"] == 1_795_399_200
        shown = (await client.ask("GET", "/images/local:1/json")).body
        assert (shown["Comment"], shown["Author"], shown["DockerVersion"]) == ("said", "ann", "28.2.2")
        assert shown["GraphDriver"]["Data"] == {"UpperDir": "/l/b", "LowerDir": "/l/a"}
        assert shown["Metadata"] == {"LastTagTime": "2026-11-23T03:00:00Z"}
        assert shown["Config"]["OnBuild"] == ["RUN x"] and shown["Config"]["Shell"] == ["/bin/sh", "-c"]

    play(scene)


def test_details_for_old_clients() -> None:
    """docker-compose 1.29 asks by an old version, and looks for the volumes of an image in what newer ones do not have."""

    async def scene(client: Client, context: FakeContext) -> None:
        old = {"Container", "ContainerConfig", "VirtualSize"}
        for version, had in (("1.43", old), ("1.44", old - {"VirtualSize"}), ("1.45", set()), ("1.50", set())):
            shown = (await client.ask("GET", f"/v{version}/images/local:1/json")).body
            assert shown.keys() & old == had, version
            assert (
                shown.get("ContainerConfig", shown["Config"]) == shown["Config"]
                and shown.get("VirtualSize", shown["Size"]) == shown["Size"]
            )

    play(scene)


def test_filters_of_the_list() -> None:
    async def scene(client: Client, context: FakeContext) -> None:
        async def ids(**wanted: Any) -> list[str]:
            answer = await client.ask("GET", f"/images/json?{filters(**wanted)}")
            assert answer.status == 200, answer.raw
            return [image["Id"][7] for image in answer.body]

        assert await ids() == ["1", "2"]
        assert await ids(until=["5h"]) == ["2"] and await ids(until=["1h"]) == ["1", "2"]
        assert await ids(until=["2026-11-23T00:00:00Z"]) == ["2"]
        assert await ids(dangling=["true"]) == ["2"] and await ids(label=["tier=web"]) == ["1"]
        assert await ids(before=["local:1"]) == ["2"] and await ids(since=[TWO.id]) == ["1"]
        assert await ids(reference=["local"]) == ["1"] and await ids(reference=["nosuch*"]) == []
        shared = (await client.ask("GET", "/images/json?shared-size=1")).body
        assert [image["SharedSize"] for image in shared] == [0, 0]

    play(scene)


def test_names_come_and_go() -> None:
    async def scene(client: Client, context: FakeContext) -> None:
        made = await client.ask("POST", "/images/local:1/tag?repo=docker.io%2Flibrary%2Fother&tag=1")
        assert (made.status, made.raw) == (201, b"")
        image = context.engine.images.get("other:1")
        assert image is not None and image.id == ONE.id
        assert (await client.ask("DELETE", "/images/other:1")).body == [{"Untagged": "other:1"}]
        for path, status, text in (
            ("/images/nosuch/tag?repo=x&tag=1", 404, "No such image: nosuch:latest"),
            ("/images/local:1/tag?repo=UPPER", 400, "invalid reference format: repository name (library/UPPER) must be lowercase"),
            ("/images/local:1/tag", 400, "repository name must have at least one component"),
        ):
            answer = await client.ask("POST", path)
            assert (answer.status, answer.body["message"]) == (status, text)
        assert told(context) == [("tag", ONE.id, "other:1"), ("untag", ONE.id, ONE.id)]

    play(scene)


def test_a_push_line_by_line() -> None:
    async def scene(client: Client, context: FakeContext) -> None:
        answer = await client.ask("POST", f"/v1.50/images/{WEB}/push?tag=1", headers={"X-Registry-Auth": "e30="})
        digest = "sha256:" + "c" * 64
        assert answer.raw.decode().split("\r\n")[0] == f'{{"status":"The push refers to repository [{WEB}]"}}'
        assert lines(answer.raw)[1] == {"status": "Preparing", "progressDetail": {}, "id": "a" * 12}
        assert lines(answer.raw)[-2:] == [
            {"status": f"1: digest: {digest} size: 527"},
            {"progressDetail": {}, "aux": {"Tag": "1", "Digest": digest, "Size": 527}},
        ]
        assert context.engine.images.pushed == [(f"{WEB}:1", "e30=")]
        await client.ask("POST", "/images/local:1/tag?repo=local&tag=2")
        every = await client.ask("POST", "/images/local/push")
        assert [line["aux"]["Tag"] for line in lines(every.raw) if "aux" in line] == ["1", "2"]
        assert ("push", f"{WEB}:1", WEB) in told(context)
        assert (await client.ask("POST", f"/images/{WEB}@{digest}/push")).body == {"message": "cannot push a digest reference"}

    play(scene)


def test_archives_in_and_out() -> None:
    async def scene(client: Client, context: FakeContext) -> None:
        images = context.engine.images
        images.loads[b"an archive"] = [Image(id="sha256:" + "3" * 64, tags=("in:1", "in:2")), Image(id="sha256:" + "4" * 64)]
        tar = {"Content-Type": "application/x-tar"}
        answer = await client.ask("POST", "/images/load?quiet=1", b"an archive", tar)
        assert lines(answer.raw) == [
            {"stream": "Loaded image: in:1\n"},
            {"stream": "Loaded image: in:2\n"},
            {"stream": f"Loaded image ID: sha256:{'4' * 64}\n"},
        ]
        saved = await client.ask("GET", "/images/get?names=in:1&names=local:1")
        assert saved.headers["Content-Type"] == "application/x-tar" and saved.raw == f"sha256:{'3' * 64}\n{ONE.id}\n".encode()
        assert (await client.ask("GET", "/images/local:1/get")).raw == f"{ONE.id}\n".encode()
        lost = await client.ask("GET", "/images/get?names=in:1&names=nosuch")
        assert (lost.status, lost.body) == (404, {"message": "No such image: nosuch:latest"})
        made = await client.ask("POST", "/images/create?fromSrc=-&repo=mine&tag=1&message=m&changes=CMD+x", b"a tar", tar)
        (line,) = lines(made.raw)
        found = images.get("mine:1")
        assert found is not None and line == {"status": found.id}
        assert [action for action, _, _ in told(context)] == ["load", "load", "load", "save", "save", "save", "import"]
        assert (await client.ask("POST", "/images/create?fromSrc=http://x/y")).status == 501

    play(scene)


def test_prune() -> None:
    async def scene(client: Client, context: FakeContext) -> None:
        async def prune(**wanted: Any) -> Any:
            answer = await client.ask("POST", f"/images/prune?{filters(**wanted)}")
            assert answer.status == 200, answer.raw
            return answer.body

        assert await prune(dangling=["true"], until=["24h"]) == {"ImagesDeleted": None, "SpaceReclaimed": 0}
        assert await prune(dangling=["true"]) == {"ImagesDeleted": [{"Deleted": TWO.id}], "SpaceReclaimed": 50}
        config = ContainerConfig(id="c" * 64, name="c", image=ONE.id, args=("x",))
        await context.engine.create(config)
        assert await prune(dangling=["false"]) == {"ImagesDeleted": None, "SpaceReclaimed": 0}
        await context.engine.remove(config.id)
        assert await prune(dangling=["false"], label_=["tier"]) == {"ImagesDeleted": None, "SpaceReclaimed": 0}
        assert (await prune(dangling=["false"], label=["tier=web"]))["SpaceReclaimed"] == 320
        twice = await client.ask("POST", f"/images/prune?{filters(until=['1h', '2h'])}")
        assert (twice.status, twice.body) == (400, {"message": "more than one until filter specified"})

    play(scene)


def test_disk_usage(tmp_path: Path) -> None:
    async def scene(client: Client, context: FakeContext) -> None:
        await context.engine.create(ContainerConfig(id="c" * 64, name="c", image=ONE.id, args=("x",)))
        await client.ask("POST", "/volumes/create", {"Name": "data"})
        (tmp_path / "data/_data/file").write_bytes(b"x" * 1234)
        whole = (await client.ask("GET", "/system/df")).body
        assert whole["LayersSize"] == 370 and whole["BuildCache"] == []
        assert [(i["Id"][7], i["Containers"], i["SharedSize"], i["Size"]) for i in whole["Images"]] == [("1", 1, 0, 320), ("2", 0, 0, 50)]
        assert [c["Names"] for c in whole["Containers"]] == [["/c"]]
        assert [(v["Name"], v["UsageData"]) for v in whole["Volumes"]] == [("data", {"RefCount": 0, "Size": 1234})]
        only = (await client.ask("GET", "/system/df?type=volume")).body
        assert (only["Images"], only["Containers"], len(only["Volumes"])) == ([], [], 1)
        assert (await client.ask("GET", "/system/df?type=bogus")).body == {"message": "unknown object type: bogus"}

    play(scene, tmp_path)
