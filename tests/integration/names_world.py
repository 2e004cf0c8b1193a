"""Containers' namespaces, a resolver that serves them, and servers elsewhere: real sockets, questions and answers read by dnslib."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dnslib
from netlab import Loop, within

from skep.datapath import netlink, netns
from skep.datapath.base import LocalName, LocalNetwork, LocalState, Resolving, Sandbox, Snapshot
from skep.datapath.resolving import ResolverNames
from skep.model.assignment import DiscoveryItem, EndpointItem, NetworkItem
from skep.model.network import Network
from skep.model.spec import IPAMConfig, NetworkSpec

_numbers = itertools.count(1)
SERVER = ("127.0.0.11", 53)


class Elsewhere:
    """A server of other names on UDP and TCP port 53 of a namespace; `asked` is what it heard."""

    def __init__(self, path: Path, answer: Callable[[dnslib.DNSRecord], dnslib.DNSRecord | None], address: str = "127.0.0.1") -> None:
        self.asked: list[str] = []
        self._answer = answer
        self.udp, self.tcp = within(path, lambda: _bound(address))
        self._threads = [threading.Thread(target=call, daemon=True) for call in (self._udp_loop, self._tcp_loop)]
        for thread in self._threads:
            thread.start()

    def _reply(self, data: bytes) -> bytes:
        question = dnslib.DNSRecord.parse(data)
        self.asked.append(str(question.q.qname).rstrip("."))
        answer = self._answer(question)
        return answer.pack() if answer is not None else b""

    def _udp_loop(self) -> None:
        while True:
            try:
                data, peer = self.udp.recvfrom(4096)
            except OSError:
                return
            if not data:
                return
            out = self._reply(data)
            if len(out) > 512:
                short = dnslib.DNSRecord.parse(data).reply()
                short.header.tc = 1
                out = short.pack()
            if out:
                self.udp.sendto(out, peer)

    def _tcp_loop(self) -> None:
        while True:
            try:
                connection, _ = self.tcp.accept()
            except OSError:
                return
            with connection:
                size = int.from_bytes(connection.recv(2), "big")
                out = self._reply(connection.recv(size))
                connection.sendall(len(out).to_bytes(2, "big") + out)

    def close(self) -> None:
        for s in (self.udp, self.tcp):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            s.close()
        for thread in self._threads:
            thread.join(5)


def _bound(address: str) -> tuple[socket.socket, socket.socket]:
    udp, tcp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket()
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    udp.bind((address, 53))
    tcp.bind((address, 53))
    tcp.listen()
    return udp, tcp


class NamesWorld:
    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"skt{os.getpid()}-"))
        self.node = self.folder / "node"
        netns.make(self.node)
        within(self.node, lambda: _lay(""))
        self.resolvers = self.folder / "resolv.conf"
        self.resolvers.write_text("nameserver 127.0.0.1\n")
        self.loop = Loop(self.node)
        self.names = self.new_names()
        self.pins: list[Path] = []
        self.servers: list[Elsewhere] = []

    def new_names(self, **more: Any) -> ResolverNames:
        return ResolverNames(self.folder / "run", resolvers=self.resolvers, **more)

    def sandbox(self, name: str, *addresses: str) -> Path:
        path = self.folder / name
        netns.make(path)
        self.pins.append(path)
        within(path, lambda: _lay(*addresses))
        return path

    def serve(self, path: Path, *networks: str, **resolving: object) -> None:
        self.loop.run(self.names.serve(Sandbox(id=path.name, path=str(path)), networks, Resolving(**resolving)))  # type: ignore[arg-type]

    def elsewhere(self, answer: Callable[[dnslib.DNSRecord], dnslib.DNSRecord | None], path: Path | None = None, **more: str) -> Elsewhere:
        server = Elsewhere(path or self.node, answer, **more)
        self.servers.append(server)
        return server

    @property
    def pid(self) -> int:
        line = self.names._line
        assert line is not None
        return line.pid

    def close(self) -> None:
        words = self.names.folder / "log"
        print("the resolver said:", words.read_text() if words.exists() else "nothing")
        try:
            self.loop.run(self.names.destroy())
        finally:
            self.loop.close()
            for server in self.servers:
                server.close()
            for pin in (*self.pins, self.node):
                netns.remove(pin)
            shutil.rmtree(self.folder)


def _lay(*addresses: str) -> None:
    with netlink.Socket() as net:
        net.send([netlink.set_link(1, "lo", up=True)])
        for i, address in enumerate(a for a in addresses if a):
            net.send([netlink.new_bridge(f"eth{i}", mtu=1500)])
            net.send([netlink.address(net.index(f"eth{i}"), address, 24)])


@contextmanager
def names_world() -> Iterator[NamesWorld]:
    world = NamesWorld()
    try:
        yield world
    finally:
        world.close()


@contextmanager
def based() -> Iterator[NamesWorld]:
    """It runs, and knows BASE."""
    with names_world() as it:
        it.loop.run(it.names.start_up())
        it.loop.run(it.names.apply(snapshot(*BASE)))
        yield it


def boxed(world: NamesWorld) -> Path:
    """A container on net1."""
    path = world.sandbox("box", "10.0.1.31")
    world.serve(path, "net1id")
    return path


def ask(path: Path, name: str, kind: str = "A", *, tcp: bool = False, size: int = 0, timeout: float = 6) -> dnslib.DNSRecord:
    """A question from inside the namespace."""
    question = dnslib.DNSRecord.question(name, kind)
    if size:
        question.add_ar(dnslib.EDNS0(udp_len=size))
    answer = dnslib.DNSRecord.parse(send(path, question.pack(), tcp=tcp, timeout=timeout))
    assert answer.header.id == question.header.id
    return answer


def send(path: Path, data: bytes, *, tcp: bool = False, timeout: float = 6) -> bytes:
    def call() -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as s:
            s.settimeout(timeout)
            s.connect(SERVER)
            if not tcp:
                s.send(data)
                return s.recv(65536)
            s.sendall(len(data).to_bytes(2, "big") + data)
            with s.makefile("rb") as stream:
                return stream.read(int.from_bytes(stream.read(2), "big"))

    return within(path, call)


def found(path: Path, name: str, kind: str = "A", **more: object) -> list[str]:
    """The records of an answer, sorted; a failure is its code: `[NXDOMAIN]`."""
    answer = ask(path, name, kind, **more)  # type: ignore[arg-type]
    if answer.header.rcode:
        return [f"{dnslib.RCODE[answer.header.rcode]}"]
    return sorted(str(record.rdata).rstrip(".") for record in answer.rr)


def until(condition: Callable[[], bool], seconds: float = 10) -> float:
    """How long it took."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds, "it does not come to that"
        time.sleep(0.002)
    return time.monotonic() - begun


