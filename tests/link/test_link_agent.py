"""The agent's cores without a transport: what the worker does with assignments, and what its state file remembers."""

from __future__ import annotations

from pathlib import Path

from link_world import START, complete, item, network

from skep.agent.state import COMPACT_AT, FileState, MemoryState, State
from skep.agent.worker import Apply, Cancel, Do, Worker
from skep.clock import MILLISECOND, SECOND
from skep.link.messages import Assignments
from skep.model.assignment import EndpointItem, NetworkItem
from skep.model.enums import TaskState as S
from skep.model.task import ContainerStatus, TaskStatus
from skep.plan.workload import Call, Ended


class Node:
    """A worker whose instructions are looked at and answered by hand."""

    def __init__(self, state: State | None = None, known: tuple[str, ...] = ()) -> None:
        self.now = START
        self.worker = Worker(state or MemoryState(), self.now, known)

    def assign(self, message: Assignments) -> list[object]:
        self.worker.assign(message, self.now)
        return self.take()

    def take(self) -> list[object]:
        return [(i.call, i.task_id) if isinstance(i, Do) else i for i in self.worker.take()]

    def ends(self, id: str, call: Call, observed: TaskStatus | None = None, **ended: object) -> list[object]:
        self.now += MILLISECOND
        self.worker.finished(id, call, Ended(**ended), observed, self.now)  # type: ignore[arg-type]
        return self.take()

    def state(self, id: str) -> tuple[S, str, str]:
        status = self.worker.status(id)
        assert status is not None
        return status.state, status.message, status.err


def running(node: Node, id: str = "t1") -> None:
    node.assign(complete(item(id)))
    node.ends(id, Call.PREPARE)
    node.ends(id, Call.START, TaskStatus(container=ContainerStatus(container_id="c", pid=7)))


# the worker


def test_a_task_from_assigned_to_complete() -> None:
    node = Node()
    assert node.assign(complete(item("t1"))) == [(Call.PREPARE, "t1")]
    assert node.state("t1") == (S.PREPARING, "preparing", "")
    assert node.ends("t1", Call.PREPARE) == [(Call.START, "t1")]
    assert node.state("t1") == (S.STARTING, "starting", "")
    observed = TaskStatus(container=ContainerStatus(container_id="c", pid=7))
    assert node.ends("t1", Call.START, observed) == [(Call.WAIT, "t1")]
    assert node.state("t1") == (S.RUNNING, "started", "")
    assert node.worker.status("t1").container == ContainerStatus(container_id="c", pid=7)  # type: ignore[union-attr]
    assert node.ends("t1", Call.WAIT, TaskStatus(container=ContainerStatus(container_id="c"))) == []
    assert node.state("t1") == (S.COMPLETE, "finished", "")
    assert node.worker.status("t1").container == ContainerStatus(container_id="c")  # type: ignore[union-attr]
    assert node.worker.changed["t1"].timestamp == node.now


def test_a_replacement_is_prepared_and_waits() -> None:
    node = Node()
    node.assign(complete(item("t1", S.READY)))
    assert node.ends("t1", Call.PREPARE) == []
    assert node.state("t1") == (S.READY, "prepared", "")
    assert node.assign(Assignments(applies_to=1, results_in=2, set=(item("t1"),))) == [(Call.START, "t1")]


def test_an_image_that_is_missing_is_a_rejection() -> None:
    node = Node()
    node.assign(complete(item("t1")))
    assert node.ends("t1", Call.PREPARE, error="No such image: x:1: not found") == []
    assert node.state("t1") == (S.REJECTED, "preparing", "No such image: x:1: not found")


def test_a_start_that_fails_is_stopped_before_it_is_called_failed() -> None:
    node = Node()
    node.assign(complete(item("t1")))
    node.ends("t1", Call.PREPARE)
    assert node.ends("t1", Call.START, error="starting container failed: x") == [(Call.SHUTDOWN, "t1")]
    assert node.state("t1")[0] is S.STARTING
    assert node.ends("t1", Call.SHUTDOWN) == []
    assert node.state("t1") == (S.FAILED, "starting", "starting container failed: x")


def test_an_unhealthy_container_is_stopped_and_named() -> None:
    node = Node()
    running(node)
    assert node.ends("t1", Call.WAIT, error="unhealthy container") == [(Call.SHUTDOWN, "t1")]
    node.ends("t1", Call.SHUTDOWN, TaskStatus(container=ContainerStatus(container_id="c", exit_code=137)))
    assert node.state("t1") == (S.FAILED, "started", "task: non-zero exit (137): dockerexec: unhealthy container")


