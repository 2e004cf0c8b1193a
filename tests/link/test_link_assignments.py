"""What the dispatcher sends to whom and when, and whose word about a task counts."""

from __future__ import annotations

import pytest
from link_world import World, network, node, of, one, ready, service, status, task

from skep.clock import MILLISECOND, SECOND
from skep.link.messages import (
    Assignments,
    Closing,
    LogsUnwanted,
    Report,
    Reported,
)
from skep.model.assignment import EndpointItem, PeerItem, ServiceItem, TaskItem
from skep.model.enums import TaskState
from skep.model.network import Network
from skep.model.service import Service
from skep.model.task import Task


def keys(assignments: Assignments) -> set[str]:
    return {item.key for item in assignments.set}


# assignments


def test_the_whole_set_comes_first_and_then_differences_in_sequence() -> None:
    world = World()
    world.put(ready("n1", 1), ready("n2", 2), service("web", 8080), network("in", "10.0.0.0/24", ingress=True))
    world.put(task("t1", "n1", TaskState.ASSIGNED, ("in", "10.0.0.3/24")), task("t2", "n2", TaskState.RUNNING, ("in", "10.0.0.4/24")))
    session = world.connect("n1")
    first = one(world.hear(session), Assignments)
    assert first.complete and first.applies_to == 0
    assert keys(first) == {"task/t1", "network/in", "peer/n1", "peer/n2", "service/web", "endpoint/t1/in", "endpoint/t2/in"}
    assert first.version == world.store.version
    serving = {item.task_id: item.serving for item in first.set if isinstance(item, EndpointItem)}
    assert serving == {"t1": False, "t2": True}
    world.put(task("t3", "n1"))
    second = one(world.hear(session), Assignments)
    assert not second.complete
    assert (second.applies_to, second.results_in) == (first.results_in, first.results_in + 1)
    assert keys(second) == {"task/t3"} and second.remove == ()
    assert second.version == world.store.version


def test_a_task_is_sent_only_when_it_is_durable() -> None:
    world = World()
    world.put(ready("n1"))
    session = world.connect("n1")
    world.hear(session)
    world.put(task("t1", "n1"))
    world.clock.time += SECOND
    world.dispatcher.tick(world.clock.now())
    assert world.dispatcher.pending_messages(session) == []
    assert keys(one(world.hear(session), Assignments)) == {"task/t1"}


def test_a_manager_that_is_killed_never_sent_what_it_had_not_stored() -> None:
    world = World()
    world.put(ready("n1"))
    world.put(task("t1", "n1"))
    world.settle()
    world.put(task("t2", "n1"))
    world.crash()
    session = world.connect("n1")
    assert {"task/t1"} == {key for key in keys(one(world.hear(session), Assignments)) if key.startswith("task/")}


def test_a_nodes_own_report_is_not_sent_back_to_it() -> None:
    world = World()
    world.put(ready("n1"), task("t1", "n1"))
    session = world.connect("n1")
    world.hear(session)
    for sequence, state in enumerate((TaskState.PREPARING, TaskState.RUNNING), 1):
        world.say(session, Report(sequence=sequence, statuses={"t1": status(state)}))
        assert of(world.hear(session), Assignments) == []
    assert world.task("t1").running_at
    world.change(Task, "t1", desired_state=TaskState.SHUTDOWN)
    assert [item.task.desired_state for item in one(world.hear(session), Assignments).set] == [TaskState.SHUTDOWN]
    world.delete(Task, "t1")
    assert one(world.hear(session), Assignments).remove == ("task/t1",)


def test_a_node_is_sent_its_own_tasks_alone() -> None:
    world = World()
    world.put(ready("n1", 1), ready("n2", 2), task("t1", "n1"), task("t2", "n2"), task("t3", "", TaskState.PENDING))
    world.put(task("t4", "n1", TaskState.PENDING))
    session = world.connect("n1")
    assert [item.task.id for item in one(world.hear(session), Assignments).set if isinstance(item, TaskItem)] == ["t1"]
    world.change(Task, "t2", desired_state=TaskState.SHUTDOWN)
    assert world.hear(session) == []
    world.change(Task, "t4", status=status(TaskState.ASSIGNED))
    assert keys(one(world.hear(session), Assignments)) == {"task/t4"}


