"""The scheduler: filters and their words, ranking, what it writes."""

from __future__ import annotations

import random

import pytest
from placing_world import create, discrete, make_node, named, port, world

from skep.clock import SECOND
from skep.model.enums import NodeState, TaskState
from skep.model.network import Network
from skep.model.node import Node
from skep.model.spec import ContainerSpec, Driver, Mount, NodeSpec, Platform, VolumeOptions
from skep.model.task import Attachment, Task
from skep.plan.ops import NOTHING
from skep.plan.schedule import explain


def test_a_task_gets_a_node_and_dockers_message() -> None:
    w = world(make_node("n1"))
    w.service("web")
    w.task("t1", "web", TaskState.PENDING, err="no suitable node")
    plan = w.schedule()
    task = w.get(Task, "t1")
    assert (task.node_id, task.status.state, task.status.message, task.status.err) == (
        "n1",
        TaskState.ASSIGNED,
        "scheduler assigned task to node",
        "",
    )
    assert plan.look_again is None
    assert "n1" in plan.ops[0].because
    assert w.schedule() == NOTHING


def test_nothing_pending_is_nothing_to_do() -> None:
    w = world(make_node("n1"))
    w.service("web")
    w.task("t1", "web", TaskState.NEW)
    w.task("t2", "web", TaskState.PENDING, desired_state=TaskState.SHUTDOWN)
    assert w.schedule() == NOTHING


def test_no_node_at_all() -> None:
    w = world()
    w.service("web")
    w.task("t1", "web", TaskState.PENDING)
    w.schedule()
    assert w.err("t1") == "no suitable node"
    assert w.get(Task, "t1").status.state is TaskState.PENDING


@pytest.mark.parametrize(
    ("bad", "template", "words"),
    [
        ({"availability": "drain"}, {}, ("1 node not available for new tasks", "{} nodes not available for new tasks")),
        ({"availability": "pause"}, {}, ("1 node not available for new tasks", "{} nodes not available for new tasks")),
        ({"state": NodeState.DOWN}, {}, ("1 node not available for new tasks", "{} nodes not available for new tasks")),
        ({"state": NodeState.UNKNOWN}, {}, ("1 node not available for new tasks", "{} nodes not available for new tasks")),
        ({"cpus": 1}, {"cpus": 2}, ("insufficient resources on 1 node", "insufficient resources on {} nodes")),
        ({"memory": 1 << 20}, {"memory": 1 << 30}, ("insufficient resources on 1 node", "insufficient resources on {} nodes")),
        ({}, {"generic": [discrete("gpu", 1)]}, ("insufficient resources on 1 node", "insufficient resources on {} nodes")),
        (
            {"labels": {"zone": "b"}},
            {"constraints": ["node.labels.zone==a"]},
            ("scheduling constraints not satisfied on 1 node", "scheduling constraints not satisfied on {} nodes"),
        ),
        (
            {"arch": "aarch64"},
            {"platforms": [Platform(architecture="amd64", os="linux")]},
            ("unsupported platform on 1 node", "unsupported platform on {} nodes"),
        ),
        (
            {"plugins": [("Volume", "local"), ("Log", "json-file")]},
            {"log_driver": Driver(name="splunk")},
            ("missing plugin on 1 node", "missing plugin on {} nodes"),
        ),
    ],
)
def test_each_filter_says_how_many_nodes_it_turned_down(
    bad: dict[str, object], template: dict[str, object], words: tuple[str, str]
) -> None:
    w = world(make_node("n1", **bad))  # type: ignore[arg-type]
    w.service("web", **template)
    w.task("t1", "web", TaskState.PENDING)
    w.schedule()
    assert w.err("t1") == f"no suitable node ({words[0]})"
    w.store.apply([create(make_node("n2", **bad)), create(make_node("n3", **bad))])  # type: ignore[arg-type]
    w.schedule()
    assert w.err("t1") == f"no suitable node ({words[1].format(3)})"
    good = {"cpus": 9, "memory": 9 << 30, "labels": {"zone": "a"}, "generic": [discrete("gpu", 1)]}
    w.store.apply([create(make_node("n4", **good))])  # type: ignore[arg-type]
    w.schedule()
    assert w.get(Task, "t1").node_id == "n4"


def test_reasons_are_sorted_by_how_many_nodes_they_turned_down() -> None:
    w = world(
        make_node("n1", availability="drain"),
        make_node("n2", labels={"zone": "b"}),
        make_node("n3", labels={"zone": "b"}),
        make_node("n4", cpus=1, labels={"zone": "b"}),
        make_node("n5", cpus=1, labels={"zone": "b"}),
        make_node("n6", cpus=1, labels={"zone": "b"}),
    )
    w.service("web", cpus=2, constraints=["node.labels.zone==a"])
    w.task("t1", "web", TaskState.PENDING)
    w.schedule()
    assert w.err("t1") == (
        "no suitable node (insufficient resources on 3 nodes; scheduling constraints not satisfied on 2 nodes; "
        "1 node not available for new tasks)"
    )


