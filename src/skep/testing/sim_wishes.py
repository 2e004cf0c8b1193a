"""What users of a simulated cluster ask for: service specs of all kinds, chosen by the seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from skep.clock import MILLISECOND, SECOND
from skep.model.network import Network
from skep.model.spec import (
    ContainerSpec,
    EndpointSpec,
    Global,
    Mode,
    NetworkAttachmentConfig,
    Placement,
    PlacementPreference,
    PortConfig,
    Replicated,
    Reservations,
    ResourceRequirements,
    RestartPolicy,
    ServiceSpec,
    SpreadOver,
    TaskSpec,
    UpdateConfig,
)

if TYPE_CHECKING:
    import random

    from skep.testing.sim_manager import SimManager

ZONES = ("a", "b")
IMAGE = "registry:5000/good"
DRAINS = {"": 0, "500ms": 500 * MILLISECOND, "3s": 3 * SECOND}
"""What services ask for with `skep.drain`."""


class Wishes:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.numbers = 0
        """Given in turn to what needs a name of its own."""

    def service(self, manager: SimManager, name: str) -> ServiceSpec:
        rng = self._rng
        mode = Mode(global_=Global()) if rng.random() < 0.2 else Mode(replicated=Replicated(replicas=rng.randrange(1, 6)))
        networks = [network for network in manager.store.all(Network) if network.name.startswith("net")]
        attached = tuple(
            NetworkAttachmentConfig(target=network.id, aliases=(f"{name}-alias",) if rng.random() < 0.3 else None)
            for network in networks
            if rng.random() < 0.4
        )
        reserved = rng.choice((0, 0, 0, 500_000_000, 1_500_000_000))
        return ServiceSpec(
            name=name,
            labels=self.labels(),
            task_template=TaskSpec(
                container_spec=ContainerSpec(image=self.image()),
                restart_policy=self.policy(),
                placement=self.placement(),
                networks=attached or None,
                resources=ResourceRequirements(reservations=Reservations(nano_cpus=reserved)) if reserved else None,
            ),
            mode=mode,
            update_config=self.rollout(),
            rollback_config=self.rollout(),
            endpoint_spec=self.endpoint(),
        )

    def labels(self) -> dict[str, str]:
        drain = self._rng.choice(("", "", "", "500ms", "3s"))
        return {"skep.drain": drain} if drain else {}

    def image(self) -> str:
        self.numbers += 1
        return f"{self._rng.choice((IMAGE, IMAGE, IMAGE, IMAGE, 'registry:5000/bad', 'registry:5000/crash'))}:{self.numbers}"

    def policy(self) -> RestartPolicy | None:
        rng = self._rng
        if rng.random() < 0.4:
            return None
        return RestartPolicy(
            condition=rng.choice(("any", "any", "any", "on-failure", "none")),
            delay=rng.choice((None, 0, 100 * MILLISECOND, SECOND, 3 * SECOND)),
            max_attempts=rng.choice((None, None, None, 2, 4)),
            window=rng.choice((None, None, 10 * SECOND)),
        )

    def placement(self) -> Placement | None:
        rng = self._rng
        chance = rng.random()
        if chance < 0.15:
            return Placement(constraints=(f"node.labels.zone=={rng.choice(ZONES)}",))
        if chance < 0.25:
            return Placement(max_replicas=rng.randrange(1, 4))
        if chance < 0.35:
            return Placement(preferences=(PlacementPreference(spread=SpreadOver(spread_descriptor="node.labels.zone")),))
        return None

    def rollout(self) -> UpdateConfig | None:
        rng = self._rng
        if rng.random() < 0.25:
            return None
        return UpdateConfig(
            parallelism=rng.choice((0, 1, 1, 2)),
            delay=rng.choice((0, 0, 500 * MILLISECOND, 2 * SECOND)),
            failure_action=rng.choice(("", "pause", "continue", "rollback", "rollback")),
            monitor=rng.choice((0, SECOND, 3 * SECOND)),
            max_failure_ratio=rng.choice((0, 0, 0.3)),
            order=rng.choice(("", "stop-first", "start-first")),
        )

    def endpoint(self) -> EndpointSpec | None:
        rng = self._rng
        chance = rng.random()
        if chance < 0.6:
            return None
        if chance < 0.7:
            return EndpointSpec(ports=(PortConfig(protocol="tcp", target_port=80, published_port=8000, publish_mode="host"),))
        if chance < 0.8:
            return EndpointSpec(mode="dnsrr")
        published = rng.choice((0, 0, 8080, 8081))
        mode = "vip"
        return EndpointSpec(
            mode=mode, ports=(PortConfig(protocol="tcp", target_port=80, published_port=published, publish_mode="ingress"),)
        )
