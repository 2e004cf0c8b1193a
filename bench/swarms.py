"""Four-node clusters on this machine, seen through the Docker Engine API alone: skep's, and beside it in the same run a real Docker Swarm.

The Swarm is optional. What starts it is a program of yours, given with `--docker-swarm PROGRAM` or $SKEP_BENCH_DOCKER_SWARM; it must do

    CLUSTER_DIR=DIR CLUSTER_NAME=NAME CLUSTER_NET=10.98.77 PROGRAM up | down | args

`up` makes a manager and three workers, each with a dockerd in its own network namespace NAME-NODE on one wire; `args` prints
`--image IMAGE` and `--node-hosts NODE=unix://SOCKET,...` (the first is the manager), with /bench in the image as skep's own has it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import after

from skep.datapath import netns
from skep.local import cluster
from skep.local.calls import call

NAME = f"bench{os.getpid()}"
SWARM = (f"/tmp/skbench{os.getpid()}", f"skbench{os.getpid()}", "10.98.77")
"""Folder, name and underlay of the Docker Swarm."""
T = TypeVar("T")


class Swarm:
    """One cluster: its sockets by node, the network namespaces and addresses of its nodes, and what one does with services."""

    def __init__(self, name: str, image: str, sockets: dict[str, Path], wires: dict[str, Path], addresses: dict[str, str]) -> None:
        self.name, self.image, self.sockets, self.wires, self.addresses = name, image, sockets, wires, addresses
        self.nodes = list(sockets)
        self.virtual = name == "skep"
        """It has virtual addresses and a mesh. Docker's need IPVS, which not every kernel has; its names are used in the mode dnsrr."""

    def api(self, method: str, target: str, body: Any = None) -> Any:
        return call(self.sockets[self.nodes[0]], method, f"/v1.41{target}", body, timeout=300)

    def until(self, holds: Callable[[], T | None], what: str, seconds: float = 120, every: float = 0.01) -> T:
        end = time.monotonic() + seconds
        while not (got := holds()):
            if time.monotonic() > end:
                raise SystemExit(f"bench: {self.name}: after {seconds:.0f} s still not so: {what}")
            time.sleep(every)
        return got

    def network(self, name: str) -> str:
        return str(self.api("POST", "/networks/create", {"Name": name, "Driver": "overlay", "Attachable": True})["Id"])

    def spec(self, name: str, replicas: int, *, network: str = "", node: str = "", ports: tuple[int, ...] = ()) -> dict[str, Any]:
        """`replicas` 0: one on every node."""
        endpoint: dict[str, Any] = {"Mode": "vip" if self.virtual or not network else "dnsrr"}
        if ports:
            endpoint["Ports"] = [{"Protocol": "tcp", "TargetPort": p, "PublishedPort": p, "PublishMode": "ingress"} for p in ports]
        return {
            "Name": name,
            "TaskTemplate": {
                "ContainerSpec": {"Image": self.image, "StopGracePeriod": 1_000_000_000},
                "RestartPolicy": {"Condition": "any", "Delay": 0},
                "Placement": {"Constraints": [f"node.hostname=={node}"] if node else []},
                "Networks": [{"Target": network}] if network else [],
            },
            "Mode": {"Replicated": {"Replicas": replicas}} if replicas else {"Global": {}},
            "EndpointSpec": endpoint,
        }

    def create(self, name: str, replicas: int, **more: Any) -> str:
        return str(self.api("POST", "/services/create", self.spec(name, replicas, **more))["ID"])

    def scale(self, service: str, replicas: int) -> None:
        """As `docker service scale` does it, without the client's own start."""
        found = self.api("GET", f"/services/{service}")
        found["Spec"]["Mode"]["Replicated"]["Replicas"] = replicas
        self.api("POST", f"/services/{service}/update?version={found['Version']['Index']}", found["Spec"])

    def tasks(self, service: str) -> list[dict[str, Any]]:
        """Those that run, oldest first."""
        wanted = quote(json.dumps({"service": [service], "desired-state": ["running"]}))
        found = self.api("GET", f"/tasks?filters={wanted}")
        return sorted((t for t in found if t["Status"]["State"] == "running"), key=lambda t: str(t["CreatedAt"]))

    def running(self, service: str) -> int:
        wanted = quote(json.dumps({"id": [service]}))
        return int(self.api("GET", f"/services?status=true&filters={wanted}")[0]["ServiceStatus"]["RunningTasks"])

    def wait(self, service: str, count: int, seconds: float = 180) -> list[dict[str, Any]]:
        self.until(lambda: self.running(service) == count, f"{count} tasks run", seconds)
        return self.tasks(service)

    def hostnames(self) -> dict[str, str]:
        return {n["ID"]: n["Description"]["Hostname"] for n in self.api("GET", "/nodes")}

    def virtual_address(self, service: str, network: str) -> str:
        found = self.api("GET", f"/services/{service}")["Endpoint"]["VirtualIPs"]
        return next(str(v["Addr"]).partition("/")[0] for v in found if v["NetworkID"] == network)

    def remove(self, *services: str) -> None:
        for service in services:
            self.api("DELETE", f"/services/{service}")
        self.until(lambda: not self.api("GET", "/tasks"), "all tasks are gone")
        self.until(lambda: not self.containers(), "all containers are gone")

    def containers(self, also_stopped: bool = True) -> int:
        return sum(len(call(socket, "GET", f"/containers/json?all={int(also_stopped)}")) for socket in self.sockets.values())


