"""Serves the host socket of a one-machine cluster: `python -m skep.local.hostd NAME`. See hostengine.py for what it shows."""

from __future__ import annotations

import asyncio
import signal
import sys

from skep.api.context import Cluster, InitRequest, JoinRequest, NodeInfo, Swarm, SwarmInfo
from skep.api.context import LocalEvents as Events
from skep.api.host import HostInfo
from skep.api.localevents import LocalEvents
from skep.api.server import make_app, serve_unix
from skep.clock import Clock
from skep.engine.base import Engine
from skep.errors import NotImplementedHere, Unavailable
from skep.local.hostengine import REFUSAL, HostEngine, container_id
from skep.local.layout import layout
from skep.system import SystemClock, start_logging


class NoSwarm:
    """The host itself is in no cluster: its nodes are."""

    def info(self) -> SwarmInfo:
        return SwarmInfo()

    async def init(self, request: InitRequest) -> str:
        raise NotImplementedHere(REFUSAL.format("swarm init"))

    async def join(self, request: JoinRequest) -> None:
        raise NotImplementedHere(REFUSAL.format("swarm join"))

    async def leave(self, force: bool) -> None:
        raise Unavailable("This node is not part of a swarm")


class Host:
    """`skep.api.context.Context` of the host socket."""

    def __init__(self, name: str, engine: HostEngine) -> None:
        self.clock: Clock = engine.clock
        self.engine: Engine = engine
        self.swarm: Swarm = NoSwarm()
        self.host: NodeInfo = HostInfo(engine, engine.clock, id=container_id(name, ""), root=layout(name).root)
        self.local_events = LocalEvents(engine, engine.clock)
        self.events: Events = self.local_events

    @property
    def cluster(self) -> Cluster:
        raise Unavailable(
            "This is the host socket of a one-machine cluster, not a swarm manager: "
            "use `docker container exec -it manager docker ...`, or the manager's own socket"
        )


async def serve(name: str) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with HostEngine(name, SystemClock()) as engine:
        host = Host(name, engine)
        async with asyncio.TaskGroup() as group:
            parts = [
                group.create_task(host.local_events.run()),
                group.create_task(serve_unix(make_app(host), str(layout(name).host_socket))),
            ]
            await ended.wait()
            for part in parts:
                part.cancel()


if __name__ == "__main__":
    start_logging("info", "text")
    asyncio.run(serve(sys.argv[1]))
