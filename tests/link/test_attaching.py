"""Plain containers on the cluster's networks: what a manager answers, and what becomes of places."""

from __future__ import annotations

from typing import Any

import pytest
from link_world import World, network, ready, status

from skep.clock import MILLISECOND, SECOND
from skep.ids import new_hex, new_id
from skep.link.messages import Answer, Attach, Find
from skep.manager.attaching import ANSWER_WITHIN, NAMES_LIMIT, QUESTIONS_LIMIT
from skep.manager.controllers import controllers
from skep.manager.loop import Loop
from skep.manager.session import Session
from skep.model.assignment import EndpointItem, TaskItem
from skep.model.enums import TaskState as S
from skep.model.network import Network
from skep.model.node import Node
from skep.model.spec import IPAMConfig, IPAMOptions, NetworkSpec
from skep.model.task import Task
from skep.plan.assignment import items


class Cluster(World):
    """Nodes n1 and n2, and the controllers at work. Network `net` is attachable and has two addresses beside its gateway."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop(self.store, self.clock, self.rng, controllers())
        self.put(ready("n1", 1), ready("n2", 2))
        self.put(
            overlay("net", "10.9.0.0/29"), overlay("closed", "10.8.0.0/24", attachable=False), network("in", "10.0.0.0/24", ingress=True)
        )
        self.n1, self.n2 = self.connect("n1"), self.connect("n2")
        self.run()

    def run(self, ns: int = 100 * MILLISECOND) -> None:
        for _ in range(4):
            self.loop.step(self.clock.now())
            self.pass_time(ns // 4)

    def ask(self, session: Session, network: str = "net", container: str = "", **fields: Any) -> str:
        """Returns the question's id."""
        id = new_id(self.rng)
        self.say(session, Attach(task_id=id, network=network, container_id=container or new_hex(self.rng), **fields))
        return id

    def answers(self, session: Session) -> list[Answer]:
        self.run()
        return [m for m in self.dispatcher.pending_messages(session) if isinstance(m, Answer)]

    def attach(self, session: Session, network: str = "net", container: str = "", **fields: Any) -> Answer:
        id = self.ask(session, network, container, **fields)
        (answer,) = self.answers(session)
        assert answer.question == id
        return answer

    def runs(self, answer: Answer, state: S = S.RUNNING) -> None:
        self.change(Task, answer.task_id, status=status(state))
        self.run()

    def places(self) -> dict[str, S]:
        return {task.id: task.state for task in self.store.all(Task)}


def overlay(id: str, subnet: str, *, attachable: bool = True) -> Network:
    configs = (IPAMConfig(subnet=subnet),)
    return Network(id=id, spec=NetworkSpec(name=f"{id}-name", attachable=attachable, ipam_options=IPAMOptions(configs=configs)))


@pytest.mark.parametrize("reference", ["net", "net-name", "NET-NAME"])
def test_a_place_is_a_task_with_an_address_and_a_node_and_nothing_else(reference: str) -> None:
    cluster = Cluster()
    answer = cluster.attach(cluster.n2, reference, "c" * 64, names=("client", "c"))
    assert (answer.status, answer.error, answer.address) == (0, "", "10.9.0.2/29") and answer.network is not None
    assert (answer.network.id, answer.network.name) == ("net", "net-name")
    task = cluster.task(answer.task_id)
    assert (task.node_id, task.state, task.service_id, task.desired_state) == ("n2", S.ASSIGNED, "", S.RUNNING)
    assert task.spec.network_attachment_spec is not None and task.spec.network_attachment_spec.container_id == "c" * 64
    cluster.runs(answer)
    told = items(cluster.store, "n2")
    assert isinstance(told[f"task/{task.id}"], TaskItem) and "network/net" in told
    endpoint = told[f"endpoint/{task.id}/net"]
    assert isinstance(endpoint, EndpointItem) and endpoint.serving and endpoint.names == ("client", "c", "cccccccccccc")


