"""`/nodes…` (managers only)."""

from __future__ import annotations

from aiohttp import web

from skep.api.filters import swarm_labels
from skep.api.query import loose_bool, version
from skep.api.routing import Call, Routes, answer, nothing
from skep.api.wire import nodes as wire
from skep.errors import SkepError
from skep.model.node import Node
from skep.model.spec import NodeSpec

ROUTES = Routes()


@ROUTES.add("GET", "/nodes")
async def ls(call: Call) -> web.StreamResponse:
    cluster = call.cluster
    wanted = call.filters("id", "name", "role", "membership", "label", "node.label")
    for key, known in (("role", ("manager", "worker")), ("membership", ("accepted", "pending"))):
        for value in wanted.get(key):
            if value.lower() not in known:
                raise SkepError(f"Invalid {key} filter: '{value}'")

    def passes(node: Node) -> bool:
        engine = node.description.engine.labels if node.description is not None else None
        return (
            wanted.prefix("id", node.id)
            and wanted.prefix("name", node.hostname)
            and wanted.exact("role", node.role.value)
            and wanted.exact("membership", node.membership.value)
            and swarm_labels(engine, wanted.get("label"))
            and swarm_labels(node.spec.labels, wanted.get("node.label"))
        )

    return answer([wire.node(node, cluster.node_id) for node in cluster.view.all(Node) if passes(node)])


@ROUTES.add("GET", "/nodes/{id}")
async def inspect(call: Call) -> web.StreamResponse:
    cluster = call.cluster
    return answer(wire.node(cluster.node(call.path["id"]), cluster.node_id))


@ROUTES.add("POST", "/nodes/{id}/update")
async def update(call: Call) -> web.StreamResponse:
    spec = await call.body(NodeSpec)
    number = version(call.query, "node")
    cluster = call.cluster
    await cluster.update_node(call.path["id"], number, spec)
    return nothing()


@ROUTES.add("DELETE", "/nodes/{id}")
async def remove(call: Call) -> web.StreamResponse:
    await call.cluster.remove_node(call.path["id"], loose_bool(call.query, "force"))
    return nothing()
