"""Every recorded command line of the docker CLI: skep sends the same requests, prints the same, ends with the same code."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from cli_engine import FakeEngine
from cli_golden import ENVIRON, TABLES, golden, plain, requests, words

from skep.cli.flags import OWN
from skep.cli.main import main
from skep.cli.shell import Shell

RECORDED = [json.loads(line) for table in TABLES for line in golden(table).read_text().splitlines()]


def sleep(_: float) -> None:
    raise AssertionError("a command that does not wait slept")


@pytest.mark.parametrize("recorded", RECORDED, ids=[recorded["line"][:60] for recorded in RECORDED])
def test_as_docker_does(recorded: dict[str, object], tmp_path: Path) -> None:
    with FakeEngine(tmp_path / "e.sock") as engine:
        out, err = io.StringIO(), io.StringIO()
        environ = {**ENVIRON, "HOME": str(tmp_path), "DOCKER_HOST": f"unix://{engine.path}"}
        shell = Shell(out, err, environ, lambda: int(str(recorded["now"])), sleep, io.StringIO())
        code = main(words(str(recorded["line"])), shell)
    assert requests(engine) == recorded["requests"]
    assert plain(err.getvalue()) == recorded["err"]
    assert plain(out.getvalue()).partition(OWN)[0] == recorded["out"]
    assert code == recorded["code"]
