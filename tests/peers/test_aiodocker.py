"""aiodocker's own tests, unchanged, against a real skepd. See docs/peers.md.

Those that do not pass stand in aiodocker-skips.toml with their reason; one that is not there must pass, one that is there must not.
"""

from __future__ import annotations

import contextlib
import json
import os
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from peer_world import CACHE, PeerWorld, peer_world, peers_pytest

HERE = Path(__file__).parent
GROUPS = (
    ("containers",),
    ("images", "execs", "volumes", "system", "networks", "events", "integration"),
    ("swarm", "nodes", "services"),
)
"""Of aiodocker's test files: those that speak to a daemon about what skep has. Not: what tests aiodocker alone, ssh, secrets, configs."""
INI = """
[pytest]
addopts = -p aiodocker_plugin -p no:cacheprovider
asyncio_mode = auto
filterwarnings =
    error
    ignore::ResourceWarning:asyncio
    ignore:'asyncio.iscoroutinefunction' is deprecated
    ignore:The @wait_container_is_ready decorator is deprecated.*:DeprecationWarning
"""
"""aiodocker's own settings without its measuring of coverage."""

pytestmark = pytest.mark.root


def run(world: PeerWorld, files: Sequence[str]) -> tuple[dict[str, Any], str]:
    """(what became of each test, by name; what pytest printed)."""
    ini, outcomes = world.folder / "pytest.ini", world.folder / "outcomes"
    ini.write_text(INI)
    environment = {
        "PYTHONPATH": f"{CACHE / 'aiodocker'}:{HERE}",
        "TESTCONTAINERS_RYUK_DISABLED": "true",
        # else it takes a host with a /.dockerenv or the like for a container, and its gateway for the daemon's host
        "TESTCONTAINERS_CONNECTION_MODE": "docker_host",
        "TESTCONTAINERS_HOST_OVERRIDE": "localhost",
        "PEER_OUTCOMES": str(outcomes),
    }
    # some tests use `python` without pulling it: aiodocker's CI has it
    assert world.ask("POST", "/images/create?fromImage=python&tag=latest")[0] == 200
    tests = [f"tests/test_{name}.py" for name in files]
    printed = peers_pytest(world, CACHE / "aiodocker", environment, "-c", str(ini), "--rootdir", ".", *tests)
    if not outcomes.exists():
        return {}, printed
    return {(line := json.loads(text))["name"]: line for text in outcomes.read_text().splitlines()}, printed


def run_all(hub: Path) -> tuple[dict[str, Any], str, str]:
    """(what became of each test; what pytest printed; what skepd logged). Each group in a world of its own: most of it is waiting."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(len(GROUPS)) as threads:
        worlds = list(threads.map(stack.enter_context, (peer_world(hub) for _ in GROUPS)))
        done = list(threads.map(run, worlds, GROUPS))
        logs = "\n".join(world.log.read_text(errors="replace") for world in worlds)
    return {name: line for found, _ in done for name, line in found.items()}, "\n".join(printed for _, printed in done), logs


def test_aiodocker(hub: Path) -> None:
    tables = tomllib.loads((HERE / "aiodocker-skips.toml").read_text())
    known, either = tables["not passing"], tables["either"]
    found, printed, log = run_all(hub)
    if keep := os.environ.get("SKEP_PEERS_KEEP"):
        Path(keep).write_text(json.dumps(found, indent=1))
        Path(keep).with_suffix(".log").write_text(printed + "\n" + log)
    assert len(found) > 100, printed[-5000:]
    wrong = [
        f"{name}: {line['outcome']}\n{line['said'][-3000:]}"
        for name, line in found.items()
        if line["outcome"] in ("failed", "skipped") and name not in known | either
    ]
    wrong += [
        f"{name}: passes now: take it out of aiodocker-skips.toml" for name in known if found.get(name, {}).get("outcome") == "passed"
    ]
    wrong += [f"{name}: aiodocker has no such test: take it out of aiodocker-skips.toml" for name in known | either if name not in found]
    assert not wrong, "\n\n".join(wrong)
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:5000]
