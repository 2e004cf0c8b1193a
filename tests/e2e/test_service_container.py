"""What becomes of a service's container when its spec changes, when it is ill, when it is told to stop, and what the cluster must allow."""

from __future__ import annotations

import json
import os
import re
import shlex
from typing import Any

from cluster_tools import skep
from conftest import ECHO, World

SEC = 1_000_000_000


def hosts(world: World) -> dict[str, str]:
    return {node["ID"]: node["Description"]["Hostname"] for node in world.api("GET", "/nodes")}


def value_at(shown: Any, path: str) -> Any:
    for part in path.split("."):
        shown = shown[int(part)] if isinstance(shown, list) else shown[part]
    return shown


def test_update_adds_and_takes_away(world: World) -> None:
    """Every `-add` and `-rm` of an update, on a service that has none of it."""
    create = ["service", "create", "-d", "--name", "flagged", "--stop-grace-period", "100ms", "--update-monitor", "1ms", ECHO]
    world.docker(*create)
    world.until(lambda: world.running("flagged"), "running")
    before = world.api("GET", "/services/flagged")["Spec"]["TaskTemplate"]["ContainerSpec"]
    add = """--cap-add NET_ADMIN --cap-drop MKNOD --container-label-add a=b --dns-add 192.0.2.1 --dns-search-add a.b
        --dns-option-add ndots:3 --env-add A=1 --group-add 777 --host-add db:1.2.3.4
        --mount-add type=tmpfs,dst=/m --sysctl-add kernel.msgmax=9000
        --ulimit-add nofile=100:200 --hostname hh --init --read-only --stop-signal USR1 --workdir /w --user 5:6 --limit-pids 33
        --tty --label-add x=y --health-cmd true --health-interval 100ms --oom-score-adj 5 --log-driver local"""
    world.docker("service", "update", "-q", *shlex.split(add), "flagged")
    task = world.running("flagged")[0]
    id, node = task["Status"]["ContainerStatus"]["ContainerID"], hosts(world)[task["NodeID"]]
    shown = json.loads(world.docker("inspect", id, node=node))[0]
    host, config = shown["HostConfig"], shown["Config"]
    assert (host["CapAdd"], host["CapDrop"], host["GroupAdd"]) == (["CAP_NET_ADMIN"], ["CAP_MKNOD"], ["777"])
    assert (host["Dns"], host["DnsSearch"], host["DnsOptions"]) == (["192.0.2.1"], ["a.b"], ["ndots:3"])
    assert (host["ExtraHosts"], host["Sysctls"], host["PidsLimit"]) == (["db:1.2.3.4"], {"kernel.msgmax": "9000"}, 33)
    assert host["Ulimits"] == [{"Name": "nofile", "Hard": 200, "Soft": 100}] and host["Mounts"] == [{"Type": "tmpfs", "Target": "/m"}]
    assert (host["Init"], host["ReadonlyRootfs"], host["OomScoreAdj"], host["LogConfig"]["Type"]) == (True, True, 5, "local")
    assert (config["Labels"]["a"], config["Hostname"], config["User"], config["Tty"]) == ("b", "hh", "5:6", True)
    assert (config["StopSignal"], config["WorkingDir"]) == ("USR1", "/w") and "A=1" in config["Env"]
    assert shown["State"]["Health"]["Status"] == "healthy"
    inside = world.docker("exec", id, "sh", "-c", "id -u; pwd; hostname; ulimit -n; cat /proc/sys/kernel/msgmax; echo $A", node=node)
    assert inside.split() == ["5", "/w", "hh", "100", "9000", "1"]

    take = """--cap-add MKNOD --cap-drop NET_ADMIN --container-label-rm a --dns-rm 192.0.2.1 --dns-search-rm a.b --dns-option-rm ndots:3
        --env-rm A --group-rm 777 --host-rm db:1.2.3.4 --mount-rm /m --sysctl-rm kernel.msgmax --ulimit-rm nofile
        --hostname= --init=false --read-only=false --stop-signal= --workdir= --user= --limit-pids 0 --tty=false --label-rm x
        --no-healthcheck --oom-score-adj 0"""
    world.docker("service", "update", "-q", *shlex.split(take), "flagged")
    after = world.api("GET", "/services/flagged")["Spec"]["TaskTemplate"]["ContainerSpec"]
    changed = {key for key in {*before, *after} if before.get(key) != after.get(key)}
    assert changed == {"Healthcheck"} and after["Healthcheck"]["Test"] == ["NONE"], (before, after)
    task = world.running("flagged")[0]
    id, node = task["Status"]["ContainerStatus"]["ContainerID"], hosts(world)[task["NodeID"]]
    host = json.loads(world.docker("inspect", id, node=node))[0]["HostConfig"]
    assert "Mounts" not in host and "Sysctls" not in host
    assert (host["Ulimits"], host["ReadonlyRootfs"], host["PidsLimit"], host["Dns"]) == ([], False, None, [])
    world.remove("flagged")