@pytest.mark.parametrize(
    ("reference", "fields", "status", "error"),
    [
        ("closed", {}, 403, "network closed-name not manually attachable"),
        ("in", {}, 403, "network in not manually attachable"),
        ("nothing", {}, 404, "network nothing not found"),
        ("", {}, 404, "network  not found"),
        ("net", {"address": "10.1.1.1"}, 400, "invalid address 10.1.1.1: It does not belong to any of this network's subnets"),
        ("net", {"address": "nonsense"}, 400, "invalid address nonsense: It does not belong to any of this network's subnets"),
        ("net", {"names": ("x",) * (NAMES_LIMIT + 1)}, 400, "a container has at most 64 names on a network, of 255 characters"),
        ("net", {"names": ("x" * 256,)}, 400, "a container has at most 64 names on a network, of 255 characters"),
        ("net", {"container": "short"}, 400, "a place is asked for by a task's id and a container's"),
    ],
)
def test_what_is_refused_makes_nothing(reference: str, fields: dict[str, Any], status: int, error: str) -> None:
    cluster = Cluster()
    answer = cluster.attach(cluster.n1, reference, **fields)
    assert (answer.status, answer.error, answer.network) == (status, error, None)
    assert answer.rpc == ("PermissionDenied" if status == 403 else "")
    assert cluster.places() == {}


def test_a_chosen_address_is_given_once() -> None:
    cluster = Cluster()
    assert cluster.attach(cluster.n1, address="10.9.0.4").address == "10.9.0.4/29"
    second = cluster.attach(cluster.n2, address="10.9.0.4")
    assert (second.status, second.error) == (409, "Address already in use")
    cluster.run()
    assert len(cluster.places()) == 1, "nothing is left of the second"
    assert cluster.attach(cluster.n2).address == "10.9.0.2/29"


def test_a_network_without_addresses_says_so_and_keeps_nothing() -> None:
    cluster = Cluster()
    given = [cluster.attach(cluster.n1).address for _ in range(5)]
    assert sorted(given) == [f"10.9.0.{n}/29" for n in range(2, 7)]
    answer = cluster.attach(cluster.n1)
    assert answer.status == 503 and "could not find an available IP" in answer.error
    cluster.run()
    assert len(cluster.places()) == 5


def test_asking_again_gives_the_same_place() -> None:
    cluster = Cluster()
    first = cluster.attach(cluster.n1, container="a" * 64)
    assert cluster.attach(cluster.n1, container="a" * 64).task_id == first.task_id
    assert cluster.attach(cluster.n1, container="a" * 64, address="10.9.0.2").task_id == first.task_id
    other = cluster.attach(cluster.n1, container="a" * 64, address="10.9.0.3")
    assert (other.status, other.error) == (409, "container aaaaaaaaaaaa is on network net-name with another address already")
    assert len(cluster.places()) == 1


def test_the_same_question_twice_is_one() -> None:
    cluster = Cluster()
    question = Attach(task_id=new_id(cluster.rng), network="net", container_id="a" * 64)
    cluster.say(cluster.n1, question)
    cluster.n1 = cluster.connect("n1")  # it never heard the answer
    cluster.say(cluster.n1, question)
    (answer,) = cluster.answers(cluster.n1)
    assert answer.task_id == question.task_id and len(cluster.places()) == 1


def test_two_containers_at_once_and_one_of_them_twice() -> None:
    cluster = Cluster()
    ids = [cluster.ask(cluster.n1, container=container * 64) for container in "aab"]
    answers = {answer.question: answer for answer in cluster.answers(cluster.n1)}
    assert answers.keys() == set(ids) and len(cluster.places()) == 2
    assert answers[ids[0]].task_id == answers[ids[1]].task_id != answers[ids[2]].task_id


def test_another_nodes_task_is_not_a_place() -> None:
    cluster = Cluster()
    first = cluster.attach(cluster.n1, container="a" * 64)
    cluster.say(cluster.n2, Attach(task_id=first.task_id, network="net", container_id="a" * 64))
    (answer,) = cluster.answers(cluster.n2)
    assert (answer.status, answer.error) == (400, f"task {first.task_id} is something else")
    assert cluster.task(first.task_id).node_id == "n1"


def test_other_names_for_a_place() -> None:
    cluster = Cluster()
    first = cluster.attach(cluster.n1, container="a" * 64, names=("old",))
    cluster.runs(first)
    assert cluster.attach(cluster.n1, container="a" * 64, names=("new", "n")).task_id == first.task_id
    endpoint = items(cluster.store, "n1")[f"endpoint/{first.task_id}/net"]
    assert isinstance(endpoint, EndpointItem) and endpoint.names == ("new", "n", "aaaaaaaaaaaa") and endpoint.address == "10.9.0.2"


