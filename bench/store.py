"""What the store costs: durable transactions, batched updates, loading; and one decision's latency over it.

    .venv/bin/python bench/store.py [--dir DIR] [--objects 100000] [--seconds 3]

DIR is where the database is made (default: a temporary directory; a tmpfs would flatter the first two figures). Beside the durable
transactions stands the limit: how often this disk can write 4 KB and fsync, one after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from skep.clock import SECOND
from skep.manager.control import Control, bootstrap_cluster
from skep.manager.controllers import controllers
from skep.manager.loop import Loop
from skep.model.cluster import RootCA
from skep.model.enums import NodeState, TaskState
from skep.model.node import Node, NodeDescription, NodeStatus
from skep.model.service import Service
from skep.model.spec import ContainerSpec, Mode, NodeSpec, Replicated, ServiceSpec, TaskSpec
from skep.model.task import Task, TaskStatus
from skep.plan.ops import Change, Create
from skep.plan.ownership import refuse
from skep.store.memory import MemoryStore
from skep.store.sqlite import SqliteBackend


class Clock:
    def now(self) -> int:
        return time.time_ns()

    async def sleep(self, ns: int) -> None:
        await asyncio.sleep(ns / SECOND)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dir", default=None)
    parser.add_argument("--objects", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=3.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as where:
        path = Path(where)
        limit = fsyncs(path, args.seconds)
        single = durable_transactions(path, args.seconds, 1)
        many = durable_transactions(path, args.seconds, 64)
        show("4 KB write + fsync (the disk's limit)", f"{limit:,.0f}/s")
        show("durable transactions, one client", f"{single:,.0f}/s  ({single / limit:.2f} of the limit)")
        show("durable transactions, 64 clients", f"{many:,.0f}/s  (group commit)")
        show("object updates in batches of 200", f"{batched_updates(path, args.seconds):,.0f}/s")
        load(path, args.objects)
        for replicas in (1, 100, 1000, 10_000):
            decide(path, replicas)


def show(what: str, value: str) -> None:
    print(f"{what:48} {value}", flush=True)


def fsyncs(where: Path, seconds: float) -> float:
    file = os.open(where / "fsync", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    block = os.urandom(4096)

    def once() -> None:
        os.write(file, block)
        os.fdatasync(file)

    try:
        return rate(once, seconds)
    finally:
        os.close(file)


def rate(once: Callable[[], None], seconds: float) -> float:
    begun = time.perf_counter()
    count = 0
    while (elapsed := time.perf_counter() - begun) < seconds:
        once()
        count += 1
    return count / elapsed


def durable_transactions(where: Path, seconds: float, clients: int) -> float:
    """Clients that each wait for their own commit before the next."""
    store = MemoryStore(SqliteBackend(where / f"single{clients}.db"), Clock())
    done = 0

    async def client(number: int, end: float) -> None:
        nonlocal done
        turn = 0
        while time.perf_counter() < end:
            turn += 1
            await store.commit([Create(Service(id=f"{number}-{turn}", spec=spec(f"s{number}-{turn}", 1)), "bench")])
            done += 1

    async def run() -> float:
        begun = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            flusher = group.create_task(store.run())
            async with asyncio.TaskGroup() as all_clients:
                for number in range(clients):
                    all_clients.create_task(client(number, begun + seconds))
            elapsed = time.perf_counter() - begun
            flusher.cancel()
        return done / elapsed

    result = asyncio.run(run())
    store.close()
    return result


def batched_updates(where: Path, seconds: float) -> float:
    store = MemoryStore(SqliteBackend(where / "batch.db"), Clock())
    store.apply([Create(task(number), "bench") for number in range(10_000)])
    store.flush()
    turn = 0

    def once() -> None:
        nonlocal turn
        turn += 1
        status = TaskStatus(state=TaskState.RUNNING, timestamp=turn, applied_at=turn, message="started")
        first = turn * 200 % 10_000
        store.apply([Change(Task, f"task{number:021d}", {"status": status}, "bench") for number in range(first, first + 200)])
        store.flush()

    result = rate(once, seconds) * 200
    store.close()
    return result


def load(where: Path, objects: int) -> None:
    path = where / "load.db"
    store = MemoryStore(SqliteBackend(path), Clock())
    for first in range(0, objects, 10_000):
        store.apply([Create(task(number), "bench") for number in range(first, min(first + 10_000, objects))])
        store.flush()
    store.close()
    size = path.stat().st_size
    del store
    gc.collect()
    memory = resident()
    begun = time.perf_counter()
    store = MemoryStore(SqliteBackend(path), Clock())
    elapsed = time.perf_counter() - begun
    show(f"loading {objects:,} tasks", f"{elapsed:.2f} s, {size / 1e6:.0f} MB on disk, {resident() - memory:+.0f} MB in memory")
    store.close()


def decide(where: Path, replicas: int) -> None:
    """From the user's request to all tasks assigned, in memory; and until that is on disk."""
    clock, rng = Clock(), random.Random(1)
    store = MemoryStore(SqliteBackend(where / f"decide{replicas}.db"), clock, refuse)
    store.apply(bootstrap_cluster(store, cluster_id="c", node_id="n0", root_ca=RootCA(digest="0" * 50), rng=rng), by="control")
    ready = NodeStatus(state=NodeState.READY)
    store.apply(
        [
            Create(Node(id=f"n{n}", spec=NodeSpec(role="worker"), status=ready, description=NodeDescription(hostname=f"n{n}")), "bench")
            for n in range(1, 101)
        ]
    )
    loop = Loop(store, clock, rng, controllers())
    loop.step(clock.now())
    store.flush()
    control = Control(store, clock, rng, "n0")
    asyncio.run(control.create_service(spec("web", replicas)))
    gc.collect()
    begun = time.perf_counter()
    loop.step(clock.now())
    decided = time.perf_counter() - begun
    store.flush()
    durable = time.perf_counter() - begun
    assert sum(t.status.state is TaskState.ASSIGNED for t in store.all(Task)) == replicas
    show(f"create -> assigned, {replicas:,} tasks, 100 nodes", f"{decided * 1e3:.1f} ms, durable after {durable * 1e3:.1f} ms")
    loop.close()
    store.close()


def spec(name: str, replicas: int) -> ServiceSpec:
    return ServiceSpec(
        name=name,
        mode=Mode(replicated=Replicated(replicas=replicas)),
        task_template=TaskSpec(container_spec=ContainerSpec(image="registry:5000/example/echo:latest")),
    )


def task(number: int) -> Task:
    return Task(
        id=f"task{number:021d}",
        service_id=f"service{number % 100}",
        service_name="web",
        slot=number // 100 + 1,
        node_id=f"node{number % 50}",
        spec=TaskSpec(container_spec=ContainerSpec(image="registry:5000/example/echo:latest", env=("A=1", "B=2"))),
        status=TaskStatus(state=TaskState.RUNNING, timestamp=1, applied_at=1, message="started"),
    )


def resident() -> float:
    """MB."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


if __name__ == "__main__":
    main()
