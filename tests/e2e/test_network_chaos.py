"""The network under chaos: whatever happens to a cluster of four real nodes, a moment later every kernel and every resolver says what the
store says, every pair of tasks connects, and tasks of different networks do not.

SEED and STEPS in the environment repeat a run; a failure prints the steps that led to it.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator

import pytest
from chaos import Chaos, last_words
from cluster_tools import remains
from conftest import World, make_world

REAPER = "import sys; sys.stdin.read(); from skep.local import cluster; cluster.down(sys.argv[1], say=lambda text: None)"


@pytest.fixture
def own() -> Iterator[World]:
    """A cluster of this test's own. Who takes it down is another process, which does so also when this one is killed."""
    name = f"chaos{os.getpid()}"
    with subprocess.Popen([sys.executable, "-c", REAPER, name], stdin=subprocess.PIPE, start_new_session=True) as reaper:
        yield make_world(name, stand_ins=False)
        assert reaper.stdin
        reaper.stdin.close()
        assert reaper.wait(120) == 0
    assert remains(name) == []


def play(world: World, seed: int, steps: int, *, long: bool) -> None:
    print(f"SEED={seed} STEPS={steps}", flush=True)
    chaos = Chaos(world, random.Random(seed), long=long)
    try:
        chaos.begin()
        chaos.play(steps, tell=lambda line: print(line, flush=True))
        chaos.end()
    except BaseException:
        print(last_words(world), flush=True)
        raise
    print("slowest:", {name: round(took, 1) for name, took in sorted(chaos.slowest.items(), key=lambda it: -it[1])}, flush=True)


def test_twenty_five_steps(own: World) -> None:
    play(own, int(os.environ.get("SEED", "1")), int(os.environ.get("STEPS", "25")), long=False)


@pytest.mark.soak
def test_five_hundred_steps(own: World) -> None:
    play(
        own, int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30), int(os.environ.get("STEPS", "500")), long=True
    )
