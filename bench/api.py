"""CPU of the API per request: `/_ping`, and 1,000 tasks as JSON (`docker service create` reads its tasks five times a second).

Run: `.venv/bin/python bench/api.py [--tasks 1000] [--requests 200]`. The client runs in a process of its own; what is counted is the CPU
time of the server's process.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import multiprocessing
import os
import random
import socket
import tempfile
import time

from skep.api.server import make_app, serve_unix
from skep.model.enums import TaskState
from skep.model.service import Service
from skep.model.spec import ContainerSpec, ServiceSpec, TaskSpec
from skep.model.tables import NETWORK_BY_NAME
from skep.model.task import Attachment, Task, TaskStatus
from skep.plan.ops import Change, Create
from skep.testing.fake_context import FakeContext, StepClock


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


def ask(path: str, target: str, number: int) -> None:
    connection = UnixConnection(path)
    for _ in range(number):
        connection.request("GET", target)
        connection.getresponse().read()
    connection.close()


async def measure(path: str, target: str, number: int) -> float:
    """Microseconds of CPU per request."""
    process = multiprocessing.get_context("spawn").Process(target=ask, args=(path, target, number))
    warm = multiprocessing.get_context("spawn").Process(target=ask, args=(path, target, 3))
    warm.start()
    await asyncio.to_thread(warm.join)
    process.start()
    before = time.process_time()
    await asyncio.to_thread(process.join)
    return (time.process_time() - before) / number * 1e6


def fill(context: FakeContext, tasks: int) -> None:
    store = context.store
    assert store is not None
    spec = TaskSpec(container_spec=ContainerSpec(image="registry:5000/web:1@sha256:" + "a" * 64, env=("A=1", "B=2"), labels={"c": "v"}))
    service = Service(id="s" * 25, spec=ServiceSpec(name="web", task_template=spec))
    ingress = next(iter(store.find(NETWORK_BY_NAME, "ingress")))
    store.apply([Create(service, "bench")])
    store.apply(
        [
            Create(
                Task(
                    id=f"t{i:024d}",
                    service_id=service.id,
                    service_name="web",
                    slot=i + 1,
                    spec=spec,
                    attachments=(Attachment(network_id=ingress.id, addresses=(f"10.0.{i // 250}.{i % 250 + 2}/24",)),),
                    status=TaskStatus(state=TaskState.RUNNING, message="started", timestamp=context.clock.now()),
                ),
                "bench",
            )
            for i in range(tasks)
        ]
    )
    store.flush()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=200)
    options = parser.parse_args()
    context = FakeContext(StepClock(), random.Random(1))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "api.sock")
        ready = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(serve_unix(make_app(context), path, ready=ready))
            await ready.wait()
            ping = await measure(path, "/_ping", options.requests * 20)
            ask_init = UnixConnection(path)
            await asyncio.to_thread(ask_init.request, "POST", "/swarm/init", "{}", {"Content-Type": "application/json"})
            await asyncio.to_thread(lambda: ask_init.getresponse().read())
            ask_init.close()
            fill(context, options.tasks)
            kept = await measure(path, "/tasks", options.requests)
            polled = await measure(path, '/tasks?filters={"service":{"web":true},"_up-to-date":{"true":true}}', options.requests)
            print(f"/_ping                       {ping:8.0f} us CPU a request")
            print(f"/tasks, {options.tasks} tasks            {kept:8.0f} us (encoded forms kept)")
            print(f"/tasks of a service, polled  {polled:8.0f} us (as `service create` does)")
            await first(context, path, options)
            serving.cancel()


async def first(context: FakeContext, path: str, options: argparse.Namespace) -> None:
    """Every task changed since the last look: nothing kept can be used."""
    store = context.store
    assert store is not None
    spent = 0.0
    for _ in range(5):
        store.apply([Change(Task, task.id, {"start_at": context.clock.now()}, "bench") for task in list(store.all(Task))])
        store.flush()
        process = multiprocessing.get_context("spawn").Process(target=ask, args=(path, "/tasks", 1))
        process.start()
        before = time.process_time()
        await asyncio.to_thread(process.join)
        spent += time.process_time() - before
    print(f"/tasks, all of them changed  {spent / 5 * 1e6:8.0f} us")


if __name__ == "__main__":
    asyncio.run(main())
