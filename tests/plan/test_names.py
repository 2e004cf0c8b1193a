"""What names mean: tables from what is told, and one question after another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skep.datapath.base import LocalName, LocalNetwork, LocalState, Resolving, Snapshot
from skep.datapath.names import Answer, Fate, look_up, view_of
from skep.datapath.tables import Facts, Table, plain, tables, told
from skep.model.assignment import DiscoveryItem, EndpointItem, NetworkItem
from skep.model.network import Network
from skep.model.spec import IPAMConfig, NetworkSpec

MISSING, FORWARD = Fate.MISSING, Fate.FORWARD
ID = "a1b2c3d4e5f6g7h8i9j0k1l2m"


def net(number: int, **spec: Any) -> NetworkItem:
    ipam = (IPAMConfig(subnet=f"10.0.{number}.0/24", gateway=f"10.0.{number}.1"),)
    return NetworkItem(network=Network(id=f"n{number}", spec=NetworkSpec(name=f"Net{number}", **spec), ipam=ipam))


def service(name: str, number: int, vip: str = "", *aliases: str) -> DiscoveryItem:
    return DiscoveryItem(service_id=f"{name}-id", network_id=f"n{number}", name=name, vip=vip, aliases=aliases)


def task(name: str, slot: int, number: int, address: str, *, serving: bool = True) -> EndpointItem:
    return EndpointItem(
        task_id=f"{name}{slot}",
        service_id=f"{name}-id",
        network_id=f"n{number}",
        node_id="x",
        address=address,
        serving=serving,
        names=(f"{name}.{slot}.{ID}", f"{slot}.{name}"),
    )


def box(number: int, address: str, *names: str) -> EndpointItem:
    return EndpointItem(task_id=names[0], service_id="", network_id=f"n{number}", node_id="x", address=address, names=names)


def snapshot(*items: NetworkItem | EndpointItem | DiscoveryItem) -> Snapshot:
    return Snapshot(
        networks={i.key: i for i in items if isinstance(i, NetworkItem)},
        endpoints={i.key: i for i in items if isinstance(i, EndpointItem)},
        discovery={i.key: i for i in items if isinstance(i, DiscoveryItem)},
    )


LOCAL = LocalState(
    networks={
        "br": LocalNetwork(id="br", group=17, subnet="172.20.0.0/16", gateway="172.20.0.1", name="mine"),
        "bridge": LocalNetwork(id="bridge", group=16, subnet="172.17.0.0/16", gateway="172.17.0.1", name="bridge", resolves=False),
        "shut": LocalNetwork(id="shut", group=18, subnet="172.21.0.0/16", gateway="172.21.0.1", internal=True),
    },
    names=(
        LocalName(network_id="br", address="172.20.0.2", names=("db", "0123456789ab", "pg")),
        LocalName(network_id="br", address="172.20.0.3", names=("db2", "pg")),
        LocalName(network_id="bridge", address="172.17.0.2", names=("hidden",)),
    ),
)
WORLD = snapshot(
    net(1),
    net(2),
    net(3, internal=True),
    net(9, ingress=True),
    service("web", 1, "10.0.1.2", "www", "shop.example.com"),
    task("web", 1, 1, "10.0.1.11"),
    task("web", 2, 1, "10.0.1.12", serving=False),
    service("api", 1),
    task("api", 1, 1, "10.0.1.21"),
    task("api", 2, 1, "10.0.1.22"),
    service("idle", 1),
    service("app", 2, "10.0.2.2"),
    task("app", 1, 2, "10.0.2.11"),
    service("web", 9, "10.0.9.2"),
    box(1, "10.0.1.31", "one", "twin", "my.box"),
    box(1, "10.0.1.32", "two", "twin"),
    box(2, "10.0.2.31", "far", "far.example.org"),
    service("safe", 3, "10.0.3.2"),
)
TABLES = tables(WORLD, LOCAL)


def ask(name: str, *networks: str, own: tuple[str, ...] = (), **resolving: Any) -> Any:
    found = look_up(TABLES, view_of(networks, Resolving(**resolving), own), plain(name))
    return (found.pointer or sorted(found.addresses)) if isinstance(found, Answer) else found


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("web", ["10.0.1.2"]),
        ("WEB.", ["10.0.1.2"]),
        ("www", ["10.0.1.2"]),
        ("shop.example.com", ["10.0.1.2"]),
        ("web.net1", ["10.0.1.2"]),
        ("web.NET1", ["10.0.1.2"]),
        ("tasks.web", ["10.0.1.11"]),
        ("tasks.www", ["10.0.1.11"]),
        ("tasks.web.net1", ["10.0.1.11"]),
        ("api", ["10.0.1.21", "10.0.1.22"]),
        ("1.web", ["10.0.1.11"]),
        (f"web.1.{ID}", ["10.0.1.11"]),
        (f"web.1.{ID}.net1", ["10.0.1.11"]),
        ("twin", ["10.0.1.31", "10.0.1.32"]),
        ("my.box", ["10.0.1.31"]),
        # what does not serve, is elsewhere or has gone is not asked of others
        ("2.web", MISSING),
        ("7.web", MISSING),
        (f"web.7.{ID}", MISSING),
        (f"{ID}.web", MISSING),
        ("idle", MISSING),
        ("app", MISSING),
        ("1.app", MISSING),
        ("app.net2", MISSING),
        ("tasks.app", MISSING),
        ("tasks.none", MISSING),
        ("tasks.none.net2", MISSING),
        ("far", MISSING),
        ("db", MISSING),
        ("db.mine", MISSING),
        # what is not of our making is, whatever it is like
        ("far.example.org", FORWARD),
        ("example.app", FORWARD),
        ("www.example.app", FORWARD),
        ("tasks.google.com", FORWARD),
        ("unknown", FORWARD),
        ("unknown.net1", FORWARD),
        ("hidden", FORWARD),
        ("", FORWARD),
        (".", FORWARD),
        ("..", FORWARD),
    ],
)
def test_a_container_on_one_network(name: str, meaning: Any) -> None:
    assert ask(name, "n1") == meaning


def test_several_networks_are_asked_in_order_and_ingress_last() -> None:
    assert ask("web", "n9", "n1") == ["10.0.1.2"] and ask("web", "n9") == ["10.0.9.2"]
    assert ask("app", "n1", "n2") == ask("app.net2", "n1", "n2") == ["10.0.2.2"]
    assert ask("web.net9", "n9", "n1") == ["10.0.9.2"]


def test_bridges() -> None:
    assert ask("db", "br") == ask("db.mine", "br") == ["172.20.0.2"]
    assert ask("pg", "br") == ["172.20.0.2", "172.20.0.3"]
    assert ask("hidden", "bridge") is FORWARD
    assert ask("web", "br") is MISSING


def test_internal_networks_ask_nobody_but_servers_of_the_container_s_own() -> None:
    assert ask("safe", "n3") == ["10.0.3.2"]
    assert ask("example.org", "n3") is ask("example.org", "shut", "n3") is MISSING
    assert ask("example.org", "n3", "n1") is ask("example.org", "n3", "unknown") is FORWARD
    assert ask("example.org", "n3", servers=("10.0.3.9",)) is FORWARD
    assert ask("1.2.0.192.in-addr.arpa", "n3") is MISSING


def test_own_names_mean_the_address_on_the_network_asked_about() -> None:
    own = {"own": ("10.0.2.50", "10.0.1.50"), "own_names": ("Me.1.x", "twin")}
    assert ask("me.1.x", "n1", "n2", **own) == ["10.0.1.50"]
    assert ask("me.1.x", "n2", "n1", **own) == ["10.0.2.50"]
    assert ask("me.1.x.net2", "n1", "n2", **own) == ["10.0.2.50"]
    assert ask("twin", "n1", **own) == ["10.0.1.31", "10.0.1.32", "10.0.1.50"]
    assert ask("50.1.0.10.in-addr.arpa", "n1", **own) == "Me.1.x.Net1"
    # the network is not told yet: by place
    assert ask("me.1.x", "new", own=("10.9.0.5",), own_names=("me.1.x",)) == ["10.9.0.5"]
    assert ask("me.1.x", "new", own=(), own_names=("me.1.x",)) is FORWARD


def test_an_own_alias_means_something_on_its_own_network_only() -> None:
    own = {"own": ("10.0.1.50", "10.0.2.50"), "own_names": ("me",), "aliases": {"n2": ("Web", "other")}}
    assert ask("other", "n1", "n2", **own) == ["10.0.2.50"]
    assert ask("web", "n1", "n2", **own) == ["10.0.1.2"], "the service of the other network, and never itself"
    assert ask("web", "n2", "n1", **own) == ["10.0.2.50"]
    assert ask("me", "n1", "n2", **own) == ["10.0.1.50"]


def test_own_names_mean_nothing_on_the_predefined_bridge_while_they_do_elsewhere() -> None:
    own = {"own": ("172.17.0.3", "10.0.1.50"), "own_names": ("me",), "aliases": {"n1": ("one",)}}
    assert ask("me", "bridge", "n1", **own) == ["10.0.1.50"] == ask("me.net1", "bridge", "n1", **own)
    assert ask("me", "bridge", own=("172.17.0.3",), own_names=("me",)) == ["172.17.0.3"]


def test_links_come_first() -> None:
    assert ask("web", "n1", links={"Web": "1.2.3.4"}) == ["1.2.3.4"]
    assert ask("4.3.2.1.in-addr.arpa", "n1", links={"x": "1.2.3.4"}) == "x"


def test_a_link_to_a_name_means_what_that_means_now() -> None:
    assert ask("mine", "n1", links={"mine": "web"}) == ask("web", "n1") != Fate.MISSING
    assert ask("mine", "n1", links={"mine": "nosuch"}) == Fate.MISSING


@pytest.mark.parametrize(
    ("address", "meaning"),
    [
        ("10.0.1.2", "web.Net1"),
        ("10.0.1.11", f"web.1.{ID}.Net1"),
        ("10.0.1.31", "one.Net1"),
        ("10.0.1.12", MISSING),
        ("10.0.1.200", MISSING),
        ("10.0.2.11", MISSING),
        ("172.20.0.2", MISSING),
        ("192.0.2.1", FORWARD),
    ],
)
def test_reverse(address: str, meaning: Any) -> None:
    assert ask(".".join(reversed(address.split("."))) + ".in-addr.arpa", "n1") == meaning


def test_what_is_no_address_in_reverse_is_a_name_like_any_other() -> None:
    for name in ("1.0.10.in-addr.arpa", "256.1.0.10.in-addr.arpa", "x.1.0.10.in-addr.arpa", "²2.1.0.10.in-addr.arpa", "in-addr.arpa"):
        assert ask(name, "n1") is FORWARD


def test_local_names_of_a_cluster_s_network() -> None:
    local = LocalState(names=(LocalName(network_id="n1", address="10.0.1.77", names=("soon",)),))
    both = tables(WORLD, local)
    assert look_up(both, view_of(("n1",), Resolving(), ()), "soon") == Answer(("10.0.1.77",))


def test_a_task_s_host_name_means_it_while_nobody_else_has_that_name() -> None:
    def named(slot: int, hostname: str, **more: Any) -> EndpointItem:
        return msgspec.structs.replace(task("mq", slot, 1, f"10.0.1.{40 + slot}", **more), hostname=hostname)

    mq = [named(1, "Rabbit-1"), named(2, "rabbit-2", serving=False), named(3, "web"), named(4, "db.example.org"), named(5, "mq")]
    facts = Facts()

    def meaning(name: str, network: str = "n1") -> Any:
        found = look_up(facts.tables, view_of((network,), Resolving(), ()), name)
        return sorted(found.addresses) if isinstance(found, Answer) else found

    facts.change([*told(WORLD).values(), service("mq", 1, "10.0.1.40"), *mq])
    assert (meaning("rabbit-1"), meaning("rabbit-1.net1"), meaning("rabbit-2")) == (["10.0.1.41"], ["10.0.1.41"], MISSING)
    assert (meaning("web"), meaning("mq"), meaning("tasks.web")) == (["10.0.1.2"], ["10.0.1.40"], ["10.0.1.11"])
    assert (meaning("db.example.org"), meaning("db.example.org", "n2"), meaning("rabbit-1", "n2")) == (["10.0.1.44"], FORWARD, MISSING)
    facts.change([], [item.key for item in told(WORLD).values() if isinstance(item, DiscoveryItem) and item.name == "web"])
    assert meaning("web") == ["10.0.1.43"]
    facts.change([named(1, "other"), named(4, "")])
    assert (meaning("rabbit-1"), meaning("other"), meaning("db.example.org")) == (FORWARD, ["10.0.1.41"], FORWARD)
    facts.change([], [item.key for item in mq])
    assert (meaning("web"), meaning("other")) == (FORWARD, FORWARD)


# -- any world

words = st.sampled_from(["a", "b", "c.d", "tasks.a", "1.a", "n0", ""])
numbers = st.integers(0, 2)
addresses = st.builds(lambda n, i: f"10.0.{n}.{i}", numbers, st.integers(2, 6))
networks = st.builds(net, numbers, internal=st.booleans(), ingress=st.booleans())
services = st.builds(
    lambda name, n, vip, aliases: DiscoveryItem(service_id=name, network_id=f"n{n}", name=name, vip=vip, aliases=tuple(aliases)),
    st.sampled_from(["a", "b"]),
    numbers,
    st.sampled_from(["", "10.0.0.9"]),
    st.lists(words, max_size=2),
)
endpoints = st.builds(
    lambda id, service, n, address, serving, names, hostname: EndpointItem(
        task_id=str(id),
        service_id=service,
        network_id=f"n{n}",
        node_id="x",
        address=address,
        serving=serving,
        names=tuple(names),
        hostname=hostname,
    ),
    st.integers(0, 4),
    st.sampled_from(["", "a", "b"]),
    numbers,
    addresses,
    st.booleans(),
    st.lists(words, max_size=3),
    words,
)
snapshots = st.lists(st.one_of(networks, services, endpoints), max_size=14).map(lambda items: snapshot(*items))
locals_ = st.builds(
    lambda names, wide: LocalState(
        networks={"n2": LocalNetwork(id="n2", group=20, subnet="10.0.2.0/24", gateway="10.0.2.1", name="n2", resolves=wide)},
        names=tuple(LocalName(network_id=f"n{n}", address=a, names=tuple(w)) for n, a, w in names),
    ),
    st.lists(st.tuples(numbers, addresses, st.lists(words, max_size=2)), max_size=3),
    st.booleans(),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(snapshots, locals_), min_size=1, max_size=5))
def test_changes_one_by_one_lead_where_the_whole_leads(steps: list[Snapshot | LocalState]) -> None:
    facts, before, state = Facts(), Snapshot(), LocalState()
    for step in steps:
        tables_before = contents(facts.tables)
        if isinstance(step, LocalState):
            touched, state = facts.change_local(step), step
        else:
            old, new = told(before), told(step)
            put = [item for key, item in new.items() if old.get(key) != item]
            touched, before = facts.change(put, old.keys() - new.keys()), step
        now = contents(facts.tables)
        assert now == contents(tables(before, state))
        for id in now.keys() | tables_before.keys():
            assert id in touched or now.get(id) == tables_before.get(id)
        again = Facts()
        again.change(facts.items(), whole=True)
        again.change_local(state)
        assert contents(again.tables) == now
        facts.change(told(before).values(), whole=True)
        assert contents(facts.tables) == now


def contents(tables: Mapping[str, Table]) -> dict[str, Any]:
    return {id: table.contents() for id, table in tables.items()}


@settings(max_examples=300, deadline=None)
@given(snapshots, locals_, st.lists(st.sampled_from(["n0", "n1", "n2"]), unique=True), words, st.sampled_from(["", ".net1", ".n2"]))
def test_a_container_learns_addresses_of_what_serves_on_its_own_networks_only(
    snap: Snapshot, state: LocalState, mine: list[str], word: str, tail: str
) -> None:
    found = look_up(tables(snap, state), view_of(tuple(mine), Resolving(), ()), plain(word + tail))
    allowed = {e.address for e in snap.endpoints.values() if e.serving and e.network_id in mine}
    allowed |= {d.vip for d in snap.discovery.values() if d.network_id in mine}
    allowed |= {n.address for n in state.names if n.network_id in mine}
    if isinstance(found, Answer):
        assert found.addresses and set(found.addresses) <= allowed
    if found is FORWARD:
        told_names = {plain(d.name) for d in snap.discovery.values()} | {plain(n) for d in snap.discovery.values() for n in d.aliases}
        silent = {id for id, n in state.networks.items() if not n.resolves and not any(i.network.id == id for i in snap.networks.values())}
        of_others = {plain(d.name) for d in snap.discovery.values() if d.network_id not in silent}
        assert plain(word + tail) not in (told_names & of_others)


def test_snapshots_travel_as_they_are() -> None:
    items = tuple(told(WORLD).values())
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(items), type=tuple[NetworkItem | EndpointItem | DiscoveryItem, ...]) == items
