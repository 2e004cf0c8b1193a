"""`skepd`: the composition root, and the only file that names implementations. Reads the settings, builds the parts, runs them.

It ends at SIGTERM or SIGINT, and leaves its containers running.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import platform
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from skep import config
from skep.agent.attachments import ClusterAttachments
from skep.api.context import Cluster, LocalEvents, NodeInfo, Swarm
from skep.api.host import HostInfo, Warnings
from skep.api.localevents import LocalEvents as NodeEvents
from skep.api.server import make_app, serve_tcp, serve_unix
from skep.api.state import skep_version
from skep.api.tls import server_context
from skep.clock import SECOND, Clock
from skep.config import DOCKER_SOCKET, Settings
from skep.datapath.base import Datapath
from skep.datapath.check import examine
from skep.datapath.node import MemberNetwork, NodeNetwork
from skep.datapath.path import KernelDatapath
from skep.datapath.resolving import ResolverNames
from skep.datapath.router import host_networks
from skep.describe import describer
from skep.engine.base import Engine
from skep.engine.oci.engine import OciEngine
from skep.engine.oci.images import OciImages
from skep.engine.oci.kernel import make_shared_root
from skep.errors import ConfigError, SkepError
from skep.ids import new_hex
from skep.membership import Membership
from skep.model.network import Network
from skep.node.base import Attachments, LocalNetwork, LocalNetworks
from skep.node.container import NodeFacts
from skep.node.health import Health
from skep.node.imagegc import ImageGarbage, Marks
from skep.node.networks import Networks
from skep.node.plain import Plain
from skep.node.plain_adopt import is_on
from skep.node.tasks import TaskRuntime
from skep.node.volumes import Volumes
from skep.plan.allocate.networks import subnets_in_use
from skep.store.base import Backend
from skep.store.sqlite import SqliteBackend
from skep.system import SystemClock, lock, notify, own_group, start_logging, system_random

log = logging.getLogger("skep.daemon")
COMPARE_EVERY = 60 * SECOND


class Node:
    """`skep.api.context.Context` of this node."""

    clock: Clock
    engine: Engine
    swarm: Swarm
    host: NodeInfo
    events: LocalEvents
    volumes: Volumes
    networks: LocalNetworks
    attachments: Attachments
    plain: Plain | None

    def __init__(self, settings: Settings) -> None:
        """Every part by its name, once: it reads longer than it is."""
        self.settings = settings
        self.clock = SystemClock()
        self.rng = system_random()
        self.data, self.run_root = Path(settings.data_root), Path(settings.run_root)
        images = OciImages(
            self.data / "images",
            insecure=settings.insecure_registry,
            mirrors={"docker.io": settings.registry_mirror} if settings.registry_mirror else None,
            clock=self.clock,
        )
        for line in images.warnings:
            log.warning("%s", line)
        self.engine = self.oci = OciEngine(self.data, self.run_root, images, self.clock, self.rng, settings.cgroup_parent, settings.runtime)
        marks = Marks(high=int(settings.image_gc_high), low=int(settings.image_gc_low))
        self.image_garbage = ImageGarbage(
            self.engine, self.data / "images", self.data / "image-uses.json", marks, self.clock, tidy=images.tidy
        )
        self.volumes = Volumes(self.data / "volumes", self.clock, self.rng, containers=self.engine.all, mounts=self.run_root / "volumes")
        for line in self.volumes.warnings:
            log.warning("%s", line)
        self.kernel = KernelDatapath("skep", self.run_root / "network", "", clock=self.clock, aside=settings.forwarding == "aside")
        self.names = ResolverNames(self.run_root)
        self.network = NodeNetwork(self.kernel, self.names)
        self.networks = self.own_networks = Networks(
            self.data / "networks", self.network, self.clock, self.rng, host=lambda: host_networks("skep")
        )
        self.attachments = self.cluster_attachments = ClusterAttachments(self.rng)
        self.own_networks.overlays = lambda: subnets_in_use(self.cluster_attachments.networks())
        self.events = self.node_events = NodeEvents(self.engine, self.clock)
        self.warnings = Warnings()
        self.facts = NodeFacts(
            hostname=settings.hostname or socket.gethostname(), architecture=platform.machine(), resolv_conf=_resolv_conf()
        )
        self.plain = self.containers = Plain(
            self.engine, self.network, self.networks, self.volumes, self.clock, self.rng, self.facts, self.attachments
        )
        self.containers.tell = self.node_events.tell
        self.cluster_attachments.claimed = partial(is_on, self.engine)
        self._tasks: TaskRuntime | None = None
        self.host = HostInfo(
            self.engine,
            self.clock,
            id=self._engine_id(),
            root=settings.data_root,
            hostname=settings.hostname,
            labels=dict(pair.partition("=")[::2] for pair in settings.label),
            insecure_registries=settings.insecure_registry,
            mirrors=settings.registry_mirror,
            warnings=self.warnings,
            debug=settings.log_level == "debug",
        )
        self.swarm = self.membership = Membership(
            self.data / "swarm",
            clock=self.clock,
            rng=self.rng,
            describe=describer(settings, skep_version(), lambda: self.kernel.underlay_mtu),
            make_runtime=self._runtime,
            make_datapath=self._datapath,
            make_backend=self._backend,
            attachments=self.cluster_attachments,
            examine=partial(examine, self.kernel, self.names),
        )

    @property
    def cluster(self) -> Cluster:
        return self.membership.cluster()

    def _engine_id(self) -> str:
        path, new = self.data / "engine-id", self.data / "engine-id.new"
        if path.exists() and (known := path.read_text().strip()):
            return known
        made = new_hex(self.rng, 32)
        new.write_text(made + "\n")
        new.replace(path)
        return made

    def _datapath(self, address: str) -> Datapath:
        return MemberNetwork(self.network, address)

    def _runtime(self, datapath: Datapath) -> TaskRuntime:
        self._tasks = TaskRuntime(self.engine, datapath, self.facts, self.clock, self.rng, self.networks, self.volumes)
        self._tasks.tell = partial(self.node_events.placed, known=self._network)
        return self._tasks

    def _network(self, reference: str) -> LocalNetwork | Network | None:
        """This node's, or one of the cluster's that it takes part in, by its id."""
        own = self.own_networks.get(reference)
        return own or next((one for one in self.cluster_attachments.networks() if one.id == reference), None)

    async def start_up(self) -> None:
        """What is there without a cluster: containers, their network and names."""
        await self.oci.start_up()
        said = self.oci.describe()
        log.info("containers run through %s %s: %s", said["runtime"], said["runtime_version"], said["runtime_why"])
        await self.network.start_up()
        await self.own_networks.start_up()
        await self.containers.start_up()

    async def shut_down(self) -> None:
        """Let go; everything runs on."""
        await self.network.shut_down()
        await self.oci.shut_down()

    async def keep_comparing(self) -> None:
        """Somebody else may have changed the kernel's tables: what differs is mended, and said."""
        while True:
            await self.clock.sleep(COMPARE_EVERY)
            try:
                for sentence in await self.network.compare():
                    log.warning("network: %s", sentence)
            except SkepError as error:
                log.error("this node's network could not be compared with what it should be: %s", error.message)
            except Exception:
                # a namespace that went while it was looked at, say: no reason for the whole node to stop
                log.exception("this node's network could not be compared with what it should be")

    def health(self, task_id: str) -> Health | None:
        """What a task's health check has found here."""
        return self._tasks.health(task_id) if self._tasks else None

    @staticmethod
    def _backend(root: Path) -> Backend:
        return SqliteBackend(root / "state.db")


