"""From `service create` until its one task runs, on a swarm of one node: with a network, with a health check, with both; skepd, dockerd.

    sudo .venv/bin/python bench/health.py [--reps 5] [--interval 100] [--dockerd FILE] [--json FILE]

plain       POST /services/create (image there, no network, no check) until the task is running
network     on an overlay network
check       --health-cmd true, --health-interval INTERVAL ms: a task runs when it is healthy, and the first check comes one interval after
            the start, here as in Docker; so INTERVAL is part of the figure and no peer can be faster
both        an overlay network and a check
parts       when the task was first seen in each state, in ms after the request, of the last kind
removed     DELETE until the task's container is gone

Milliseconds; the ratio says how many times faster skepd is. The task is looked at every 2 ms, which the peer pays for too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tables import Table

import peers

IMAGE = f"{peers.REGISTRY}/box:1"
EVERY = 0.002


def spec(name: str, network: bool, interval: int) -> dict[str, Any]:
    container: dict[str, Any] = {"Image": IMAGE, "Command": ["sleep", "100000"], "StopGracePeriod": 0, "StopSignal": "SIGKILL"}
    if interval:
        container["Healthcheck"] = {"Test": ["CMD", "true"], "Interval": interval * 1_000_000}
    task: dict[str, Any] = {"ContainerSpec": container}
    if network:
        task["Networks"] = [{"Target": "ov"}]
    return {"Name": name, "TaskTemplate": task, "Mode": {"Replicated": {"Replicas": 1}}}


def one(peer: peers.Peer, kind: str, network: bool, interval: int, wall: Table, parts: Table | None) -> None:
    begun = time.perf_counter()
    service = peer.api("POST", "/services/create", spec(kind.replace(" ", ""), network, interval))["ID"]
    seen: dict[str, float] = {}
    target = f'/tasks?filters={{"service":["{service}"]}}'

    def runs() -> bool:
        for task in peer.api("GET", target):
            seen.setdefault(task["Status"]["State"], time.perf_counter() - begun)
        return "running" in seen

    peers.until(runs, f"{kind} runs", lambda: str(peer.api("GET", target)), every=EVERY)
    wall.add(kind, peer.name, seen["running"])
    if parts is not None:
        for state, at in seen.items():
            parts.add(state, peer.name, at)
    gone: Callable[[], bool] = lambda: not peer.api("GET", "/containers/json?all=1")  # noqa: E731
    begun = time.perf_counter()
    peer.api("DELETE", f"/services/{service}")
    peers.until(gone, f"{kind} is gone", every=EVERY)
    wall.add(f"  removed, {kind}", peer.name, time.perf_counter() - begun)


def main() -> None:
    options = peers.parsed(peers.arguments(__doc__, reps=5, interval=100))
    wall, parts = Table("ms"), Table("both: first seen")
    with peers.stage(options) as ground:
        for peer in ground.peers:
            peer.docker("pull", "-q", IMAGE)
            peer.docker("swarm", "init", "--advertise-addr", peer.address)
            peer.docker("network", "create", "-d", "overlay", "ov")
            one(peer, "warm", True, 0, Table(), None)
        for _ in range(options.reps):
            for kind, network, interval in (
                ("plain", 0, 0),
                ("network", 1, 0),
                ("check", 0, options.interval),
                ("both", 1, options.interval),
            ):
                for peer in ground.peers:
                    one(peer, kind, bool(network), interval, wall, parts if kind == "both" else None)
        columns = [peer.name for peer in ground.peers]
        wall.show(columns)
        parts.show(columns)
    peers.finish(options, wall, parts)


if __name__ == "__main__":
    main()
