"""The allocator: published ports, and the numbers that addresses are given by."""

from __future__ import annotations

from ipaddress import IPv4Network

import msgspec
import pytest
from allocate_world import born
from hypothesis import given
from hypothesis import strategies as st
from placing_world import World, port

from skep.model.enums import TaskState
from skep.model.service import Service
from skep.model.spec import EndpointSpec, IPAMConfig
from skep.model.task import Task
from skep.plan.allocate import port_conflict
from skep.plan.allocate.addresses import UNFIT, Space, Taken, pool_subnets
from skep.plan.allocate.nodes import LAST_INDEX, next_index
from skep.plan.allocate.ports import next_port
from skep.plan.allocate.vni import LAST_VNI, next_vni


@given(
    st.lists(st.builds(IPv4Network, st.tuples(st.integers(0, 255).map(lambda n: (10 << 24) + (n << 4)), st.integers(28, 32))), max_size=8)
)
def test_what_is_taken_is_what_overlaps(used: list[IPv4Network]) -> None:
    taken = Taken(used, ["10.0.3.3:2377", "10.0.4.4", "nowhere", "fd00::1", ""])
    everything = [*used, *UNFIT, IPv4Network("10.0.3.3/32"), IPv4Network("10.0.4.4/32")]
    for _, subnet in pool_subnets(["10.0.0.0/20", "127.0.0.0/28"], 28, 0):
        assert taken.overlaps(subnet) == any(subnet.overlaps(other) for other in everything)


def test_a_taken_port_is_named_in_the_error_until_it_is_free() -> None:
    w = born()
    w.service("a", ports=[port(80, 8080)])
    w.service("b", ports=[port(80, 8080)])
    w.task("t1", "b")
    w.allocate()
    assert w.err("t1") == "port '8080' is already in use by service 'a' (a) as an ingress port"
    w.delete(Service, "a")
    w.allocate()
    assert w.get(Task, "t1").status.state is TaskState.PENDING


def test_dynamic_ports_come_in_turn_per_protocol_and_avoid_what_is_published() -> None:
    w = born()
    w.service("a", ports=[port(1, 30001), port(2), port(3), port(4, protocol="udp")])
    w.service("h", ports=[port(1, 30003, "host")])
    w.allocate()
    assert [p.published_port for p in w.get(Service, "a").endpoint.ports] == [30001, 30000, 30002, 30000]
    w.delete(Service, "a")
    w.service("b", ports=[port(2), port(4, protocol="udp")])
    w.allocate()
    assert [p.published_port for p in w.get(Service, "b").endpoint.ports] == [30004, 30001]


def test_dynamic_ports_avoid_the_cluster_s_own() -> None:
    w = born(data_path_port=30000)
    w.service("a", ports=[port(1), port(2, protocol="udp")])
    w.allocate()
    assert [p.published_port for p in w.get(Service, "a").endpoint.ports] == [30000, 30001]


def test_without_an_ingress_network_a_publishing_service_waits() -> None:
    w = World()
    w.cluster()
    w.service("web", ports=[port(80)])
    w.task("t1", "web")
    w.allocate()
    assert w.err("t1") == "no ingress network is available"
    w.network("ingress", ingress=True)
    w.allocate()
    assert w.addresses("t1") == ["10.0.0.3/24"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (port(80, 8080), "port '8080' is already in use by service 'web' (web) as an ingress port"),
        (port(80, 8080, "host"), "port '8080' is already in use by service 'web' (web) as an ingress port"),
        (port(80, 30000), "port '30000' is already in use by service 'web' (web) as an ingress port"),
        (port(80, 9000), "port '9000' is already in use by service 'web' (web) as a host-published port"),
        (port(80, 9000, "host"), None),
        (port(80, 8080, protocol="udp"), None),
        (port(80), None),
        (port(80, 8081), None),
    ],
)
def test_port_conflicts_in_dockers_words(asked: object, message: str | None) -> None:
    w = born()
    w.service("web", ports=[port(80, 8080), port(81), port(82, 9000, "host")])
    w.allocate()
    spec = msgspec.structs.replace(w.get(Service, "web").spec, name="new", endpoint_spec=EndpointSpec(ports=(asked,)))  # type: ignore[arg-type]
    assert port_conflict(w.store, spec) == message
    assert port_conflict(w.store, spec, "web") is None


def test_serial_numbers_wrap_and_end() -> None:
    assert next_vni(0, ()) == 4096
    assert next_vni(LAST_VNI, {4096}) == 4097
    assert next_index(LAST_INDEX, {1}) == 2
    assert next_index(0, range(1, LAST_INDEX + 1)) is None
    assert next_port("tcp", 0, lambda p: False) == 30000
    assert next_port("tcp", 32767, lambda p: p[1] == 30000) == 30001
    assert next_port("tcp", 30000, lambda p: True) is None
    assert [str(subnet) for _, subnet in pool_subnets(["10.0.0.0/30"], 31, 1)] == ["10.0.0.2/31", "10.0.0.0/31"]
    assert list(pool_subnets(["fd00::/64", "bad"], 24, 0)) == []


def test_a_space_of_two_subnets_is_one_row_of_offsets() -> None:
    space = Space([IPAMConfig(subnet="10.1.0.0/30", gateway="10.1.0.1"), IPAMConfig(subnet="10.2.0.0/30", gateway="10.2.0.2")])
    assert space.text == "10.1.0.0/30, 10.2.0.0/30"
    first = space.next(0)
    assert first is not None
    space.hold(first)
    second = space.next(first)
    assert second is not None
    assert (space.address(first), space.address(second)) == ("10.1.0.2/30", "10.2.0.1/30")
    assert space.offset("10.2.0.1/30") == second
    assert space.offset("10.3.0.1") is None
    space.hold(second)
    assert space.next(second) is None
    space.hold(second)
    space.release(second)
    assert not space.free(second), "two held it, one still does"
    space.release(second)
    assert space.next(0) == second
