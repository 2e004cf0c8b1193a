"""The resolver's process in real namespaces: what is asked inside a container, over UDP and TCP, while it lives, dies and is replaced."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import dnslib
import pytest
from names_world import BASE, NamesWorld, ask, based, boxed, found, local, named, network, send, service, snapshot, task, until
from netlab import within

from skep.datapath.base import LocalNetwork

pytestmark = pytest.mark.root


@pytest.fixture
def world() -> Iterator[NamesWorld]:
    with based() as it:
        yield it


@pytest.fixture
def box(world: NamesWorld) -> Path:
    return boxed(world)


@pytest.mark.parametrize("tcp", [False, True])
def test_names_of_the_cluster(world: NamesWorld, box: Path, tcp: bool) -> None:
    elsewhere = world.elsewhere(named)
    for name, addresses in {
        "web": ["10.0.1.2"],
        "WeB.": ["10.0.1.2"],
        "www": ["10.0.1.2"],
        "www.example.com": ["10.0.1.2"],
        "web.net1": ["10.0.1.2"],
        "tasks.web": ["10.0.1.11", "10.0.1.12"],
        "tasks.www": ["10.0.1.11", "10.0.1.12"],
        "api": ["10.0.1.21", "10.0.1.22"],
        "1.web": ["10.0.1.11"],
        "web.2.web2x1": ["10.0.1.12"],
        "box": ["10.0.1.31"],
        "0123456789ab": ["10.0.1.31"],
        "3.api": ["NXDOMAIN"],
        "secret": ["NXDOMAIN"],
        "1.secret": ["NXDOMAIN"],
        "secret.net2": ["NXDOMAIN"],
        "tasks.secret": ["NXDOMAIN"],
        "tasks.nobody": ["NXDOMAIN"],
    }.items():
        assert found(box, name, tcp=tcp) == addresses, name
    for name in ("web", "api", "box", "tasks.web"):
        for kind in ("AAAA", "TXT", "MX", "SRV"):
            assert found(box, name, kind, tcp=tcp) == [], (name, kind)
    assert elsewhere.asked == [], "what is the cluster's is not told to others"


def test_the_answer_as_a_message(box: Path) -> None:
    answer = ask(box, "wEb")
    assert str(answer.q.qname) == "wEb." and [r.ttl for r in answer.rr] == [0]
    assert (answer.header.aa, answer.header.ra, answer.header.rd, answer.header.tc, answer.header.qr) == (1, 1, 1, 0, 1)
    assert not answer.ar and [r.rtype for r in ask(box, "web", size=1232).ar] == [dnslib.QTYPE.OPT]


def test_reverse(world: NamesWorld, box: Path) -> None:
    elsewhere = world.elsewhere(named)
    for address, name in {
        "10.0.1.2": "web.net1",
        "10.0.1.11": "web.1.web1x1.net1",
        "10.0.1.31": "box.net1",
        "10.0.1.23": "NXDOMAIN",
        "10.0.1.99": "NXDOMAIN",
        "10.0.2.11": "NXDOMAIN",
    }.items():
        assert found(box, ".".join(reversed(address.split("."))) + ".in-addr.arpa", "PTR") == [name]
    assert elsewhere.asked == []
    assert found(box, "1.2.0.192.in-addr.arpa", "PTR") == ["NXDOMAIN"]
    assert elsewhere.asked == ["1.2.0.192.in-addr.arpa"]


def test_the_order_of_several_addresses_varies(box: Path) -> None:
    first = {str(ask(box, "tasks.web").rr[0].rdata) for _ in range(60)}
    assert first == {"10.0.1.11", "10.0.1.12"}


def test_own_names_and_links_resolve_before_anybody_announces_them(world: NamesWorld) -> None:
    path = world.sandbox("two", "10.0.1.40", "10.0.2.40")
    world.serve(path, "net2id", "net1id", own_names=("web.9.new", "9.web"), links={"db": "10.0.1.77"})
    assert found(path, "9.web") == ["10.0.2.40"]
    assert found(path, "9.web.net1") == ["10.0.1.40"]
    assert found(path, "db") == ["10.0.1.77"]
    assert found(path, "40.1.0.10.in-addr.arpa", "PTR") == ["web.9.new.net1"]
    assert found(path, "secret") == ["10.0.2.2"] and found(path, "web") == ["10.0.1.2"]
    world.loop.run(world.names.withdraw("two", "net2id"))
    assert found(path, "secret") == ["NXDOMAIN"] and found(path, "9.web") == ["10.0.1.40"]


def test_bridges_of_the_node(world: NamesWorld) -> None:
    path = world.sandbox("local", "172.20.0.2")
    world.serve(path, "br1", "bridge")
    plain = LocalNetwork(id="bridge", group=16, subnet="172.17.0.0/16", gateway="172.17.0.1", resolves=False, name="bridge")
    user = LocalNetwork(id="br1", group=17, subnet="172.20.0.0/16", gateway="172.20.0.1", name="mine")
    state = local(("br1", "172.20.0.3", ("db", "abc")), ("bridge", "172.17.0.3", ("hidden",)), networks=(plain, user))
    world.loop.run(world.names.apply_local(state))
    elsewhere = world.elsewhere(named)
    assert found(path, "db") == found(path, "abc") == found(path, "db.mine") == ["172.20.0.3"]
    assert found(path, "3.0.20.172.in-addr.arpa", "PTR") == ["db.mine"]
    assert elsewhere.asked == []
    assert found(path, "hidden") == ["NXDOMAIN"] and elsewhere.asked == ["hidden"], "on the predefined bridge there are no names"


def test_a_change_is_answered_at_once(world: NamesWorld, box: Path) -> None:
    times = []
    for i in range(20):
        address = f"10.0.1.{100 + i}"
        assert address not in found(box, "tasks.web")
        begun = time.monotonic()
        world.loop.run(world.names.apply(snapshot(*BASE, task("web", 3, 1, address))))
        assert found(box, "tasks.web") == sorted(["10.0.1.11", "10.0.1.12", address])
        times.append(time.monotonic() - begun)
        world.loop.run(world.names.apply(snapshot(*BASE)))
        assert found(box, "3.web") == ["NXDOMAIN"]
    assert sorted(times)[10] < 0.1


def test_a_long_answer_is_cut_over_udp_and_whole_over_tcp(world: NamesWorld, box: Path) -> None:
    many = [task("big", i, 1, f"10.0.{1 + i // 200}.{i % 200}") for i in range(1, 1001)]
    world.loop.run(world.names.apply(snapshot(*BASE, service("big", 1), *many)))
    plain, large = ask(box, "big"), ask(box, "big", size=1232)
    assert plain.header.tc and len(plain.pack()) <= 512 and len(plain.rr) == 30
    assert large.header.tc and 60 < len(large.rr) < 77
    whole = ask(box, "big", tcp=True)
    assert not whole.header.tc and len({str(r.rdata) for r in whole.rr}) == 1000


# -- other servers


def test_what_is_not_known_is_asked_elsewhere(world: NamesWorld, box: Path) -> None:
    elsewhere = world.elsewhere(named)
    for tcp in (False, True):
        assert found(box, "example.org", tcp=tcp) == ["192.0.2.1"]
        assert found(box, "nothing.org", tcp=tcp) == ["NXDOMAIN"]
        assert found(box, "broken.org", tcp=tcp) == ["SERVFAIL"]
        assert found(box, "single", tcp=tcp) == ["NXDOMAIN"]
    assert {"example.org", "nothing.org", "broken.org", "single"} == set(elsewhere.asked)
    assert ask(box, "big.org").header.tc, "the client comes again by TCP"
    assert len(ask(box, "big.org", tcp=True).rr) == 100
    assert ask(box, "example.org").rr[0].ttl == 60


def test_a_silent_server_is_passed_over_and_the_file_is_read_again(world: NamesWorld, box: Path) -> None:
    silent = world.elsewhere(lambda q: None, address="127.0.0.2")
    world.elsewhere(named)
    world.resolvers.write_text("# two\nnameserver 127.0.0.2 # silent\nnameserver 127.0.0.1\n")
    assert found(box, "example.org") == ["192.0.2.1"]
    assert silent.asked == ["example.org"]
    begun = time.monotonic()
    assert found(box, "example.org") == ["192.0.2.1"]
    assert time.monotonic() - begun < 1, "the one that was silent is asked last now"
    world.resolvers.write_text("")
    assert found(box, "example.org") == ["SERVFAIL"]


def test_a_container_s_own_servers_are_asked_from_inside_it(world: NamesWorld, box: Path) -> None:
    node = world.elsewhere(named)
    inside = world.elsewhere(named, box)
    world.serve(box, "net1id", servers=("127.0.0.1",))
    assert found(box, "example.org") == ["192.0.2.1"], "a container may have a DNS server of its own on port 53"
    assert (inside.asked, node.asked) == (["example.org"], [])


def test_internal_networks_know_nothing_of_the_world(world: NamesWorld) -> None:
    elsewhere = world.elsewhere(named)
    world.loop.run(world.names.apply(snapshot(*BASE, network(3, internal=True), service("in", 3, "10.0.3.2"))))
    path, both = world.sandbox("in", "10.0.3.9"), world.sandbox("both", "10.0.3.8", "10.0.1.8")
    world.serve(path, "net3id")
    world.serve(both, "net3id", "net1id")
    assert found(path, "in") == ["10.0.3.2"] and found(path, "example.org") == ["NXDOMAIN"]
    assert elsewhere.asked == []
    assert found(both, "example.org") == ["192.0.2.1"]


def test_many_questions_at_once_are_bounded(world: NamesWorld, box: Path) -> None:
    world.elsewhere(lambda q: None)

    def call() -> dict[str, int]:
        codes: dict[str, int] = {}
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.settimeout(1)
            s.connect(("127.0.0.11", 53))
            for i in range(200):
                s.send(dnslib.DNSRecord.question(f"n{i}.org").pack())
            s.send(dnslib.DNSRecord.question("web").pack())
            try:
                while True:
                    answer = dnslib.DNSRecord.parse(s.recv(4096))
                    word = dnslib.RCODE[answer.header.rcode]
                    codes[word] = codes.get(word, 0) + 1
            except TimeoutError:
                return codes

    assert within(box, call) == {"SERVFAIL": 200 - 128, "NOERROR": 1}


def test_servers_that_lead_back_to_us_are_not_asked(world: NamesWorld, box: Path) -> None:
    """Each question would come back as another, a hundred deep and again and again."""
    world.elsewhere(named)
    inside = world.elsewhere(named, box)
    world.serve(box, "net1id", servers=("127.0.0.11", "::ffff:127.0.0.11"))
    for tcp in (False, True):
        begun = time.monotonic()
        assert found(box, "example.org", tcp=tcp) == ["SERVFAIL"]
        assert time.monotonic() - begun < 1, "at once, not when the last of them has given up"
    world.serve(box, "net1id", servers=("127.0.0.11", "127.0.0.1"))
    assert found(box, "example.org") == ["192.0.2.1"] and inside.asked == ["example.org"]


def test_who_asks_much_keeps_nobody_else_from_asking(world: NamesWorld, box: Path) -> None:
    """Nine containers with all that each may have waiting are more than the process holds; the tenth is answered."""
    world.elsewhere(lambda q: named(q) if str(q.q.qname) == "example.org." else None)

    def flood() -> socket.socket:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.connect(("127.0.0.11", 53))
        for i in range(140):
            s.send(dnslib.DNSRecord.question(f"n{i}.org").pack())
        return s

    paths = [world.sandbox(f"flood{number}", f"10.0.1.{100 + number}") for number in range(9)]
    for path in paths:
        world.serve(path, "net1id")
    held = [within(path, flood) for path in paths]
    try:
        for s in held:
            s.settimeout(5)
            assert s.recv(512)[3] & 15 == 2, "SERVFAIL: it has all it may have"
        assert found(box, "example.org") == ["192.0.2.1"]
        assert found(box, "example.org", tcp=True) == ["192.0.2.1"]
    finally:
        for s in held:
            s.close()


# -- what is sent by mistake or by malice


def test_nonsense_ends_nothing(world: NamesWorld, box: Path) -> None:
    good = dnslib.DNSRecord.question("web").pack()
    silent = [b"", b"x", good[:11], dnslib.DNSRecord.question("web").reply().pack(), os.urandom(5000)]

    def call() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.connect(("127.0.0.11", 53))
            for data in (*silent, *(os.urandom(40) for _ in range(200)), *(good[:i] for i in range(12, len(good)))):
                s.send(data)
        for data in (b"", b"\0", b"\0\0", b"\xff\xff", b"\0\x05hello", (len(good)).to_bytes(2, "big") + good[:5]):
            with socket.create_connection(("127.0.0.11", 53)) as s:
                s.sendall(data)

    pid = world.pid
    within(box, call)
    assert send(box, good[:12])[3] & 15 == 1, "FORMERR"
    assert found(box, "web") == found(box, "web", tcp=True) == ["10.0.1.2"]
    assert world.pid == pid


def test_idle_connections_do_not_keep_others_out_nor_a_removed_container_alive(world: NamesWorld, box: Path) -> None:
    def hold() -> list[socket.socket]:
        return [socket.create_connection(("127.0.0.11", 53)) for _ in range(40)]

    other = world.sandbox("other", "10.0.1.50")
    world.serve(other, "net1id")
    before = len(os.listdir(f"/proc/{world.pid}/fd"))
    held = within(box, hold)
    try:
        until(lambda: len(os.listdir(f"/proc/{world.pid}/fd")) == before + 32)
        assert found(other, "web", tcp=True) == found(box, "web") == ["10.0.1.2"]
        world.loop.run(world.names.forget("box"))
        assert len(os.listdir(f"/proc/{world.pid}/fd")) == before - 2, "sockets of a removed container are closed"
    finally:
        for s in held:
            s.close()
