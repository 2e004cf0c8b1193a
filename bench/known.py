"""From `docker service scale` to the new task known everywhere, and back. Root; about 1 minute, 3 with Docker.

    sudo .venv/bin/python bench/known.py [--reps 20] [--docker-swarm PROGRAM] [--json FILE]

A cluster of four nodes with an overlay network, a container on each node, and a service of one task. The clock starts with the request by
which `docker service scale` asks for a second one. From inside the container of each node the resolver (127.0.0.11) is asked for the
service's name every 2 ms, and the new address is pinged as often once any of them has named it. Then the service is scaled back to one.

running     the API counts the new task as running
first name  the first of the four resolvers names its address
all names   the last one does
everywhere  the last node has an answer to its ping too: the task is known everywhere
forgotten   after scaling back: the last resolver no longer names it

Milliseconds: the median of the repetitions, with the smallest and largest. Beside it in the same run, in turns, where it starts, a Docker
Swarm; the service is in mode dnsrr in both.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dnslib
from swarms import Swarm, address, arguments, both, sandbox, spread, within, write

NAME = "grown"
STEP = 0.002
PATIENCE = 60.0
WHAT = ("running", "first name", "all names", "everywhere", "forgotten")


class Watch:
    """The new address, once anybody has named it."""

    def __init__(self, before: set[str]) -> None:
        self.before = before
        self.address = ""
        self.named: list[float] = []
        self.reached: list[float] = []


def asked(resolver: socket.socket, message: bytes) -> set[str]:
    try:
        resolver.send(message)
        while True:
            data = resolver.recv(4096)
            if data[:2] == message[:2]:
                return {str(record.rdata) for record in dnslib.DNSRecord.parse(data).rr if record.rtype == dnslib.QTYPE.A}
    except OSError:
        return set()


def polled(namespace: Path, done: Callable[[set[str]], bool]) -> None:
    """Ask the resolver of this container until its answer will do."""
    message = dnslib.DNSRecord.question(NAME).pack()

    def work() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver:
            resolver.connect(("127.0.0.11", 53))
            resolver.settimeout(1)
            end = time.monotonic() + PATIENCE
            while not done(asked(resolver, message)):
                if time.monotonic() > end:
                    raise SystemExit(f"bench: after {PATIENCE:.0f} s still not known: {NAME}")
                time.sleep(STEP)

    within(namespace, work)


def pinged(namespace: Path, target: str) -> None:
    def work() -> None:
        words = (0x0800, 0x05EB, 1)
        echo = struct.pack("!4H", words[0], 0xFFFF - sum(words), *words[1:])
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as s:
            s.settimeout(STEP)
            end = time.monotonic() + PATIENCE
            while time.monotonic() < end:
                try:
                    s.sendto(echo, (target, 0))
                    while True:
                        data, (source, _) = s.recvfrom(256)
                        if source == target and data[20] == 0:
                            return
                except TimeoutError:
                    pass
                except OSError:
                    time.sleep(STEP)
            raise SystemExit(f"bench: after {PATIENCE:.0f} s still no answer from {target}")

    within(namespace, work)


def all_of(works: list[Callable[[], None]]) -> None:
    failed: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def follow(watch: Watch, namespace: Path, begun: float) -> None:
    def done(found: set[str]) -> bool:
        watch.address = watch.address or next(iter(found - watch.before), "")
        return bool(watch.address) and watch.address in found

    polled(namespace, done)
    watch.named.append(time.perf_counter() - begun)
    pinged(namespace, watch.address)
    watch.reached.append(time.perf_counter() - begun)


def once(swarm: Swarm, service: str, network: str, places: list[Path]) -> dict[str, float]:
    watch = Watch({address(task, network) for task in swarm.tasks(service)})
    took: dict[str, float] = {}
    begun = time.perf_counter()

    def ask() -> None:
        swarm.scale(service, 2)
        swarm.until(lambda: swarm.running(service) == 2, "2 tasks run")
        took["running"] = time.perf_counter() - begun

    all_of([ask, *(lambda p=p: follow(watch, p, begun) for p in places)])  # type: ignore[misc]
    took |= {"first name": min(watch.named), "all names": max(watch.named), "everywhere": max(*watch.named, *watch.reached)}
    begun = time.perf_counter()
    swarm.scale(service, 1)
    all_of([lambda p=p: polled(p, lambda found: len(found) == 1) for p in places])  # type: ignore[misc]
    took["forgotten"] = time.perf_counter() - begun
    swarm.until(lambda: len(swarm.tasks(service)) == 1 and swarm.containers() == len(places) + 1, "the second task is gone")
    return {what: seconds * 1000 for what, seconds in took.items()}


def laid(swarm: Swarm) -> tuple[Swarm, str, str, list[Path]]:
    network = swarm.network("known")
    watcher = swarm.create("watcher", 0, network=network)
    grown = swarm.spec(NAME, 1, network=network)
    grown["EndpointSpec"] = {"Mode": "dnsrr"}
    service = str(swarm.api("POST", "/services/create", grown)["ID"])
    swarm.wait(service, 1)
    return swarm, service, network, [sandbox(task) for task in swarm.wait(watcher, len(swarm.nodes))]


def show(taken: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    rows = []
    print(f"{'milliseconds from the request':<30}" + "".join(f"{name:<28}" for name in taken))
    for what in WHAT:
        print(f"{what:<30}" + "".join(f"{spread([t[what] for t in taken[name]]):<28}" for name in taken))
        rows += [{"name": name, "what": what, "ms": [t[what] for t in found]} for name, found in taken.items()]
    return rows


def main() -> int:
    p = arguments(__doc__ or "")
    p.add_argument("--reps", type=int, default=20)
    args = p.parse_args()
    with both(args.docker_swarm) as swarms:
        worlds = [laid(swarm) for swarm in swarms]
        taken: dict[str, list[dict[str, float]]] = {swarm.name: [] for swarm in swarms}
        for world in worlds:
            once(*world)
        for _ in range(args.reps):
            for world in worlds:
                taken[world[0].name].append(once(*world))
        write(args.json, show(taken))
    return 0


if __name__ == "__main__":
    sys.exit(main())
