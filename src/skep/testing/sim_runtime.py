"""Containers of a simulated node: `skep.node.base.Tasks` turned inside out. Calls take their time, fail, hang, race with cancellation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from skep.clock import MILLISECOND, SECOND
from skep.model.assignment import TaskItem
from skep.model.task import ContainerStatus, TaskStatus
from skep.plan.workload import Call, Ended
from skep.testing.sim_plain import Plain

if TYPE_CHECKING:
    from skep.testing.sim_world import World

BAD = "bad"
"""An image with this in its name can never be pulled."""
CRASHING = "crash"
"""One with this runs for a moment and exits with 1."""


class Container:
    __slots__ = ("code", "item", "known", "state")

    def __init__(self, item: TaskItem) -> None:
        self.item = item
        self.state = "created"
        """created, running or exited."""
        self.code = 0
        self.known = True

    @property
    def image(self) -> str:
        container = self.item.task.spec.container_spec
        return container.image if container else ""


class _Running:
    """A call under way. One that was let go (skepd died) tells nobody how it ended."""

    __slots__ = ("call", "cancelled", "done", "item")

    def __init__(self, call: Call, item: TaskItem) -> None:
        self.call = call
        self.item = item
        self.cancelled = False
        self.done = False


class Runtime:
    """`skep.node.base.Tasks`, turned inside out: `do` begins a call, `on_end` hears of its end."""

    def __init__(self, world: World, node_id: str, on_end: Callable[[str, Call, Ended], None]) -> None:
        self._world = world
        self._node_id = node_id
        self._on_end = on_end
        self.containers: dict[str, Container] = {}
        self._calls: dict[str, _Running] = {}
        self.plain = Plain(world, node_id, on_end)

    def known(self) -> list[str]:
        return list(self.containers)

    def status(self, task_id: str) -> TaskStatus | None:
        found = self.containers.get(task_id)
        if found is None:
            return None
        pid = 4711 if found.state == "running" else 0
        container = ContainerStatus(container_id=task_id.ljust(64, "0"), pid=pid, exit_code=found.code, exit_known=found.known)
        return TaskStatus(container=container)

    @property
    def running(self) -> set[str]:
        return {id for id, container in self.containers.items() if container.state == "running"}

    @property
    def networks(self) -> set[str]:
        """On which something runs here."""
        items = [container.item for container in self.containers.values() if container.state == "running"]
        return {place.network_id for item in items for place in item.task.attachments} | {id for id, _ in self.plain.running.values()}

    def do(self, task_id: str, call: Call, item: TaskItem) -> None:
        if item.task.spec.network_attachment_spec is not None:
            self.plain.do(task_id, call, item)
            return
        if call is Call.SHUTDOWN and task_id in self.running:
            self._world.signalled(self._node_id, item)
        if task_id in self._calls:
            self._world.fail(
                f"{call} of task {task_id} while {self._calls[task_id].call} is under way on {self._world.name(self._node_id)}"
            )
        self._calls[task_id] = running = _Running(call, item)
        if call is Call.WAIT:
            self._wait(task_id, running)
            return
        weather, rng = self._world.weather, self._world.rng
        hangs = rng.random() < weather.hang and call in (Call.PREPARE, Call.START, Call.SHUTDOWN)
        usual = {Call.PREPARE: 400, Call.START: 150, Call.SHUTDOWN: 800, Call.REMOVE: 30}[call]
        delay = (rng.randrange(20, 90) * SECOND) if hangs else rng.randrange(1, usual) * MILLISECOND
        error = self._error(call, item)
        self._world.agenda.after(delay, lambda: self._end(task_id, running, error))

    def _error(self, call: Call, item: TaskItem) -> str:
        image = item.task.spec.container_spec.image if item.task.spec.container_spec else ""
        if self._world.healed:
            return ""
        if call is Call.PREPARE and BAD in image:
            return f"No such image: {image}: manifest for {image} not found: manifest unknown: manifest unknown"
        if self._world.rng.random() < self._world.weather.error:
            return f"{call} failed by order"
        return ""

    def _wait(self, task_id: str, running: _Running) -> None:
        """Ends when the container does."""
        found = self.containers.get(task_id)
        if found is None or found.state == "created":
            self._world.agenda.after(MILLISECOND, lambda: self._end(task_id, running, f"No such container: {running.item.task.name}"))
        elif found.state == "exited":
            self._world.agenda.after(MILLISECOND, lambda: self._end(task_id, running, ""))

    def cancel(self, task_id: str) -> None:
        """What the call would have done may be done all the same."""
        running = self._calls.get(task_id)
        if self.plain.cancel(task_id) or running is None or running.cancelled:
            return
        running.cancelled = True
        effect = self._world.rng.random() < 0.3
        self._world.agenda.after(self._world.rng.randrange(0, 20) * MILLISECOND, lambda: self._cancelled(task_id, running, effect))

    def _cancelled(self, task_id: str, running: _Running, effect: bool) -> None:
        if running.done:
            return
        running.done = True
        if effect and running.call is not Call.WAIT:
            self._effect(task_id, running)
        self._tell(task_id, running, Ended(cancelled=True))

    def _end(self, task_id: str, running: _Running, error: str) -> None:
        if running.done:
            return
        running.done = True
        if not error:
            error = self._effect(task_id, running)
        found = self.containers.get(task_id)
        if error or running.call is not Call.WAIT or found is None:
            self._tell(task_id, running, Ended(error=error))
        else:
            self._tell(task_id, running, Ended(code=found.code, known=found.known))

    def _effect(self, task_id: str, running: _Running) -> str:
        found = self.containers.get(task_id)
        if running.call is Call.PREPARE:
            self.containers.setdefault(task_id, Container(running.item))
        elif running.call is Call.START:
            if found is None:
                return f"No such container: {running.item.task.name}"
            if found.state == "created":
                found.state = "running"
                self._world.started(self._node_id, found.item)
                if CRASHING in found.image and not self._world.healed:
                    self._world.agenda.after(self._world.rng.randrange(1, 3000) * MILLISECOND, lambda: self.exit(task_id, 1))
        elif running.call is Call.SHUTDOWN:
            self.exit(task_id, 143)
        elif running.call is Call.REMOVE:
            self.exit(task_id, 137)
            self.containers.pop(task_id, None)
        return ""

    def _tell(self, task_id: str, running: _Running, ended: Ended) -> None:
        if self._calls.get(task_id) is running:
            del self._calls[task_id]
            self._on_end(task_id, running.call, ended)

    def exit(self, task_id: str, code: int, *, known: bool = True) -> None:
        """Its container ends now, if it runs."""
        found = self.containers.get(task_id)
        if found is None or found.state != "running":
            return
        found.state, found.code, found.known = "exited", code, known
        self._world.say(lambda: f"{self._world.name(self._node_id)}: container of {self._world.task(task_id)} exits with {code}")
        running = self._calls.get(task_id)
        if running is not None and running.call is Call.WAIT and not running.done:
            self._world.agenda.after(MILLISECOND, lambda: self._end(task_id, running, ""))

    def let_go(self) -> None:
        """skepd is gone: calls under way end without anybody, done or not."""
        for task_id, running in list(self._calls.items()):
            if not running.done and running.call is not Call.WAIT and self._world.rng.random() < 0.5:
                self._effect(task_id, running)
            running.done = True
        self._calls.clear()
        self.plain.let_go()

    def power_cut(self) -> None:
        self.let_go()
        self.plain.power_cut()
        for task_id in list(self.containers):
            self.exit(task_id, 0, known=False)
