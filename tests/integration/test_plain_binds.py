"""What lies in a mount of its own, made after the daemon began, can be bound whatever it is: a node's /run, where docker.sock is."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from plain_world import World, docker_world

pytestmark = pytest.mark.root

MAKE = """
import os, socket, sys
os.chdir(sys.argv[1])
socket.socket(socket.AF_UNIX).bind("sock")
os.mkfifo("pipe")
open("file", "w").write("late\\n")
os.mkdir("dir")
"""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with docker_world() as found:
        yield found


@pytest.fixture(scope="module")
def late(world: World) -> Path:
    """A tmpfs of which nothing is passed on to other mount namespaces."""
    folder = world.folder / "late"
    folder.mkdir()
    subprocess.run(world.inside("mount", "-t", "tmpfs", "none", str(folder)), check=True)
    subprocess.run(world.inside("mount", "--make-private", str(folder)), check=True)
    subprocess.run(world.inside("python3", "-c", MAKE, str(folder)), check=True)
    return folder


@pytest.mark.parametrize(("name", "letter"), [("sock", "s"), ("pipe", "p"), ("file", "-"), ("dir", "d")])
@pytest.mark.parametrize("access", ["rw", "ro"])
def test_everything_can_be_bound_and_bound_again(world: World, late: Path, name: str, letter: str, access: str) -> None:
    box = f"late-{name}-{access}"
    world.docker("create", "--name", box, "-v", f"{late}/{name}:/there:{access}", "box:1", "ls", "-ld", "/there")
    for _ in range(2):
        done = world.docker("start", "-a", box)
        assert done.stdout[:1] == letter, done
    world.docker("rm", box)
