"""Any sequence of events: the rules about slots hold after every decision, and when the noise ends the cluster comes to what was asked for.

A decision is a function of the store, so a manager may be killed between any two of them; that is one of the events.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from world import World, changes, ids, service_spec

from skep.clock import MILLISECOND, SECOND
from skep.model.enums import NodeState, TaskState
from skep.model.spec import RestartPolicy, UpdateConfig
from skep.model.tables import TASK_BY_SLOT, slot_key
from skep.model.task import Task, TaskStatus
from skep.plan.ops import Change, Create, Plan
from skep.plan.service import plan_service
from skep.plan.view import View

S = TaskState

IMAGES = ("app", "slow", "stubborn", "bad", "crash", "brief", "once")

configs = st.builds(
    UpdateConfig,
    parallelism=st.integers(0, 3),
    delay=st.sampled_from([0, 2 * SECOND, 20 * SECOND]),
    failure_action=st.sampled_from(["pause", "continue", "rollback"]),
    monitor=st.sampled_from([0, SECOND, 30 * SECOND]),
    max_failure_ratio=st.sampled_from([0.0, 0.3, 1.0]),
    order=st.sampled_from(["stop-first", "start-first"]),
)
policies = st.builds(
    RestartPolicy,
    condition=st.sampled_from(["any", "any", "on-failure", "none"]),
    delay=st.sampled_from([500 * MILLISECOND, 5 * SECOND, 15 * SECOND]),
    max_attempts=st.sampled_from([None, None, 1, 3]),
    window=st.sampled_from([None, 10 * SECOND]),
)
specs = st.fixed_dictionaries(
    {
        "image": st.sampled_from([f"{name}:{version}" for name in IMAGES for version in (1, 2)]),
        "replicas": st.integers(0, 5),
        "restart": st.none() | policies,
        "update": st.none() | configs,
        "rollback": st.none() | configs,
        "constraints": st.sampled_from([(), (), ("node.labels.zone == a",)]),
    }
)
events = st.one_of(
    st.tuples(st.just("update"), specs),
    st.tuples(st.just("scale"), st.integers(0, 6)),
    st.tuples(st.just("rollback"), st.none()),
    st.tuples(st.just("kill"), st.integers(0, 30)),
    st.tuples(st.just("finish"), st.integers(0, 30)),
    st.tuples(st.just("node"), st.tuples(st.integers(0, 3), st.sampled_from(list(NodeState)))),
    st.tuples(st.just("availability"), st.tuples(st.integers(0, 3), st.sampled_from(["active", "pause", "drain"]))),
    st.tuples(st.just("label"), st.tuples(st.integers(0, 3), st.sampled_from(["a", "b"]))),
    st.tuples(st.just("remove node"), st.integers(0, 3)),
    st.tuples(st.just("add node"), st.none()),
    st.tuples(st.just("new manager"), st.none()),
    st.tuples(st.just("time"), st.sampled_from([0, 0.3, 1, 3, 5, 20, 70])),
    st.tuples(st.just("time"), st.sampled_from([0, 0.3, 1, 3, 5, 20, 70])),
)


class Noise:
    """Events as they are drawn, done to a world."""

    def __init__(self, world: World, first: dict[str, Any], global_: bool) -> None:
        self.world = world
        self.global_ = global_
        self.made = 3
        world.create(self.spec(first))

    def spec(self, drawn: dict[str, Any]) -> Any:
        return service_spec(**{**drawn, "replicas": None if self.global_ else drawn["replicas"]})

    def do(self, name: str, value: Any) -> None:
        world = self.world
        nodes = [f"n{i}" for i in range(1, self.made + 1) if world.store.get(type(world.node("n1")), f"n{i}")] if name != "time" else []
        match name:
            case "update":
                world.update(self.spec(value))
            case "scale" if not self.global_:
                old = world.service().spec
                assert old.mode.replicated is not None
                mode = msgspec.structs.replace(old.mode, replicated=msgspec.structs.replace(old.mode.replicated, replicas=value))
                world.update(msgspec.structs.replace(old, mode=mode))
            case "rollback" if world.service().previous_spec is not None:
                world.rollback()
            case "kill" | "finish":
                up = [t for t in world.tasks() if t.state in (S.STARTING, S.RUNNING) and world.up(t.node_id)]
                if up:
                    world.report(up[value % len(up)], S.FAILED if name == "kill" else S.COMPLETE)
            case "node":
                world.set_node(nodes[value[0] % len(nodes)], value[1])
            case "availability":
                world.set_node(nodes[value[0] % len(nodes)], availability=value[1])
            case "label":
                world.set_node(nodes[value[0] % len(nodes)], labels={"zone": value[1]})
            case "remove node" if len(nodes) > 1 and nodes[value % len(nodes)] != "n1":
                world.remove(world.node(nodes[value % len(nodes)]))
            case "add node" if self.made < 8:
                self.made += 1
                world.add_node(f"n{self.made}")
            case "new manager":
                world.restart_manager()
            case "time":
                world.run(value)

    def end(self) -> None:
        """All nodes are well, and a good spec is asked for."""
        world = self.world
        for node in list(world.store.all(type(world.node("n1")))):
            world.set_node(node.id, NodeState.READY, "active")
        world.update(self.spec({"image": "app:9", "replicas": 4, "update": UpdateConfig(parallelism=2)}))
        world.run(400)
        live = world.live()
        assert sorted(ids(live)) == sorted(ids(world.running())), world.story()
        assert {task.spec_version for task in live} == {world.service().spec_version}, world.story()
        places = [task.slot or task.node_id for task in live]
        nodes = [node.id for node in world.store.all(type(world.node("n1")))]
        assert len(places) == len(set(places)) == (len(nodes) if self.global_ else 4), world.story()
        assert world.state() in ("", "completed"), world.story()
        assert plan_service(world.store, "s", world.now, world.rng) == Plan(), "at rest nothing is left to do or to wait for"
        slots = {(t.slot, t.node_id if self.global_ else "") for t in world.tasks()}
        assert len(world.tasks()) <= 5 * len(slots), "history is bounded"


def play(plan: Callable[..., Plan], first: dict[str, Any], story: list[tuple[str, Any]], global_: bool) -> None:
    world = World(plan=plan)
    noise = Noise(world, first, global_)
    for name, value in story:
        noise.do(name, value)
    noise.end()


QUICK = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


@QUICK
@given(specs, st.lists(events, min_size=12, max_size=60))
def test_a_replicated_service_survives_anything(first: dict[str, Any], story: list[tuple[str, Any]]) -> None:
    play(plan_service, first, story, global_=False)


@QUICK
@given(specs, st.lists(events, min_size=12, max_size=60))
def test_a_global_service_survives_anything(first: dict[str, Any], story: list[tuple[str, Any]]) -> None:
    play(plan_service, first, story, global_=True)


# planted mistakes


def restarts_the_dead(view: View, service_id: str, now: int, rng: Random) -> Plan:
    """SwarmKit 2242: a dead task is restarted whatever else is in its slot."""
    plan = plan_service(view, service_id, now, rng)
    extra = []
    for id, state in changes(plan.ops, "desired_state").items():
        task = view.get(Task, id)
        if task is not None and task.terminal and state is S.SHUTDOWN and any(t.live for t in view.find(TASK_BY_SLOT, slot_key(task))):
            copy = msgspec.structs.replace(task, id=f"{id}x", status=TaskStatus(), node_id="", desired_state=S.READY, running_at=0)
            extra.append(Create(copy, "planted"))
    return Plan((*plan.ops, *extra), plan.look_again)


def forgets_to_look_again(view: View, service_id: str, now: int, rng: Random) -> Plan:
    return Plan(plan_service(view, service_id, now, rng).ops, None)


def lets_go_too_early(view: View, service_id: str, now: int, rng: Random) -> Plan:
    plan = plan_service(view, service_id, now, rng)
    ops = [
        Create(msgspec.structs.replace(op.object, desired_state=S.RUNNING), op.because) if isinstance(op, Create) else op for op in plan.ops
    ]
    return Plan(tuple(ops), plan.look_again)


def never_completes(view: View, service_id: str, now: int, rng: Random) -> Plan:
    plan = plan_service(view, service_id, now, rng)
    ops = [op for op in plan.ops if not (isinstance(op, Change) and op.because == "update completed")]
    return Plan(tuple(ops), plan.look_again)


@pytest.mark.parametrize("mistake", [restarts_the_dead, forgets_to_look_again, lets_go_too_early, never_completes])
def test_planted_mistakes_are_found(mistake: Callable[..., Plan]) -> None:
    @settings(max_examples=300, deadline=None, phases=[Phase.generate], derandomize=True, suppress_health_check=list(HealthCheck))
    @given(specs, st.lists(events, min_size=20, max_size=60))
    def search(first: dict[str, Any], story: list[tuple[str, Any]]) -> None:
        play(mistake, first, story, global_=False)

    with pytest.raises(AssertionError):
        search()
