"""`skep cluster ...`: what is not understood is one line that says which flag, what is wrong and what would do; nothing is touched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from skep.local.command import main, parse, port_pair


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKEP_CLUSTERS_ROOT", str(tmp_path / "lib"))
    monkeypatch.setenv("SKEP_CLUSTERS_RUN", "/run/sktc")


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    code = main(argv)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1, f"one line: {said.err!r}"
    return code, said.err.rstrip("\n")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["up", "--workers", "x"], "skep cluster up: --workers: 'x': must be a number from 0 to 64"),
        (["up", "--workers", "-1"], "skep cluster up: --workers: '-1': must be a number from 0 to 64"),
        (["up", "--workers=-1"], "skep cluster up: --workers: '-1': must be a number from 0 to 64"),
        (["up", "--workers", "65"], "skep cluster up: --workers: '65': must be a number from 0 to 64"),
        (["up", "--workers", "²"], "skep cluster up: --workers: '²': must be a number from 0 to 64"),
        (["up", "--workers", ""], "skep cluster up: --workers: '': must be a number from 0 to 64"),
        (["up", "--publish", "x:1"], "skep cluster up: --publish: 'x:1': must be HOSTPORT:NODEPORT"),
        (["up", "--publish", "1:2:3"], "skep cluster up: --publish: '1:2:3': must be HOSTPORT:NODEPORT"),
        (["up", "--publish", "8000:"], "skep cluster up: --publish: '8000:': must be HOSTPORT:NODEPORT"),
        (["up", "--publish", " 80:1_0"], "skep cluster up: --publish: ' 80:1_0': must be HOSTPORT:NODEPORT"),
        (["up", "--publish", "0:80"], "skep cluster up: --publish: '0:80': ports go from 1 to 65535"),
        (["up", "--publish", "80:65536"], "skep cluster up: --publish: '80:65536': ports go from 1 to 65535"),
        (["up", "--publish"], "skep cluster up: --publish: expected one argument"),
        (["up", "--work", "3"], "skep cluster: unrecognized arguments: --work 3"),
        (["up", "more"], "skep cluster: unrecognized arguments: more"),
        (["up", "--registry=yes"], "skep cluster up: --registry: ignored explicit argument 'yes'"),
        (["down", "--force"], "skep cluster: unrecognized arguments: --force"),
        (["kill"], "skep cluster kill: the following arguments are required: NODE"),
        (["exec"], "skep cluster exec: the following arguments are required: NODE"),
        ([], "skep cluster: the following arguments are required: COMMAND"),
        (["sideways"], "skep cluster: COMMAND: invalid choice: 'sideways'"),
    ],
)
def test_a_line_that_is_not_understood(capsys: pytest.CaptureFixture[str], argv: list[str], said: str) -> None:
    code, text = refused(capsys, *argv)
    assert code == 125
    assert text.startswith(said), text
    assert "--help)" in text


@pytest.mark.parametrize("verb", ["up", "status", "down", "start"])
def test_a_name_that_will_not_do(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    code, text = refused(capsys, verb, "--name", "No Good")
    assert (code, text.split(":")[1]) == (1, " cluster name 'No Good'")


@pytest.mark.skipif(os.geteuid() != 0, reason="says first that root is needed")
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--publish", "80:1", "--publish", "80:2"], "--publish: port 80 of this host is given twice"),
        (["--stack", "/no/such/folder"], "--stack /no/such/folder: no such folder"),
        (["--stack", "/etc/passwd"], "--stack /etc/passwd: is no folder"),
    ],
)
def test_what_up_finds_wrong_before_it_makes_anything(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: list[str], said: str
) -> None:
    assert refused(capsys, "up", *argv) == (1, f"skep cluster: {said}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "argv", [["status", "--name", "none"], ["exec", "--name", "none", "manager", "--", "true"], ["start", "--name", "none"]]
)
def test_a_cluster_that_is_not_there(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    if os.geteuid() and argv[0] == "start":
        pytest.skip("says first that root is needed")
    assert refused(capsys, *argv) == (1, "skep cluster: no cluster 'none' on this machine")


def test_help_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", "--help"]) == 0
    shown = capsys.readouterr().out
    for flag in ("--workers", "--registry", "--publish", "--stack", "--name"):
        assert flag in shown


def test_defaults_and_repeated_flags() -> None:
    args = parse(["up", "--publish", "8000:8080", "--publish", "9000"])
    assert (args.workers, args.registry, args.publish, args.stack, args.name) == (3, False, [(8000, 8080), (9000, 9000)], "", "default")
    assert port_pair("1:65535") == (1, 65535)


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("-- docker service ls --name y -q", "docker service ls --name y -q"),
        ("docker ps", "docker ps"),
        ("-- sh -c x -- y", "sh -c x -- y"),
        ("sh -c x -- --name y", "sh -c x -- --name y"),
        ("-- -- x", "-- x"),
        ("-- --help", "--help"),
        ("--", ""),
        ("", ""),
    ],
)
def test_what_follows_the_node_is_the_command(words: str, command: str) -> None:
    args = parse(["exec", "--name", "x", "manager", *words.split()])
    assert (args.name, args.node, args.command) == ("x", "manager", command.split())


def test_without_root_it_says_so(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root to be somebody else")
    code = (
        "import os, sys; from skep.local import cluster, command; os.setgid(65534); os.setuid(65534); sys.exit(command.main(sys.argv[1:]))"
    )
    for verb in ("up", "down"):
        done = subprocess.run([sys.executable, "-c", code, verb, "--name", "none"], capture_output=True, text=True, cwd="/")
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert done.stderr.startswith(f"skep cluster: skep cluster {verb}") and "run it as root, or through sudo" in done.stderr
