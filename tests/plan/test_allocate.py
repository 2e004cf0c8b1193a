"""The allocator: what is given to whom, in which order, and what is said when it cannot be."""

from __future__ import annotations

import msgspec
import pytest
from allocate_world import born
from placing_world import World, make_node, port

from skep.model.cluster import Cluster
from skep.model.enums import TaskState
from skep.model.network import Network
from skep.model.node import Node
from skep.model.service import Service
from skep.model.spec import EndpointSpec, IPAMConfig, IPAMOptions, NetworkAttachmentConfig
from skep.model.task import Attachment, Task
from skep.plan.allocate import Allocation, plan_allocate, subnet_conflict
from skep.plan.allocate.addresses import pool_subnets
from skep.plan.allocate.networks import NoSubnet, pool_subnet
from skep.plan.ops import Create


def ipam(subnet: str, **fields: object) -> IPAMOptions:
    return IPAMOptions(configs=(IPAMConfig(subnet=subnet, **fields),))  # type: ignore[arg-type]


def test_the_first_numbers_are_dockers() -> None:
    w = born()
    ingress = w.get(Network, "ingress")
    assert ingress.ipam == (IPAMConfig(subnet="10.0.0.0/24", gateway="10.0.0.1"),)
    assert (ingress.vni, ingress.options) == (4096, {"com.docker.network.driver.overlay.vxlanid_list": "4096"})
    node = w.get(Node, "n1")
    assert node.index == 1
    w.network("ov1")
    w.service("web", networks=["ov1"], ports=[port(80)])
    for n in (1, 2):
        w.task(f"t{n}", "web")
    w.allocate()
    ov1 = w.get(Network, "ov1")
    assert (ov1.vni, ov1.ipam[0].subnet, ov1.ipam[0].gateway) == (4097, "10.0.1.0/24", "10.0.1.1")
    endpoint = w.get(Service, "web").endpoint
    assert [(vip.network_id, vip.address) for vip in endpoint.vips] == [("ingress", "10.0.0.2/24"), ("ov1", "10.0.1.2/24")]
    assert [p.published_port for p in endpoint.ports] == [30000]
    assert endpoint.spec == w.get(Service, "web").spec.endpoint_spec
    t1 = w.get(Task, "t1")
    assert [(a.network_id, a.addresses) for a in t1.attachments] == [("ingress", ("10.0.0.3/24",)), ("ov1", ("10.0.1.3/24",))]
    assert (t1.status.state, t1.status.message) == (TaskState.PENDING, "pending task scheduling")
    assert w.addresses("t2") == ["10.0.0.4/24", "10.0.1.4/24"]
    w.state("t1", TaskState.ASSIGNED, node_id="n1")
    assert not w.allocate().ops, "a node needs no addresses for its tasks"


def test_cursors_are_stored_and_freed_numbers_come_last() -> None:
    w = born()
    w.network("ov1")
    w.service("web", networks=["ov1"])
    w.task("t1", "web")
    w.allocate()
    assert w.addresses("t1") == ["10.0.1.3/24"]
    w.delete(Task, "t1")
    w.task("t2", "web")
    w.allocation = Allocation()
    w.allocate()
    assert w.addresses("t2") == ["10.0.1.4/24"], "a new leader goes on where the old one was"
    w.delete(Network, "ingress")
    w.delete(Node, "n1")
    w.network("ov2")
    w.node("n2")
    w.allocate()
    assert (w.get(Network, "ov2").ipam[0].subnet, w.get(Network, "ov2").vni) == ("10.0.2.0/24", 4098)
    assert w.get(Node, "n2").index == 2
    cluster = w.get(Cluster, "cluster")
    assert (cluster.subnet_cursor, cluster.vni_cursor, cluster.node_cursor) == (3, 4098, 2)


def test_pools_and_subnet_size_of_the_cluster() -> None:
    w = born(default_addr_pool=("20.20.0.0/23", "30.0.0.0/24"), subnet_size=24)
    for name in ("a", "b", "c"):
        w.network(name)
    w.allocate()
    assert [w.get(Network, name).ipam for name in ("ingress", "a", "b")] == [
        (IPAMConfig(subnet=f"{net}.0/24", gateway=f"{net}.1"),) for net in ("20.20.0", "20.20.1", "30.0.0")
    ]
    assert not w.get(Network, "c").ipam
    w.delete(Network, "a")
    w.allocate()
    assert w.get(Network, "c").ipam[0].subnet == "20.20.1.0/24"


