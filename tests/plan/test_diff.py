"""Changes played on a model of the kernel: what is wanted is what is there, whatever was there before, and every step is one it accepts."""

from __future__ import annotations

import random
import re

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from test_desired import HERE, INGRESS, OVERLAY, discovery, endpoint, peer, place, snap, web

from skep.datapath.base import Snapshot
from skep.datapath.desired import MTU_OPTION, LocalPort, Wanted, desired
from skep.datapath.diff import FIXED_CHAINS, SETS, Change, diff, key
from skep.datapath.facts import HOST, MAIN, ROUTER, Address, Chain, Element, Fact, Forwarding, Group, Neighbour, Route, Rule, Vxlan
from skep.datapath.repair import dead_in, rule_facts, sentences
from skep.datapath.rules import marks
from skep.datapath.ruleset import ChainSeen, TableSeen
from skep.model.spec import PortConfig

T = "skep_t"


class Model:
    """Accepts what a kernel accepts, in the order given, and refuses the rest by an assertion."""

    def __init__(self, links: set[str]) -> None:
        self.links = {"lo", *links}
        self.facts: dict[tuple[object, ...], Fact] = {}
        self.sets: dict[str, dict[str, dict[str, str]]] = {w: {n: {} for n in names} for w, names in SETS.items()}
        self.sets[ROUTER]["dead"] = {}
        self.chains: dict[str, dict[str, list[str]]] = {ROUTER: {"ports": []}, HOST: {}}

    def play(self, change: Change) -> None:
        for v in change.replace:
            self._drop_link(v.link)
        for v in change.resize:
            assert v.link in self.links and self.facts[key(v)] != v
            self.facts[key(v)] = v
        for fact in change.add:
            if isinstance(fact, Vxlan):
                assert fact.link not in self.links
                self.links.add(fact.link)
            elif not isinstance(fact, Rule):
                assert fact.link in self.links, f"{fact} before its link"
            if not isinstance(fact, Group):
                self.facts[key(fact)] = fact
        self._nft(ROUTER, change.router)
        self._nft(HOST, change.host)
        for fact in change.remove:
            if isinstance(fact, Vxlan):
                self._drop_link(fact.link)
            else:
                assert self.facts.pop(key(fact)) == fact

    def _drop_link(self, link: str) -> None:
        self.links.remove(link)
        self.facts = {k: f for k, f in self.facts.items() if getattr(f, "link", "") != link}

    def _nft(self, where: str, script: str) -> None:
        sets, chains = self.sets[where], self.chains[where]
        for line in script.splitlines():
            words = line.split(maxsplit=5)
            assert words[2:4] == ["ip", T], line
            verb, name = " ".join(words[:2]), words[4]
            rest = words[5] if len(words) > 5 else ""
            if verb == "add chain":
                chains.setdefault(name, [])
            elif verb == "flush chain":
                chains[name].clear()
            elif verb == "delete chain":
                assert name not in FIXED_CHAINS and not chains.pop(name)
                used = [e for s in sets.values() for e in s.values() if e == f"goto {name}"]
                assert not used, f"{name} is still in use"
            elif verb == "add rule":
                chains[name].append(rest)
            else:
                for item in re.sub(r'[{}"]', "", rest).split(","):
                    k, _, value = (p.strip() for p in item.partition(" : "))
                    if verb == "add element":
                        assert name == "dead" or k not in sets[name], f"{k} is there"
                        assert not value.startswith("goto") or value[5:] in chains, f"{value}: no such chain"
                        sets[name][k] = value
                    else:
                        assert verb == "delete element"
                        del sets[name][k]

    def state(self) -> set[Fact]:
        out = set(self.facts.values())
        for where, sets in self.sets.items():
            out |= {Element(where, n, k, v) for n, s in sets.items() if n != "dead" for k, v in s.items()}
            out |= {Chain(where, n, tuple(_unmarked(line)[0] for line in b)) for n, b in self.chains[where].items() if b}
        return out

    def seen(self, where: str) -> TableSeen:
        """As skep.datapath.ruleset reads it."""
        chains = {n: ChainSeen(n, b"", (), tuple(_unmarked(line)[1] for line in b)) for n, b in self.chains[where].items()}
        return TableSeen(chains, {}, frozenset((n, k, v) for n, s in self.sets[where].items() for k, v in s.items()))

    def found(self, wanted: Wanted) -> tuple[Wanted, set[str]]:
        """As skep.datapath.inspection finds it."""
        facts = set(self.facts.values())
        for where in (ROUTER, HOST):
            facts |= rule_facts(self.seen(where), where, wanted)
        present = {f.destination for f in facts if isinstance(f, Route) and f.table == MAIN and not f.destination.startswith("169.254.")}
        return Wanted(frozenset(facts), frozenset(present)), dead_in(self.seen(ROUTER))


