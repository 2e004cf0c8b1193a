"""docker-py's main calls (docker_py_calls.py) against a real skepd. See docs/peers.md."""

from __future__ import annotations

from pathlib import Path

import pytest
from peer_world import peer_world, peers_pytest

HERE = Path(__file__).parent


@pytest.mark.root
def test_docker_py(hub: Path) -> None:
    with peer_world(hub) as world:
        ini = world.folder / "pytest.ini"
        ini.write_text("[pytest]\naddopts = -p no:cacheprovider -p no:asyncio\n")
        printed = peers_pytest(world, HERE, {}, "-c", str(ini), "--rootdir", ".", "--noconftest", "docker_py_calls.py")
        last = printed.strip().splitlines()[-1]
        assert " passed" in last and "failed" not in last and "error" not in last, printed[-8000:]
        log = world.log.read_text(errors="replace")
        assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:5000]