def test_a_container_that_has_left_gives_its_address_back_at_once() -> None:
    """It is started again with the same address: what its node reports comes before what it asks."""
    cluster = Cluster()
    first = cluster.attach(cluster.n1, container="a" * 64, address="10.9.0.3")
    cluster.runs(first)
    cluster.change(Task, first.task_id, status=status(S.COMPLETE))
    second = cluster.attach(cluster.n1, container="a" * 64, address="10.9.0.3")
    assert second.address == "10.9.0.3/29" and second.task_id != first.task_id
    assert cluster.places() == {second.task_id: S.ASSIGNED}, "the reaper has taken the first"


@pytest.mark.parametrize("availability", ["pause", "drain"])
def test_a_node_that_takes_no_tasks_takes_containers(availability: str) -> None:
    cluster = Cluster()
    cluster.change(Node, "n1", spec=type(cluster.node("n1").spec)(role="worker", availability=availability))
    answer = cluster.attach(cluster.n1)
    cluster.runs(answer)
    assert cluster.places() == {answer.task_id: S.RUNNING}


def test_a_removed_node_leaves_no_place() -> None:
    cluster = Cluster()
    cluster.runs(cluster.attach(cluster.n1))
    cluster.ask(cluster.n1)
    cluster.delete(Node, "n1")
    cluster.run()
    assert cluster.places() == {}


def test_a_place_that_nobody_gives_is_taken_back_in_time() -> None:
    cluster = Cluster()
    cluster.loop.close()
    id = cluster.ask(cluster.n1)
    cluster.pass_time(ANSWER_WITHIN + SECOND)
    (answer,) = [m for m in cluster.dispatcher.pending_messages(cluster.n1) if isinstance(m, Answer)]
    assert (answer.question, answer.status, answer.error) == (id, 503, "no address was given in time")
    assert cluster.task(id).desired_state is S.REMOVE


def test_a_new_manager_answers_what_the_old_one_was_asked() -> None:
    cluster = Cluster()
    question = Attach(task_id=new_id(cluster.rng), network="net", container_id="a" * 64)
    cluster.say(cluster.n1, question)
    cluster.store.flush()
    cluster.crash()
    cluster.loop = Loop(cluster.store, cluster.clock, cluster.rng, controllers())
    cluster.n1 = cluster.connect("n1")
    cluster.say(cluster.n1, question)
    (answer,) = cluster.answers(cluster.n1)
    assert answer.address == "10.9.0.2/29" and len(cluster.places()) == 1


def test_a_network_that_is_removed_before_the_answer() -> None:
    cluster = Cluster()
    cluster.ask(cluster.n1, "net-name")
    cluster.delete(Network, "net")
    (answer,) = cluster.answers(cluster.n1)
    assert answer.status in (404, 503)
    cluster.run()
    assert cluster.places() == {}


def test_a_node_may_not_ask_without_end() -> None:
    cluster = Cluster()
    cluster.loop.close()
    for _ in range(QUESTIONS_LIMIT + 1):
        cluster.ask(cluster.n1)
    (answer,) = [m for m in cluster.dispatcher.pending_messages(cluster.n1) if isinstance(m, Answer)]
    assert (answer.status, answer.error) == (503, "this node asks for too many places at once")
    cluster.dispatcher.disconnect(cluster.n1)
    assert cluster.dispatcher._attaching._waiting == {}


@pytest.mark.parametrize(
    ("reference", "found"), [("net", "net"), ("net-name", "net"), ("ne", "net"), ("closed", ""), ("in", "in"), ("nothing", ""), ("", "")]
)
def test_a_node_learns_of_the_networks_that_concern_it(reference: str, found: str) -> None:
    cluster = Cluster()
    cluster.say(cluster.n1, Find(question="q", reference=reference))
    (answer,) = cluster.answers(cluster.n1)
    assert answer.question == "q" and (answer.network.id if answer.network else "") == found


@pytest.mark.parametrize(
    ("reference", "status", "error"),
    [
        ("net", 0, ""),
        ("closed", 403, "network closed-name not manually attachable"),
        ("in", 403, "not manually attachable"),
        ("nothing", 0, ""),
    ],
)
def test_who_asks_to_join_hears_why_it_may_not(reference: str, status: int, error: str) -> None:
    cluster = Cluster()
    cluster.say(cluster.n1, Find(question="q", reference=reference, joining=True))
    (answer,) = cluster.answers(cluster.n1)
    assert answer.status == status and error in answer.error
    assert (answer.network is None) == (reference != "net") and answer.rpc == ("PermissionDenied" if status else "")
