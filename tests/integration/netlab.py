"""A laboratory of real namespaces for the data path's tests: nodes on a wire, clients, servers. Everything in it is removed at its end.

Nothing here touches this machine's own network: the wire is a bridge in a namespace of its own, and each node is a namespace.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from netlab_objects import snapshot

from skep.datapath import netlink, netns
from skep.datapath.base import Place
from skep.datapath.path import KernelDatapath
from skep.model.assignment import EndpointItem, PeerItem

T = TypeVar("T")
PATIENCE = 10.0
"""Seconds for an answer that is to come. A SYN that a machine with much to do has dropped comes again after 1, 3 and 7 seconds."""


class SystemClock:
    def now(self) -> int:
        return time.time_ns()

    async def sleep(self, ns: int) -> None:
        await asyncio.sleep(ns / 1e9)


def within(path: Path, call: Callable[[], T]) -> T:
    """Run `call` in a thread inside the namespace and give back what it returns."""
    out: list[T] = []
    failed: list[BaseException] = []

    def body() -> None:
        fd = netns.opened(path)
        try:
            with netns.entered(fd):
                out.append(call())
        except BaseException as e:
            failed.append(e)
        finally:
            os.close(fd)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return out[0]


class Loop:
    """An event loop in a thread inside a namespace: what a node's daemon is."""

    def __init__(self, path: Path) -> None:
        self._ready = threading.Event()
        self._path = path
        self._thread = threading.Thread(target=self._body, daemon=True)
        self._thread.start()
        self._ready.wait()

    def _body(self) -> None:
        fd = netns.opened(self._path)
        with netns.entered(fd):
            os.close(fd)
            self._loop = asyncio.new_event_loop()
            self._loop.call_soon(self._ready.set)
            self._loop.run_forever()
            self._loop.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(120)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


class Node:
    """A namespace on the wire with a data path of its own."""

    def __init__(self, lab: Lab, number: int, *, path: Path | None = None, address: str = "") -> None:
        self.id = f"node{number}"
        self.index = number
        self.address = address or f"192.168.77.{number}"
        self.mtu = 0
        """What the others are told of its underlay."""
        self.path = path or lab.namespace(f"n{number}", self.address)
        self.run_root = lab.folder / self.id
        self.loop = Loop(self.path)
        self.datapath = self.new_datapath()

    def new_datapath(self, **more: Any) -> KernelDatapath:
        return KernelDatapath(f"t{os.getpid()}-{self.id}", self.run_root, self.address, clock=SystemClock(), **more)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run(coroutine)

    def sandbox(self, sandbox_id: str) -> Path:
        return self.run_root / "netns" / sandbox_id


class Lab:
    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"skt{os.getpid()}-"))
        self.pins = self.folder / "pins"
        self.pins.mkdir()
        self.wire = self.pins / "wire"
        netns.make(self.wire)
        within(self.wire, self._lay_wire)
        self.nodes: list[Node] = []
        self.servers: list[Server] = []
        self.client = Path()
        self.endpoints: list[EndpointItem] = []

    def _lay_wire(self) -> None:
        with netlink.Socket() as net:
            net.send([netlink.new_bridge("br0", mtu=1500)])
        off = {"net.bridge.bridge-nf-call-iptables": "0"}
        if Path("/proc/sys/net/bridge").exists():
            netns.set_sysctls(off)

    def namespace(self, name: str, address: str = "", gateway: str = "") -> Path:
        """A namespace on the wire."""
        path = self.pins / name
        netns.make(path)
        fd = netns.opened(path)
        try:
            within(self.wire, lambda: self._plug(name, fd))
            within(path, lambda: self._address(address, gateway))
        finally:
            os.close(fd)
        return path

    @staticmethod
    def _narrow(link: str, mtu: int) -> None:
        with netlink.Socket() as net:
            net.send([netlink.set_link(net.index(link), link, mtu=mtu)])

    @staticmethod
    def _plug(name: str, fd: int) -> None:
        with netlink.Socket() as net:
            net.send([netlink.new_veth(name, peer="eth0", peer_namespace=fd)])
            net.send([netlink.set_link(net.index(name), name, master=net.index("br0"))])

    @staticmethod
    def _address(address: str, gateway: str) -> None:
        with netlink.Socket() as net:
            net.send([netlink.set_link(1, "lo", up=True)])
            index = net.index("eth0")
            net.send([netlink.set_link(index, "eth0", up=True)])
            if address:
                net.send([netlink.address(index, address, 24)])
                if gateway:
                    net.send([netlink.route("0.0.0.0", 0, index=index, via=gateway)])

    def add_nodes(self, count: int, mtus: tuple[int, ...] = ()) -> None:
        """`mtus`: of the nodes' underlay, where they are not 1500."""
        for i in range(1, count + 1):
            node = Node(self, i)
            self.nodes.append(node)
            if mtus:
                node.mtu = mtus[i - 1]
                within(self.wire, lambda i=i: self._narrow(f"n{i}", mtus[i - 1]))
                within(node.path, lambda i=i: self._narrow("eth0", mtus[i - 1]))
            node.run(node.datapath.start_up())

    def serve(self, namespace: Path, port: int, name: str, kind: str = "tcp") -> Server:
        server = Server(namespace, port, name, kind)
        self.servers.append(server)
        return server

    def close(self) -> None:
        for server in self.servers:
            server.close()
        for node in self.nodes:
            try:
                node.run(node.datapath.destroy())
            finally:
                node.loop.close()
        for pin in list(self.pins.iterdir()):
            netns.remove(pin)
        shutil.rmtree(self.folder)


