"""Not one request fails while a published service is updated and scaled: 200 new connections a second, from outside, at every node.

What the service must bring: a health check, so that a task is sent requests once it listens, and a drain time (label `skep.drain`), so that
those under way are answered before it is told to stop. Its server ends at once on SIGTERM.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from conftest import World
from test_service import addresses

from skep.local import cluster

RATE = 200
STARTING = {"StartPeriod": 10_000_000_000, "StartInterval": 50_000_000}
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


class Load:
    """Steady requests, each on a connection of its own; those that fail are kept with their reason."""

    def __init__(self, targets: list[tuple[str, int]]) -> None:
        self.targets = targets
        self.sent = 0
        self.failed: list[str] = []
        self.slowest = 0.0
        self._ended = threading.Event()
        self._number = itertools.count()
        self._begun = time.monotonic()

    def _work(self) -> None:
        while not self._ended.is_set():
            number = next(self._number)
            time.sleep(max(0.0, self._begun + number / RATE - time.monotonic()))
            address = self.targets[number % len(self.targets)]
            began = time.monotonic()
            try:
                with socket.create_connection(address, timeout=10) as s:
                    s.sendall(REQUEST)
                    data = b""
                    while piece := s.recv(4096):
                        data += piece
                if b"Hello Docker!!" not in data:
                    raise OSError(f"answered {data[:60]!r}")
            except OSError as error:
                self.failed.append(f"{address[0]} after {time.monotonic() - self._begun:.2f} s: {error}")
            self.slowest = max(self.slowest, time.monotonic() - began)
            self.sent += 1

    @contextmanager
    def running(self) -> Iterator[None]:
        workers = [threading.Thread(target=self._work) for _ in range(12)]
        for worker in workers:
            worker.start()
        try:
            yield
        finally:
            self._ended.set()
            for worker in workers:
                worker.join()


def updated(world: World, change: Any) -> None:
    """Change the service's spec."""
    service = world.api("GET", "/services/lossless")
    spec = service["Spec"]
    change(spec)
    world.api("POST", f"/services/{service['ID']}/update?version={service['Version']['Index']}", spec)


def again(spec: dict[str, Any]) -> None:
    spec["TaskTemplate"]["ForceUpdate"] = spec["TaskTemplate"].get("ForceUpdate", 0) + 1


def ids(world: World) -> set[str]:
    return {t["ID"] for t in world.running("lossless")}


def through(world: World, before: set[str]) -> bool:
    """The update is over: as many run as before, all of them new."""
    status, running = world.api("GET", "/services/lossless").get("UpdateStatus", {}), ids(world)
    return status.get("State") == "completed" and len(running) == len(before) and not running & before


def rolled(world: World) -> None:
    before = ids(world)
    updated(world, again)
    world.until(lambda: through(world, before), "the update is through")


def scaled(world: World, replicas: int) -> None:
    updated(world, lambda spec: spec["Mode"]["Replicated"].update(Replicas=replicas))
    world.until(lambda: len(world.running("lossless")) == replicas, f"{replicas} run")
    world.until(
        lambda: all(t["Status"]["State"] != "running" for t in world.tasks("lossless") if t["DesiredState"] != "running"),
        "the rest has ended",
    )


@contextmanager
def loaded(world: World, replicas: int) -> Iterator[Load]:
    """The service, and requests at every node while this is entered."""
    world.create(
        "lossless",
        replicas,
        container={
            "Healthcheck": {
                "Test": ["CMD", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8080/"],
                "Interval": 5_000_000_000,
                **STARTING,
            }
        },
        Labels={"skep.drain": "300ms"},
        UpdateConfig={"Parallelism": 1, "Order": "start-first", "Delay": 0, "Monitor": 100_000_000},
        EndpointSpec={"Ports": [{"Protocol": "tcp", "TargetPort": 8080, "PublishedPort": 8300, "PublishMode": "ingress"}]},
    )
    try:
        world.until(lambda: len(world.running("lossless")) == replicas, f"{replicas} run")
        load = Load([(address, 8300) for address in addresses(world)])
        for target in load.targets:
            world.until(lambda target=target: connects(target), "the port answers")  # type: ignore[misc]
        with load.running():
            yield load
    finally:
        world.remove("lossless")


def play(world: World, updates: int) -> Load:
    with loaded(world, 2) as load:
        for _ in range(updates):
            rolled(world)
        scaled(world, 10)
        scaled(world, 2)
    return load


def connects(target: tuple[str, int]) -> bool:
    try:
        socket.create_connection(target, timeout=2).close()
    except OSError:
        return False
    return True


def check(load: Load) -> None:
    assert load.sent > RATE, "there was load"
    assert not load.failed, f"{len(load.failed)} of {load.sent}: {load.failed[:5]}"


def test_no_request_fails_while_a_service_changes(world: World) -> None:
    check(play(world, updates=3))


def test_no_request_fails_when_the_manager_dies_in_the_middle_of_an_update(world: World) -> None:
    """It goes on when it is back, and the nodes come back each at its own time: what they still send to runs on until they have heard."""
    at = world.at
    with loaded(world, 6) as load:
        for how in ("SIGKILL", "SIGTERM"):
            before = ids(world)
            updated(world, again)
            world.until(lambda before=before: len(ids(world) - before) > 1, "some are new")  # type: ignore[misc]
            cluster.stop_node(at, "manager", name=how)
            time.sleep(2)  # the longer it is away, the longer the nodes wait between two tries
            cluster.start_node(at, "manager")
            cluster.wait_for_socket(at, "manager")
            world.until(lambda before=before: through(world, before), "the update is through", 120)  # type: ignore[misc]
    check(load)


@pytest.mark.soak
def test_no_request_fails_through_twenty_updates(world: World) -> None:
    check(play(world, updates=20))
