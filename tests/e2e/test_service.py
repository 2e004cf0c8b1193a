"""A replicated service on four real nodes, through the docker client and the API: what the tutorial does, and what goes wrong."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from conftest import ECHO, World
from inside import answers, inside

from skep.local import nodes
from skep.local.registry import start_registry


def get(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def addresses(world: World) -> list[str]:
    return [n.address for n in world.at.nodes]


def test_the_tutorial_through_docker(world: World) -> None:
    said = world.docker("service", "create", "--replicas", "1", "--publish", "8000:8080", "--name", "echo", ECHO)
    assert "converged" in said
    assert "6 out of 6 tasks" in world.docker("service", "scale", "echo=6")
    shown = world.docker("service", "ps", "echo")
    assert shown.count("Running") >= 6
    assert len({t["NodeID"] for t in world.running("echo")}) == 4, "six tasks are spread over all four nodes"
    listed = world.docker("service", "ls")
    assert "6/6" in listed and "*:8000->8080/tcp" in listed

    for address in addresses(world):
        assert get(f"http://{address}:8000/any/path") == "Hello Docker!!", f"the port answers on {address}"
    assert get(f"http://127.0.0.1:{world.port}/") == "Hello Docker!!", "and on this host"

    assert world.docker("service", "rm", "echo") == "echo\n"
    assert world.docker("service", "ls").splitlines()[1:] == []
    world.until(lambda: not any(world.docker("ps", "-aq", node=n.name) for n in world.at.nodes), "no container is left")
    assert get(f"http://{addresses(world)[0]}:8000/") == "", "the port is closed again"


def test_a_killed_process_is_replaced(world: World) -> None:
    world.create("killed", 3)
    before = world.until(lambda: len(t := world.running("killed")) == 3 and t, "3 running")
    victim = before[0]
    os.kill(victim["Status"]["ContainerStatus"]["PID"], signal.SIGKILL)
    world.until(lambda: len(t := world.running("killed")) == 3 and victim["ID"] not in {x["ID"] for x in t}, "it is replaced in its slot")
    old = world.api("GET", f"/tasks/{victim['ID']}")
    assert old["Status"]["State"] == "failed" and old["Status"]["Err"] == "task: non-zero exit (137)"
    assert old["Status"]["ContainerStatus"]["ExitCode"] == 137
    assert {t["Slot"] for t in world.running("killed")} == {1, 2, 3}
    assert {x["ID"] for x in before} - {victim["ID"]} <= {x["ID"] for x in world.running("killed")}, "the others run on"
    world.remove("killed")


def test_an_image_that_is_missing_is_rejected_and_retried(world: World) -> None:
    image = "registry:5000/example/nosuch:latest"
    world.create("missing", 1, image=image)
    tried = world.until(lambda: len(t := [x for x in world.tasks("missing") if x["Status"]["State"] == "rejected"]) >= 2 and t, "retried")
    assert tried[0]["Status"]["Err"].startswith(f"No such image: {image}: ")
    assert "manifest unknown" in tried[0]["Status"]["Err"]
    shown = world.docker("service", "ps", "missing")
    assert " \\_ missing.1" in shown and "Rejected" in shown and '"No such image: registry:5000/…"' in shown
    world.remove("missing")


def test_pending_says_why(world: World) -> None:
    world.create("stuck", 1, template={"Placement": {"Constraints": ["node.labels.nowhere==x"]}})
    task = world.until(lambda: [t for t in world.tasks("stuck") if t["Status"].get("Err")], "an explanation")[0]
    assert task["Status"]["State"] == "pending"
    assert task["Status"]["Err"] == "no suitable node (scheduling constraints not satisfied on 4 nodes)"
    world.remove("stuck")


def test_a_rolling_update_replaces_every_task(world: World) -> None:
    world.docker(
        "service", "create", "-d", "--name", "roll", "--replicas", "4", "--update-parallelism", "2", "--update-monitor", "1s", ECHO
    )
    first = world.until(lambda: len(t := world.running("roll")) == 4 and {x["ID"] for x in t}, "4 running")
    world.docker("service", "update", "-d", "--env-add", "A=1", "roll")
    service = world.until(
        lambda: (s := world.api("GET", "/services/roll")).get("UpdateStatus", {}).get("State") == "completed" and s, "completed"
    )
    assert service["UpdateStatus"]["Message"] == "update completed"
    now = world.running("roll")
    assert len(now) == 4 and not first & {t["ID"] for t in now}
    assert all(t["Spec"]["ContainerSpec"]["Env"] == ["A=1"] for t in now)
    world.docker("service", "rollback", "-d", "roll")
    world.until(lambda: world.api("GET", "/services/roll").get("UpdateStatus", {}).get("State") == "rollback_completed", "rolled back")
    assert all("Env" not in t["Spec"]["ContainerSpec"] for t in world.running("roll"))
    world.remove("roll")


def test_a_drained_node_gives_its_tasks_away(world: World) -> None:
    world.create("drained", 4)
    world.until(lambda: len(world.running("drained")) == 4, "4 running")
    world.docker("node", "update", "--availability", "drain", "worker02")
    node = world.api("GET", "/nodes/worker02")["ID"]
    world.until(lambda: len(t := world.running("drained")) == 4 and node not in {x["NodeID"] for x in t}, "worker02 has none of them")
    world.docker("node", "update", "--availability", "active", "worker02")
    world.remove("drained")


def test_logs_and_exec_reach_a_container(world: World) -> None:
    world.create("talk", 1, container={"Command": ["sh", "-c", "echo out; echo err >&2; exec sleep 1000"]})
    task = world.until(lambda: world.running("talk"), "running")[0]
    node = next(n["Description"]["Hostname"] for n in world.api("GET", "/nodes") if n["ID"] == task["NodeID"])
    # it runs when its process has begun, which has said nothing yet
    logs = world.until(
        lambda: len(said := world.docker("service", "logs", "--raw", "talk", check=False).split()) >= 2 and said, "both said"
    )
    assert sorted(logs) == ["err", "out"]
    assert f"talk.1.{task['ID'][:12]}@{node}" in world.docker("service", "logs", "talk", check=False)
    container = f"talk.1.{task['ID']}"
    assert world.docker("exec", container, "hostname", node=node).strip() == task["Status"]["ContainerStatus"]["ContainerID"][:12]
    world.remove("talk")


def test_skepd_killed_under_load_restarts_no_container(world: World) -> None:
    """kill -9 of every skepd, the manager's too: the containers go on, answer all the while, and are taken over."""
    world.create("stay", 8, EndpointSpec={"Ports": [{"Protocol": "tcp", "TargetPort": 8080, "PublishedPort": 8100}]})
    before = world.until(lambda: len(t := world.running("stay")) == 8 and t, "8 running")
    # a task runs when its process has begun, which listens a moment later
    for task in before:
        pid = task["Status"]["ContainerStatus"]["PID"]
        world.until(lambda pid=pid: inside(pid, lambda: answers([("127.0.0.1", 8080)], 5)), "it listens")  # type: ignore[misc]
    target = f"http://{addresses(world)[1]}:8100/"
    world.until(lambda: get(target), "the port answers")
    asked: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            asked.append(get(target))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for node in world.at.nodes:
            os.kill(nodes.daemon_pid(world.at, node.name), signal.SIGKILL)
        time.sleep(0.5)
        for node in world.at.nodes:
            nodes.start_node(world.at, node.name)
        for node in world.at.nodes:
            nodes.wait_for_socket(world.at, node.name)
        world.until(lambda: _ready(world), "all nodes are ready again")
        after = world.until(lambda: len(t := world.running("stay")) == 8 and t, "8 running")
        time.sleep(1)
    finally:
        stop.set()
        asking.join()
    pids = {t["ID"]: t["Status"]["ContainerStatus"]["PID"] for t in before}
    assert {t["ID"]: t["Status"]["ContainerStatus"]["PID"] for t in after} == pids, "the same tasks in the same processes"
    assert all(Path(f"/proc/{pid}").exists() for pid in pids.values())
    assert len(asked) > 20 and set(asked) == {"Hello Docker!!"}, "every request was answered while no skepd ran"
    victim = after[0]
    os.kill(victim["Status"]["ContainerStatus"]["PID"], signal.SIGKILL)
    world.until(lambda: len(t := world.running("stay")) == 8 and victim["ID"] not in {x["ID"] for x in t}, "taken over: its end is noticed")
    assert world.api("GET", f"/tasks/{victim['ID']}")["Status"]["Err"] == "task: non-zero exit (137)"
    world.remove("stay")


