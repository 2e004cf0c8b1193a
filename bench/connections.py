"""How many TCP connections a second pass through a virtual address and through the mesh, against the direct way. Root; two nodes in
namespaces of their own on one wire; leaves nothing.

    .venv/bin/python bench/connections.py [CONNECTIONS]

One client after another: connect, one byte from the server, reset. All ways in turns, three rounds, the median of each; `x` is the time
of one connection against the direct way: for published ports the wire, for virtual addresses the overlay.
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from skep.datapath import netlink, netns
from skep.datapath.base import Place, Snapshot
from skep.datapath.path import KernelDatapath
from skep.model.assignment import DiscoveryItem, EndpointItem, NetworkItem, PeerItem, ServiceItem
from skep.model.network import Network
from skep.model.spec import IPAMConfig, NetworkSpec, PortConfig

ROUNDS = 3
T = TypeVar("T")


class Clock:
    def now(self) -> int:
        return time.time_ns()

    async def sleep(self, ns: int) -> None:
        raise NotImplementedError


def within(path: Path, call: Callable[[], T]) -> T:
    out: list[T] = []

    def body() -> None:
        fd = netns.opened(path)
        with netns.entered(fd):
            out.append(call())
        os.close(fd)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    return out[0]


def serve(port: int) -> int:
    """A process that answers each connection with a byte; gives back its id."""
    listening = socket.create_server(("", port), backlog=4096)
    child = os.fork()
    if child:
        listening.close()
        return child
    while True:
        connection, _ = listening.accept()
        connection.send(b"x")
        connection.close()


def rate(address: str, port: int, count: int) -> float:
    """Microseconds a connection."""
    begun = time.perf_counter()
    for _ in range(count):
        with socket.create_connection((address, port), timeout=10) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            s.recv(1)
    return (time.perf_counter() - begun) / count * 1e6


def lay(folder: Path, names: dict[str, str]) -> dict[str, Path]:
    """Namespaces by name with these addresses, on a bridge in one of its own."""
    pins = {name: folder / name for name in ("wire", *names)}
    for pin in pins.values():
        netns.make(pin)
    within(pins["wire"], lambda: wire_up())
    for name, address in names.items():
        fd = netns.opened(pins[name])
        within(pins["wire"], lambda name=name, fd=fd: plug(name, fd))  # type: ignore[misc]
        os.close(fd)
        within(pins[name], lambda address=address: settle(address))  # type: ignore[misc]
    return pins


def wire_up() -> None:
    with netlink.Socket() as net:
        net.send([netlink.new_bridge("br0", mtu=1500)])


def plug(name: str, fd: int) -> None:
    with netlink.Socket() as net:
        net.send([netlink.new_veth(name, peer="eth0", peer_namespace=fd)])
        net.send([netlink.set_link(net.index(name), name, master=net.index("br0"))])


def settle(address: str) -> None:
    with netlink.Socket() as net:
        index = net.index("eth0")
        net.send([netlink.set_link(1, "lo", up=True), netlink.set_link(index, "eth0", up=True), netlink.address(index, address, 24)])


def world(node: str) -> Snapshot:
    nets = [
        Network(
            id=name,
            spec=NetworkSpec(name=name, ingress=not number),
            ipam=(IPAMConfig(subnet=f"10.0.{number}.0/24", gateway=f"10.0.{number}.1"),),
            vni=4096 + number,
        )
        for number, name in enumerate(("ingress", "net1"))
    ]
    ends = [
        EndpointItem(task_id=a, service_id=s, network_id=n, node_id=f"n{i}", address=a)
        for s, n, i, a in (("web", "ingress", 2, "10.0.0.20"), ("web", "net1", 2, "10.0.1.20"), ("caller", "net1", 1, "10.0.1.10"))
    ]
    port = PortConfig(protocol="tcp", target_port=80, published_port=8080, publish_mode="ingress")
    service, known = (
        ServiceItem(service_id="web", name="web", ports=(port,)),
        DiscoveryItem(service_id="web", network_id="net1", name="web", vip="10.0.1.2"),
    )
    return Snapshot(
        node_id=node,
        networks={n.id: NetworkItem(network=n) for n in nets},
        peers={f"n{i}": PeerItem(node_id=f"n{i}", index=i, address=f"192.168.77.{i}") for i in (1, 2)},
        endpoints={e.key: e for e in ends},
        services={service.key: service},
        discovery={known.key: known},
    )


def bench(folder: Path, count: int) -> None:
    pins = lay(folder, {"n1": "192.168.77.1", "n2": "192.168.77.2", "client": "192.168.77.9"})
    paths = {n: KernelDatapath(f"b{os.getpid()}-{n}", folder / f"run-{n}", f"192.168.77.{n[1:]}", clock=Clock()) for n in ("n1", "n2")}
    places = {"n1": {"caller": "net1/10.0.1.10"}, "n2": {"web": "net1/10.0.1.20", "in": "ingress/10.0.0.20"}}
    servers: list[int] = []
    try:
        for name, path in paths.items():
            within(pins[name], path._start_up)
            within(pins[name], lambda path=path, name=name: path._apply(world(name)))  # type: ignore[misc]
            for sandbox, place in places[name].items():
                network, _, address = place.partition("/")
                one = Place(network_id=network, address=f"{address}/24", gateway=address.rpartition(".")[0] + ".1")
                within(pins[name], lambda path=path, s=sandbox, p=one: path._attach(s, (p,), None))  # type: ignore[misc]
            within(pins[name], lambda path=path, name=name: path._apply(world(name)))  # type: ignore[misc]
        inside = {s: folder / f"run-{n}" / "netns" / s for n in places for s in places[n]}
        servers += [
            within(inside["web"], lambda: serve(80)),
            within(inside["in"], lambda: serve(80)),
            within(pins["n2"], lambda: serve(99)),
        ]
        ways = {
            "the wire itself, no overlay": (pins["client"], "192.168.77.2", 99),
            "overlay, straight to the other node's task": (inside["caller"], "10.0.1.20", 80),
            "overlay, by the virtual address": (inside["caller"], "10.0.1.2", 80),
            "published port, at the node that has the task": (pins["client"], "192.168.77.2", 8080),
            "published port, at the other node": (pins["client"], "192.168.77.1", 8080),
        }
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, (source, address, port) in ways.items():
                taken[way].append(within(source, lambda a=address, p=port: rate(a, p, count)))  # type: ignore[misc]
        print(f"{f'{count} connections, one after another':<52}     us     /s      x")
        direct = {w: statistics.median(t) for w, t in taken.items()}
        for way, us in direct.items():
            base = direct["the wire itself, no overlay" if "overlay," not in way else "overlay, straight to the other node's task"]
            print(f"{way:<52} {us:6.0f} {1e6 / us:6.0f} {us / base:6.2f}")
    finally:
        for child in servers:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        for name, path in paths.items():
            within(pins[name], path._destroy)
        for pin in pins.values():
            netns.remove(pin)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    with tempfile.TemporaryDirectory(prefix="skbench") as folder:
        bench(Path(folder), count)


if __name__ == "__main__":
    main()
