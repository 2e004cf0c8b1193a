"""What one node is told: its own tasks, and what its network must know of the others, as items under stable keys.

Everything here is a function of single objects, so that the cost of a change grows with what changed: `skep.manager.feeds` calls them for
the objects that changed, `items` puts them together for one node and is what the feeds are tested against. See docs/link.md.
"""

from __future__ import annotations

from collections.abc import Iterator

from skep.model.assignment import DiscoveryItem, EndpointItem, Item, NetworkItem, PeerItem, ServiceItem, TaskItem
from skep.model.cluster import Cluster
from skep.model.enums import TaskState
from skep.model.labels import patterns, refusal, service_labels
from skep.model.network import Network
from skep.model.node import Node
from skep.model.service import Service
from skep.model.spec import PortConfig
from skep.model.tables import SERVICE_BY_NETWORK, TASK_BY_NETWORK, TASK_BY_NODE
from skep.model.task import Attachment, Task
from skep.plan.view import View

NARROWEST, WIDEST = 576, 65535
"""MTUs of an underlay that are believed: others' kernels get routes of it, and no node may stop another's network by a number."""
SHORT_ID = 12
"""Digits of a container's id by which it is known, as Docker shows it."""
_TOLD = (
    "desired_state",
    "spec",
    "attachments",
    "endpoint",
    "service_id",
    "service_name",
    "slot",
    "spec_version",
    "generic_resources",
    "log_driver",
    "job_iteration",
)
"""The fields of a task that its node acts upon. Statuses come from the node itself; the rest (restart history, delays) is the planner's."""


def assigned(task: Task | None) -> bool:
    """Its node is told of it: from ASSIGNED on, and until it is deleted, so that the node keeps the container of a task that ended."""
    return task is not None and bool(task.node_id) and task.status.state >= TaskState.ASSIGNED


def placed(task: Task | None) -> bool:
    """It takes up its place on its networks."""
    return task is not None and bool(task.node_id) and TaskState.ASSIGNED <= task.status.state <= TaskState.RUNNING


def told_anew(old: Task | None, new: Task | None) -> bool:
    """Something but its status changed: the node must be told."""
    if old is None or new is None or not (assigned(old) and assigned(new)):
        return assigned(old) or assigned(new)
    if old.node_id != new.node_id:
        return True
    for field in _TOLD:
        before, after = getattr(old, field), getattr(new, field)
        if before is not after and before != after:
            return True
    return False


def task_item(task: Task, service: Service | None, allowed: tuple[str, ...] = ()) -> TaskItem:
    """`allowed`: patterns of the services that the cluster lets be privileged."""
    if service is None:
        return TaskItem(task=task)
    return TaskItem(
        task=task,
        service_labels=service.spec.labels,
        registry_auth=service.registry_auth,
        published=published_ports(service),
        refused=refusal(service_labels(service.spec.labels), service.name, allowed),
    )


def allowed_in(cluster: Cluster | None) -> tuple[str, ...]:
    return patterns(cluster.spec.labels) if cluster is not None else ()


def service_told_anew(old: Service | None, new: Service | None) -> bool:
    """The part of a service that goes along with each of its tasks changed."""
    return _carried(old) != _carried(new)


def _carried(service: Service | None) -> tuple[dict[str, str], str, tuple[PortConfig, ...]]:
    return ({}, "", ()) if service is None else (service.spec.labels, service.registry_auth, published_ports(service))


def published_ports(service: Service) -> tuple[PortConfig, ...]:
    """Ingress ports as the allocator gave them."""
    if service.endpoint is None:
        return ()
    return tuple(port for port in service.endpoint.ports if port.publish_mode != "host" and port.published_port)


def service_item(service: Service) -> ServiceItem | None:
    """None: nothing of it concerns other nodes' networks."""
    ports = published_ports(service)
    if not ports:
        return None
    return ServiceItem(service_id=service.id, name=service.name, ports=ports, local_only=service_labels(service.spec.labels).mesh_local)


