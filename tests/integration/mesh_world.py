"""Three nodes with a published service, one of them without a task of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from netlab import Lab, Node, apply_all, attach, lab
from netlab_objects import endpoint, service

from skep.model.assignment import EndpointItem

CLIENT = "192.168.77.99"
WEB = service("web", (8080, 80, "tcp"), (8053, 53, "udp"))


def backend(it: Lab, node: Node, address: str) -> EndpointItem:
    """A task of `web` on this node, called by its address."""
    sandbox = attach(node, address)
    it.serve(node.sandbox(sandbox), 80, address)
    it.serve(node.sandbox(sandbox), 53, address, "udp")
    return endpoint("web", node.id, address)


@contextmanager
def meshed() -> Iterator[Lab]:
    """Tasks on node1 and node2, none on node3; the client is outside."""
    with lab(3) as it:
        it.client = it.namespace("client", CLIENT)
        apply_all(it, services=[WEB])
        it.endpoints = [backend(it, it.nodes[0], "10.0.0.5"), backend(it, it.nodes[1], "10.0.0.6")]
        apply_all(it, services=[WEB], endpoints=it.endpoints)
        yield it
