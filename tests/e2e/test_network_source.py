"""Whom a task sees, and what lives on while skepd does not: a client in a namespace of its own on the nodes' wire, and a task that says who
asks it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import World
from inside import answers, inside, means
from test_network_check import check, node_id, removed, router

from skep.datapath import netns
from skep.local import cluster
from skep.local.underlay import Underlay

PORT, PUBLISHED = 9000, 8600


@dataclass
class Client:
    """A machine beside the nodes."""

    pin: Path
    address: str

    def socket(self, kind: socket.SocketKind) -> socket.socket:
        fd = netns.opened(self.pin)
        try:
            with netns.entered(fd):
                made = socket.socket(socket.AF_INET, kind)
        finally:
            os.close(fd)
        made.settimeout(5)
        return made


@pytest.fixture(scope="module")
def client(world: World) -> Iterator[Client]:
    wire = Underlay(world.at.name)
    address = world.at.host_address(200)
    try:
        yield Client(wire.add_node("client", address), address)
    finally:
        wire.remove_node("client")


@pytest.fixture(scope="module")
def task(world: World, client: Client) -> Iterator[tuple[int, int]]:
    """Pids of a service's one task, on worker01, and of another service's on worker02, both on one overlay; the first is published."""
    made = world.api("POST", "/networks/create", {"Name": "src", "Driver": "overlay", "Attachable": True})
    ports = [{"Protocol": p, "TargetPort": PORT, "PublishedPort": PUBLISHED, "PublishMode": "ingress"} for p in ("tcp", "udp")]
    on = [{"Target": made["Id"]}]
    for name, node, more in (("asked", "worker01", {"EndpointSpec": {"Ports": ports}}), ("other", "worker02", {})):
        place = {"Constraints": [f"node.hostname=={node}"]}
        world.create(name, 1, template={"Networks": on, "Placement": place}, **more)
    pids = []
    for name in ("asked", "other"):
        running = world.until(lambda name=name: world.running(name), f"{name} runs")  # type: ignore[misc]
        pids.append(running[0]["Status"]["ContainerStatus"]["PID"])
    with telling(pids[0]):
        for node in world.at.nodes:
            world.until(lambda node=node: accepted(client, node.address), f"{node.name} knows the published port")  # type: ignore[misc]
    yield pids[0], pids[1]
    for name in ("asked", "other"):
        world.remove(name)
    world.until(lambda: removed(world, "src"), "src is removed")


@contextmanager
def telling(pid: int) -> Iterator[None]:
    """In this container: a server that says whom it sees, over TCP once for each line, over UDP for each datagram."""
    tcp = inside(pid, lambda: socket.create_server(("0.0.0.0", PORT), backlog=64))
    udp = inside(pid, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    udp.bind(("0.0.0.0", PORT))
    open_ones: list[socket.socket] = []

    def converse(made: socket.socket, address: str) -> None:
        try:
            while made.recv(100):
                made.sendall(f"{address}\n".encode())
        except OSError:
            pass

    def accept() -> None:
        try:
            while True:
                made, (address, _) = tcp.accept()
                open_ones.append(made)
                threading.Thread(target=converse, args=(made, address), daemon=True).start()
        except OSError:
            pass

    def hear() -> None:
        try:
            while True:
                data, sender = udp.recvfrom(100)
                if data == b"end":
                    return
                udp.sendto(sender[0].encode(), sender)
        except OSError:
            pass

    threads = [threading.Thread(target=accept, daemon=True), threading.Thread(target=hear, daemon=True)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        tcp.shutdown(socket.SHUT_RDWR)
        end = inside(pid, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        end.sendto(b"end", ("127.0.0.1", PORT))
        for thread in threads:
            thread.join(5)
        for one in (tcp, udp, end, *open_ones):
            one.close()


def accepted(client: Client, node: str) -> bool:
    """A task that runs is known to the other nodes a moment later."""
    try:
        return asked_tcp(client, node) == client.address
    except OSError:
        return False


def asked_tcp(client: Client, node: str) -> str:
    with client.socket(socket.SOCK_STREAM) as made:
        made.connect((node, PUBLISHED))
        made.sendall(b"?")
        return made.recv(100).decode().strip()


def asked_udp(client: Client, node: str) -> str:
    with client.socket(socket.SOCK_DGRAM) as made:
        made.sendto(b"?", (node, PUBLISHED))
        return made.recv(100).decode()


def test_a_task_sees_its_client_by_every_node(world: World, client: Client, task: tuple[int, int]) -> None:
    """One node has the task, three have not."""
    with telling(task[0]):
        for node in world.at.nodes:
            for _ in range(5):
                assert asked_tcp(client, node.address) == client.address, f"TCP by {node.name}"
                assert asked_udp(client, node.address) == client.address, f"UDP by {node.name}"


def test_a_connection_outlives_skepd_and_its_repairs(world: World, client: Client, task: tuple[int, int]) -> None:
    """In by worker03, to a task on worker01: neither node's skepd, killed and back, nor what it mends, is noticed by those who talk."""
    with telling(task[0]), client.socket(socket.SOCK_STREAM) as talking, client.socket(socket.SOCK_DGRAM) as sending:
        talking.connect((world.at.address("worker03"), PUBLISHED))

        def alive(when: str) -> None:
            talking.sendall(b"?")
            assert talking.recv(100) == f"{client.address}\n".encode(), when
            sending.sendto(b"?", (world.at.address("worker03"), PUBLISHED))
            assert sending.recv(100) == client.address.encode(), f"UDP, {when}"

        alive("at first")
        for node in ("worker03", "worker01", "manager"):
            for how in ("SIGKILL", "SIGTERM"):
                cluster.stop_node(world.at, node, name=how)
                alive(f"skepd of {node} is gone ({how})")
                cluster.start_node(world.at, node)
                cluster.wait_for_socket(world.at, node)
                alive(f"skepd of {node} is back")
        world.until(lambda: check(world)[0] == 0, "all is well")
        alive("after the first comparisons")
        for node in ("worker03", "worker01"):
            router(world, node, "nft", "flush", "set", "ip", "skep_skep", "samenet")
            assert check(world, "--repair")[0] == 0
            alive(f"the rules of {node} were mended")
            router(world, node, "ip", "link", "del", "vx4096")
            assert check(world, "--repair")[0] == 0
            alive(f"the device of {node} was mended")


