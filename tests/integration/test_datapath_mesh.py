"""Published ports on three nodes, one of them without a task: real namespaces, real packets."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from mesh_world import CLIENT, WEB, backend, meshed
from netlab import Lab, apply_all, ask, ask_udp, attach, connect, line
from netlab_objects import endpoint, network, service

pytestmark = pytest.mark.root


@pytest.fixture
def mesh() -> Iterator[Lab]:
    with meshed() as it:
        yield it


def test_a_port_answers_on_every_node_with_the_client_s_own_address(mesh: Lab) -> None:
    for call, port in ((ask, 8080), (ask_udp, 8053)):
        for node in mesh.nodes:
            answers = [call(mesh.client, node.address, port) for _ in range(24)]
            # 24 draws from two miss one with a chance of 1 in 8 million
            assert {name for name, _ in answers} == {"10.0.0.5", "10.0.0.6"}
            assert {seen for _, seen in answers} == {CLIENT}


def test_a_node_s_own_clients_and_loopback(mesh: Lab) -> None:
    for call, port in ((ask, 8080), (ask_udp, 8053)):
        for node in mesh.nodes:
            own = [call(node.path, node.address, port) for _ in range(8)]
            assert {seen for _, seen in own} == {node.address}
            loop = [call(node.path, "127.0.0.1", port) for _ in range(8)]
            assert {seen for _, seen in loop} == {"172.31.255.1"}
        # one node as the client of another
        assert call(mesh.nodes[0].path, mesh.nodes[2].address, port)[1] == mesh.nodes[0].address


def test_a_container_reaches_a_published_port_of_its_own_node_and_of_others(mesh: Lab) -> None:
    first = mesh.nodes[0]
    sandbox = first.sandbox("10-0-0-5")
    for node in mesh.nodes:
        seen = {ask(sandbox, node.address, 8080) for _ in range(8)}
        assert {name for name, _ in seen} <= {"10.0.0.5", "10.0.0.6"}
        assert {address for _, address in seen} == {"172.31.255.1" if node is first else first.address}


def test_one_client_port_through_two_nodes_to_one_backend(mesh: Lab) -> None:
    """The same address and port at the client's end: two connections, to one backend, by two nodes, at the same time."""
    apply_all(mesh, services=[WEB], endpoints=mesh.endpoints[:1])
    source = (CLIENT, 40000)
    held = [connect(mesh.client, node.address, 8080, source=source) for node in mesh.nodes]
    try:
        seen = [line(s) for s in held]
        assert {text.split()[1].partition(":")[0] for text in seen} == {CLIENT}
        assert len({text.split()[1] for text in seen}) == 3, "each node uses source ports of its own"
        for i, s in enumerate(held):
            s.sendall(f"hello {i}\n".encode())
        assert [line(s) for s in held] == ["hello 0", "hello 1", "hello 2"]
    finally:
        for s in held:
            s.close()


def test_a_port_without_backends_is_refused_and_an_unpublished_one_is_the_host_s(mesh: Lab) -> None:
    apply_all(mesh, services=[WEB], endpoints=[])
    for node in mesh.nodes:
        with pytest.raises(ConnectionRefusedError):
            ask(mesh.client, node.address, 8080)
    apply_all(mesh, services=[], endpoints=mesh.endpoints)
    mesh.serve(mesh.nodes[2].path, 8080, "host")
    assert ask(mesh.client, mesh.nodes[2].address, 8080) == ("host", CLIENT)


def test_full_size_packets_pass(mesh: Lab) -> None:
    """1400 bytes fit the overlay; a longer datagram is cut and put together again; a stream of a megabyte comes through."""
    for size in (1400, 4000):
        assert ask_udp(mesh.client, mesh.nodes[2].address, 8053, size=size)[1] == CLIENT
    with connect(mesh.client, mesh.nodes[2].address, 8080, timeout=10) as s:
        line(s)
        for _ in range(32):
            s.sendall(b"x" * 32768)
            got = 0
            while got < 32768:
                got += len(s.recv(65536))


def test_networks_keep_their_distance_also_with_two_meshed(mesh: Lab) -> None:
    """An overlay beside ingress: its tasks reach each other, not those of ingress."""
    nets = [network(), network(1, ingress=False)]
    apply_all(mesh, networks=nets, services=[WEB], endpoints=mesh.endpoints)
    attach(mesh.nodes[2], "10.0.1.5", "net1")
    with pytest.raises(OSError):
        ask(mesh.nodes[2].sandbox("10-0-1-5"), "10.0.0.5", 80, timeout=1)
    assert ask(mesh.client, mesh.nodes[2].address, 8080)[1] == CLIENT


