"""A pytest plugin for aiodocker's tests as they are: where they would start a Docker in a Docker, they get the daemon that is there, and
each test's end is written down, one JSON object per line, in the file that $PEER_OUTCOMES names.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: Any, request: Any) -> Any:
    """`dind_docker_host` starts docker:dind with compose; the swarm of these tests is made in the daemon under test."""
    if fixturedef.argname != "dind_docker_host":
        return None
    host = os.environ["DOCKER_HOST"]
    fixturedef.cached_result = (host, fixturedef.cache_key(request), None)
    return host


_PHASES: dict[str, list[Any]] = {}


def pytest_runtest_logreport(report: Any) -> None:
    """The worst of set-up, test and tear-down; how long all of it took."""
    reports = _PHASES.setdefault(report.nodeid, [])
    reports.append(report)
    if report.when != "teardown":
        return
    bad = next((r for r in reports if r.failed), None)
    expected = next((r for r in reports if hasattr(r, "wasxfail")), None)
    skipped = next((r for r in reports if r.skipped), None)
    if bad is not None:
        outcome, said = "failed", str(bad.longrepr)
    elif expected is not None:
        outcome, said = "expected", str(expected.wasxfail)
    elif skipped is not None:
        outcome, said = "skipped", str(skipped.longrepr)
    else:
        outcome, said = "passed", ""
    name = report.nodeid.removeprefix("tests/")
    line = {"name": name, "outcome": outcome, "seconds": round(sum(r.duration for r in reports), 2), "said": said}
    with open(os.environ["PEER_OUTCOMES"], "a") as to:
        to.write(json.dumps(line) + "\n")
