"""Docker's commands that skep has not: one sentence says what to do instead, never "unknown command"."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from cli_engine import FakeEngine

from skep.cli.main import main
from skep.cli.shell import Shell


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("stack deploy -c x.yml web", "docker stack, with the address of skepd in DOCKER_HOST"),
        ("compose up", "docker stack"),
        ("secret ls", "does not keep secrets"),
        ("config create a b", "does not keep configs"),
        ("build .", "builds no images"),
        ("context ls", "no contexts"),
        ("volume update v", "no cluster volumes"),
    ],
)
def test_a_command_that_is_not_here(words: str, said: str) -> None:
    out, err = io.StringIO(), io.StringIO()
    code = main(words.split(), Shell(out, err, {}, lambda: 0, lambda seconds: None, io.StringIO()))
    assert (code, out.getvalue()) == (1, "")
    assert said in err.getvalue() and "unknown command" not in err.getvalue() and err.getvalue().count("\n") == 1


def test_what_is_refused_says_nothing_of_the_registry(tmp_path: Path) -> None:
    """Docker's order: that a digest is not known matters only for a service that is made."""
    with FakeEngine(tmp_path / "s", {"distribution": {}}) as engine:
        engine.refuse["POST /services/create"] = (400, "name must be valid as a DNS name component")
        out, err = io.StringIO(), io.StringIO()
        shell = Shell(out, err, {"SKEP_HOST": f"unix://{engine.path}"}, lambda: 0, lambda seconds: None, io.StringIO())
        code = main(["service", "create", "--name", "b@d", "busybox"], shell)
    assert (code, out.getvalue(), err.getvalue()) == (1, "", "Error response from daemon: name must be valid as a DNS name component\n")