def test_local_delivery_is_to_the_node_s_own_tasks_and_refused_at_once_without_one(mesh: Lab) -> None:
    only = msgspec.structs.replace(WEB, local_only=True)
    apply_all(mesh, services=[only], endpoints=mesh.endpoints)
    for node, address in zip(mesh.nodes[:2], ("10.0.0.5", "10.0.0.6"), strict=True):
        assert {ask(mesh.client, node.address, 8080) for _ in range(12)} == {(address, CLIENT)}
        assert {ask_udp(mesh.client, node.address, 8053) for _ in range(12)} == {(address, CLIENT)}
        assert ask(node.path, "127.0.0.1", 8080)[0] == address
    last = mesh.nodes[2]
    for source, target in ((mesh.client, last.address), (last.path, last.address), (last.path, "127.0.0.1")):
        for call, port in ((ask, 8080), (ask_udp, 8053)):
            with pytest.raises(ConnectionRefusedError):
                call(source, target, port)
    # its only task here stops serving: refused, though another node has one
    off = msgspec.structs.replace(mesh.endpoints[0], serving=False)
    apply_all(mesh, services=[only], endpoints=[off, mesh.endpoints[1]])
    with pytest.raises(ConnectionRefusedError):
        ask(mesh.client, mesh.nodes[0].address, 8080)
    apply_all(mesh, services=[WEB], endpoints=[off, mesh.endpoints[1]])
    assert ask(mesh.client, mesh.nodes[0].address, 8080) == ("10.0.0.6", CLIENT)


def test_two_services_on_one_number_by_tcp_and_udp(mesh: Lab) -> None:
    """And one of them goes: the other stays, and the number is the host's again for its protocol."""
    attach(mesh.nodes[2], "10.0.0.7")
    mesh.serve(mesh.nodes[2].sandbox("10-0-0-7"), 99, "talk", "udp")
    both = [service("web", (9000, 80, "tcp")), service("talk", (9000, 99, "udp"))]
    ends = [*mesh.endpoints, endpoint("talk", "node3", "10.0.0.7")]
    apply_all(mesh, services=both, endpoints=ends)
    for node in mesh.nodes:
        assert ask(mesh.client, node.address, 9000)[0] in ("10.0.0.5", "10.0.0.6")
        assert ask_udp(mesh.client, node.address, 9000) == ("talk", CLIENT)
        assert ask_udp(node.path, "127.0.0.1", 9000)[0] == "talk"
    apply_all(mesh, services=both[1:], endpoints=ends)
    assert ask_udp(mesh.client, mesh.nodes[0].address, 9000) == ("talk", CLIENT)
    with pytest.raises(ConnectionRefusedError):
        ask(mesh.client, mesh.nodes[0].address, 9000)


def test_one_service_by_several_ports_and_several_services_by_theirs(mesh: Lab) -> None:
    many = service("web", (8080, 80, "tcp"), (8081, 80, "tcp"), (8053, 53, "udp"))
    apply_all(mesh, services=[many, service("none", (8082, 80, "tcp"))], endpoints=mesh.endpoints)
    for port in (8080, 8081):
        assert {ask(mesh.client, mesh.nodes[2].address, port)[0] for _ in range(24)} == {"10.0.0.5", "10.0.0.6"}
    with pytest.raises(ConnectionRefusedError):
        ask(mesh.client, mesh.nodes[2].address, 8082)


def test_every_node_shows_the_client_s_own_address_to_every_task(mesh: Lab) -> None:
    """Clients in namespaces of their own, through each node, to each task."""
    backend(mesh, mesh.nodes[2], "10.0.0.7")
    ends = [*mesh.endpoints, endpoint("web", "node3", "10.0.0.7")]
    apply_all(mesh, services=[WEB], endpoints=ends)
    clients = {f"192.168.77.{i}": mesh.namespace(f"c{i}", f"192.168.77.{i}") for i in (150, 151)}
    for address, path in clients.items():
        for node in mesh.nodes:
            seen = {ask(path, node.address, 8080) for _ in range(30)} | {ask_udp(path, node.address, 8053) for _ in range(30)}
            assert seen == {(f"10.0.0.{i}", address) for i in (5, 6, 7)}
