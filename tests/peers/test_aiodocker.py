"""aiodocker's own tests, unchanged, against a real skepd. See docs/peers.md.

Those that do not pass stand in aiodocker-skips.toml with their reason; one that is not there must pass, one that is there must not.
"""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peer_world import PeerWorld, peer_world

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache" / "peers"
FILES = ("containers", "images", "execs", "volumes", "system", "networks", "events", "integration", "swarm", "nodes", "services")
"""Of aiodocker's test files: those that speak to a daemon about what skep has. Not: what tests aiodocker alone, ssh, secrets, configs."""
SECONDS = 300
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


@pytest.fixture(scope="module")
def world() -> Iterator[PeerWorld]:
    if not (CACHE / ".done").exists():
        pytest.fail("aiodocker is not here: run tools/peers")
    with peer_world(hub=True) as found:
        yield found


def run(world: PeerWorld) -> tuple[dict[str, Any], str]:
    """(what became of each test, by name; what pytest printed)."""
    ini, outcomes, home = world.folder / "pytest.ini", world.folder / "outcomes", world.folder / "home"
    ini.write_text(INI)
    home.mkdir()
    environment = {
        "PATH": f"{CACHE / 'venv/bin'}:{os.environ['PATH']}",
        "HOME": str(home),
        "PYTHONPATH": f"{CACHE / 'aiodocker'}:{HERE}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "DOCKER_HOST": f"unix://{world.socket}",
        "TESTCONTAINERS_RYUK_DISABLED": "true",
        # else it takes a host with a /.dockerenv or the like for a container, and its gateway for the daemon's host
        "TESTCONTAINERS_CONNECTION_MODE": "docker_host",
        "TESTCONTAINERS_HOST_OVERRIDE": "localhost",
        "PEER_OUTCOMES": str(outcomes),
    }
    files = [f"tests/test_{name}.py" for name in FILES]
    # nsenter leaves the working directory
    python = ("env", f"--chdir={CACHE / 'aiodocker'}", str(CACHE / "venv/bin/python"))
    command = world.inside(*python, "-m", "pytest", "-q", "-c", str(ini), "--rootdir", ".", *files)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    if not outcomes.exists():
        return {}, done.stdout + done.stderr
    return {(line := json.loads(text))["name"]: line for text in outcomes.read_text().splitlines()}, done.stdout + done.stderr


def test_aiodocker(world: PeerWorld) -> None:
    tables = tomllib.loads((HERE / "aiodocker-skips.toml").read_text())
    known, either = tables["not passing"], tables["either"]
    found, printed = run(world)
    if keep := os.environ.get("SKEP_PEERS_KEEP"):
        Path(keep).write_text(json.dumps(found, indent=1))
        (Path(keep).parent / "peers.log").write_text(printed + "\n" + world.log.read_text())
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
    log = world.log.read_text()
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:5000]
