"""Two overlays on four real nodes: what is on one neither resolves nor reaches what is on the other, on a node and across nodes, whatever
source it gives itself. And what a network has too few addresses for is said on the task."""

from __future__ import annotations

import itertools
import json
import os
import socket
from collections.abc import Iterator

import pytest
from conftest import ECHO, World
from inside import answers, inside, means
from test_network_check import check, removed

from skep.datapath import netlink

HTTP, PORT = 8080, 9300
TRANSPARENT = 19
"""IP_TRANSPARENT: any source address may be given."""


class Place:
    """A service's task on one of the nodes, or its own."""

    def __init__(self, node: str, pid: int, address: str) -> None:
        self.node, self.pid, self.address = node, pid, address


class Side:
    """An overlay with a service that has a task on each node."""

    def __init__(self, world: World, name: str) -> None:
        self.name, self.service = name, f"on-{name}"
        id = world.api("POST", "/networks/create", {"Name": name, "Driver": "overlay"})["Id"]
        world.create(self.service, 1, template={"Networks": [{"Target": id, "Aliases": [f"{name}-alias"]}]}, Mode={"Global": {}})
        tasks = world.until(lambda: len(found := world.running(self.service)) == len(world.at.nodes) and found, f"{self.service} runs")
        nodes = {node["ID"]: node["Description"]["Hostname"] for node in world.api("GET", "/nodes")}
        self.gateway = world.api("GET", f"/networks/{name}")["IPAM"]["Config"][0]["Gateway"]
        self.vip = world.api("GET", f"/services/{self.service}")["Endpoint"]["VirtualIPs"][0]["Addr"].partition("/")[0]
        self.places = [
            Place(
                nodes[task["NodeID"]],
                task["Status"]["ContainerStatus"]["PID"],
                task["NetworksAttachments"][0]["Addresses"][0].partition("/")[0],
            )
            for task in tasks
        ]
        self.names = {self.service, f"tasks.{self.service}", f"{name}-alias", f"{self.service}.{name}"}
        self.names |= {f"{self.service}.{task['NodeID']}.{task['ID']}" for task in tasks}
        self.names |= {task["Status"]["ContainerStatus"]["ContainerID"][:12] for task in tasks}

    @property
    def all(self) -> set[tuple[str, int]]:
        return {(address, HTTP) for address in (self.vip, *(place.address for place in self.places))}


@pytest.fixture(scope="module")
def sides(world: World) -> Iterator[tuple[Side, Side]]:
    left, right = Side(world, "left-side"), Side(world, "right-side")
    # a task that runs is known to the other nodes a moment later
    world.until(lambda: check(world)[0] == 0, "every node knows of all of them")
    yield left, right
    for side in (left, right):
        world.remove(side.service)
        world.until(lambda side=side: removed(world, side.name), f"{side.name} is removed")  # type: ignore[misc]


def test_neither_resolves_nor_reaches_the_other(sides: tuple[Side, Side]) -> None:
    for own, other in (sides, sides[::-1]):
        for place in own.places:
            found = inside(place.pid, lambda own=own: means(own.names))  # type: ignore[misc]
            assert all(found.values()) and "no answer" not in found[own.service]
            assert found[f"tasks.{own.service}"] == {p.address for p in own.places}
            found = inside(place.pid, lambda other=other: means(other.names))  # type: ignore[misc]
            assert set(found.values()) == {frozenset()}, found
            assert inside(place.pid, lambda own=own: answers(own.all, 5)) == own.all  # type: ignore[misc]
            assert inside(place.pid, lambda other=other: answers(other.all, 0.5)) == set()  # type: ignore[misc]


