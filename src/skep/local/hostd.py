"""Serves the host socket of a one-machine cluster: `python -m skep.local.hostd NAME`. See hostengine.py for what it shows.

Being there all the time, it also follows this host's own addresses for the cluster's wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from skep.api.context import Cluster, InitRequest, JoinRequest, NodeInfo, Swarm, SwarmInfo
from skep.api.context import LocalEvents as Events
from skep.api.host import HostInfo
from skep.api.localevents import LocalEvents
from skep.api.server import make_app, serve_unix
from skep.clock import MILLISECOND, Clock
from skep.engine.base import Engine
from skep.errors import NotImplementedHere, SkepError, Unavailable
from skep.local.hostengine import REFUSAL, HostEngine, container_id
from skep.local.layout import layout
from skep.local.underlay import Underlay
from skep.node.bare import BareNetworks, NoAttachments
from skep.node.base import Attachments, LocalNetworks
from skep.node.plain import Plain
from skep.node.volumes import Volume, Volumes
from skep.system import SystemClock, start_logging, system_random

log = logging.getLogger("skep.local.hostd")

IPV4_ADDRESSES = 0x10
"""The kernel's group of messages about addresses that come and go (rtnetlink(7): RTMGRP_IPV4_IFADDR)."""
SETTLE = 200 * MILLISECOND


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


class NoVolumes(Volumes):
    """Those of a cluster are its nodes'."""

    async def create(
        self, name: str = "", *, driver: str = "", options: Mapping[str, str] | None = None, labels: Mapping[str, str] | None = None
    ) -> Volume:
        raise NotImplementedHere(REFUSAL.format("creating volumes"))


class Host:
    """`skep.api.context.Context` of the host socket."""

    def __init__(self, name: str, engine: HostEngine) -> None:
        self.clock: Clock = engine.clock
        self.engine: Engine = engine
        self.swarm: Swarm = NoSwarm()
        self.host: NodeInfo = HostInfo(engine, engine.clock, id=container_id(name, ""), root=layout(name).root)
        self.volumes: Volumes = NoVolumes(Path(layout(name).root) / "host-volumes", engine.clock, system_random(), containers=engine.all)
        self.networks: LocalNetworks = BareNetworks(name, REFUSAL.format("networks"))
        self.attachments: Attachments = NoAttachments()
        self.plain: Plain | None = None
        self.local_events = LocalEvents(engine, engine.clock)
        self.events: Events = self.local_events

    @property
    def cluster(self) -> Cluster:
        raise Unavailable(
            "This is the host socket of a one-machine cluster, not a swarm manager: "
            "use `docker container exec -it manager docker ...`, or the manager's own socket"
        )


async def follow_addresses(name: str, clock: Clock) -> None:
    """This host gets other addresses (another Wi-Fi): what the nodes ask of the world leaves with the new one."""
    news = asyncio.Event()
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as changes:
        changes.setblocking(False)
        changes.bind((0, IPV4_ADDRESSES))

        def changed() -> None:
            # what it says does not matter; a buffer that ran over (ENOBUFS) says the same
            with contextlib.suppress(OSError):
                changes.recv(1 << 16)
            news.set()

        loop.add_reader(changes, changed)
        try:
            while True:
                await news.wait()
                await clock.sleep(SETTLE)
                news.clear()
                try:
                    await asyncio.to_thread(Underlay(name).refresh)
                except (SkepError, OSError) as error:
                    log.warning("the addresses of this host have changed, and could not be noted: %s", error)
        finally:
            loop.remove_reader(changes)


async def serve(name: str) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with HostEngine(name, SystemClock()) as engine:
        host = Host(name, engine)
        async with asyncio.TaskGroup() as group:
            parts = [
                group.create_task(host.local_events.run()),
                group.create_task(follow_addresses(name, engine.clock)),
                group.create_task(serve_unix(make_app(host), str(layout(name).host_socket))),
            ]
            await ended.wait()
            for part in parts:
                part.cancel()


if __name__ == "__main__":
    start_logging("info", "text")
    asyncio.run(serve(sys.argv[1]))
