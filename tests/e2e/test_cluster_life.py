"""The one-machine cluster from `up` to `down`, through the command: what it says, what it leaves, and what happens when it is killed, torn,
interrupted or started where things are odd."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_tools import SKEP, Begun, cluster_name, kill_everything, remains, skep, until
from conftest import ECHO, World

from skep.local import calls, cluster
from skep.local.layout import base_root, base_run, layout
from skep.local.registry import free_port


def host_before() -> dict[str, object]:
    """What a cluster must leave as it was (clusters of other names may come and go meanwhile)."""
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    folders = [Path("/stack"), *(folder for base in (base_root(), base_run()) for folder in (Path(base), *Path(base).parents))]
    return {
        "folders": {folder: folder.exists() for folder in folders},
        "tables": [table for table in tables.splitlines() if " skep_cluster_" not in table],
        "forward": Path("/proc/sys/net/ipv4/ip_forward").read_text(),
        "bridge": [p.read_text() for p in sorted(Path("/proc/sys/net/bridge").glob("*"))],
    }


@pytest.fixture
def name() -> Iterator[str]:
    with cluster_name("u") as found:
        yield found


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of our own, which do not exist yet."""
    monkeypatch.setenv("SKEP_CLUSTERS_ROOT", f"/var/lib/skt{os.getpid()}/skep/clusters")
    monkeypatch.setenv("SKEP_CLUSTERS_RUN", f"/run/skt{os.getpid()}/clusters")


def get(port: int, host: str = "127.0.0.1") -> str:
    done = subprocess.run(["curl", "-s", "-m", "5", f"http://{host}:{port}/"], capture_output=True, text=True)
    return done.stdout


def test_up_to_down(apart: None, name: str, tmp_path: Path) -> None:
    before = host_before()
    ports = [free_port("127.0.0.1"), free_port("127.0.0.1")]
    (tmp_path / "stack.yml").write_text("version: '3'\n")
    done = skep(
        "cluster", "up", "--name", name, "--workers", "2", "--registry", "--publish", f"{ports[0]}:8000", "--publish", f"{ports[1]}:9000",
        "--stack", os.path.relpath(tmp_path),
    )  # fmt: skip
    run = f"{base_run()}/{name}"
    assert done.stdout == f"# host socket: unix://{run}/host.sock\nexport DOCKER_HOST=unix://{run}/manager/skep/docker.sock\n"
    for text in ("underlay 10.", "registry at registry:5000", "manager is up", "worker02 is up", "3 nodes are ready", "image example/echo"):
        assert text in done.stderr
    at = layout(name)

    again = skep("cluster", "up", "--name", name, check=False)
    assert (again.returncode, again.stdout) == (1, "") and again.stderr.count("\n") == 1
    assert again.stderr.startswith(f"skep cluster: cluster '{name}' is there already: ")

    shown = skep("cluster", "status", "--name", name).stdout
    assert shown.count("running") == 4 and f"port {ports[0]} of this host -> port 8000 of the manager" in shown
    assert "not served" not in shown

    assert skep("cluster", "exec", "--name", name, "manager", "--", "ls", "/stack").stdout == "stack.yml\n"
    assert "stack.yml" not in skep("cluster", "exec", "--name", name, "worker01", "--", "ls", "/stack").stdout
    assert skep("cluster", "exec", "--name", name, "worker02", "hostname").stdout == "worker02\n"
    names = skep("cluster", "exec", "--name", name, "worker02", "--", "getent", "hosts", "registry", "worker01").stdout
    assert names.split()[:2] == [at.registry_address, "registry"] and at.node("worker01").address in names  # type: ignore[union-attr]

    for port, published in zip(ports, (8000, 9000), strict=True):
        spec = {
            "Name": f"s{published}",
            "TaskTemplate": {"ContainerSpec": {"Image": ECHO}},
            "Mode": {"Replicated": {"Replicas": 1}},
            "EndpointSpec": {"Ports": [{"Protocol": "tcp", "TargetPort": 8080, "PublishedPort": published}]},
        }
        calls.call(at.socket("manager"), "POST", "/services/create", spec)
        until(lambda port=port: get(port) == "Hello Docker!!", f"{published} is reached through {port}")  # type: ignore[misc]

    found = " ".join(remains(name))
    for kind in ("folder", "cgroup", "link", "nft", "process", "mount"):
        assert f"{kind} " in found, "the search below would find it"
    assert skep("cluster", "down", "--name", name).stderr == f"cluster {name} is gone\n"
    assert remains(name) == []
    assert host_before() == before
    assert skep("cluster", "down", "--name", name).stderr == f"there was no cluster {name}\n"
    assert (tmp_path / "stack.yml").exists(), "the folder that was shown is the user's"


@pytest.mark.parametrize(
    ("number", "at_line"), [(signal.SIGINT, "underlay"), (signal.SIGTERM, "manager is up"), (signal.SIGINT, "nodes are ready")]
)
def test_an_interrupted_up_cleans_up(name: str, number: int, at_line: str) -> None:
    begun = Begun("--name", name, "--workers", "1")
    begun.held_at(at_line, layout(name))
    code, out, err = begun.end(number)
    assert (code, out) == (130, "")
    assert "taking down what was made" in err and err.endswith("skep cluster: interrupted\n") and "Traceback" not in err
    assert remains(name) == []


