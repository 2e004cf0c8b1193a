"""What the docker command prints and exits with, where a difference from dockerd misled."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from plain_world import World, docker_world

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with docker_world() as found:
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


def test_a_detached_exec_that_cannot_run_says_so(world: World) -> None:
    world.docker("run", "-d", "--name", "xd", "box:1", "sleep", "100")
    for flags, command, reason in (
        ((), "nosuch", 'exec: "nosuch": executable file not found in $PATH: unknown'),
        (("-t",), "nosuch", 'exec: "nosuch": executable file not found in $PATH: unknown'),
        (("-w", "/nosuch"), "true", 'chdir to cwd ("/nosuch") set in config.json failed: no such file or directory: unknown'),
        ((), "/etc/plain", 'exec: "/etc/plain": permission denied: unknown'),
    ):
        done = world.docker("exec", "-d", *flags, "xd", command, check=False)
        said = f"Error response from daemon: OCI runtime exec failed: exec failed: unable to start container process: {reason}"
        assert (done.returncode, done.stderr.strip()) == (1, said)
    world.docker("exec", "-d", "xd", "touch", "/done")
    world.until(lambda: world.docker("exec", "xd", "test", "-e", "/done", check=False).returncode == 0, "it ran")


def test_tags_and_what_else_is_told_with_a_line(world: World) -> None:
    options = ["--log-opt", "tag={{.Name}}/{{.ImageName}}/{{.ID}}", "--log-opt", "labels=a", "--log-opt", "env-regex=^B"]
    id = world.out("run", "-d", "--name", "tagged", "-l", "a=1", "-e", "BC=4", *options, "box:1", "echo", "said")
    world.out("wait", "tagged")
    assert world.out("logs", "--details", "tagged") == f"BC=4,a=1,tag=tagged%2Fbox%3A1%2F{id[:12]} said"


def test_a_copy_to_where_nothing_is(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    world.docker("create", "--name", "cpn", "box:1")
    done = world.docker("cp", str(tmp_path / "file"), "cpn:/nosuch/x", check=False)
    assert done.stderr.strip() == "Error response from daemon: Could not find the file /nosuch in container cpn"


def test_a_link_follows_the_other_container(world: World) -> None:
    """Never to whoever has got its address meanwhile."""
    world.docker("network", "create", "--subnet", "10.67.0.0/24", "linked")
    world.docker("run", "-d", "--name", "far", "--network", "linked", "--ip", "10.67.0.20", "box:1", "sleep", "1000")
    world.docker("run", "-d", "--name", "near", "--network", "linked", "--link", "far:lnk", "box:1", "sleep", "1000")

    def asked() -> str:
        shown = world.docker("exec", "near", "ping", "-c1", "-W2", "lnk", check=False)
        return shown.stdout.partition("(")[2].partition(")")[0]

    assert asked() == "10.67.0.20"
    world.docker("network", "disconnect", "linked", "far")
    world.docker("run", "-d", "--name", "stranger", "--network", "linked", "--ip", "10.67.0.20", "box:1", "sleep", "1000")
    assert asked() == ""
    world.docker("network", "connect", "--ip", "10.67.0.30", "linked", "far")
    assert asked() == "10.67.0.30"


def test_a_link_says_nothing_of_when_or_where_the_other_is(world: World) -> None:
    """Compose gives a service's links to each network that the service is on, also where the other is not."""
    for name in ("first", "second"):
        world.docker("network", "create", name)
    ends = {"first": {"Links": ["late:lt"]}, "second": {"Links": ["late:lt"]}}
    body = {"Image": "box:1", "Cmd": ["sleep", "1000"], "HostConfig": {"NetworkMode": "first", "Links": ["late:other"]}}
    status, told = world.api("POST", "/containers/create?name=early", body | {"NetworkingConfig": {"EndpointsConfig": ends}})
    assert status == 201, told
    world.docker("start", "early")
    assert world.docker("exec", "early", "ping", "-c1", "-W2", "lt", check=False).returncode != 0
    world.docker("run", "-d", "--name", "late", "--network", "second", "box:1", "sleep", "1000")
    for name in ("lt", "other"):
        assert "1 packets received" in world.out("exec", "early", "ping", "-c1", "-W2", name)
    world.docker("restart", "-t", "0", "early")
    assert "1 packets received" in world.out("exec", "early", "ping", "-c1", "-W2", "lt")


def test_an_exec_between_two_lives(world: World) -> None:
    world.docker("run", "-d", "--name", "xr", "--restart", "always", "box:1", "sh", "-c", "exit 1")

    def rests() -> bool:
        """For seconds: in one look, as at the next it may be another rest that is over."""
        shown = world.inspect("xr")
        return bool(shown["State"]["Status"] == "restarting" and shown["RestartCount"] > 4)

    world.until(rests, "it rests")
    done = world.docker("exec", "xr", "true", check=False)
    assert done.returncode == 1 and "is restarting, wait until the container is running" in done.stderr
    world.docker("rm", "-f", "xr")


@pytest.mark.parametrize(("how", "told"), [("stop", ["stop", "destroy"]), ("kill", ["destroy"])])
def test_an_end_by_hand_between_two_lives(world: World, how: str, told: list[str]) -> None:
    """Nothing runs, so nothing dies: who watches learns it from `stop`, as with Docker."""
    world.docker("run", "-d", "--name", "xs", "--restart", "always", "box:1", "sh", "-c", "exit 1")

    def rests() -> bool:
        """For seconds: over the socket they are not missed."""
        _, shown = world.api("GET", "/containers/xs/json")
        return bool(shown["State"]["Status"] == "restarting" and shown["RestartCount"] > 4)

    world.until(rests, "it rests")
    since = f"{time.time():.6f}"
    assert world.api("POST", f"/containers/xs/{how}")[0] == 204
    state = world.inspect("xs")["State"]
    assert (state["Status"], state["Running"], state["Restarting"], state["ExitCode"]) == ("exited", False, False, 1)
    assert world.out("wait", "xs") == "1"
    world.docker("rm", "xs")
    actions = world.out("events", "--since", since, "--until", f"{time.time():.6f}", "--filter", "container=xs", "--format", "{{.Action}}")
    assert actions.split() == told


def test_processes_of_a_paused_container(world: World) -> None:
    world.docker("run", "-d", "--name", "tp", "box:1", "sleep", "100")
    world.until(lambda: "sleep 100" in world.out("top", "tp"), "the runtime has become the program: a moment after the start")
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