def test_the_error_is_written_only_when_the_text_changed() -> None:
    w = world(make_node("n1", availability="drain"))
    w.service("web")
    w.task("t1", "web", TaskState.PENDING)
    since = w.get(Task, "t1").status.timestamp
    assert len(w.schedule().ops) == 1
    w.clock.time += 5 * SECOND
    assert w.schedule() == NOTHING or not w.schedule().ops
    assert w.get(Task, "t1").status.timestamp == since
    w.change(Node, "n1", spec=NodeSpec(labels={}, role="worker", availability="active"))
    w.schedule()
    assert w.get(Task, "t1").node_id == "n1"


def test_what_does_not_fit_any_more_stays_pending_and_says_why() -> None:
    w = world(make_node("n1", cpus=3), make_node("n2", cpus=1.5))
    w.service("web", cpus=1)
    w.tasks("web", 6)
    w.schedule()
    assert w.spread("web") == {"n1": 3, "n2": 1}
    assert w.err("web5") == w.err("web6") == "no suitable node (insufficient resources on 2 nodes)"
    w.state("web1", TaskState.FAILED)
    w.schedule()
    assert w.get(Task, "web5").node_id == w.get(Task, "web1").node_id
    assert not w.get(Task, "web6").node_id


def test_reservations_of_tasks_that_are_stopping_still_count() -> None:
    w = world(make_node("n1", cpus=1))
    w.service("web", cpus=1)
    w.task("t1", "web", TaskState.RUNNING, node_id="n1", desired_state=TaskState.SHUTDOWN)
    w.task("t2", "web", TaskState.PENDING)
    w.schedule()
    assert w.err("t2") == "no suitable node (insufficient resources on 1 node)"
    w.state("t1", TaskState.SHUTDOWN)
    w.schedule()
    assert w.get(Task, "t2").node_id == "n1"


def test_two_services_in_one_plan_share_what_is_there() -> None:
    w = world(make_node("n1", cpus=3))
    w.service("a", cpus=2)
    w.service("b", cpus=2)
    w.task("a1", "a", TaskState.PENDING)
    w.task("b1", "b", TaskState.PENDING)
    w.schedule()
    assert w.get(Task, "a1").node_id == "n1"
    assert w.err("b1") == "no suitable node (insufficient resources on 1 node)"


def test_max_replicas_per_node() -> None:
    w = world(make_node("n1"), make_node("n2"))
    w.service("web", max_replicas=2)
    w.tasks("web", 5)
    w.schedule()
    assert w.spread("web") == {"n1": 2, "n2": 2}
    assert w.err("web5") == "no suitable node (max replicas per node limit exceed)"


def test_a_host_port_is_given_once_per_node() -> None:
    w = world(make_node("n1"), make_node("n2"))
    w.service("web", ports=[port(80, 8080, "host")])
    w.tasks("web", 3)
    w.service("dns", ports=[port(80, 8080, "host", "udp")])
    w.task("d1", "dns", TaskState.PENDING)
    w.service("any", ports=[port(80, 0, "host")])
    w.tasks("any", 4)
    w.schedule()
    assert w.spread("web") == {"n1": 1, "n2": 1}
    assert w.err("web3") == "no suitable node (host-mode port already in use on 2 nodes)"
    assert w.get(Task, "d1").node_id
    assert sum(w.spread("any").values()) == 4


@pytest.mark.parametrize(
    ("image", "node", "fits"), [("amd64", "x86_64", True), ("arm64", "aarch64", True), ("", "riscv64", True), ("arm64", "x86_64", False)]
)
def test_platforms_have_two_names(image: str, node: str, fits: bool) -> None:
    w = world(make_node("n1", arch=node))
    w.service("web", platforms=[Platform(architecture="s390x", os="linux"), Platform(architecture=image, os="linux")])
    w.task("t1", "web", TaskState.PENDING)
    w.schedule()
    assert bool(w.get(Task, "t1").node_id) is fits


def test_plugins_volumes_networks_and_logs() -> None:
    plain = make_node("plain", plugins=[("Volume", "local"), ("Network", "overlay"), ("Log", "json-file")])
    rich = make_node("rich", plugins=[("Volume", "sshfs:latest"), ("Network", "weave"), ("Network", "overlay"), ("Log", "fluentd")])
    w = world(plain, rich)
    w.network("net", driver="weave")
    w.network("over")
    mount = Mount(type="volume", target="/x", volume_options=VolumeOptions(driver_config=Driver(name="sshfs")))
    w.service("vol", container_spec=ContainerSpec(image="x", mounts=(mount,)))
    w.service("net")
    w.service("log", log_driver=Driver(name="fluentd"))
    w.service("none", log_driver=Driver(name="none"))
    w.tasks("vol", 2)
    w.tasks("net", 2, attachments=(Attachment(network_id="net"), Attachment(network_id="over")))
    w.tasks("log", 2)
    w.tasks("none", 2)
    w.schedule()
    assert w.spread("vol") == w.spread("net") == w.spread("log") == {"rich": 2}
    assert sum(w.spread("none").values()) == 2