def test_killed_in_the_middle(name: str) -> None:
    """kill -9 of `up`: what it started runs on. `up` says so; when nothing runs any more it clears that away by itself."""
    begun = Begun("--name", name, "--workers", "1")
    at = layout(name)
    begun.held_at("manager is up", at)
    begun.end(signal.SIGKILL)
    assert cluster.pids(at, ""), "the nodes run on"
    again = skep("cluster", "up", "--name", name, check=False)
    assert again.returncode == 1 and again.stderr.count("\n") == 1
    assert f"of an earlier cluster '{name}' and runs" in again.stderr and f"skep cluster down --name {name}" in again.stderr
    shown = skep("cluster", "status", "--name", name, check=False)
    assert shown.returncode == 1 and "it was never finished" in shown.stdout
    refused = skep("cluster", "start", "--name", name, check=False)
    assert refused.returncode == 1 and "was never finished" in refused.stderr

    kill_everything(at)
    done = skep("cluster", "up", "--name", name, "--workers", "0")
    assert "removing what an earlier attempt has left" in done.stderr
    assert skep("cluster", "status", "--name", name).stdout.count("running") == 1


@pytest.mark.parametrize("state", ["whole", "torn", "gone"])
def test_down_after_kill_9_of_everything(apart: None, name: str, state: str, tmp_path: Path) -> None:
    before = host_before()
    skep("cluster", "up", "--name", name, "--workers", "1", "--stack", str(tmp_path))
    at = layout(name)
    assert len(kill_everything(at)) >= 3, "two nodes and the host socket"
    if state == "torn":
        at.state.write_text(at.state.read_text()[:100])
    if state == "gone":
        at.state.unlink()
    shown = skep("cluster", "status", check=False)
    assert shown.returncode == 1 and (f"cluster {name}: only pieces are left" in shown.stdout) == (state != "whole")
    if state == "whole":
        again = skep("cluster", "up", "--name", name, check=False)
        assert again.returncode == 1 and "is there but does not run" in again.stderr
    skep("cluster", "down", "--name", name)
    assert remains(name) == []
    assert host_before() == before
    skep("cluster", "down", "--name", name)


def test_a_whole_cluster_starts_again(name: str) -> None:
    """As after this machine was booted: nothing runs, no mount, no link, /run is empty; what was stored is there again."""
    port = free_port("127.0.0.1")
    skep("cluster", "up", "--name", name, "--workers", "1", "--registry", "--publish", f"{port}:8000")
    at = layout(name)
    template = {"ContainerSpec": {"Image": ECHO}, "RestartPolicy": {"Condition": "any", "Delay": 200_000_000}}
    spec = {"Name": "kept", "TaskTemplate": template, "Mode": {"Replicated": {"Replicas": 2}}}
    spec["EndpointSpec"] = {"Ports": [{"Protocol": "tcp", "TargetPort": 8080, "PublishedPort": 8000}]}
    calls.call(at.socket("manager"), "POST", "/services/create", spec)
    until(lambda: get(port) == "Hello Docker!!", "it answers")
    ids = {n["Description"]["Hostname"]: n["ID"] for n in calls.call(at.socket("manager"), "GET", "/nodes")}
    kill_everything(at)
    cluster.Underlay(name).destroy()
    cluster.traces.unmount_all(at.run)
    shutil.rmtree(at.run)
    cluster.traces.remove_cgroups(at.cgroup_trees())
    assert get(port) == ""

    skep("cluster", "start", "--name", name)
    assert skep("cluster", "status", "--name", name).stdout.count("running") == 3
    assert {n["Description"]["Hostname"]: n["ID"] for n in calls.call(at.socket("manager"), "GET", "/nodes")} == ids
    until(lambda: get(port) == "Hello Docker!!", "the service runs again, and its port leads to it")
    assert skep("cluster", "start", "--name", name).returncode == 0, "what runs is left alone"


def test_two_clusters_side_by_side(name: str, world: World) -> None:
    port = free_port("127.0.0.1")
    taken = skep("cluster", "up", "--name", name, "--publish", f"{world.port}:8000", check=False)
    assert taken.returncode == 1 and f"this port leads to cluster '{world.at.name}' already" in taken.stderr
    assert remains(name) == []
    skep("cluster", "up", "--name", name, "--workers", "0", "--registry", "--publish", f"{port}:8000")
    at = layout(name)
    assert at.subnet != world.at.subnet
    script = "while true; do printf 'HTTP/1.0 200 OK\\r\\n\\r\\n%s' \"$WHO\" | nc -l -p 8080; done"
    for where, who in ((at, "second"), (world.at, "first")):
        spec = {
            "Name": "who",
            "TaskTemplate": {
                "ContainerSpec": {"Image": ECHO, "Command": ["sh", "-c", script], "Env": [f"WHO={who}"], "StopGracePeriod": 1}
            },
            "Mode": {"Replicated": {"Replicas": 1}},
            "EndpointSpec": {"Ports": [{"Protocol": "tcp", "TargetPort": 8080, "PublishedPort": 8000}]},
        }
        calls.call(where.socket("manager"), "POST", "/services/create", spec)
    until(lambda: get(port) == "second", "the second answers on its port")
    until(lambda: get(world.port) == "first", "the first on its own")
    skep("cluster", "down", "--name", name)
    assert remains(name) == []
    assert get(port) == ""
    # between two answers nobody listens
    until(lambda: get(world.port) == "first", "the first has not noticed")
    world.remove("who")


