"""Pulls from a real registry: docker-registry on loopback."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_world import Lines, images, leftovers, small

from skep.errors import Conflict, NotFound, SkepError, Unauthorized
from skep.local.build import image, layer, push_image, sha256, text
from skep.local.registry import RegistryServer

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with RegistryServer(tmp_path_factory.mktemp("registry")) as server:
        yield server


def test_a_pull_brings_config_layers_names_and_progress(registry: RegistryServer, tmp_path: Path) -> None:
    built = small("whole", layers=2)
    push_image(registry.url, "t/whole", "1", built)
    node, lines = images(tmp_path), Lines()
    found = asyncio.run(node.pull(f"{registry.address}/t/whole:1", on_progress=lines))
    assert found.id == built.id
    assert found.tags == (f"{registry.address}/t/whole:1",)
    assert found.digests == (f"{registry.address}/t/whole@{built.digest}",)
    assert found.config.cmd == ("/bin/true",) and found.created == 1704067200 * 10**9 and found.size == len("whole0whole1")
    top, low = node.rootfs_layers(found.id)
    assert (Path(top) / "file1").read_text() == "whole1" and (Path(low) / "file0").read_text() == "whole0"
    assert Path(top).parent == tmp_path / "l" and len(Path(top).name) == 6
    assert lines.all[0].status == "Pulling from t/whole" and lines.all[0].id == "1"
    first = json.loads(built.manifest)["layers"][0]["digest"][7:19]
    assert lines.of(first)[0] == "Pulling fs layer" and lines.of(first)[-1] == "Pull complete" and "Downloading" in lines.of(first)
    assert lines.all[-2].status == f"Digest: {built.digest}"
    assert lines.last == f"Status: Downloaded newer image for {registry.address}/t/whole:1"
    assert leftovers(tmp_path) == []


def test_a_second_pull_fetches_the_manifest_only_and_says_so(registry: RegistryServer, tmp_path: Path) -> None:
    push_image(registry.url, "t/again", "1", small("again"))
    node, lines = images(tmp_path), Lines()
    asyncio.run(node.pull(f"{registry.address}/t/again:1"))
    before = len(registry.requests())
    asyncio.run(node.pull(f"{registry.address}/t/again:1", on_progress=lines))
    assert lines.last == f"Status: Image is up to date for {registry.address}/t/again:1"
    assert [path for _, path, _ in registry.requests()[before:]] == ["/v2/", "/v2/t/again/manifests/1"]


def test_a_name_that_means_another_image_now_is_news_though_that_was_here(registry: RegistryServer, tmp_path: Path) -> None:
    """As a service leaves it: pulled by its digest. Who watches a tag goes by this line."""
    old, new = small("old"), small("new")
    push_image(registry.url, "t/moves", "1", old)
    node, lines = images(tmp_path), Lines()
    asyncio.run(node.pull(f"{registry.address}/t/moves:1"))
    push_image(registry.url, "t/moves", "1", new)
    by_digest = f"{registry.address}/t/moves@{new.digest}"
    for reference, said in (
        (by_digest, "Downloaded newer image for"),
        (by_digest, "Image is up to date for"),
        (f"{registry.address}/t/moves:1", "Downloaded newer image for"),
        (f"{registry.address}/t/moves:1", "Image is up to date for"),
    ):
        asyncio.run(node.pull(reference, on_progress=lines))
        assert lines.last == f"Status: {said} {reference}"


def test_images_share_layers_and_a_layer_goes_with_its_last_image(registry: RegistryServer, tmp_path: Path) -> None:
    base, own = layer({"base": text("b")}), layer({"own": text("o")})
    push_image(registry.url, "t/base", "1", image([base]))
    push_image(registry.url, "t/child", "1", image([base, own]))
    node, lines = images(tmp_path), Lines()

    async def main() -> None:
        low = await node.pull(f"{registry.address}/t/base:1")
        child = await node.pull(f"{registry.address}/t/child:1", on_progress=lines)
        assert node.rootfs_layers(low.id)[0] == node.rootfs_layers(child.id)[1]
        assert "Already exists" in [line.status for line in lines.all]
        gone = await node.remove(f"{registry.address}/t/base:1")
        assert [list(line) for line in gone] == [["Untagged"], ["Untagged"], ["Deleted"]]
        assert (Path(node.rootfs_layers(child.id)[1]) / "base").exists()
        assert {"Deleted": sha256(base)} in await node.remove(child.id)

    asyncio.run(main())
    assert list((tmp_path / "layers").iterdir()) == [] and list((tmp_path / "l").iterdir()) == []
    assert not node.all()


def test_what_a_node_has_survives_its_restart(registry: RegistryServer, tmp_path: Path) -> None:
    push_image(registry.url, "t/stay", "1", small("stay"))
    before = asyncio.run(images(tmp_path).pull(f"{registry.address}/t/stay:1"))
    again = images(tmp_path)
    assert again.get(f"{registry.address}/t/stay:1") == before
    assert again.warnings == ()
    assert Path(again.rootfs_layers(before.id)[0], "file0").exists()


def test_a_damaged_config_or_a_missing_layer_drops_the_image_at_the_start(registry: RegistryServer, tmp_path: Path) -> None:
    push_image(registry.url, "t/damaged", "1", small("damaged"))
    push_image(registry.url, "t/gap", "1", small("gap"))
    node = images(tmp_path)

    async def both() -> tuple[str, str]:
        one, two = await node.pull(f"{registry.address}/t/damaged:1"), await node.pull(f"{registry.address}/t/gap:1")
        return one.id, two.layers[0]

    damaged, gap = asyncio.run(both())
    file = tmp_path / "images" / f"{damaged[7:]}.json"
    file.write_bytes(file.read_bytes().replace(b"/bin/true", b"/bin/evil"))
    (tmp_path / "layers" / gap[7:] / "layer.json").unlink()
    again = images(tmp_path)
    assert again.all() == [] and again.get(f"{registry.address}/t/gap:1") is None
    assert sorted(line.rpartition(": ")[2] for line in again.warnings) == ["its config is damaged", f"layer {gap} is missing"]
    assert asyncio.run(again.pull(f"{registry.address}/t/gap:1")).layers == (gap,)


@pytest.mark.parametrize("compress", ["wrong bytes", "wrong gzip"])
def test_a_tampered_layer_is_refused_and_leaves_nothing(registry: RegistryServer, tmp_path: Path, compress: str) -> None:
    built = small(f"tampered {compress}", layers=2)
    push_image(registry.url, "t/tampered", compress.replace(" ", ""), built)
    digest = json.loads(built.manifest)["layers"][1]["digest"]
    stored = registry.data / f"data/docker/registry/v2/blobs/sha256/{digest[7:9]}/{digest[7:]}/data"
    right = stored.read_bytes()
    if compress == "wrong bytes":
        other = image([layer({"file1": text("x" * 8)})]).blobs
        wrong = max(other.values(), key=lambda blob: blob[:2] == b"\x1f\x8b")
        stored.write_bytes(wrong[: len(right)].ljust(len(right), b"\0"))
    else:
        stored.write_bytes(right[:20] + bytes([right[20] ^ 0xFF]) + right[21:])
    node = images(tmp_path)
    with pytest.raises(SkepError, match=f"filesystem layer verification failed for digest {digest}"):
        asyncio.run(node.pull(f"{registry.address}/t/tampered:{compress.replace(' ', '')}"))
    assert node.all() == [] and leftovers(tmp_path) == []
    assert [path.name for path in (tmp_path / "layers").iterdir()] in ([], [sha256(layer({"file0": text(f"tampered {compress}0")}))[7:]])


def test_a_tampered_config_is_refused(registry: RegistryServer, tmp_path: Path) -> None:
    built = small("tampered config")
    push_image(registry.url, "t/config", "1", built)
    stored = registry.data / f"data/docker/registry/v2/blobs/sha256/{built.id[7:9]}/{built.id[7:]}/data"
    stored.write_bytes(stored.read_bytes().replace(b"/bin/true", b"/bin/evil"))
    with pytest.raises(SkepError, match=f"verification failed for digest {built.id}"):
        asyncio.run(images(tmp_path).pull(f"{registry.address}/t/config:1"))


def test_a_layer_that_unpacks_to_another_diff_id_than_the_config_says(registry: RegistryServer, tmp_path: Path) -> None:
    one, other = image([layer({"a": text("1")})]), image([layer({"a": text("2")})])
    swapped = json.loads(one.manifest)
    swapped["layers"] = json.loads(other.manifest)["layers"]
    built = type(one)(json.dumps(swapped).encode(), one.config, one.blobs | other.blobs)
    push_image(registry.url, "t/swapped", "1", built)
    with pytest.raises(SkepError, match="layers from manifest don't match image configuration"):
        asyncio.run(images(tmp_path).pull(f"{registry.address}/t/swapped:1"))
    assert list((tmp_path / "layers").iterdir()) == []


def test_the_registrys_reasons_in_dockers_words(registry: RegistryServer, tmp_path: Path) -> None:
    push_image(registry.url, "t/known", "1", small("known"))
    node = images(tmp_path)
    for name in ("t/known:2", "t/unknown:latest", f"t/known@sha256:{'0' * 64}"):
        with pytest.raises(NotFound) as caught:
            asyncio.run(node.pull(f"{registry.address}/{name}"))
        assert caught.value.message == f"manifest for {registry.address}/{name} not found: manifest unknown: manifest unknown"
    with pytest.raises(NotFound) as caught:
        asyncio.run(node.resolve(f"{registry.address}/t/known:2"))
    assert caught.value.message == "manifest unknown: manifest unknown"
    with pytest.raises(SkepError) as refused:
        asyncio.run(node.pull("127.0.0.1:1/x"))
    assert refused.value.message == 'Get "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused'
    for host in ("nosuch.invalid", "1.2.3"):
        with pytest.raises(SkepError) as nowhere:
            asyncio.run(node.pull(f"{host}/x"))
        assert nowhere.value.message == f'Get "https://{host}/v2/": dial tcp: lookup {host}: no such host'
    with pytest.raises(NotFound, match="^No such image: nosuch:latest$"):
        asyncio.run(node.remove("nosuch"))


def test_plain_http_is_for_loopback_and_listed_registries_only(registry: RegistryServer, tmp_path: Path) -> None:
    push_image(registry.url, "t/plain", "1", small("plain"))
    port = registry.port
    # 0.0.0.0 reaches the same server, but is no loopback address
    with pytest.raises(SkepError, match="http: server gave HTTP response to HTTPS client"):
        asyncio.run(images(tmp_path / "strict").pull(f"0.0.0.0:{port}/t/plain:1"))
    listed = images(tmp_path / "listed", insecure=[f"0.0.0.0:{port}"])
    assert asyncio.run(listed.pull(f"0.0.0.0:{port}/t/plain:1")).tags == (f"0.0.0.0:{port}/t/plain:1",)
    network = images(tmp_path / "network", insecure=["0.0.0.0/8"])
    assert asyncio.run(network.pull(f"0.0.0.0:{port}/t/plain:1")).id == small("plain").id


def test_resolve_gives_the_descriptor_that_the_cli_pins(registry: RegistryServer, tmp_path: Path) -> None:
    built = small("resolve")
    push_image(registry.url, "t/resolve", "1", built)
    descriptor, platforms = asyncio.run(images(tmp_path).resolve(f"{registry.address}/t/resolve:1"))
    assert descriptor == {
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "digest": built.digest,
        "size": len(built.manifest),
    }
    assert platforms == [{"architecture": json.loads(built.config)["architecture"], "os": "linux"}]


def test_two_pulls_at_once_are_one_download(registry: RegistryServer, tmp_path: Path) -> None:
    push_image(registry.url, "t/twice", "1", small("twice", layers=3))
    push_image(registry.url, "t/twice", "2", small("twice", layers=4))
    node = images(tmp_path)
    before = len(registry.requests())

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for tag in "1121":
                group.create_task(node.pull(f"{registry.address}/t/twice:{tag}"))

    asyncio.run(main())
    blobs = [path for method, path, _ in registry.requests()[before:] if "/blobs/" in path and method == "GET"]
    assert len(blobs) == len(set(blobs)) == 2 + 4
    assert leftovers(tmp_path) == []


def test_what_a_reference_finds(registry: RegistryServer, tmp_path: Path) -> None:
    built = small("found")
    name = f"{registry.address}/t/found"
    for tag in ("1", "2"):
        push_image(registry.url, "t/found", tag, built)
    node = images(tmp_path)

    async def main() -> None:
        await node.pull(f"{name}:1")
        for reference in (f"{name}:1", f"{name}@{built.digest}", f"{name}:9@{built.digest}", built.id, built.id[7:], built.id[7:19]):
            found = node.get(reference)
            assert found is not None and found.id == built.id, reference
        for reference in (name, f"{name}:2", "sha256:" + "0" * 64, "nosuch", "UPPER", "", "g" * 12):
            assert node.get(reference) is None, reference
        await node.tag(f"{name}:1", "other:9")
        tagged = node.get("other:9")
        assert tagged is not None and tagged.tags == (f"{name}:1", "other:9")
        with pytest.raises(Conflict, match="image is referenced in multiple repositories"):
            await node.remove(built.id[7:19])
        assert await node.remove("other:9") == [{"Untagged": "other:9"}]
        node.users = lambda id: [("c" * 64, True)] if id == built.id else []
        with pytest.raises(Conflict, match=r"unable to remove repository reference .* \(must force\) - container cccccccccccc is using"):
            await node.remove(f"{name}:1")
        with pytest.raises(Conflict, match=r"\(cannot be forced\) - image is being used by running container cccccccccccc"):
            await node.remove(built.id, force=True)
        assert {"Deleted": built.id} not in await node.remove(f"{name}:1", force=True)
        assert node.get(built.id) is not None
        node.users = lambda id: []
        assert {"Deleted": built.id} in await node.remove(built.id)

    asyncio.run(main())


def header(**fields: str) -> str:
    return base64.urlsafe_b64encode(json.dumps(fields).encode()).decode()


def test_a_registry_that_wants_a_password(tmp_path: Path) -> None:
    (tmp_path / "htpasswd").write_text("ann:$2b$04$GKblKA/v7k26Hr/kI68GPusR32kiUHbUBzoHSX6Zfj0.mYpEcYqHG\n")
    with RegistryServer(tmp_path / "registry", htpasswd=tmp_path / "htpasswd") as registry:
        basic = "Basic " + base64.b64encode(b"ann:s3cret").decode()
        push_image(registry.url, "t/locked", "1", small("locked"), authorization=basic)
        node, name = images(tmp_path / "node"), f"{registry.address}/t/locked:1"
        with pytest.raises(Unauthorized, match="no basic auth credentials"):
            asyncio.run(node.pull(name))
        with pytest.raises(Unauthorized, match="no basic auth credentials"):
            asyncio.run(node.pull(name, auth="e30="))
        with pytest.raises(Unauthorized, match="unauthorized: authentication required") as wrong:
            asyncio.run(node.pull(name, auth=header(username="ann", password="guess")))
        assert "guess" not in wrong.value.message
        assert asyncio.run(node.pull(name, auth=header(username="ann", password="s3cret"))).tags == (name,)
        descriptor, _ = asyncio.run(node.resolve(name, auth=header(auth=base64.b64encode(b"ann:s3cret").decode())))
        assert descriptor["digest"] == small("locked").digest


def test_many_layers_are_refused_before_anything_is_fetched(registry: RegistryServer, tmp_path: Path) -> None:
    one = small("many")
    manifest = json.loads(one.manifest)
    manifest["layers"] *= 128
    built = type(one)(json.dumps(manifest).encode(), one.config, one.blobs)
    push_image(registry.url, "t/many", "1", built)
    with pytest.raises(SkepError, match="the image has 128 layers; at most 127 can be mounted"):
        asyncio.run(images(tmp_path).pull(f"{registry.address}/t/many:1"))
