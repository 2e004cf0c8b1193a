"""`docker run` and its relatives, by the real docker command, on a node without a cluster: real containers, real networks."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plain_world import World, docker_world, quoted

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with docker_world() as found:
        yield found


@pytest.fixture(autouse=True)
def tidy(world: World) -> Iterator[None]:
    yield
    world.tidy()


def test_run_and_its_exit_codes(world: World) -> None:
    assert world.out("run", "--rm", "box:1", "echo", "hi") == "hi"
    for words, code, said in (
        (("sh", "-c", "exit 7"), 7, ""),
        (("nosuch",), 127, 'exec: "nosuch": executable file not found in $PATH'),
        (("/nosuch",), 127, "executable file not found"),
        (("/etc/plain",), 126, 'exec: "/etc/plain": permission denied'),
        (("/etc",), 126, "permission denied"),
    ):
        done = world.docker("run", "--rm", "box:1", *words, check=False)
        assert (done.returncode, said in done.stderr) == (code, True), (words, done)
    done = world.docker("run", "--rm", "--network", "nosuch", "box:1", "true", check=False)
    assert done.returncode == 125 and "failed to set up container networking: network nosuch not found" in done.stderr
    done = world.docker("run", "--pull", "never", "nosuch:9", check=False)
    assert done.returncode == 125 and "No such image: nosuch:9" in done.stderr
    assert world.out("ps", "-aq") == ""


def test_a_start_that_failed_is_kept_and_shown(world: World) -> None:
    assert world.docker("run", "--name", "bad", "box:1", "nosuch", check=False).returncode == 127
    state = world.inspect("bad")["State"]
    assert (state["Status"], state["ExitCode"], state["Running"]) == ("created", 127, False) and "nosuch" in state["Error"]
    assert "Created" in world.out("ps", "-a", "--format", "{{.Status}}")


def test_input_reaches_it_and_its_end_too(world: World) -> None:
    assert world.out("run", "-i", "--rm", "box:1", "cat", input="one\ntwo\n") == "one\ntwo"
    assert world.out("run", "-i", "--rm", "box:1", "wc", "-c", input="x" * 300_000) == "300000"
    world.docker("create", "-i", "--name", "again", "box:1", "cat")
    assert world.out("start", "-ai", "again", input="a\n") == "a"
    assert world.out("start", "-ai", "again", input="b\n") == "b"
    assert world.out("logs", "again") == "a\nb"


def on_terminal(world: World, *argv: str, typed: bytes = b"", until: bytes = b"") -> tuple[int, str]:
    """With a terminal, as a person would: (exit code, what was shown)."""
    ours, theirs = pty.openpty()
    command = [world.docker_program, "-H", f"unix://{world.socket}", *argv]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    shown, sent, end = b"", False, time.monotonic() + 30
    try:
        while time.monotonic() < end:
            if not sent and typed and until in shown:
                os.write(ours, typed)
                sent = True
            if not select.select([ours], [], [], 0.1)[0]:
                if process.poll() is not None:
                    break
                continue
            try:
                data = os.read(ours, 4096)
            except OSError:
                break
            if not data:
                break
            shown += data
        return process.wait(5), shown.decode()
    finally:
        process.kill()
        os.close(ours)


def test_a_terminal(world: World) -> None:
    code, shown = on_terminal(world, "run", "-it", "--rm", "box:1", "sh", typed=b"tty; stty size; exit 5\n", until=b"# ")
    assert code == 5 and "/dev/pts/0" in shown


def test_detach_and_attach_again(world: World) -> None:
    code, _ = on_terminal(world, "run", "-it", "--name", "term", "box:1", "sh", typed=b"\x10\x11", until=b"# ")
    assert code == 0 and world.inspect("term")["State"]["Running"]
    code, shown = on_terminal(world, "attach", "term", typed=b"\necho back; exit 3\n", until=b"")
    assert code == 3 and "back" in shown
    assert world.docker("attach", "term", check=False).returncode == 1


def test_detached_from_an_exec_it_goes_on(world: World) -> None:
    world.docker("run", "-d", "--name", "host1", "box:1", "sleep", "1000")
    code, shown = on_terminal(world, "exec", "-it", "host1", "sh", "-c", "echo begun; sleep 777", typed=b"\x10\x11", until=b"begun")
    assert code == 1 and "read escape sequence" in shown
    keys = ("--detach-keys", "ctrl-a,x")
    code, shown = on_terminal(world, "exec", "-it", *keys, "host1", "sh", "-c", "echo begun; sleep 778", typed=b"\x01x", until=b"begun")
    assert code == 1 and "read escape sequence" in shown
    running = world.out("top", "host1", "-o", "pid,args")
    assert "sleep 777" in running and "sleep 778" in running
    shown_execs = world.inspect("host1")["ExecIDs"]
    assert len(shown_execs) == 2 and all(world.api("GET", f"/exec/{id}/json")[1]["Pid"] for id in shown_execs)


def test_states_and_what_they_refuse(world: World) -> None:
    id = world.out("run", "-d", "--name", "c1", "box:1", "sleep", "100")
    running = "container is running: stop the container before removing or force remove"
    for method, target, status, message in (
        ("POST", "/containers/c1/start", 304, None),
        ("DELETE", "/containers/c1", 409, f'cannot remove container "c1": {running}'),
        ("POST", "/containers/nosuch/start", 404, "No such container: nosuch"),
        ("POST", "/containers/c1/unpause", 500, f"Container {id} is not paused"),
        ("POST", "/containers/create?name=a!b", 400, "Invalid container name (a!b), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"),
    ):
        got, body = world.api(method, target, {"Image": "box:1"} if "create" in target else None)
        assert (got, body["message"] if body else None) == (status, message), target
    taken = world.docker("run", "--name", "c1", "box:1", check=False)
    assert taken.returncode == 125 and f'The container name "/c1" is already in use by container "{id}"' in taken.stderr
    world.docker("pause", "c1")
    assert world.api("POST", "/containers/c1/pause") == (409, {"message": f"Container {id} is already paused"})
    assert "(Paused)" in world.out("ps", "--format", "{{.Status}}")
    assert world.api("POST", "/containers/c1/start")[0] == 409
    world.docker("unpause", "c1")
    world.docker("stop", "-t", "0", "c1")
    assert world.api("POST", "/containers/c1/stop") == (304, None)
    assert world.api("POST", "/containers/c1/kill") == (
        409, {"message": f"cannot kill container: c1: container {id} is not running"},
    )  # fmt: skip
    assert world.api("POST", "/containers/c1/pause")[0] == 409
    assert world.inspect("c1")["State"]["ExitCode"] == 137


def test_signals_and_stopping(world: World) -> None:
    script = 'trap "echo usr1" USR1; trap "echo bye; exit 9" TERM; echo up; while :; do sleep 0.05; done'
    world.docker("run", "-d", "--name", "c1", "box:1", "sh", "-c", script)
    world.until(lambda: "up" in world.out("logs", "c1"), "it is up")
    world.docker("kill", "-s", "USR1", "c1")
    world.until(lambda: "usr1" in world.out("logs", "c1"), "the signal has come")
    world.docker("stop", "c1")
    assert world.inspect("c1")["State"]["ExitCode"] == 9 and world.out("logs", "c1").endswith("bye")
    world.docker("run", "-d", "--name", "c2", "--stop-signal", "USR2", "--stop-timeout", "1", "box:1", "sleep", "100")
    world.docker("restart", "c2")
    assert world.inspect("c2")["State"]["Running"]
    begun = time.monotonic()
    world.docker("stop", "c2")
    assert time.monotonic() - begun < 8 and world.inspect("c2")["State"]["ExitCode"] == 137


def test_restart_policies(world: World) -> None:
    world.docker("run", "-d", "--name", "thrice", "--restart", "on-failure:2", "box:1", "sh", "-c", "echo up; exit 3")
    assert world.out("wait", "thrice") == "3"
    shown = world.inspect("thrice")
    assert (shown["RestartCount"], shown["State"]["Status"], world.out("logs", "thrice")) == (2, "exited", "up\nup\nup")
    world.docker("run", "-d", "--name", "fine", "--restart", "on-failure", "box:1", "true")
    assert world.out("wait", "fine") == "0" and world.inspect("fine")["RestartCount"] == 0
    world.docker("run", "-d", "--name", "ever", "--restart", "always", "box:1", "sh", "-c", "sleep 0.02; exit 1")

    def waiting() -> Any:  # in one look: at the next it may be running again
        state = world.inspect("ever")["State"]
        return state["Status"] == "restarting" and state

    assert world.until(waiting, "it waits for its restart")["Restarting"] and "ever" in world.out("ps", "--format", "{{.Names}}")
    world.until(lambda: world.inspect("ever")["RestartCount"] >= 2, "it was started again")
    world.docker("stop", "ever")
    count = world.inspect("ever")["RestartCount"]
    world.docker("run", "--rm", "box:1", "sleep", "0.5")
    assert (world.inspect("ever")["State"]["Status"], world.inspect("ever")["RestartCount"]) == ("exited", count)
    world.docker("update", "--restart", "no", "ever")
    assert world.inspect("ever")["HostConfig"]["RestartPolicy"] == {"Name": "no", "MaximumRetryCount": 0}
    for words, said in (
        (("--restart", "sometimes"), "unknown policy 'sometimes'"),
        (("--rm", "--restart", "always"), "onflicting options: cannot specify both --restart and --rm"),
    ):
        done = world.docker("run", *words, "box:1", check=False)
        assert done.returncode == 125 and said in done.stderr, done.stderr


def test_rm_takes_its_anonymous_volumes_along(world: World) -> None:
    world.docker("run", "--rm", "-v", "/anon", "-v", "named:/data", "box:1", "touch", "/anon/x", "/data/x")
    world.until(lambda: world.out("volume", "ls", "-q") == "named", "only the named one is left")
    world.docker("run", "--name", "keep", "-v", "/anon", "box:1", "true")
    assert len(world.out("volume", "ls", "-q").split()) == 2
    world.docker("rm", "keep")
    assert len(world.out("volume", "ls", "-q").split()) == 2
    world.docker("run", "--name", "gone", "-v", "/anon", "box:1", "true")
    world.docker("rm", "-v", "gone")
    assert len(world.out("volume", "ls", "-q").split()) == 2


def test_networks_join_and_leave(world: World) -> None:
    for name in ("n1", "n2"):
        world.docker("network", "create", name)
    world.docker("run", "-d", "--name", "aa", "--network", "n1", "--network-alias", "ax", "box:1", "sleep", "100")

    def ping(network: str, name: str) -> int:
        return world.docker("run", "--rm", "--network", network, "box:1", "ping", "-c1", "-W2", name, check=False).returncode

    assert (ping("n1", "aa"), ping("n1", "ax"), ping("n2", "aa")) == (0, 0, 1)
    world.docker("network", "connect", "--alias", "foo", "n2", "aa")
    assert (ping("n2", "aa"), ping("n2", "foo"), ping("n1", "foo")) == (0, 0, 1)
    assert "already exists in network n2" in world.docker("network", "connect", "n2", "aa", check=False).stderr
    world.docker("rename", "aa", "bb")
    assert (ping("n1", "bb"), ping("n1", "aa")) == (0, 1)
    world.docker("network", "disconnect", "n1", "bb")
    assert ping("n1", "bb") == 1 and list(world.inspect("bb")["NetworkSettings"]["Networks"]) == ["n2"]
    world.docker("stop", "-t", "0", "bb")
    place = world.inspect("bb")["NetworkSettings"]["Networks"]["n2"]
    assert place["IPAddress"] == "" and place["Aliases"] == ["foo"]
    world.docker("network", "connect", "n1", "bb")
    world.docker("start", "bb")
    assert (ping("n1", "bb"), ping("n2", "foo")) == (0, 0)
    refused = world.docker("network", "rm", "n1", check=False)
    assert refused.returncode == 1 and "has active endpoints" in refused.stderr
    fixed = world.docker("run", "-d", "--network", "bridge", "--ip", "172.17.0.77", "box:1", check=False)
    assert "user specified IP address is supported on user defined networks only" in fixed.stderr
    world.docker("network", "create", "--subnet", "10.77.0.0/24", "n3")
    shown = world.out("run", "--rm", "--network", "n3", "--ip", "10.77.0.9", "--mac-address", "02:42:00:00:00:09", "box:1", "ip", "a")
    assert "10.77.0.9/24" in shown and "02:42:00:00:00:09" in shown


def test_ports(world: World) -> None:
    answer = ("sh", "-c", "while :; do echo hello | nc -l -p 80; done")
    world.docker("run", "-d", "--name", "web", "-p", "8080:80", "-p", "127.0.0.1:8100-8110:81/udp", "-P", "box:1", *answer)
    ask = world.inside(BUSY, "nc", "-w", "3", "172.31.255.1", "8080")
    world.until(lambda: subprocess.run(ask, capture_output=True, text=True, timeout=10).stdout == "hello\n", "it answers")
    ports = world.inspect("web")["NetworkSettings"]["Ports"]
    assert ports == {
        "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}],
        "81/udp": [{"HostIp": "127.0.0.1", "HostPort": "8100"}],
    }
    assert world.out("port", "web", "80") == "0.0.0.0:8080"
    taken = world.docker("run", "-d", "--name", "other", "-p", "8080:80", "box:1", "sleep", "9", check=False)
    assert taken.returncode == 125 and "Bind for 0.0.0.0:8080 failed: port is already allocated" in taken.stderr
    world.docker("rm", "-f", "web")
    world.docker("start", "other")
    world.docker("run", "-d", "--name", "any", "-P", "box:1", "sleep", "9")
    assert int(world.inspect("any")["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"]) >= 32768


BUSY = "/bin/busybox"


def test_events_in_their_order(world: World) -> None:
    since = str(time.time())
    world.docker("run", "--name", "ev", "--health-cmd", "true", "--health-interval", "50ms", "-d", "box:1", "sleep", "100")
    world.until(lambda: world.inspect("ev")["State"]["Health"]["Status"] == "healthy", "it is healthy")
    world.docker("pause", "ev")
    world.docker("unpause", "ev")
    world.docker("rename", "ev", "ew")
    world.docker("update", "--memory", "64m", "--memory-swap", "64m", "ew")
    world.docker("restart", "-t", "0", "ew")
    world.docker("rm", "-f", "ew")
    lines = world.out("events", "--since", since, "--until", str(time.time() + 0.1), "--filter", "type=container", "--format", "{{json .}}")
    actions = [json.loads(line)["Action"] for line in lines.splitlines()]
    assert [a for a in actions if not a.startswith("health_status")] == [
        "create", "start", "pause", "unpause", "rename", "update", "kill", "die", "stop", "start", "restart", "kill", "die", "destroy",
    ]  # fmt: skip
    assert "health_status: healthy" in actions
    whole = [json.loads(line) for line in lines.splitlines()]
    assert next(e for e in whole if e["Action"] == "die")["Actor"]["Attributes"]["exitCode"] == "137"
    assert next(e for e in whole if e["Action"] == "rename")["Actor"]["Attributes"]["oldName"] == "/ev"


def test_lists_and_filters(world: World) -> None:
    world.docker("run", "-d", "--name", "up1", "-l", "tier=front", "-v", "vol9:/data", "-p", "8081:80", "box:1", "sleep", "100")
    world.docker("run", "--name", "down1", "-l", "tier=back", "box:1", "sh", "-c", "exit 4", check=False)
    for words, names in (
        ((), ["up1"]),
        (("-a",), ["down1", "up1"]),
        (("-a", "-f", "status=exited"), ["down1"]),
        (("-a", "-f", "exited=4"), ["down1"]),
        (("-a", "-f", "label=tier=front"), ["up1"]),
        (("-a", "-f", "name=own"), ["down1"]),
        (("-a", "-f", "volume=vol9"), ["up1"]),
        (("-a", "-f", "publish=8081"), ["up1"]),
        (("-a", "-f", "network=bridge"), ["down1", "up1"]),
        (("-a", "-f", "before=down1"), ["up1"]),
        (("-a", "-f", "since=up1"), ["down1"]),
        (("-a", "-f", "ancestor=box:1"), ["down1", "up1"]),
        (("-n", "1"), ["down1"]),
    ):
        assert sorted(world.out("ps", "--format", "{{.Names}}", *words).split()) == names, words
    status, shown = world.api("GET", f"/containers/json?all=1&size=1&filters={quoted({'name': ['up1']})}")
    assert status == 200 and shown[0]["SizeRw"] >= 0 and shown[0]["SizeRootFs"] > 1000
    assert shown[0]["Mounts"][0]["Name"] == "vol9" and shown[0]["HostConfig"] == {"NetworkMode": "bridge"}
    assert world.out("container", "prune", "-f", "--filter", "label=tier=front").startswith("Total reclaimed space: 0B")
    assert "Deleted Containers" in world.out("container", "prune", "-f")


def test_files_in_and_out(world: World, tmp_path: Path) -> None:
    world.docker("run", "-d", "--name", "cp1", "box:1", "sleep", "100")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_text("carried\n")
    world.docker("cp", str(tmp_path / "in"), "cp1:/tmp")
    assert world.out("exec", "cp1", "cat", "/tmp/in/file") == "carried"
    world.docker("cp", "cp1:/etc/passwd", str(tmp_path / "out"))
    assert (tmp_path / "out").read_text().startswith("root:")
    world.docker("exec", "cp1", "sh", "-c", "rm /etc/plain; echo x >>/etc/group")
    changed = world.out("diff", "cp1").splitlines()
    assert {"D /etc/plain", "C /etc/group", "A /tmp/in/file"} <= set(changed)
    world.docker("export", "-o", str(tmp_path / "whole.tar"), "cp1")
    listed = subprocess.run(["tar", "tf", str(tmp_path / "whole.tar")], capture_output=True, text=True, check=True).stdout
    assert "tmp/in/file" in listed and "etc/plain" not in listed
    missing = world.docker("cp", "cp1:/nosuch", str(tmp_path), check=False)
    assert missing.returncode == 1 and "Could not find the file /nosuch in container cp1" in missing.stderr


def test_top_and_stats(world: World) -> None:
    world.docker("run", "-d", "--name", "st", "-m", "64m", "box:1", "sh", "-c", "while :; do :; done")
    world.until(lambda: "while" in world.out("top", "st"), "the runtime has become the program: a moment after the start")
    shown = json.loads(world.out("stats", "--no-stream", "--format", "{{json .}}", "st"))
    assert shown["Name"] == "st" and float(shown["CPUPerc"].rstrip("%")) > 1 and "64MiB" in shown["MemUsage"] and shown["PIDs"] != "0"
    world.docker("kill", "st")
    status, body = world.api("GET", "/containers/st/stats?stream=0")
    assert status == 200 and body["memory_stats"] == {} and body["cpu_stats"]["cpu_usage"]["total_usage"] == 0


def test_who_kills_finds_it_ended(world: World) -> None:
    """Much that has to die, so that it takes the kernel a moment."""
    many = "for i in $(seq 40); do sleep 100 & done; x=$(head -c 60000000 /dev/zero | tr '\\0' x); echo up; wait"
    for _ in range(3):
        world.docker("run", "-d", "--name", "ki", "--restart", "always", "-p", "8095:80", "box:1", "sh", "-c", many)
        world.until(lambda: "up" in world.out("logs", "ki"), "it has begun")
        world.docker("kill", "ki")
        state = world.inspect("ki")["State"]
        assert (state["Status"], state["ExitCode"]) == ("exited", 137)
        world.docker("rm", "ki")


def test_changes_while_it_runs(world: World) -> None:
    world.docker("run", "-d", "--name", "up1", "box:1", "sleep", "100")
    world.docker("update", "--memory", "64m", "--memory-swap", "64m", "--cpus", "0.5", "--pids-limit", "40", "up1")
    host = world.inspect("up1")["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"], host["PidsLimit"]) == (64 << 20, 64 << 20, 500_000_000, 40)
    limit = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null"
    assert world.docker("exec", "up1", "sh", "-c", limit, check=False).stdout.strip() == str(64 << 20)
    refused = world.docker("update", "--memory", "128m", "up1", check=False)
    assert refused.returncode == 1 and "memoryswap" in refused.stderr
    world.docker("restart", "-t", "0", "up1")
    assert world.docker("exec", "up1", "sh", "-c", limit, check=False).stdout.strip() == str(64 << 20)


def test_health(world: World) -> None:
    check = ("--health-interval", "100ms", "--health-retries", "2", "--health-cmd", "test -e /ok || { echo no; exit 1; }")
    world.docker("run", "-d", "--name", "he", *check, "box:1", "sleep", "100")
    world.until(lambda: "(unhealthy)" in world.out("ps", "--format", "{{.Status}}"), "it is unhealthy")
    health = world.inspect("he")["State"]["Health"]
    assert health["FailingStreak"] >= 2 and health["Log"][-1]["Output"] == "no\n" and health["Log"][-1]["ExitCode"] == 1
    assert world.out("ps", "-q", "--filter", "health=unhealthy")
    world.docker("exec", "he", "touch", "/ok")
    world.until(lambda: world.inspect("he")["State"]["Health"]["Status"] == "healthy", "it is healthy")
    record = world.folder / "d" / "containers" / world.inspect("he")["Id"] / "state"
    world.until(lambda: '"health":"healthy"' in record.read_text().splitlines()[-1], "it is written down")
    world.stop(signal.SIGKILL)
    world.start()
    assert world.inspect("he")["State"]["Health"]["Status"] == "healthy"
    world.docker("exec", "he", "rm", "/ok")
    world.until(lambda: world.inspect("he")["State"]["Health"]["Status"] == "unhealthy", "it is checked after a restart of the daemon too")


def test_a_client_that_waits_for_the_end_is_told(world: World, tmp_path: Path) -> None:
    world.docker("run", "-d", "--name", "wt", "box:1", "sh", "-c", "sleep 0.5; exit 8")
    assert world.out("wait", "wt") == "8" and world.out("wait", "wt") == "8"
    assert world.api("POST", "/containers/wt/wait?condition=bogus")[0] == 400
    until_told = "until [ -e /told/end ]; do sleep 0.05; done; exit 9"
    world.docker("run", "-d", "--name", "wr", "--rm", "-v", f"{tmp_path}:/told", "box:1", "sh", "-c", until_told)
    with world.asking("POST", "/containers/wr/wait?condition=removed") as answer:
        (tmp_path / "end").touch()
        assert (answer.status, json.loads(answer.read())) == (200, {"StatusCode": 9})


def test_attach_shows_what_was_written_before(world: World, tmp_path: Path) -> None:
    until_told = "echo one; until [ -e /told/end ]; do sleep 0.05; done; echo two"
    world.docker("run", "-d", "--name", "at", "-v", f"{tmp_path}:/told", "box:1", "sh", "-c", until_told)
    world.until(lambda: "one" in world.out("logs", "at"), "it has begun")
    with world.asking("POST", "/containers/at/attach?logs=1&stream=1&stdout=1&stderr=1") as answer:
        (tmp_path / "end").touch()
        status, data = answer.status, answer.read()
    assert status == 200 and data == b"\x01\0\0\0\0\0\0\x04one\n\x01\0\0\0\0\0\0\x04two\n"
    assert world.api("POST", "/containers/at/attach?logs=1&stdout=1") == (200, data)
