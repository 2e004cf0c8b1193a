"""50 replicas until all run: on an overlay network, and on none. Root; about 1 minute, 4 with Docker.

    sudo .venv/bin/python bench/replicas.py [--replicas 50] [--reps 5] [--docker-swarm PROGRAM] [--json FILE]

A cluster of four nodes on this machine, image present on each; from POST /services/create until the API counts all tasks as running. With
each repetition: no network, then a new overlay network that no node knows yet. Beside it in the same run, in turns, where it starts, a
Docker Swarm (mode dnsrr on its overlay). `stopped`: from DELETE until no engine lists a container that runs. CPU seconds are what the whole
machine used meanwhile, containers too. Each figure is the median of the repetitions, with the smallest and largest.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from swarms import Swarm, arguments, both, spread, write


def machine() -> float:
    """Seconds of CPU that everybody on this machine has used."""
    user, nice, system, _, _, irq, softirq, *_ = (int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def once(swarm: Swarm, replicas: int, networked: bool, number: int) -> dict[str, float]:
    network = swarm.network(f"replicas{number}") if networked else ""
    used, begun = machine(), time.perf_counter()
    service = swarm.create("replicas", replicas, network=network)
    swarm.until(lambda: swarm.running(service) == replicas, f"{replicas} run", 300)
    out = {"running s": time.perf_counter() - begun, "CPU s": machine() - used}
    begun = time.perf_counter()
    swarm.api("DELETE", f"/services/{service}")
    swarm.until(lambda: not swarm.containers(also_stopped=False), "all have stopped")
    out["stopped s"] = time.perf_counter() - begun
    swarm.remove()
    if network:
        swarm.api("DELETE", f"/networks/{network}")
    return out


def main() -> int:
    p = arguments(__doc__ or "")
    p.add_argument("--replicas", type=int, default=50)
    p.add_argument("--reps", type=int, default=5)
    args = p.parse_args()
    taken: dict[tuple[str, bool], list[dict[str, float]]] = {}
    with both(args.docker_swarm) as swarms:
        for swarm in swarms:
            once(swarm, 4, True, 0)
        for number in range(1, args.reps + 1):
            for swarm in swarms:
                for networked in (False, True):
                    taken.setdefault((swarm.name, networked), []).append(once(swarm, args.replicas, networked, number))
    rows: list[dict[str, Any]] = []
    print(f"{f'{args.replicas} replicas':<28}" + "".join(f"{column:<28}" for column in ("running s", "CPU s", "stopped s")))
    for (name, networked), found in taken.items():
        what = f"{name}, {'an overlay' if networked else 'no network'}"
        print(f"{what:<28}" + "".join(f"{spread([f[c] for f in found]):<28}" for c in found[0]))
        rows.append({"what": what, "samples": found, "running_s": statistics.median(f["running s"] for f in found)})
    write(args.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
