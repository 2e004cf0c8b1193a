"""From `service create` until its one task runs, on a swarm of one node: with a network, with a health check, with both; skepd, dockerd.

    sudo .venv/bin/python bench/health.py [--reps 5] [--interval 100] [--dockerd FILE] [--json FILE]

plain       POST /services/create (image there, no network, no check) until the task is running
network     on an overlay network
check       --health-cmd true, --health-interval INTERVAL ms: a task runs when it is healthy, and the first check comes one interval after
            the start, here as in Docker; so INTERVAL is part of the figure and no peer can be faster
both        an overlay network and a check
parts       when the task was first seen in each state, in ms after the request, of the last kind
stopped     DELETE until the container runs no more (its signal is SIGKILL, its grace 0)
removed     the same until the container is gone: both keep a task that has ended for a second or so

Milliseconds; the ratio says how many times faster skepd is. The task is looked at every 2 ms, which the peer pays for too.
"""

from __future__ import annotations

import time
from functools import partial
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
    begun = time.perf_counter()
    peer.api("DELETE", f"/services/{service}")
    for what, path in (("stopped", "/containers/json"), ("removed", "/containers/json?all=1")):
        peers.until(partial(nothing, peer, path), f"{kind} is {what}", every=EVERY)
        wall.add(f"  {what}, {kind}", peer.name, time.perf_counter() - begun)


def nothing(peer: peers.Peer, path: str) -> bool:
    return not peer.api("GET", path)


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