def _ready(world: World) -> bool:
    try:
        nodes: list[Any] = world.api("GET", "/nodes")
    except Exception:
        return False
    return [n["Status"]["State"] for n in nodes].count("ready") == 4


def test_a_lost_node_gives_its_tasks_away_and_comes_back(world: World) -> None:
    world.create("lost", 8)
    world.until(lambda: len(world.running("lost")) == 8, "8 running")
    node = world.api("GET", "/nodes/worker03")["ID"]
    world.docker("container", "kill", "worker03", node="")
    world.until(
        lambda: len(t := world.running("lost")) >= 8 and sum(x["NodeID"] != node for x in t) == 8, "eight run elsewhere", seconds=60
    )
    assert world.api("GET", "/nodes/worker03")["Status"]["State"] == "down"
    world.docker("container", "start", "worker03", node="")
    world.until(lambda: _ready(world), "worker03 is ready again")
    world.until(lambda: len(world.running("lost")) == 8, "no task is doubled")
    world.until(
        lambda: (
            world.docker("ps", "-q", node="worker03").split()
            == [t["Status"]["ContainerStatus"]["ContainerID"][:12] for t in world.running("lost") if t["NodeID"] == node]
        ),
        "worker03 runs what it is told to, and nothing else",
    )
    world.remove("lost")


