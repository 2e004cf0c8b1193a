"""What the resolver of a node costs: CPU per question, latency, a change, a container. Root; in namespaces of its own; leaves nothing.

    sudo .venv/bin/python bench/dns.py [SERVICES [ROUNDS]]

CPU is that of the resolver's process alone (user and system, of which most is the kernel's for two system calls and loopback), so
`per core` is what one core could answer; the client runs beside it and is not counted. Beside it: dnslib reading such a question and
writing its answer, without any socket. All questions take turns in 5 rounds; the median, with the smallest and largest.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import after
import dnslib
from swarms import spread, within

from skep.datapath import netlink, netns
from skep.datapath.base import LocalState, Resolving, Sandbox, Snapshot
from skep.datapath.resolving import ResolverNames
from skep.datapath.tables import tables
from skep.model.assignment import DiscoveryItem, EndpointItem, NetworkItem
from skep.model.network import Network
from skep.model.spec import IPAMConfig, NetworkSpec

QUESTIONS, WINDOW = 20000, 16
TICK = os.sysconf("SC_CLK_TCK")


def cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def rss(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4 / 1024


def world(count: int) -> Snapshot:
    network = Network(id="net", spec=NetworkSpec(name="net"), ipam=(IPAMConfig(subnet="10.0.0.0/16", gateway="10.0.0.1"),), vni=4096)
    services = [DiscoveryItem(service_id=f"s{i}", network_id="net", name=f"s{i}", vip=f"10.0.{i // 250}.{i % 250}") for i in range(count)]
    services.append(DiscoveryItem(service_id="ten", network_id="net", name="ten"))
    tasks = [(f"s{i}", 1, f"10.0.{100 + i // 250}.{i % 250}") for i in range(count)] + [("ten", i, f"10.0.200.{i}") for i in range(1, 11)]
    endpoints = [
        EndpointItem(task_id=f"{n}x{s}", service_id=n, network_id="net", node_id="n", address=a, names=(f"{n}.{s}.{n}x{s}", f"{s}.{n}"))
        for n, s, a in tasks
    ]
    item = NetworkItem(network=network)
    return Snapshot(
        version=1,
        networks={item.key: item},
        endpoints={e.key: e for e in endpoints},
        discovery={d.key: d for d in services},
    )


def lay(path: Path) -> None:
    netns.make(path)

    def call() -> None:
        with netlink.Socket() as net:
            net.send([netlink.set_link(1, "lo", up=True)])

    within(path, call)


def client(data: list[bytes], window: int, took: list[float]) -> None:
    """`window` questions at a time are on the way."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect(("127.0.0.11", 53))
        s.settimeout(5)
        for start in range(0, len(data), window):
            part = data[start : start + window]
            begun = time.perf_counter()
            for message in part:
                s.send(message)
            for _ in part:
                s.recv(4096)
            took.append(time.perf_counter() - begun)