def discovery_items(service: Service) -> Iterator[DiscoveryItem]:
    """One for each network that its spec names. None while it has no virtual address there yet: its tasks have none either until then."""
    spec = service.spec
    by_address = spec.endpoint_spec is not None and spec.endpoint_spec.mode == "dnsrr"
    vips = {vip.network_id: vip.address.partition("/")[0] for vip in (service.endpoint.vips if service.endpoint else ())}
    aliases: dict[str, dict[str, None]] = {}
    for target in spec.task_template.networks or spec.networks or ():
        aliases.setdefault(target.target, {}).update(dict.fromkeys(target.aliases or ()))
    for network_id, names in aliases.items():
        if by_address or network_id in vips:
            vip = "" if by_address else vips[network_id]
            found = tuple(name for name in names if name != service.name)
            yield DiscoveryItem(service_id=service.id, network_id=network_id, name=service.name, vip=vip, aliases=found)


def peer_item(node: Node) -> PeerItem | None:
    """None until it has an index and an address, and when it has left the cluster. A node that is down stays a peer: it may be cut off from
    the manager alone."""
    if not node.index or not node.status.addr or node.status.left:
        return None
    said = node.description.underlay_mtu if node.description is not None else 0
    mtu = said if NARROWEST <= said <= WIDEST else 0
    return PeerItem(node_id=node.id, index=node.index, address=node.status.addr, mtu=mtu, hostname=node.hostname)


def network_item(network: Network) -> NetworkItem | None:
    return NetworkItem(network=network) if network.allocated else None


def serving(task: Task) -> bool:
    """Takes part in names and load balancing: running (so healthy, if it has a health check), and not about to be stopped."""
    return task.status.state is TaskState.RUNNING and task.desired_state <= TaskState.COMPLETE and bool(task.node_id)


def leaving(task: Task) -> bool:
    """It is to stop, and has addresses that others may know."""
    return placed(task) and task.desired_state > TaskState.COMPLETE and any(place.addresses for place in task.attachments)


def endpoint_items(task: Task) -> Iterator[EndpointItem]:
    """Its addresses, one per network that has any."""
    if not placed(task):
        return
    for attachment in task.attachments:
        if attachment.addresses:
            yield EndpointItem(
                task_id=task.id,
                service_id=task.service_id,
                network_id=attachment.network_id,
                node_id=task.node_id,
                address=attachment.addresses[0].partition("/")[0],
                serving=serving(task),
                names=endpoint_names(task, attachment),
                hostname=_hostname(task),
            )


def endpoint_names(task: Task, attachment: Attachment) -> tuple[str, ...]:
    """What means this one task: its name, its slot's (in a global service its node's id stands for that), its container's short id. Aliases
    of a service's network mean all of its tasks (`discovery_items`), those of a plain container itself."""
    names: dict[str, None] = {}
    if task.service_id:
        names = {task.name: None, f"{task.slot or task.node_id}.{task.service_name}": None}
    else:
        names = dict.fromkeys(attachment.aliases)
    if short := _short_id(task):
        names[short] = None
    return tuple(names)


def _short_id(task: Task) -> str:
    """Told with RUNNING and not before: a task that starts changes twice for others, not three times."""
    plain = task.spec.network_attachment_spec
    if plain is not None:
        return plain.container_id[:SHORT_ID]
    container = task.status.container if task.status.state is TaskState.RUNNING else None
    return container.container_id[:SHORT_ID] if container else ""


def _hostname(task: Task) -> str:
    """Likewise."""
    container = task.status.container if task.status.state is TaskState.RUNNING else None
    return container.hostname if container else ""


def networks_of(task: Task | None) -> tuple[str, ...]:
    """The networks its node takes part in because of it."""
    if task is None or not placed(task):
        return ()
    return tuple(attachment.network_id for attachment in task.attachments)


def items(view: View, node_id: str) -> dict[str, Item]:
    """Everything one node is told, by key."""
    found: list[Item | None] = [peer_item(node) for node in view.all(Node)]
    found += [service_item(service) for service in view.all(Service)]
    networks = {network.id for network in view.all(Network) if network.spec.ingress}
    allowed = allowed_in(next(iter(view.all(Cluster)), None))
    for task in view.find(TASK_BY_NODE, node_id):
        if assigned(task):
            found.append(task_item(task, view.get(Service, task.service_id) if task.service_id else None, allowed))
        networks.update(networks_of(task))
    for network_id in networks:
        network = view.get(Network, network_id)
        if network is not None:
            found.append(network_item(network))
        for task in view.find(TASK_BY_NETWORK, network_id):
            found += [endpoint for endpoint in endpoint_items(task) if endpoint.network_id == network_id]
        for service in view.find(SERVICE_BY_NETWORK, network_id):
            found += [known for known in discovery_items(service) if known.network_id == network_id]
    return {item.key: item for item in found if item is not None}
