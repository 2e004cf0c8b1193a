"""Stacks and overlay networks through the real docker client on four real nodes: the tutorial's file as printed, a client on its network,
and a published port that leads through it."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from conftest import ECHO, World
from test_service import addresses, get

WEBAPI = textwrap.dedent(
    """\
    version: "3"
    services:
        nginx:
            image: gihyodocker/nginx-proxy:latest
            deploy:
                replicas: 3
                placement:
                    constraints: [node.role != manager]
            environment:
                BACKEND_HOST: echo_api:8080
            depends_on:
                - api
            networks:
                - ch03

        api:
            image: registry:5000/example/echo:latest
            deploy:
                replicas: 3
                placement:
                    constraints: [node.role != manager]
            networks:
                - ch03

    networks:
        ch03:
            external: true
    """
)


def client(world: World, node: str, network: str, *command: str, check: bool = True) -> str:
    """A container on an attachable network, on this node: what it prints."""
    return world.docker(
        "run", "--rm", "--init", "--network", network, "--entrypoint", command[0], ECHO, *command[1:], node=node, check=check
    )


def fetched(world: World, node: str, network: str, url: str) -> str:
    return client(world, node, network, "timeout", "5", "wget", "-q", "-O", "-", url, check=False)


def remaining(world: World, prefix: str) -> list[Any]:
    found: list[Any] = world.api("GET", f'/tasks?filters={{"name":["{prefix}"]}}')
    return found


@pytest.fixture
def ch03(world: World, tmp_path: Path) -> Path:
    file = tmp_path / "ch03-webapi.yml"
    file.write_text(WEBAPI)
    return file


def test_the_tutorials_stack(world: World, ch03: Path) -> None:
    made = world.docker("network", "create", "--driver=overlay", "--attachable", "ch03")
    assert re.fullmatch(r"[0-9a-z]{25}\n", made)
    said = world.docker("stack", "deploy", "-c", str(ch03), "echo")
    assert "Creating service echo_nginx" in said and "Creating service echo_api" in said
    for service in ("echo_api", "echo_nginx"):
        world.until(lambda service=service: len(world.running(service)) == 3, f"{service} runs")  # type: ignore[misc]

    # a client on the network gets through nginx to the service behind it, from the manager and from a worker
    for node in ("manager", "worker02"):
        world.until(lambda node=node: fetched(world, node, "ch03", "http://echo_nginx/") == "Hello Docker!!", f"answered on {node}")  # type: ignore[misc]
    wanted = {t["NetworksAttachments"][0]["Addresses"][0].partition("/")[0] for t in world.running("echo_api")}

    def found() -> set[str]:
        names = client(world, "worker01", "ch03", "nslookup", "tasks.echo_api", check=False)
        return set(re.findall(r"Address[^:]*: (10\.\d+\.\d+\.\d+)", names))

    world.until(lambda: found() == wanted, "worker01 knows all tasks")
    # no task was restarted on the way, although nothing said which service comes first
    assert len(world.tasks("echo_api")) == 3 and len(world.tasks("echo_nginx")) == 3

    shown = world.docker("stack", "services", "echo")
    assert "echo_api" in shown and "echo_nginx" in shown and shown.count("3/3") == 2
    assert "gihyodocker/nginx-proxy:latest" in shown
    placed = world.docker("stack", "ps", "echo")
    assert placed.count("Running") >= 6 and " manager " not in placed
    assert world.docker("stack", "ls").split()[-2:] == ["echo", "2"]

    # the proxy on a port of every node, and of this host
    world.docker(
        "service", "create", "--name", "front", "--network", "ch03", "--publish", "8000:80", "--env", "BACKEND_HOST=echo_api:8080",
        "--env", "NGINX_PORT=80", "gihyodocker/nginx-proxy:latest",
    )  # fmt: skip
    for address in addresses(world):
        world.until(lambda address=address: get(f"http://{address}:8000/x") == "Hello Docker!!", f"the port answers on {address}")  # type: ignore[misc]
    assert get(f"http://127.0.0.1:{world.port}/") == "Hello Docker!!"
    refused = world.docker("network", "rm", "ch03", check=False)
    assert "is in use by" in refused
    world.docker("service", "rm", "front")

    gone = world.docker("stack", "rm", "echo")
    assert "Removing service echo_api" in gone and "Removing service echo_nginx" in gone
    world.until(lambda: not remaining(world, "echo_"), "no task is left")
    world.until(lambda: "ch03" in world.docker("network", "rm", "ch03", check=False).split()[:1], "the network can go")
    assert "ch03" not in world.docker("network", "ls")


def test_deployed_again_and_pruned(world: World, tmp_path: Path) -> None:
    """A stack with its own network: made, changed, pruned, removed and deployed again at once."""
    whole = tmp_path / "two.yml"
    two = f"  two: {{image: '{ECHO}', networks: {{default: {{aliases: [zwei]}}}}}}\n"
    whole.write_text(f"services:\n  one: {{image: '{ECHO}', deploy: {{replicas: 2}}}}\n{two}")
    half = tmp_path / "one.yml"
    half.write_text(f"services:\n{two}")
    said = world.docker("stack", "deploy", "--detach=false", "-c", str(whole), "s1")
    assert "Creating network s1_default" in said and "Creating service s1_one" in said
    assert len(world.running("s1_one")) == 2 and len(world.running("s1_two")) == 1
    task = world.running("s1_one")[0]
    node = next(n for n in world.api("GET", "/nodes") if n["ID"] == task["NodeID"])["Description"]["Hostname"]
    container = task["Status"]["ContainerStatus"]["ContainerID"]
    for name in ("two", "zwei", "s1_two", "1.s1_two"):
        answer = world.docker("exec", container, "timeout", "5", "wget", "-q", "-O", "-", f"http://{name}:8080/", node=node)
        assert answer == "Hello Docker!!", name
    said = world.docker("stack", "deploy", "--prune", "-c", str(half), "s1")
    assert "Removing service s1_one" in said and "Updating service s1_two" in said
    for _ in range(2):
        world.docker("stack", "rm", "s1")
        assert "Creating network s1_default" in world.docker("stack", "deploy", "--detach=false", "-c", str(half), "s1")
    world.docker("stack", "rm", "s1")
    world.until(lambda: not remaining(world, "s1_"), "no task is left")
    assert "Nothing found in stack: s1" in world.docker("stack", "rm", "s1", check=False)


def test_networks_are_apart(world: World) -> None:
    """Two services on different overlays neither resolve nor reach each other, on one node and across nodes."""
    for name in ("left", "right"):
        world.docker("network", "create", "-d", "overlay", "--attachable", name)
        world.docker("service", "create", "--mode", "global", "--network", name, "--name", f"on-{name}", ECHO)
    theirs = [t["NetworksAttachments"][0]["Addresses"][0].partition("/")[0] for t in world.running("on-right")]
    for node in ("manager", "worker01"):
        assert fetched(world, node, "left", "http://on-left:8080/") == "Hello Docker!!"
        assert "bad address" in fetched(world, node, "left", "http://on-right:8080/")
        for address in theirs:
            assert "Hello" not in client(
                world, node, "left", "timeout", "1", "wget", "-q", "-O", "-", f"http://{address}:8080/", check=False
            )
    for name in ("left", "right"):
        world.docker("service", "rm", f"on-{name}")
        world.until(lambda name=name: name in world.docker("network", "rm", name, check=False).split()[:1], f"{name} is gone")  # type: ignore[misc]