def _unmarked(line: str) -> tuple[str, str]:
    rule, _, mark = line.partition(' comment "')
    return rule, mark.rstrip('"')


def kernel_facts(wanted: Wanted) -> set[Fact]:
    return {f for f in wanted.facts if not isinstance(f, Group)}


ADDRESSES = [f"10.0.{n}.{i}" for n in (0, 1) for i in range(2, 7)]
PORTS = [PortConfig(protocol=k, target_port=t, published_port=p) for k in ("tcp", "udp") for t, p in ((80, 8080), (81, 8081), (82, 8080))]


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Snapshot, tuple[str, ...], tuple[LocalPort, ...]]:
    import msgspec

    chosen = draw(st.lists(st.sampled_from(ADDRESSES), unique=True))
    endpoints = tuple(
        endpoint(
            draw(st.sampled_from(["n1", "n2", "n3"])),
            a,
            service=draw(st.sampled_from(["web", "other"])),
            network="ingress" if a.startswith("10.0.0.") else "net1",
            serving=draw(st.booleans()),
        )
        for a in chosen
    )
    ports = draw(st.lists(st.sampled_from(PORTS), unique_by=lambda p: (p.protocol, p.published_port)))
    width = draw(st.sampled_from([{}, {MTU_OPTION: "1200"}]))
    items = draw(st.sampled_from([(INGRESS,), (INGRESS, OVERLAY), (OVERLAY,), ()]))
    networks = tuple(msgspec.structs.replace(n, network=msgspec.structs.replace(n.network, options=width)) for n in items)
    peers = draw(st.sampled_from([(), (peer(1),), (peer(1), peer(2)), (peer(1), peer(2), peer(3)), (peer(2),)]))
    known = draw(st.lists(st.sampled_from([discovery("web"), discovery("web", "10.0.1.200", network="net1"), discovery("other", "")])))
    snapshot = snap(networks, peers, endpoints, (web(*ports),), tuple(known))
    snapshot = msgspec.structs.replace(snapshot, data_path_port=draw(st.sampled_from([4789, 7789])))
    local = tuple(e.address for e in endpoints if e.node_id == "n1" and draw(st.booleans()))
    mine = draw(st.sampled_from([(), (LocalPort(sandbox_id="s", protocol="tcp", port=9000, address="10.0.0.2", target=80),)]))
    return snapshot, local, mine


def wanted_of(world: tuple[Snapshot, tuple[str, ...], tuple[LocalPort, ...]]) -> Wanted:
    snapshot, local, ports = world
    places = [place(a, "ingress" if a.startswith("10.0.0.") else "net1") for a in local]
    return desired(snapshot, HERE, places, ports)


@settings(max_examples=300, deadline=None)
@given(st.lists(worlds(), min_size=1, max_size=6))
def test_whatever_comes_after_whatever_the_kernel_ends_with_what_is_wanted(
    several: list[tuple[Snapshot, tuple[str, ...], tuple[LocalPort, ...]]],
) -> None:
    model = Model({f"v-{a[-3:]}" for a in ADDRESSES})
    applied = Wanted()
    dead: set[str] = set()
    for world in several:
        wanted = wanted_of(world)
        model.play(diff(applied, wanted, T, dead=dead))
        assert model.state() == kernel_facts(wanted)
        dead = (dead | applied.present) - wanted.present
        assert set(model.sets[ROUTER]["dead"]) == dead
        assert diff(wanted, wanted, T).empty
        applied = wanted


