"""A node by itself, in no cluster, with networks of its own; and short words for its tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from netlab import (
    Lab,
    Node,
    ask,
    lab,
    shell,
)

from skep.datapath.base import LocalNetwork, LocalState, Place

CLIENT = "192.168.77.99"
RED = LocalNetwork(id="red", name="red", group=17, subnet="172.18.0.0/16", gateway="172.18.0.1")
BLUE = LocalNetwork(id="blue", name="blue", group=18, subnet="172.19.0.0/16", gateway="172.19.0.1", mtu=1400)
INSIDE = LocalNetwork(id="inside", name="inside", group=19, subnet="172.20.0.0/16", gateway="172.20.0.1", internal=True)
LONE = LocalNetwork(id="lone", name="lone", group=20, subnet="172.21.0.0/16", gateway="172.21.0.1", isolated=True)
ALL = (RED, BLUE, INSIDE, LONE)


def lay(node: Node, *networks: LocalNetwork) -> None:
    node.run(node.datapath.apply_local(LocalState(networks={n.id: n for n in networks})))


def put(it: Lab, node: Node, name: str, *places: tuple[LocalNetwork, int]) -> Path:
    """A container `name` with an address on each network, which answers on port 80 with its name; gives back its namespace."""
    made = tuple(Place(network_id=n.id, address=f"{n.subnet.removesuffix('.0.0/16')}.0.{last}/16") for n, last in places)
    path = Path(node.run(node.datapath.attach(name, made)).path)
    it.serve(path, 80, name)
    return path


def refused(source: Path, address: str, port: int = 80) -> None:
    with pytest.raises(OSError):
        ask(source, address, port, timeout=0.3)


@contextmanager
def lone_node(aside: bool) -> Iterator[tuple[Lab, Node]]:
    """With `aside` its FORWARD chain drops, as after dockerd."""
    with lab() as it:
        it.client = it.namespace("client", CLIENT)
        it.serve(it.client, 90, "client")
        node = Node(it, 1)
        it.nodes.append(node)
        if aside:
            iptables = shutil.which("iptables-legacy") or shutil.which("iptables") or pytest.skip("no iptables")
            shell(node.path, iptables, "-P", "FORWARD", "DROP")
            node.datapath = node.new_datapath(aside=True)
        node.run(node.datapath.start_up())
        lay(node, *ALL)
        yield it, node


def restarted(node: Node, **more: bool) -> None:
    aside = node.datapath._router.aside
    node.run(node.datapath.shut_down())
    node.datapath = node.new_datapath(aside=aside, **more)
    node.run(node.datapath.start_up())
