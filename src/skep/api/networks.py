"""What the routes of networks know of both kinds: the cluster's, where this node is a manager or takes part in them, and this node's own.

A reference is an id, else a name, else a prefix of one id, looked up in both kinds together: a network whose name begins another one's id
can be meant by its name. The cluster's images of `bridge`, `host` and `none` are found only by those who ask for scope swarm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from skep.api.context import Cluster
from skep.api.routing import Call
from skep.api.wire import networks as wire
from skep.errors import Invalid, NotFound, Unavailable
from skep.ids import endpoint_id
from skep.model.network import Network
from skep.model.node import Node
from skep.model.service import Service
from skep.model.tables import TASK_BY_NETWORK, TASK_BY_NODE
from skep.model.task import Task
from skep.node.base import LocalNetwork, is_task_sandbox
from skep.node.containers import task_of
from skep.node.plain_config import record_of

Found = Network | LocalNetwork


def cluster_of(call: Call) -> Cluster | None:
    """None off a manager."""
    if not call.context.swarm.info().control_available:
        return None
    try:
        return call.cluster
    except Unavailable:
        return None


def cluster_networks(call: Call) -> list[Network]:
    """All of them on a manager; elsewhere those this node takes part in."""
    cluster = cluster_of(call)
    known = cluster.view.all(Network) if cluster is not None else call.context.attachments.networks()
    return [network for network in known if not network.predefined]


async def find(call: Call, reference: str, scope: str = "") -> Found:
    """`scope`: local or host for this node's, swarm or global for the cluster's. Raises NotFound, or Invalid where several are meant."""
    known: list[Found] = []
    if scope in ("", "swarm", "global"):
        cluster = cluster_of(call)
        if cluster is not None and scope:
            known += cluster.view.all(Network)
        else:
            known += cluster_networks(call)
    if scope in ("", "local", "host"):
        known += call.context.networks.all()
    for what, meant in (
        ("id", [n for n in known if n.id == reference]),
        ("name", [n for n in known if n.name == reference]),
    ):
        if len(meant) == 1:
            return meant[0]
        if meant:
            raise _ambiguous(reference, meant, what)
    begun = [n for n in known if reference and n.id.startswith(reference)]
    if scope in ("", "swarm", "global") and cluster_of(call) is None:
        network = await call.context.attachments.find(reference)
        if network is not None and (not begun or network.name == reference):
            return network
    if len(begun) == 1:
        return begun[0]
    if begun:
        raise _ambiguous(reference, begun, "ID prefix")
    raise NotFound(f"network {reference} not found")


def _ambiguous(reference: str, meant: Sequence[Found], what: str) -> Invalid:
    return Invalid(f"network {reference} is ambiguous ({len(meant)} matches found based on {what})")


# who is there


def local_endpoints(call: Call, network: LocalNetwork) -> Iterator[wire.Endpoint]:
    """Containers on a network of this node: tasks' sandboxes carry the task's id. One without a container yet is shown under its own."""
    containers = {task_of(c.config): c.config for c in call.context.engine.all()}
    for place in call.context.networks.endpoints(network.id):
        if is_task_sandbox(place.sandbox_id):
            config = containers.get(place.sandbox_id)
        else:
            found = call.context.engine.get(place.sandbox_id)
            config = found.config if found is not None else None
        yield wire.Endpoint(
            key=config.id if config is not None else place.sandbox_id,
            name=config.name if config is not None else "",
            id=endpoint_id(place.sandbox_id, network.id) if is_task_sandbox(place.sandbox_id) else place.id,
            address=place.address,
            mac=place.mac,
        )


def cluster_endpoints(call: Call, network: Network) -> Iterator[wire.Endpoint]:
    """This node's containers on a network of the cluster: as the node knows them, else as the manager does; and the load balancer."""
    cluster = cluster_of(call)
    shown: set[str] = set()
    for endpoint in (*_of_containers(call, network), *_of_tasks(cluster, network)):
        if endpoint.key not in shown:
            shown.add(endpoint.key)
            yield endpoint
    if shown or network.spec.ingress:
        yield from _balancer(call, network)


