"""What services and stacks are called by, and what is left of those that go as soon as they come: a real cluster, the docker client."""

from __future__ import annotations

from pathlib import Path

from conftest import ECHO, World
from test_network_check import removed
from test_stack import client

NODES = ("manager", "worker01", "worker02", "worker03")
STACK = f"""
services:
  one:
    image: {ECHO}
    stop_grace_period: 1s
    deploy: {{replicas: 6}}
  two:
    image: {ECHO}
    stop_grace_period: 1s
    deploy: {{mode: global}}
"""


def test_tasks_are_found_by_the_host_names_that_a_template_gives_them(world: World) -> None:
    world.docker("network", "create", "-d", "overlay", "--attachable", "names")
    template = "{{.Service.Name}}-{{.Task.Slot}}"
    world.docker("service", "create", "-d", "--name", "mq", "--replicas", "3", "--hostname", template, "--network", "names", ECHO)
    tasks = world.until(lambda: found if len(found := world.running("mq")) == 3 else None, "mq runs")
    try:
        for node in ("manager", "worker01"):
            for task in tasks:
                address = task["NetworksAttachments"][0]["Addresses"][0].partition("/")[0]
                name = f"mq-{task['Slot']}"
                world.until(
                    lambda node=node, name=name, address=address: address in client(world, node, "names", "nslookup", name, check=False),
                    f"{name} is {address} on {node}",
                )
            assert "NXDOMAIN" in client(world, node, "names", "nslookup", "mq-4", check=False)
    finally:
        world.remove("mq")
        world.until(lambda: removed(world, "names"), "names is removed")


def test_a_stack_that_goes_as_soon_as_it_has_come_leaves_no_container(world: World, tmp_path: Path) -> None:
    """Its tasks are taken back at every point of their way up."""
    file = tmp_path / "fast.yml"
    file.write_text(STACK)
    for _ in range(12):
        world.docker("stack", "deploy", "-d", "-c", str(file), "fast")
        world.docker("stack", "rm", "fast")

    def left() -> list[str]:
        return [line for node in NODES for line in world.docker("ps", "-aq", "--filter", "name=fast_", node=node).split()]

    world.until(lambda: not left(), "no container is left")
    assert world.docker("network", "ls", "-q", "--filter", "name=fast_") == ""