def test_subnets_of_others_and_of_the_nodes_themselves_are_skipped() -> None:
    w = World()
    w.cluster()
    w.node("n1", addr="10.0.0.17")
    w.node("n2", manager_addr="10.0.2.17:2377")
    w.network("user", ipam_options=ipam("10.0.1.0/25"))
    w.allocate()
    w.network("ingress", ingress=True)
    w.network("next")
    w.allocate()
    assert w.get(Network, "user").ipam == (IPAMConfig(subnet="10.0.1.0/25", gateway="10.0.1.1"),)
    assert w.get(Network, "ingress").ipam[0].subnet == "10.0.3.0/24"
    assert w.get(Network, "next").ipam[0].subnet == "10.0.4.0/24"


def test_a_subnet_that_no_kernel_routes_is_never_given() -> None:
    w = World()
    w.cluster(default_addr_pool=("169.254.0.0/16", "126.0.0.0/7"), subnet_size=8)
    w.network("loop", ipam_options=ipam("127.0.0.0/24"))
    w.service("web", networks=["loop"])
    w.task("t1", "web")
    w.network("next")
    w.allocate()
    assert not w.get(Network, "loop").ipam
    assert w.err("t1") == "network loop: invalid subnet 127.0.0.0/24: these addresses are not for containers"
    assert w.get(Network, "next").ipam[0].subnet == "126.0.0.0/8"


def test_a_full_pool_is_gone_through_without_asking_each_subnet_about_each_other() -> None:
    used = [subnet for _, subnet in pool_subnets(["10.0.0.0/8"], 22, 0)]
    free = used.pop(12_345)
    w = World()
    w.cluster(subnet_size=22)
    node = w.node("n1", addr=f"{free[77]}", manager_addr="[fd00::1]:2377")
    cluster = next(iter(w.store.all(Cluster)))
    with pytest.raises(NoSubnet, match="could not find an available"):
        pool_subnet(cluster, 0, used, [node])
    assert pool_subnet(cluster, 0, used, []) == (12_346, free)


def test_given_ranges_gateways_and_auxiliary_addresses_are_kept_free() -> None:
    w = born()
    options = ipam("10.9.0.0/24", ip_range="10.9.0.16/29", gateway="10.9.0.18", auxiliary_addresses={"r": "10.9.0.17"})
    w.network("ov1", ipam_options=options)
    w.service("web", networks=["ov1"], mode="dnsrr")
    for n in range(1, 9):
        w.task(f"t{n}", "web")
    w.allocate()
    given = [address for n in range(1, 9) for address in w.addresses(f"t{n}")]
    assert given == [f"10.9.0.{n}/24" for n in (16, 19, 20, 21, 22, 23)]
    assert w.err("t7") == "could not find an available IP while allocating the task's address in network ov1 (10.9.0.0/24)"


def test_an_overlapping_subnet_is_refused_and_its_tasks_say_so() -> None:
    w = born()
    w.network("ov1", ipam_options=ipam("10.0.0.128/25"))
    w.service("web", networks=["ov1"])
    w.task("t1", "web")
    assert (
        subnet_conflict(w.store, w.get(Network, "ov1").spec) == "invalid pool request: Pool overlaps with other one on this address space"
    )
    w.allocate()
    assert not w.get(Network, "ov1").ipam
    assert w.err("t1") == "network ov1: invalid pool request: Pool overlaps with other one on this address space"
    w.delete(Network, "ingress")
    w.allocate()
    assert w.get(Network, "ov1").ipam[0].gateway == "10.0.0.129"
    assert w.addresses("t1") == ["10.0.0.131/25"]
    assert w.err("t1") == ""


def test_a_task_waits_for_its_network_and_says_so() -> None:
    w = born()
    w.service("web", networks=["nowhere"])
    w.task("t1", "web")
    w.allocate()
    assert (w.get(Task, "t1").status.state, w.err("t1")) == (TaskState.NEW, "network nowhere not found")
    assert not w.allocate().ops
    w.network("nowhere")
    w.allocate()
    assert w.get(Task, "t1").status.state is TaskState.PENDING


