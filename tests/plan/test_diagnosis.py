"""What is wrong with a network, from what its nodes found: one sentence a thing, and no fault where there is none."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from skep.clock import SECOND
from skep.manager.diagnosis import Cluster, Problem, diagnose, matrix
from skep.model.assignment import TaskItem
from skep.model.check import OVERLAY, TASK, UNDERLAY, VIP, WIDE, NodeReport, Reached, fingerprint
from skep.model.enums import NodeState, TaskState
from skep.model.network import Network
from skep.model.node import Node, NodeDescription, NodeStatus
from skep.model.service import Endpoint, Service, VirtualIP
from skep.model.spec import IPAMConfig, NetworkAttachmentConfig, NetworkSpec, NodeSpec, ServiceSpec, TaskSpec
from skep.model.task import Attachment, Task, TaskStatus
from skep.plan.assignment import items
from skep.plan.ops import Create
from skep.store.memory import MemoryBackend, MemoryStore


class Clock:
    def now(self) -> int:
        return SECOND

    async def sleep(self, ns: int) -> None:
        raise NotImplementedError


def cluster() -> MemoryStore:
    """Three nodes a, b, c; service web on network net with one task on each: 10.0.1.11 to .13, its address 10.0.1.2."""
    store = MemoryStore(MemoryBackend(), Clock())
    made: list[Any] = [
        Network(id="net", spec=NetworkSpec(name="front"), ipam=(IPAMConfig(subnet="10.0.1.0/24", gateway="10.0.1.1"),), vni=4097),
        Service(
            id="web",
            spec=ServiceSpec(name="web", task_template=TaskSpec(networks=(NetworkAttachmentConfig(target="net"),))),
            endpoint=Endpoint(vips=(VirtualIP(network_id="net", address="10.0.1.2/24"),)),
        ),
    ]
    for i, name in enumerate("abc", start=1):
        made.append(
            Node(
                id=name,
                spec=NodeSpec(),
                index=i,
                description=NodeDescription(hostname=f"node-{name}"),
                status=NodeStatus(state=NodeState.READY, addr=f"192.0.2.{i}"),
            )
        )
        made.append(
            Task(
                id=f"t{name}",
                service_id="web",
                service_name="web",
                slot=i,
                node_id=name,
                spec=TaskSpec(),
                desired_state=TaskState.RUNNING,
                status=TaskStatus(state=TaskState.RUNNING),
                attachments=(Attachment(network_id="net", addresses=(f"10.0.1.1{i}/24",)),),
            )
        )
    store.apply([Create(one, "made") for one in made], by="test")
    return store


ADDRESS = {"a": "10.0.1.11", "b": "10.0.1.12", "c": "10.0.1.13"}


def reached(here: str, there: str, *, underlay: bool = True, overlay: bool = True, wide: bool = True) -> list[Reached]:
    to, source = ADDRESS[there], ADDRESS[here]
    link = f"169.254.0.{'abc'.index(there) + 1}"
    key = f"endpoint/t{there}/net"
    return [
        Reached(what=UNDERLAY, node_id=there, address=f"192.0.2.{'abc'.index(there) + 1}", ping=underlay, tcp=underlay),
        Reached(what=OVERLAY, node_id=there, network_id="ingress", address=link, ping=overlay),
        Reached(what=TASK, source=source, node_id=there, network_id="net", address=to, subject=key, ping=overlay, tcp=overlay),
        Reached(what=WIDE, source=source, node_id=there, network_id="net", address=to, subject=key, ping=overlay and wide, size=1450),
    ]


def report(store: MemoryStore, node: str, found: list[Reached], **more: Any) -> NodeReport:
    told = {key: fingerprint(item) for key, item in items(store, node).items() if not isinstance(item, TaskItem)}
    vip = Reached(what=VIP, source=ADDRESS[node], network_id="net", address="10.0.1.2", subject="discovery/web/net", tcp=True)
    return NodeReport(**{"version": store.version, "items": told, "reached": (*found, vip), **more})


def reports(store: MemoryStore, cut: frozenset[str] = frozenset(), **how: bool) -> dict[str, NodeReport]:
    """`cut`: between these two."""
    return {
        here: report(
            store, here, [r for there in "abc" if there != here for r in reached(here, there, **(how if {here, there} == cut else {}))]
        )
        for here in "abc"
    }


def texts(problems: list[Problem]) -> list[str]:
    return [p.text for p in problems]


def test_all_is_well() -> None:
    store = cluster()
    assert diagnose(store, reports(store)) == []
    assert matrix(Cluster(store), "net", reports(store))["node-a"] == {"node-a": (1, 1), "node-b": (2, 2), "node-c": (2, 2)}


def test_one_cut_is_one_sentence_whatever_is_behind_it() -> None:
    store = cluster()
    (found,) = diagnose(store, reports(store, frozenset("ab"), underlay=False, overlay=False))
    assert found.kind == "underlay" and found.text == "no answer between node-a and node-b (192.0.2.2), neither to ping nor to TCP"


def test_a_wire_that_carries_all_but_the_overlay() -> None:
    store = cluster()
    (found,) = diagnose(store, reports(store, frozenset("bc"), overlay=False))
    assert found.text == "no answer over VXLAN between node-b and node-c (192.0.2.3) although the underlay answers"
    assert found.advice == "is UDP port 4789 blocked?"


def test_one_way() -> None:
    store = cluster()
    all_well = reports(store)
    cut = reports(store, frozenset("ab"), overlay=False)
    (found,) = diagnose(store, {**all_well, "a": cut["a"]})
    assert found.text.startswith("no answer over VXLAN from node-a to node-b")


def test_what_only_large_packets_show() -> None:
    store = cluster()
    found = diagnose(store, reports(store, frozenset("ab"), wide=False))
    assert texts(found) == [
        "packets of 1450 bytes do not get from node-a to node-b, though small ones do",
        "packets of 1450 bytes do not get from node-b to node-a, though small ones do",
    ]


@pytest.mark.parametrize(
    ("ping", "tcp", "said"),
    [
        (False, False, "10.0.1.12 (web.2 on node-b) on front does not answer from web.1 on node-a"),
        (True, False, "10.0.1.12 (web.2 on node-b) on front answers pings, and no TCP from web.1 on node-a"),
        (False, True, "10.0.1.12 (web.2 on node-b) on front refuses TCP and answers no ping from web.1 on node-a"),
    ],
)
def test_one_task_that_does_not_answer(ping: bool, tcp: bool, said: str) -> None:
    store = cluster()
    whole = reports(store)
    bad = tuple(
        Reached(what=r.what, source=r.source, node_id="b", network_id="net", address=r.address, subject=r.subject, ping=ping, tcp=tcp)
        if r.what == TASK and r.node_id == "b"
        else r
        for r in whole["a"].reached
    )
    assert texts(diagnose(store, {**whole, "a": report(store, "a", list(bad[:-1]))})) == [said]


def test_a_task_that_no_longer_serves_is_no_fault() -> None:
    store = cluster()
    gone = Reached(
        what=TASK, source=ADDRESS["a"], node_id="b", network_id="net", address="10.0.1.99", subject="endpoint/old/net", ping=False
    )
    found = reports(store)
    assert diagnose(store, {**found, "a": report(store, "a", [*found["a"].reached[:-1], gone])}) == []


def test_a_service_that_does_not_answer_though_its_tasks_do() -> None:
    store = cluster()
    found = reports(store)
    bad = [*found["c"].reached[:-1]]
    silent = Reached(what=VIP, source=ADDRESS["c"], network_id="net", address="10.0.1.2", subject="discovery/web/net", tcp=False)
    known = {"items": found["c"].items, "version": store.version}
    (said,) = diagnose(store, {**found, "c": NodeReport(reached=(*bad, silent), **known)})
    assert said.text == "10.0.1.2, the address of service web on front, does not answer on node-c" and said.network == "front"


def test_a_snapshot_that_is_not_what_the_store_says() -> None:
    store = cluster()
    found = reports(store)
    told = dict(found["a"].items)
    del told["endpoint/tb/net"]
    told["endpoint/old/net"] = 1
    told["discovery/web/net"] += 1
    said = texts(diagnose(store, {**found, "a": NodeReport(items=told, reached=found["a"].reached, version=store.version)}))
    assert said == [
        "node-a does not know the task web.2 (10.0.1.12) on network front",
        "node-a still knows the task old on network front",
        "node-a has not heard what changed of the service web on network front",
    ]


def test_a_kernel_speaks_of_addresses_people_of_tasks() -> None:
    store = cluster()
    found = reports(store)
    text = "route 10.0.1.12 via 169.254.0.2 dev vx4097 was missing"
    (said,) = diagnose(store, {**found, "a": report(store, "a", list(found["a"].reached[:-1]), kernel=(text,), repaired=True)})
    assert said.mended and said.text == "route 10.0.1.12 (web.2 on node-b) via 169.254.0.2 dev vx4097 was missing"


def test_a_node_that_cannot_look_says_why() -> None:
    store = cluster()
    found = {**reports(store), "b": NodeReport(error="out of memory")}
    assert texts(diagnose(store, found)) == ["node-b could not look at its network: out of memory"]


def test_the_same_item_has_the_same_fingerprint_after_the_wire() -> None:
    """Whatever order its labels come in."""
    import msgspec

    from skep.model.assignment import Item, NetworkItem

    rng = random.Random(1)
    labels = {f"l{i}": str(i) for i in range(20)}
    item = NetworkItem(network=Network(id="n", spec=NetworkSpec(name="x", labels=labels)))
    shuffled = list(labels.items())
    rng.shuffle(shuffled)
    other = NetworkItem(network=Network(id="n", spec=NetworkSpec(name="x", labels=dict(shuffled))))
    assert fingerprint(item) == fingerprint(other) == fingerprint(msgspec.msgpack.decode(msgspec.msgpack.encode(other), type=Item))
    assert fingerprint(item) != fingerprint(NetworkItem(network=Network(id="n", spec=NetworkSpec(name="y", labels=labels))))


def test_a_network_that_a_node_cannot_lay_is_said_and_never_called_mended() -> None:
    store = cluster()
    said = "network web cannot be laid on this node: VXLAN id 4097 is taken"
    for repaired in (False, True):
        whole = reports(store)
        whole["a"] = msgspec.structs.replace(whole["a"], refused=(said,), repaired=repaired)
        (found,) = diagnose(store, whole)
        assert (found.text, found.kind, found.mended) == (said, "kernel", False)