def _resolv_conf() -> str:
    """The host's, for containers; a resolver that answers on the host's loopback only would not be there for them."""
    try:
        lines = Path("/etc/resolv.conf").read_text().splitlines()
    except OSError:
        return ""
    kept = [line for line in lines if not line.startswith("nameserver 127.")]
    return "".join(line + "\n" for line in kept)


async def serve(settings: Settings) -> None:
    """Until SIGTERM or SIGINT."""
    node = Node(settings)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    # the runtime may have a mount namespace of its own (docs/engine.md): what is mounted below must reach it
    make_shared_root(settings.run_root)
    await node.start_up()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 1000)
    app = make_app(node, health=node.health)
    sockets = [host.removeprefix("unix://") for host in settings.host if host.startswith("unix://")]
    outside = [config.tcp_address(host) for host in settings.host if host.startswith("tcp://")]
    secured = server_context(settings.tlscert, settings.tlskey, settings.tlscacert) if outside else None
    if claimed := docker_socket(settings):
        sockets.append(claimed)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(node.node_events.run()),
                group.create_task(node.membership.run()),
                group.create_task(node.containers.run()),
                group.create_task(node.image_garbage.run()),
                group.create_task(node.keep_comparing()),
            ]
            settled, told = group.create_task(node.membership.settled()), group.create_task(ended.wait())
            await asyncio.wait((settled, told), return_when=asyncio.FIRST_COMPLETED)
            settled.cancel()
            told.cancel()
            for path in dict.fromkeys(sockets):
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                ready = asyncio.Event()
                tasks.append(group.create_task(serve_unix(app, path, ready=ready)))
                await ready.wait()
                log.info("the API is served on unix://%s", path)
            own_group(map(Path, sockets), settings.socket_group)
            for address, port in outside:
                assert secured is not None
                ready = asyncio.Event()
                tasks.append(group.create_task(serve_tcp(app, address, port, secured, ready=ready)))
                await ready.wait()
                log.info("the API is served on tcp://%s:%d, with mutual TLS", address, port)
            notify("READY=1")
            await ended.wait()
            notify("STOPPING=1")
            log.info("skepd ends; its containers go on")
            for task in tasks:
                task.cancel()
    finally:
        await node.shut_down()


