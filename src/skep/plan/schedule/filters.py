"""The filters a node must pass to get a task, in SwarmKit's order and words (manager/scheduler/filter.go, pipeline.go).

Each says how many tasks of the group a node has room for: none, some, or as many as you like. The first filter that says none is the one
that is counted, so that a pending task's error names one reason per node. How to add one: docs/scheduling.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from skep.model.network import Network
from skep.model.node import Node
from skep.model.spec import Platform
from skep.model.task import Task
from skep.plan.schedule.constraint import broken
from skep.plan.schedule.generic import UNLIMITED
from skep.plan.schedule.place import Place, Wants
from skep.plan.view import View


class Filter:
    """`one` and `many` are Docker's words for its verdict on a number of nodes."""

    one = ""
    many = ""

    def room(self, place: Place) -> int:
        """How many tasks of the group the node can still take, as far as this filter knows. 0 = it turns the node down."""
        raise NotImplementedError

    def reason(self, place: Place) -> str:
        """Why this node was turned down, for a person who asks about one node."""
        return self.one

    def explain(self, nodes: int) -> str:
        return self.one if nodes == 1 else self.many.format(nodes)


class Ready(Filter):
    one = "1 node not available for new tasks"
    many = "{} nodes not available for new tasks"

    def room(self, place: Place) -> int:
        return UNLIMITED if place.ready else 0

    def reason(self, place: Place) -> str:
        return f"not available for new tasks: {place.node.status.state.value}, {place.node.spec.availability or 'active'}"


