"""Waiting for a service to converge, shown as Docker shows it: bars on a terminal, plain lines elsewhere.

Asks five times a second for the service, its up-to-date tasks and the nodes; done when all that should run does so, and has for as long as
the update's monitor period.
"""

from __future__ import annotations

import os

from skep.cli.shell import Failed
from skep.client import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TextIO

    from skep.cli.shell import Shell

STATES = {
    state: number
    for number, state in enumerate(
        [
            "new",
            "allocated",
            "pending",
            "assigned",
            "accepted",
            "preparing",
            "ready",
            "starting",
            "running",
            "complete",
            "shutdown",
            "failed",
            "rejected",
        ],
        1,
    )
}
RUNNING = STATES["running"]
MOST_BARS = 20
LONGEST = len("preparing")
SECOND = 1_000_000_000


class Display:
    """Lines by name. On a terminal a line is written over; elsewhere it is printed when it says something new."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.terminal = out.isatty()
        self._lines: dict[str, int] = {}
        self._shown: dict[str, str] = {}

    def show(self, name: str, action: str, current: int = 0, total: int = 0) -> None:
        bar = self._bar(current, total)
        if not self.terminal:
            if not bar and self._shown.get(name) != action:
                self._shown[name] = action
                self.out.write(f"{name}: {action}\n")
                self.out.flush()
            return
        if name not in self._lines:
            self._lines[name] = len(self._lines)
            self.out.write("\n")
        up = len(self._lines) - self._lines[name]
        self.out.write(f"\x1b[{up}A\x1b[2K\r{name}: {action} {bar}\r\x1b[{up}B")
        self.out.flush()

    def say(self, text: str) -> None:
        """A line of its own; what was shown before is not written over any more."""
        self._lines.clear()
        self._shown.clear()
        self.out.write(f"{text}\n")
        self.out.flush()

    def _bar(self, current: int, total: int) -> str:
        if current <= 0 and total <= 0:
            return ""
        half = min(50, int(current / total * 100) // 2) if total else 0
        return f"[{'=' * half}>{' ' * (50 - half)}] " if self._width() > 110 else "" if self.terminal else "-"

    def _width(self) -> int:
        if not self.terminal:
            return 200
        try:
            return os.get_terminal_size(self.out.fileno()).columns
        except (OSError, ValueError):
            return 200


def wait(shell: Shell, service_id: str, quiet: bool) -> None:
    """Raises Failed when the update is paused. `Ctrl-C` leaves it to go on in the background."""
    if quiet:
        import io

        out: TextIO = io.StringIO()
    else:
        out = shell.out
    display = Display(out)
    progress = _Progress(shell, service_id, display)
    try:
        while not progress.step():
            shell.sleep(0.2)
    except KeyboardInterrupt:
        if not progress.converged:
            display.say("Operation continuing in background.")
            display.say(f"Use `skep service ps {service_id}` to check progress.")


class _Progress:
    def __init__(self, shell: Shell, service_id: str, display: Display) -> None:
        self.shell = shell
        self.id = service_id
        self.display = display
        self.converged = False
        self._since = 0
        self._monitor = 5 * SECOND
        self._rollback = False
        self._message = ""
        self._slots: _Slots | None = None

    def step(self) -> bool:
        """One look; True when it is over."""
        shell, display = self.shell, self.display
        service = shell.call(calls.service_inspect(self.id))
        self._monitor = (service["Spec"].get("UpdateConfig") or {}).get("Monitor") or self._monitor
        if self._slots is None:
            self._slots = slots_of(service, display)
        if self._look_at_update(service.get("UpdateStatus") or {}):
            return True
        if self.converged and shell.now() - self._since >= self._monitor:
            display.show("verify", f"Service {self.id} converged")
            if self._message:
                display.say(f"rollback: {self._message}")
            return True
        tasks = shell.call(calls.task_list({"service": [self.id], "_up-to-date": ["true"]}))
        nodes = shell.call(calls.node_list())
        up = {node["ID"] for node in nodes if node["Status"]["State"] != "down"}
        self.converged = self._slots.update(service, tasks, up, self._rollback)
        if not self.converged:
            if self._since:
                display.show("verify", "Detected task failure")
            self._since = 0
            return False
        if service.get("JobStatus"):
            display.say("job complete")
            return True
        self._since = self._since or shell.now()
        left = self._monitor - (shell.now() - self._since)
        if left >= 0:
            display.show("verify", f"Waiting {max(1, -(-left // SECOND))} seconds to verify that tasks are stable...")
        return False

    def _look_at_update(self, update: dict[str, Any]) -> bool:
        state, message = update.get("State", ""), update.get("Message", "")
        if state == "updating":
            self._rollback = False
        elif state == "completed":
            return not self.converged
        elif state == "paused":
            raise Failed(f"service update paused: {message}")
        elif state == "rollback_paused":
            raise Failed(f"service rollback paused: {message}")
        elif state == "rollback_started":
            if not self._rollback and message:
                self.display.show("rollback", message)
            self._rollback = True
        elif state == "rollback_completed":
            if not self.converged:
                self._message = message
            self._rollback = True
        return False


class _Slots:
    """What should run, as lines of a display."""

    def __init__(self, display: Display) -> None:
        self.display = display
        self.begun = False
        self.done = False

    def update(self, service: dict[str, Any], tasks: list[dict[str, Any]], up: set[str], rollback: bool) -> bool:
        """Shows the tasks; True when all is as it should be."""
        raise NotImplementedError

    def overall(self, running: int, total: int, rollback: bool) -> None:
        self.display.show("overall progress", f"{'rolling back update: ' if rollback else ''}{running} out of {total} tasks")

    def task(self, name: str, task: dict[str, Any], most: int = RUNNING, always: bool = False) -> None:
        err, state = task["Status"].get("Err", ""), task["Status"]["State"]
        if err:
            self.display.show(name, cut(err))
        elif always or not (over(task["DesiredState"]) or over(state)):
            self.display.show(name, state.ljust(LONGEST), STATES[state], most)


def slots_of(service: dict[str, Any], display: Display) -> _Slots:
    """Raises Failed for a mode nobody knows."""
    mode = service["Spec"]["Mode"]
    if (mode.get("Replicated") or {}).get("Replicas") is not None:
        return _Replicated(display)
    if mode.get("Global") is not None:
        return _Global(display)
    iteration = ((service.get("JobStatus") or {}).get("JobIteration") or {}).get("Index", 0)
    if mode.get("ReplicatedJob") is not None:
        return _ReplicatedJob(display, mode["ReplicatedJob"], iteration)
    if mode.get("GlobalJob") is not None:
        return _GlobalJob(display, iteration)
    raise Failed("unrecognized service mode")


def over(state: str) -> bool:
    return STATES.get(state, 0) > RUNNING


def known(task: dict[str, Any]) -> bool:
    return task["DesiredState"] in STATES and task["Status"]["State"] in STATES


def cut(err: str) -> str:
    err = err.replace("\n", " ")
    return err if len(err) <= 75 else err[:74] + "…"


def runs(task: dict[str, Any]) -> bool:
    return task["Status"]["State"] == "running" and not over(task["DesiredState"])


def rank(task: dict[str, Any]) -> tuple[int, int]:
    return STATES[task["DesiredState"]], STATES[task["Status"]["State"]]


class _Replicated(_Slots):
    """A line per slot, for the task with the lowest desired state."""

    def __init__(self, display: Display) -> None:
        super().__init__(display)
        self._numbers: dict[int, int] = {}

    def update(self, service: dict[str, Any], tasks: list[dict[str, Any]], up: set[str], rollback: bool) -> bool:
        total = service["Spec"]["Mode"]["Replicated"]["Replicas"]
        if not self.begun:
            self.overall(0, total, rollback)
            for n in range(1, total + 1 if total <= MOST_BARS else 0):
                self.display.show(f"{n}/{total}", " ")
            self.begun = True
        slots: dict[int, dict[str, Any]] = {}
        for task in tasks:
            if not known(task) or (task.get("NodeID") and task["NodeID"] not in up):
                continue
            slot = task.get("Slot", 0)
            if slot not in slots or rank(task) < rank(slots[slot]):
                slots[slot] = task
        if self.done and any(task["Status"]["State"] != "running" for task in slots.values()):
            self.done = False
        running = 0
        for slot, task in slots.items():
            number = self._numbers.setdefault(slot, len(self._numbers) + 1)
            running += runs(task)
            if not self.done and total <= MOST_BARS and number <= total:
                self.task(f"{number}/{total}", task)
        if not self.done:
            self.overall(running, total, rollback)
            self.done = running == total
        return bool(running == total)


class _Global(_Slots):
    """A line per node."""

    def update(self, service: dict[str, Any], tasks: list[dict[str, Any]], up: set[str], rollback: bool) -> bool:
        nodes: dict[str, dict[str, Any]] = {}
        for task in tasks:
            if task.get("NodeID") and known(task) and (task["NodeID"] not in nodes or rank(task) < rank(nodes[task["NodeID"]])):
                nodes[task["NodeID"]] = task
        total = len(nodes)
        if not self.begun:
            if not total:
                self.display.show("overall progress", "waiting for new tasks")
                return False
            self.overall(0, total, rollback)
            self.begun = True
        if self.done and any(task["Status"]["State"] != "running" for task in nodes.values()):
            self.done = False
        running = 0
        for id, task in nodes.items():
            if id not in up:
                continue
            running += runs(task)
            if not self.done and total <= MOST_BARS:
                self.task(id[:12], task)
        if not self.done:
            self.overall(running, total, rollback)
            self.done = running == total
        return running == total


class _Job(_Slots):
    def __init__(self, display: Display, iteration: int) -> None:
        super().__init__(display)
        self.iteration = iteration
        self.total = 0

    def mine(self, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of this run of the job."""
        return [task for task in tasks if task.get("JobIteration") is not None and task["JobIteration"].get("Index", 0) == self.iteration]

    def completed(self, done: int) -> None:
        self.display.show("job progress", f"{str(done).rjust(len(str(self.total)))} out of {self.total} complete", done, self.total)


