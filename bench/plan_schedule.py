"""How many tasks a second the scheduler and the allocator plan, on few nodes and on many. Pure planning: nothing is written.

.venv/bin/python bench/plan_schedule.py [TASKS]
"""

from __future__ import annotations

import gc
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "plan"))

from placing_world import World, port  # noqa: E402

from skep.model.enums import TaskState  # noqa: E402
from skep.model.spec import IPAMConfig, IPAMOptions  # noqa: E402
from skep.model.task import Task, TaskStatus  # noqa: E402
from skep.plan.allocate import Allocation, plan_allocate  # noqa: E402
from skep.plan.ops import Create, Plan  # noqa: E402
from skep.plan.schedule import plan_schedule  # noqa: E402


def world(nodes: int) -> World:
    w = World()
    w.cluster()
    for n in range(nodes):
        w.node(f"n{n}", cpus=1000, memory=1 << 50, labels={"rack": str(n % 7)})
    w.network("ingress", ingress=True, ipam_options=IPAMOptions(configs=(IPAMConfig(subnet="10.0.0.0/16"),)))
    w.allocate()
    return w


def fill(w: World, services: int, each: int, state: TaskState, **fields: object) -> None:
    for s in range(services):
        service = w.service(f"s{s}", **fields)  # type: ignore[arg-type]
        status = TaskStatus(state=state, message="created")
        spec = service.spec.task_template
        w.store.apply(
            Create(Task(id=f"s{s}t{n}", service_id=service.id, slot=n + 1, spec=spec, spec_version=1, status=status), "bench")
            for n in range(each)
        )


def measure(what: str, tasks: int, plan: Callable[[], Plan]) -> None:
    best = float("inf")
    for _ in range(5):
        gc.collect()
        begin = time.perf_counter()
        found = plan()
        best = min(best, time.perf_counter() - begin)
    assert len(found.ops) >= min(1, tasks)
    print(f"{what:<62} {best * 1e3:8.1f} ms {tasks / best / 1e3:8.0f}k tasks/s", flush=True)


def main() -> None:
    gc.set_threshold(50000, 50, 1000)
    tasks = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    for nodes in (4, 1000):
        for what, services, fields in (
            ("one service", 1, {}),
            (
                "one service, CPU reserved, constraint, spread",
                1,
                {"cpus": 0.01, "constraints": ["node.role!=manager"], "spread": ["node.labels.rack"]},
            ),
            (f"{tasks // 10} services of 10", tasks // 10, {}),
        ):
            w = world(nodes)
            fill(w, services, tasks // services, TaskState.PENDING, **fields)
            measure(f"schedule {tasks} tasks on {nodes} nodes, {what}", tasks, lambda w=w: plan_schedule(w.store, 0, random.Random(1)))
    w = world(4)
    fill(w, 1, tasks, TaskState.NEW)
    measure(f"allocate {tasks} tasks without a network", tasks, lambda: plan_allocate(w.store, 0, Allocation()))
    w = world(4)
    fill(w, 1, tasks, TaskState.NEW, ports=[port(80)])
    measure(f"allocate {tasks} tasks on ingress", tasks, lambda: plan_allocate(w.store, 0, Allocation()))
    w.allocate()
    fill_one(w)
    w.mark()
    measure(f"allocate one more beside {tasks} on ingress, warm", 1, lambda: plan_allocate(w.store, 0, w.allocation))


def fill_one(w: World) -> None:
    w.task("more", "s0")


if __name__ == "__main__":
    main()
