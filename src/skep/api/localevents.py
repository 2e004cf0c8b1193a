"""Events of this node in Docker's shape, the last 256 of them, and whoever listens. See `skep.api.context.LocalEvents`.

A listener that does not keep up is cut off (it finds None in its queue) rather than allowed to eat memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from skep.api.wire.containers import image_name
from skep.clock import SECOND, Clock
from skep.engine.base import Container, Engine, Exit
from skep.model.network import Network
from skep.node.base import LocalNetwork

PAST = 256
PENDING = 1024


def message(kind: str, action: str, id: str, attributes: Mapping[str, str], at: int, scope: str = "local") -> dict[str, Any]:
    """One event. Containers and images repeat status, id (and from) at the front, for clients from before 1.22."""
    shown: dict[str, Any] = {}
    if kind in ("container", "image"):
        shown = {"status": action, "id": id}
        if kind == "container":
            shown["from"] = attributes.get("image", "")
    shown |= {
        "Type": kind,
        "Action": action,
        "Actor": {"ID": id, "Attributes": dict(sorted(attributes.items()))},
        "scope": scope,
        "time": at // SECOND,
        "timeNano": at,
    }
    return shown


class LocalEvents:
    """Run `run` beside the daemon: it turns what the engine tells into messages."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._ring: deque[Mapping[str, Any]] = deque(maxlen=PAST)
        self._listeners: set[asyncio.Queue[Any]] = set()
        self._known: dict[str, Container] = {}
        self._queue: asyncio.Queue[tuple[str, str, Exit | None]] | None = None

    def past(self) -> Sequence[Mapping[str, Any]]:
        return tuple(self._ring)

    def subscribe(self) -> asyncio.Queue[Any]:
        queue: asyncio.Queue[Any] = asyncio.Queue(PENDING + 1)
        self._listeners.add(queue)
        return queue

    def unsubscribe(self, queue: asyncio.Queue[Any]) -> None:
        self._listeners.discard(queue)

    @property
    def listeners(self) -> int:
        return len(self._listeners)

    def publish(self, message: Mapping[str, Any]) -> None:
        self._ring.append(message)
        for queue in tuple(self._listeners):
            if queue.qsize() >= PENDING:
                self._listeners.discard(queue)
                queue.put_nowait(None)
            else:
                queue.put_nowait(message)

    def container(self, action: str, container: Container, attributes: Mapping[str, str], at: int = 0) -> None:
        config = container.config
        image = image_name(config, None if config.extra.get("image") else self._engine.images.get(config.image))
        self.publish(
            message(
                "container",
                action,
                config.id,
                {**config.labels, "image": image, "name": config.name, **attributes},
                at or self._clock.now(),
            )
        )

    def tell(self, kind: str, action: str, subject: Any, attributes: Mapping[str, str]) -> None:
        """What the engine does not tell by itself (`skep.node.plain.Plain.tell`), after what it has told until now: a container that was
        stopped has died before."""
        while self._queue is not None and not self._queue.empty():
            self._happened(*self._queue.get_nowait())
        if isinstance(subject, Container):
            self.container(action, subject, attributes)
        else:
            self.publish(message(kind, action, subject, attributes, self._clock.now()))

    def placed(self, action: str, container: Container, known: Callable[[str], LocalNetwork | Network | None]) -> None:
        """A task's container joins its networks (`connect`), or has left them. `known`: a network by its id, or this node's by its name."""
        for place in container.config.extra.get("networks") or ():
            network = known(place["id"])
            if network is not None:
                attributes = {"container": container.config.id, "name": network.name, "type": network.driver}
                self.tell("network", action, network.id, attributes)

    async def run(self) -> None:
        queue = self._queue = self._engine.subscribe()
        self._known = {c.config.id: c for c in self._engine.all()}
        try:
            while True:
                action, id, ended = await queue.get()
                self._happened(action, id, ended)
        finally:
            self._queue = None
            self._engine.unsubscribe(queue)

    def _happened(self, action: str, id: str, ended: Exit | None) -> None:
        container = self._engine.get(id) or self._known.get(id)
        if container is None:
            # Made and gone before we looked: the bare fact is better than none.
            self.publish(message("container", action, id, {}, self._clock.now()))
            return
        if action == "destroy":
            self._known.pop(id, None)
        else:
            self._known[id] = container
        attributes: dict[str, str] = {}
        at = 0
        if action == "die" and ended is not None:
            ran = max(0, ended.at - container.started_at) // SECOND if container.started_at else 0
            attributes = {"exitCode": str(ended.code), "execDuration": str(ran)}
            at = ended.at
        self.container(action, container, attributes, at)
