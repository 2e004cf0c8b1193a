"""The host socket: the nodes as a user of docker expects containers to be. And `skep cluster exec`, which does without docker."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_tools import SKEP, Terminal, until
from conftest import ECHO, World

from skep.local import calls, cluster


def docker(world: World, *argv: str) -> list[str]:
    if not world.program:
        pytest.skip("no docker client, 26 or newer")
    return [world.program, "-H", f"unix://{world.at.host_socket}", *argv]


def run(world: World, *argv: str, **more: Any) -> subprocess.CompletedProcess[Any]:
    return subprocess.run(docker(world, *argv), capture_output=True, timeout=60, **more)


def in_node(world: World, node: str, text: str) -> list[int]:
    """Processes of a node's exec cgroup with this command line (a shell that is about to start it is not meant)."""
    found = []
    for pid in cluster.pids(world.at, f"{node}/exec"):
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").strip() == text.encode():
                found.append(pid)
        except OSError:
            continue
    return found


@pytest.fixture(autouse=True)
def whole(world: World) -> Iterator[None]:
    """Every test leaves four ready nodes and no process of its own in them."""
    yield
    cluster.resume(world.at.name, [], say=lambda text: None)
    until(lambda: _ready(world), "all nodes are ready")
    until(lambda: not [p for n in world.at.nodes for p in cluster.pids(world.at, f"{n.name}/exec")], "nothing of exec is left", 20)


def _ready(world: World) -> bool:
    nodes: list[Any] = world.api("GET", "/nodes")
    return [n["Status"]["State"] for n in nodes].count("ready") == len(world.at.nodes)


# -- reading


def test_ps_and_inspect(world: World) -> None:
    shown = [json.loads(line) for line in world.docker("ps", "--format", "json", "--no-trunc", node="").splitlines()]
    assert sorted(s["Names"] for s in shown) == ["manager", "registry", "worker01", "worker02", "worker03"]
    assert all(s["State"] == "running" and s["Status"].startswith("Up ") for s in shown)
    assert world.docker("ps", "-q", "--filter", "name=worker0[12]", node="").count("\n") == 2
    found = json.loads(world.docker("inspect", "worker01", node=""))[0]
    assert found["State"]["Pid"] == cluster.daemon_pid(world.at, "worker01") and found["Config"]["Hostname"] == "worker01"
    assert found["Config"]["Labels"]["skep.address"] == world.at.address("worker01")
    assert json.loads(world.docker("inspect", found["Id"][:12], node=""))[0]["Name"] == "/worker01"
    assert "No such object: nobody" in world.docker("inspect", "nobody", node="", check=False)
    assert "Name: " in world.docker("info", node="")


def test_what_is_not_for_it_is_refused_in_one_line(world: World) -> None:
    for line in (
        ["run", "alpine"],
        ["pull", "alpine"],
        ["rm", "-f", "worker01"],
        ["swarm", "init"],
        ["service", "ls"],
    ):
        done = run(world, *line, text=True)
        said = [s for s in done.stderr.splitlines() if s.startswith(("Error", "docker: Error"))]
        assert done.returncode and len(said) == 1 and "Traceback" not in done.stderr, (line, done.stderr)
    assert "docker container exec -it manager" in run(world, "node", "ls", text=True).stderr


def test_logs(world: World) -> None:
    every = run(world, "logs", "manager", text=True).stderr.splitlines()
    assert any("the API is served on unix:///run/skep/docker.sock" in line for line in every)
    last = run(world, "logs", "--tail", "2", "-t", "manager", text=True).stderr.splitlines()
    assert len(last) == 2
    for line in last:
        stamp, _, text = line.partition(" ")
        assert stamp[:23] == text[:23], "the time of a line is the one it bears"
    assert run(world, "logs", "--since", "2100-01-01T00:00:00Z", "manager", text=True).stderr == ""
    assert run(world, "logs", "--until", "2001-01-01T00:00:00Z", "manager", text=True).stderr == ""
    assert "GET /v2/" in run(world, "logs", "registry", text=True).stderr


# -- exec


