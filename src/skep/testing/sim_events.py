"""What users do to a simulated cluster, and what befalls it. Each call of `happen` is one event, chosen by the seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from skep.clock import MILLISECOND, SECOND
from skep.errors import SkepError
from skep.model.network import Network
from skep.model.node import Node
from skep.model.service import Service
from skep.model.spec import (
    ContainerSpec,
    Driver,
    Mode,
    NetworkSpec,
    Replicated,
    UpdateConfig,
)
from skep.model.tables import TASK_BY_SLOT, slot_key
from skep.model.task import Task
from skep.testing.sim_node import SimNode
from skep.testing.sim_wishes import ZONES, Wishes
from skep.testing.sim_world import FAIR, Weather

if TYPE_CHECKING:
    from skep.testing.sim_manager import SimManager
    from skep.testing.sim_world import World

MOST_SERVICES = 4
MOST_NODES = 6


class Events:
    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.rng
        self._wishes = Wishes(world.rng)
        self._storms = 0
        self.services = 0
        """How many were asked for."""
        self._user: list[tuple[int, Callable[[SimManager], None]]] = [
            (6, self.create_service),
            (10, self.scale),
            (12, self.update),
            (5, self.update_and_die),
            (5, self.roll_back),
            (3, self.remove_service),
            (7, self.set_availability),
            (4, self.label_node),
            (3, self.remove_node),
            (2, self.add_node),
            (4, self.create_network),
            (2, self.remove_network),
            (5, self.run_container),
            (3, self.remove_container),
        ]
        self._fate: list[tuple[int, Callable[[], None]]] = [
            (10, self.exit_container),
            (6, self.power_cut),
            (6, self.kill_skepd),
            (6, self.cut_off),
            (8, self.kill_manager),
            (8, self.storm),
            (5, self.break_connection),
        ]

    def begin(self) -> None:
        """At least two services and three nodes before the first misfortune."""
        world = self._world
        for _ in range(self._rng.randrange(2, 5)):
            world.join()
            world.agenda.run_until(world.agenda.now + self._rng.randrange(50, 500) * MILLISECOND)
        assert world.manager is not None
        if self._rng.random() < 0.5:
            self.create_network(world.manager)
        for _ in range(2):
            self.create_service(world.manager)

    def happen(self) -> None:
        manager = self._world.manager
        if manager is not None and self._rng.random() < 0.55:
            self._choose(self._user)(manager)
        else:
            self._choose(self._fate)()

    def _choose(self, table: list[tuple[int, Callable[..., None]]]) -> Callable[..., None]:
        at = self._rng.randrange(sum(weight for weight, _ in table))
        for weight, what in table:
            at -= weight
            if at < 0:
                return what
        raise AssertionError

    def _ask(self, manager: SimManager, call: Any, what: str) -> None:
        self._world.say(f"user: {what}")

        def done(answer: Any, error: SkepError | None) -> None:
            if error is not None:
                self._world.say(f"user: refused: {error.message}")
            elif isinstance(answer, tuple) and isinstance(answer[0], Service):
                self._world.rules.created(answer[0])
            elif isinstance(answer, Network):
                self._world.names[answer.id] = answer.name
                self._world.rules.created(answer)

        manager.call(call, done)

    def _pick(self, things: list[Any]) -> Any:
        return self._rng.choice(things) if things else None

    # users

    def create_service(self, manager: SimManager) -> None:
        if len(manager.store.all(Service)) >= MOST_SERVICES:
            self.scale(manager)
            return
        self._wishes.numbers += 1
        self.services += 1
        spec = self._wishes.service(manager, f"svc{self._wishes.numbers}")
        replicas = spec.mode.replicated.replicas if spec.mode.replicated else "global"
        self._ask(manager, manager.control.create_service(spec), f"service create {spec.name} ({replicas})")

    def scale(self, manager: SimManager) -> None:
        service = self._pick([s for s in manager.store.all(Service) if s.replicated])
        if service is None:
            return
        replicas = self._rng.choice((0, 1, 2, 3, 4, 5, 6))
        spec = msgspec.structs.replace(service.spec, mode=Mode(replicated=Replicated(replicas=replicas)))
        self._ask(manager, manager.control.update_service(service.id, service.version, spec), f"service scale {service.name}={replicas}")

    def update(self, manager: SimManager) -> None:
        service = self._pick(list(manager.store.all(Service)))
        if service is None:
            return
        rng, template, spec = self._rng, service.spec.task_template, service.spec
        kind = rng.randrange(8)
        if kind == 0:
            template = msgspec.structs.replace(template, force_update=template.force_update + 1)
        elif kind == 1:
            template = msgspec.structs.replace(template, placement=self._wishes.placement())
        elif kind == 2:
            spec = msgspec.structs.replace(spec, endpoint_spec=self._wishes.endpoint())
        elif kind == 3:
            template = msgspec.structs.replace(template, restart_policy=self._wishes.policy())
        else:
            template = msgspec.structs.replace(template, container_spec=ContainerSpec(image=self._wishes.image()))
        if rng.random() < 0.5:
            spec = msgspec.structs.replace(spec, update_config=self._wishes.rollout(), rollback_config=self._wishes.rollout())
        spec = msgspec.structs.replace(spec, task_template=template)
        version = service.version if rng.random() < 0.95 else service.version - 1
        what = ("force", "placement", "ports", "restart policy")[kind] if kind < 4 else template.container_spec.image
        self._ask(manager, manager.control.update_service(service.id, version, spec), f"service update {service.name}: {what}")

    def update_and_die(self, manager: SimManager) -> None:
        """The old task of a slot ends while the new one that is to take its place is on its way: SwarmKit's issue 2242 lived on that."""
        service = self._pick([s for s in manager.store.all(Service) if self._starts_first(s)] or list(manager.store.all(Service)))
        if service is None:
            return
        spec = msgspec.structs.replace(
            service.spec, update_config=msgspec.structs.replace(self._wishes.rollout() or UpdateConfig(), order="start-first")
        )
        template = msgspec.structs.replace(spec.task_template, force_update=spec.task_template.force_update + 1)
        spec = msgspec.structs.replace(spec, task_template=template)
        call = manager.control.update_service(service.id, service.version, spec)
        self._ask(manager, call, f"service update {service.name}: force, start-first")
        for _ in range(2):
            self._world.agenda.after(self._rng.randrange(50, 1500) * MILLISECOND, self._exit_in_update)

    def _starts_first(self, service: Service) -> bool:
        return service.spec.update_config is not None and service.spec.update_config.order == "start-first"

    def _exit_in_update(self) -> None:
        chosen = self._pick([(node, id) for node, id in self._running() if self._in_update(id)])
        if chosen is not None:
            chosen[0].runtime.exit(chosen[1], self._rng.choice((0, 1, 137)))

    def _running(self) -> list[tuple[SimNode, str]]:
        return [(node, id) for node in self._world.nodes.values() for id in sorted(node.runtime.running)]

    def roll_back(self, manager: SimManager) -> None:
        service = self._pick([s for s in manager.store.all(Service) if s.previous_spec is not None])
        if service is not None:
            call = manager.control.update_service(service.id, service.version, service.spec, rollback="previous")
            self._ask(manager, call, f"service rollback {service.name}")

    def remove_service(self, manager: SimManager) -> None:
        service = self._pick(list(manager.store.all(Service)))
        if service is not None:
            self.remove(manager, service)

    def remove(self, manager: SimManager, service: Service) -> None:
        self._world.rules.removed(service.id)
        self._ask(manager, manager.control.remove_service(service.id), f"service rm {service.name}")

    def set_availability(self, manager: SimManager) -> None:
        node: Node = self._pick(list(manager.store.all(Node)))
        availability = self._rng.choice(("active", "active", "drain", "drain", "pause"))
        self._change_node(manager, node, f"availability {availability}", availability=availability)

    def label_node(self, manager: SimManager) -> None:
        node: Node = self._pick(list(manager.store.all(Node)))
        zone = self._rng.choice(ZONES)
        self._change_node(manager, node, f"label zone={zone}", labels={"zone": zone})

    def _change_node(self, manager: SimManager, node: Node, what: str, **fields: Any) -> None:
        spec = msgspec.structs.replace(node.spec, **fields)
        self._ask(manager, manager.control.update_node(node.id, node.version, spec), f"node update {self._world.name(node.id)}: {what}")

    def remove_node(self, manager: SimManager) -> None:
        if len(manager.store.all(Node)) <= 3:
            self.add_node(manager)
            return
        node = self._pick([n for n in manager.store.all(Node) if n.id != self._world.manager_id])
        force = self._rng.random() < 0.6
        self._ask(manager, manager.control.remove_node(node.id, force), f"node rm {self._world.name(node.id)}{' --force' if force else ''}")

    def add_node(self, manager: SimManager) -> None:
        if len(manager.store.all(Node)) < MOST_NODES:
            self._world.join()

    def create_network(self, manager: SimManager) -> None:
        """As the control API will, when it may: an overlay of the user's."""
        if len(manager.store.all(Network)) >= 7:
            return
        self._wishes.numbers += 1
        attachable = self._rng.random() < 0.7
        spec = NetworkSpec(
            name=f"net{self._wishes.numbers}", driver_configuration=Driver(name="overlay"), scope="swarm", attachable=attachable
        )
        self._ask(manager, manager.control.create_network(spec), f"network create {spec.name}{' --attachable' if attachable else ''}")

    def remove_network(self, manager: SimManager) -> None:
        used = {attachment.target for service in manager.store.all(Service) for spec in (service.spec, service.previous_spec) if spec
                for attachment in spec.task_template.networks or ()}  # fmt: skip
        network = self._pick([n for n in manager.store.all(Network) if n.name.startswith("net") and n.id not in used])
        if network is not None:
            self._world.rules.removed(network.id)
            self._ask(manager, manager.control.remove_network(network.id), f"network rm {network.name}")

    def run_container(self, manager: SimManager) -> None:
        """A plain container on any network, by name, at any node."""
        network = self._pick([n for n in manager.store.all(Network) if n.name.startswith("net") or n.spec.ingress])
        node = self._pick([n for n in self._world.nodes.values() if n.session is not None and not n.session.removed])
        if network is None or node is None:
            return
        address = ""
        if network.ipam and self._rng.random() < 0.3:
            address = f"{network.ipam[0].subnet.rpartition('.')[0]}.{self._rng.randrange(2, 12)}"
        self._world.say(f"user: docker run --network {network.name} {address} on {node.hostname}")
        node.runtime.plain.run(node.session, network.name, address)
        node.pump()

    def remove_container(self, manager: SimManager) -> None:
        running = [(node, id) for node in self._world.nodes.values() if node.alive for id in sorted(node.runtime.plain.running)]
        chosen = self._pick(running)
        if chosen is not None:
            node, id = chosen
            node.runtime.plain.stop(id)
            node.pump()

    # fate

    def exit_container(self) -> None:
        chosen = self._pick(self._running())
        if chosen is not None:
            node, id = chosen
            node.runtime.exit(id, self._rng.choice((0, 1, 137)))

    def _in_update(self, task_id: str) -> bool:
        store = self._world.manager.store if self._world.manager is not None else None
        task = store.get(Task, task_id) if store is not None else None
        if store is None or task is None:
            return False
        return any(other.live and other.spec_version > task.spec_version for other in store.find(TASK_BY_SLOT, slot_key(task)))

    def _a_node(self) -> SimNode | None:
        """Any worker that is all right."""
        found: SimNode | None = self._pick(
            [n for n in self._world.nodes.values() if n.alive and not n.cut_off and n is not self._world.home]
        )
        return found

    def power_cut(self) -> None:
        node = self._a_node() if self._rng.random() < 0.8 else self._world.home
        if node is None or not node.up:
            return
        self._world.say(f"fate: power cut of {node.hostname}")
        if node is self._world.home:
            self._world.kill_manager()
        node.power_cut()
        self._world.agenda.after(self._rng.randrange(1, 60) * SECOND, lambda: self.power_on(node))

    def power_on(self, node: SimNode) -> None:
        if not node.up:
            self._world.say(f"fate: {node.hostname} has power again")
            node.up = True
            self.start_skepd(node)

    def kill_skepd(self) -> None:
        node = self._a_node()
        if node is not None:
            self._world.say(f"fate: kill -9 of skepd on {node.hostname}")
            node.kill()
            self._world.agenda.after(self._rng.randrange(1, 20_000) * MILLISECOND, lambda: self.start_skepd(node))

    def start_skepd(self, node: SimNode) -> None:
        if node.up and not node.alive:
            self._world.say(f"fate: skepd starts on {node.hostname}")
            if node is self._world.home:
                self._world.start_manager()
            node.start()

    def kill_manager(self) -> None:
        home = self._world.home
        manager = self._world.manager
        if not home.alive or manager is None:
            return
        if self._rng.random() < 0.4:
            # it dies while it answers
            self._rng.choice((self.create_service, self.create_network))(manager)
            self._world.agenda.run_until(self._world.agenda.now + self._rng.randrange(0, 10) * MILLISECOND)
        self._world.say("fate: kill -9 of the manager")
        self._world.kill_manager()
        home.kill()
        self._world.agenda.after(self._rng.randrange(1, 12_000) * MILLISECOND, lambda: self.start_skepd(home))

    def cut_off(self) -> None:
        node = self._a_node()
        if node is not None:
            self._world.say(f"fate: {node.hostname} is cut off")
            node.cut_off = True
            node.mark()
            self._world.agenda.after(self._rng.randrange(1, 50) * SECOND, lambda: self.reconnect(node))

    def reconnect(self, node: SimNode) -> None:
        if node.cut_off:
            self._world.say(f"fate: {node.hostname} is no longer cut off")
            node.cut_off = False
            node.mark()

    def break_connection(self) -> None:
        node = self._pick([n for n in self._world.nodes.values() if n.connection is not None])
        if node is not None and node.connection is not None:
            self._world.say(f"fate: the connection of {node.hostname} breaks")
            node.connection.manager.disconnected(node.connection)
            node.connection.break_off("connection reset by peer")

    def storm(self) -> None:
        rng = self._rng
        self._storms += 1
        number = self._storms
        self._world.weather = Weather(
            delay=rng.choice((3, 50, 500, 3000)) * MILLISECOND,
            lost=rng.choice((0.0, 0.0, 0.02, 0.1)),
            twice=rng.choice((0.0, 0.0, 0.05)),
            disorder=rng.random() < 0.4,
            error=rng.choice((0.0, 0.05, 0.3)),
            hang=rng.choice((0.0, 0.0, 0.1)),
            disk=rng.choice((6, 6, 100, 800)),
        )
        self._world.say(f"fate: bad weather: {self._world.weather}")
        self._world.agenda.after(rng.randrange(1, 30) * SECOND, lambda: self._calm(number))

    def _calm(self, number: int) -> None:
        if number == self._storms:
            self._world.weather = FAIR

    # the end of all trouble

    def heal(self) -> None:
        """Nothing bad happens from now on, and what happened is repaired."""
        world = self._world
        world.say("all trouble ends")
        world.healed, world.healed_at = True, world.agenda.now
        world.weather = FAIR
        self._storms += 1
        for node in list(world.nodes.values()):
            self.reconnect(node)
            self.power_on(node)
            self.start_skepd(node)
        if world.manager is None:
            world.start_manager()
