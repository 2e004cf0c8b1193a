"""Pushes to a real registry: what is sent, what is not sent twice, and Docker's words."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_world import Lines, images, small

from skep.errors import NotFound, SkepError, Unauthorized
from skep.local.build import image, layer, program, push_image, text
from skep.local.registry import RegistryServer

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with RegistryServer(tmp_path_factory.mktemp("registry")) as server:
        yield server


def uploads(registry: RegistryServer, since: int) -> list[str]:
    return [method for method, path, _ in registry.requests()[since:] if method == "PATCH" and "/blobs/uploads/" in path]


def test_what_was_pulled_goes_elsewhere_and_comes_back_the_same(registry: RegistryServer, tmp_path: Path) -> None:
    built = small("around", layers=3)
    push_image(registry.url, "p/around", "1", built)
    with RegistryServer(tmp_path / "other") as other:
        node, lines = images(tmp_path / "node"), Lines()
        there = f"{other.address}/copy/around:2"

        async def main() -> None:
            await node.pull(f"{registry.address}/p/around:1")
            await node.tag(f"{registry.address}/p/around:1", there)
            said = await node.push(there, on_progress=lines)
            found = node.get(there)
            assert found is not None and f"{other.address}/copy/around@{said['Digest']}" in found.digests
            assert said["Tag"] == "2" and lines.last == f"2: digest: {said['Digest']} size: {said['Size']}"
            shorts = [diff_id[7:19] for diff_id in reversed(found.layers)]
            assert lines.all[0].status == f"The push refers to repository [{other.address}/copy/around]"
            assert [line.id for line in lines.all if line.status == "Preparing"] == shorts
            assert all(lines.of(short)[-1] == "Pushed" for short in shorts)
            again, sent = Lines(), len(other.requests())
            assert await node.push(there, on_progress=again) == said
            assert all(again.of(short)[-1] == "Layer already exists" for short in shorts)
            assert uploads(other, sent) == []

        asyncio.run(main())
        third = images(tmp_path / "third")
        back = asyncio.run(third.pull(there))
        assert back.id == built.id
        top = Path(third.rootfs_layers(back.id)[0])
        assert (top / "file2").read_text() == "around2" and (top / "file2").stat().st_mtime == 1704067200


def test_pushing_to_where_it_came_from_sends_nothing_and_keeps_the_digest(registry: RegistryServer, tmp_path: Path) -> None:
    built = small("home", layers=2)
    node, lines = images(tmp_path), Lines()
    name = f"{registry.address}/p/home"
    push_image(registry.url, "p/home", "1", built)
    asyncio.run(node.pull(f"{name}:1"))
    sent = len(registry.requests())
    first = asyncio.run(node.push(f"{name}:1", on_progress=lines))
    assert {line.status for line in lines.all if line.id} == {"Preparing", "Layer already exists"}
    assert uploads(registry, sent) == []
    asyncio.run(node.tag(f"{name}:1", f"{registry.address}/p/neighbour:1"))
    lines = Lines()
    second = asyncio.run(node.push(f"{registry.address}/p/neighbour:1", on_progress=lines))
    assert second["Digest"] == first["Digest"]
    assert {line.status for line in lines.all if line.id} == {"Preparing", "Mounted from p/home"}
    assert uploads(registry, sent) == []
    assert node.get(f"{registry.address}/p/neighbour@{first['Digest']}") is not None


def test_a_second_node_pulls_what_an_import_made(registry: RegistryServer, tmp_path: Path) -> None:
    data = layer({"bin/tool": program(bytes(range(256)) * 20_000), "empty": text("")})

    async def chunks() -> object:
        yield data

    node = images(tmp_path / "one")
    name = f"{registry.address}/p/made:1"
    id = asyncio.run(node.import_archive(chunks(), reference=name))  # type: ignore[arg-type]
    lines = Lines()
    asyncio.run(node.push(name, on_progress=lines))
    pushing = [line for line in lines.all if line.status == "Pushing"]
    assert pushing and all(0 < line.current <= line.total == len(data) for line in pushing)
    other = images(tmp_path / "two")
    assert asyncio.run(other.pull(name)).id == id
    assert (Path(other.rootfs_layers(id)[0]) / "bin/tool").read_bytes() == bytes(range(256)) * 20_000


def test_names_that_cannot_be_pushed(registry: RegistryServer, tmp_path: Path) -> None:
    node = images(tmp_path)
    push_image(registry.url, "p/known", "1", small("known"))
    asyncio.run(node.pull(f"{registry.address}/p/known:1"))
    for name, text_ in (
        ("nosuch", "An image does not exist locally with the tag: nosuch"),
        (f"{registry.address}/p/known:9", f"tag does not exist: {registry.address}/p/known:9"),
    ):
        with pytest.raises(NotFound) as caught:
            asyncio.run(node.push(name))
        assert caught.value.message == text_
    asyncio.run(node.tag(f"{registry.address}/p/known:1", "127.0.0.1:1/x:1"))
    with pytest.raises(SkepError, match="dial tcp 127.0.0.1:1: connect: connection refused"):
        asyncio.run(node.push("127.0.0.1:1/x:1"))


def test_a_registry_that_wants_a_password(tmp_path: Path) -> None:
    (tmp_path / "htpasswd").write_text("ann:$2b$04$GKblKA/v7k26Hr/kI68GPusR32kiUHbUBzoHSX6Zfj0.mYpEcYqHG\n")
    with RegistryServer(tmp_path / "registry", htpasswd=tmp_path / "htpasswd") as registry:
        node, name = images(tmp_path / "node"), f"{registry.address}/p/locked:1"

        async def chunks() -> object:
            yield layer({"a": text("a")})

        asyncio.run(node.import_archive(chunks(), reference=name))  # type: ignore[arg-type]
        with pytest.raises(Unauthorized, match="no basic auth credentials"):
            asyncio.run(node.push(name))
        auth = base64.urlsafe_b64encode(json.dumps({"username": "ann", "password": "s3cret"}).encode()).decode()
        assert asyncio.run(node.push(name, auth=auth))["Tag"] == "1"


def test_a_layer_whose_files_were_changed_is_not_pushed(registry: RegistryServer, tmp_path: Path) -> None:
    node = images(tmp_path)
    built = image([layer({"file": text("right"), "other": text("x")})])
    push_image(registry.url, "p/changed", "1", built)
    found = asyncio.run(node.pull(f"{registry.address}/p/changed:1"))
    name = f"{registry.address}/elsewhere/changed:1"
    record = tmp_path / "layers" / found.layers[0][7:] / "layer.json"
    forgotten = json.loads(record.read_text()) | {"blobs": []}
    record.write_text(json.dumps(forgotten))
    node = images(tmp_path)
    asyncio.run(node.tag(found.id, name))
    target = Path(node.rootfs_layers(found.id)[0]) / "file"
    target.write_text("wrong")
    with pytest.raises(SkepError, match=f"layer {found.layers[0]} is not any more as it was unpacked"):
        asyncio.run(node.push(name))
    target.write_text("longer than it was")
    with pytest.raises(SkepError, match="'file' is not as it was unpacked"):
        asyncio.run(node.push(name))
    assert not [path for method, path, _ in registry.requests() if method == "PUT" and path.startswith("/v2/elsewhere/changed/manifests")]