@contextmanager
def lab(nodes: int = 0, mtus: tuple[int, ...] = ()) -> Iterator[Lab]:
    it = Lab()
    try:
        it.add_nodes(nodes, mtus)
        yield it
    finally:
        it.close()


class Server:
    """Answers each connection or datagram with its name and the peer's address: `web1 192.168.77.9:4000`. A connection then echoes."""

    def __init__(self, namespace: Path, port: int, name: str, kind: str = "tcp") -> None:
        self.name = name
        self._stop = False
        self.open: list[socket.socket] = []
        self.socket = within(namespace, lambda: bound(port, kind))
        target = self._tcp if kind == "tcp" else self._udp
        self._thread = threading.Thread(target=target, daemon=True)
        self._thread.start()

    def _say(self, peer: tuple[str, int]) -> bytes:
        return f"{self.name} {peer[0]}:{peer[1]}".encode()

    def _tcp(self) -> None:
        while not self._stop:
            try:
                connection, peer = self.socket.accept()
            except OSError:
                return
            self.open.append(connection)
            threading.Thread(target=self._talk, args=(connection, peer), daemon=True).start()

    def _talk(self, connection: socket.socket, peer: tuple[str, int]) -> None:
        try:
            connection.sendall(self._say(peer) + b"\n")
            while data := connection.recv(4096):
                connection.sendall(data)
        except OSError:
            pass
        finally:
            connection.close()

    def _udp(self) -> None:
        while not self._stop:
            try:
                _, peer = self.socket.recvfrom(65536)
            except OSError:
                return
            if peer:
                self.socket.sendto(self._say(peer), peer)

    def close(self) -> None:
        self._stop = True
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.socket.close()
        for connection in self.open:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self._thread.join(5)


def bound(port: int, kind: str) -> socket.socket:
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("", port))
    if kind == "tcp":
        s.listen(256)
    return s


def connect(namespace: Path, address: str, port: int, *, source: tuple[str, int] | None = None, timeout: float = PATIENCE) -> socket.socket:
    def call() -> socket.socket:
        s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        s.settimeout(timeout)
        if source:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(source)
        try:
            s.connect((address, port))
        except BaseException:
            s.close()
            raise
        return s

    return within(namespace, call)


def line(s: socket.socket) -> str:
    """One line from a connection."""
    out = b""
    while not out.endswith(b"\n"):
        data = s.recv(1)
        if not data:
            break
        out += data
    return out.decode().strip()


def ask(namespace: Path, address: str, port: int, *, source: tuple[str, int] | None = None, timeout: float = PATIENCE) -> tuple[str, str]:
    """(server's name, the client's address as it saw it), over TCP."""
    with connect(namespace, address, port, source=source, timeout=timeout) as s:
        name, _, seen = line(s).partition(" ")
        return name, seen.partition(":")[0]


def ask_udp(namespace: Path, address: str, port: int, *, timeout: float = PATIENCE, size: int = 1) -> tuple[str, str]:
    def call() -> tuple[str, str]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.settimeout(timeout)
            s.connect((address, port))
            s.send(b"x" * size)
            name, _, seen = s.recv(1000).decode().partition(" ")
            return name, seen.partition(":")[0]

    return within(namespace, call)


def attach(node: Node, address: str, network_id: str = "ingress", **more: Any) -> str:
    """A container of this address on a network of the lab; gives back its sandbox id."""
    sandbox = address.replace(".", "-")
    gateway = address.rpartition(".")[0] + ".1"
    node.run(node.datapath.attach(sandbox, (Place(network_id=network_id, address=f"{address}/24", gateway=gateway),), **more))
    return sandbox


def apply_all(it: Lab, **what: Any) -> None:
    peers = [PeerItem(node_id=n.id, index=n.index, address=n.address, mtu=n.mtu) for n in it.nodes]
    for node in it.nodes:
        node.run(node.datapath.apply(snapshot(node.id, peers, **what)))


def ping(address: str, timeout: float = 2) -> bool:
    """One echo request from where the thread is; answered in time?"""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as s:
        s.settimeout(timeout)
        number = os.getpid() & 0xFFFF
        body = struct.pack("!HH", number, 1)
        s.sendto(struct.pack("!BBH", 8, 0, -(0x0800 + number + 1) % 0xFFFF) + body, (address, 0))
        try:
            while True:
                data, peer = s.recvfrom(200)
                if peer[0] == address and data[20] == 0:
                    return True
        except TimeoutError:
            return False


def shell(namespace: Path, *command: str, said: str | None = None) -> str:
    return within(namespace, lambda: subprocess.run(command, input=said, capture_output=True, text=True, check=True).stdout)


@contextmanager
def lone(client: str) -> Iterator[tuple[Lab, Node]]:
    """One node of a cluster, and a client outside of it."""
    with lab(1) as it:
        it.client = it.namespace("client", client)
        apply_all(it)
        yield it, it.nodes[0]
