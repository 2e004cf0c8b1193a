"""Nodes whose underlays are not equally wide: each says by itself how wide its own is, and the others send what fits, also when it changes
while all runs."""

from __future__ import annotations

import hashlib
import itertools
import json
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from conftest import World
from inside import inside
from test_network_check import check, node_id, removed, router

from skep.local import cluster, underlay

MEGABYTE = 1 << 20
PORT = 9100
WIDE, NARROW = 1500, 1400


class Task:
    """A container on the overlay, with a server in it that gives back what it gets."""

    def __init__(self, node: str, pid: int, address: str) -> None:
        self.node, self.pid, self.address = node, pid, address
        self.listening: socket.socket = inside(pid, lambda: socket.create_server(("0.0.0.0", PORT), backlog=64))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        try:
            while True:
                made, _ = self.listening.accept()
                threading.Thread(target=self._echo, args=(made,), daemon=True).start()
        except OSError:
            pass

    @staticmethod
    def _echo(made: socket.socket) -> None:
        with made:
            try:
                while data := made.recv(1 << 16):
                    made.sendall(data)
            except OSError:
                pass

    def connect(self, to: Task) -> socket.socket:
        return inside(self.pid, lambda: socket.create_connection((to.address, PORT), 20))

    def mtu(self) -> int:
        return int(_in_namespace(self.pid, "cat", "/sys/class/net/eth0/mtu"))

    def close(self) -> None:
        self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()


def _in_namespace(pid: int, *line: str) -> str:
    return subprocess.run(["nsenter", f"--target={pid}", "--net", "--mount", *line], capture_output=True, text=True, check=True).stdout


