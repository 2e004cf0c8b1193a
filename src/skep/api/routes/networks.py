"""`/networks…`: the cluster's networks (on a manager), then this node's own. The list works on any node, and without a swarm."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from skep.api.context import Cluster
from skep.api.filters import Filters
from skep.api.query import go_bool
from skep.api.routing import Call, Routes, answer, nothing
from skep.api.wire import networks as wire
from skep.errors import Conflict, Forbidden, Invalid, NotFound, NotImplementedHere, Unavailable
from skep.model.network import Network
from skep.model.node import Node
from skep.model.service import Service
from skep.model.tables import TASK_BY_NETWORK, TASK_BY_NODE

ROUTES = Routes()
NO_SWARM = 'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.'
NO_LOCAL = "skep has no networks of a single node beside bridge, host and none yet: create it with --driver overlay"
NO_CONNECT = "skep does not connect plain containers to networks yet"


def _cluster(call: Call) -> Cluster | None:
    if not call.context.swarm.info().control_available:
        return None
    try:
        return call.cluster
    except Unavailable:
        return None


def _local(call: Call) -> list[dict[str, Any]]:
    info = call.context.host.info()
    node = str(info.get("ID") or info.get("Name", ""))
    return [wire.local_form(name, node, 0) for name in ("none", "host", "bridge")]


def _passes(wanted: Filters, shown: dict[str, Any], in_use: bool) -> bool:
    builtin = shown["Name"] in wire.LOCAL or shown["Ingress"]
    dangling = wanted.truth("dangling")
    return (
        wanted.exact("driver", shown["Driver"])
        and wanted.matches("id", shown["Id"])
        and wanted.matches("name", shown["Name"])
        and (wanted.matches("idOrName", shown["Name"]) or wanted.prefix("idOrName", shown["Id"]))
        and wanted.exact("scope", shown["Scope"])
        and wanted.labels("label", shown["Labels"])
        and wanted.exact("type", "builtin" if builtin else "custom")
        and (dangling is None or dangling == (not in_use and not builtin))
    )


@ROUTES.add("GET", "/networks")
async def ls(call: Call) -> web.StreamResponse:
    wanted = call.filters("dangling", "driver", "id", "idOrName", "label", "name", "scope", "type")
    for value in wanted.get("type"):
        if value not in ("custom", "builtin"):
            raise Invalid(f"invalid filter 'type={value}'")
    wanted.truth("dangling")
    shown = []
    cluster = _cluster(call)
    if cluster is not None:
        for network in cluster.view.all(Network):
            if network.predefined:
                continue
            form = wire.engine_form(network)
            used = bool(wanted.get("dangling")) and bool(cluster.view.find(TASK_BY_NETWORK, network.id))
            if _passes(wanted, form, used):
                shown.append(form)
    shown += [form for form in _local(call) if _passes(wanted, form, True)]
    return answer(shown)


def _find_local(call: Call, reference: str) -> dict[str, Any] | None:
    local = _local(call)
    for form in local:
        if reference in (form["Id"], form["Name"]):
            return form
    by_prefix = [form for form in local if reference and form["Id"].startswith(reference)]
    return by_prefix[0] if len(by_prefix) == 1 else None


@ROUTES.add("GET", "/networks/{id*}")
async def inspect(call: Call) -> web.StreamResponse:
    reference, scope = call.path["id"], call.query.get("scope", "")
    verbose = go_bool(call.query, "verbose")
    cluster = _cluster(call)
    if scope in ("", "local", "host") and (local := _find_local(call, reference)) is not None:
        return answer(local)
    if scope in ("", "swarm", "global") and cluster is not None:
        network = cluster.network(reference)
        if not network.predefined or scope:
            return answer(_inspected(cluster, network, verbose))
    raise NotFound(f"network {reference} not found")


def _inspected(cluster: Cluster, network: Network, verbose: bool) -> dict[str, Any]:
    tasks = list(cluster.view.find(TASK_BY_NETWORK, network.id))
    own = {task.id for task in cluster.view.find(TASK_BY_NODE, cluster.node_id)}
    shown = wire.engine_form(network, [t for t in tasks if verbose or t.id in own], _peers(cluster, network))
    if verbose:
        shown["Services"] = _services(cluster, network)
    return shown


def _peers(cluster: Cluster, network: Network) -> list[dict[str, str]]:
    """The nodes that take part: every node in ingress, elsewhere those with a running task on it."""
    if network.spec.ingress:
        nodes = {node.id for node in cluster.view.all(Node) if node.ready}
    else:
        nodes = {t.node_id for t in cluster.view.find(TASK_BY_NETWORK, network.id) if t.node_id and not t.terminal}
    found = [node for id in nodes if (node := cluster.view.get(Node, id)) is not None and node.status.addr]
    return [{"Name": node.id[:12], "IP": node.status.addr} for node in sorted(found, key=lambda n: n.index)]


def _services(cluster: Cluster, network: Network) -> dict[str, Any]:
    """`Services` of a verbose inspect: who is on the network, and where."""
    shown: dict[str, Any] = {}
    for task in cluster.view.find(TASK_BY_NETWORK, network.id):
        if task.terminal or not task.service_id:
            continue
        address = next((a.addresses[0] for a in task.attachments if a.network_id == network.id and a.addresses), "")
        node = cluster.view.get(Node, task.node_id) if task.node_id else None
        service = shown.setdefault(
            task.service_name, {"VIP": _vip(cluster, task.service_id, network), "Ports": [], "LocalLBIndex": 0, "Tasks": []}
        )
        service["Tasks"].append(
            {
                "Name": task.name,
                "EndpointID": wire.endpoint_id(task.id, network.id),
                "EndpointIP": address.partition("/")[0],
                "Info": {"Host IP": node.status.addr if node is not None else ""},
            }
        )
    return shown


def _vip(cluster: Cluster, service_id: str, network: Network) -> str:
    service = cluster.view.get(Service, service_id)
    endpoint = service.endpoint if service is not None else None
    addresses = [v.address for v in endpoint.vips if v.network_id == network.id] if endpoint is not None else []
    return addresses[0].partition("/")[0] if addresses else ""


@ROUTES.add("POST", "/networks/create")
async def create(call: Call) -> web.StreamResponse:
    request = await call.body(wire.NetworkRequest)
    if request.name in wire.LOCAL:
        raise Forbidden(f"operation is not permitted on predefined {request.name} network ")
    driver = request.driver or ("overlay" if request.scope == "swarm" else "bridge")
    if request.config_only or (request.config_from is not None and request.config_from.network):
        raise NotImplementedHere("skep has no configuration-only networks: give the options with the network itself")
    if driver != "overlay" and request.scope != "swarm":
        raise NotImplementedHere(NO_LOCAL)
    if driver == "overlay" and request.scope == "local":
        raise Invalid("overlay networks belong to the cluster: leave the scope out, or say swarm")
    if request.enable_ipv4 is False:
        raise Invalid("IPv4 cannot be disabled in a Swarm scoped network")
    try:
        cluster = call.cluster
    except Unavailable as error:
        if error.text.startswith("This node is not a swarm manager."):
            raise Forbidden(NO_SWARM) from None
        raise
    if any(n.name == request.name for n in cluster.view.all(Network)):
        raise Conflict(f"network with name {request.name} already exists")
    network = await cluster.create_network(wire.network_spec(request), driver=driver)
    return answer({"Id": network.id, "Warning": ""}, 201)


@ROUTES.add("DELETE", "/networks/{id*}")
async def remove(call: Call) -> web.StreamResponse:
    reference = call.path["id"]
    if (local := _find_local(call, reference)) is not None:
        raise Forbidden(f"{local['Name']} is a pre-defined network and cannot be removed")
    cluster = _cluster(call)
    if cluster is None:
        raise NotFound(f"network {reference} not found")
    await cluster.remove_network(cluster.network(reference).id)
    return nothing(204)


@ROUTES.add("POST", "/networks/prune")
async def prune(call: Call) -> web.StreamResponse:
    raise NotImplementedHere("skep does not prune networks yet: remove them by name")


@ROUTES.add("POST", "/networks/{id}/connect")
async def connect(call: Call) -> web.StreamResponse:
    raise NotImplementedHere(NO_CONNECT)


@ROUTES.add("POST", "/networks/{id}/disconnect")
async def disconnect(call: Call) -> web.StreamResponse:
    raise NotImplementedHere(NO_CONNECT)
