"""What a four-node cluster on this machine costs, seen from outside through the Docker Engine API.

    sudo .venv/bin/python bench/cluster.py [--sections idle,start,kill,pending] [--sizes 1,20,100] [--reps 5] [--json FILE]

start     from POST /services/create until all replicas are running (no network attached); beside it, in the same run, the limit: the same
          number of containers through bare crun with a compiled seccomp filter (bench/containers.py), as a ratio
kill      SIGKILL of a container's process until its replacement runs (restart delay 0)
pending   10,000 tasks that no node can take, from create until all are known to be pending
idle      CPU and memory of the four skepds over 60 s, with 0 and with 100 tasks

Each figure is the median of the repetitions, with the smallest and largest. The cluster is removed at the end, also after a SIGKILL.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import after
import containers

from skep.local import cluster, nodes
from skep.local.calls import call
from skep.local.layout import Layout

IMAGE = "registry:5000/example/bench:latest"
NAME = f"bench{os.getpid()}"


def spec(name: str, replicas: int, *, constraints: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "Name": name,
        "TaskTemplate": {
            "ContainerSpec": {"Image": IMAGE, "StopGracePeriod": 1_000_000_000},
            "RestartPolicy": {"Condition": "any", "Delay": 0},
            "Placement": {"Constraints": list(constraints)},
        },
        "Mode": {"Replicated": {"Replicas": replicas}},
    }


class Bench:
    def __init__(self, at: Layout) -> None:
        self.at = at
        self.socket = at.socket("manager")
        self.rows: list[dict[str, Any]] = []

    def api(self, method: str, target: str, body: Any = None) -> Any:
        return call(self.socket, method, target, body)

    def create(self, name: str, replicas: int, **more: Any) -> str:
        return str(self.api("POST", "/services/create", spec(name, replicas, **more))["ID"])

    def running(self, service: str) -> int:
        found = self.api("GET", f'/services?status=true&filters={{"id":["{service}"]}}')
        return int(found[0]["ServiceStatus"]["RunningTasks"])

    def until(self, holds: Callable[[], bool], what: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > end:
                raise SystemExit(f"bench: after {seconds:.0f} s still not so: {what}")
            time.sleep(0.01)

    def remove(self, service: str) -> None:
        self.api("DELETE", f"/services/{service}")
        self.until(lambda: not self.api("GET", "/tasks"), "all tasks are gone")
        self.until(lambda: not self.containers(), "all containers are gone")

    def containers(self) -> int:
        return sum(len(call(self.at.socket(n.name), "GET", "/containers/json?all=1")) for n in self.at.nodes)

    def start(self, replicas: int) -> float:
        begun = time.perf_counter()
        service = self.create(f"start{replicas}", replicas)
        self.until(lambda: self.running(service) == replicas, f"{replicas} running")
        took = time.perf_counter() - begun
        self.remove(service)
        return took

    def kill(self) -> float:
        service = self.create("kill", 4)
        self.until(lambda: self.running(service) == 4, "4 running")
        victim = next(t for t in self.api("GET", "/tasks") if t["Status"]["State"] == "running")
        begun = time.perf_counter()
        os.kill(victim["Status"]["ContainerStatus"]["PID"], signal.SIGKILL)

        def replaced() -> bool:
            states = {t["ID"]: t["Status"]["State"] for t in self.api("GET", "/tasks")}
            return states.get(victim["ID"]) != "running" and list(states.values()).count("running") == 4

        self.until(replaced, "the task is replaced")
        took = time.perf_counter() - begun
        self.remove(service)
        return took

    def pending(self, number: int) -> float:
        begun = time.perf_counter()
        service = self.create("pending", number, constraints=("node.labels.nowhere==x",))

        def known() -> bool:
            tasks = self.api("GET", "/tasks")
            return len(tasks) == number and all(t["Status"]["State"] == "pending" and t["Status"].get("Err") for t in tasks)

        self.until(known, f"{number} pending")
        took = time.perf_counter() - begun
        self.remove(service)
        return took

    def idle(self, tasks: int, seconds: float) -> dict[str, Any]:
        service = ""
        if tasks:
            service = self.create("idle", tasks)
            self.until(lambda: self.running(service) == tasks, f"{tasks} running")
        time.sleep(6)
        before, begun = self.cpu(), time.perf_counter()
        time.sleep(seconds)
        cpu, took = self.cpu() - before, time.perf_counter() - begun
        memory = {n.name: self.memory(nodes.daemon_pid(self.at, n.name)) for n in self.at.nodes}
        if service:
            self.remove(service)
        return {"tasks": tasks, "cpu_percent_of_a_core_all_nodes": round(100 * cpu / took, 3), "rss_mb": memory}

    def cpu(self) -> float:
        """Seconds of CPU that the four skepds have used."""
        total = 0
        for node in self.at.nodes:
            fields = Path(f"/proc/{nodes.daemon_pid(self.at, node.name)}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / os.sysconf("SC_CLK_TCK")

    @staticmethod
    def memory(pid: int) -> float:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return round(int(line.split()[1]) / 1024, 1)
        return 0.0

    def add(self, name: str, samples: list[float], **more: Any) -> None:
        row = {
            "name": name,
            "median_s": statistics.median(samples),
            "min_s": min(samples),
            "max_s": max(samples),
            "n": len(samples),
            **more,
        }
        self.rows.append(row)
        extra = " ".join(f"{k}={v}" for k, v in more.items())
        print(f"{name:28} {row['median_s']:8.3f} s   ({row['min_s']:.3f} to {row['max_s']:.3f}, n={len(samples)}) {extra}", flush=True)


class Limit:
    """The same number of containers through the bare runtime (bench/containers.py)."""

    def __init__(self, runtime: str) -> None:
        self.bench = containers.Bench()
        self.bare = containers.Bare(runtime, self.bench)
        self.runner = asyncio.Runner()

    def __enter__(self) -> Limit:
        return self

    def run(self, count: int) -> float:
        made = [containers.wanted() for _ in range(count)]
        begun = time.perf_counter()
        self.runner.run(containers.all_at_once(self.bare.start, made))
        took = time.perf_counter() - begun
        self.runner.run(containers.all_at_once(self.bare.remove, made))
        return took

    def __exit__(self, *exc: object) -> None:
        self.runner.run(self.bare.close())
        self.runner.close()
        containers.bundle.remove_cgroups(self.bench.cgroup)
        self.bench.clear()


def sections(b: Bench, args: argparse.Namespace) -> None:
    wanted = args.sections.split(",")
    if "idle" in wanted:
        for tasks in (0, 100):
            row = b.idle(tasks, args.idle)
            b.rows.append(row)
            print(json.dumps(row), flush=True)
    if "start" in wanted:
        with Limit(args.runtime) as limit:
            b.start(4)
            for size in args.sizes:
                ours, bare = [], []
                for _ in range(args.reps):
                    bare.append(limit.run(size))
                    ours.append(b.start(size))
                b.add(f"bare {args.runtime}, {size}", bare)
                b.add(f"create to running, {size}", ours, ratio=round(statistics.median(ours) / statistics.median(bare), 2))
    if "kill" in wanted:
        b.add("kill to replacement", [b.kill() for _ in range(args.reps)])
    if "pending" in wanted:
        b.add("10,000 pending", [b.pending(10_000) for _ in range(min(3, args.reps))])


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sections", default="idle,start,kill,pending")
    p.add_argument("--sizes", type=lambda s: [int(x) for x in s.split(",")], default=[1, 20, 100])
    p.add_argument("--reps", type=int, default=5)
    p.add_argument("--runtime", default="crun", help="the bare runtime to compare with (crun or runc)")
    p.add_argument("--idle", type=float, default=60)
    p.add_argument("--json", default="")
    args = p.parse_args()
    with after.cleared(["cluster", NAME]):
        at = cluster.up(NAME, workers=3, registry=True, publish=[], say=lambda text: print("  " + text, file=sys.stderr))
        b = Bench(at)
        sections(b, args)
    if args.json:
        Path(args.json).write_text(json.dumps({"load": os.getloadavg(), "cores": os.cpu_count(), "rows": b.rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