def pumped(made: socket.socket, what: str) -> None:
    """A megabyte there, and the same back."""
    data = hashlib.sha256(what.encode()).digest() * (MEGABYTE // 32)
    sending = threading.Thread(target=_send, args=(made, data), daemon=True)
    sending.start()
    got = bytearray()
    while len(got) < MEGABYTE:
        chunk = made.recv(1 << 16)
        assert chunk, f"{what}: cut off"
        got += chunk
    sending.join(20)
    assert bytes(got) == data, what


def _send(made: socket.socket, data: bytes) -> None:
    try:
        made.sendall(data)
    except OSError:
        pass


def everybody_pumps(tasks: Iterable[Task]) -> None:
    for one, two in itertools.product(list(tasks), repeat=2):
        with one.connect(two) as made:
            pumped(made, f"{one.node} to {two.node}")


def widest(one: Task, two: Task) -> int:
    """What the kernel of `one` says of the way to `two`, once a datagram that may not be cut was too large for it."""

    def ask() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER: never cut
            made.connect((two.address, PORT))
            made.settimeout(0.2)
            for _ in range(2):
                try:
                    made.send(b"x" * (WIDE - 50 - 28))
                    made.recv(10)
                except OSError:
                    pass
            return made.getsockopt(socket.IPPROTO_IP, 14)  # IP_MTU

    return inside(one.pid, ask)


def wire_of(world: World) -> tuple[underlay.Underlay, str]:
    """And the namespace in which its bridge stands."""
    wire = underlay.Underlay(world.at.name)
    return wire, str(wire.node_path("x").parent / "underlay")


def set_width(world: World, node: str, mtu: int) -> None:
    """Both ends of the node's link: what is larger does not arrive."""
    wire, middle = wire_of(world)
    for namespace, link in ((str(wire.node_path(node)), "eth0"), (middle, underlay._port(node))):
        subprocess.run(["nsenter", f"--net={namespace}", "ip", "link", "set", link, "mtu", str(mtu)], check=True)


def set_bridge(world: World, mtu: int) -> int:
    """Returns what it was."""
    _, middle = wire_of(world)
    shown = ["nsenter", f"--net={middle}", "ip", "-j", "link", "show", underlay.BRIDGE]
    before = int(json.loads(subprocess.run(shown, capture_output=True, text=True, check=True).stdout)[0]["mtu"])
    subprocess.run(["nsenter", f"--net={middle}", "ip", "link", "set", underlay.BRIDGE, "mtu", str(mtu)], check=True)
    return before


@contextmanager
def narrowed(world: World, *nodes: str) -> Iterator[None]:
    """The comparison that `--repair` makes is the one that each node makes once a minute."""
    try:
        for node in nodes:
            set_width(world, node, NARROW)
        check(world, "--repair")
        yield
    finally:
        for node in nodes:
            set_width(world, node, WIDE)
        check(world, "--repair")


@pytest.fixture(scope="module")
def wide(world: World) -> Iterator[None]:
    """A cluster's wire is as wide as the host's own way out, here it is Ethernet's."""
    before = set_bridge(world, WIDE)
    for node in world.at.nodes:
        set_width(world, node.name, WIDE)
    check(world, "--repair")
    yield
    for node in world.at.nodes:
        set_width(world, node.name, before)
    set_bridge(world, before)
    check(world, "--repair")


@pytest.fixture(scope="module")
def tasks(world: World, wide: None) -> Iterator[dict[str, Task]]:
    made = world.api("POST", "/networks/create", {"Name": "width", "Driver": "overlay", "Attachable": True})
    world.create("each", 1, template={"Networks": [{"Target": made["Id"]}]}, Mode={"Global": {}})
    with ExitStack() as stack:
        found = {node.name: _task(world, "each", node.name, stack) for node in world.at.nodes}
        for one, two in itertools.permutations(found.values(), 2):
            world.until(_hears(world, one, two, 0), f"{one.node} knows how wide {two.node} is")
        yield found
    world.remove("each")
    world.until(lambda: removed(world, "width"), "width is removed")


def _task(world: World, service: str, node: str, stack: ExitStack) -> Task:
    id = node_id(world, node)
    found = world.until(lambda: [t for t in world.running(service) if t["NodeID"] == id], f"{service} runs on {node}")[0]
    address = found["NetworksAttachments"][0]["Addresses"][0].partition("/")[0]
    task = Task(node, found["Status"]["ContainerStatus"]["PID"], address)
    stack.callback(task.close)
    return task


def _hears(world: World, one: Task, two: Task, mtu: int) -> Callable[[], bool]:
    """The router of `one`'s node has a way to `two` of this width; 0: as wide as its own."""
    words = f"mtu {mtu}" if mtu else ""

    def hears() -> bool:
        route = router(world, one.node, "ip", "route", "show", two.address)
        return "via" in route and (words in route if words else "mtu" not in route)

    return hears


def test_one_narrow_node_among_wide_ones(world: World, tasks: dict[str, Task]) -> None:
    slim = tasks["worker02"]
    wide = [task for task in tasks.values() if task is not slim]
    everybody_pumps(tasks.values())
    assert all(widest(task, slim) == WIDE - 50 for task in wide)
    with ExitStack() as stack:
        held = [stack.enter_context(task.connect(slim)) for task in wide]
        held += [stack.enter_context(slim.connect(task)) for task in wide]
        with narrowed(world, slim.node):
            for task in wide:
                world.until(_hears(world, task, slim, NARROW - 50), f"{task.node} knows how wide the way to {slim.node} is")
            for made in held:
                pumped(made, "a connection that was there before")
            everybody_pumps(tasks.values())
            assert [widest(task, slim) for task in wide] == [NARROW - 50] * 3, "a datagram that may not be cut is refused with the width"
            assert widest(wide[0], wide[1]) == WIDE - 50, "between wide nodes nothing is narrower"
            world.create("late", 1, template=_at(world, slim.node))
            try:
                late = _task(world, "late", slim.node, stack)
                assert late.mtu() == NARROW - 50
                everybody_pumps([late, *wide])
            finally:
                world.remove("late")
            assert check(world)[0] == 0
        for task in wide:
            world.until(_hears(world, task, slim, 0), f"{task.node} knows that it is wide again")
        for made in held:
            pumped(made, "a connection that was there all the time")
    assert check(world)[0] == 0


def test_narrow_nodes_among_themselves(world: World, tasks: dict[str, Task]) -> None:
    with narrowed(world, *tasks):
        vni = world.api("GET", "/networks/width")["Options"]["com.docker.network.driver.overlay.vxlanid_list"]
        for node in tasks:
            assert f"mtu {NARROW - 50} " in router(world, node, "ip", "link", "show", f"vx{vni}")
        everybody_pumps(tasks.values())


def test_a_node_that_begins_says_it_with_its_greeting(world: World, tasks: dict[str, Task]) -> None:
    """Narrow before its skepd starts: nobody waits for a comparison."""
    slim, *others = tasks["worker03"], tasks["manager"], tasks["worker01"]
    cluster.stop_node(world.at, slim.node, name="SIGTERM")
    try:
        set_width(world, slim.node, NARROW)
        cluster.start_node(world.at, slim.node)
        cluster.wait_for_socket(world.at, slim.node)
        for task in others:
            world.until(_hears(world, task, slim, NARROW - 50), f"{task.node} knows how wide the way to {slim.node} is")
        everybody_pumps([slim, *others])
    finally:
        set_width(world, slim.node, WIDE)
        check(world, "--repair")
    for task in others:
        world.until(_hears(world, task, slim, 0), f"{task.node} knows that it is wide again")


def _at(world: World, node: str) -> dict[str, object]:
    on = [{"Target": world.api("GET", "/networks/width")["Id"]}]
    return {"Networks": on, "Placement": {"Constraints": [f"node.hostname=={node}"]}}


def test_nobody_is_shown_what_is_only_ours(world: World, tasks: dict[str, Task]) -> None:
    for node in world.api("GET", "/nodes"):
        assert set(node["Description"]) == {"Hostname", "Platform", "Resources", "Engine", "TLSInfo"}
