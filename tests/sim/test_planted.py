"""The simulation can fail: each planted bug is found, by the rule that it breaks, within a few seeds; and a story is told."""

from __future__ import annotations

import re

import pytest
from planted import BUGS

from skep.testing.sim import Failure, attempt, main

SEEDS = 150


@pytest.mark.parametrize("name", BUGS)
def test_it_is_found(name: str) -> None:
    parts, rule = BUGS[name]
    for seed in range(SEEDS):
        result = attempt(seed, parts, tell=False)
        if isinstance(result, Failure):
            assert re.search(rule, result.reason), result.reason
            return
    pytest.fail(f"{SEEDS} clusters lived with it")


def test_a_failing_seed_tells_its_story() -> None:
    parts, _ = BUGS["swarmkit issue 2242"]
    found = next(result for seed in range(SEEDS) if isinstance(result := attempt(seed, parts), Failure))
    numbers = [int(line.split()[0]) for line in found.story[:-1]]
    assert numbers == list(range(1, len(numbers) + 1))
    assert found.story[-1] == f"FAILS: {found.reason}"
    assert any("user: service create" in line for line in found.story) and any("fate: " in line for line in found.story)
    assert any(": restarts " in line for line in found.story), "why the second task was made"


def test_one_command_replays_a_seed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "3", "--tail", "5"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 6 and shown[-1].startswith("seed 3: ") and shown[-1].endswith("no rule broken")
