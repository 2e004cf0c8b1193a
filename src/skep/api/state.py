"""What a running API server keeps between requests: exec instances, encoded objects, and the tasks it runs beside them.

Everything here can be lost: it is rebuilt from the cluster, the engine, or by asking again.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
from collections.abc import Callable, Coroutine, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from aiohttp import web

from skep.api.cache import Encoded
from skep.api.context import Context
from skep.api.execs import Execs
from skep.errors import Unavailable
from skep.node.containers import Containers
from skep.node.health import Health

log = logging.getLogger("skep.api")
API_VERSION = (1, 50)
OLDEST_VERSION = (1, 24)


@functools.cache
def skep_version() -> str:
    try:
        return version("skep")
    except PackageNotFoundError:
        return "0.1.0"


def written(v: tuple[int, int]) -> str:
    return f"{v[0]}.{v[1]}"


class State:
    """One per application. `group` is set while a server runs the application."""

    def __init__(self, context: Context, health: Callable[[str], Health | None] | None = None) -> None:
        self.context = context
        self.containers = Containers(context.engine, self._health_of, self._is_restarting)
        self._tasks_health = health
        if context.plain is not None:
            context.plain.tell = context.events.tell
        self.headers: Mapping[str, str] = {
            "Api-Version": written(API_VERSION),
            "Docker-Experimental": "false",
            "Ostype": "linux",
            "Server": f"skep/{skep_version()} (linux)",
        }
        self.encoded = Encoded()
        self.execs = Execs(random.SystemRandom(), context.clock)
        self.group: asyncio.TaskGroup | None = None
        self.cluster_changed = asyncio.Event()
        """Set when this node joined or left a cluster, so that the event feed need not wait."""

    def _health_of(self, id: str) -> Health | None:
        plain = self.context.plain
        found = plain.health(id) if plain is not None else None
        return found or (self._tasks_health(id) if self._tasks_health is not None else None)

    def _is_restarting(self, id: str) -> bool:
        return self.context.plain is not None and self.context.plain.is_restarting(id)

    def dress(self, response: web.StreamResponse) -> None:
        """The headers that every answer of the API carries."""
        response.headers.update(self.headers)

    async def finish(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run to its end even when the client goes away meanwhile (init, join and leave must not stop half way)."""
        if self.group is None:
            return await work
        outcome = await asyncio.shield(self.group.create_task(_kept(work)))
        return outcome()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run beside the requests, as long as the server runs; what goes wrong in it is logged and ends nothing else. Raises Unavailable
        where the server is ending."""
        if self.group is None:
            work.close()
            raise Unavailable("this node's daemon is ending")
        self.group.create_task(_guarded(work))


async def _guarded(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception:
        log.exception("beside the requests")


async def _kept(work: Coroutine[Any, Any, Any]) -> Callable[[], Any]:
    """The outcome as a function that returns or raises it, so that an error is the caller's and does not end the server's group."""
    try:
        value = await work
    except Exception as error:
        caught = error

        def fail() -> Any:
            raise caught

        return fail
    return lambda: value