def test_the_first_change_goes_at_once_then_batches_wait_ten_milliseconds_and_fifty_at_most() -> None:
    world = World()
    world.put(ready("n1"))
    session = world.connect("n1")
    world.hear(session)
    world.pass_time(60 * MILLISECOND)
    world.put(task("t", "n1"))
    world.pass_time(0)
    assert keys(one(world.dispatcher.pending_messages(session), Assignments)) == {"task/t"}
    world.put(task("t0", "n1"))
    world.pass_time(9 * MILLISECOND)
    assert world.dispatcher.pending_messages(session) == []
    world.pass_time(1 * MILLISECOND)
    assert keys(one(world.dispatcher.pending_messages(session), Assignments)) == {"task/t0"}
    begun = world.clock.now()
    sent = 0
    for number in range(1, 12):
        world.put(task(f"t{number}", "n1"))
        world.pass_time(6 * MILLISECOND)
        if of(world.dispatcher.pending_messages(session), Assignments):
            sent = world.clock.now()
            break
    assert 50 * MILLISECOND <= sent - begun <= 56 * MILLISECOND


def test_changes_for_a_node_that_does_not_read_become_one_message() -> None:
    world = World()
    world.put(ready("n1"))
    session = world.connect("n1")
    world.hear(session)
    for number in range(20):
        world.put(task(f"t{number}", "n1"))
        world.pass_time(200 * MILLISECOND)
    assert len(one(world.dispatcher.pending_messages(session), Assignments).set) == 20


def test_a_service_change_reaches_its_tasks_when_they_carry_it() -> None:
    world = World()
    world.put(ready("n1"), service("web", labels={"a": "1"}, auth="secret"), task("t1", "n1"))
    session = world.connect("n1")
    first = next(item for item in one(world.hear(session), Assignments).set if isinstance(item, TaskItem))
    assert (first.service_labels, first.registry_auth) == ({"a": "1"}, "secret")
    current = world.store.get(Service, "web")
    assert current is not None
    world.change(Service, "web", spec_version=9)
    assert world.hear(session) == []
    world.change(Service, "web", registry_auth="other")
    assert [item.registry_auth for item in one(world.hear(session), Assignments).set] == ["other"]


def test_published_ports_and_peers_reach_every_node() -> None:
    world = World()
    world.put(ready("n1", 1), node("n2", 2))
    session = world.connect("n1")
    world.hear(session)
    world.connect("n2", address="192.0.2.77")
    peers = [item for item in one(world.hear(session), Assignments).set if isinstance(item, PeerItem)]
    assert [(peer.node_id, peer.index, peer.address, peer.hostname) for peer in peers] == [("n2", 2, "192.0.2.77", "n2")]
    world.put(service("web", 8000))
    ports = [item.ports[0].published_port for item in one(world.hear(session), Assignments).set if isinstance(item, ServiceItem)]
    assert ports == [8000]
    world.delete(Service, "web")
    assert one(world.hear(session), Assignments).remove == ("service/web",)


def test_a_node_takes_part_in_a_network_while_it_has_a_task_there() -> None:
    world = World()
    world.put(ready("n1", 1), ready("n2", 2), network("ov", "10.0.1.0/24"), task("t2", "n2", TaskState.RUNNING, ("ov", "10.0.1.4/24")))
    session = world.connect("n1")
    assert not {"network/ov", "endpoint/t2/ov"} & keys(one(world.hear(session), Assignments))
    world.put(task("t1", "n1", TaskState.ASSIGNED, ("ov", "10.0.1.3/24")))
    assert keys(one(world.hear(session), Assignments)) == {"task/t1", "network/ov", "endpoint/t1/ov", "endpoint/t2/ov"}
    world.change(Task, "t1", status=status(TaskState.FAILED))
    assert set(one(world.hear(session), Assignments).remove) == {"network/ov", "endpoint/t1/ov", "endpoint/t2/ov"}
    world.change(Task, "t2", desired_state=TaskState.SHUTDOWN)
    assert world.hear(session) == []


def test_an_endpoint_stops_serving_when_its_task_is_to_stop() -> None:
    world = World()
    world.put(ready("n1", 1), network("in", "10.0.0.0/24", ingress=True), task("t2", "n2", TaskState.RUNNING, ("in", "10.0.0.4/24")))
    session = world.connect("n1")
    world.hear(session)
    world.change(Task, "t2", desired_state=TaskState.SHUTDOWN)
    assert [item.serving for item in one(world.hear(session), Assignments).set] == [False]
    world.delete(Network, "in")
    assert set(one(world.hear(session), Assignments).remove) >= {"network/in", "endpoint/t2/in"}


# reports