def test_a_port_that_is_taken_is_refused(name: str) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = skep("cluster", "up", "--name", name, "--publish", str(port), check=False)
    assert done.returncode == 1 and done.stderr.endswith(f"skep cluster: --publish {port}: a program on this host listens on this port\n")
    assert remains(name) == []


def without_docker(folder: Path) -> str:
    """A PATH with everything but docker."""
    folder.mkdir()
    for part in os.environ["PATH"].split(":"):
        for program in Path(part).iterdir() if Path(part).is_dir() else []:
            if program.name != "docker" and not (folder / program.name).exists():
                (folder / program.name).symlink_to(program)
    return str(folder)


def test_where_things_are_odd(name: str, tmp_path: Path) -> None:
    """Few file descriptors, no home, no standard input, a folder that is gone, a tight umask, Ctrl-C ignored, no docker."""
    gone = tmp_path / "gone"
    gone.mkdir()
    path = without_docker(tmp_path / "bin")
    environment = {"PATH": path, "HOME": "/no/such/home", "SKEP_TOOLS": str(tmp_path)}

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    def odd() -> None:
        os.chdir(gone)
        os.rmdir(gone)
        os.umask(0o077)
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, hard))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.close(0)

    done = skep("cluster", "up", "--name", name, "--workers", "1", env=environment, preexec_fn=odd)
    at = layout(name)
    run = f"/run/skep/clusters/{name}"
    assert done.stdout.splitlines()[-1] == f"export DOCKER_HOST=unix://{run}/manager/skep/docker.sock"
    assert os.stat(run).st_mode & 0o777 == 0o755 and os.stat(at.socket("manager")).st_mode & 0o777 == 0o660
    for pid in (cluster.daemon_pid(at, "manager"), cluster.pids(at, "host")[0]):
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert int(next(line for line in limits.splitlines() if line.startswith("Max open files")).split()[3]) >= 4096
        assert os.readlink(f"/proc/{pid}/cwd") == "/"

    def here(*argv: str, check: bool = True) -> str:
        return skep(*argv, check=check, env=environment).stdout

    assert shutil.which("docker", path=path) is None
    assert "worker01" in here("cluster", "exec", "--name", name, "manager", "--", "skep", "node", "ls")
    assert here("cluster", "stop", "--name", name, "worker01") == "worker01\n"
    assert "stopped" in here("cluster", "status", "--name", name, check=False)
    here("cluster", "start", "--name", name, "worker01")
    here("cluster", "kill", "--name", name, "worker01")
    assert "dead" in here("cluster", "status", "--name", name, check=False)
    refused = skep("cluster", "exec", "--name", name, "worker01", "true", check=False, env=environment)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1) and f"`skep cluster start --name {name} worker01`" in refused.stderr
    here("cluster", "start", "--name", name)
    assert here("cluster", "status", "--name", name).count("running") == 2
    nodes = json.loads(here("cluster", "exec", "--name", name, "manager", "--", "skep", "node", "inspect", "worker01"))
    assert nodes[0]["Status"]["State"] == "ready"
    skep("cluster", "down", "--name", name, env=environment, stdin=subprocess.DEVNULL)
    assert remains(name) == []


def test_its_output_may_go_away(name: str) -> None:
    """`skep cluster up 2>&1 | head -1`: the cluster comes up all the same."""
    with subprocess.Popen(
        [*SKEP, "cluster", "up", "--name", name, "--workers", "0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as p:
        assert p.stdout
        p.stdout.readline()
        p.stdout.close()
    assert skep("cluster", "status", "--name", name).stdout.count("running") == 1


def test_one_at_a_time(name: str) -> None:
    """While one `up` works, a second one and a `down` say who does."""
    begun = Begun("--name", name, "--workers", "0")
    begun.until("underlay")
    os.kill(begun.process.pid, signal.SIGSTOP)
    try:
        for verb in ("up", "down"):
            done = skep("cluster", verb, "--name", name, check=False)
            assert done.returncode == 1 and done.stderr.count("\n") == 1
            assert f"process {begun.process.pid} is making or changing cluster '{name}'" in done.stderr
    finally:
        os.kill(begun.process.pid, signal.SIGCONT)
    out, err = begun.process.communicate(timeout=120)
    assert begun.process.returncode == 0 and out.count("\n") == 2, err
