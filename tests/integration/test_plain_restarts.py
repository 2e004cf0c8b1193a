"""Plain containers and the end of the daemon, or of the host, by the real docker command."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest
from plain_world import World, docker_world

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with docker_world() as found:
        yield found


@pytest.fixture(autouse=True)
def tidy(world: World) -> Iterator[None]:
    yield
    world.tidy()


def test_the_daemon_is_killed_and_everything_is_as_it_was(world: World) -> None:
    world.docker("network", "create", "n1")
    world.docker("run", "-d", "--name", "on", "--network", "n1", "--restart", "always", "-p", "8090:80", "box:1", "sleep", "100")
    told = world.folder / "told"
    told.mkdir()
    waits = ("-v", f"{told}:/told", "box:1", "sh", "-c", "until [ -e /told/end ]; do sleep 0.05; done; exit $0")
    world.docker("run", "-d", "--name", "ends", "--network", "n1", *waits, "6")
    world.docker("run", "-d", "--name", "auto", "--rm", "-v", "/anon", *waits, "0")
    world.docker("run", "-d", "--name", "always", "--restart", "always", *waits, "1")
    world.docker("run", "-d", "--name", "byhand", "--restart", "unless-stopped", "box:1", "sleep", "100")
    world.docker("stop", "-t", "0", "byhand")
    before = world.inspect("on")
    ids = {name: world.inspect(name)["State"]["Pid"] for name in ("ends", "auto", "always")}
    world.stop(signal.SIGKILL)
    (told / "end").touch()
    for pid in ids.values():
        end = time.monotonic() + 10
        while os.path.exists(f"/proc/{pid}"):
            assert time.monotonic() < end
            time.sleep(0.02)
    world.start()
    after = world.inspect("on")
    for key in ("Id", "State", "Config", "HostConfig", "NetworkSettings", "Mounts"):
        assert after[key] == before[key], key
    ended = world.inspect("ends")
    assert (ended["State"]["Status"], ended["State"]["ExitCode"]) == ("exited", 6)
    assert ended["NetworkSettings"]["Networks"]["n1"]["IPAddress"] == ""
    world.until(lambda: "auto" not in world.out("ps", "-a", "--format", "{{.Names}}").split(), "--rm is kept after a restart of the daemon")
    world.until(lambda: world.inspect("always")["RestartCount"] >= 1, "its policy is kept")
    assert world.inspect("byhand")["State"]["Status"] == "exited"
    assert world.docker("run", "--rm", "--network", "n1", "box:1", "ping", "-c1", "-W2", "on", check=False).returncode == 0
    world.docker("rm", "-f", "on")


def test_after_a_reboot_policies_start_what_they_should(world: World) -> None:
    world.docker("network", "create", "n1")
    world.docker("run", "-d", "--name", "always", "--restart", "always", "--network", "n1", "-p", "8091:80", "box:1", "sleep", "100")
    world.docker("run", "-d", "--name", "stopped", "--restart", "always", "box:1", "sleep", "100")
    world.docker("run", "-d", "--name", "unless", "--restart", "unless-stopped", "box:1", "sleep", "100")
    world.docker("run", "-d", "--name", "byhand", "--restart", "unless-stopped", "box:1", "sleep", "100")
    world.docker("run", "-d", "--name", "plain", "box:1", "sleep", "100")
    world.docker("run", "-d", "--name", "auto", "--rm", "-v", "/anon", "box:1", "sleep", "100")
    world.docker("create", "--name", "never", "--restart", "always", "box:1", "sleep", "100")
    world.docker("exec", "always", "touch", "/kept")
    world.docker("stop", "-t", "0", "stopped", "byhand")
    world.reboot()
    world.until(lambda: "Up" in world.out("ps", "-a", "--filter", "name=always", "--format", "{{.Status}}"), "always runs again")
    world.until(lambda: world.inspect("unless")["State"]["Status"] == "running", "unless-stopped runs again")
    world.until(lambda: world.inspect("stopped")["State"]["Status"] == "running", "always forgets at a boot that it was stopped")
    world.until(lambda: "auto" not in world.out("ps", "-a", "--format", "{{.Names}}").split(), "--rm")
    states = {name: world.inspect(name)["State"]["Status"] for name in ("byhand", "plain", "never")}
    assert states == {"byhand": "exited", "plain": "exited", "never": "created"}
    assert "not known" in world.inspect("plain")["State"]["Error"]
    assert world.out("exec", "always", "ls", "/kept") == "/kept"
    assert world.inspect("always")["NetworkSettings"]["Ports"]["80/tcp"] == [{"HostIp": "0.0.0.0", "HostPort": "8091"}]
    assert world.docker("run", "--rm", "--network", "n1", "box:1", "ping", "-c1", "-W2", "always", check=False).returncode == 0
