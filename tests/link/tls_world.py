"""A manager's port on 127.0.0.1 with real TLS, and certificates made for the test."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from link_world import node

from skep.agent.agent import Agent
from skep.agent.state import MemoryState, State
from skep.clock import DAY, SECOND, Clock
from skep.errors import SkepError
from skep.link.channel import decode_from_manager, encode
from skep.link.client import Client
from skep.link.messages import Closing, Hello
from skep.link.server import Server
from skep.link.socket import Doorkeeper
from skep.link.tls import Certificates, new_key
from skep.manager.ca import Authority, new_root, new_tokens, sign
from skep.manager.gate import Gate
from skep.manager.logs import LogBroker
from skep.manager.sessions import Sessions
from skep.model.cluster import Cluster, RootCA
from skep.model.enums import Role
from skep.model.node import NodeDescription
from skep.model.spec import ClusterSpec
from skep.plan.ops import Change, Create
from skep.plan.ownership import refuse
from skep.store.backends import MemoryBackend
from skep.store.memory import MemoryStore
from skep.system import SystemClock
from skep.testing.fake_tasks import FakeTasks

CLOCK = SystemClock()


class Manager:
    """One cluster with its manager listening; `address` is where."""

    def __init__(self, directory: Path, cluster_id: str = "cluster") -> None:
        self.rng = random.Random(1)
        self.directory = directory
        self.store = MemoryStore(MemoryBackend(), CLOCK, refuse)
        self.root = new_root(CLOCK.now())
        self.cluster_id = cluster_id
        tokens = new_tokens(self.root, self.rng)
        cluster = Cluster(id=cluster_id, spec=ClusterSpec(name="default"), root_ca=self.root, tokens=tokens)
        self.store.apply([Create(cluster, "for the test"), Create(node("manager"), "for the test")])
        self.store.flush()
        self.token = tokens.worker
        self.certificates = self.issue("manager", Role.MANAGER)
        self.address = ""
        self.restart()

    def restart(self) -> None:
        """The parts of a manager that live as long as its process, over the same store."""
        self.authority = Authority(self.store, CLOCK, self.rng)
        self.sessions = Sessions(self.store, CLOCK, self.rng)
        self.logs = LogBroker(self.store, self.sessions.dispatcher.send, self.rng)
        self.gate = Gate(self.authority, self.sessions, self.logs)
        self.door = Doorkeeper()

    def issue(
        self, node_id: str, role: Role = Role.WORKER, *, root: RootCA | None = None, now: int = 0, life: int = 90 * DAY
    ) -> Certificates:
        """Certificate files as the CA makes them; `now` in the past makes them expired."""
        key, csr = new_key()
        pem, certificate = sign(
            root or self.root, csr, node_id=node_id, role=role, cluster_id=self.cluster_id, now=now or CLOCK.now(), life=life
        )
        found = Certificates(self.directory / f"{node_id}-{certificate.serial[:8]}")
        found.store(self.root.cert, pem, key)
        return found

    def add(self, node_id: str) -> Certificates:
        """A node of the cluster with a good certificate."""
        certificates = self.issue(node_id)
        identity = certificates.certificate()
        self.store.apply([Create(node(node_id, certificate=_certificate(identity)), "for the test")])
        self.store.flush()
        return certificates

    def apply(self, *ops: Create | Change) -> None:
        self.store.apply(ops)

    def client(self, certificates: Certificates) -> Client:
        return Client(certificates, lambda: [self.address], CLOCK, self.rng)

    def agent(self, certificates: Certificates, tasks: FakeTasks, state: State | None = None, **more: object) -> Agent:
        client = self.client(certificates)
        return Agent(
            tasks=tasks,
            state=state or MemoryState(),
            connect=client.session,
            open_logs=client.logs,
            describe=lambda: NodeDescription(hostname="host"),
            clock=CLOCK,
            rng=self.rng,
            **more,  # type: ignore[arg-type]
        )


def _certificate(read):  # type: ignore[no-untyped-def]
    from skep.model.node import Certificate

    return Certificate(cn=read.identity.node_id, serial=read.identity.serial, not_after=read.not_after, issuer=read.issuer)


@asynccontextmanager
async def serving(manager: Manager, clock: Clock = CLOCK) -> AsyncIterator[Manager]:
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(part) for part in (manager.store.run(), manager.sessions.run(), manager.logs.run())]
        server = Server(manager.gate, manager.certificates.server_context(), clock, door=manager.door)
        manager.address = f"127.0.0.1:{await server.start('127.0.0.1', 0)}"
        try:
            yield manager
        finally:
            manager.sessions.stop()
            await server.close()
            for task in running:
                task.cancel()


async def until(what, seconds: float = 30.0) -> None:  # type: ignore[no-untyped-def]
    """Wait for something that others bring about, looking often; fails when it does not come."""
    async with asyncio.timeout(seconds):
        while not what():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


EXPIRED = CLOCK.now() - 3 * DAY
HOUR_AGO = CLOCK.now() - 3600 * SECOND


def run(coroutine) -> None:  # type: ignore[no-untyped-def]
    asyncio.run(coroutine)


def hello() -> bytes:
    return encode(Hello(description=NodeDescription(hostname="h")))


async def greet(client: Client):  # type: ignore[no-untyped-def]
    """Connect, greet, and give back the channel and the first answer."""
    channel = await client.session()
    try:
        await channel.send(hello())
        answer = decode_from_manager(await channel.receive())
    except SkepError:
        await channel.close()
        raise
    if isinstance(answer, Closing):
        await channel.close()
    return channel, answer
