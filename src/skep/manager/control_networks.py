"""Cluster networks: creating, removing."""

from __future__ import annotations

from skep.errors import Conflict, Forbidden, Invalid, NotImplementedHere
from skep.ids import Random, new_id
from skep.manager.control_services import needs_ingress
from skep.manager.control_validate import check_network, invalid
from skep.model.network import Network
from skep.model.service import Service
from skep.model.spec import Driver, NetworkSpec
from skep.model.tables import NETWORK_BY_NAME, SERVICE_BY_NETWORK, TASK_BY_NETWORK
from skep.plan.allocate import subnet_conflict, vni_conflict
from skep.plan.ops import Create, Delete
from skep.plan.view import View

PREDEFINED = ("bridge", "host", "none")


def predefined_driver(name: str) -> str:
    return "null" if name == "none" else name


def create_network(view: View, spec: NetworkSpec, driver: str, rng: Random) -> Create:
    if spec.name in (*PREDEFINED, "default"):
        raise Forbidden(f"{spec.name} is a pre-defined network and cannot be created")
    driver = driver or (spec.driver_configuration.name if spec.driver_configuration else "") or "overlay"
    check_network(spec)
    if view.find(NETWORK_BY_NAME, spec.name.lower()):
        raise Conflict(f"network with name {spec.name} already exists")
    if spec.ingress:
        if driver != "overlay":
            raise invalid(f"driver {driver} is not supported for the ingress network")
        for other in view.all(Network):
            if other.spec.ingress:
                raise Conflict(f"ingress network ({other.id}) is already present", rpc="AlreadyExists")
    if driver != "overlay":
        raise NotImplementedHere(f"skep's cluster networks are overlay networks: it has none with driver {driver}")
    conflict = subnet_conflict(view, spec) or vni_conflict(view, spec)
    if conflict is not None:
        raise invalid(conflict)
    options = (spec.driver_configuration.options if spec.driver_configuration else None) or {}
    return Create(Network(id=new_id(rng), spec=spec, driver=driver, options=dict(options)), "created by the user")


def remove_network(view: View, network: Network) -> Delete:
    if network.predefined:
        raise Forbidden(f"{network.name} is a pre-defined network and cannot be removed")
    user = network_user(view, network)
    if user:
        raise Invalid(user, rpc="FailedPrecondition")
    return Delete(Network, network.id, "removed by the user")


def network_user(view: View, network: Network) -> str:
    """Docker's sentence about who keeps it from being removed; empty: nobody.

    A task whose service has gone is about to stop, even where the planner has not told it yet: it keeps nothing.
    """
    if network.spec.ingress:
        for service in view.all(Service):
            if needs_ingress(service.spec):
                return f"ingress network cannot be removed because service {service.id} depends on it"
        return ""
    for service in view.find(SERVICE_BY_NETWORK, network.id):
        return f"network {network.id} is in use by service {service.id}"
    for task in view.find(TASK_BY_NETWORK, network.id):
        if task.live and (not task.service_id or view.get(Service, task.service_id) is not None):
            return f"network {network.id} is in use by task {task.id}"
    return ""


def ingress_network(rng: Random) -> Network:
    """Made at the cluster's birth; the allocator gives it the first subnet."""
    spec = NetworkSpec(name="ingress", driver_configuration=Driver(name="overlay"), ingress=True, scope="swarm")
    return Network(id=new_id(rng), spec=spec, driver="overlay")


def predefined_networks() -> list[Network]:
    """Each node has its own; in the store they are names that services may use. Their ids are their names: a node that is told of a place
    on one needs nothing else to find its own."""
    return [
        Network(
            id=name,
            spec=NetworkSpec(name=name, driver_configuration=Driver(name=predefined_driver(name)), scope="swarm"),
            driver=predefined_driver(name),
            predefined=True,
        )
        for name in PREDEFINED
    ]
