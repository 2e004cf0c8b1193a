"""What the docker command prints and exits with, where a difference from dockerd misled."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from plain_world import World
from plain_world import world as made

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with made() as found:
        if not found.docker_program:
            pytest.skip("no docker command")
        yield found


def test_out_of_memory_is_an_exit_code_to_whoever_ran_it(world: World) -> None:
    greedy = "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo $x"
    done = world.docker("run", "--name", "om", "-m", "16m", "--memory-swap", "16m", "box:1", "sh", "-c", greedy, check=False)
    assert (done.returncode, done.stderr) == (137, "")
    state = world.inspect("om")["State"]
    assert (state["OOMKilled"], state["ExitCode"], state["Error"]) == (True, 137, "")
    assert world.out("wait", "om") == "137"


def test_what_cannot_be_said_in_a_container_of_the_hosts_network_is_warned_of(world: World) -> None:
    done = world.docker("run", "--rm", "--network", "host", "-p", "80:80", "box:1", "true")
    assert "Published ports are discarded when using host network mode" in done.stderr


def test_an_exec_for_an_unknown_user(world: World) -> None:
    world.docker("run", "-d", "--name", "xu", "box:1", "sleep", "100")
    done = world.docker("exec", "-u", "nosuch", "xu", "true", check=False)
    assert done.returncode == 126
    assert (done.stdout + done.stderr).strip() == "unable to find user nosuch: no matching entries in passwd file"
    world.docker("rm", "-f", "xu")


def test_an_exec_between_two_lives(world: World) -> None:
    world.docker("run", "-d", "--name", "xr", "--restart", "always", "box:1", "sh", "-c", "exit 1")
    world.until(lambda: world.inspect("xr")["State"]["Status"] == "restarting" and world.inspect("xr")["RestartCount"] > 4, "it rests")
    done = world.docker("exec", "xr", "true", check=False)
    assert done.returncode == 1 and "is restarting, wait until the container is running" in done.stderr
    world.docker("rm", "-f", "xr")


def test_processes_of_a_paused_container(world: World) -> None:
    world.docker("run", "-d", "--name", "tp", "box:1", "sleep", "100")
    world.docker("pause", "tp")
    assert "sleep 100" in world.out("top", "tp")
    world.docker("rm", "-f", "tp")


def test_a_name_that_went_to_another_image_is_not_shown(world: World) -> None:
    world.docker("tag", "box:1", "mine:1")
    world.docker("create", "--name", "old", "mine:1", "true")
    shown = ("ps", "-a", "--filter", "name=old", "--format", "{{.Image}}")
    assert world.out(*shown) == "mine:1"
    other = world.docker("import", "-", "mine:1", input="\0" * 10240).stdout.strip()
    assert other.startswith("sha256:")
    image = world.inspect("old")["Image"]
    assert world.out(*shown) == image.removeprefix("sha256:")[:12] and world.inspect("old")["Config"]["Image"] == "mine:1"
    world.docker("rmi", "mine:1")
    assert world.out(*shown) == image.removeprefix("sha256:")[:12]
    world.docker("tag", "box:1", "mine:1")
    assert world.out(*shown) == "mine:1"
    world.docker("rm", "old")
