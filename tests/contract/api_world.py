"""The world behind the server under test: the real control API, store and controllers; agents that do at once what real ones do.

Nothing moves by itself: `step` lets the controllers decide, every node's tasks go one state further, and the clock go on.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec

from skep.api.wire.cluster import tls_info
from skep.clock import MILLISECOND, SECOND
from skep.engine.base import Image, ImageConfig
from skep.errors import SkepError
from skep.ids import new_hex
from skep.manager.controllers import controllers
from skep.manager.loop import Loop
from skep.model.enums import NodeState, Role, TaskState
from skep.model.node import EngineDescription, Node, NodeDescription, NodeStatus, Plugin, Resources
from skep.model.spec import NodeSpec, Platform
from skep.model.task import ContainerStatus, Task, TaskStatus
from skep.plan.ops import Change, Create
from skep.testing.fake_context import FakeContext, StepClock

PLUGINS = (
    ("Log", "json-file"),
    ("Log", "local"),
    ("Network", "bridge"),
    ("Network", "host"),
    ("Network", "overlay"),
    ("Volume", "local"),
)
STEP = 250 * MILLISECOND
MESSAGES = {
    TaskState.ACCEPTED: "accepted",
    TaskState.PREPARING: "preparing",
    TaskState.READY: "prepared",
    TaskState.STARTING: "starting",
    TaskState.RUNNING: "started",
    TaskState.COMPLETE: "finished",
    TaskState.SHUTDOWN: "shutdown",
}
WAY = (TaskState.ASSIGNED, TaskState.ACCEPTED, TaskState.PREPARING, TaskState.READY, TaskState.STARTING, TaskState.RUNNING)
WEB = "10.0.99.1:5000/web"
DIGESTS = {
    "1": "sha256:cbedb7e03c221c520ba9a9076b32678f8886766ea2d0171e5f2674096f432995",
    "2": "sha256:3f0a9d7078ed65ef44dec6ab827c27e346e711657e3390598f354acb06305ec9",
}


def description(hostname: str) -> NodeDescription:
    return NodeDescription(
        hostname=hostname,
        platform=Platform(architecture="x86_64", os="linux"),
        resources=Resources(nano_cpus=2_000_000_000, memory_bytes=25_276_510_208),
        engine=EngineDescription(engine_version="28.2.2", plugins=tuple(Plugin(type=t, name=n) for t, n in PLUGINS)),
    )


class World(FakeContext):
    def __init__(self) -> None:
        super().__init__(StepClock(), random.Random(7), description=description("node-1"))
        self.loop: Loop | None = None
        self.stopping: dict[str, int] = {}
        """Task -> when it was told to stop."""
        for tag, digest in DIGESTS.items():
            image = Image(
                id="sha256:" + new_hex(self.rng),
                tags=(f"{WEB}:{tag}", "local:1") if tag == "1" else (f"{WEB}:{tag}",),
                digests=(f"{WEB}@{digest}",),
                layers=("sha256:" + "8a" * 32,),
                size=1_982_445,
                created=1_795_405_650 * SECOND,
                architecture="amd64",
                config=ImageConfig(cmd=("httpd", "-f", "-p", "80", "-h", "/www"), exposed_ports=("80/tcp",)),
            )
            self.engine.images.add(image)
            self.engine.images.remote[f"{WEB}:{tag}"] = image
        for name, host in (("local:1", "registry.example"), ("nosuch.invalid/x:1", "nosuch.invalid")):
            self.engine.images.remote[name] = SkepError(
                f'Get "https://{host}/v2/": dial tcp: lookup {host} on 192.0.2.53:53: dial udp 192.0.2.53:53: connect: '
                "network is unreachable"
            )

    @property
    def steps(self) -> StepClock:
        assert isinstance(self.clock, StepClock)
        return self.clock

    async def on_init(self) -> None:
        assert self.store is not None
        self.loop = Loop(self.store, self.clock, self.rng, controllers())
        self.report(self.swarm.info().node_id, NodeState.READY, "node-1")

    def report(self, node_id: str, state: NodeState, hostname: str) -> None:
        """A node's session begins or ends."""
        assert self.store is not None and self.control is not None
        node = self.store.get(Node, node_id)
        assert node is not None
        told = msgspec.structs.replace(description(hostname), tls_info=tls_info(self.control.cluster().root_ca.cert))
        status = msgspec.structs.replace(node.status, state=state, since=self.clock.now())
        self.store.apply([Change(Node, node_id, {"status": status, "description": told}, "its session")], by="dispatcher")
        self.decide()

    def join(self, hostname: str, address: str) -> str:
        """A worker joins, and its session begins."""
        assert self.store is not None
        node = Node(
            id=f"{hostname.replace('-', '')}{new_hex(self.rng, 32)}"[:25],
            spec=NodeSpec(role=Role.WORKER.value, availability="active"),
            status=NodeStatus(addr=address),
        )
        self.store.apply([Create(node, "it joined")])
        self.report(node.id, NodeState.READY, hostname)
        return node.id

    def decide(self) -> None:
        if self.loop is not None and self.store is not None and self.control is not None:
            self.loop.step(self.clock.now())
            self.store.flush()

    def step(self) -> None:
        """Decisions, one state further for every task on a node that is there, time."""
        if self.store is None or self.control is None:
            return
        self.steps.time += STEP
        self.decide()
        for task in list(self.store.all(Task)):
            node = self.store.get(Node, task.node_id) if task.node_id else None
            if node is not None and node.ready:
                self.work(task)
        self.decide()

    def work(self, task: Task) -> None:
        """What an agent does next with a task. A command of `false` fails, of `true` completes; an image with `nosuch` is not there."""
        assert self.store is not None
        state = task.status.state
        container = task.spec.container_spec
        args = (container.args if container is not None else None) or ()
        if state > TaskState.RUNNING or state < TaskState.ASSIGNED:
            return
        if task.desired_state > TaskState.RUNNING and task.desired_state != TaskState.COMPLETE:
            # The recorded containers did not heed SIGTERM: killed after the grace period.
            since = self.stopping.setdefault(task.id, self.clock.now())
            if state < TaskState.RUNNING or self.clock.now() - since >= 10 * SECOND:
                self.status(task, TaskState.SHUTDOWN, code=137)
        elif state == TaskState.PREPARING and container is not None and not self.has(task.node_id, container.image):
            self.status(task, TaskState.REJECTED, f"No such image: {container.image}")
        elif state == TaskState.RUNNING:
            if args[:1] == ("false",) or args[-1:] == ("exit 3",):
                code = 3 if args[-1:] == ("exit 3",) else 1
                self.status(task, TaskState.FAILED, f"task: non-zero exit ({code})", code=code)
            elif args[:1] == ("true",):
                self.status(task, TaskState.COMPLETE)
        elif state != TaskState.READY or task.desired_state >= TaskState.RUNNING:
            self.status(task, WAY[WAY.index(state) + 1])

    def has(self, node_id: str, image: str) -> bool:
        """Only node-1 has the image that no registry knows."""
        return "nosuch" not in image and (not image.startswith("local:") or node_id == self.swarm.info().node_id)

    def status(self, task: Task, state: TaskState, err: str = "", code: int = 0) -> None:
        assert self.store is not None
        container = task.status.container
        if state == TaskState.STARTING:
            container = ContainerStatus(container_id=new_hex(self.rng), pid=4242)
        elif state > TaskState.RUNNING and container is not None:
            container = msgspec.structs.replace(container, pid=0, exit_code=code)
        now = self.clock.now()
        status = TaskStatus(
            timestamp=now, state=state, message=MESSAGES.get(state, task.status.message), err=err, container=container, applied_at=now
        )
        fields: dict[str, Any] = {"status": status}
        if state == TaskState.RUNNING and not task.running_at:
            fields["running_at"] = now
        self.store.apply([Change(Task, task.id, fields, "reported")], by="dispatcher")
