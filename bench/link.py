"""What the link costs a manager: CPU per heartbeat, sessions connected per second, and a change that concerns every node.

    python bench/link.py [--nodes 200] [--beats 50]

The manager runs in this process and only its own CPU time counts; the nodes are bare connections in a second process: real mutual TLS on
127.0.0.1, real certificates, the real server, dispatcher and store (kept in memory).
"""

from __future__ import annotations

import argparse
import asyncio
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from skep.clock import DAY, SECOND
from skep.link.channel import decode_from_manager, encode
from skep.link.client import Client
from skep.link.messages import Assignments, Beaten, Heartbeat, Hello, Welcome
from skep.link.server import Server
from skep.link.socket import Doorkeeper
from skep.link.tls import Certificates, new_key
from skep.manager.ca import Authority, new_root, new_tokens, sign
from skep.manager.gate import Gate
from skep.manager.logs import LogBroker
from skep.manager.sessions import Sessions
from skep.model.cluster import Cluster
from skep.model.enums import NodeState, Role
from skep.model.node import Node, NodeDescription, NodeStatus
from skep.model.service import Endpoint, Service
from skep.model.spec import ClusterSpec, DispatcherConfig, NodeSpec, PortConfig, ServiceSpec
from skep.plan.ops import Create, Op
from skep.store.backends import NullBackend
from skep.store.memory import MemoryStore
from skep.system import SystemClock

CLOCK = SystemClock()
SLOW = ClusterSpec(dispatcher=DispatcherConfig(heartbeat_period=600 * SECOND))
"""Nodes beat when they are told to, not while they connect."""


def issue(root, directory: Path, node_id: str, role: Role) -> Certificates:  # type: ignore[no-untyped-def]
    key, csr = new_key()
    pem, _ = sign(root, csr, node_id=node_id, role=role, cluster_id="cluster", now=CLOCK.now(), life=90 * DAY)
    found = Certificates(directory / node_id)
    found.store(root.cert, pem, key)
    return found


async def nodes(directory: Path, address: str, count: int, beats: int) -> None:
    """The second process: it is told by lines on stdin what to do next, and says when it is done."""
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    rng = random.Random(1)
    clients = [Client(Certificates(directory / f"n{n}"), lambda: [address], CLOCK, rng) for n in range(count)]
    hello = encode(Hello(description=NodeDescription(hostname="node"), address="192.0.2.1"))
    channels = []

    async def answer(channel, kind: type):  # type: ignore[no-untyped-def]
        while not isinstance(message := decode_from_manager(await channel.receive()), kind):
            pass
        return message

    at_once = asyncio.Semaphore(16)

    async def connect(client: Client) -> None:
        async with at_once:
            channel = await client.session()
            await channel.send(hello)
            await answer(channel, Welcome)
            channels.append(channel)

    async def beat(channel) -> None:  # type: ignore[no-untyped-def]
        frame = encode(Heartbeat(applied_version=1))
        for _ in range(beats):
            await channel.send(frame)
            await answer(channel, Beaten)

    async def hear(channel) -> None:  # type: ignore[no-untyped-def]
        while not any(item.key == "service/new" for item in (await answer(channel, Assignments)).set):
            pass

    steps = {
        "connect": lambda: [connect(client) for client in clients],
        "beat": lambda: map(beat, channels),
        "hear": lambda: map(hear, channels),
    }
    while command := (await commands.readline()).decode().strip():
        async with asyncio.TaskGroup() as group:
            for step in steps[command]():
                group.create_task(step)
        print("done", flush=True)
    for channel in channels:
        await channel.close()


async def manager(count: int, beats: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        root = new_root(CLOCK.now())
        rng = random.Random(1)
        store = MemoryStore(NullBackend(), CLOCK)
        ops: list[Op] = [Create(Cluster(id="cluster", spec=SLOW, root_ca=root, tokens=new_tokens(root, rng)), "")]
        for n in range(count):
            issue(root, directory, f"n{n}", Role.WORKER)
            known = NodeStatus(state=NodeState.READY, addr="192.0.2.1")
            described = NodeDescription(hostname="node")
            ops.append(Create(Node(id=f"n{n}", spec=NodeSpec(role="worker"), index=n + 1, status=known, description=described), ""))
        store.apply(ops)
        store.flush()
        sessions = Sessions(store, CLOCK, rng)
        logs = LogBroker(store, sessions.dispatcher.send, rng)
        gate = Gate(Authority(store, CLOCK, rng), sessions, logs)
        certificates = issue(root, directory, "manager", Role.MANAGER)
        server = Server(gate, certificates.server_context(), CLOCK, door=Doorkeeper(per_address=10**6, limit=10**6))
        async with asyncio.TaskGroup() as group:
            parts = [group.create_task(part) for part in (store.run(), sessions.run(), logs.run())]
            address = f"127.0.0.1:{await server.start('127.0.0.1', 0)}"
            other = await asyncio.create_subprocess_exec(
                *(sys.executable, __file__, "--as-nodes", name, address, "--nodes", str(count), "--beats", str(beats)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )

            async def step(command: str) -> tuple[float, float]:
                assert other.stdin is not None and other.stdout is not None
                cpu, wall = time.process_time(), time.perf_counter()
                other.stdin.write(f"{command}\n".encode())
                if command == "hear":
                    ports = (PortConfig(protocol="tcp", target_port=80, published_port=8000, publish_mode="ingress"),)
                    store.apply([Create(Service(id="new", spec=ServiceSpec(name="new"), endpoint=Endpoint(ports=ports)), "")])
                if not await other.stdout.readline():
                    raise SystemExit("the nodes' process failed")
                return time.process_time() - cpu, time.perf_counter() - wall

            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            cpu, wall = await step("connect")
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
            print(
                f"sessions: {count} in {wall:.2f} s: {count / cpu:.0f}/s of a core, "
                f"{1e3 * cpu / count:.2f} ms of CPU and {grown / count:.0f} KB each"
            )
            await asyncio.sleep(1)
            cpu, wall = await step("beat")
            print(f"heartbeats: {count * beats} in {wall:.2f} s: {1e6 * cpu / count / beats:.0f} us of CPU each")
            cpu, wall = await step("hear")
            print(f"a published service told to {count} nodes: {1e3 * wall:.0f} ms, {1e6 * cpu / count:.0f} us of CPU a node")
            assert other.stdin is not None
            other.stdin.close()
            await other.wait()
            sessions.stop()
            await server.close()
            for part in parts:
                part.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--beats", type=int, default=50, help="heartbeats per node")
    parser.add_argument("--as-nodes", nargs=2, metavar=("DIRECTORY", "ADDRESS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.as_nodes:
        asyncio.run(nodes(Path(args.as_nodes[0]), args.as_nodes[1], args.nodes, args.beats))
    else:
        asyncio.run(manager(args.nodes, args.beats))


if __name__ == "__main__":
    main()
