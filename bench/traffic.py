"""What the network between containers of two nodes carries: throughput, latency, connections a second. Root.

    sudo .venv/bin/python bench/traffic.py [--rounds 5] [--seconds 2] [--docker-swarm PROGRAM] [--json FILE]      (3 minutes)

A real cluster of four nodes on this machine, each a network namespace on one wire. The same small program sends and answers everywhere: in
the namespaces of two nodes (the underlay: the limit), and in those of two containers on two nodes: by the task's address, by the virtual
address, and from a third node by a published port, at the node that has the task and at another one. Beside it in the same run, where it
starts, a Docker Swarm's own underlay and overlay (mode dnsrr). All ways take turns in each round.

Both wires, and both overlays, have one MTU: that of the narrower (skep's is as wide as this host's way out). Connections are under cubic,
whatever this host is set to: bbr paces them to what it believes the way can carry, and 10 Gbit/s came out where 25 go through.

out, in     Gbit/s of one TCP connection, to the server and from it, 1 MiB a call
packet      microseconds of CPU for one datagram of 100 bytes of a connection, from a socket here to the other's, which has no room left:
            what the way costs each packet, small or large (a sender of streams gives 64 KB at once). Not the median of its samples but
            the first tenth, which had a CPU for itself. Not by published ports, which are TCP's here
p50, p99    microseconds from one byte sent to one byte received, one connection
connections microseconds for one: connect, one byte from the server, reset, one after another

Each figure is the median of the rounds, with the smallest and largest. `x` compares the medians with the limit: the underlay of the same
cluster, and for what goes by the virtual address the way straight to the task.
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swarms import Swarm, address, arguments, both, fork_within, sandbox, spread, within, write

from skep.datapath import netlink

STREAM, CONNECT = 7001, 7002
BUFFER = 1 << 20
PINGS = 5000
CONNECTIONS = 2000
SLICES, SLICE = 40, 500
CONGESTION = b"cubic"
OVERHEAD = 50
"""What VXLAN takes of the MTU."""
MTU_OPTION = "com.docker.network.driver.mtu"
COLUMNS = {"out Gbit/s": -1, "in Gbit/s": -1, "packet us": 1, "p50 us": 1, "p99 us": 1, "connection us": 1}
"""What is measured, and whether more is worse."""


@dataclass
class Way:
    """From a namespace to a server."""

    swarm: str
    name: str
    source: Path
    target: str
    ports: tuple[int, int]
    limit: str = ""
    datagrams: bool = True
    taken: dict[str, list[float]] = field(default_factory=lambda: {column: [] for column in COLUMNS})


# -- the server


def serve(ports: tuple[int, int]) -> None:
    """The first byte of a connection to the first port says what is wanted: O take all and say how much, I send, P answer each byte, D take
    datagrams at the port that is said."""
    connect = socket.create_server(("", ports[1]), backlog=4096)
    threading.Thread(target=greet, args=(connect,), daemon=True).start()
    stream = socket.create_server(("", ports[0]), backlog=64)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION)
    while True:
        connection, _ = stream.accept()
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


def greet(listening: socket.socket) -> None:
    while True:
        connection, _ = listening.accept()
        with connection:
            connection.send(b"x")


def answer(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    data = bytearray(BUFFER)
    with connection:
        try:
            wanted = connection.recv(1)
            if wanted == b"P":
                while byte := connection.recv(1):
                    connection.send(byte)
            elif wanted == b"I":
                while True:
                    connection.send(data)
            elif wanted == b"D":
                sink(connection)
            else:
                taken = 0
                while count := connection.recv_into(data):
                    taken += count
                connection.send(taken.to_bytes(8, "big"))
        except OSError:
            pass


def sink(connection: socket.socket) -> None:
    """The first datagram is answered; the others stay until there is no room, and are lost then: nobody is woken for them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("", 0))
        connection.send(s.getsockname()[1].to_bytes(2, "big"))
        s.settimeout(20)
        _, peer = s.recvfrom(1)
        s.sendto(b"x", peer)
        connection.recv(1)


