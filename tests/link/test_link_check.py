"""Asking every node whether its network is well: who answers, who is named instead, and what is asked twice."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from skep.agent.check import Checks as Looks
from skep.clock import SECOND
from skep.errors import SkepError
from skep.link.channel import decode_from_agent, decode_from_manager, encode
from skep.link.messages import Checked, CheckWanted
from skep.manager.check import Checks
from skep.manager.nodes import down
from skep.model.assignment import TaskItem
from skep.model.check import NodeReport, fingerprint
from skep.model.enums import NodeState
from skep.model.node import Node, NodeDescription, NodeStatus
from skep.model.spec import NodeSpec
from skep.plan.assignment import items
from skep.plan.ops import Create
from skep.store.memory import MemoryBackend, MemoryStore


class Clock:
    def now(self) -> int:
        return SECOND

    async def sleep(self, ns: int) -> None:
        raise NotImplementedError


class Nodes:
    """Nodes that answer, or do not, through the frames of the link. `first`: what the first answers of a node are."""

    def __init__(self, states: dict[str, NodeState], deaf: set[str] | None = None, mute: set[str] | None = None) -> None:
        self.store = MemoryStore(MemoryBackend(), Clock())
        for i, (id, state) in enumerate(states.items(), start=1):
            self.add(id, i, state)
        self.deaf, self.mute = deaf or set(), mute or set()
        self.first: dict[str, list[NodeReport]] = {}
        self.asked: list[tuple[str, CheckWanted]] = []
        self.checks = Checks(self.store, self.send, random.Random(1), patience=0.05, pause=0.0)

    def add(self, id: str, index: int, state: NodeState) -> None:
        node = Node(
            id=id,
            spec=NodeSpec(),
            index=index,
            description=NodeDescription(hostname=id),
            status=NodeStatus(state=state, addr=f"192.0.2.{index}"),
        )
        self.store.apply([Create(node, "made")], by="test")

    def send(self, node_id: str, wanted: CheckWanted) -> bool:
        message = decode_from_manager(encode(wanted))
        assert isinstance(message, CheckWanted)
        self.asked.append((node_id, message))
        if node_id in self.deaf:
            return False
        if node_id not in self.mute:
            told = {k: fingerprint(i) for k, i in items(self.store, node_id).items() if not isinstance(i, TaskItem)}
            report = self.first[node_id].pop(0) if self.first.get(node_id) else NodeReport(version=self.store.version, items=told)
            answer = decode_from_agent(encode(Checked(question=message.question, report=report)))
            assert isinstance(answer, Checked)
            self.checks.answered("another", answer)  # a node answers for itself only
            self.checks.answered(node_id, answer)
        return True

    def run(self, repair: bool = False) -> list[dict[str, Any]]:
        async def whole() -> list[Any]:
            return [event async for event in self.checks.run([], repair)]

        return asyncio.run(whole())


def problems(events: list[dict[str, Any]]) -> list[str]:
    return [event["Problem"]["text"] for event in events if "Problem" in event]


def test_everybody_answers() -> None:
    nodes = Nodes({"a": NodeState.READY, "b": NodeState.READY})
    events = nodes.run()
    assert problems(events) == [] and [e["Node"]["Hostname"] for e in events if "Node" in e] == ["a", "b"]
    assert events[-1]["Done"] == {"Version": nodes.store.version, "Problems": 0, "Mended": 0, "Silent": {}}
    assert [id for id, _ in nodes.asked] == ["a", "b"], "nobody is asked twice when all is well"


def test_who_does_not_answer_is_named() -> None:
    nodes = Nodes({"a": NodeState.READY, "b": NodeState.READY, "c": NodeState.READY, "d": NodeState.DOWN}, deaf={"b"}, mute={"c"})
    events = nodes.run()
    assert problems(events) == [
        "b has no session with this manager, or an older skepd",
        "d is down, so it was not asked",
        "c did not answer within 0 s",
    ]
    assert events[-1]["Done"]["Problems"] == 3 and list(events[-1]["Done"]["Silent"]) == ["b", "d", "c"]


def test_a_node_that_has_left_the_cluster_is_no_fault() -> None:
    nodes = Nodes({"a": NodeState.READY, "b": NodeState.READY})
    (node,) = [node for node in nodes.store.all(Node) if node.hostname == "b"]
    nodes.store.apply(down(node, "the node left the cluster", 1, left=True), by="test")
    events = nodes.run()
    assert problems(events) == [] and [id for id, _ in nodes.asked] == ["a"] and events[-1]["Done"]["Silent"] == {}


def test_what_is_wrong_only_while_the_cluster_changes_is_not_said() -> None:
    nodes = Nodes({"a": NodeState.READY})
    nodes.first["a"] = [NodeReport(kernel=("a route is missing",))]
    before = nodes.send

    def changing(node_id: str, wanted: CheckWanted) -> bool:
        if len(nodes.asked) == 0:
            nodes.add("b", 2, NodeState.READY)
        return before(node_id, wanted)

    nodes.checks = Checks(nodes.store, changing, random.Random(1), patience=0.05, pause=0.0)
    assert problems(nodes.run()) == []


def test_what_a_node_hears_of_a_moment_later_is_not_said() -> None:
    """The cluster changed just before, and does not while it is asked."""
    nodes = Nodes({"a": NodeState.READY, "b": NodeState.READY})
    before = {k: fingerprint(i) for k, i in items(nodes.store, "a").items() if not isinstance(i, TaskItem)}
    nodes.first["a"] = [NodeReport(version=nodes.store.version, items=before, kernel=("what goes with it is not there yet",))]
    nodes.add("c", 3, NodeState.READY)
    assert problems(nodes.run()) == []


def test_what_stays_wrong_is_said() -> None:
    nodes = Nodes({"a": NodeState.READY})
    nodes.first["a"] = [NodeReport(version=1, kernel=("a route is missing",)) for _ in range(3)]
    said = problems(nodes.run())
    assert said[0] == "a route is missing" and "a does not know the node a" in said


def test_what_was_mended_is_no_fault() -> None:
    nodes = Nodes({"a": NodeState.READY})
    told = {k: fingerprint(i) for k, i in items(nodes.store, "a").items()}
    nodes.first["a"] = [NodeReport(items=told, kernel=("a route was missing",), repaired=True)]
    events = nodes.run(repair=True)
    assert problems(events) == ["a route was missing"] and events[-1]["Done"]["Problems"] == 0 and events[-1]["Done"]["Mended"] == 1
    assert all(wanted.repair for _, wanted in nodes.asked)


def test_a_node_looks_once_for_all_who_ask_meanwhile() -> None:
    looked: list[tuple[tuple[str, ...], bool]] = []
    told: list[Checked] = []

    async def examine(networks: Any, repair: bool) -> NodeReport:
        looked.append((tuple(networks), repair))
        await asyncio.sleep(0)
        if repair:
            raise SkepError("the kernel says no")
        return NodeReport(version=7)

    async def whole() -> None:
        looks = Looks(examine)
        async with asyncio.TaskGroup() as group:
            for question in ("1", "2"):
                looks.begin(group, CheckWanted(question=question), told.append)
            looks.begin(group, CheckWanted(question="3", networks=("n",)), told.append)
            looks.begin(group, CheckWanted(question="4", repair=True), told.append)
        assert not looks.under_way

    asyncio.run(whole())
    assert looked == [((), False), (("n",), False), ((), True)]
    assert {c.question: (c.report.version, c.report.error) for c in told} == {
        "1": (7, ""), "2": (7, ""), "3": (7, ""), "4": (0, "the kernel says no")
    }  # fmt: skip
