"""Published ports: which ones a service gets, and whether it may have those it asks for.

Ingress ports are the cluster's: each (protocol, number) belongs to one service. One without a number gets the next dynamic one (30000 to
32767, in turn), and keeps it through updates as long as name, protocol and target port stay. Host-mode ports are copied: the scheduler
looks after them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from skep.model.cluster import Cluster
from skep.model.defaults import DYNAMIC_PORTS
from skep.model.node import Node
from skep.model.service import Service
from skep.model.spec import EndpointSpec, PortConfig, ServiceSpec
from skep.plan.view import View

Port = tuple[str, int]
"""(protocol, published port)."""


class PortsTaken(Exception):
    """Why a service cannot have its ports now; the text is Docker's where Docker has one."""


def is_ingress(port: PortConfig) -> bool:
    return port.publish_mode in ("", "ingress")


def ingress_ports(ports: Iterable[PortConfig]) -> tuple[Port, ...]:
    return tuple((port.protocol or "tcp", port.published_port) for port in ports if is_ingress(port) and port.published_port)


def host_ports(ports: Iterable[PortConfig]) -> tuple[Port, ...]:
    return tuple((port.protocol or "tcp", port.published_port) for port in ports if not is_ingress(port) and port.published_port)


def publishes_ingress(spec: EndpointSpec | None) -> bool:
    return any(is_ingress(port) for port in (spec.ports if spec else None) or ())


def next_port(protocol: str, cursor: int, taken: Callable[[Port], bool]) -> int | None:
    """The free dynamic port after the last one given; None when there is none left."""
    port = cursor if cursor in DYNAMIC_PORTS else DYNAMIC_PORTS[-1]
    for _ in DYNAMIC_PORTS:
        port = port + 1 if port < DYNAMIC_PORTS[-1] else DYNAMIC_PORTS[0]
        if not taken((protocol, port)):
            return port
    return None


def give_ports(
    wanted: Sequence[PortConfig],
    before: Sequence[PortConfig],
    owner: Callable[[Port], str | None],
    hosted: Callable[[Port], bool],
    cursors: Mapping[str, int],
) -> tuple[tuple[PortConfig, ...], dict[str, int]]:
    """The ports with their numbers, and the cursors that moved.

    `before` is what the service has now, `owner` names the other service that holds an ingress port, `hosted` says whether some service
    publishes it in host mode (no dynamic port is put there). Raises PortsTaken; then nothing is given.
    """
    mine = set(ingress_ports(wanted))
    kept = {(p.name, p.protocol or "tcp", p.target_port): p.published_port for p in before if is_ingress(p) and p.published_port}
    moved: dict[str, int] = {}
    given: list[PortConfig] = []
    for port in wanted:
        protocol = port.protocol or "tcp"
        published = port.published_port
        if is_ingress(port):
            if published:
                other = owner((protocol, published))
                if other is not None:
                    raise PortsTaken(f"port '{published}' is already in use by {other} as an ingress port")
            else:
                published = kept.pop((port.name, protocol, port.target_port), 0)
                if not published or (protocol, published) in mine or owner((protocol, published)) is not None:
                    free = next_port(
                        protocol, moved.get(protocol, cursors.get(protocol, 0)), lambda p: p in mine or owner(p) is not None or hosted(p)
                    )
                    if free is None:
                        raise PortsTaken(f"could not find an available {protocol} port from 30000 to 32767 for port {port.target_port}")
                    published = moved[protocol] = free
                mine.add((protocol, published))
        given.append(
            PortConfig(
                name=port.name,
                protocol=protocol,
                target_port=port.target_port,
                published_port=published,
                publish_mode=port.publish_mode or "ingress",
            )
        )
    return tuple(given), moved


def own_ports(view: View) -> frozenset[Port]:
    """The cluster's own: what comes in by them must not be led to tasks, or its nodes lose one another."""
    found = {("udp", cluster.data_path_port) for cluster in view.all(Cluster)}
    numbers = {node.manager_addr.rpartition(":")[2] for node in view.all(Node) if node.manager_addr}
    return frozenset(found | {("tcp", int(number)) for number in numbers if number.isdecimal()})


def port_conflict(view: View, spec: ServiceSpec, service_id: str = "") -> str | None:
    """Docker's sentence when another service has a published port of this spec; None when it may be stored.

    `service_id` is the service itself at an update. Two services may publish the same port in host mode: the scheduler keeps them apart.
    """
    asked = (spec.endpoint_spec.ports if spec.endpoint_spec else None) or ()
    ingress, host = set(ingress_ports(asked)), set(host_ports(asked))
    if not ingress and not host:
        return None
    for service in view.all(Service):
        if service.id == service_id:
            continue
        theirs = (service.spec.endpoint_spec.ports if service.spec.endpoint_spec else None) or ()
        for port in (*theirs, *(service.endpoint.ports if service.endpoint else ())):
            key = (port.protocol or "tcp", port.published_port)
            if is_ingress(port):
                if key in ingress or key in host:
                    return f"port '{key[1]}' is already in use by service '{service.name}' ({service.id}) as an ingress port"
            elif key in ingress:
                return f"port '{key[1]}' is already in use by service '{service.name}' ({service.id}) as a host-published port"
    return None
