"""Docker's commands that skep has not: one sentence says what to do instead, never "unknown command"."""

from __future__ import annotations

import io

import pytest

from skep.cli.main import main
from skep.cli.shell import Shell


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("stack deploy -c x.yml web", "docker stack"),
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