def test_a_shutdown_cancels_what_is_under_way_and_waits_for_its_end() -> None:
    node = Node()
    node.assign(complete(item("t1")))
    stop = Assignments(applies_to=1, results_in=2, set=(item("t1", S.SHUTDOWN),))
    assert node.assign(stop) == [Cancel("t1")]
    assert node.assign(stop) == []
    assert node.ends("t1", Call.PREPARE, cancelled=True) == [(Call.SHUTDOWN, "t1")]
    assert node.ends("t1", Call.SHUTDOWN) == []
    assert node.state("t1") == (S.SHUTDOWN, "shutdown", "")


def test_a_shutdown_that_fails_is_tried_again_and_said() -> None:
    node = Node()
    running(node)
    node.assign(Assignments(applies_to=1, results_in=2, set=(item("t1", S.SHUTDOWN),)))
    node.ends("t1", Call.WAIT, cancelled=True)
    for wait in (1, 2, 4):
        assert node.ends("t1", Call.SHUTDOWN, error="cannot kill") == []
        assert node.state("t1") == (S.RUNNING, "started", "cannot kill")
        assert node.worker.tick(node.now + wait * SECOND - 1) == node.now + wait * SECOND
        node.now += wait * SECOND
        node.worker.tick(node.now)
        assert node.take() == [(Call.SHUTDOWN, "t1")]
    node.ends("t1", Call.SHUTDOWN)
    assert node.state("t1") == (S.SHUTDOWN, "shutdown", "")


def test_what_is_no_longer_assigned_is_stopped_removed_and_forgotten() -> None:
    node = Node()
    running(node)
    assert node.assign(Assignments(applies_to=1, results_in=2, remove=("task/t1",))) == [Cancel("t1")]
    assert node.worker.statuses() == {} and node.worker.changed == {}
    assert node.ends("t1", Call.WAIT, cancelled=True) == [(Call.SHUTDOWN, "t1")]
    assert node.ends("t1", Call.SHUTDOWN) == [(Call.REMOVE, "t1")]
    assert node.ends("t1", Call.REMOVE, error="busy") == []
    node.worker.tick(node.now + SECOND)
    assert node.take() == [(Call.REMOVE, "t1")]
    node.ends("t1", Call.REMOVE)
    assert node.worker.empty


def test_a_complete_set_removes_what_it_does_not_name() -> None:
    node = Node(known=("stranger", "t1"))
    assert node.take() == []
    assert sorted(node.assign(complete(item("t1"))), key=str) == [(Call.PREPARE, "t1"), (Call.REMOVE, "stranger")]
    assert node.assign(complete(item("t2"))) == [Cancel("t1"), (Call.PREPARE, "t2")]


def test_a_task_assigned_anew_while_it_is_removed_begins_anew() -> None:
    node = Node()
    running(node)
    node.assign(Assignments(applies_to=1, results_in=2, remove=("task/t1",)))
    node.ends("t1", Call.WAIT, cancelled=True)
    node.ends("t1", Call.SHUTDOWN)
    assert node.assign(complete(item("t1"))) == []
    assert node.ends("t1", Call.REMOVE) == [(Call.PREPARE, "t1")]


def test_without_a_state_file_the_managers_word_is_taken_and_the_runtime_asked() -> None:
    node = Node(known=("t1", "t2"))
    assert node.assign(complete(item("t1", state=S.RUNNING), item("t2", state=S.ORPHANED), item("t3", state=S.FAILED))) == [
        (Call.WAIT, "t1"),
        (Call.SHUTDOWN, "t2"),
    ]
    assert set(node.worker.statuses()) == {"t1", "t3"}
    assert node.ends("t2", Call.SHUTDOWN) == []


def test_a_task_waits_for_its_network_and_says_what_is_wrong_with_it() -> None:
    node = Node()
    ov = NetworkItem(network=network("ov", "10.0.1.0/24"))
    found = node.assign(complete(ov, item("t1", S.RUNNING, S.ASSIGNED, ("ov", "10.0.1.3/24")), item("t2"), version=5))
    assert isinstance(found[0], Apply) and list(found[0].snapshot.networks) == ["network/ov"] and found[0].snapshot.version == 5
    assert found[1:] == [(Call.PREPARE, "t2")]
    assert node.worker.applied_version == 0
    node.worker.network_applied(5, "no such device", node.now)
    assert node.state("t1") == (S.PREPARING, "preparing", "no such device")
    assert node.take() == []
    assert node.worker.tick(node.now) == node.now + SECOND
    node.now += SECOND
    node.worker.tick(node.now)
    (again,) = node.take()
    assert isinstance(again, Apply)
    node.worker.network_applied(5, "", node.now)
    assert node.take() == [(Call.PREPARE, "t1")]
    assert node.worker.applied_version == 5


