"""What a manager would send to the nodes of the laboratory: networks, endpoints, services, and a snapshot of them."""

from __future__ import annotations

import itertools

from skep.datapath.base import Snapshot
from skep.model.assignment import DiscoveryItem, EndpointItem, NetworkItem, PeerItem, ServiceItem
from skep.model.network import Network
from skep.model.spec import IPAMConfig, NetworkSpec, PortConfig

_numbers = itertools.count(1)


def network(
    number: int = 0,
    *,
    ingress: bool = True,
    internal: bool = False,
    subnet: str = "",
    gateway: str = "",
    vni: int = 0,
    options: dict[str, str] | None = None,
) -> NetworkItem:
    """10.0.<number>.0/24 with VNI 4096 + number, where nothing else is said."""
    name = "ingress" if ingress else f"net{number}"
    return NetworkItem(
        network=Network(
            id=name,
            spec=NetworkSpec(name=name, ingress=ingress, internal=internal),
            ipam=(IPAMConfig(subnet=subnet or f"10.0.{number}.0/24", gateway=gateway or f"10.0.{number}.1"),),
            vni=vni or 4096 + number,
            options=options or {},
        )
    )


def endpoint(service: str, node: str, address: str, *, network_id: str = "ingress", serving: bool = True) -> EndpointItem:
    return EndpointItem(
        task_id=f"{service}.{address}", service_id=service, network_id=network_id, node_id=node, address=address, serving=serving
    )


def service(name: str, *ports: tuple[int, int, str]) -> ServiceItem:
    """Ports: (published, target, protocol)."""
    return ServiceItem(
        service_id=name,
        name=name,
        ports=tuple(PortConfig(protocol=k, target_port=t, published_port=p, publish_mode="ingress") for p, t, k in ports),
    )


def snapshot(
    node_id: str,
    peers: list[PeerItem],
    *,
    networks: list[NetworkItem] | None = None,
    endpoints: list[EndpointItem] | None = None,
    services: list[ServiceItem] | None = None,
    discovery: list[DiscoveryItem] | None = None,
) -> Snapshot:
    return Snapshot(
        version=next(_numbers),
        node_id=node_id,
        networks={n.key: n for n in (networks if networks is not None else [network()])},
        peers={p.node_id: p for p in peers},
        endpoints={e.key: e for e in endpoints or []},
        services={s.key: s for s in services or []},
        discovery={d.key: d for d in discovery or []},
    )
