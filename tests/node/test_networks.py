"""The node's own networks on disk: subnets, addresses, names, refusals, and what a restart finds."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import msgspec
import pytest

from skep.clock import SECOND
from skep.datapath.base import Place
from skep.datapath.local import HostNetwork
from skep.errors import Conflict, Forbidden, Invalid, NotFound, NotImplementedHere, SkepError
from skep.model.spec import IPAMConfig
from skep.node.base import LocalNetwork
from skep.node.ipam import next_address
from skep.node.networks import Networks
from skep.testing.fake_datapath import FakeDatapath
from skep.testing.jump_clock import JumpClock

OVERLAP = "invalid pool request: Pool overlaps with other one on this address space"


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = JumpClock(SECOND)
        self.datapath = FakeDatapath(self.clock)
        self.host: list[HostNetwork] = []
        self.lives = 0
        self.networks: Networks
        self.boot()

    def boot(self) -> None:
        self.lives += 1
        rng = random.Random(self.lives)
        self.networks = Networks(self.folder / "networks", self.datapath, self.clock, rng, host=self._host)
        asyncio.run(self.networks.start_up())

    def _host(self) -> Collection[HostNetwork]:
        return self.host

    def hosts(self, *subnets: str, connected: bool = True) -> None:
        self.host += [HostNetwork(network=IPv4Network(s), connected=connected) for s in subnets]

    def create(self, name: str, subnet: str = "", **more: Any) -> LocalNetwork:
        ipam = {key: more.pop(key) for key in ("ip_range", "gateway", "auxiliary_addresses") if key in more}
        if subnet or ipam:
            more["ipam"] = (IPAMConfig(subnet=subnet, **ipam),)
        return asyncio.run(self.networks.create(name, **more))

    def reserve(self, network: LocalNetwork | str, sandbox: str, **more: Any) -> str:
        id = network if isinstance(network, str) else network.id
        return asyncio.run(self.networks.reserve(id, sandbox, **more)).address

    def attach(self, sandbox: str) -> None:
        places = tuple(Place(network_id=e.network_id, address=e.address) for e in self.networks.endpoints_of(sandbox))
        asyncio.run(self.datapath.attach(sandbox, places))

    def bridge(self) -> LocalNetwork:
        found = self.networks.get("bridge")
        assert found is not None
        return found


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_the_predefined_ones_are_there_and_stay_the_same(world: World) -> None:
    before = world.networks.all()
    assert [(n.name, n.driver) for n in before] == [("bridge", "bridge"), ("host", "host"), ("none", "null")]
    assert world.bridge().ipam == (IPAMConfig(subnet="172.17.0.0/16", gateway="172.17.0.1"),)
    laid = world.datapath.local.networks
    assert [(n.name, n.group, n.resolves) for n in laid.values()] == [("bridge", 16, False)]
    world.boot()
    assert sorted(world.networks.all(), key=lambda n: n.id) == sorted(before, key=lambda n: n.id)
    for name in ("bridge", "host", "none"):
        with pytest.raises(Forbidden, match=f"^{name} is a pre-defined network and cannot be removed$"):
            asyncio.run(world.networks.remove(name))
    for name in ("host", "none"):
        network = world.networks.get(name)
        assert network is not None
        with pytest.raises(Invalid):
            world.reserve(network, "s")


def test_subnets_are_docker_s_and_none_that_is_in_use(world: World) -> None:
    world.hosts("172.18.0.1/32", "172.20.0.0/14")
    world.hosts("192.168.0.0/20", connected=False)
    made = [world.create(f"n{i}").ipam[0].subnet for i in range(13)]
    assert made == [
        "172.19.0.0/16",
        *(f"172.{i}.0.0/16" for i in range(24, 32)),
        *(f"192.168.{i}.0/20" for i in (16, 32, 48, 64)),
    ]
    asyncio.run(world.networks.remove("n3"))
    assert world.create("again").ipam[0].subnet == made[3]
    for i in range(11):
        world.create(f"m{i}")
    with pytest.raises(Invalid, match="^all predefined address pools have been fully subnetted$"):
        world.create("one too many")
    assert len({n.group for n in world.networks.all() if n.group}) == 1 + 13 + 11


@pytest.mark.parametrize(
    ("subnet", "error"),
    [
        ("172.17.3.0/24", f"^{OVERLAP}$"),
        ("10.9.0.0/24", f"^{OVERLAP}: this host has an address in 10.9.0.0/16$"),
        ("10.8.0.0/15", f"^{OVERLAP}: this host has an address in 10.9.0.0/16$"),
        ("10.50.0.0/16", f"^{OVERLAP}: this host has a route to 10.50.0.0/16$"),
        ("10.50.0.0/15", f"^{OVERLAP}: this host has a route to 10.50.0.0/16$"),
        ("10.60.0.0/31", "must be between a /8 and a /30"),
        ("224.0.0.0/8", "not for containers"),
        ("169.254.7.0/24", "not for containers"),
        ("nonsense", "invalid CIDR block notation"),
        ("fd00::/64", "IPv4 only"),
    ],
)
def test_a_subnet_that_cannot_be(world: World, subnet: str, error: str) -> None:
    world.hosts("10.9.0.0/16")
    world.hosts("10.50.0.0/16", connected=False)
    with pytest.raises(SkepError, match=error):
        world.create("n", subnet)
    assert len(world.networks.all()) == len(list((world.folder / "networks").iterdir())) == 3


def test_a_part_of_a_wide_route_may_be_had(world: World) -> None:
    world.hosts("10.0.0.0/9", connected=False)
    assert world.create("n", "10.1.0.0/16").ipam[0].gateway == "10.1.0.1"


def test_ip_range_gateway_and_auxiliary_addresses(world: World) -> None:
    network = world.create(
        "n", "10.1.0.0/24", ip_range="10.1.0.8/29", gateway="10.1.0.254", auxiliary_addresses={"router": "10.1.0.9", "far": "10.1.0.77"}
    )
    assert network.ipam[0].gateway == "10.1.0.254"
    given = [world.reserve(network, f"s{i}") for i in range(7)]
    assert given == [f"10.1.0.{i}/24" for i in (8, 10, 11, 12, 13, 14, 15)]
    with pytest.raises(SkepError, match="^no available IPv4 addresses on this network's address pools: n$"):
        world.reserve(network, "late")
    assert world.reserve(network, "asked", address="10.1.0.200") == "10.1.0.200/24"
    for address, kind, words in (
        ("10.1.0.9", Conflict, "^Address already in use$"),
        ("10.1.0.254", Conflict, "^Address already in use$"),
        ("10.1.0.10", Conflict, "^Address already in use$"),
        ("10.1.0.255", Conflict, "^Address already in use$"),
        ("10.2.0.1", Invalid, "^invalid address 10.2.0.1: It does not belong to any of this network's subnets$"),
        ("x", Invalid, "invalid IPv4 address: x"),
    ):
        with pytest.raises(kind, match=words):
            world.reserve(network, "more", address=address)
    assert len(world.networks.endpoints(network.id)) == 8
    with pytest.raises(Invalid, match="every ip-range or gateway must have a corresponding subnet"):
        world.create("m", ip_range="10.1.0.0/28")
    for wrong in ({"gateway": "10.3.0.1"}, {"ip_range": "10.3.0.0/28"}, {"auxiliary_addresses": {"a": "10.3.0.1"}}):
        with pytest.raises(Invalid, match="parent subnet 10.2.0.0/24 doesn't contain"):
            world.create("m", "10.2.0.0/24", **wrong)
    with pytest.raises(Invalid, match="stands for the whole subnet"):
        world.create("m", "10.2.0.0/24", gateway="10.2.0.255")
    with pytest.raises(NotImplementedHere, match="has one subnet"):
        world.create("m", ipam=(IPAMConfig(subnet="10.2.0.0/24"), IPAMConfig(subnet="10.3.0.0/24")))


def test_addresses_come_in_turn_and_are_kept_over_a_restart(world: World) -> None:
    bridge = world.bridge()
    assert [world.reserve(bridge, s) for s in "abc"] == ["172.17.0.2/16", "172.17.0.3/16", "172.17.0.4/16"]
    assert world.reserve(bridge, "b") == "172.17.0.3/16"
    assert world.reserve(bridge, "b", address="172.17.0.3") == "172.17.0.3/16"
    with pytest.raises(Conflict, match="this container has 172.17.0.3/16 on network bridge"):
        world.reserve(bridge, "b", address="172.17.0.9")
    asyncio.run(world.networks.release("a"))
    asyncio.run(world.networks.release("a"))
    assert world.reserve(bridge, "d") == "172.17.0.5/16"
    for sandbox in "bd":
        world.attach(sandbox)
    # c was given an address and had no sandbox yet when the daemon died
    world.boot()
    assert {e.sandbox_id: e.address for e in world.networks.endpoints(bridge.id)} == {"b": "172.17.0.3/16", "d": "172.17.0.5/16"}
    assert world.reserve(bridge, "e") == "172.17.0.6/16"
    asyncio.run(world.datapath.destroy())
    world.boot()
    assert world.networks.endpoints(bridge.id) == []


def test_every_address_is_had_again_in_the_end() -> None:
    config = IPAMConfig(subnet="10.1.0.0/29", gateway="10.1.0.1")
    last, seen = "", []
    for _ in range(7):
        last = next_address(config, (), last, "n")
        seen.append(last)
    assert seen == [f"10.1.0.{i}" for i in (2, 3, 4, 5, 6, 2, 3)]


def test_names_and_networks_reach_the_data_path(world: World) -> None:
    network = world.create("n", "10.1.0.0/24", internal=True, labels={"a": "b"})
    world.reserve(network, "s", names=("c1", "web"))
    world.reserve(network, "t", mac="02:00:00:00:00:01")
    state = world.datapath.local
    assert [(n.network_id, n.address, n.names) for n in state.names] == [(network.id, "10.1.0.2", ("c1", "web"))]
    laid = state.networks[network.id]
    assert (laid.subnet, laid.gateway, laid.internal, laid.isolated, laid.masquerade, laid.mtu, laid.resolves, laid.group) == (
        "10.1.0.0/24",
        "10.1.0.1",
        True,
        False,
        True,
        0,
        True,
        17,
    )
    assert [e.mac for e in world.networks.endpoints(network.id)] == ["02:42:0a:01:00:02", "02:00:00:00:00:01"]
    asyncio.run(world.networks.announce(network.id, "s", ("c2",)))
    assert world.datapath.local.names[0].names == ("c2",)
    with pytest.raises(NotFound):
        asyncio.run(world.networks.announce(network.id, "nobody", ()))
    with pytest.raises(Forbidden, match=r'^error while removing network: network n has active endpoints \(name:"c2" id:"[0-9a-f]{12}"\)$'):
        asyncio.run(world.networks.remove("n"))
    for sandbox in "st":
        asyncio.run(world.networks.release(sandbox, network.id))
    asyncio.run(world.networks.remove(network.id[:10]))
    assert world.networks.get("n") is None and network.id not in world.datapath.local.networks and not world.datapath.local.names
    with pytest.raises(NotFound, match="^network n not found$"):
        asyncio.run(world.networks.remove("n"))
    world.boot()
    assert world.networks.get("n") is None


def test_options(world: World) -> None:
    options = {
        "com.docker.network.bridge.enable_icc": "false",
        "com.docker.network.bridge.enable_ip_masquerade": "0",
        "com.docker.network.driver.mtu": "1400",
        "com.docker.network.bridge.host_binding_ipv4": "127.0.0.1",
    }
    network = world.create("n", options=options)
    laid = world.datapath.local.networks[network.id]
    assert (laid.isolated, laid.masquerade, laid.mtu, laid.binding) == (True, False, 1400, "127.0.0.1")
    assert network.options == options
    for name, value, words in (
        ("com.docker.network.bridge.enable_icc", "maybe", 'failed to parse com.docker.network.bridge.enable_icc value: "maybe"'),
        ("com.docker.network.driver.mtu", "67", "failed to parse com.docker.network.driver.mtu value: 67"),
        ("com.docker.network.driver.mtu", "", "failed to parse"),
        ("com.docker.network.bridge.host_binding_ipv4", "1.2.3", "invalid address"),
        ("com.docker.network.bridge.gateway_mode_ipv4", "routed", "is not available in skep: only nat"),
        ("com.docker.network.bridge.name", "br-x", "not of the host: leave com.docker.network.bridge.name out$"),
        ("colour", "red", "^network option colour is not known to skep's bridge networks: leave it out$"),
    ):
        with pytest.raises(SkepError, match=words):
            world.create("m", options={name: value})
    with pytest.raises(NotImplementedHere, match="IPAM option"):
        world.create("m", ipam_options={"foo": "bar"})


@pytest.mark.parametrize(
    ("driver", "error", "words"),
    [
        ("host", Forbidden, 'only one instance of "host" network is allowed'),
        ("null", Forbidden, 'only one instance of "null" network is allowed'),
        ("weave", NotFound, '^plugin "weave" not found$'),
        ("macvlan", NotImplementedHere, "no network driver macvlan"),
        ("overlay", Invalid, "belong to the cluster"),
    ],
)
def test_drivers(world: World, driver: str, error: type[SkepError], words: str) -> None:
    with pytest.raises(error, match=words):
        world.create("n", driver=driver)


def test_configuration_networks(world: World) -> None:
    source = world.create(
        "conf", "10.1.0.0/24", config_only=True, options={"com.docker.network.driver.mtu": "1400"}, labels={"a": "1", "b": "2"}
    )
    assert source.config_only and not source.group and source.id not in world.datapath.local.networks
    with pytest.raises(Invalid):
        world.reserve(source, "s")
    network = world.create("n", config_from="conf", labels={"b": "3"})
    assert network.ipam[0].subnet == "10.1.0.0/24" and network.labels == {"a": "1", "b": "3"}
    assert world.datapath.local.networks[network.id].mtu == 1400
    with pytest.raises(Forbidden, match='^configuration network "conf" is in use$'):
        asyncio.run(world.networks.remove("conf"))
    for wrong in ("n", "nobody"):
        with pytest.raises(NotFound, match=f'^configuration network "{wrong}" does not exist$'):
            world.create("m", config_from=wrong)
    asyncio.run(world.networks.remove("n"))
    asyncio.run(world.networks.remove("conf"))


def test_references(world: World) -> None:
    first = world.create("first")
    assert world.networks.get(first.id) == world.networks.get("first") == world.networks.get(first.id[:8]) == first
    assert world.networks.get("") is None and world.networks.get("fir") is None
    with pytest.raises(Conflict, match="^network with name first already exists$"):
        world.create("first")
    with pytest.raises(Invalid):
        world.create(" ")
    with pytest.raises(NotFound):
        world.reserve("nobody", "s")


def test_a_refusal_of_the_data_path_leaves_nothing(world: World) -> None:
    before = world.networks.all()
    world.datapath.fail["apply_local"] = Invalid("no")
    with pytest.raises(Invalid, match="no"):
        world.create("n")
    with pytest.raises(Invalid, match="no"):
        world.reserve(world.bridge(), "s")
    assert world.networks.all() == before and world.networks.endpoints(world.bridge().id) == []
    world.datapath.fail.clear()
    assert world.reserve(world.bridge(), "s") == "172.17.0.3/16"
    world.boot()
    assert world.networks.all() == sorted(before, key=lambda n: n.id)


def test_a_subnet_that_another_engine_took_meanwhile_is_left_to_it(world: World, caplog: pytest.LogCaptureFixture) -> None:
    mine = world.create("n")
    fixed = world.create("fixed", "10.1.0.0/24")
    assert mine.ipam[0].subnet == "172.18.0.0/16"
    world.reserve(mine, "s")
    world.attach("s")
    world.hosts("172.17.0.0/16", "172.18.0.0/16", "10.1.0.0/24")
    world.boot()
    assert world.bridge().ipam == (IPAMConfig(subnet="172.19.0.0/16", gateway="172.19.0.1"),)
    assert "network bridge is 172.19.0.0/16 from now on: 172.17.0.0/16 overlaps" in caplog.text
    for kept in (mine, fixed):
        assert world.networks.get(kept.id) == kept and f"network {kept.name}: its subnet" in caplog.text
    world.boot()
    assert world.bridge().ipam[0].subnet == "172.19.0.0/16"


def test_what_a_crash_or_a_disk_has_left(world: World) -> None:
    network = world.create("n", "10.1.0.0/24")
    world.reserve(network, "s")
    world.attach("s")
    root = world.folder / "networks"
    (root / ".half.new").write_bytes(b"{")
    (root / ("a" * 64)).mkdir()
    (root / ("b" * 64)).mkdir()
    (root / ("b" * 64) / "network.json").write_bytes(b"rubbish")
    (root / network.id / "torn").write_bytes(b"")
    world.boot()
    assert len(world.networks.all()) == 4 and [e.sandbox_id for e in world.networks.endpoints(network.id)] == ["s"]
    assert sorted(p.name for p in root.iterdir() if p.name[0] in ".a") == [n.id for n in world.networks.all() if n.id[0] == "a"]


def test_who_waits_at_the_same_time_is_told_by_one_call(world: World) -> None:
    calls: list[int] = []
    told = world.datapath.apply_local

    async def counted(state: Any) -> None:
        calls.append(len(state.names))
        await asyncio.sleep(0)
        await told(state)

    world.datapath.apply_local = counted  # type: ignore[method-assign]
    network = world.create("n")
    calls.clear()

    async def many() -> None:
        async with asyncio.TaskGroup() as group:
            for i in range(50):
                group.create_task(world.networks.reserve(network.id, f"s{i}", names=(f"c{i}",)))

    asyncio.run(many())
    assert len(calls) <= 3 and calls[-1] == 50
    assert len({e.address for e in world.networks.endpoints(network.id)}) == 50


def test_a_record_says_all(world: World) -> None:
    network = world.create("n", "10.1.0.0/24", attachable=True, labels={"x": "y"})
    world.boot()
    assert world.networks.get("n") == network
    assert msgspec.json.decode(msgspec.json.encode(network), type=LocalNetwork) == network


def test_a_subnet_of_the_cluster_s_on_this_node_is_taken(world: World) -> None:
    """The router has one way to an address: whoever came second would cut the first off."""
    world.networks.overlays = lambda: [IPv4Network("10.0.1.0/24"), IPv4Network("172.18.0.0/16")]
    with pytest.raises(Forbidden, match="Pool overlaps with other one on this address space"):
        world.create("mine", "10.0.0.0/16")
    assert world.create("chosen").ipam[0].subnet == "172.19.0.0/16"