def test_nor_by_ways_and_addresses_of_its_own_making(sides: tuple[Side, Side]) -> None:
    """A container with all rights lays routes to the other network, and takes an address of it."""
    for own, other in (sides, sides[::-1]):
        for place in own.places:
            prefix, mine = other.gateway.rpartition(".")[0], f"{other.gateway.rpartition('.')[0]}.250"

            def attempt(
                via: str, source: str, own: Side = own, other: Side = other, prefix: str = prefix, mine: str = mine
            ) -> set[tuple[str, int]]:
                with netlink.Socket() as net:
                    index = net.index("eth0")
                    if source:
                        net.send([netlink.address(index, mine, 32)])
                    net.send([netlink.route(f"{prefix}.0", 24, index=index, via=via)])
                    try:
                        return answers(other.all, 0.3)
                    finally:
                        net.send([netlink.route(f"{prefix}.0", 24, index=index, via=via, delete=True)])
                        if source:
                            net.send([netlink.address(index, mine, 32, delete=True)])

            for via, source in itertools.product(("", own.gateway), ("", mine)):
                assert inside(place.pid, lambda via=via, source=source: attempt(via, source)) == set()  # type: ignore[misc]
            assert inside(place.pid, lambda own=own: answers(own.all, 5)) == own.all, "all is as before"  # type: ignore[misc]


def test_nor_with_a_source_that_is_not_its_own(sides: tuple[Side, Side]) -> None:
    """Datagrams: nobody needs to answer."""
    own, other = sides
    for target in other.places:
        listener = inside(target.pid, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with listener:
            listener.bind(("0.0.0.0", PORT))
            listener.settimeout(0.5)

            def send(source: str, to: str = target.address) -> None:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
                    made.setsockopt(socket.IPPROTO_IP, TRANSPARENT, 1)
                    made.bind((source, 0))
                    made.sendto(source.encode(), (to, PORT))

            for place in own.places:
                neighbour = next(p for p in other.places if p is not target)
                for source in (place.address, neighbour.address, target.address, other.gateway, "169.254.0.1", "192.0.2.1"):
                    inside(place.pid, lambda source=source: send(source))  # type: ignore[misc]
            with pytest.raises(TimeoutError):
                listener.recv(100)
            # nothing is to come for half a second, what is to come may take its time
            listener.settimeout(20)
            for neighbour in other.places:
                if neighbour is not target:
                    for place in own.places[:1]:
                        # one's own network is no licence for another one's address either
                        inside(neighbour.pid, lambda place=place: send(place.address))  # type: ignore[misc]
                    inside(neighbour.pid, lambda neighbour=neighbour: send(neighbour.address))  # type: ignore[misc]
                    assert listener.recv(100).decode() == neighbour.address


def test_no_address_is_left_is_said_on_the_task_and_freed_ones_are_given(world: World) -> None:
    """8 addresses: two are the subnet's own, one the gateway's, one the service's; four tasks, on however many nodes."""
    name = f"few{os.getpid()}"
    world.docker("network", "create", "-d", "overlay", "--subnet", "10.77.0.0/29", name)
    try:
        world.docker("service", "create", "-d", "--name", "few", "--network", name, "--replicas", "6", "--stop-grace-period", "1s", ECHO)
        world.until(lambda: len(world.running("few")) == 4, "four run")
        said = f"could not find an available IP while allocating the task's address in network {name} (10.77.0.0/29)"
        lines = world.docker("service", "ps", "--no-trunc", "--format", "{{json .}}", "few").splitlines()
        waiting = [line for line in map(json.loads, lines) if line["CurrentState"].startswith("New")]
        assert [line["Error"].strip('"') for line in waiting] == [said] * 2, lines
        world.docker("service", "scale", "-d", "few=4")
        world.until(lambda: len(world.tasks("few")) == 4, "who waited is gone")
        for _ in range(3):
            before = {t["ID"] for t in world.running("few")}
            world.docker("service", "update", "-d", "--force", "--update-parallelism", "2", "few")
            world.until(
                lambda before=before: len(now := world.running("few")) == 4 and not before & {t["ID"] for t in now},  # type: ignore[misc]
                "all four are new, in a network that has no address to spare",
            )
    finally:
        world.remove("few")
        world.until(lambda: removed(world, name), f"{name} is removed")
