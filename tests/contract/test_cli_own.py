"""What skep's command line does otherwise than Docker's on purpose, and what no recording shows: waiting, failing, the wire."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from cli_engine import FakeEngine

from skep.cli.main import main
from skep.cli.shell import Shell

SECOND = 1_000_000_000
WEB = "0n571v0whaz1t0myec7980jkb"
NODE = "l07m6eu3vqgda08o75tjzp443"
OTHER = "iczs75x5rucq9bdsdr9shbszj"


class Time:
    """Passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1_795_420_000 * SECOND

    def sleep(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)


def run(engine: FakeEngine, *words: str, environ: dict[str, str] | None = None, input: str = "") -> tuple[int, str, str]:
    out, err, time = io.StringIO(), io.StringIO(), Time()
    shell = Shell(out, err, {"SKEP_HOST": f"unix://{engine.path}", **(environ or {})}, lambda: time.now, time.sleep, io.StringIO(input))
    return main(words, shell), out.getvalue(), err.getvalue()


# waiting


def service(monitor: int = 2, status: dict[str, str] | None = None, **mode: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "ID": WEB,
        "Version": {"Index": 1},
        "Spec": {
            "Name": "web",
            "TaskTemplate": {"ContainerSpec": {"Image": "x"}},
            "Mode": mode or {"Replicated": {"Replicas": 2}},
            "UpdateConfig": {"Parallelism": 1, "Monitor": monitor * SECOND},
        },
    }
    if status:
        made["UpdateStatus"] = status
    if any("Job" in name for name in mode):
        made["JobStatus"] = {"JobIteration": {"Index": 4}}
    return made


def task(slot: int, state: str, desired: str = "running", node: str = NODE, err: str = "") -> dict[str, Any]:
    status = {"State": state, "Err": err} if err else {"State": state}
    return {"ID": f"t{slot}", "Slot": slot, "NodeID": node, "DesiredState": desired, "Status": status, "JobIteration": {"Index": 4}}


def progress(tmp_path: Path, services: list[Any], tasks: list[Any], *words: str) -> tuple[int, str, str]:
    with FakeEngine(tmp_path / "e.sock") as engine:
        engine.script["/services/web"] = services
        engine.script["/tasks"] = tasks
        code, out, err = run(engine, *(words or ("service", "update", "--force", "web")))
        asked = [request for request in engine.requests if request["path"] == "/tasks"]
    for request in asked:
        assert request["query"]["filters"] == {"service": {"web": True}, "_up-to-date": {"true": True}}
    return code, out, err


def test_replicas_converge(tmp_path: Path) -> None:
    full = [task(1, "running"), task(2, "running")]
    lacking = "no suitable node (insufficient resources on 3 nodes; scheduling constraints not satisfied on 12 nodes)"
    code, out, _ = progress(
        tmp_path,
        [service()],
        [[], [task(1, "pending", node="", err=lacking), task(2, "preparing")], [task(1, "running"), task(2, "starting")], full],
    )
    assert (code, out.splitlines()) == (
        0,
        [
            "web",
            "overall progress: 0 out of 2 tasks",
            "1/2:  ",
            "2/2:  ",
            "1/2: " + lacking[:74] + "…",
            "overall progress: 1 out of 2 tasks",
            "overall progress: 2 out of 2 tasks",
            "verify: Waiting 2 seconds to verify that tasks are stable...",
            "verify: Waiting 1 seconds to verify that tasks are stable...",
            "verify: Service web converged",
        ],
    )


def test_a_task_that_fails_while_it_is_watched_begins_the_watch_anew(tmp_path: Path) -> None:
    full = [task(1, "running"), task(2, "running")]
    broken = [task(1, "running"), task(2, "failed", "shutdown", err="boom"), task(2, "ready", "ready")]
    _, out, _ = progress(tmp_path, [service()], [full, full, broken, full])
    lines = out.splitlines()
    assert lines.index("verify: Detected task failure") < lines.index("verify: Service web converged")
    assert lines.count("overall progress: 2 out of 2 tasks") == 2


def test_tasks_of_nodes_that_are_down_do_not_count(tmp_path: Path) -> None:
    down = "aaaa7m6eu3vqgda08o75tjz33"
    _, out, _ = progress(
        tmp_path,
        [service()],
        [[task(1, "running"), task(2, "running", node=down)], [task(1, "running"), task(2, "running")]],
    )
    assert out.splitlines()[4:6] == ["overall progress: 1 out of 2 tasks", "overall progress: 2 out of 2 tasks"]


@pytest.mark.parametrize("state", ["paused", "rollback_paused"])
def test_a_paused_update_is_an_error(tmp_path: Path, state: str) -> None:
    updating = {"State": "updating", "Message": "update in progress"}
    stopped = service(status={"State": state, "Message": "because"})
    code, _, err = progress(tmp_path, [service(), service(), service(status=updating), stopped], [[task(1, "running")]])
    assert (code, err) == (1, f"service {'rollback' if 'roll' in state else 'update'} paused: because\n")


