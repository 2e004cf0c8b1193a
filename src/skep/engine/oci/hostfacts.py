"""This host as containers' specs see it. Blocks for a moment, once at start."""

from __future__ import annotations

import os
import resource
import shutil

from skep.engine.oci import spec
from skep.engine.oci.runtime import cgroup2


def host_facts() -> spec.Host:
    """This host, as specs see it."""
    with open("/proc/self/status", encoding="ascii") as status:
        bounding = next(int(line.split()[1], 16) for line in status if line.startswith("CapBnd:"))
    names = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    v2 = cgroup2()
    swap = v2 or os.path.exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
    return spec.Host(
        capabilities=frozenset(name for number, name in enumerate(spec.ALL_CAPABILITIES) if bounding >> number & 1),
        rlimits={name: resource.getrlimit(getattr(resource, name))[1] for name in names if name != "RLIMIT_OFILE"},
        cgroup2=v2,
        swap_limit=swap,
        missing=_missing(v2),
        init=next((path for name in ("tini-static", "docker-init", "catatonit") if (path := shutil.which(name)) and _static(path)), ""),
    )


def _missing(v2: bool, root: str = "/sys/fs/cgroup") -> frozenset[str]:
    """Limits that Docker leaves out with a warning, because the kernel has no file for them."""
    if v2:
        return frozenset({"memory_swappiness", "oom_kill_disable", "cpu_realtime_period", "cpu_realtime_runtime"})
    files = {"memory_swappiness": "memory/memory.swappiness", "oom_kill_disable": "memory/memory.oom_control"}
    files |= {"cpu_realtime_period": "cpu/cpu.rt_period_us", "cpu_realtime_runtime": "cpu/cpu.rt_runtime_us"}
    missing = {name for name, file in files.items() if not os.path.exists(f"{root}/{file}")}
    if not any(os.path.exists(f"{root}/blkio/{name}") for name in ("blkio.weight", "blkio.bfq.weight")):
        missing.add("blkio_weight")
    return frozenset(missing)


def _static(path: str) -> bool:
    """An ELF program without an interpreter: it runs in any root file system."""
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
    except OSError:
        return False
    return head[:4] == b"\x7fELF" and b"/ld-" not in head
