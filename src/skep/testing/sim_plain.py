"""Plain containers of a simulated node on the cluster's networks: `skep.agent.attachments` turned inside out.

A container is there while it has its sandbox: skepd's death leaves it, a power cut does not. What the agent's worker calls for an
attachment task comes to `do`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from skep.agent.session import Session
from skep.clock import MILLISECOND, SECOND
from skep.ids import new_hex, new_id
from skep.link.messages import Answer, Attach
from skep.model.assignment import TaskItem
from skep.plan.workload import Call, Ended

if TYPE_CHECKING:
    from skep.testing.sim_world import World

PATIENCE = 20 * SECOND


class Plain:
    def __init__(self, world: World, node_id: str, on_end: Callable[[str, Call, Ended], None]) -> None:
        self._world = world
        self._node_id = node_id
        self._on_end = on_end
        self.running: dict[str, tuple[str, str]] = {}
        """Container -> (network id, address) it was given."""
        self._asking: dict[str, str] = {}
        """Task asked for -> container."""
        self._calls: dict[str, tuple[Call, str]] = {}
        """Task -> (the call under way, its container)."""

    @property
    def asking(self) -> bool:
        return bool(self._asking)

    # docker run, docker rm

    def run(self, session: Session, network: str, address: str) -> None:
        task_id, container = new_id(self._world.rng), new_hex(self._world.rng)
        self._asking[task_id] = container
        session.ask(task_id, Attach(task_id=task_id, network=network, container_id=container, address=address, names=(container[:4],)))
        self._world.agenda.after(PATIENCE, lambda: self._give_up(session, task_id))

    def answered(self, answer: Answer) -> None:
        container = self._asking.pop(answer.question, "")
        if not container:
            return
        if answer.status or answer.network is None:
            self._world.say(lambda: f"{self._world.name(self._node_id)}: no place for container {container[:12]}: {answer.error}")
            self._leave(container)
            return
        self._world.names[answer.task_id] = f"container {container[:12]} on {answer.network.name}"
        self._world.say(lambda: f"{self._world.name(self._node_id)}: container {container[:12]} has {answer.address}")
        self.running[container] = (answer.network.id, answer.address)

    def stop(self, container: str) -> None:
        if self.running.pop(container, None) is not None:
            self._world.say(lambda: f"{self._world.name(self._node_id)}: container {container[:12]} is removed")
            self._leave(container)

    def _give_up(self, session: Session, task_id: str) -> None:
        container = self._asking.pop(task_id, "")
        if container:
            session.forget(task_id)
            self._leave(container)

    def _leave(self, container: str) -> None:
        """What waits for its end is over."""
        for task_id, (call, whose) in list(self._calls.items()):
            if whose == container and call is Call.WAIT:
                self._end(task_id, Ended())

    # the worker's calls

    def do(self, task_id: str, call: Call, item: TaskItem) -> None:
        spec = item.task.spec.network_attachment_spec
        container = spec.container_id if spec else ""
        if task_id in self._calls:
            self._world.fail(f"{call} of {self._world.task(task_id)} while {self._calls[task_id][0]} is under way")
        self._calls[task_id] = (call, container)
        if call is Call.SHUTDOWN:
            self.running.pop(container, None)
        if call is not Call.WAIT or not (container in self.running or container in self._asking.values()):
            self._world.agenda.after(MILLISECOND, lambda: self._end(task_id, Ended(), (call, container)))

    def cancel(self, task_id: str) -> bool:
        """False: it is no place of a plain container."""
        if task_id not in self._calls:
            return False
        self._world.agenda.after(MILLISECOND, lambda: self._end(task_id, Ended(cancelled=True)))
        return True

    def _end(self, task_id: str, ended: Ended, which: tuple[Call, str] | None = None) -> None:
        found = self._calls.get(task_id)
        if found is not None and which in (None, found):
            del self._calls[task_id]
            self._on_end(task_id, found[0], ended)

    # misfortune

    def let_go(self) -> None:
        """skepd is gone: containers run on, what was about to be run is not."""
        self._asking.clear()
        self._calls.clear()

    def power_cut(self) -> None:
        self.let_go()
        self.running.clear()