def test_exhaustion_is_said_and_mended_when_something_is_freed() -> None:
    w = born()
    w.network("tiny", ipam_options=ipam("10.9.9.0/29"))
    w.network("big")
    w.service("web", networks=["big", "tiny"])
    for n in range(1, 7):
        w.task(f"t{n}", "web")
    w.allocate()
    assert [bool(w.addresses(f"t{n}")) for n in range(1, 7)] == [True] * 4 + [False] * 2
    assert w.err("t5") == "could not find an available IP while allocating the task's address in network tiny (10.9.9.0/29)"
    cursor = w.get(Network, "big").cursor
    assert not w.allocate().ops, "what cannot be given leaves no trace"
    assert w.get(Network, "big").cursor == cursor
    w.state("t2", TaskState.RUNNING)
    assert not w.allocate().ops
    w.state("t2", TaskState.FAILED)
    w.allocate()
    assert w.addresses("t5")[1] == w.addresses("t2")[1]
    assert (w.err("t5"), w.get(Task, "t5").status.state) == ("", TaskState.PENDING)
    assert w.get(Task, "t6").status.state is TaskState.NEW


def test_a_vip_that_cannot_be_had_keeps_the_tasks_new() -> None:
    w = born()
    w.network("tiny", ipam_options=ipam("10.9.9.0/30"))
    w.service("a", networks=["tiny"])
    w.allocate()
    w.service("b", networks=["tiny"])
    w.task("t1", "b")
    w.allocate()
    assert w.get(Service, "b").endpoint is None
    assert w.err("t1") == "could not find an available IP while allocating VIP in network tiny (10.9.9.0/30)"
    w.delete(Service, "a")
    w.allocate()
    assert w.get(Service, "b").endpoint.vips[0].address == "10.9.9.2/30"


def test_endpoint_changes_give_and_free() -> None:
    w = born()
    w.network("ov1")
    w.network("ov2")
    w.service("web", networks=["ov1"], ports=[port(80, 8080), port(81), port(53, 0, "host", "udp")])
    w.allocate()
    first = w.get(Service, "web").endpoint
    assert [(p.published_port, p.publish_mode) for p in first.ports] == [(8080, "ingress"), (30000, "ingress"), (0, "host")]
    w.respec("web", endpoint_spec=EndpointSpec(mode="vip", ports=(port(81), port(82))))
    w.allocate()
    second = w.get(Service, "web").endpoint
    assert [p.published_port for p in second.ports] == [30000, 30001], "the same port keeps its number"
    assert second.vips == first.vips
    template = msgspec.structs.replace(w.get(Service, "web").spec.task_template, networks=(NetworkAttachmentConfig(target="ov2"),))
    w.respec("web", task_template=template)
    w.allocate()
    assert [vip.network_id for vip in w.get(Service, "web").endpoint.vips] == ["ingress", "ov2"]
    w.respec("web", endpoint_spec=EndpointSpec(mode="dnsrr"))
    w.allocate()
    assert (w.get(Service, "web").endpoint.vips, w.get(Service, "web").endpoint.ports) == ((), ())
    w.service("other", ports=[port(1, 8080), port(2, 30000)])
    w.allocate()
    assert [p.published_port for p in w.get(Service, "other").endpoint.ports] == [8080, 30000]


def test_node_local_networks_give_no_address() -> None:
    w = born()
    w.network("host", driver="host")
    w.service("web", networks=["host"])
    w.task("t1", "web")
    w.allocate()
    assert w.get(Task, "t1").attachments == (Attachment(network_id="host"),)
    assert w.get(Service, "web").endpoint.vips == ()
    assert w.get(Network, "host").vni == 0


def test_aliases_and_driver_options_are_carried() -> None:
    w = born()
    w.network("ov1")
    attachment = NetworkAttachmentConfig(target="ov1", aliases=("db",), driver_opts={"a": "b"})
    w.service("web")
    w.respec("web", task_template=msgspec.structs.replace(w.get(Service, "web").spec.task_template, networks=(attachment,)))
    w.task("t1", "web")
    w.allocate()
    found = w.get(Task, "t1").attachments[0]
    assert (found.aliases, found.driver_opts) == (("db",), {"a": "b"})


@pytest.mark.parametrize("nodes", [1, 50])
def test_a_subnet_is_for_tasks_however_many_nodes_there_are(nodes: int) -> None:
    """256 less the subnet's own two, its gateway, and the service's address."""
    w = born()
    w.network("ov1")
    w.service("web", networks=["ov1"])
    for n in range(2, nodes + 1):
        w.node(f"n{n}")
    for n in range(252):
        w.task(f"t{n}", "web")
    w.allocate()
    for n in range(252):
        w.state(f"t{n}", TaskState.RUNNING, node_id=f"n{n % nodes + 1}")
    assert not w.allocate().ops
    w.task("late", "web")
    w.allocate()
    late = w.get(Task, "late").status
    said = "could not find an available IP while allocating the task's address in network ov1 (10.0.1.0/24)"
    assert (late.state, late.err) == (TaskState.NEW, said)
    w.delete(Task, "t7")
    w.allocate()
    assert w.addresses("late") == ["10.0.1.10/24"]


