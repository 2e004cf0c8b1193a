"""Images as archives: saved, loaded elsewhere, imported; archives made by others; hostile ones."""

from __future__ import annotations

import asyncio
import bz2
import gzip
import hashlib
import io
import json
import lzma
import subprocess
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from image_world import images, leftovers, small

from skep.engine.oci import imagearchive as archives
from skep.engine.oci.images import OciImages
from skep.errors import NotFound, SkepError
from skep.local.build import Built, layer, push_image, sha256, text
from skep.local.registry import RegistryServer

pytestmark = pytest.mark.root


async def chunks(data: bytes, size: int = 70_001) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def tar(files: dict[str, bytes | str], kinds: dict[str, bytes] | None = None) -> bytes:
    """A str is the target of a link."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = (kinds or {}).get(name, tarfile.SYMTYPE), content
                made.addfile(info)
            else:
                info.size = len(content)
                made.addfile(info, io.BytesIO(content))
    return out.getvalue()


def docker_archive(built: Built, *tags: str, layers: list[bytes] | None = None) -> dict[str, bytes | str]:
    """As `docker save` wrote it before 25."""
    config = f"{built.id[7:]}.json"
    made: dict[str, bytes | str] = {config: built.config}
    names = []
    for data in layers if layers is not None else [gzip.decompress(blob) for blob in built.blobs.values() if blob[:2] == b"\x1f\x8b"]:
        name = f"{hashlib.sha256(data).hexdigest()}/layer.tar"
        names.append(name)
        made[name] = data
    made["manifest.json"] = json.dumps([{"Config": config, "RepoTags": list(tags) or None, "Layers": names}]).encode()
    return made


def load(node: OciImages, data: bytes) -> list[str]:
    return asyncio.run(node.load(chunks(data)))


async def whole(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


def save(node: OciImages, *names: str) -> bytes:
    async def main() -> bytes:
        return await whole(node.save(names))

    return asyncio.run(main())


@pytest.fixture
def filled(tmp_path: Path) -> OciImages:
    """Two images that share a layer, under three names."""
    with RegistryServer(tmp_path / "registry") as registry:
        node = images(tmp_path / "node")
        for number in (2, 3):
            push_image(registry.url, "s/x", str(number), small("saved", layers=number))
            found = asyncio.run(node.pull(f"{registry.address}/s/x:{number}"))
            asyncio.run(node.tag(found.id, f"mine:{number}"))
    asyncio.run(node.tag("mine:2", "other"))
    return node


def test_saved_here_and_loaded_there(filled: OciImages, tmp_path: Path) -> None:
    data = save(filled, "mine:2", "mine:3")
    assert data == save(filled, "mine:2", "mine:3"), "the same images give the same bytes"
    other = images(tmp_path / "other")
    assert load(other, data) == ["Loaded image: mine:2", "Loaded image: mine:3"]
    for name in ("mine:2", "mine:3"):
        ours, theirs = filled.get(name), other.get(name)
        assert ours is not None and theirs is not None and ours.id == theirs.id and ours.layers == theirs.layers
    assert save(other, "mine:2", "mine:3") == data
    assert leftovers(tmp_path / "other") == []
    assert load(other, data) == ["Loaded image: mine:2", "Loaded image: mine:3"], "once more changes nothing"


def test_what_an_archive_has_in_it(filled: OciImages, tmp_path: Path) -> None:
    (tmp_path / "saved.tar").write_bytes(save(filled, "mine:2", "mine:3", "other"))
    listed = subprocess.run(["tar", "-tf", str(tmp_path / "saved.tar")], check=True, capture_output=True, text=True).stdout.split()
    two, three = filled.get("mine:2"), filled.get("mine:3")
    assert two is not None and three is not None
    assert {f"blobs/sha256/{digest[7:]}" for digest in (two.id, three.id, *three.layers)} < set(listed)
    assert len(listed) == len(set(listed)), "a shared layer is there once"
    with tarfile.open(tmp_path / "saved.tar") as made:

        def read(name: str) -> Any:
            file = made.extractfile(name)
            assert file is not None
            return json.load(file)

        items = read("manifest.json")
        assert [item["RepoTags"] for item in items] == [["mine:2", "other:latest"], ["mine:3"]]
        index = read("index.json")
        assert [entry["annotations"]["io.containerd.image.name"] for entry in index["manifests"]] == [
            "docker.io/library/mine:2",
            "docker.io/library/other:latest",
            "docker.io/library/mine:3",
        ]
        for entry in index["manifests"]:
            manifest = read("blobs/" + entry["digest"].replace(":", "/"))
            assert [sha256(made.extractfile(f"blobs/sha256/{part['digest'][7:]}").read()) for part in manifest["layers"]] == [  # type: ignore[union-attr]
                part["digest"] for part in manifest["layers"]
            ]
        assert read("repositories").keys() == {"mine", "other"}


def test_a_name_without_a_tag_saves_the_whole_repository_and_an_id_no_name(filled: OciImages, tmp_path: Path) -> None:
    one, two = images(tmp_path / "one"), images(tmp_path / "two")
    assert load(one, save(filled, "mine")) == ["Loaded image: mine:2", "Loaded image: mine:3"]
    found = filled.get("mine:2")
    assert found is not None
    assert load(two, save(filled, found.id[7:19])) == [f"Loaded image ID: {found.id}"]
    loaded = two.get(found.id)
    assert loaded is not None and loaded.tags == ()
    with pytest.raises(NotFound, match="No such image: nosuch:latest"):
        filled.save(["mine", "nosuch"])


def test_an_oci_layout_alone_is_loaded_too(filled: OciImages, tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(save(filled, "mine:3"))) as made:
        files = {entry.name: made.extractfile(entry).read() for entry in made if entry.isfile()}  # type: ignore[union-attr]
    layout: dict[str, bytes | str] = {name: data for name, data in files.items() if name not in ("manifest.json", "repositories")}
    other = images(tmp_path / "other")
    assert load(other, tar(layout)) == ["Loaded image: mine:3"]
    changed = {
        name: (data.replace(b'"size":', b'"size": ') if b"oci.image.config" in bytes(data) else data) for name, data in files.items()
    }  # type: ignore[arg-type]
    changed.pop("manifest.json")
    with pytest.raises(SkepError, match="manifest verification failed for digest"):
        load(images(tmp_path / "third"), tar(dict(changed)))


@pytest.mark.parametrize("squeeze", [bytes, gzip.compress, bz2.compress, lzma.compress, "zstd"])
def test_older_archives_compressed_or_not(tmp_path: Path, squeeze: Any) -> None:
    built = small("older", layers=2)
    data = tar(docker_archive(built, "old:1", "registry:5000/old:2"))
    if squeeze == "zstd":
        packed = subprocess.run(["zstd", "-c"], input=data, capture_output=True, check=True).stdout
    else:
        packed = squeeze(data)
    node = images(tmp_path)
    assert load(node, packed) == ["Loaded image: old:1", "Loaded image: registry:5000/old:2"]
    found = node.get("old:1")
    assert found is not None and found.id == built.id and (Path(node.rootfs_layers(found.id)[0]) / "file1").read_text() == "older1"
    with pytest.raises(SkepError):
        load(images(tmp_path / "cut"), packed[: len(packed) // 2])
    assert images(tmp_path / "cut").all() == [] and leftovers(tmp_path / "cut") == []


def test_links_in_an_archive_are_followed_in_it_only(tmp_path: Path) -> None:
    built = small("linked")
    files = docker_archive(built, "linked:1")
    name = next(name for name in files if name.endswith("layer.tar"))
    files["shared/real.tar"] = files.pop(name)
    files[name] = "../shared/real.tar"
    assert load(images(tmp_path / "soft"), tar(files)) == ["Loaded image: linked:1"]
    files[name] = "shared/real.tar"
    assert load(images(tmp_path / "hard"), tar(files, {name: tarfile.LNKTYPE})) == ["Loaded image: linked:1"]
    for target in ("/etc/hostname", "../../../../etc/hostname", name):
        files[name] = target
        with pytest.raises(NotFound, match=f"open {name}: no such file or directory"):
            load(images(tmp_path / "out"), tar(files))


def test_a_name_moves_to_what_was_loaded_last(tmp_path: Path) -> None:
    node = images(tmp_path)
    first, second = small("first"), small("second")
    load(node, tar(docker_archive(first, "moving:1")))
    assert load(node, tar(docker_archive(second, "moving:1"))) == [
        f"The image moving:1 already exists, renaming the old one with ID {first.id} to empty string",
        "Loaded image: moving:1",
    ]
    old, new = node.get(first.id), node.get("moving:1")
    assert old is not None and old.tags == () and new is not None and new.id == second.id


def broken(files: dict[str, bytes | str], **changes: Any) -> bytes:
    item = json.loads(files["manifest.json"])[0] | changes
    return tar({**files, "manifest.json": json.dumps([item]).encode()})


def test_archives_that_are_none(tmp_path: Path) -> None:
    built = small("bad", layers=2)
    files = docker_archive(built, "bad:1")
    layer_names = [name for name in files if name.endswith("layer.tar")]
    other = gzip.decompress(next(blob for blob in small("other").blobs.values() if blob[:2] == b"\x1f\x8b"))
    huge = tarfile.TarInfo("pax")
    huge.type, huge.size = tarfile.XHDTYPE, 8 << 30
    for data, words in (
        (b"", "unexpected EOF"),
        (b"hello, I am no archive" * 100, "invalid tar header"),
        (tar({"readme": b"x"}), "neither from `docker save`"),
        (tar({"manifest.json": b"{"}), "invalid manifest.json"),
        (tar({"manifest.json": b"[" + b'{"Config":"a"},' * 10_001 + b'{"Config":"a"}]'}), "more than 10000 images"),
        (tar({"manifest.json": b" " * (5 << 20)}), "manifest.json has 5242880 bytes, more than the 4194304 allowed"),
        (tar({"manifest.json": b'[{"Config":"../../etc/passwd"}]'}), "open ../../etc/passwd: no such file or directory"),
        (huge.tobuf(tarfile.GNU_FORMAT), "an extended header is too long"),
        (broken(files, Layers=layer_names[:1]), "layers length mismatch: expected 2, got 1"),
        (broken(files, Layers=["/etc/passwd", "../../etc/shadow"]), "open /etc/passwd: no such file or directory"),
        (broken(files, Layers=layer_names * 64), "layers length mismatch: expected 2, got 128"),
        (broken(files, RepoTags=["UPPER:1"]), "must be lowercase"),
        (tar({**files, layer_names[1]: other}), f'invalid diffID for layer 1: expected "{built_diff(built, 1)}", got "{sha256(other)}"'),
        (tar({**files, layer_names[1]: b"not a tar" * 1000}), "cannot be unpacked"),
    ):
        node = images(tmp_path / "node")
        with pytest.raises(SkepError, match=words.replace("[", r"\[").replace("(", r"\(")):
            load(node, data)
        assert node.all() == [] and leftovers(tmp_path / "node") == [], words
    asyncio.run(images(tmp_path / "node").tidy())


def built_diff(built: Built, number: int) -> str:
    return str(json.loads(built.config)["rootfs"]["diff_ids"][number])


def test_ten_thousand_layers_are_refused(tmp_path: Path) -> None:
    one = small("many")
    config = json.loads(one.config)
    config["rootfs"]["diff_ids"] *= 10_000
    raw = json.dumps(config).encode()
    data = gzip.decompress(next(blob for blob in one.blobs.values() if blob[:2] == b"\x1f\x8b"))
    files: dict[str, bytes | str] = {
        "config.json": raw,
        "layer.tar": data,
        "manifest.json": json.dumps([{"Config": "config.json", "Layers": ["layer.tar"] * 10_000}]).encode(),
    }
    with pytest.raises(SkepError, match="the image has 10000 layers; at most 127 can be mounted"):
        load(images(tmp_path), tar(files))


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_MEMBERS", 10)
    with pytest.raises(SkepError, match="the archive has more than 10 files"):
        load(images(tmp_path), tar({str(n): b"" for n in range(11)}))


def test_importing_what_others_packed(tmp_path: Path) -> None:
    data = layer({"bin/sh": text("x"), "etc/passwd": text("root:x:0:0::/:/bin/sh\n")})
    node = images(tmp_path)
    for number, packed in enumerate((data, gzip.compress(data), bz2.compress(data), lzma.compress(data))):
        changes = ["ENV A=b C='d e'", "EXPOSE 80 53/udp", "WORKDIR /srv", 'ENTRYPOINT ["/bin/sh"]', "LABEL x=y", "USER 1:2", "VOLUME /data"]
        id = asyncio.run(node.import_archive(chunks(packed), reference=f"in:{number}", changes=changes))
        found = node.get(id)
        assert found is not None and found.layers == (sha256(data),) and found.tags == (f"in:{number}",)
        assert found.config.env == ("A=b", "C=d e") and found.config.exposed_ports == ("53/udp", "80/tcp")
        assert (found.config.working_dir, found.config.entrypoint, found.config.user) == ("/srv", ("/bin/sh",), "1:2")
        assert found.config.labels == {"x": "y"} and found.config.volumes == ("/data",)
    for changes, words in (
        (["RUN x"], "run is not a valid change command"),
        (["BOGUS x"], "unknown instruction: BOGUS"),
        (["CMD"], "CMD requires"),
    ):
        with pytest.raises(SkepError, match=words):
            asyncio.run(node.import_archive(chunks(data), changes=changes))
    with pytest.raises(SkepError, match="cannot be unpacked"):
        asyncio.run(node.import_archive(chunks(b"no tar" * 1000)))
    assert leftovers(tmp_path) == []


def test_configs_are_held_once_and_not_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = small("once")
    data = gzip.decompress(next(blob for blob in built.blobs.values() if blob[:2] == b"\x1f\x8b"))
    config = built.config + b" " * (1 << 20)
    files: dict[str, bytes | str] = {"config.json": config, "again.json": "config.json", "layer.tar": data}
    items = [{"Config": name, "Layers": ["layer.tar"]} for name in ("config.json", "again.json")] * 150
    lines = load(images(tmp_path / "one"), tar({**files, "manifest.json": json.dumps(items).encode()}))
    assert lines == [f"Loaded image ID: {sha256(config)}"] * 300
    monkeypatch.setattr(archives, "MOST_CONFIGS", 2 << 20)
    files["again.json"] = config + b" "
    with pytest.raises(SkepError, match="the images' configs have more than 2097152 bytes"):
        load(images(tmp_path / "two"), tar({**files, "manifest.json": json.dumps(items).encode()}))


def test_an_import_that_takes_its_time_keeps_no_removed_image_s_layers(filled: OciImages) -> None:
    """And what it has made so far is not taken for rubbish."""
    gate = asyncio.Event()

    async def slowly(data: bytes) -> AsyncIterator[bytes]:
        yield data
        await gate.wait()

    async def main() -> None:
        data = tar({"file": b"x"})
        importing = asyncio.ensure_future(filled.import_archive(slowly(data), reference="slow:1"))
        loading = asyncio.ensure_future(filled.load(slowly(data)))
        await asyncio.sleep(0)
        deleted = [step for name in ("mine:3", "mine:2", "other") for step in await filled.remove(name)]
        for image in filled.all():
            deleted += await filled.remove(image.id, force=True)
        assert sum("Deleted" in step for step in deleted) == 2 + 3, "two images, and the three layers they had"
        gate.set()
        id = await importing
        assert (await filled.collect(), [image.id for image in filled.all()]) == ([], [id])
        with pytest.raises(SkepError):
            await loading

    asyncio.run(main())
