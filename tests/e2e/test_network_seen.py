"""Who is on a network, as the docker client shows it: the same of a container and of its network, events in Docker's words, refusals."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from conftest import ECHO, World
from test_network_check import removed

DENIED = (
    "Error response from daemon: Could not attach to network closed: rpc error: code = PermissionDenied desc = network closed not manually"
    " attachable"
)


@pytest.fixture(scope="module")
def nets(world: World) -> Iterator[World]:
    world.docker("network", "create", "-d", "overlay", "--attachable", "open")
    world.docker("network", "create", "-d", "overlay", "closed")
    world.docker("network", "create", "own", node="worker01")
    yield world
    world.docker("network", "rm", "own", node="worker01")
    for name in ("open", "closed"):
        world.until(lambda name=name: removed(world, name), f"{name} is removed")  # type: ignore[misc]


def inspected(world: World, kind: str, name: str, node: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(world.docker(kind, "inspect", name, node=node))[0]
    return found


@contextmanager
def service(world: World, name: str, node: str, network: str | None) -> Iterator[dict[str, Any]]:
    """Its one task."""
    template: dict[str, Any] = {"Placement": {"Constraints": [f"node.hostname=={node}"]}}
    if network is not None:
        template["Networks"] = [{"Target": network}]
    world.create(name, 1, template=template)
    try:
        yield world.until(lambda: world.running(name), f"{name} runs")[0]
    finally:
        world.remove(name)


def events(world: World, node: str, container: str) -> list[str]:
    """What has happened on this node to the container, from its making to its end, and to networks because of it.

    Asked again until it has ended: the client counts in whole seconds.
    """
    shown = "{{.Type}} {{.Action}} {{.Actor.Attributes.name}} {{.Actor.Attributes.type}} {{.Actor.Attributes.container}} {{.Actor.ID}}"

    def found() -> list[str]:
        said = world.docker("events", "--since", "1", "--until", "0s", "--format", shown, node=node)
        lines = [" ".join(line.split()[:4]) for line in said.splitlines() if container in line]
        return lines if any(line.startswith("container destroy") for line in lines) else []

    told: list[str] = world.until(found, f"{container[:12]} is destroyed", seconds=20)
    return told


@pytest.mark.parametrize("node", ["manager", "worker01"])
@pytest.mark.parametrize("network", ["open", None], ids=["overlay", "bridge"])
def test_a_task_is_seen_the_same_from_both_sides_and_its_networks_tell_of_it(nets: World, node: str, network: str | None) -> None:
    world = nets
    with service(world, "seen", node, network) as task:
        id = task["Status"]["ContainerStatus"]["ContainerID"]
        name = network or "bridge"
        place = inspected(world, "container", id, node)["NetworkSettings"]["Networks"][name]
        entry = inspected(world, "network", name, node)["Containers"][id]
        assert place["EndpointID"] and place["MacAddress"]
        assert (entry["EndpointID"], entry["MacAddress"]) == (place["EndpointID"], place["MacAddress"])
        assert entry["IPv4Address"] == f"{place['IPAddress']}/{place['IPPrefixLen']}"
        if network and node == "manager":
            verbose = json.loads(world.docker("network", "inspect", "-v", network))[0]["Services"]["seen"]["Tasks"][0]
            assert verbose["EndpointID"] == place["EndpointID"]
        assert real_mac(task["Status"]["ContainerStatus"]["PID"]) == place["MacAddress"]
    kind = "overlay" if network else "bridge"
    told = events(world, node, id)
    order = [f"network connect {name} {kind}", f"network disconnect {name} {kind}"]
    assert [line for line in told if line.startswith("network")] == order
    said = [line.split()[1] for line in told]
    assert said.index("create") < said.index("connect") < said.index("start") < said.index("die") < said.index("disconnect"), told


def real_mac(pid: int) -> str:
    line = ["nsenter", f"--target={pid}", "--net", "ip", "-j", "link", "show", "eth0"]
    return str(json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)[0]["address"])


@pytest.mark.parametrize("node", ["manager", "worker01"])
def test_a_plain_container_on_an_overlay_is_seen_the_same_from_both_sides(nets: World, node: str) -> None:
    world = nets
    id = world.docker("run", "-d", "--init", "--name", "plain", "--network", "open", ECHO, node=node).strip()
    try:
        shown = inspected(world, "container", "plain", node)
        place = shown["NetworkSettings"]["Networks"]["open"]
        seen = inspected(world, "network", "open", node)["Containers"]
        assert set(seen) == {id, "lb-open"}
        entry = seen[id]
        assert entry["Name"] == "plain" and place["EndpointID"]
        assert (entry["EndpointID"], entry["MacAddress"]) == (place["EndpointID"], place["MacAddress"])
        assert real_mac(shown["State"]["Pid"]) == place["MacAddress"]
        assert world.docker("node", "ps", node).startswith("ID "), "its place is no task to a client that looks for images"
        (task,) = json.loads(world.docker("network", "inspect", "-v", "open"))[0]["Services"][""]["Tasks"]
        assert (task["EndpointID"], task["EndpointIP"]) == (place["EndpointID"], place["IPAddress"])
    finally:
        world.docker("rm", "-f", "plain", node=node)
    told = [" ".join(line.split()[:2]) for line in events(world, node, id)]
    order = ["container create", "network connect", "container start", "container kill", "container die", "network disconnect"]
    assert told == [*order, "container destroy"]


@pytest.mark.parametrize("node", ["manager", "worker01"])
def test_an_overlay_that_is_not_attachable_takes_nobody(nets: World, node: str) -> None:
    """By `network connect`, to one that runs and one that does not, and by `run`; also where a task has brought the network to the node."""
    world = nets
    world.docker("run", "-d", "--init", "--name", "c1", ECHO, node=node)
    world.docker("create", "--name", "c2", ECHO, node=node)

    def refused() -> None:
        assert world.docker("network", "connect", "closed", "c1", node=node, check=False).strip() == DENIED
        assert world.docker("network", "connect", "closed", "c2", node=node, check=False).strip() == DENIED
        assert DENIED.removeprefix("Error response from daemon: ") in world.docker(
            "run", "--rm", "--network", "closed", ECHO, "true", node=node, check=False
        )

    try:
        refused()
        with service(world, "closed-one", node, "closed"):
            refused()
        for name in ("c1", "c2"):
            assert set(inspected(world, "container", name, node)["NetworkSettings"]["Networks"]) == {"bridge"}
    finally:
        world.docker("rm", "-f", "c1", "c2", node=node)