def test_network_changes_while_one_is_applied_become_one() -> None:
    node = Node()
    endpoint = EndpointItem(task_id="x", service_id="s", network_id="ov", node_id="n2", address="10.0.1.9")
    (first,) = node.assign(complete(NetworkItem(network=network("ov", "10.0.1.0/24"))))
    assert node.assign(Assignments(applies_to=1, results_in=2, version=2, set=(endpoint,))) == []
    assert node.assign(Assignments(applies_to=2, results_in=3, version=3, remove=("network/ov",))) == []
    assert isinstance(first, Apply) and list(first.snapshot.networks) == ["network/ov"] and not first.snapshot.endpoints
    node.worker.network_applied(1, "", node.now)
    (second,) = node.take()
    assert isinstance(second, Apply)
    assert (second.snapshot.version, list(second.snapshot.endpoints), list(second.snapshot.networks)) == (3, [endpoint.key], [])
    node.worker.network_applied(3, "", node.now)
    assert node.take() == [] and node.worker.applied_version == 3


def test_leaving_takes_everything_away() -> None:
    node = Node(known=("stranger",))
    node.worker.withdraw_all(node.now)
    assert node.take() == [(Call.REMOVE, "stranger")]
    node.ends("stranger", Call.REMOVE)
    assert node.worker.empty


# the state file


def test_a_restarted_agent_goes_on_without_a_manager(tmp_path: Path) -> None:
    path = tmp_path / "agent.state"
    state = FileState(path)
    node = Node(state)
    node.worker.greet("n1", 4790, node.now)
    ov = NetworkItem(network=network("ov", "10.0.1.0/24"))
    node.assign(complete(ov, item("t1", auth="hidden"), item("t2"), item("t3", S.READY), version=9))
    node.ends("t1", Call.PREPARE)
    node.ends("t1", Call.START)
    node.ends("t2", Call.PREPARE, error="No such image")
    state.flush()
    assert b"hidden" not in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    again = Node(FileState(path), known=("t1", "gone"))
    found = again.take()
    assert isinstance(found[0], Apply)
    assert (found[0].snapshot.version, found[0].snapshot.node_id, found[0].snapshot.data_path_port) == (9, "n1", 4790)
    assert found[1:] == [(Call.WAIT, "t1"), (Call.PREPARE, "t3")]
    assert again.state("t2") == (S.REJECTED, "preparing", "No such image")
    assert again.worker.statuses().keys() == {"t1", "t2", "t3"}
    again.ends("t1", Call.WAIT, code=1)
    assert again.state("t1") == (S.FAILED, "started", "task: non-zero exit (1)")


def test_a_torn_end_of_the_state_file_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "agent.state"
    state = FileState(path)
    state.put_item("task/t1", item("t1"))
    state.flush()
    before = path.stat().st_size
    state.put_status("t1", TaskStatus(state=S.RUNNING))
    state.flush()
    whole = path.read_bytes()
    for cut in range(1, len(whole) - before + 1):
        path.write_bytes(whole[:-cut])
        items, statuses = FileState(path).load()
        assert "task/t1" in items and statuses == {}
    path.write_bytes(whole[:-1] + b"x")
    assert FileState(path).load()[1] == {}
    path.write_bytes(whole)
    assert FileState(path).load()[1]["t1"].state is S.RUNNING


def test_the_state_file_does_not_grow_for_ever_and_can_be_cleared(tmp_path: Path) -> None:
    path = tmp_path / "agent.state"
    state = FileState(path)
    state.put_item("task/t1", item("t1"))
    for number in range(30_000):
        state.put_status("t1", TaskStatus(state=S.RUNNING, message=f"step {number}"))
        if number % 100 == 0:
            state.flush()
    state.flush()
    assert path.stat().st_size < COMPACT_AT + 100_000
    assert FileState(path).load()[1]["t1"].message == "step 29999"
    state.clear()
    assert FileState(path).load() == ({}, {})
    state.close()