def test_a_report_is_acknowledged_when_it_is_durable_and_stamped_by_the_manager() -> None:
    world = World()
    world.put(ready("n1"), task("t1", "n1"))
    session = world.connect("n1")
    world.hear(session)
    world.say(session, Report(sequence=1, statuses={"t1": status(TaskState.RUNNING, "started", applied_at=99)}))
    world.clock.time += 10 * MILLISECOND
    world.dispatcher.tick(world.clock.now())
    stored = world.task("t1")
    assert stored.status.state is TaskState.RUNNING
    assert stored.status.applied_at == world.clock.now() == stored.running_at
    assert of(world.dispatcher.pending_messages(session), Reported) == []
    world.settle()
    assert one(world.dispatcher.pending_messages(session), Reported).sequence == 1


def test_states_never_go_back_and_repetitions_are_not_written() -> None:
    world = World()
    world.put(ready("n1"), task("t1", "n1", TaskState.RUNNING))
    session = world.connect("n1", {"t1": status(TaskState.PREPARING)})
    world.hear(session)
    assert world.task("t1").state is TaskState.RUNNING
    before = world.store.version
    world.say(session, Report(sequence=1, statuses={"t1": status(TaskState.RUNNING)}))
    assert one(world.hear(session), Reported).sequence == 1
    assert world.store.version == before
    world.say(session, Report(sequence=2, statuses={"t1": status(TaskState.RUNNING, err="something")}))
    world.hear(session)
    assert world.task("t1").status.err == "something"


@pytest.mark.parametrize("greeting", [True, False])
def test_a_node_reports_on_its_own_tasks_alone(greeting: bool) -> None:
    world = World()
    world.put(ready("n1", 1), ready("n2", 2), task("t1", "n1"), task("t2", "n2"))
    world.settle()
    statuses = {"t1": status(TaskState.RUNNING), "t2": status(TaskState.FAILED)}
    session = world.connect("n1", statuses if greeting else {})
    if not greeting:
        world.say(session, Report(sequence=1, statuses=statuses))
    closing = one(world.hear(session), Closing)
    assert closing.reason == "rpc error: code = PermissionDenied desc = task t2 is not assigned to node n1"
    assert world.task("t1").state is TaskState.ASSIGNED
    assert world.task("t2").state is TaskState.ASSIGNED


@pytest.mark.parametrize("state", [TaskState.NEW, TaskState.ASSIGNED, TaskState.ORPHANED, TaskState.REMOVE])
def test_a_node_reports_only_states_that_are_its_own(state: TaskState) -> None:
    world = World()
    world.put(ready("n1"), task("t1", "n1"))
    session = world.connect("n1")
    world.say(session, Report(sequence=1, statuses={"t1": status(state)}))
    assert "may not report" in one(world.hear(session), Closing).reason


def test_a_task_that_is_not_assigned_yet_cannot_be_reported_on() -> None:
    world = World()
    world.put(ready("n1"), task("t1", "n1", TaskState.PENDING))
    session = world.connect("n1")
    world.say(session, Report(sequence=1, statuses={"t1": status(TaskState.RUNNING)}))
    assert one(world.hear(session), Closing)
    assert world.task("t1").state is TaskState.PENDING


def test_a_gap_in_the_reports_ends_the_session_and_a_repetition_does_not() -> None:
    world = World()
    world.put(ready("n1"), task("t1", "n1"))
    session = world.connect("n1")
    world.hear(session)
    world.say(session, Report(sequence=1, statuses={"t1": status(TaskState.PREPARING)}))
    world.say(session, Report(sequence=1, statuses={"t1": status(TaskState.PREPARING)}))
    assert [message.sequence for message in of(world.hear(session), Reported)] == [1, 1]
    world.say(session, Report(sequence=3, statuses={"t1": status(TaskState.RUNNING)}))
    assert one(world.hear(session), Closing).reason == "report 2 is missing"


def test_reports_of_deleted_tasks_are_dropped_and_texts_are_bounded() -> None:
    world = World()
    world.put(ready("n1"), task("t1", "n1"))
    session = world.connect("n1")
    world.say(session, Report(sequence=1, statuses={"gone": status(TaskState.RUNNING), "t1": status(TaskState.FAILED, err="x" * 9999)}))
    assert one(of(world.hear(session), Reported), Reported)
    assert len(world.task("t1").status.err) == 4096


def test_something_else_reaches_a_node_with_a_session_only() -> None:
    world = World()
    world.put(node("n1"))
    assert not world.dispatcher.send("n1", LogsUnwanted(stream="s"))
    session = world.connect("n1")
    assert world.dispatcher.send("n1", LogsUnwanted(stream="s"))
    assert one(world.hear(session), LogsUnwanted)