class _ReplicatedJob(_Job):
    def __init__(self, display: Display, mode: dict[str, Any], iteration: int) -> None:
        super().__init__(display, iteration)
        self.total = mode.get("TotalCompletions", 1)
        self.concurrent = mode.get("MaxConcurrent", 1)

    def update(self, service: dict[str, Any], tasks: list[dict[str, Any]], up: set[str], rollback: bool) -> bool:
        if not self.begun:
            self._show(0, 0)
            for n in range(1, self.total + 1 if self.total <= MOST_BARS else 0):
                self.display.show(f"{n}/{self.total}", " ")
            self.begun = True
        slots: dict[int, dict[str, Any]] = {}
        for task in self.mine(tasks):
            slot = task.get("Slot", 0)
            if known(task) and (slot not in slots or rank(task)[1] < rank(slots[slot])[1]):
                slots[slot] = task
        active = done = 0
        for slot, task in sorted(slots.items()):
            if self.total <= MOST_BARS:
                self.task(f"{slot + 1}/{self.total}", task, most=RUNNING + 1, always=True)
            active += STATES[task["Status"]["State"]] < STATES["complete"]
            done += task["Status"]["State"] == "complete"
        self._show(active, done)
        return bool(done == self.total)

    def _show(self, active: int, done: int) -> None:
        self.completed(done)
        wanted = min(self.total - done, self.concurrent)
        width = len(str(self.concurrent))
        self.display.show("active tasks", f"{str(active).rjust(width)} out of {str(wanted).rjust(width)} tasks")


class _GlobalJob(_Job):
    def __init__(self, display: Display, iteration: int) -> None:
        super().__init__(display, iteration)
        self._nodes: set[str] = set()

    def update(self, service: dict[str, Any], tasks: list[dict[str, Any]], up: set[str], rollback: bool) -> bool:
        if not self.begun:
            if not tasks and up:
                self.display.show("job progress", "waiting for tasks")
                return False
            self._nodes = {task.get("NodeID", "") for task in self.mine(tasks)}
            self.total = len(self._nodes)
            self.completed(0)
            self.begun = True
        nodes: dict[str, dict[str, Any]] = {}
        for task in self.mine(tasks):
            id = task.get("NodeID", "")
            if id in self._nodes and known(task) and (id not in nodes or rank(task)[1] < rank(nodes[id])[1]):
                nodes[id] = task
        done = 0
        for id, task in nodes.items():
            if self.total <= MOST_BARS:
                self.task(id, task, most=RUNNING + 1, always=True)
            done += task["Status"]["State"] == "complete"
        self.completed(done)
        return done == self.total