@contextmanager
def serving(places: list[tuple[Path, tuple[int, int]]]) -> Iterator[None]:
    children = []
    try:
        for namespace, ports in places:
            children.append(fork_within(namespace, lambda ports=ports: serve(ports)))  # type: ignore[misc]
        yield
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


# -- the client


def reached(target: str, port: int, wanted: bytes) -> socket.socket:
    out = socket.create_connection((target, port), timeout=20)
    out.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    out.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION)
    out.send(wanted)
    return out


def out_rate(target: str, port: int, seconds: float) -> float:
    data = memoryview(bytearray(BUFFER))
    with reached(target, port, b"O") as s:
        begun = time.perf_counter()
        while time.perf_counter() - begun < seconds:
            s.send(data)
        s.shutdown(socket.SHUT_WR)
        taken = int.from_bytes(s.recv(8, socket.MSG_WAITALL), "big")
        return taken * 8 / (time.perf_counter() - begun) / 1e9


def in_rate(target: str, port: int, seconds: float) -> float:
    data, taken = bytearray(BUFFER), 0
    with reached(target, port, b"I") as s:
        begun = time.perf_counter()
        while (passed := time.perf_counter() - begun) < seconds:
            taken += s.recv_into(data)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return taken * 8 / passed / 1e9


def packet(target: str, port: int) -> float:
    data, took = b"x" * 100, []
    with reached(target, port, b"D") as s, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.connect((target, int.from_bytes(s.recv(2, socket.MSG_WAITALL), "big")))
        out.settimeout(20)
        out.send(b"x")
        out.recv(1)
        out.settimeout(None)
        for _ in range(SLICES):
            begun = time.perf_counter()
            for _ in range(SLICE):
                out.send(data)
            took.append((time.perf_counter() - begun) / SLICE)
    return sorted(took)[SLICES // 10] * 1e6


def pings(target: str, port: int) -> tuple[float, float]:
    took = []
    with reached(target, port, b"P") as s:
        for _ in range(PINGS):
            begun = time.perf_counter()
            s.send(b"x")
            s.recv(1)
            took.append(time.perf_counter() - begun)
    took.sort()
    return took[PINGS // 2] * 1e6, took[PINGS * 99 // 100] * 1e6


def connections(target: str, port: int) -> float:
    begun = time.perf_counter()
    for _ in range(CONNECTIONS):
        with socket.create_connection((target, port), timeout=20) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            s.recv(1)
    return (time.perf_counter() - begun) / CONNECTIONS * 1e6


def take(way: Way, seconds: float) -> None:
    stream, connect = way.ports

    def work() -> list[float | None]:
        return [
            out_rate(way.target, stream, seconds),
            in_rate(way.target, stream, seconds),
            packet(way.target, stream) if way.datagrams else None,
            *pings(way.target, stream),
            connections(way.target, connect),
        ]

    for column, value in zip(COLUMNS, within(way.source, work), strict=True):
        if value is not None:
            way.taken[column].append(value)


# -- the ways


def narrowed(swarms: list[Swarm]) -> int:
    """The MTU that all wires have from now on. Only those of a Docker Swarm are made narrower: skep's nodes would have to notice first."""
    here = [within(s.wires[node], lambda a=s.addresses[node]: width(a)) for s in swarms for node in s.nodes]  # type: ignore[misc]
    for swarm in swarms:
        for node in swarm.nodes if swarm.name != "skep" else ():
            within(swarm.wires[node], lambda a=swarm.addresses[node]: width(a, min(here)))  # type: ignore[misc]
    return min(here)


def width(address: str, wanted: int = 0) -> int:
    """The MTU of the interface that has this address; `wanted`: it is set to that."""
    with netlink.Socket() as net:
        index = next(a.device for a in net.addresses() if a.address == address)
        if wanted:
            net.send([netlink.set_link(index, f"{address} mtu {wanted}", mtu=wanted)])
        return next(link.mtu for link in net.links().values() if link.device == index)


def overlay(swarm: Swarm, wire: int) -> str:
    """A network as wide as this wire allows. Docker's option says how wide the wire is, skep's how wide the network."""
    mtu = wire - OVERHEAD if swarm.name == "skep" else wire
    body = {"Name": "traffic", "Driver": "overlay", "Attachable": True, "Options": {MTU_OPTION: str(mtu)}}
    return str(swarm.api("POST", "/networks/create", body)["Id"])


def laid(swarm: Swarm, wire: int) -> tuple[list[Way], list[tuple[Path, tuple[int, int]]]]:
    """Services on two nodes; the ways to measure and where a server must be. The node's own server has ports nobody publishes."""
    near, far, third = swarm.nodes[1:4]
    own, published = (STREAM + 100, CONNECT + 100), (STREAM, CONNECT)
    network = overlay(swarm, wire)
    ports = published if swarm.virtual else ()
    server = swarm.create("server", 1, network=network, node=far, ports=ports)
    client = swarm.create("client", 1, network=network, node=near)
    there, here = swarm.wait(server, 1)[0], swarm.wait(client, 1)[0]
    name, at, task = swarm.name, swarm.wires, address(there, network)
    if (found := within(sandbox(there), lambda: width(task))) != wire - OVERHEAD:
        raise SystemExit(f"bench: {name}: the task's MTU is {found}, and not {wire - OVERHEAD}")
    under, straight = f"{name}: the underlay", f"{name}: overlay, the task's address"
    ways = [
        Way(name, under, at[near], swarm.addresses[far], own),
        Way(name, straight, sandbox(here), task, published, under),
    ]
    if swarm.virtual:
        ways += [
            Way(name, f"{name}: overlay, the virtual address", sandbox(here), swarm.virtual_address(server, network), published, straight),
            Way(name, f"{name}: published port, node of the task", at[third], swarm.addresses[far], published, under, False),
            Way(name, f"{name}: published port, another node", at[third], swarm.addresses[near], published, under, False),
        ]
    return ways, [(at[far], own), (sandbox(there), published)]


def reachable(way: Way) -> None:
    """A new task's names and published ports take a moment to be known; and what is measured must work."""

    def work() -> None:
        end = time.monotonic() + 20
        while True:
            try:
                for port in way.ports:
                    socket.create_connection((way.target, port), timeout=5).close()
                return
            except OSError as error:
                if time.monotonic() > end:
                    raise SystemExit(f"bench: {way.name}: {way.target}: {error}") from None
                time.sleep(0.05)

    within(way.source, work)


def show(ways: list[Way]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    medians = {w.name: {c: statistics.median(t) for c, t in w.taken.items() if t} for w in ways}
    for column, worse in COLUMNS.items():
        print(f"\n{column:<44} {'median (smallest to largest)':<30}     x")
        for way in (w for w in ways if w.taken[column]):
            base = medians.get(way.limit, medians[way.name])[column]
            ratio = (medians[way.name][column] / base) ** worse
            print(f"{way.name:<44} {spread(way.taken[column]):<30} {ratio:5.2f}")
            rows.append({"way": way.name, "what": column, "samples": way.taken[column], "x": round(ratio, 3)})
    return rows


def main() -> int:
    p = arguments(__doc__ or "")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--seconds", type=float, default=2, help="of each throughput measurement")
    args = p.parse_args()
    with both(args.docker_swarm) as swarms:
        ways, servers, wire = [], [], narrowed(swarms)
        print(f"MTU of all wires {wire}, of all overlays {wire - OVERHEAD}")
        for swarm in swarms:
            more, places = laid(swarm, wire)
            ways += more
            servers += places
        with serving(servers):
            for way in ways:
                reachable(way)
            for _ in range(args.rounds):
                for way in ways:
                    take(way, args.seconds)
        write(args.json, show(ways))
    return 0


if __name__ == "__main__":
    sys.exit(main())