def test_exec_says_how_it_ended(world: World) -> None:
    for command, code in (("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137), ("kill -TERM $$", 143)):
        assert run(world, "exec", "worker01", "sh", "-c", command).returncode == code, command
    missing = run(world, "exec", "worker01", "no-such-program", text=True)
    assert (missing.returncode, missing.stderr) == (127, 'exec: "no-such-program": executable file not found in $PATH\n')
    assert run(world, "exec", "worker01", "/etc/passwd").returncode == 126
    assert run(world, "exec", "-w", "/no/such", "worker01", "true").returncode == 126


def test_exec_is_in_the_node(world: World) -> None:
    said = run(world, "exec", "-e", "A=b c", "-w", "/tmp", "worker02", "sh", "-c", 'hostname; pwd; echo "$A"; id -u', text=True)
    assert said.stdout == "worker02\n/tmp\nb c\n0\n"
    assert world.at.address("worker02") in run(world, "exec", "worker02", "ip", "-4", "address", "show", "eth0", text=True).stdout
    assert run(world, "exec", "-u", "nobody", "worker02", "id", "-un", text=True).stdout == "nobody\n"
    assert run(world, "exec", "-u", "4242:4243", "worker02", "sh", "-c", "id -u; id -g", text=True).stdout == "4242\n4243\n"
    wrong = run(world, "exec", "-u", "nosuchuser", "worker02", "id", text=True)
    assert wrong.returncode and "unable to find user nosuchuser: no matching entries in passwd file" in wrong.stdout + wrong.stderr
    own = run(world, "exec", "worker02", "sh", "-c", 'docker info -f "{{.Name}}"', text=True).stdout
    assert own == "worker02\n", "docker in a node speaks to that node"


def test_streams_are_apart_and_whole(world: World) -> None:
    both = run(world, "exec", "worker01", "sh", "-c", "echo out; echo err >&2", text=True)
    assert (both.stdout, both.stderr) == ("out\n", "err\n")
    make = "import random, sys; sys.stdout.buffer.write(random.Random(5).randbytes(5_000_000))"
    got = run(world, "exec", "worker01", sys.executable, "-c", make).stdout
    from random import Random

    assert hashlib.sha256(got).digest() == hashlib.sha256(Random(5).randbytes(5_000_000)).digest()


def test_standard_input_ends(world: World) -> None:
    data = os.urandom(3_000_000)
    assert run(world, "exec", "-i", "worker01", "cat", input=data).stdout == data
    assert run(world, "exec", "-i", "worker01", "cat", input=b"").stdout == b""
    # input that goes on is no reason to wait for it
    with subprocess.Popen(docker(world, "exec", "-i", "worker01", "true"), stdin=subprocess.PIPE) as p:
        assert p.wait(20) == 0
    # and a process that does not read must not keep its output back
    assert run(world, "exec", "-i", "worker01", "sh", "-c", "echo done; exit 3", input=bytes(1 << 20)).returncode == 3


def test_what_goes_on_in_the_background_holds_nobody(world: World) -> None:
    begun = time.monotonic()
    assert run(world, "exec", "worker01", "sh", "-c", "sleep 77 & echo here").stdout == b"here\n"
    assert time.monotonic() - begun < 30
    # the shell has ended, and what it has begun need not be `sleep` yet
    for pid in until(lambda: in_node(world, "worker01", "sleep 77"), "it runs on"):
        os.kill(pid, signal.SIGKILL)


def test_detached_exec_goes_on(world: World) -> None:
    assert run(world, "exec", "-d", "worker01", "sh", "-c", "exec >&- 2>&-; exec sleep 78").returncode == 0
    found = until(lambda: in_node(world, "worker01", "sleep 78"), "it runs")
    time.sleep(3)
    assert in_node(world, "worker01", "sleep 78") == found
    os.kill(found[0], signal.SIGKILL)


@pytest.mark.parametrize("flags", [[], ["-i"], ["-it"]])
def test_a_client_that_vanishes_ends_its_process(world: World, flags: list[str]) -> None:
    line = docker(world, "exec", *flags, "worker02", "sh", "-c", "sleep 79; :")
    t = Terminal(*line) if "-it" in flags else None
    p = None if t else subprocess.Popen(line, stdin=subprocess.PIPE)
    until(lambda: in_node(world, "worker02", "sleep 79"), "it runs")
    os.kill(t.pid if t else p.pid, signal.SIGKILL)  # type: ignore[union-attr]
    until(lambda: not in_node(world, "worker02", "sleep 79"), "it has ended", 10)
    if t:
        t.end()
    else:
        assert p is not None and p.stdin is not None
        p.wait()
        p.stdin.close()


def test_a_terminal(world: World) -> None:
    t = Terminal(*docker(world, "exec", "-it", "manager", "sh"), rows=33, columns=111)
    t.type("test -t 0 && test -t 1 && echo on-a-$((1+1))-tty\n")
    t.read("on-a-2-tty")
    t.type("stty size; echo =\n")
    t.read("33 111")
    t.size(20, 70)
    os.kill(t.pid, signal.SIGWINCH)
    for _ in range(100):
        t.type("stty size; echo asked\n")
        before = t.out.count("asked\r\n")
        until(lambda before=before: t.more() and t.out.count("asked\r\n") > before, "an answer")  # type: ignore[misc]
        if "20 70" in t.out:
            break
    assert "20 70" in t.out
    t.type("sleep 80\n")
    until(lambda: in_node(world, "manager", "sleep 80"), "it sleeps")
    t.type("\x03")
    until(lambda: not in_node(world, "manager", "sleep 80"), "Ctrl-C ends what runs in the terminal", 10)
    t.type("exit 5\n")
    t.read()
    assert t.end() == 5


def test_the_tutorial_s_line(world: World) -> None:
    """`docker container exec -it manager docker service create ...`, as printed, with its progress."""
    line = ["container", "exec", "-it", "manager", "docker", "service", "create", "--replicas", "2", "--name", "printed", ECHO]
    t = Terminal(*docker(world, *line))
    shown = t.read(seconds=90)
    assert t.end() == 0, shown
    assert "2 out of 2 tasks" in shown and "converged" in shown
    # Ctrl-C leaves the client, not the service
    t = Terminal(*docker(world, "container", "exec", "-it", "manager", "docker", "service", "scale", "printed=3"))
    t.read("printed scaled to 3")
    t.type("\x03")
    t.read()
    t.end()
    world.until(lambda: len(world.running("printed")) == 3, "three run")
    world.remove("printed")


def test_skep_cluster_exec(world: World) -> None:
    def skep(*argv: str, **more: Any) -> subprocess.CompletedProcess[str]:
        line = [*SKEP, "cluster", "exec", "--name", world.at.name, *argv]
        return subprocess.run(line, capture_output=True, text=True, timeout=60, **more)

    assert skep("worker01", "--", "sh", "-c", "exit 42").returncode == 42
    assert skep("worker01", "--", "sh", "-c", "kill -9 $$").returncode == -9
    assert skep("worker01", "no-such-program").returncode == 127
    assert skep("worker01", "--", "cat", input="x\n").stdout == "x\n"
    assert skep("worker01", "--", "sh", "-c", "yes | head -n 1").stderr == "", "SIGPIPE is what it is everywhere"
    assert skep("manager", "--", "docker", "node", "ls", "-q").stdout.count("\n") == 4
    for line, said in ((["nobody", "true"], "no node 'nobody' in cluster"), (["worker01", "--"], "what to run is missing")):
        wrong = skep(*line)
        assert wrong.returncode == 1 and wrong.stderr.count("\n") == 1 and said in wrong.stderr
    t = Terminal(*SKEP, "cluster", "exec", "--name", world.at.name, "worker01", "--", "sh", "-c", "tty; stty size; sleep 81; echo no")
    t.read("40 132")
    until(lambda: in_node(world, "worker01", "sleep 81"), "it sleeps")
    t.type("\x03")
    shown = t.read()
    assert t.end() in (130, -2) and "no\r\n" not in shown and "Traceback" not in shown


# -- stop, start, kill


def test_stop_and_start_keep_the_containers(world: World) -> None:
    world.create("stopped", 4)
    before = world.until(lambda: len(t := world.running("stopped")) == 4 and t, "4 running")
    pids = {t["ID"]: t["Status"]["ContainerStatus"]["PID"] for t in before}
    # since now: the first of them may come before this command listens
    shown = ["--since", f"{time.time():.9f}", "--format", "{{.Actor.Attributes.name}} {{.Action}}"]
    events = subprocess.Popen(docker(world, "events", *shown), stdout=subprocess.PIPE, text=True)
    try:
        assert world.docker("stop", "worker01", node="") == "worker01\n"
        assert "Exited (0)" in world.docker("ps", "-a", "--filter", "name=worker01", node="")
        assert "is not running" in world.docker("exec", "worker01", "true", node="", check=False)
        assert "is not running" in world.docker("kill", "worker01", node="", check=False)
        assert world.docker("stop", "worker01", node="") == "worker01\n", "twice is no error"
        assert all(Path(f"/proc/{pid}").exists() for pid in pids.values())
        assert world.docker("start", "worker01", node="") == "worker01\n"
        assert world.docker("restart", "worker02", node="") == "worker02\n"
        until(lambda: _ready(world), "ready again")
        assert events.stdout
        seen: list[str] = []
        while "worker02 start" not in seen:
            line = events.stdout.readline()
            assert line, f"no more events: {seen}"
            seen.append(line.strip())
        order = [s for s in seen if s.split()[-1] in ("die", "start")]
        assert order == ["worker01 die", "worker01 start", "worker02 die", "worker02 start"]
    finally:
        events.kill()
        events.communicate()
    after = {t["ID"]: t["Status"]["ContainerStatus"]["PID"] for t in world.running("stopped")}
    assert after == pids, "the same tasks in the same processes"
    world.remove("stopped")


def test_signals_and_wait(world: World) -> None:
    waiting = subprocess.Popen(docker(world, "wait", "worker02"), stdout=subprocess.PIPE, text=True)
    assert "Invalid signal: NOSUCH" in world.docker("kill", "-s", "NOSUCH", "worker02", node="", check=False)
    pid = cluster.daemon_pid(world.at, "worker02")
    world.docker("kill", "-s", "TERM", "worker02", node="")
    until(lambda: not Path(f"/proc/{pid}").exists(), "skepd ends in order")
    assert waiting.communicate(timeout=20)[0] == "0\n"
    world.docker("start", "worker02", node="")


def test_a_lost_node_is_a_machine_that_lost_its_power(world: World) -> None:
    """No process, no address, no namespace, no /run; then it boots: its disk is there, its containers have ended, nothing is doubled."""
    world.create("lost", 8)
    world.until(lambda: len(world.running("lost")) == 8, "8 running")
    id = world.api("GET", "/nodes/worker03")["ID"]
    there = {c["Id"] for c in calls.call(world.at.socket("worker03"), "GET", "/containers/json")}
    assert there
    run(world, "exec", "worker03", "sh", "-c", "touch /run/before; ip link add stale0 type dummy; ip netns add stale", check=True)
    mesh = (world.at.address("worker03"), 2377)
    cards = _cards(world)

    assert world.docker("kill", "worker03", node="") == "worker03\n"
    assert cluster.pids(world.at, "worker03") == []
    assert "Exited (137)" in world.docker("ps", "-a", "--filter", "name=worker03", node="")
    assert not world.at.socket("worker03").exists()
    table = Path("/proc/self/mountinfo").read_text()
    assert not re.search(rf"/{world.at.name}/\S*worker03(\.\w+)? ", table), "nothing of it is mounted"
    with socket.socket() as s, pytest.raises(OSError):
        s.settimeout(2)
        s.connect(mesh)

    assert world.docker("start", "worker03", node="") == "worker03\n"
    until(lambda: _ready(world), "it is back")
    assert world.api("GET", "/nodes/worker03")["ID"] == id
    looked = run(world, "exec", "worker03", "sh", "-c", "ls /run; ip -br link; ip netns", text=True, check=True).stdout
    assert "before" not in looked and "stale" not in looked
    assert _cards(world) == cards, "nobody has to find out that an address he knows is stale"
    listed = calls.call(world.at.socket("worker03"), "GET", "/containers/json?all=1")
    assert all(c["State"] == "exited" for c in listed if c["Id"] in there), "none of the old ones is said to run"
    world.until(lambda: len(t := world.running("lost")) == 8 and sorted(x["Slot"] for x in t) == list(range(1, 9)), "one task a slot")

    def truly() -> int:
        """Processes of the service on all nodes, as the kernel counts them."""
        every = [c for n in world.at.nodes for c in calls.call(world.at.socket(n.name), "GET", "/containers/json")]
        return sum(c["Labels"].get("com.docker.swarm.service.name") == "lost" for c in every)

    world.until(lambda: truly() == 8, "and eight containers")
    world.remove("lost")


def _cards(world: World) -> list[str]:
    """MAC addresses of worker03 and of the bridge."""
    places = [(world.at.namespace("worker03", "net"), "eth0"), (Path(world.at.run) / "net/underlay", "br0")]
    return [
        subprocess.run(
            ["nsenter", f"--net={pin}", "ip", "-br", "link", "show", link], capture_output=True, text=True, check=True
        ).stdout.split()[2]
        for pin, link in places
    ]


def test_the_registry_is_one_of_them(world: World) -> None:
    world.docker("kill", "registry", node="")
    assert "Exited (137)" in world.docker("ps", "-a", "--filter", "name=registry", node="")
    world.docker("start", "registry", node="")
    assert world.docker("exec", "worker01", "curl", "-s", "http://registry:5000/v2/_catalog", node="").startswith('{"repositories"')
    assert "example/echo" in world.docker("exec", "registry", "curl", "-s", "http://127.0.0.1:5000/v2/_catalog", node="")


def test_the_host_socket_is_served_again(world: World) -> None:
    for pid in cluster.pids(world.at, "host"):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not cluster.pids(world.at, "host"), "it is gone")
    done = subprocess.run([*SKEP, "cluster", "status", "--name", world.at.name], capture_output=True, text=True)
    assert "(not served)" in done.stdout
    subprocess.run([*SKEP, "cluster", "start", "--name", world.at.name], check=True, capture_output=True)
    assert world.docker("ps", "-q", node="").count("\n") == 5