# -- what a cluster tells


def network(number: int, *, internal: bool = False, name: str = "") -> NetworkItem:
    return NetworkItem(
        network=Network(
            id=f"net{number}id",
            spec=NetworkSpec(name=name or f"net{number}", internal=internal),
            ipam=(IPAMConfig(subnet=f"10.0.{number}.0/24", gateway=f"10.0.{number}.1"),),
            vni=4096 + number,
        )
    )


def service(name: str, number: int, vip: str = "", aliases: tuple[str, ...] = ()) -> DiscoveryItem:
    return DiscoveryItem(service_id=f"{name}-id", network_id=f"net{number}id", name=name, vip=vip, aliases=aliases)


def task(name: str, slot: int, number: int, address: str, *, serving: bool = True) -> EndpointItem:
    id = f"{name}{slot}x{number}"
    return EndpointItem(
        task_id=id,
        service_id=f"{name}-id",
        network_id=f"net{number}id",
        node_id="other",
        address=address,
        serving=serving,
        names=(f"{name}.{slot}.{id}", f"{slot}.{name}"),
    )


def container(number: int, address: str, *names: str) -> EndpointItem:
    return EndpointItem(task_id=names[0], service_id="", network_id=f"net{number}id", node_id="other", address=address, names=names)


def snapshot(*items: NetworkItem | EndpointItem | DiscoveryItem) -> Snapshot:
    return Snapshot(
        version=next(_numbers),
        networks={i.key: i for i in items if isinstance(i, NetworkItem)},
        endpoints={i.key: i for i in items if isinstance(i, EndpointItem)},
        discovery={i.key: i for i in items if isinstance(i, DiscoveryItem)},
    )


def local(*names: tuple[str, str, tuple[str, ...]], networks: tuple[LocalNetwork, ...] = ()) -> LocalState:
    return LocalState(
        networks={n.id: n for n in networks}, names=tuple(LocalName(network_id=n, address=a, names=words) for n, a, words in names)
    )


BASE = (
    network(1),
    network(2),
    service("web", 1, "10.0.1.2", aliases=("www", "www.example.com")),
    task("web", 1, 1, "10.0.1.11"),
    task("web", 2, 1, "10.0.1.12"),
    service("api", 1),
    task("api", 1, 1, "10.0.1.21"),
    task("api", 2, 1, "10.0.1.22"),
    task("api", 3, 1, "10.0.1.23", serving=False),
    container(1, "10.0.1.31", "box", "0123456789ab"),
    service("secret", 2, "10.0.2.2"),
    task("secret", 1, 2, "10.0.2.11"),
)


def named(question: dnslib.DNSRecord) -> dnslib.DNSRecord:
    """example.org is 192.0.2.1, big.org has 100 addresses, broken.org fails; nothing else is."""
    reply = question.reply()
    name = str(question.q.qname).rstrip(".").lower()
    if name == "example.org":
        reply.add_answer(dnslib.RR(question.q.qname, rdata=dnslib.A("192.0.2.1"), ttl=60))
    elif name == "big.org":
        for i in range(100):
            reply.add_answer(dnslib.RR(question.q.qname, rdata=dnslib.A(f"192.0.2.{i}"), ttl=60))
    else:
        reply.header.rcode = dnslib.RCODE.SERVFAIL if name == "broken.org" else dnslib.RCODE.NXDOMAIN
    return reply
