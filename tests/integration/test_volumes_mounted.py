"""Volumes with options and parts of volumes: real mounts, made when used, gone when nobody uses them."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from skep.engine.base import Container, ContainerConfig, Exit, Mount
from skep.engine.oci import kernel
from skep.errors import NotFound, SkepError
from skep.node import mounting
from skep.node.volumes import Volumes
from skep.testing.fake_context import StepClock

pytestmark = pytest.mark.root


def there(path: str | Path) -> bool:
    return Path(path).exists()


def text(path: str) -> str:
    return Path(path).read_text()


class Node:
    def __init__(self, root: Path) -> None:
        self.containers: list[Container] = []
        self.mounts = root / "run"
        self.volumes = Volumes(root / "volumes", StepClock(), random.Random(1), containers=lambda: self.containers, mounts=self.mounts)

    def run(self, id: str, *mounts: Mount, ended: bool = False) -> None:
        config = ContainerConfig(id=id, name=id, image="i", args=("x",), mounts=mounts)
        self.containers = [c for c in self.containers if c.config.id != id]
        self.containers.append(Container(config=config, created_at=1, started_at=1, exit=Exit(code=0, at=1) if ended else None))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        if (path := line.split(" ")[4]).startswith(str(tmp_path)):
            mounting.unmount(Path(path))


def test_a_tmpfs_volume_is_mounted_while_somebody_uses_it(node: Node) -> None:
    async def main() -> None:
        volumes = node.volumes
        volume = await volumes.create("fast", options={"type": "tmpfs", "device": "tmpfs", "o": "size=1m,mode=1777"})
        path = Path(volumes.mountpoint(volume))
        assert not there(path)
        mount = Mount(target="/x", source=str(path), volume="fast")
        with volumes.hold("fast"):
            await volumes.ready([mount])
            await volumes.release([mount])
            assert mounting.is_mount_point(path), "it is held"
            node.run("a", mount)
            node.run("b", mount)
        assert os.statvfs(path).f_blocks * os.statvfs(path).f_frsize == 1 << 20
        (path / "file").write_text("here")
        await volumes.ready([mount])
        assert (path / "file").exists(), "it is not mounted again over itself"
        node.run("a", mount, ended=True)
        await volumes.release([mount])
        assert mounting.is_mount_point(path), "b still runs"
        node.run("b", mount, ended=True)
        await volumes.release([mount])
        assert not there(path)
        await volumes.release([mount])
        node.containers.clear()
        await volumes.ready([mount])
        assert await volumes.remove("fast") and not there(path)

    asyncio.run(main())


def test_a_folder_of_the_host_as_a_volume(node: Node, tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "host").mkdir()
        (tmp_path / "host/file").write_text("of the host")
        volume = await node.volumes.create("bound", options={"type": "none", "o": "bind", "device": str(tmp_path / "host")})
        mount = Mount(target="/x", source=node.volumes.mountpoint(volume), volume="bound")
        await node.volumes.ready([mount])
        assert (Path(mount.source) / "file").read_text() == "of the host"
        assert await node.volumes.usage() == {"bound": len("of the host")}
        await node.volumes.release([mount])
        assert await node.volumes.remove("bound")
        assert (tmp_path / "host/file").read_text() == "of the host", "what it shows is not the volume's to remove"

    asyncio.run(main())


def test_a_folder_with_what_is_mounted_below_it(node: Node, tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "host").mkdir()
        kernel.mount("tmpfs", str(tmp_path / "host"), "tmpfs")
        kernel.mount("", str(tmp_path / "host"), flags=kernel.MS_SHARED)
        (tmp_path / "host/below").mkdir()
        kernel.mount("tmpfs", str(tmp_path / "host/below"), "tmpfs")
        volume = await node.volumes.create("bound", options={"type": "none", "o": "rbind", "device": str(tmp_path / "host")})
        mount = Mount(target="/x", source=node.volumes.mountpoint(volume), volume="bound")
        await node.volumes.ready([mount])
        assert mounting.is_mount_point(Path(mount.source) / "below")
        await node.volumes.release([mount])
        assert not there(mount.source) and mounting.is_mount_point(tmp_path / "host/below")

    asyncio.run(main())


def test_what_cannot_be_mounted_says_why(node: Node) -> None:
    async def main() -> None:
        volume = await node.volumes.create("bad", options={"type": "none", "o": "bind", "device": "/nosuch/folder"})
        path = node.volumes.mountpoint(volume)
        with pytest.raises(SkepError) as caught:
            await node.volumes.ready([Mount(target="/x", source=path, volume="bad")])
        assert caught.value.message == (
            f"error while mounting volume '{path}': failed to mount local volume: mount /nosuch/folder:{path}: "
            "special device /nosuch/folder does not exist"
        )
        assert not there(path)
        with pytest.raises(NotFound, match="get gone: no such volume"):
            await node.volumes.ready([Mount(target="/x", source="/x", volume="gone")])

    asyncio.run(main())


def test_a_part_of_a_volume_is_pinned(node: Node, tmp_path: Path) -> None:
    async def main() -> None:
        volumes = node.volumes
        volume = await volumes.create("data")
        root = Path(volumes.mountpoint(volume))
        (root / "a/b").mkdir(parents=True)
        (root / "a/b/file").write_text("inside")
        (root / "link").symlink_to("/a/b")
        (root / "out").symlink_to("/etc")
        mount = Mount(target="/x", source=volumes.subpath(volume, "link"), volume="data")
        await volumes.ready([mount])
        assert (Path(mount.source) / "file").read_text() == "inside", "a link means what it means inside"
        node.run("a", mount)
        (root / "link").unlink()
        (root / "link").symlink_to("/etc")
        assert (Path(mount.source) / "file").read_text() == "inside", "changed afterwards, it leads nowhere else"
        node.run("a", mount, ended=True)
        with pytest.raises(NotFound, match=r"cannot access path .*/data/_data/link: no such file or directory"):
            await volumes.ready([mount])
        for lost in ("out", "nosuch"):
            with pytest.raises(NotFound, match=f"cannot access path .*/{lost}: no such file or directory"):
                await volumes.ready([Mount(target="/x", source=volumes.subpath(volume, lost), volume="data")])
        one = Mount(target="/y", source=volumes.subpath(volume, "a/b/file"), volume="data")
        await volumes.ready([one])
        assert text(one.source) == "inside"
        node.containers.clear()
        await volumes.release([mount, one])
        assert not there(one.source) and not there(mount.source)
        await volumes.ready([one])
        assert await volumes.remove("data") and not there(one.source)

    asyncio.run(main())


@pytest.fixture
def slow_mount(tmp_path: Path) -> Iterator[Path]:
    """A file system type whose helper waits until the fifo is written to, and fails: a server that does not answer."""
    helper, gate = Path(f"/sbin/mount.skt{os.getpid()}"), tmp_path / "gate"
    os.mkfifo(gate)
    helper.write_text(f"#!/bin/sh\nread word < {gate}\necho 'no route to host' >&2\nexit 32\n")
    helper.chmod(0o755)
    yield gate
    helper.unlink()


def test_a_server_that_does_not_answer_holds_up_its_own_volume_only(node: Node, slow_mount: Path) -> None:
    async def main() -> None:
        volumes = node.volumes
        far = await volumes.create("far", options={"type": f"skt{os.getpid()}", "device": "server:/x"})
        mount = Mount(target="/x", source=volumes.mountpoint(far), volume="far")
        with volumes.hold("far"):
            starting = [asyncio.ensure_future(volumes.ready([mount])) for _ in range(3)]
            async with asyncio.timeout(5):
                near = await volumes.create("near", options={"type": "tmpfs", "device": "tmpfs", "o": ""})
                beside = Mount(target="/y", source=volumes.mountpoint(near), volume="near")
                with volumes.hold("near"):
                    await volumes.ready([beside])
                await volumes.release([beside])
                assert not there(beside.source)
                with pytest.raises(SkepError, match="volume is in use"):
                    await volumes.remove("far")
                await volumes.remove("near")
                assert (await volumes.prune(all=True))[0] == []
            for one in starting:
                await asyncio.to_thread(slow_mount.write_text, "go\n")
                with pytest.raises(SkepError, match="no route to host"):
                    await one
        await volumes.remove("far")

    asyncio.run(main())
