"""What of a service and of a task others are told: names, virtual addresses, aliases."""

from __future__ import annotations

from typing import Any

import pytest

from skep.model.assignment import DiscoveryItem
from skep.model.enums import NodeState
from skep.model.enums import TaskState as S
from skep.model.node import Node, NodeDescription, NodeStatus
from skep.model.service import Endpoint, Service, VirtualIP
from skep.model.spec import AttachmentSpec, EndpointSpec, NetworkAttachmentConfig, NodeSpec, PortConfig, ServiceSpec, TaskSpec
from skep.model.task import Attachment, ContainerStatus, Task, TaskStatus
from skep.plan.assignment import discovery_items, endpoint_items, peer_item, service_item

CONTAINER = "0123456789abcdef" * 4
PORT = PortConfig(protocol="tcp", target_port=80, published_port=8080, publish_mode="ingress")


def web(*targets: NetworkAttachmentConfig, mode: str = "", vips: dict[str, str] | None = None, **fields: Any) -> Service:
    spec = ServiceSpec(name="web", task_template=TaskSpec(networks=targets), endpoint_spec=EndpointSpec(mode=mode), **fields)
    given = tuple(VirtualIP(network_id=network, address=address) for network, address in (vips or {}).items())
    return Service(id="s", spec=spec, endpoint=Endpoint(vips=given, ports=(PORT,)))


def on(network: str, *aliases: str) -> NetworkAttachmentConfig:
    return NetworkAttachmentConfig(target=network, aliases=aliases or None)


def found(service: Service) -> dict[str, DiscoveryItem]:
    return {item.network_id: item for item in discovery_items(service)}


def test_a_service_is_known_on_each_of_its_networks_by_its_address_there() -> None:
    service = web(on("a", "www", "web"), on("b"), vips={"in": "10.0.0.2/24", "a": "10.0.1.2/24", "b": "10.0.2.2/24"})
    assert found(service) == {
        "a": DiscoveryItem(service_id="s", network_id="a", name="web", vip="10.0.1.2", aliases=("www",)),
        "b": DiscoveryItem(service_id="s", network_id="b", name="web", vip="10.0.2.2"),
    }, "not on the ingress network: nothing resolves there"


def test_without_its_address_it_is_not_known_yet() -> None:
    assert found(web(on("a"), on("b"), vips={"b": "10.0.2.2/24"})).keys() == {"b"}


def test_dnsrr_has_no_address() -> None:
    item = found(web(on("a", "www"), mode="dnsrr", vips={"a": "10.0.1.2/24"}))["a"]
    assert (item.vip, item.aliases) == ("", ("www",))


def test_networks_of_the_old_place_in_the_spec_count() -> None:
    service = Service(id="s", spec=ServiceSpec(name="web", networks=(on("a"),), endpoint_spec=EndpointSpec(mode="dnsrr")))
    assert found(service).keys() == {"a"}


@pytest.mark.parametrize(("labels", "local"), [({}, False), ({"skep.mesh.local": "true"}, True), ({"skep.mesh.local": "no"}, False)])
def test_local_delivery_is_a_label(labels: dict[str, str], local: bool) -> None:
    item = service_item(web(labels=labels))
    assert item is not None and item.local_only is local


def task(state: S, desired: S = S.RUNNING, **fields: Any) -> Task:
    status = TaskStatus(state=state, container=ContainerStatus(container_id=CONTAINER))
    return Task(
        **{
            "id": "t",
            "service_id": "s",
            "service_name": "web",
            "slot": 3,
            "node_id": "n",
            "status": status,
            "desired_state": desired,
            "attachments": (Attachment(network_id="a", addresses=("10.0.1.3/24",), aliases=("www",)), Attachment(network_id="local")),
            **fields,
        }
    )


def test_a_task_is_known_by_its_own_name_its_slot_and_its_container() -> None:
    (item,) = endpoint_items(task(S.RUNNING))
    assert item.address == "10.0.1.3" and item.serving
    assert item.names == ("web.3.t", "3.web", "0123456789ab"), "an alias of its service's network means all of the tasks"
    (item,) = endpoint_items(task(S.RUNNING, slot=0))
    assert item.names[:2] == ("web.n.t", "n.web")


def test_a_host_name_that_its_service_chose_is_told_once_it_runs() -> None:
    for state in (S.STARTING, S.RUNNING):
        status = TaskStatus(state=state, container=ContainerStatus(container_id=CONTAINER, hostname="rabbit-3"))
        (item,) = endpoint_items(task(state, status=status))
        assert item.hostname == ("rabbit-3" if state is S.RUNNING else "") and "rabbit-3" not in item.names


@pytest.mark.parametrize(
    ("state", "desired", "serving"),
    [
        (S.ASSIGNED, S.RUNNING, False),
        (S.STARTING, S.RUNNING, False),
        (S.RUNNING, S.RUNNING, True),
        (S.RUNNING, S.COMPLETE, True),
        (S.RUNNING, S.SHUTDOWN, False),
        (S.RUNNING, S.REMOVE, False),
    ],
)
def test_it_serves_while_it_runs_and_is_not_about_to_stop(state: S, desired: S, serving: bool) -> None:
    (item,) = endpoint_items(task(state, desired))
    assert item.serving is serving
    assert ("0123456789ab" in item.names) == (state is S.RUNNING)


@pytest.mark.parametrize("state", [S.PENDING, S.FAILED, S.SHUTDOWN, S.ORPHANED])
def test_a_task_that_is_nowhere_has_no_endpoint(state: S) -> None:
    assert list(endpoint_items(task(state))) == []


def test_a_plain_container_is_known_by_the_names_it_came_with() -> None:
    attachment = Attachment(network_id="a", addresses=("10.0.1.9/24",), aliases=("client", "c"))
    spec = TaskSpec(network_attachment_spec=AttachmentSpec(container_id=CONTAINER))
    (item,) = endpoint_items(task(S.RUNNING, service_id="", service_name="", slot=0, spec=spec, attachments=(attachment,)))
    assert item.names == ("client", "c", "0123456789ab") and item.service_id == ""


def test_a_node_that_is_down_is_a_peer_and_one_that_has_left_is_not() -> None:
    for left in (False, True):
        status = NodeStatus(addr="192.0.2.1", state=NodeState.DOWN, left=left)
        item = peer_item(Node(id="n", spec=NodeSpec(), index=1, status=status))
        assert (item is None) == left


@pytest.mark.parametrize(("said", "told"), [(1500, 1500), (1400, 1400), (576, 576), (65535, 65535), (0, 0), (575, 0), (-1, 0), (65536, 0)])
def test_others_hear_how_wide_a_node_s_underlay_is_and_believe_no_number_that_their_kernels_would_not(said: int, told: int) -> None:
    node = Node(id="n", spec=NodeSpec(), index=1, status=NodeStatus(addr="192.0.2.1"), description=NodeDescription(underlay_mtu=said))
    item = peer_item(node)
    assert item is not None and item.mtu == told