def _balancer(call: Call, network: Network) -> Iterator[wire.Endpoint]:
    """What balances for this node's containers: its router, which has the network's gateway for its address, on every node the same."""
    config = next((c for c in network.ipam if c.gateway and ":" not in c.gateway), None)
    if config is None:
        return
    name, key = ("ingress", "ingress-sbox") if network.spec.ingress else (network.name, f"lb-{network.name}")
    id = endpoint_id(call.context.swarm.info().node_id, network.id)
    yield wire.Endpoint(key=key, name=f"{name}-endpoint", id=id, address=f"{config.gateway}/{config.subnet.partition('/')[2]}")


def _of_tasks(cluster: Cluster | None, network: Network) -> Iterator[wire.Endpoint]:
    if cluster is None:
        return
    for task in cluster.view.find(TASK_BY_NODE, cluster.node_id):
        container = task.status.container
        address = address_on(task, network)
        if container is not None and container.container_id and address and not task.terminal:
            yield wire.Endpoint(key=container.container_id, name=task.name, id=endpoint_id(task.id, network.id), address=address)


def _of_containers(call: Call, network: Network) -> Iterator[wire.Endpoint]:
    for container in call.context.engine.all():
        if not container.running:
            continue
        config = container.config
        record = record_of(config)
        if record is not None:
            for place in record.joined:
                if place.network_id == network.id and place.address:
                    id = place.endpoint_id or endpoint_id(config.id, network.id)
                    yield wire.Endpoint(key=config.id, name=config.name, id=id, address=place.address, mac=place.mac)
            continue
        described = call.state.containers.describe(container)
        for attached in described.networks:
            if attached.network_id == network.id and attached.addresses:
                id = endpoint_id(described.task_id, network.id)
                yield wire.Endpoint(key=config.id, name=config.name, id=id, address=attached.addresses[0])


def address_on(task: Task, network: Network) -> str:
    """With prefix length; empty: none there."""
    return next((a.addresses[0] for a in task.attachments if a.network_id == network.id and a.addresses), "")


# the whole of it


def inspected(call: Call, network: Network, verbose: bool) -> dict[str, Any]:
    cluster = cluster_of(call)
    if cluster is None:
        return wire.engine_form(network, cluster_endpoints(call, network)) | ({"Services": {}} if verbose else {})
    shown = wire.engine_form(network, cluster_endpoints(call, network), _peers(cluster, network))
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
    """`Services` of a verbose inspect: who is on the network, on all nodes. Plain containers stand under the empty name, as in Docker."""
    shown: dict[str, Any] = {}
    for task in cluster.view.find(TASK_BY_NETWORK, network.id):
        address = address_on(task, network)
        if task.terminal or not task.node_id or not address:
            continue
        node = cluster.view.get(Node, task.node_id)
        name = task.service_name
        if name not in shown:
            shown[name] = {
                "VIP": _vip(cluster, task.service_id, network),
                "Ports": _ports(cluster, task, network),
                "LocalLBIndex": 0,
                "Tasks": [],
            }
            shown[name]["LocalLBIndex"] = _index(cluster, task.service_id) if task.service_id else 0
        attached = task.spec.network_attachment_spec
        owner = attached.container_id if attached is not None and not task.service_id else task.id
        shown[name]["Tasks"].append(
            {
                "Name": owner if attached is not None else task.name,
                "EndpointID": endpoint_id(owner, network.id),
                "EndpointIP": address.partition("/")[0],
                "Info": {"Host IP": node.status.addr if node is not None else ""},
            }
        )
    return shown


def _index(cluster: Cluster, service_id: str) -> int:
    """Docker's LocalLBIndex is a firewall mark per service; ours needs none, so it is the service's place in the list, from 256 on."""
    ids = [service.id for service in cluster.view.all(Service)]
    return 256 + ids.index(service_id) if service_id in ids else 0


def _vip(cluster: Cluster, service_id: str, network: Network) -> str:
    service = cluster.view.get(Service, service_id)
    endpoint = service.endpoint if service is not None else None
    addresses = [v.address for v in endpoint.vips if v.network_id == network.id] if endpoint is not None else []
    return addresses[0].partition("/")[0] if addresses else "<nil>"


def _ports(cluster: Cluster, task: Task, network: Network) -> list[str]:
    """What the service publishes, on the ingress network: `Target: 80, Publish: 8080`."""
    service = cluster.view.get(Service, task.service_id)
    endpoint = service.endpoint if service is not None else None
    if not network.spec.ingress or endpoint is None:
        return []
    return [f"Target: {p.target_port}, Publish: {p.published_port}" for p in endpoint.ports if p.publish_mode != "host"]
