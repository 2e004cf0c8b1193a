"""The real `docker` command against the server: what it prints must be what it printed against a real engine.

Progress bars run on the command's own clock: of them the outcome is compared. Ids, ages and tokens are masked. Skipped where there is no
docker 26 or newer on PATH.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Sequence

import pytest
from api_world import WEB, World

from skep.link.messages import LogLine
from skep.testing.api_client import Client, serving

RECORDED = pathlib.Path(__file__).parents[1] / "data" / "recorded" / "cli-output.txt"


def docker_version() -> int:
    docker = shutil.which("docker")
    if docker is None:
        return 0
    out = subprocess.run([docker, "--version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"version (\d+)", out)
    return int(match[1]) if match else 0


pytestmark = pytest.mark.skipif(docker_version() < 26, reason="needs the docker command, 26 or newer")


def sections() -> dict[int, tuple[str, str, int]]:
    """Number -> (command, output, exit status)."""
    found = {}
    for part in RECORDED.read_text().split("### ")[1:]:
        head, _, rest = part.partition("\n")
        number, _, command = head.partition(" ")
        output, _, status = rest.rpartition("--rc ")
        found[int(number)] = (command, output, int(status))
    return found


PASSING = re.compile(
    r"overall progress|\d+/\d+: |verify: Waiting|image \S+ could not be accessed on a registry|its digest|nodes? independently|each node"
)
"""Progress, and the warning of an image that no registry knows."""


def normal(text: str) -> list[str]:
    """Lines without ids, ages, tokens, and the width that they give to columns."""
    lines = []
    for line in text.replace("\r", "").splitlines():
        if PASSING.match(line.strip()) or not line.strip():
            continue
        line = re.sub(r"(?:\d+ |[Aa]bout an? |[Ll]ess than a )(?:second|minute|hour)s? ago", "AGO", line)
        line = re.sub(r"SWMTKN-1-[0-9a-z]{50}-[0-9a-z]{25}", "TOKEN", line)
        line = re.sub(r"(?<![0-9a-z])[0-9a-z]{25}(?![0-9a-z])", "ID", line)
        line = re.sub(r"^[0-9a-z]{12}(?= )", "ID", line)
        line = re.sub(r"(?<=\d\.)[0-9a-z]{12}@", "ID@", line)
        line = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)? \+0000 utc", "TIME", line)
        lines.append(re.sub(r" {2,}", "  ", line.rstrip()))
    return lines


def without_certificate(lines: list[str]) -> list[str]:
    """Another CA, other plugins."""
    kept, inside = [], False
    for line in lines:
        inside = inside or line.startswith("-----BEGIN")
        if not inside and not re.match(r"\s*(?:Issuer|Log:|Network:)", line):
            kept.append(line)
        inside = inside and not line.startswith("-----END")
    return kept


def without_block(lines: list[str], title: str) -> list[str]:
    """What skep does not keep yet."""
    at = lines.index(title)
    return lines[:at] + lines[at + 3 :]


class Docker:
    def __init__(self, client: Client, world: World) -> None:
        self.client = client
        self.world = world

    async def run(self, *words: str) -> tuple[int, str]:
        environment = {"PATH": os.environ["PATH"], "HOME": os.path.dirname(self.client.path), "DOCKER_HOST": f"unix://{self.client.path}"}
        process = await asyncio.create_subprocess_exec(
            "docker", *words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
        )
        out, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode()


@contextlib.asynccontextmanager
async def playing() -> AsyncIterator[Docker]:
    """The server, and a world that goes on by a step, a quarter of a second of its time, with each answer.

    What a command sees of something that changes while it looks is thus the same however slow this machine is.
    """
    world = World()
    world.steps.time = time.time_ns()
    async with serving(world, answered=world.step) as client:
        yield Docker(client, world)


def compare(number: int, status: int, output: str) -> None:
    command, recorded, expected = sections()[number]
    ours, theirs = normal(output), normal(recorded)
    if number == 28:
        ours, theirs = without_certificate(ours), without_certificate(theirs)
    if number == 64:
        theirs = without_block(without_block(theirs, "Configs:"), "Secrets:")
        theirs = [line for line in theirs if not line.startswith("Networks:")]
    assert ours == theirs, command
    assert status == expected, command


WEB_1 = f"{WEB}:1"
CREATE = (
    *(
        "service",
        "create",
        "--name",
        "web",
        "--replicas",
        "2",
        "-p",
        "8080:80",
        "--label",
        "l1=v1",
        "--container-label",
        "c1=v1",
        "-e",
        "A=1",
    ),
    *("--mount", "type=volume,src=vol1,dst=/data", "--limit-memory", "64M", "--reserve-cpu", "0.1", "--update-delay", "1s"),
    *("--update-parallelism", "1", "--update-monitor", "2s", "--constraint", "node.role==manager", WEB_1),
)

Step = tuple[int, Sequence[str]]
"""(number of the recorded command, words; 0 = nothing to compare but success)."""

BEFORE: list[Step] = [
    (3, ("node", "ls")),
    (4, ("service", "ls")),
    (5, ("swarm", "init", "--advertise-addr", "10.0.99.1")),
    (6, ("swarm", "init", "--advertise-addr", "10.0.99.1")),
    (8, ("node", "ls")),
    (9, ("swarm", "join-token", "worker")),
]
NODES: list[Step] = [
    (26, ("node", "ls")),
    (28, ("node", "inspect", "--pretty", "node-2")),
    (30, ("node", "inspect", "nosuch")),
    (31, ("node", "update", "--label-add", "zone=b", "node-2")),
    (34, ("node", "update", "--availability", "drain", "node-2")),
    (35, ("node", "ls")),
    (36, ("node", "update", "--availability", "active", "node-2")),
    (37, ("node", "rm", "node-2")),
    (38, ("node", "ps", "self")),
    (39, ("node", "ls", "--filter", "role=worker", "-q")),
]
SERVICES: list[Step] = [
    (61, ("service", "ls")),
    (62, ("service", "ps", "web")),
    (64, ("service", "inspect", "--pretty", "web")),
    (66, ("service", "scale", "-d", "web=3")),
    (74, ("service", "create", "--name", "g", "--mode", "global", "-q", WEB_1, "sleep", "1000")),
    (0, ("service", "create", "--name", "bad", "--replicas", "1", "--constraint", "node.labels.x==y", "-d", "local:1")),
    (79, ("service", "ps", "bad", "--no-trunc")),
    (83, ("service", "create", "--name", "web", "local:1")),
    (84, ("service", "create", "--name", "badmode", "--replicas", "1", "--mode", "global", "local:1")),
    (85, ("service", "create", "--name", "BAD_name!", "local:1")),
    (88, ("service", "create", "--name", "x", "-d", "-p", "8080:80", "local:1")),
    (89, ("service", "create", "--name", "x", "-d", "--constraint", "bogus", "local:1")),
    (90, ("service", "create", "--name", "x", "-d", "--limit-cpu", "0.0000001", "local:1")),
    (91, ("service", "inspect", "nosuch")),
    (92, ("service", "rm", "nosuch")),
    (93, ("service", "scale", "nosuch=2")),
    (94, ("service", "scale", "g=2")),
    (97, ("service", "rollback", "g")),
    (98, ("service", "ps", "nosuch")),
    (99, ("service", "ls", "--filter", "name=we", "--format", "{{.Name}} {{.Replicas}}")),
    (104, ("service", "logs", "nosuch")),
    (0, ("service", "update", "--force", "-d", "web")),
]
AFTER: list[Step] = [
    (256, ("swarm", "leave")),
    (0, ("swarm", "leave", "--force")),
    (335, ("node", "ls")),
    (336, ("swarm", "leave")),
]


async def play(docker: Docker, steps: list[Step]) -> None:
    for number, words in steps:
        status, output = await docker.run(*words)
        if number:
            compare(number, status, output)
        else:
            assert status == 0, (words, output)


def test_what_docker_prints() -> None:
    async def run() -> None:
        async with playing() as docker:
            await play(docker, BEFORE)
            docker.world.join("node-2", "10.0.99.2")
            await play(docker, NODES)
            status, output = await docker.run(*CREATE)
            assert status == 0, output
            assert re.search(r"verify: Service [0-9a-z]{25} converged", output), output
            assert "overall progress: 2 out of 2 tasks" in output
            await play(docker, SERVICES)
            await logs(docker)
            status, output = await docker.run("service", "rm", "g", "bad", "say", "web")
            assert (status, output.split()) == (0, ["g", "bad", "say", "web"])
            await play(docker, AFTER)

    asyncio.run(run())


async def logs(docker: Docker) -> None:
    create = ("service", "create", "--name", "say", "-d", "--constraint", "node.role==manager", WEB_1, "sleep", "300")
    status, output = await docker.run(*create)
    assert status == 0, output
    while not (tasks := (await docker.client.ask("GET", '/tasks?filters={"service":["say"],"desired-state":["running"]}')).body):
        docker.world.step()
    for stream, text in ((1, b"out1\n"), (2, b"err1\n")):
        docker.world.logs.lines.append(LogLine(task_id=tasks[0]["ID"], stream=stream, at=time.time_ns(), data=text))
    await play(docker, [(102, ("service", "logs", "say")), (103, ("service", "logs", "--raw", "say"))])


def test_an_update_that_fails_rolls_back_on_the_screen() -> None:
    async def run() -> None:
        async with playing() as docker:
            await play(docker, BEFORE[2:3])
            create = ("service", "create", "-d", "--name", "flaky", "--replicas", "2", "--update-failure-action", "rollback")
            monitors = ("--update-monitor", "2s", "--update-delay", "0s", "--rollback-monitor", "1s", "--restart-delay", "1s")
            status, output = await docker.run(*create, *monitors, WEB_1)
            assert status == 0, output
            status, output = await docker.run("service", "update", "--image", "10.0.99.1:5000/nosuch:9", "--no-resolve-image", "flaky")
            compare(239, status, output)

    asyncio.run(run())


def test_info_version_events_and_containers_print() -> None:
    async def run() -> None:
        async with playing() as docker:
            await play(docker, BEFORE[2:3])
            status, output = await docker.run("info", "--format", "{{json .}}")
            info = json.loads(output)
            assert (status, info["Swarm"]["LocalNodeState"], info["Swarm"]["Nodes"]) == (0, "active", 1)
            assert not info.get("ServerErrors")
            status, output = await docker.run("version")
            assert (status, " API version:      1.50 (minimum version 1.24)" in output) == (0, True), output
            status, output = await docker.run("service", "create", "-d", "--name", "told", "--replicas", "1", WEB_1)
            assert status == 0, output
            events = (
                "events",
                "--since",
                "1h",
                "--until",
                "0s",
                "--filter",
                "type=service",
                "--format",
                "{{.Action}} {{.Actor.Attributes.name}}",
            )
            deadline = time.monotonic() + 10
            while "create told" not in (await docker.run(*events))[1]:
                assert time.monotonic() < deadline
            assert (await docker.run("ps", "-a"))[0] == 0
            assert (await docker.run("images"))[0] == 0
            assert (await docker.run("system", "df"))[0] == 0
            assert (await docker.run("network", "ls", "-q"))[0] == 0
            status, output = await docker.run("inspect", "nosuch")
            assert (status, "No such object: nosuch" in output) == (1, True), output
            status, output = await docker.run("run", "-d", "--name", "told", "--memory", "1k", "local:1", "true")
            assert status == 125 and "Minimum memory limit allowed is 6MB" in output, output
            assert (await docker.run("run", "-d", "--name", "told", "local:1", "true"))[0] == 0
            assert (await docker.run("rm", "-f", "told"))[1].strip() == "told"

    asyncio.run(run())