def docker_socket(settings: Settings) -> str:
    """The path to claim so that docker needs no DOCKER_HOST, when nobody has it."""
    path = Path(settings.docker_socket) if settings.docker_socket else None
    if path is None or f"unix://{path}" in settings.host:
        return ""
    if (
        settings.host != (f"unix://{config.DEFAULT_SOCKET}",)
        and str(path) == DOCKER_SOCKET
        and settings.run_root != config.DEFAULT_RUN_ROOT
    ):
        return ""
    probe = socket.socket(socket.AF_UNIX)
    try:
        probe.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        return str(path)
    except OSError as error:
        log.warning("%s is left alone: %s", path, error.strerror)
        return ""
    finally:
        probe.close()
    log.warning("%s is served by another program and left alone: use DOCKER_HOST=%s", path, settings.host[0])
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--version" in arguments:
        print(f"skepd {skep_version()}")
        return 0
    try:
        settings = config.load(arguments)
        if os.geteuid():
            raise ConfigError("skepd makes namespaces, mounts and cgroups: run it as root")
        start_logging(settings.log_level, settings.log_format)
        for folder, mode in ((settings.data_root, 0o711), (settings.run_root, 0o755)):
            try:
                Path(folder).mkdir(parents=True, exist_ok=True, mode=mode)
            except OSError as error:
                raise ConfigError(f"{folder} cannot be made: {error.strerror}") from None
        lock(Path(settings.data_root) / "skepd.lock")
        asyncio.run(serve(settings))
    except (SkepError, config.BadSetting, OSError, BaseExceptionGroup) as error:
        cause = first(error)
        if not isinstance(cause, SkepError | config.BadSetting | OSError):
            raise
        print(f"skepd: {cause}", file=sys.stderr)
        return 1
    return 0


def first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    sys.exit(main())
