"""A thousand clusters, each with at least 50 events; and that a seed tells the same story everywhere."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from skep.testing.sim import EVENTS, Failure, run_seeds

CLUSTERS = 1000


def test_a_thousand_clusters() -> None:
    failures, events, nodes = [], 0, 0
    for result in run_seeds(range(CLUSTERS), 2):
        if isinstance(result, Failure):
            failures.append(f"python -m skep.testing.sim --seed {result.seed}   # {result.reason}")
        else:
            events += result.events
            nodes += result.nodes
            assert result.events >= EVENTS and result.nodes >= 3 and result.services >= 2
    assert not failures, "\n".join(sorted(failures))
    assert events >= CLUSTERS * EVENTS


def story(seed: int, hashes: str) -> str:
    code = f"from skep.testing import sim; story = []; print(sim.run({seed}, story=story)); print('\\n'.join(story))"
    environment = {**os.environ, "PYTHONHASHSEED": hashes}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("seed", [3, 8])
def test_nothing_but_the_seed_decides(seed: int) -> None:
    """Neither the time, nor the order in which sets of texts happen to be walked."""
    one = story(seed, "1")
    assert one.count("\n") > 100
    assert story(seed, "2") == one
