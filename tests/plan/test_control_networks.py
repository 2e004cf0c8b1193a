"""What users may ask of networks, and the exact words when they may not (Docker's, where Docker has them)."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from control_world import IN, add, create, new_control, port, spec, store_of

from skep.clock import SECOND
from skep.errors import Invalid, NotFound, SkepError
from skep.manager.control import Control
from skep.model.enums import TaskState
from skep.model.network import Network
from skep.model.service import Service
from skep.model.spec import Driver, IPAMConfig, IPAMOptions, NetworkSpec
from skep.model.task import Attachment, Task, TaskStatus
from skep.plan.allocate import plan_allocate
from skep.plan.ops import Change


@pytest.fixture
def control() -> Control:
    return new_control()


MTU = "com.docker.network.driver.mtu"
VXLAN = "com.docker.network.driver.overlay.vxlanid_list"


def subnets(*texts: str, name: str = "x") -> NetworkSpec:
    return NetworkSpec(name=name, ipam_options=IPAMOptions(configs=tuple(IPAMConfig(subnet=text) for text in texts)))


def allocate(control: Control) -> None:
    store = store_of(control)
    store.apply(plan_allocate(store, 2_000 * SECOND).ops, by="allocator")


def driven(**options: str) -> NetworkSpec:
    return NetworkSpec(name="x", driver_configuration=Driver(name="overlay", options=options))


@pytest.mark.parametrize(
    ("wanted", "driver", "status", "message"),
    [
        (NetworkSpec(name="bridge"), "", 403, "bridge is a pre-defined network and cannot be created"),
        (NetworkSpec(name="default"), "", 403, "default is a pre-defined network and cannot be created"),
        (NetworkSpec(name="a b"), "", 400, IN + "name must be valid as a DNS name component"),
        (NetworkSpec(name="INGRESS"), "", 409, "network with name INGRESS already exists"),
        (
            NetworkSpec(name="other", ingress=True),
            "",
            409,
            "rpc error: code = AlreadyExists desc = ingress network (ID) is already present",
        ),
        (NetworkSpec(name="x", ingress=True, attachable=True), "", 400, IN + "ingress network cannot be attachable"),
        (NetworkSpec(name="x", ingress=True, internal=True), "", 400, IN + "ingress network cannot be internal"),
        (NetworkSpec(name="x", ingress=True), "bridge", 400, IN + "driver bridge is not supported for the ingress network"),
        (NetworkSpec(name="x"), "macvlan", 501, "skep's cluster networks are overlay networks: it has none with driver macvlan"),
        (NetworkSpec(name="x", ipv6_enabled=True), "", 501, "skep's overlay networks carry IPv4 only: leave IPv6 out"),
        (subnets("fd00::/64"), "", 501, "skep's overlay networks carry IPv4 only: leave the subnet fd00::/64 out"),
        (
            driven(encrypted=""),
            "",
            501,
            "skep does not encrypt overlay networks: leave the option encrypted out, and encrypt between the hosts",
        ),
        (driven(**{MTU: "10"}), "", 400, IN + f"invalid value for {MTU}: 10"),
        (driven(**{VXLAN: "5"}), "", 400, IN + f"invalid VXLAN id in {VXLAN}: 5: give one number from 4096 to 16777215"),
        (driven(**{VXLAN: "4096"}), "", 400, IN + "VXLAN id 4096 is already in use by network ingress (ID)"),
        (subnets("10.0.0.0/25"), "", 400, IN + "invalid pool request: Pool overlaps with other one on this address space"),
        (subnets("10.9.0.0/24", "10.9.0.0/16"), "", 400, IN + "invalid pool request: Pool overlaps with other one on this address space"),
        (subnets("10.1.0.0/24"), "", 400, IN + "subnet 10.1.0.0/24 holds the address 10.1.0.1 of node thenode"),
        (subnets("169.254.7.0/24"), "", 400, IN + "invalid subnet 169.254.7.0/24: these addresses are not for containers"),
        (subnets("224.0.0.0/24"), "", 400, IN + "invalid subnet 224.0.0.0/24: these addresses are not for containers"),
        (subnets("127.0.0.0/24"), "", 400, IN + "invalid subnet 127.0.0.0/24: these addresses are not for containers"),
        (subnets("0.0.0.0/8"), "", 400, IN + "invalid subnet 0.0.0.0/8: these addresses are not for containers"),
        (subnets("10.9.0.0/33"), "", 400, IN + "ipam configuration: invalid subnet 10.9.0.0/33"),
        (
            NetworkSpec(name="x", ipam_options=IPAMOptions(configs=(IPAMConfig(subnet="10.9.0.0/24", gateway="10.8.0.1"),))),
            "",
            400,
            IN + "ipam configuration: subnet 10.9.0.0/24 does not contain gateway 10.8.0.1",
        ),
        (
            subnets("10.9.0.0/31"),
            "",
            400,
            IN + "ipam configuration: subnet 10.9.0.0/31 has no room for a gateway and a task: it must be a /30 or wider",
        ),
        (
            NetworkSpec(name="x", ipam_options=IPAMOptions(configs=(IPAMConfig(subnet="10.9.0.0/24", gateway="10.9.0.255"),))),
            "",
            400,
            IN + "ipam configuration: gateway 10.9.0.255 is no address of a host in subnet 10.9.0.0/24",
        ),
        (
            NetworkSpec(name="x", ipam_options=IPAMOptions(configs=(IPAMConfig(subnet="10.9.0.0/24", ip_range="10.9.0.0/16"),))),
            "",
            400,
            IN + "ipam configuration: subnet 10.9.0.0/24 does not contain range 10.9.0.0/16",
        ),
        (
            NetworkSpec(name="x", ipam_options=IPAMOptions(configs=(IPAMConfig(subnet="10.9.0.0/24", auxiliary_addresses={"a": "x"}),))),
            "",
            400,
            IN + "ipam configuration: invalid auxiliary address a x",
        ),
        (NetworkSpec(name="x", ipam_options=IPAMOptions(driver=Driver(name="dhcp"))), "", 400, IN + "invalid IPAM specified: dhcp"),
    ],
)
def test_networks_refused(control: Control, wanted: NetworkSpec, driver: str, status: int, message: str) -> None:
    allocate(control)
    with pytest.raises(SkepError) as caught:
        asyncio.run(control.create_network(wanted, driver=driver))
    assert (caught.value.status, caught.value.message) == (status, message.replace("ID", control.network("ingress").id))


def test_ingress_goes_when_nobody_needs_it_and_comes_back(control: Control) -> None:
    service = create(control, spec(port(80)))
    with pytest.raises(Invalid) as caught:
        asyncio.run(control.remove_network("ingress"))
    assert caught.value.message == (
        f"rpc error: code = FailedPrecondition desc = ingress network cannot be removed because service {service.id} depends on it"
    )
    asyncio.run(control.remove_service("web"))
    asyncio.run(control.remove_network("ingress"))
    made = asyncio.run(control.create_network(NetworkSpec(name="front", ingress=True, driver_configuration=Driver(name="overlay"))))
    assert (control.network("front").id, made.driver, made.allocated) == (made.id, "overlay", False)


def test_networks_come_and_go(control: Control) -> None:
    """Removed and made again at once under the same name, with the same subnet."""
    wanted = msgspec.structs.replace(subnets("10.9.0.0/24", name="net1"), attachable=True, internal=True)
    first = asyncio.run(control.create_network(wanted))
    assert (first.driver, first.allocated) == ("overlay", False)
    for again in (wanted, subnets("10.9.0.0/16", name="other")):
        with pytest.raises(SkepError):
            asyncio.run(control.create_network(again))
    allocate(control)
    assert [(c.subnet, c.gateway) for c in control.network("net1").ipam] == [("10.9.0.0/24", "10.9.0.1")]
    service = create(control, spec('{"TaskTemplate":{"Networks":[{"Target":"net1","Aliases":["a"]}]}}'))
    add(control, Task(id="t", service_id=service.id, attachments=(Attachment(network_id=first.id),)))
    asyncio.run(control.remove_service("web"))
    asyncio.run(control.remove_network("net1"))
    with pytest.raises(NotFound, match="network net1 not found"):
        asyncio.run(control.remove_network("net1"))
    second = asyncio.run(control.create_network(wanted))
    assert second.id != first.id
    allocate(control)
    assert [c.subnet for c in control.network("net1").ipam] == ["10.9.0.0/24"]


def test_a_network_in_use_stays(control: Control) -> None:
    add(control, Network(id="net", spec=NetworkSpec(name="net")), Service(id="s", spec=spec('{"Networks":[{"Target":"net"}]}')))
    with pytest.raises(Invalid) as caught:
        asyncio.run(control.remove_network("net"))
    assert caught.value.message == "rpc error: code = FailedPrecondition desc = network net is in use by service s"
    asyncio.run(control.remove_service("web"))
    add(control, Task(id="t", attachments=(Attachment(network_id="net"),)))
    with pytest.raises(Invalid, match="network net is in use by task t"):
        asyncio.run(control.remove_network("net"))
    store_of(control).apply([Change(Task, "t", {"status": TaskStatus(state=TaskState.COMPLETE)}, "t")])
    asyncio.run(control.remove_network("net"))
    with pytest.raises(SkepError) as forbidden:
        asyncio.run(control.remove_network("host"))
    assert (forbidden.value.status, forbidden.value.message) == (403, "host is a pre-defined network and cannot be removed")