def measure(pid: int, path: Path, make: Callable[[int], bytes], count: int = QUESTIONS) -> tuple[float, ...]:
    """CPU microseconds of a question, questions a second here, and microseconds to the answer of one asked alone, p50 and p99."""
    data = [make(i) for i in range(count)]
    latency: list[float] = []
    within(path, lambda: client(data[: count // 10], 1, latency))
    took: list[float] = []
    before, begun = cpu(pid), time.perf_counter()
    within(path, lambda: client(data, WINDOW, took))
    wall, used = time.perf_counter() - begun, cpu(pid) - before
    latency.sort()
    middle, late = latency[len(latency) // 2] * 1e6, latency[len(latency) * 99 // 100] * 1e6
    return used / count * 1e6, count / wall, middle, late


def question(name: str, kind: str = "A") -> Callable[[int], bytes]:
    packed = dnslib.DNSRecord.question(name, kind).pack()
    return lambda i: i.to_bytes(2, "big", signed=False)[-2:] + packed[2:] if i < 65536 else packed


def mixed(name: str) -> Callable[[int], bytes]:
    """Another length of answer taken each time, so that no ready answer fits."""

    def make(i: int) -> bytes:
        asked = dnslib.DNSRecord.question(name)
        asked.add_ar(dnslib.EDNS0(udp_len=1000 + i % 3000))
        return asked.pack()

    return make


def library(count: int) -> float:
    """CPU microseconds."""
    packed = dnslib.DNSRecord.question("ten").pack()
    begun = time.process_time()
    for _ in range(500):
        reply = dnslib.DNSRecord.parse(packed).reply()
        for i in range(count):
            reply.add_answer(dnslib.RR("ten", rdata=dnslib.A(f"10.0.200.{i}"), ttl=0))
        reply.pack()
    return (time.process_time() - begun) / 500 * 1e6


WORK = (
    ("A, 1 record, ready", question("s7")),
    ("A, 10 records, ready", question("ten")),
    ("AAAA of a known name, ready", question("s7", "AAAA")),
    ("A, 1 record, not ready", mixed("s7")),
    ("A, 10 records, not ready", mixed("ten")),
    ("a name of the cluster that means nothing", question("tasks.nobody")),
)


async def questions(pid: int, place: Path, rounds: int) -> None:
    loop = asyncio.get_running_loop()
    taken: dict[str, list[tuple[float, ...]]] = {what: [] for what, _ in WORK}
    alone: dict[int, list[float]] = {1: [], 10: []}
    for _ in range(rounds):
        for what, make in WORK:
            taken[what].append(await loop.run_in_executor(None, measure, pid, place, make))
        for records, found in alone.items():
            found.append(library(records))
    heads = ("CPU us", "q/s here", "p50 us", "p99 us")
    print(f"\n{'question':<42} {'per core':>8}  " + "".join(f"{head:<27}" for head in heads))
    for what, found in taken.items():
        columns = list(zip(*found, strict=True))
        print(f"{what:<42} {1e6 / max(statistics.median(columns[0]), 0.1):8.0f}  " + "".join(f"{spread(list(c)):<27}" for c in columns))
    for records, values in alone.items():
        print(f"{f'dnslib alone, A, {records} record' + 's' * (records > 1):<52} {spread(values)}")


async def run(folder: Path, count: int, rounds: int) -> None:
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    names = ResolverNames(folder / "run", resolvers=folder / "resolv.conf")
    begun = time.perf_counter()
    await names.start_up()
    line = names._line
    assert line is not None
    pid = line.pid
    print(f"start {1e3 * (time.perf_counter() - begun):.0f} ms, {rss(pid):.1f} MB")
    snapshot = world(count)
    begun = time.perf_counter()
    await names.apply(snapshot)
    print(f"{count} services told in {1e3 * (time.perf_counter() - begun):.1f} ms, {rss(pid):.1f} MB")
    times = []
    for i in range(20):
        item = DiscoveryItem(service_id="new", network_id="net", name=f"new{i}", vip="10.0.250.1")
        begun = time.perf_counter()
        await names.apply(Snapshot(version=2 + i, **{**_fields(snapshot), "discovery": {**snapshot.discovery, item.key: item}}))
        times.append(time.perf_counter() - begun)
    begun = time.perf_counter()
    tables(snapshot, LocalState())
    print(f"one change among them {1e3 * statistics.median(times):.1f} ms (all tables anew {1e3 * (time.perf_counter() - begun):.1f} ms)")
    pins = [folder / f"s{i}" for i in range(200)]
    for pin in pins:
        lay(pin)
    try:
        before, used, times = rss(pid), cpu(pid), []
        for pin in pins:
            begun = time.perf_counter()
            await names.serve(Sandbox(id=pin.name, path=str(pin)), ("net",), Resolving(own_names=("me",)))
            times.append(time.perf_counter() - begun)
        times.sort()
        print(
            f"a container: {1e3 * times[100]:.2f} ms ({1e3 * times[198]:.2f} at p99), CPU {(cpu(pid) - used) / 200 * 1e3:.2f} ms, "
            f"{(rss(pid) - before) / 200 * 1024:.1f} KB; with 200 of them {rss(pid):.1f} MB"
        )
        begun = time.perf_counter()
        assert not await names.compare()
        print(f"compare of 200 containers {1e3 * (time.perf_counter() - begun):.0f} ms")
        await questions(pid, pins[0], rounds)
    finally:
        await names.destroy()
        for pin in pins:
            netns.remove(pin)


def _fields(snapshot: Snapshot) -> dict[str, object]:
    return {"networks": snapshot.networks, "endpoints": snapshot.endpoints}


def main() -> None:
    count, rounds = (int(x) for x in (*sys.argv[1:], *("1000", "5")[len(sys.argv) - 1 :]))
    folder = Path(f"/run/skbench{os.getpid()}")
    with after.cleared(["folder", str(folder)]):
        folder.mkdir()
        asyncio.run(run(folder, count, rounds))


if __name__ == "__main__":
    main()
