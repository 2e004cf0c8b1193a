"""What a command of skep costs in CPU time (user and system), beside the bare interpreter and, where there is one, the docker CLI.

    .venv/bin/python bench/cli_cpu.py [ROUNDS]

The figure to keep: `skep service ls` within 60 ms.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "contract"))

from cli_engine import FakeEngine  # noqa: E402


def cpu(command: list[str], env: dict[str, str], rounds: int) -> tuple[float, float]:
    """(best, middle) in ms."""
    found = []
    for _ in range(rounds):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3)
    found.sort()
    return found[0], found[len(found) // 2]


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    skep = [sys.executable, str(Path(sys.executable).parent / "skep")]
    with tempfile.TemporaryDirectory() as folder, FakeEngine(Path(folder) / "engine.sock") as engine:
        env = {"PATH": os.environ["PATH"], "HOME": folder, "DOCKER_HOST": f"unix://{engine.path}"}
        rows: list[tuple[str, list[str]]] = [("python -c pass", [sys.executable, "-c", "pass"])]
        for words in (
            "service ls",
            "service ps web",
            "node ls",
            "service create -d --no-resolve-image x",
            "info",
            "ps -a",
            "images",
            "run -d alpine",
        ):
            rows.append((f"skep {words}", [*skep, *words.split()]))
        if shutil.which("docker"):
            rows.append(("docker service ls", ["docker", "service", "ls"]))
        for name, command in rows:
            best, middle = cpu(command, env, rounds)
            print(f"{name:<45} best {best:6.1f} ms   middle {middle:6.1f} ms", flush=True)


if __name__ == "__main__":
    main()