@settings(max_examples=300, deadline=None)
@given(worlds(), worlds(), st.randoms(use_true_random=False))
def test_whatever_was_done_to_the_kernel_it_ends_with_what_is_wanted(
    before: tuple[Snapshot, tuple[str, ...], tuple[LocalPort, ...]],
    after: tuple[Snapshot, tuple[str, ...], tuple[LocalPort, ...]],
    rng: random.Random,
) -> None:
    """Also after a restart: everything is read back, nft's rules too; and who reads that all is well does nothing."""
    model = Model({f"v-{a[-3:]}" for a in ADDRESSES})
    old, new = wanted_of(before), wanted_of(after)
    model.play(diff(Wanted(), old, T))
    found, dead = model.found(old)
    assert {f for f in found.facts if not isinstance(f, Group)} == kernel_facts(old)
    assert diff(found, msgspec.structs.replace(old, present=found.present), T, dead=dead).remove == ()
    assert sentences(found, Wanted(frozenset(kernel_facts(old)))) == []
    damage(model, rng)
    found, dead = model.found(new)
    groups = frozenset(f for f in new.facts if isinstance(f, Group))
    found = msgspec.structs.replace(found, facts=found.facts | groups)
    said = sentences(found, new)
    assert bool(said) == (found.facts != new.facts)
    model.play(diff(found, new, T, dead=dead))
    assert model.state() == kernel_facts(new)


def damage(model: Model, rng: random.Random) -> None:
    """Someone deletes and adds things, empties a chain, writes another rule."""
    for k in [k for k in model.facts if rng.random() < 0.2 and not isinstance(model.facts[k], Vxlan)]:
        del model.facts[k]
    for where in (ROUTER, HOST):
        for elements in model.sets[where].values():
            for k in [k for k in elements if rng.random() < 0.2]:
                del elements[k]
        for body in model.chains[where].values():
            if rng.random() < 0.2:
                body.clear()
            elif rng.random() < 0.2:
                body.append("accept")
        if rng.random() < 0.3:
            model.sets[where]["pub"]["tcp . 7"] = "" if where == HOST else "goto p_tcp_7"
            model.chains[where]["p_tcp_7"] = ["accept"]


def test_a_backend_is_out_of_the_map_before_its_route_goes() -> None:
    def state(*endpoints: object) -> Wanted:
        return desired(snap(endpoints=endpoints, services=(web(),)), HERE, (), ())  # type: ignore[arg-type]

    change = diff(state(endpoint("n2", "10.0.0.5"), endpoint("n2", "10.0.0.6")), state(endpoint("n2", "10.0.0.5")), T)
    body = "meta l4proto tcp dnat to 10.0.0.5:80"
    assert change.add == () and change.host == ""
    assert change.router.splitlines() == [
        "add chain ip skep_t p_tcp_8080",
        "flush chain ip skep_t p_tcp_8080",
        f'add rule ip skep_t p_tcp_8080 {body} comment "{marks((body,))[0]}"',
        "add element ip skep_t dead { 10.0.0.6 }",
    ]
    assert change.remove == (Route(MAIN, "10.0.0.6", "169.254.0.2", "vx4096"),)


def test_a_route_that_moves_is_replaced_not_removed() -> None:
    def state(node: str) -> Wanted:
        return desired(snap(peers=(peer(1), peer(2), peer(3)), endpoints=(endpoint(node, "10.0.0.6"),)), HERE, (), ())

    change = diff(state("n2"), state("n3"), T)
    assert change == Change(add=(Route(MAIN, "10.0.0.6", "169.254.0.3", "vx4096"),))


def test_a_device_with_other_settings_is_made_anew_with_all_that_hung_on_it() -> None:
    def state(port: int) -> Wanted:
        import msgspec

        return desired(msgspec.structs.replace(snap(endpoints=(endpoint("n2", "10.0.0.6"),)), data_path_port=port), HERE, (), ())

    change = diff(state(4789), state(7789), T)
    assert [v.port for v in change.replace] == [4789]
    kinds = [type(f) for f in change.add]
    assert kinds[0] is Vxlan and {Address, Neighbour, Forwarding, Route} <= set(kinds)
    assert change.remove == () and change.router == "" and change.host == ""


def test_a_device_that_is_to_be_narrower_or_wider_stays_with_all_that_hangs_on_it() -> None:
    def state(mtu: int) -> Wanted:
        return desired(snap(endpoints=(endpoint("n2", "10.0.0.6"),)), msgspec.structs.replace(HERE, mtu=mtu), (), ())

    for before, after in ((1500, 1400), (1400, 1500)):
        change = diff(state(before), state(after), T)
        assert [(v.link, v.mtu) for v in change.resize] == [("vx4096", after - 50)]
        assert change == Change(resize=change.resize)