def address(task: dict[str, Any], network: str) -> str:
    found = next(a for a in task["NetworksAttachments"] if a["Network"]["ID"] == network)
    return str(found["Addresses"][0]).partition("/")[0]


def sandbox(task: dict[str, Any]) -> Path:
    """The task's network namespace."""
    return Path(f"/proc/{task['Status']['ContainerStatus']['PID']}/ns/net")


# -- one or two of them


def arguments(doc: str) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = os.environ.get("SKEP_BENCH_DOCKER_SWARM", "")
    p.add_argument("--docker-swarm", type=program_at, default=given, help="a program as bench/swarms.py describes it")
    p.add_argument("--json", default="", help="write what was measured into this file")
    return p


def program_at(path: str) -> str:
    if path and not os.access(path, os.X_OK):
        raise argparse.ArgumentTypeError(f"{path}: no such program")
    return path and str(Path(path).absolute())


@contextmanager
def both(program: str) -> Iterator[list[Swarm]]:
    """skep's cluster; where a program is given and its Swarm starts, that too. All is removed at the end, whatever the end."""
    with ExitStack() as stack:
        stack.enter_context(after.cleared(["cluster", NAME], *([["swarm", program, *SWARM]] if program else [])))
        found = [skep_cluster()]
        if program and (other := docker_swarm(program)):
            found.append(other)
        elif not program:
            print("  (no Docker Swarm beside it: no --docker-swarm given)", file=sys.stderr)
        yield found


def skep_cluster() -> Swarm:
    at = cluster.up(NAME, workers=3, registry=True, publish=[], say=lambda text: None)
    nodes = [n.name for n in at.nodes]
    sockets, wires = {n: at.socket(n) for n in nodes}, {n: at.namespace(n, "net") for n in nodes}
    return Swarm("skep", "registry:5000/example/bench:latest", sockets, wires, {n: at.address(n) for n in nodes})


def docker_swarm(program: str) -> Swarm | None:
    folder, name, net = SWARM
    environment = after.swarm_environment(folder, name, net)
    Path(folder).mkdir(exist_ok=True)
    done = subprocess.run([program, "up"], env=environment, capture_output=True, text=True)
    if done.returncode:
        print(f"  (no Docker Swarm beside it: {(done.stderr or done.stdout).strip().splitlines()[-1:]})", file=sys.stderr)
        return None
    said = shlex.split(subprocess.run([program, "args"], env=environment, capture_output=True, text=True, check=True).stdout)
    options = dict(zip(said[::2], said[1::2], strict=True))
    sockets = {n: Path(s.removeprefix("unix://")) for n, s in (pair.split("=", 1) for pair in options["--node-hosts"].split(","))}
    wires = {n: Path(f"/run/netns/{name}-{n}") for n in sockets}
    out = Swarm("Docker", options["--image"], sockets, wires, {})
    out.addresses = {n["Description"]["Hostname"]: n["Status"]["Addr"] for n in out.api("GET", "/nodes")}
    out.addresses[out.nodes[0]] = call(sockets[out.nodes[0]], "GET", "/info")["Swarm"]["NodeAddr"]
    return out


# -- inside a network namespace


def within(namespace: Path, work: Callable[[], T]) -> T:
    """`work`, in a thread that is in this namespace."""
    done: list[T] = []
    failed: list[BaseException] = []

    def body() -> None:
        try:
            fd = netns.opened(namespace)
            try:
                with netns.entered(fd):
                    done.append(work())
            finally:
                os.close(fd)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


def fork_within(namespace: Path, work: Callable[[], None]) -> int:
    """`work` in a process of its own in this namespace, which ends with us; its id. Call it from the main thread only."""
    parent = os.getpid()
    if child := os.fork():
        return child
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        os.closerange(3, 1024)
        if os.getppid() == parent:
            with netns.entered(netns.opened(namespace)):
                work()
    finally:
        os._exit(0)


# -- shown


def spread(samples: list[float]) -> str:
    """The median, with the smallest and largest."""

    def short(value: float) -> str:
        return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"

    return f"{short(statistics.median(samples))} ({short(min(samples))} to {short(max(samples))})"


def write(path: str, rows: list[dict[str, Any]]) -> None:
    if path:
        Path(path).write_text(json.dumps({"load": os.getloadavg(), "cores": os.cpu_count(), "rows": rows}, indent=1))
