"""What one change of the network costs a node, with 1,000 endpoints there. Root; in namespaces of its own; leaves nothing.

    sudo .venv/bin/python bench/datapath.py [ENDPOINTS [NETWORKS [ROUNDS]]]

Twice: all endpoints on ingress with published ports, and spread over 100 networks with a virtual address per service; everything in 5
rounds. Columns: wall and CPU milliseconds of one call, the median of all, with the smallest and largest median of a round. Beside ours: the
same thousand routes by `ip -batch`, and one nft update by the nft program, which is what a data path without the libraries would do. What
passes is measured by traffic.py.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import after
import msgspec
from swarms import within

from skep.datapath import netlink, netns, nft
from skep.datapath.base import Place, Snapshot
from skep.datapath.desired import Here, desired
from skep.datapath.path import KernelDatapath
from skep.model.assignment import DiscoveryItem, EndpointItem, NetworkItem, PeerItem, ServiceItem
from skep.model.network import Network
from skep.model.spec import IPAMConfig, NetworkSpec, PortConfig

NODES, PER_SERVICE = 20, 10


class Clock:
    def now(self) -> int:
        return time.time_ns()

    async def sleep(self, ns: int) -> None:
        raise NotImplementedError


def timed(call: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return (time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3


TAKEN: dict[str, dict[str, list[list[tuple[float, float]]]]] = {}
"""By section and what: the calls of each round."""


def show() -> None:
    for section, whats in TAKEN.items():
        print(f"{section:<62} {'wall ms':<28} CPU ms")
        for what, rounds in whats.items():
            columns = []
            for i in (0, 1):
                middles = [statistics.median(c[i] for c in calls) for calls in rounds]
                whole = statistics.median(c[i] for calls in rounds for c in calls)
                columns.append(f"{whole:.2f} ({min(middles):.2f} to {max(middles):.2f})")
            print(f"{what:<62} {columns[0]:<28} {columns[1]}")


def network(number: int) -> Network:
    name = f"net{number}" if number else "ingress"
    return Network(
        id=name,
        spec=NetworkSpec(name=name, ingress=not number),
        ipam=(IPAMConfig(subnet=f"10.{number}.0.0/16", gateway=f"10.{number}.0.1"),),
        vni=4096 + number,
    )


def world(count: int, networks: int = 0) -> Snapshot:
    """On ingress, with a published port per service; or spread over so many networks, with a virtual address per service."""
    nets = [network(n) for n in range(networks + 1)]
    peers = [PeerItem(node_id=f"n{i}", index=i, address=f"192.168.9.{i}") for i in range(1, NODES + 1)]
    endpoints = [
        EndpointItem(
            task_id=f"t{i}",
            service_id=f"s{i // PER_SERVICE}",
            network_id=nets[home(i, networks)].id,
            node_id=f"n{2 + i % (NODES - 1)}",
            address=f"10.{home(i, networks)}.{1 + i // 250}.{i % 250 + 2}",
        )
        for i in range(count)
    ]
    services = [
        ServiceItem(
            service_id=f"s{i}",
            name=f"s{i}",
            ports=(PortConfig(protocol="tcp", target_port=80, published_port=20000 + i, publish_mode="ingress"),),
        )
        for i in range(-(-count // PER_SERVICE) if not networks else 0)
    ]
    known = [
        DiscoveryItem(
            service_id=f"s{i}",
            network_id=nets[home(i * PER_SERVICE, networks)].id,
            name=f"s{i}",
            vip=f"10.{home(i * PER_SERVICE, networks)}.250.{i // networks + 2}",
        )
        for i in range(-(-count // PER_SERVICE) if networks else 0)
    ]
    return Snapshot(
        node_id="n1",
        networks={f"network/{n.id}": NetworkItem(network=n) for n in nets},
        peers={p.node_id: p for p in peers},
        endpoints={e.key: e for e in endpoints},
        services={s.key: s for s in services},
        discovery={d.key: d for d in known},
    )


def home(endpoint: int, networks: int) -> int:
    """All of a service are on one network; 0 is ingress."""
    return 1 + endpoint // PER_SERVICE % networks if networks else 0


def changed(snapshot: Snapshot, i: int, **fields: object) -> Snapshot:
    keys = list(snapshot.endpoints)
    key = keys[i % len(keys)]
    one = msgspec.structs.replace(snapshot.endpoints[key], **fields)
    return msgspec.structs.replace(snapshot, endpoints={**snapshot.endpoints, key: one})


def bench(count: int, networks: int, folder: Path) -> None:
    with netlink.Socket() as net:
        net.send([netlink.set_link(1, "lo", up=True), netlink.address(1, "192.168.9.1", 32)])
    path = KernelDatapath("bench", folder / "run", "192.168.9.1", clock=Clock())
    snapshot = world(count, networks)
    where = f"{networks} networks" if networks else "ingress"
    table = TAKEN.setdefault(f"{count} endpoints of {count // PER_SERVICE} services on {where}, {NODES} nodes", {})

    def report(what: str, calls: list[tuple[float, float]]) -> None:
        table.setdefault(what, []).append(calls)

    report("start up", [timed(path._start_up)])
    report("the first snapshot: everything", [timed(lambda: path._apply(snapshot))])
    report("nothing changed", [timed(lambda: path._apply(snapshot)) for _ in range(20)])
    off = [changed(snapshot, i, serving=False) for i in range(0, 100, 10)]
    both = [timed(lambda s=s: path._apply(s)) for o in off for s in (o, snapshot)]
    report("one endpoint leaves the maps", both[::2])
    report("one endpoint comes back", both[1::2])
    moved = [changed(snapshot, i, node_id=f"n{2 + (i + 5) % (NODES - 1)}") for i in range(10)]
    there = [timed(lambda s=s: path._apply(s)) for m in moved for s in (m, snapshot)]
    report("one endpoint moves to another node", there)
    report(
        "  of these: the decision (desired)",
        [timed(lambda: desired(snapshot, Here(address="192.168.9.1"), (), (), path._memo)) for _ in range(10)],
    )
    path._compare(mend=True)
    report("compare when nobody has touched anything", [timed(lambda: path._compare(mend=True)) for _ in range(20)])
    report("compare everything with the kernel, mend nothing", [timed(lambda: compare(path)) for _ in range(5)])
    places = [(f"c{i}", (Place(network_id="ingress", address=f"10.0.200.{i + 2}/16", gateway="10.0.0.1"),)) for i in range(100)]
    report("a sandbox made and wired (of 100)", [timed(lambda n=n, p=p: path._attach(n, p, None)) for n, p in places])
    report("a sandbox removed", [timed(lambda n=n: path._detach(n)) for n, _ in places])
    if not networks:
        others(path, snapshot, report)
    report("destroy", [timed(path._destroy)])


def compare(path: KernelDatapath) -> None:
    path._trusted = False
    assert path._compare(mend=True) == []


def others(path: KernelDatapath, snapshot: Snapshot, report: Callable[[str, list[tuple[float, float]]], None]) -> None:
    router = path._router
    lines = [f"route replace {e.address}/32 via 169.254.0.2 dev vx4096 onlink" for e in snapshot.endpoints.values()]
    command = ["ip", "-batch", "-"]

    def run(command: list[str], text: str) -> None:
        with netns.entered(router.fd):
            subprocess.run(command, input=text, text=True, check=True, capture_output=True)

    report("for comparison: the routes by `ip -batch` (wall only)", [timed(lambda: run(command, "\n".join(lines)))])
    text = f"flush chain ip {router.table} p_tcp_20000\n" + "\n".join(
        f"add rule ip {router.table} p_tcp_20000 meta l4proto tcp dnat to 10.0.1.{i}:80" for i in range(2, 3)
    )
    program = nft.rules(router.fd, library=False)
    report("for comparison: one update by the nft program (wall only)", [timed(lambda: program.run(text + "\n")) for _ in range(5)])


def main() -> None:
    count, networks, rounds = (int(x) for x in (*sys.argv[1:], *("1000", "100", "5")[len(sys.argv) - 1 :]))
    folder = Path(tempfile.gettempdir()) / f"skbench{os.getpid()}"
    with after.cleared(["folder", str(folder)]):
        folder.mkdir()
        for number in range(rounds):
            for one in (0, networks):
                in_a_namespace(folder / f"{number}-{one}", lambda at, one=one: bench(count, one, at))  # type: ignore[misc]
    show()


def in_a_namespace(folder: Path, call: Callable[[Path], None]) -> None:
    folder.mkdir()
    pin = folder / "ns"
    netns.make(pin)
    try:
        within(pin, lambda: call(folder))
    finally:
        netns.remove(pin)


if __name__ == "__main__":
    main()