def test_addresses_that_nodes_had_on_networks_once_are_free() -> None:
    """Stored by a skep that gave each node one on every network it had tasks on."""
    w = born()
    w.network("ov1")
    w.allocate()
    stored = msgspec.to_builtins(w.get(Node, "n1")) | {"attachments": [{"network_id": "ov1", "address": "10.0.1.2/24"}]}
    w.delete(Node, "n1")
    w.store.apply([Create(msgspec.convert(stored, Node), "test")])
    w.service("web", networks=["ov1"])
    w.allocate()
    assert [vip.address for vip in w.get(Service, "web").endpoint.vips] == ["10.0.1.2/24"]


def test_a_fixed_address_is_given_once() -> None:
    w = born()
    w.network("ov1", attachable=True)
    w.allocate()
    for id, address in (("t1", "10.0.1.9"), ("t2", "10.0.1.9"), ("t3", "10.0.1.1"), ("t4", "10.7.0.1")):
        w.task(id, attachments=(Attachment(network_id="ov1", addresses=(address,)),))
    w.allocate()
    assert w.addresses("t1") == ["10.0.1.9/24"]
    assert (w.err("t2"), w.err("t3")) == ("Address already in use", "Address already in use")
    assert w.err("t4") == "address 10.7.0.1 is not in network ov1 (10.0.1.0/24)"
    w.delete(Task, "t1")
    w.allocate()
    assert w.addresses("t2") == ["10.0.1.9/24"]


def test_a_vni_of_the_users_is_used_once() -> None:
    w = born()
    option = {"com.docker.network.driver.overlay.vxlanid_list": "5000"}
    for name in ("a", "b"):
        w.network(name)
        w.change(Network, name, options=option)
    w.allocate()
    assert (w.get(Network, "a").vni, w.get(Network, "b").vni) == (5000, 0)
    w.delete(Network, "a")
    w.allocate()
    assert w.get(Network, "b").vni == 5000


def test_a_plan_that_was_never_applied_is_forgotten() -> None:
    w = born()
    w.network("ov1")
    w.service("web", networks=["ov1"], ports=[port(80)])
    w.task("t1", "web")
    w.mark()
    lost = plan_allocate(w.store, w.clock.time, w.allocation)
    again = plan_allocate(w.store, w.clock.time, w.allocation)
    assert lost == again
    assert len(lost.ops) > 3


def test_a_task_of_a_removed_service_is_left_alone() -> None:
    w = born()
    w.task("t1", "gone")
    assert not w.allocate().ops


def test_the_index_and_addresses_of_a_restored_node_are_kept() -> None:
    w = born()
    kept = msgspec.structs.replace(make_node("n9"), index=7)
    w.store.apply([Create(kept, "test")])
    w.node("n10")
    w.allocate()
    assert (w.get(Node, "n9").index, w.get(Node, "n10").index) == (7, 2)


def test_a_stopping_task_keeps_its_address_from_a_new_network_with_the_old_one_s_subnet() -> None:
    w = World()
    w.cluster()
    wanted = IPAMOptions(configs=(IPAMConfig(subnet="10.50.0.0/28"),))
    w.network("old", ipam_options=wanted)
    w.service("s", networks=["old"])
    w.task("t1", "s")
    w.task("t2", "s")
    w.allocate()
    assert [a.addresses for id in ("t1", "t2") for a in w.get(Task, id).attachments] == [("10.50.0.3/28",), ("10.50.0.4/28",)]
    w.delete(Service, "s")
    w.delete(Network, "old")
    w.network("new", ipam_options=wanted)
    w.service("again", networks=["new"])
    w.task("t3", "again")
    w.allocate()
    assert w.get(Service, "again").endpoint.vips[0].address == "10.50.0.2/28"
    assert w.get(Task, "t3").attachments[0].addresses == ("10.50.0.5/28",)
    for id in ("t1", "t2"):
        w.state(id, TaskState.SHUTDOWN, desired_state=TaskState.REMOVE)
    w.allocate()
    assert not w.allocation.stray