def test_healthy_or_not(world: World) -> None:
    """It runs only when healthy, failures of the start period do not count; unhealthy, it is replaced. `CMD` has no shell."""
    check = {"Interval": SEC // 10, "Timeout": 60 * SEC, "Retries": 2, "StartPeriod": 60 * SEC, "StartInterval": SEC // 20}
    late = {"Test": ["CMD-SHELL", "test -e /tmp/well || { echo not yet; exit 1; }"], **check}
    world.create("flaglate", 1, container={"Healthcheck": late})
    never = {"Test": ["CMD", "/bin/false", "&&", "true"], **check, "StartPeriod": 0}
    world.create("flagnever", 1, container={"Healthcheck": never})

    def state() -> str:
        tasks = world.tasks("flaglate")
        return str(tasks[0]["Status"]["State"]) if tasks else ""

    world.until(lambda: state() == "starting" and world.tasks("flaglate")[0]["Status"].get("ContainerStatus"), "starting")
    task = world.tasks("flaglate")[0]
    id, node = task["Status"]["ContainerStatus"]["ContainerID"], hosts(world)[task["NodeID"]]

    def health() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(world.docker("inspect", id, node=node))[0]["State"]["Health"]
        return found

    # a container that is made and does not run yet has no health
    world.until(lambda: json.loads(world.docker("inspect", id, node=node))[0]["State"]["Running"], "it runs")
    world.until(lambda: len(health()["Log"]) >= 3, "probed in its start period")
    assert health()["Status"] == "starting" and health()["Log"][0]["Output"] == "not yet\n" and state() == "starting"
    world.docker("exec", id, "touch", "/tmp/well", node=node)
    world.until(lambda: state() == "running", "healthy, so it runs")
    assert health()["Status"] == "healthy" and "(healthy)" in world.docker("ps", node=node)
    world.docker("exec", id, "rm", "/tmp/well", node=node)
    world.until(lambda: len(world.tasks("flaglate")) > 1, "it is replaced")
    old = world.api("GET", f"/tasks/{task['ID']}")
    assert old["Status"]["State"] == "failed"
    assert re.fullmatch(r"task: non-zero exit \(\d+\): dockerexec: unhealthy container", old["Status"]["Err"]), old["Status"]

    tried = world.until(lambda: [t for t in world.tasks("flagnever") if t["Status"]["State"] == "failed"], "it never gets well")[0]
    assert "unhealthy container" in tried["Status"]["Err"]
    world.remove("flaglate")
    world.remove("flagnever")


def test_stop_signal_and_grace(world: World) -> None:
    """The signal that was asked for, the time that was given, then SIGKILL."""
    script = 'trap "echo told >&2; exit 3" USR1; trap "" TERM; echo ready >&2; while :; do sleep 0.05; done'
    args = {"Command": ["sh", "-c", script]}
    world.create("flagtold", 1, container={**args, "StopSignal": "SIGUSR1", "StopGracePeriod": 30 * SEC})
    world.create("flagdeaf", 1, container={**args, "StopGracePeriod": SEC // 2})
    for name, code in (("flagtold", 3), ("flagdeaf", 137)):
        world.until(lambda name=name: "ready" in world.docker("service", "logs", "--raw", name, check=False), "it listens")  # type: ignore[misc]
        first = world.until(lambda name=name: world.running(name), "running")[0]["ID"]  # type: ignore[misc]
        world.docker("service", "update", "-d", "--force", name)
        ended = world.until(  # type: ignore[misc]
            lambda first=first: (t := world.api("GET", f"/tasks/{first}"))["Status"]["State"] == "shutdown" and t, f"{name} is stopped", 15
        )
        assert ended["Status"]["ContainerStatus"]["ExitCode"] == code
    assert "told" in world.docker("service", "logs", "--raw", "flagtold", check=False)
    world.remove("flagtold")
    world.docker("service", "rm", "flagdeaf")


def test_privileged_where_the_cluster_allows_it(world: World) -> None:
    """Labels make a service privileged or give it devices; the cluster's list says which. Taken from the list, no new task starts."""
    environ = {**os.environ, "DOCKER_HOST": f"unix://{world.at.socket('manager')}"}

    def allow(patterns: str) -> None:
        assert skep("swarm", "update", "--allow-privileged", patterns, env=environ).stdout == "Swarm updated.\n"

    create = ["service", "create", "-d", "--stop-grace-period", "100ms", "--restart-delay", "100ms"]
    try:
        allow("flagroot,flagdev*")
        world.docker(*create, "--name", "flagroot", "--label", "skep.privileged=true", ECHO)
        world.docker(*create, "--name", "flagdev1", "--label", "skep.devices=/dev/fuse:/dev/mine:r", ECHO)
        assert "may not" in world.docker(*create, "--name", "flagother", "--label", "skep.privileged=true", ECHO, check=False)
        refused = skep("swarm", "update", "--allow-privileged", "a b", env=environ, check=False)
        assert refused.returncode and "is no name of a service" in refused.stderr
        for name, command, expected, path, value in (
            ("flagroot", "cat /proc/self/status", r"Seccomp:\t0", "HostConfig.Privileged", True),
            ("flagdev1", "ls -l /dev/mine", r"^c", "HostConfig.Devices.0.PathInContainer", "/dev/mine"),
        ):
            task = world.until(lambda name=name: world.running(name), "it runs")[0]  # type: ignore[misc]
            id, node = task["Status"]["ContainerStatus"]["ContainerID"], hosts(world)[task["NodeID"]]
            assert re.search(expected, world.docker("exec", id, "sh", "-c", command, node=node))
            assert value_at(json.loads(world.docker("inspect", id, node=node))[0], path) == value
        # docker's own command leaves the list alone
        world.docker("swarm", "update", "--task-history-limit", "5")
        running = world.running("flagroot")[0]
        allow("")
        assert "may not" in world.docker("service", "update", "-d", "--env-add", "A=1", "flagroot", check=False)
        os.kill(running["Status"]["ContainerStatus"]["PID"], 9)
        tried = world.until(lambda: [t for t in world.tasks("flagroot") if t["Status"]["State"] == "rejected"], "the next one is refused")
        assert tried[0]["Status"]["Err"].startswith("service flagroot may not be privileged (label skep.privileged): allow it with skep")
        assert world.running("flagdev1"), "what runs goes on"
        allow("flagroot")
        world.until(lambda: world.running("flagroot"), "allowed again, it comes back")
    finally:
        allow("")
        for name in ("flagroot", "flagdev1"):
            world.docker("service", "rm", name, check=False)
