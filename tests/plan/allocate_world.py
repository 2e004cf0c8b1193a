"""A cluster at its birth, for the allocator."""

from __future__ import annotations

from placing_world import World


def born(**cluster: object) -> World:
    """A cluster as it is after `swarm init`: one node, ingress."""
    w = World()
    w.cluster(**cluster)
    w.node("n1")
    w.network("ingress", ingress=True)
    w.allocate()
    return w
