"""What is asked of a node's containers as a whole: which belong to tasks, what they were made from, how they fare. Plain data; the API puts
it in Docker's form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from skep.clock import SECOND
from skep.engine.base import Container, ContainerConfig, Engine
from skep.model.spec import Healthcheck, PortConfig
from skep.node.container import TASK_ID, healthcheck_of
from skep.node.health import Health
from skep.node.plain_config import Record, record_of
from skep.node.task_form import Asked, kept


class Attached(msgspec.Struct, frozen=True, kw_only=True):
    """A container's place on a network."""

    network_id: str
    addresses: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    gateway: str = ""


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """A container with what its task's spec said and the engine need not know."""

    container: Container
    task_id: str = ""
    """Empty: a plain container."""
    image: str = ""
    """As it was asked for."""
    ports: tuple[PortConfig, ...] = ()
    networks: tuple[Attached, ...] = ()
    healthcheck: Healthcheck | None = None
    health: Health | None = None
    stop_timeout: int = 10
    """Seconds."""
    log_options: dict[str, str] = {}
    plain: Record | None = None
    """All that was asked of a plain container; None: a task's."""
    asked: Asked | None = None
    """The same of a task's container."""
    restarting: bool = False
    """It has ended, and its policy starts it again in a while."""


def task_of(config: ContainerConfig) -> str:
    """The id of the task a container belongs to; empty for a plain one."""
    return config.labels.get(TASK_ID, "")


class Containers:
    def __init__(
        self, engine: Engine, health: Callable[[str], Health | None], restarting: Callable[[str], bool] = lambda id: False
    ) -> None:
        """`health`: by task id, or the id of a plain container; `restarting`: by id, `Plain.is_restarting`."""
        self._engine = engine
        self._health = health
        self._restarting = restarting

    def describe(self, container: Container) -> Described:
        config = container.config
        if (record := record_of(config)) is not None:
            return self._plain(container, record)
        extra: dict[str, Any] = config.extra
        task_id = task_of(config)
        networks = [
            Attached(
                network_id=place["id"],
                addresses=tuple(place["addresses"]),
                aliases=tuple(place["aliases"]),
                gateway=str(place.get("gateway", "")),
            )
            for place in extra.get("networks") or ()
        ]
        return Described(
            container=container,
            task_id=task_id,
            image=str(extra.get("image") or config.image),
            ports=msgspec.convert(extra.get("ports") or (), tuple[PortConfig, ...]),
            networks=tuple(networks),
            healthcheck=healthcheck_of(extra),
            health=self._health(task_id) if task_id and container.started_at else None,
            stop_timeout=int(extra.get("stop_grace_period") or 10 * SECOND) // SECOND,
            log_options=dict(extra.get("log_options") or {}),
            asked=kept(config),
        )

    def _plain(self, container: Container, record: Record) -> Described:
        config = record.config
        return Described(
            container=container,
            image=config.image,
            networks=tuple(
                Attached(network_id=one.network_id, addresses=(one.address,) if one.address else (), aliases=one.settings.aliases)
                for one in record.joined
            ),
            healthcheck=config.healthcheck,
            health=self._health(container.config.id) if container.started_at else None,
            stop_timeout=config.stop_timeout if config.stop_timeout is not None else 10,
            log_options=record.host.log_config.config,
            plain=record,
            restarting=self._restarting(container.config.id),
        )

    def all(self) -> list[Described]:
        """In order of creation."""
        return [self.describe(container) for container in self._engine.all()]

    def get(self, reference: str) -> Described | None:
        found = self._engine.get(reference)
        return self.describe(found) if found is not None else None
