"""Everything that is measured, one program after the other: `make bench`, or `bench/all.py NAME...` for some of it.

Each program says at its top what it measures and against what. The figures in bench/README.md were taken with them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
ORDER = (
    "store",
    "plan_schedule",
    "link",
    "api",
    "cli_cpu",
    "datapath",
    "dns",
    "images",
    "containers",
    "run",
    "pull",
    "memory",
    "logs",
    "health",
    "cluster",
    "traffic",
    "known",
    "replicas",
)


def main(wanted: list[str]) -> int:
    unknown = sorted(set(wanted) - set(ORDER))
    if unknown:
        print(f"bench: unknown: {', '.join(unknown)}; there are: {', '.join(ORDER)}", file=sys.stderr)
        return 2
    failed = []
    for name in [n for n in ORDER if n in wanted] or ORDER:
        print(f"\n== {name} (load {os.getloadavg()[0]:.1f})", flush=True)
        begun = time.monotonic()
        if subprocess.run([sys.executable, str(HERE / f"{name}.py")], cwd=HERE.parent).returncode:
            failed.append(name)
        print(f"   ({time.monotonic() - begun:.0f} s)", flush=True)
    if failed:
        print(f"\nbench: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
