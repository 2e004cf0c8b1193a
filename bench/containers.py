"""Starting containers: through the engine, beside the bare runtimes on the same machine in the same run.

    python bench/containers.py [--counts 1,20,100] [--reps 5] [--json OUT]      (as root)

The limits: `crun run -d` with the compiled seccomp filter (in the private cgroup view where the host needs it) and `runc run -d`, each
with an overlay root (layers on disk; bundle and state on a tmpfs, as /run is), its own namespaces, cgroups and limits, from as many
threads as the engine uses. Engine: create and start, image present, no network attached, through conmon. Variants take turns within each
repetition, so that a busy moment hits them all. CPU time is that of a cgroup of our own: this process, the runtimes and the conmons;
not what runs in the containers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "integration"))

from engine_fixture import Bench, config  # noqa: E402

from skep.engine.base import ContainerConfig, Limits  # noqa: E402
from skep.engine.oci import bundle, conmon, kernel, runtime, spec  # noqa: E402
from skep.engine.oci.hostfacts import host_facts  # noqa: E402
from skep.engine.oci.users import Identity  # noqa: E402

LIMITS = Limits(nano_cpus=1_000_000_000, memory=64 << 20, pids=100)


def wanted() -> ContainerConfig:
    return config("sleep", "100000", limits=LIMITS)


class Meter:
    """CPU seconds of a cgroup that this process and all it starts are in."""

    def __init__(self, name: str) -> None:
        two = runtime.cgroup2()
        root = Path("/sys/fs/cgroup" if two else "/sys/fs/cgroup/cpuacct")
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = next(line.split(":", 2)[2] for line in lines if two or "cpuacct" in line.split(":")[1].split(","))
        self._home, self._folder, self._two = root / own.strip("/"), root / name, two
        self._folder.mkdir()
        (self._folder / "cgroup.procs").write_text(str(os.getpid()))

    def read(self) -> float:
        if self._two:
            return int((self._folder / "cpu.stat").read_text().split()[1]) / 1e6
        return int((self._folder / "cpuacct.usage").read_text()) / 1e9

    def close(self) -> None:
        (self._home / "cgroup.procs").write_text(str(os.getpid()))
        for _ in range(100):
            try:
                self._folder.rmdir()
                return
            except OSError:
                time.sleep(0.05)


class Bare:
    """`RUNTIME run -d`, without conmon and without us."""

    def __init__(self, name: str, bench: Bench) -> None:
        self.name = f"bare {name}"
        self._root = bench.folder / f"bare-{name}"
        self._root.mkdir()
        kernel.mount("tmpfs", str(self._root), "tmpfs")
        self._disk = bench.folder / f"disk-{name}"
        self._layer = bench.layers[0]
        self._runtime = runtime.choose(name, self._prepared(), bench.cgroup)
        self._cgroup = f"{bench.cgroup}/bare-{name}"
        self._host = host_facts()
        self._filters = bundle.Filters(self._runtime)
        width = 2 * (os.cpu_count() or 1)
        self._mounts = ThreadPoolExecutor(width)
        self._pool = ThreadPoolExecutor(width, initializer=runtime.enter, initargs=(self._runtime.namespace,))

    def _prepared(self) -> Path:
        kernel.make_shared_root(str(self._root))
        return self._root

    def _bundle(self, made: ContainerConfig) -> None:
        folder = self._root / made.id
        disk = self._disk / made.id
        for path in (disk / "upper", disk / "work", folder / "rootfs"):
            path.mkdir(parents=True)
        options = f"lowerdir={self._layer},upperdir={disk}/upper,workdir={disk}/work"
        kernel.mount("overlay", str(folder / "rootfs"), "overlay", 0, options)
        oci, annotations = self._filters.of(made, spec.CAPABILITIES)
        paths = spec.Paths(rootfs=str(folder / "rootfs"), cgroup=f"{self._cgroup}/{made.id}")
        document = spec.oci_spec(made, Identity(), paths, self._host, seccomp=oci, annotations=annotations)
        (folder / "config.json").write_bytes(msgspec.json.encode(document))

    def _run(self, *arguments: str) -> None:
        command = [*self._runtime.command(self._root / "state"), *arguments]
        null = subprocess.DEVNULL
        subprocess.run(command, check=True, stdin=null, stdout=null, stderr=null, env=conmon.environment())

    async def start(self, made: ContainerConfig) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._mounts, self._bundle, made)
        await loop.run_in_executor(self._pool, self._run, "run", "-d", "--bundle", str(self._root / made.id), made.id)

    async def remove(self, made: ContainerConfig) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._pool, self._run, "delete", "--force", made.id)
        await loop.run_in_executor(self._mounts, kernel.umount, str(self._root / made.id / "rootfs"))
        for root in (self._root, self._disk):
            await loop.run_in_executor(self._mounts, shutil.rmtree, root / made.id)

    async def close(self) -> None:
        self._pool.shutdown()
        self._mounts.shutdown()
        runtime.release_view(self._root)
        for _ in range(2):
            kernel.umount(str(self._root))


class Ours:
    def __init__(self, name: str, bench: Bench) -> None:
        self.name = f"engine ({name})"
        bench.runtime = name
        bench.data, bench.run = bench.folder / f"d-{name}", bench.folder / f"r-{name}"
        bench.run.mkdir()
        kernel.mount("tmpfs", str(bench.run), "tmpfs")
        self._run = str(bench.run)
        self.engine = bench.engine()

    async def start(self, made: ContainerConfig) -> None:
        await self.engine.create(made)
        await self.engine.start(made.id)

    async def remove(self, made: ContainerConfig) -> None:
        await self.engine.remove(made.id, force=True)

    async def close(self) -> None:
        await self.engine.destroy()
        kernel.umount(self._run)


async def all_at_once(work: Callable[[ContainerConfig], Any], made: list[ContainerConfig]) -> None:
    async with asyncio.TaskGroup() as group:
        for one in made:
            group.create_task(work(one))


async def measure(variants: list[Any], counts: list[int], reps: int, cpu: Callable[[], float]) -> list[dict[str, Any]]:
    rows: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for count in counts:
        for _ in range(reps):
            for variant in variants:
                made = [wanted() for _ in range(count)]
                begin, spent = time.perf_counter(), cpu()
                await all_at_once(variant.start, made)
                rows.setdefault((variant.name, count), []).append((time.perf_counter() - begin, cpu() - spent))
                await all_at_once(variant.remove, made)
    found = []
    for (name, count), values in rows.items():
        walls = sorted(wall for wall, _ in values)
        cpus = statistics.median(spent for _, spent in values)
        row = {"variant": name, "count": count, "median_s": statistics.median(walls), "min_s": walls[0], "max_s": walls[-1]}
        found.append({**row, "ms_each": 1000 * statistics.median(walls) / count, "cpu_ms_each": 1000 * cpus / count, "reps": len(walls)})
    return found


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    times = {(row["variant"], row["count"]): row for row in rows}
    pairs = (("engine (crun)", "bare crun", "x_bare_crun"), ("engine (runc)", "bare runc", "x_bare_runc"))
    for ours, bare, name in pairs:
        for row in rows:
            limit = times.get((bare, row["count"]))
            if row["variant"] == ours and limit is not None:
                row[name] = row["median_s"] / limit["median_s"]
                row[f"{name}_cpu"] = row["cpu_ms_each"] / limit["cpu_ms_each"]
    return rows


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", default="1,20,100")
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--runtimes", default="crun,runc")
    parser.add_argument("--json", default="")
    asked = parser.parse_args()
    bench = Bench()
    variants: list[Any] = []
    meter = Meter(f"{bench.folder.name}-meter")
    try:
        for name in asked.runtimes.split(","):
            ours = Ours(name, bench)
            await ours.engine.start_up()
            variants += [ours, Bare(name, bench)]
        rows = with_ratios(await measure(variants, [int(count) for count in asked.counts.split(",")], asked.reps, meter.read))
        print(f"{'variant':16} {'n':>4} {'median s':>9} {'min':>7} {'max':>7} {'ms each':>8} {'cpu ms':>7}  times bare (wall, cpu)")
        for row in rows:
            ratio = next((f"{row[k]:.2f} {row[k + '_cpu']:.2f}" for k in ("x_bare_crun", "x_bare_runc") if k in row), "")
            values = f"{row['median_s']:9.3f} {row['min_s']:7.3f} {row['max_s']:7.3f} {row['ms_each']:8.1f} {row['cpu_ms_each']:7.1f}"
            print(f"{row['variant']:16} {row['count']:4} {values}  {ratio}")
        if asked.json:
            document = {"rows": rows, "load": os.getloadavg(), "cpus": os.cpu_count(), "kernel": os.uname().release}
            Path(asked.json).write_text(json.dumps(document, indent=1))  # noqa: ASYNC240
    finally:
        for variant in variants:
            await variant.close()
        meter.close()
        bundle.remove_cgroups(bench.cgroup)
        for line in bench.left():
            print("left behind:", line, file=sys.stderr)
        bench.clear()


if __name__ == "__main__":
    asyncio.run(main())
