"""Dispatcher and agents on a virtual clock with lost, late, doubled and reordered messages, killed managers and restarted agents.

What must hold: no task has two calls at once, no stored state goes back, a node is never told of what is not durable; and when the faults
end, every task is where its desired state says and manager and node agree.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import pytest
from link_world import StillClock, node, task

from skep.agent.session import Session as AgentSession
from skep.agent.state import MemoryState
from skep.agent.worker import Apply, Cancel, Do, Worker
from skep.clock import MILLISECOND, SECOND
from skep.errors import SkepError
from skep.link.memory import Fault, Wire
from skep.link.messages import Assignments, Closing, Hello, Report, Reported
from skep.manager.dispatcher import Dispatcher
from skep.manager.session import Session
from skep.model.assignment import TaskItem
from skep.model.enums import NodeState, TaskState
from skep.model.node import Node, NodeDescription
from skep.model.task import Task
from skep.plan.ops import Change, Create, Delete
from skep.plan.ownership import refuse
from skep.plan.workload import Call, Ended
from skep.store.backends import MemoryBackend
from skep.store.memory import MemoryStore


class Simulation:
    """One manager, a few nodes; every happening is an entry in one heap."""

    def __init__(self, seed: int, nodes: int = 3) -> None:
        self.rng = random.Random(seed)
        self.clock = StillClock()
        self.faulty = True
        self.heap: list[tuple[int, int, Callable[[], None]]] = []
        self.count = 0
        self.wakes: set[int] = set()
        self.backend = MemoryBackend()
        self.store = MemoryStore(self.backend, self.clock, refuse)
        self.store.apply([Create(node(f"n{n}", n + 1), "") for n in range(nodes)])
        self.store.flush()
        self.start_manager()
        self.nodes = [SimulatedNode(self, f"n{n}") for n in range(nodes)]

    @property
    def now(self) -> int:
        return self.clock.time

    def at(self, time: int, what: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.heap, (max(time, self.now), self.count, what))

    def wake(self, time: int) -> None:
        """Look again then; many ask for the same moment."""
        if time not in self.wakes:
            self.wakes.add(time)
            self.at(time, lambda: self.wakes.discard(time))

    def start_manager(self) -> None:
        self.watch = self.store.watch()
        self.dispatcher = Dispatcher(self.store, self.rng, self.now)
        self.manager_due: int | None = self.now

    def kill_manager(self) -> None:
        """Between any two commits: what was not flushed never was."""
        self.store = MemoryStore(self.backend, self.clock, refuse)
        self.start_manager()
        for simulated in self.nodes:
            simulated.cut()

    def settle(self) -> None:
        """After each happening: sometimes the disk is slow, and nobody may hear of what is not on it."""
        if not self.faulty or self.rng.random() < 0.7:
            self.store.flush()
        self.dispatcher.changed(self.watch.take(), self.now)
        due = self.dispatcher.tick(self.now)
        if due is not None:
            self.wake(max(due, self.now))
        for session in self.dispatcher.take_ready():
            for simulated in self.nodes:
                if simulated.manager_side is session:
                    for message in self.dispatcher.pending_messages(session):
                        if isinstance(message, Assignments):
                            self.check_durable(message)
                        elif isinstance(message, Reported):
                            self.check_stored(simulated.reports, message.sequence)
                        simulated.wire.send_down(message, self.now)
                        if isinstance(message, Closing):
                            self.at(self.now + 5 * MILLISECOND, simulated.cut)
        for simulated in self.nodes:
            simulated.step()

    def check_durable(self, message: Assignments) -> None:
        for item in message.set:
            if isinstance(item, TaskItem):
                assert item.task.version <= self.store.durable_version

    def check_stored(self, reports: list[Report], sequence: int) -> None:
        """What is acknowledged must be there for whoever starts from the disk."""
        disk = MemoryStore(self.backend, self.clock)
        for report in reports.copy():
            if report.sequence <= sequence:
                for id, status in report.statuses.items():
                    stored = disk.get(Task, id)
                    assert stored is None or stored.status.state >= status.state
                reports.remove(report)

    def run(self, until: int) -> None:
        self.settle()
        while self.heap and self.heap[0][0] <= until:
            time, _, what = heapq.heappop(self.heap)
            self.clock.time = max(time, self.clock.time)
            what()
            self.settle()
        self.clock.time = until
        self.settle()

    def fate(self, up: bool) -> Fault:
        if not self.faulty:
            return Fault(MILLISECOND)
        copies = self.rng.choices((1, 0, 2), (0.94, 0.03, 0.03))[0]
        return Fault(self.rng.choice((MILLISECOND, 20 * MILLISECOND, 400 * MILLISECOND)), copies)


class SimulatedNode:
    def __init__(self, simulation: Simulation, id: str) -> None:
        self.simulation = simulation
        self.id = id
        self.state = MemoryState()
        self.containers: dict[str, str] = {}
        """What a runtime would have: task -> prepared, running, ended."""
        self.busy: dict[str, Do] = {}
        self.cancelled: set[str] = set()
        self.wire = Wire()
        self.wire.cut = True
        self.manager_side: Session | None = None
        self.reports: list[Report] = []
        """Sent in this session and not acknowledged."""
        self.begin()

    def begin(self) -> None:
        now = self.simulation.now
        self.worker = Worker(self.state, now, list(self.containers))
        self.session = AgentSession(self.worker, lambda: NodeDescription(hostname=self.id), self.simulation.rng, now, address="192.0.2.1")

    def restart(self) -> None:
        """kill -9 of the agent: containers live on, calls under way end nowhere."""
        self.cut()
        self.busy.clear()
        self.cancelled.clear()
        self.begin()

    def cut(self) -> None:
        self.wire.break_off()
        if self.manager_side is not None:
            self.simulation.dispatcher.disconnect(self.manager_side)
            self.manager_side = None
        if self.session._connected:
            self.session.lost(self.simulation.now, "cut")

    def step(self) -> None:
        simulation, now = self.simulation, self.simulation.now
        due = [self.worker.tick(now)]
        if self.session.broken:
            self.cut()
        if self.session.connect_at is not None and now >= self.session.connect_at:
            self.session.connecting()
            self.reports = []
            self.wire = Wire(simulation.fate, ordered=simulation.rng.random() < 0.8)
            for message in self.session.connected(now):
                self.wire.send_up(message, now)
        self.deliver()
        for message in self.session.tick(now):
            self.wire.send_up(message, now)
            if isinstance(message, Report):
                self.reports.append(message)
        self.carry_out()
        due += [self.session.next_time(), self.wire.next_time()]
        if self.session.broken:
            due.append(now + 1)
        for time in due:
            if time is not None:
                simulation.wake(max(time, now))

    def deliver(self) -> None:
        simulation, now = self.simulation, self.simulation.now
        while (pair := self.wire.take(now)) is not None:
            up, down = pair
            if down is not None:
                for answer in self.session.received(down, now):
                    self.wire.send_up(answer, now)
            elif isinstance(up, Hello) and self.manager_side is None:
                try:
                    self.manager_side = simulation.dispatcher.connect(self.id, up, now)
                except SkepError:
                    simulation.at(now, self.cut)
            elif up is not None and self.manager_side is not None:
                simulation.dispatcher.receive(self.manager_side, up, now)

    def carry_out(self) -> None:
        simulation = self.simulation
        for instruction in self.worker.take():
            delay = simulation.rng.choice((1, 30, 700)) * MILLISECOND
            if isinstance(instruction, Apply):
                version = instruction.snapshot.version
                worker = self.worker
                simulation.at(
                    simulation.now + delay, lambda version=version, worker=worker: worker.network_applied(version, "", simulation.now)
                )
            elif isinstance(instruction, Cancel):
                self.cancelled.add(instruction.task_id)
                simulation.at(simulation.now + MILLISECOND, lambda id=instruction.task_id: self.finish(self.busy.get(id)))
            else:
                assert instruction.task_id not in self.busy, "two calls of one task at once"
                self.busy[instruction.task_id] = instruction
                if instruction.call is not Call.WAIT:
                    simulation.at(simulation.now + delay, lambda do=instruction: self.finish(do))
                elif self.containers.get(instruction.task_id) != "running":
                    simulation.at(simulation.now + MILLISECOND, lambda do=instruction: self.finish(do))

    def finish(self, do: Do | None) -> None:
        if do is None or self.busy.get(do.task_id) is not do:
            return
        del self.busy[do.task_id]
        ended = Ended(cancelled=True) if do.task_id in self.cancelled else Ended()
        self.cancelled.discard(do.task_id)
        if not ended.cancelled:
            ended = self.effect(do)
        self.worker.finished(do.task_id, do.call, ended, None, self.simulation.now)

    def effect(self, do: Do) -> Ended:
        id, here = do.task_id, self.containers.get(do.task_id)
        if self.simulation.faulty and do.call is not Call.WAIT and self.simulation.rng.random() < 0.05:
            return Ended(error="out of luck")
        match do.call:
            case Call.PREPARE:
                self.containers.setdefault(id, "prepared")
            case Call.START:
                assert here is not None
                self.containers[id] = "running" if here == "prepared" else here
            case Call.WAIT:
                return Ended() if here == "ended" else Ended(code=1)
            case Call.SHUTDOWN:
                if here == "running":
                    self.containers[id] = "ended"
            case Call.REMOVE:
                self.containers.pop(id, None)
        return Ended()

    def exit(self) -> None:
        running = [id for id, here in self.containers.items() if here == "running"]
        if running:
            id = self.simulation.rng.choice(running)
            self.containers[id] = "ended"
            do = self.busy.get(id)
            if do is not None and do.call is Call.WAIT:
                self.finish(do)


def happen(simulation: Simulation, number: int) -> None:
    """One thing that a cluster lives through."""
    rng, store = simulation.rng, simulation.store
    tasks = list(store.all(Task))
    what = rng.random()
    if what < 0.35:
        desired = rng.choice((TaskState.READY, TaskState.RUNNING))
        store.apply([Create(task(f"t{number}", f"n{rng.randrange(len(simulation.nodes))}", desired_state=desired), "")])
    elif what < 0.65 and tasks:
        chosen = rng.choice(tasks)
        desired = rng.choice(
            [state for state in (TaskState.RUNNING, TaskState.SHUTDOWN, TaskState.REMOVE) if state >= chosen.desired_state]
        )
        store.apply([Change(Task, chosen.id, {"desired_state": desired}, "")])
    elif what < 0.72 and tasks:
        store.apply([Delete(Task, rng.choice(tasks).id, "")])
    elif what < 0.8:
        rng.choice(simulation.nodes).exit()
    elif what < 0.87:
        rng.choice(simulation.nodes).cut()
    elif what < 0.94:
        rng.choice(simulation.nodes).restart()
    else:
        simulation.kill_manager()


@pytest.mark.parametrize("seed", range(60))
def test_whatever_is_lost_manager_and_nodes_agree_in_the_end(seed: int) -> None:
    simulation = Simulation(seed)
    for number in range(50):
        simulation.run(simulation.now + simulation.rng.choice((0, 5, 60, 900, 4000)) * MILLISECOND)
        happen(simulation, number)
    simulation.faulty = False
    # one more message each way shows a gap that the faults left: on a real connection nothing is lost without its end
    simulation.store.apply([Create(task(f"last-{simulated.id}", simulated.id), "") for simulated in simulation.nodes])
    simulation.run(simulation.now + 120 * SECOND)
    for stored in simulation.store.all(Node):
        assert stored.status.state is NodeState.READY, stored
    for stored in simulation.store.all(Task):
        worker = next(simulated for simulated in simulation.nodes if simulated.id == stored.node_id).worker
        status = worker.status(stored.id)
        assert status is not None and (status.state, status.err) == (stored.status.state, stored.status.err), (stored, status)
        if stored.desired_state >= TaskState.SHUTDOWN:
            assert stored.terminal, stored
        elif not stored.terminal:
            assert stored.state is (TaskState.READY if stored.desired_state is TaskState.READY else TaskState.RUNNING), stored
    for simulated in simulation.nodes:
        assigned = {t.id for t in simulation.store.all(Task) if t.node_id == simulated.id}
        assert set(simulated.containers) <= assigned
        assert {id for id, here in simulated.containers.items() if here == "running"} == {
            t.id for t in simulation.store.all(Task) if t.id in assigned and t.state is TaskState.RUNNING
        }