def test_the_client_address_reaches_the_task(world: World) -> None:
    """From this host's end of the underlay to every node: whichever node the task is on, it sees who asked."""
    # one process per connection: the remote ends of all established connections, in the kernel's hex
    server = ["nc", "-" + "l" * 64, "-p", "8080", "-e", "awk", '$4 == "01" { print $3 }', "/proc/net/tcp", "/proc/net/tcp6"]
    world.create(
        "who",
        1,
        container={"Command": server},
        EndpointSpec={"Ports": [{"Protocol": "tcp", "TargetPort": 8080, "PublishedPort": 8200}]},
    )
    world.until(lambda: world.running("who"), "running")

    def seen(address: str) -> str:
        try:
            with socket.create_connection((address, 8200), timeout=5) as s:
                own = socket.inet_aton(s.getsockname()[0])[::-1].hex().upper()
                s.settimeout(5)
                return "ok" if f"{own}:" in s.makefile().read() else ""
        except OSError:
            return ""

    for address in addresses(world):
        assert world.until(lambda a=address: seen(a), f"the task sees the client's own address through {address}", seconds=20)  # type: ignore[misc]
    world.remove("who")


def test_a_pull_that_fails_runs_the_image_that_is_here(world: World) -> None:
    """The registry is gone: nodes that have the image go on with it; one that never had another's says why."""
    world.create("warm", 4)
    world.until(lambda: len(world.running("warm")) == 4, "every node has the image")
    os.kill(nodes.daemon_pid(world.at, "registry"), signal.SIGKILL)
    try:
        world.create("cold", 4)
        world.until(lambda: len(world.running("cold")) == 4, "the local image runs")
        world.create("never", 1, image="registry:5000/example/other:latest")
        rejected = world.until(lambda: [t for t in world.tasks("never") if t["Status"]["State"] == "rejected"], "rejected")[0]
        assert rejected["Status"]["Err"].startswith("No such image: registry:5000/example/other:latest: ")
        assert "connection refused" in rejected["Status"]["Err"]
    finally:
        start_registry(world.at)
    for name in ("warm", "cold", "never"):
        world.remove(name)