def test_a_rollback_is_told_once_and_again_at_the_end(tmp_path: Path) -> None:
    started = service(status={"State": "rollback_started", "Message": "rolled back due to x"})
    completed = service(status={"State": "rollback_completed", "Message": "rollback completed"})
    full = [task(1, "running"), task(2, "running")]
    tasks = [[], [task(1, "running")], [task(1, "running")], full]
    _, out, _ = progress(tmp_path, [service(), service(), started, started, completed], tasks)
    lines = out.splitlines()
    assert lines.count("rollback: rolled back due to x") == 1
    assert "overall progress: rolling back update: 1 out of 2 tasks" in lines
    assert lines[-2:] == ["verify: Service web converged", "rollback: rollback completed"]


def test_an_update_that_was_completed_before_ends_at_once(tmp_path: Path) -> None:
    assert progress(tmp_path, [service(status={"State": "completed", "Message": "m"})], [[]])[:2] == (0, "web\n")


def test_global_services_count_nodes(tmp_path: Path) -> None:
    _, out, _ = progress(
        tmp_path,
        [service(Global={})],
        [[], [task(0, "starting"), task(0, "preparing", node=OTHER)], [task(0, "running"), task(0, "running", node=OTHER)]],
    )
    assert out.splitlines()[1:4] == [
        "overall progress: waiting for new tasks",
        "overall progress: 0 out of 2 tasks",
        "overall progress: 2 out of 2 tasks",
    ]


def test_jobs_end_when_all_is_complete(tmp_path: Path) -> None:
    job = service(ReplicatedJob={"MaxConcurrent": 2, "TotalCompletions": 2})
    half = [task(0, "running", "complete"), task(1, "failed", "complete", err="bad")]
    _, out, _ = progress(tmp_path, [job], [[], half, [task(0, "complete", "complete"), task(1, "complete", "complete")]])
    assert out.splitlines() == [
        "web",
        "active tasks: 0 out of 2 tasks",
        "1/2:  ",
        "2/2:  ",
        "2/2: bad",
        "active tasks: 1 out of 2 tasks",
        "active tasks: 0 out of 0 tasks",
        "job complete",
    ]
    _, out, _ = progress(tmp_path, [service(GlobalJob={})], [[], [task(0, "running", "complete")], [task(0, "complete", "complete")]])
    assert out.splitlines()[1:] == ["job progress: waiting for tasks", "job complete"]


def test_more_than_twenty_tasks_have_no_lines_of_their_own(tmp_path: Path) -> None:
    many = [task(n, "running") for n in range(1, 26)]
    _, out, _ = progress(tmp_path, [service(Replicated={"Replicas": 25})], [[], many])
    assert "1/25" not in out
    assert "overall progress: 25 out of 25 tasks" in out


def test_a_mode_nobody_knows_is_said(tmp_path: Path) -> None:
    assert progress(tmp_path, [service(), service(New={})], [[]]) == (1, "web\n", "unrecognized service mode\n")


@pytest.mark.parametrize("words", [("service", "update", "-q", "--force", "web"), ("service", "rollback", "-q", "web")])
def test_quiet_waits_and_says_nothing(tmp_path: Path, words: tuple[str, ...]) -> None:
    full = [task(1, "running"), task(2, "running")]
    assert progress(tmp_path, [service()], [[], full], *words) == (0, "web\n", "")


def test_scale_changes_all_and_then_waits_for_each(tmp_path: Path) -> None:
    full = [task(1, "running"), task(2, "running")]
    code, out, err = progress(tmp_path, [service()], [full], "service", "scale", "web=2", "g=3")
    assert code == 1
    assert out.splitlines()[0] == "web scaled to 2"
    assert out.splitlines()[-1] == "verify: Service web converged"
    assert err == "g: scale can only be used with replicated or replicated-job mode\n"


def test_on_a_terminal_lines_are_written_over(tmp_path: Path) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out, time = Terminal(), Time()
    with FakeEngine(tmp_path / "e.sock") as engine:
        engine.script["/services/web"] = [service(1)]
        engine.script["/tasks"] = [[], [task(1, "starting"), task(2, "pending")], [task(1, "running"), task(2, "running")]]
        shell = Shell(out, io.StringIO(), {"DOCKER_HOST": f"unix://{engine.path}"}, lambda: time.now, time.sleep)
        assert main(["service", "update", "--force", "web"], shell) == 0
    text = out.getvalue()
    bar = "=" * 44 + ">" + " " * 6
    assert f"\x1b[2A\x1b[2K\r1/2: starting  [{bar}] \r\x1b[2B" in text
    assert "\x1b[3A\x1b[2K\roverall progress: 2 out of 2 tasks \r\x1b[3B" in text
    assert text.endswith("\x1b[1A\x1b[2K\rverify: Service web converged \r\x1b[1B")


# deviations