def test_without_skepd_containers_talk_and_names_resolve(world: World, task: tuple[int, int]) -> None:
    asked, other = (str(t["NetworksAttachments"][0]["Addresses"][0]).partition("/")[0] for n in ("asked", "other") for t in _on(world, n))
    vip = _vip(world, "other")
    wanted = {"other": {vip}, "tasks.other": {other}, "tasks.asked": {asked}, "nothing.asked.src": set()}
    for how in ("SIGTERM", "SIGKILL"):
        cluster.stop_node(world.at, "worker01", name=how)
        try:
            assert inside(task[0], lambda wanted=wanted: means(wanted)) == wanted
            assert inside(task[0], lambda: answers([(other, 8080), (vip, 8080)], 3)) == {(other, 8080), (vip, 8080)}
            assert inside(task[1], lambda: answers([(asked, 8080)], 3)) == {(asked, 8080)}
        finally:
            cluster.start_node(world.at, "worker01")
            cluster.wait_for_socket(world.at, "worker01")
    assert node_id(world, "worker01") == _on(world, "asked")[0]["NodeID"], "it is the same task"
    world.until(lambda: check(world)[0] == 0, "all is well")


def _on(world: World, service: str) -> list[dict[str, list[dict[str, list[str]]]]]:
    """The service's task, with its place on the overlay first."""
    found = world.running(service)
    for task in found:
        task["NetworksAttachments"].sort(key=lambda a: a["Network"]["Spec"]["Name"] != "src")
    return found


def _vip(world: World, service: str) -> str:
    id = world.api("GET", "/networks/src")["Id"]
    vips = world.api("GET", f"/services/{service}")["Endpoint"]["VirtualIPs"]
    return str(next(v["Addr"] for v in vips if v["NetworkID"] == id)).partition("/")[0]
