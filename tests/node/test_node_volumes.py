"""Volumes of a node: made, found again, kept while in use, pruned; Docker's words for what cannot be."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from skep.engine.base import Container, ContainerConfig, Exit, Mount
from skep.errors import SkepError
from skep.node.volumes import ANONYMOUS, Volumes
from skep.testing.fake_context import StepClock


class Node:
    """Containers that only have mounts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.containers: list[Container] = []
        self.volumes = self.again()

    def again(self) -> Volumes:
        """As a new process finds them."""
        return Volumes(self.root, StepClock(), random.Random(1), containers=lambda: self.containers)

    def mount(self, name: str, id: str = "c1", ended: bool = False) -> None:
        config = ContainerConfig(id=id, name=id, image="i", args=("x",), mounts=(Mount(target="/x", volume=name),))
        self.containers.append(Container(config=config, created_at=1, exit=Exit(code=0, at=1) if ended else None))

    def do(self, name: str, *args: Any, **options: Any) -> Any:
        return asyncio.run(getattr(self.volumes, name)(*args, **options))

    def refusal(self, name: str, *args: Any, **options: Any) -> tuple[int, str]:
        with pytest.raises(SkepError) as caught:
            self.do(name, *args, **options)
        return caught.value.status, caught.value.message


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "volumes")


def test_made_and_found_again(node: Node) -> None:
    made = node.do("create", "data", labels={"a": "b"})
    assert (made.name, made.driver, made.labels, made.options, made.anonymous) == ("data", "local", {"a": "b"}, {}, False)
    folder = Path(node.volumes.mountpoint(made))
    assert folder == node.root / "data/_data" and folder.stat().st_mode & 0o777 == 0o755
    assert node.do("create", "data", labels={"other": "x"}) == made, "one that is there is given as it is"
    assert node.again().all() == [made]
    assert node.volumes.get("data") == made


def test_without_a_name_it_is_anonymous(node: Node) -> None:
    made = node.do("create")
    assert len(made.name) == 64 and int(made.name, 16) >= 0
    assert made.anonymous and made.labels == {ANONYMOUS: ""}
    assert node.again().get(made.name).anonymous


def test_what_cannot_be_is_said_in_dockers_words(node: Node) -> None:
    node.do("create", "data")
    assert node.refusal("create", "d") == (400, "create d: volume name is too short, names should be at least two alphanumeric characters")
    assert node.refusal("create", "../x") == (
        400,
        'create ../x: "../x" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. '
        "If you intended to pass a host directory, use absolute path",
    )
    assert node.refusal("create", "x" * 300)[0] == 400
    assert node.refusal("create", "xx", driver="nfs") == (404, 'create xx: error looking up volume plugin nfs: plugin "nfs" not found')
    assert node.refusal("create", "xx", options={"bogus": "1"}) == (400, 'create xx: invalid option: "bogus"')
    assert node.refusal("create", "xx", options={"type": "tmpfs"}) == (400, 'create xx: missing required option: "device"')
    assert node.refusal("create", "xx", options={"size": "1g"}) == (400, "create xx: quota size requested but no quota support")
    options = {"type": "tmpfs", "device": "tmpfs"}
    assert node.refusal("create", "data", options=options) == (
        409,
        "create data: a volume of this name with other options exists: volume name must be unique",
    )
    assert node.refusal("remove", "nosuch") == (404, "get nosuch: no such volume")
    assert node.do("remove", "nosuch", force=True) is False
    assert [volume.name for volume in node.volumes.all()] == ["data"]
    assert sorted(path.name for path in node.root.iterdir()) == ["data"], "nothing is left of what was refused"


@pytest.mark.parametrize("ended", [False, True])
def test_a_volume_in_use_stays(node: Node, ended: bool) -> None:
    node.do("create", "data")
    node.mount("data", "c" * 64, ended)
    for force in (False, True):
        assert node.refusal("remove", "data", force=force) == (409, f"remove data: volume is in use - [{'c' * 64}]")
    assert node.do("prune", all=True) == ([], 0)
    node.containers.clear()
    with node.volumes.hold("data"):
        assert node.refusal("remove", "data")[0] == 409
        assert node.do("prune", all=True) == ([], 0)
    assert node.do("remove", "data") is True
    assert list(node.root.iterdir()) == []


def test_prune_takes_the_anonymous_ones_unless_told_to_take_all(node: Node) -> None:
    kept, named, other = node.do("create"), node.do("create", "named"), node.do("create")
    node.mount(kept.name)
    (Path(node.volumes.mountpoint(other)) / "file").write_bytes(b"x" * 1000)
    (Path(node.volumes.mountpoint(other)) / "again").hardlink_to(Path(node.volumes.mountpoint(other)) / "file")
    assert node.do("prune") == ([other.name], 1000)
    assert node.do("prune", all=True, wanted=lambda volume: False) == ([], 0)
    assert node.do("prune", all=True) == ([named.name], 0)
    assert node.again().all() == [kept]


def test_what_a_kill_left_half_made_is_swept_away(node: Node) -> None:
    node.do("create", "whole")
    (node.root / ".half.new/_data").mkdir(parents=True)
    (node.root / ".old.gone/_data").mkdir(parents=True)
    (node.root / "whole/volume.json").write_text("{")
    volumes = node.again()
    assert [volume.name for volume in volumes.all()] == ["whole"]
    assert sorted(path.name for path in node.root.iterdir()) == ["whole"]
    assert volumes.warnings and volumes.warnings[0].startswith("volume whole: its labels and options are lost")


def test_a_cancelled_creation_leaves_a_whole_volume_or_none(node: Node) -> None:
    async def main() -> None:
        for n in range(20):
            making = asyncio.ensure_future(node.volumes.create("data"))
            for _ in range(n % 4):
                await asyncio.sleep(0)
            making.cancel()
            await asyncio.gather(making, return_exceptions=True)
            assert (await node.volumes.create("data")).name == "data"
            assert await node.volumes.remove("data")

    asyncio.run(main())
    assert list(node.root.iterdir()) == []


def test_a_subpath_stays_inside(node: Node) -> None:
    volume = node.do("create", "data")
    assert node.volumes.subpath(volume, "./") == node.volumes.mountpoint(volume)
    for path in ("/etc", "../x", "a/../../x", ".."):
        with pytest.raises(SkepError, match=f"subpath must be a relative path within the volume: {path}"):
            node.volumes.subpath(volume, path)
    assert node.volumes.subpath(volume, "a//b/../c") == str(node.root / ".mounts/.sub/data/a%2Fc")


def test_folders_nested_deeper_than_a_recursion_goes_are_measured_and_removed(node: Node) -> None:
    """A container may leave such; it must keep neither a removal nor the next start of the daemon from its end."""
    made = node.do("create")
    at = os.open(node.volumes.mountpoint(made), os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=at)
        at, last = os.open("d", os.O_RDONLY, dir_fd=at), at
        os.close(last)
    os.close(at)
    (node.root / made.name).rename(node.root / f".{made.name}.gone")
    try:
        node.volumes = node.again()
        assert not list(node.root.iterdir())
    finally:
        # not pytest's affair: it would stumble too
        subprocess.run(["rm", "-rf", str(node.root)], check=True)
    made = node.do("create", "kept")
    assert node.do("prune", all=True) == (["kept"], 0)