def test_jobs_are_shown_with_their_numbers(tmp_path: Path) -> None:
    with FakeEngine(tmp_path / "e.sock") as engine:
        _, out, _ = run(engine, "service", "inspect", "--pretty", "job")
        assert "Service Mode:\tReplicatedJob\n Max Concurrent:\t2\n Total Completions:\t4\n" in out
        assert "Service Mode:\tGlobalJob\n" in run(engine, "service", "inspect", "--pretty", "gjob")[1]


def test_flags_docker_ignores_or_stumbles_over(tmp_path: Path) -> None:
    with FakeEngine(tmp_path / "e.sock") as engine:
        code, _, err = run(engine, "service", "update", "-d", "--max-concurrent", "3", "rich")
        assert (code, err) == (1, "max-concurrent can only be used with replicated-job mode\n")
        assert run(engine, "service", "update", "-d", "--replicas-max-per-node", "4", "bare")[0] == 0
        assert engine.requests[-1]["body"]["TaskTemplate"]["Placement"] == {"MaxReplicas": 4}
        assert run(engine, "service", "update", "-d", "--max-concurrent", "3", "job")[0] == 0
        assert engine.requests[-1]["body"]["Mode"]["ReplicatedJob"]["MaxConcurrent"] == 3


def test_an_update_keeps_the_order_of_mounts(tmp_path: Path) -> None:
    with FakeEngine(tmp_path / "e.sock") as engine:
        before = engine.one("services", "rich")["Spec"]
        assert run(engine, "service", "update", "-d", "rich")[0] == 0
        assert engine.requests[-1]["body"] == before, "a needless difference would restart every task"


def test_inspect_of_anything_asks_one_kind_after_another(tmp_path: Path) -> None:
    with FakeEngine(tmp_path / "e.sock") as engine:
        assert json.loads(run(engine, "inspect", "web")[1])[0]["ID"] == WEB
        assert json.loads(run(engine, "inspect", "node-1")[1])[0]["ID"] == NODE
        assert run(engine, "inspect", "nosuch") == (1, "[]\n", "Error: No such object: nosuch\n")


def test_a_column_nobody_knows_names_those_there_are(tmp_path: Path) -> None:
    with FakeEngine(tmp_path / "e.sock") as engine:
        code, out, err = run(engine, "service", "ls", "--format", "{{.Nope}}")
        assert (code, out) == (1, "")
        assert "can't evaluate field Nope; known are: ID, Image, Mode, Name, Ports, Replicas" in err


def test_info_and_version_say_whose_they_are(tmp_path: Path) -> None:
    with FakeEngine(tmp_path / "e.sock") as engine:
        _, out, _ = run(engine, "info")
        assert out.startswith("Client: skep\n Version:")
        assert " Swarm: active\n  NodeID: l07m6eu3vqgda08o75tjzp443\n  Is Manager: true\n" in out
        assert " Security Options:\n  seccomp\n   Profile: builtin\n" in out
        _, out, _ = run(engine, "version")
        assert "Server:" in out
        assert "  API version:     1.50 (minimum version 1.24)\n" in out
        assert run(engine, "version", "-f", "{{.Server.ApiVersion}}")[1] == "1.50\n"
        assert run(engine, "--version")[1].startswith("skep version ")


def test_an_old_daemon_counts_no_tasks(tmp_path: Path) -> None:
    with FakeEngine(tmp_path / "e.sock") as engine:
        for found in engine.world["services"]:
            found["ServiceStatus"] = None
        _, out, _ = run(engine, "service", "ls", "--format", "{{.Name}} {{.Replicas}}")
        running = [t for t in engine.world["tasks"] if t["ServiceID"] == WEB and t["Status"]["State"] == "running"]
        assert f"web {len(running)}/3\n" in out
        assert [request["path"] for request in engine.requests] == ["/services", "/tasks", "/nodes"]


def test_overview_and_help(tmp_path: Path) -> None:
    with FakeEngine(tmp_path / "e.sock") as engine:
        assert "Swarm Commands:\n  node" in run(engine)[1]
        assert run(engine, "--help")[1] == run(engine)[1]
        assert run(engine, "service", "--help")[1].startswith("Usage:  skep service COMMAND\n")
        code, _, err = run(engine, "bogus")
        assert (code, err) == (1, "skep: unknown command: skep bogus\n\nRun 'skep --help' for more information\n")
        code, _, err = run(engine, "--bogus")
        assert (code, err.splitlines()[0]) == (125, "unknown flag: --bogus")
        assert run(engine, "node", "--bogus")[0] == 125
        assert not engine.requests


def test_the_list_of_services_that_may_be_privileged(tmp_path: Path) -> None:
    with FakeEngine(tmp_path / "e.sock") as engine:
        assert run(engine, "swarm", "update", "--allow-privileged", "agent-*,web") == (0, "Swarm updated.\n", "")
        assert engine.requests[-1]["body"]["Labels"] == {"skep.allow.privileged": "agent-*,web"}
        run(engine, "swarm", "update", "--allow-privileged", "")
        assert engine.requests[-1]["body"]["Labels"] == {}