def test_a_node_that_lists_no_plugins_passes() -> None:
    w = world(make_node("n1"))
    w.service("log", log_driver=Driver(name="fluentd"))
    w.tasks("log", 1)
    w.schedule()
    assert w.spread("log") == {"n1": 1}


def test_discrete_generic_resources_are_counted_and_written() -> None:
    w = world(make_node("n1", generic=[discrete("ssd", 3)]))
    w.service("db", generic=[discrete("ssd", 2)])
    w.tasks("db", 2)
    w.schedule()
    assert w.get(Task, "db1").generic_resources == (discrete("ssd", 2),)
    assert w.err("db2") == "no suitable node (insufficient resources on 1 node)"


def test_named_generic_resources_are_given_in_order_and_come_back() -> None:
    w = world(make_node("n1", generic=named("gpu", "a", "b", "c")))
    w.service("ml", generic=[discrete("gpu", 2)])
    w.tasks("ml", 2)
    w.schedule()
    assert w.get(Task, "ml1").generic_resources == named("gpu", "a", "b")
    assert w.err("ml2").startswith("no suitable node (insufficient resources")
    w.state("ml1", TaskState.COMPLETE)
    w.schedule()
    assert w.get(Task, "ml2").generic_resources == named("gpu", "a", "b")


def test_a_preassigned_task_is_only_confirmed() -> None:
    w = world(make_node("n1"), make_node("n2", cpus=1))
    w.service("agent", cpus=2)
    w.task("g1", "agent", TaskState.PENDING, node_id="n1", slot=0)
    w.task("g2", "agent", TaskState.PENDING, node_id="n2", slot=0)
    w.task("g3", "agent", TaskState.PENDING, node_id="gone", slot=0)
    w.schedule()
    g1 = w.get(Task, "g1")
    assert (g1.node_id, g1.status.state, g1.status.message) == (
        "n1",
        TaskState.ASSIGNED,
        "scheduler confirmed task can run on preassigned node",
    )
    assert (w.get(Task, "g2").status.state, w.err("g2")) == (TaskState.PENDING, "insufficient resources on 1 node")
    assert (w.get(Task, "g3").status.state, w.err("g3")) == (TaskState.PENDING, "")


def test_a_group_goes_where_fewest_of_its_tasks_are_then_where_fewest_tasks_are() -> None:
    w = world(make_node("n1"), make_node("n2"), make_node("n3"))
    w.service("old")
    for n in range(5):
        w.task(f"o{n}", "old", TaskState.RUNNING, node_id="n1")
    w.service("web")
    w.task("w0", "web", TaskState.RUNNING, node_id="n2")
    w.tasks("web", 1)
    w.schedule()
    assert w.spread("web") == {"n2": 1, "n3": 1}
    w.tasks("web", 1)
    w.schedule()
    assert w.spread("web") == {"n1": 1, "n2": 1, "n3": 1}
    w.tasks("web", 6)
    w.schedule()
    assert w.spread("web") == {"n1": 3, "n2": 3, "n3": 3}


def test_ties_are_broken_fairly_and_by_the_seed() -> None:
    def first_choice(seed: int) -> str:
        w = world(*(make_node(f"n{n}") for n in range(4)), seed=seed)
        w.service("web")
        w.tasks("web", 1)
        w.schedule()
        return next(iter(w.spread("web")))

    chosen = [first_choice(seed) for seed in range(80)]
    assert chosen == [first_choice(seed) for seed in range(80)]
    assert {chosen.count(f"n{n}") > 8 for n in range(4)} == {True}


def test_a_rescheduled_cluster_stays_balanced_whatever_comes() -> None:
    rng = random.Random(5)
    w = world(*(make_node(f"n{n}") for n in range(5)))
    for s in range(40):
        w.service(f"s{s}")
        w.tasks(f"s{s}", rng.randrange(1, 4))
        w.schedule()
    loads = [w.store.load(f"n{n}").tasks for n in range(5)]
    assert max(loads) - min(loads) <= 1


def test_explain_names_every_node() -> None:
    w = world(
        make_node("n1", cpus=1),
        make_node("n2", availability="drain"),
        make_node("n3", labels={"zone": "a"}),
        make_node("n4", labels={"zone": "b"}),
    )
    w.service("web", cpus=2, constraints=["node.labels.zone==a"])
    w.task("t1", "web", TaskState.PENDING)
    assert explain(w.store, w.get(Task, "t1")).splitlines() == [
        "n1: insufficient resources: 2 CPUs reserved, 1 free",
        "n2: not available for new tasks: ready, drain",
        "n3: suitable: 0 tasks of this service, 0 in all",
        "n4: scheduling constraint not satisfied: node.labels.zone==a",
    ]


def test_a_network_that_is_gone_asks_for_no_plugin() -> None:
    w = world(make_node("n1", plugins=[("Network", "overlay")]))
    w.service("web")
    w.task("t1", "web", TaskState.PENDING, attachments=(Attachment(network_id="gone"),))
    assert w.store.get(Network, "gone") is None
    w.schedule()
    assert w.get(Task, "t1").node_id == "n1"