class Resources(Filter):
    one = "insufficient resources on 1 node"
    many = "insufficient resources on {} nodes"

    def __init__(self, wants: Wants) -> None:
        self.wants = wants

    def room(self, place: Place) -> int:
        wants, room = self.wants, UNLIMITED
        if wants.nano_cpus:
            room = max(0, place.nano_cpus) // wants.nano_cpus
        if wants.memory_bytes:
            room = min(room, max(0, place.memory_bytes) // wants.memory_bytes)
        if wants.generic and room:
            room = min(room, place.generic().room(wants.generic))
        return room

    def reason(self, place: Place) -> str:
        wants = self.wants
        if place.nano_cpus < wants.nano_cpus:
            return f"insufficient resources: {wants.nano_cpus / 1e9:g} CPUs reserved, {max(0, place.nano_cpus) / 1e9:g} free"
        if place.memory_bytes < wants.memory_bytes:
            return f"insufficient resources: {wants.memory_bytes} bytes of memory reserved, {max(0, place.memory_bytes)} free"
        return "insufficient resources: not enough generic resources"


class Plugins(Filter):
    """Volume, network and log drivers. A node that lists no plugin at all says nothing about itself, and passes; log and network drivers
    are looked for only where the node lists any of that type."""

    one = "missing plugin on 1 node"
    many = "missing plugin on {} nodes"

    def __init__(self, volumes: Collection[str], networks: Collection[str], log: str) -> None:
        self.volumes = volumes
        self.networks = networks
        self.log = log

    def missing(self, node: Node) -> str | None:
        plugins = node.description.engine.plugins if node.description else None
        if not plugins:
            return None
        names = {(plugin.type, plugin.name) for plugin in plugins}
        types = {plugin.type for plugin in plugins}
        wanted = [("Volume", name) for name in self.volumes]
        if "Network" in types:
            wanted += [("Network", name) for name in self.networks]
        if self.log and "Log" in types:
            wanted.append(("Log", self.log))
        for kind, name in wanted:
            if (kind, name) not in names and (kind, f"{name}:latest") not in names:
                return f"{kind.lower()} driver {name}"
        return None

    def room(self, place: Place) -> int:
        return UNLIMITED if self.missing(place.node) is None else 0

    def reason(self, place: Place) -> str:
        return f"missing plugin: {self.missing(place.node)}"


class Constraints(Filter):
    one = "scheduling constraints not satisfied on 1 node"
    many = "scheduling constraints not satisfied on {} nodes"

    def __init__(self, constraints: Sequence[str]) -> None:
        self.constraints = constraints

    def room(self, place: Place) -> int:
        return UNLIMITED if broken(self.constraints, place.node) is None else 0

    def reason(self, place: Place) -> str:
        return f"scheduling constraint not satisfied: {broken(self.constraints, place.node)}"


ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def same_platform(wanted: Platform, node: Platform) -> bool:
    """An empty field of the wanted one matches anything."""
    architecture = ARCHITECTURES.get(wanted.architecture, wanted.architecture)
    return architecture in ("", ARCHITECTURES.get(node.architecture, node.architecture)) and wanted.os in ("", node.os)


class Platforms(Filter):
    one = "unsupported platform on 1 node"
    many = "unsupported platform on {} nodes"

    def __init__(self, platforms: Sequence[Platform]) -> None:
        self.platforms = platforms

    def room(self, place: Place) -> int:
        description = place.node.description
        if description is None:
            return 0
        return UNLIMITED if any(same_platform(wanted, description.platform) for wanted in self.platforms) else 0

    def reason(self, place: Place) -> str:
        description = place.node.description
        return f"unsupported platform: {description.platform.os}/{description.platform.architecture}" if description else "platform unknown"


class HostPorts(Filter):
    one = "host-mode port already in use on 1 node"
    many = "host-mode port already in use on {} nodes"

    def __init__(self, ports: Sequence[tuple[str, int]]) -> None:
        self.ports = ports

    def room(self, place: Place) -> int:
        return 0 if any(place.port_taken(port) for port in self.ports) else 1

    def reason(self, place: Place) -> str:
        taken = ", ".join(f"{number}/{protocol}" for protocol, number in self.ports if place.port_taken((protocol, number)))
        return f"host-mode port already in use: {taken}"


class MaxReplicas(Filter):
    one = "max replicas per node limit exceed"
    many = "max replicas per node limit exceed"

    def __init__(self, service_id: str, limit: int) -> None:
        self.service_id = service_id
        self.limit = limit

    def room(self, place: Place) -> int:
        return max(0, self.limit - place.count(self.service_id))

    def reason(self, place: Place) -> str:
        return f"max replicas per node limit exceed: {place.count(self.service_id)} of {self.limit}"


def plugins_of(task: Task, view: View) -> Plugins | None:
    """None when the task needs no plugin."""
    container = task.spec.container_spec
    volumes = set()
    for mount in (container.mounts if container else None) or ():
        driver = mount.volume_options.driver_config if mount.type in ("", "volume") and mount.volume_options else None
        if driver and driver.name not in ("", "local"):
            volumes.add(driver.name)
    networks = {network.driver for a in task.attachments if (network := view.get(Network, a.network_id)) and network.driver}
    driver = task.log_driver or task.spec.log_driver
    log = driver.name if driver and driver.name != "none" else ""
    return Plugins(sorted(volumes), sorted(networks), log) if volumes or networks or log else None


def filters_for(task: Task, wants: Wants, view: View) -> tuple[Filter, ...]:
    """Those that have something to say about this task, in order."""
    placement = task.spec.placement
    filters: list[Filter] = [Ready()]
    if wants.nano_cpus or wants.memory_bytes or wants.generic:
        filters.append(Resources(wants))
    plugins = plugins_of(task, view)
    if plugins is not None:
        filters.append(plugins)
    if placement is not None and placement.constraints:
        filters.append(Constraints(placement.constraints))
    if placement is not None and placement.platforms:
        filters.append(Platforms(placement.platforms))
    if wants.host_ports:
        filters.append(HostPorts(wants.host_ports))
    if placement is not None and placement.max_replicas > 0:
        filters.append(MaxReplicas(task.service_id, placement.max_replicas))
    return tuple(filters)


def room_for(filters: Sequence[Filter], place: Place) -> int:
    """How many tasks of the group the node can take."""
    room = UNLIMITED
    for filter_ in filters:
        here = filter_.room(place)
        if here <= 0:
            return 0
        if here < room:
            room = here
    return room


def turned_down(filters: Sequence[Filter], place: Place) -> Filter | None:
    """The first filter that turns the node down."""
    return next((filter_ for filter_ in filters if filter_.room(place) <= 0), None)


def explanation(filters: Sequence[Filter], places: Iterable[Place]) -> str:
    """What turned down how many nodes, most first, in Docker's words; "" when there is no node at all."""
    counts = dict.fromkeys(filters, 0)
    for place in places:
        filter_ = turned_down(filters, place)
        if filter_ is not None:
            counts[filter_] += 1
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return "; ".join(filter_.explain(number) for filter_, number in ordered if number)
