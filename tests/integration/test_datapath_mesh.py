"""Published ports on three nodes, one of them without a task: real namespaces, real packets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest
from netlab import Lab, Node, apply_all, ask, ask_udp, attach, connect, lab, line, within
from netlab_objects import endpoint, network, service

from skep.model.assignment import EndpointItem

pytestmark = pytest.mark.root
CLIENT = "192.168.77.99"
WEB = service("web", (8080, 80, "tcp"), (8053, 53, "udp"))


def backend(it: Lab, node: Node, address: str) -> EndpointItem:
    """A task of `web` on this node, called by its address."""
    sandbox = attach(node, address)
    it.serve(node.sandbox(sandbox), 80, address)
    it.serve(node.sandbox(sandbox), 53, address, "udp")
    return endpoint("web", node.id, address)


@pytest.fixture
def mesh() -> Iterator[Lab]:
    """Tasks on node1 and node2, none on node3; the client is outside."""
    with lab(3) as it:
        it.client = it.namespace("client", CLIENT)
        apply_all(it, services=[WEB])
        it.endpoints = [backend(it, it.nodes[0], "10.0.0.5"), backend(it, it.nodes[1], "10.0.0.6")]
        apply_all(it, services=[WEB], endpoints=it.endpoints)
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


def test_a_backend_leaves_under_load_without_one_error(mesh: Lab) -> None:
    """Out of the maps first, stopped after: clients that connect all the time notice nothing, and open connections live on."""
    third = backend(mesh, mesh.nodes[2], "10.0.0.7")
    apply_all(mesh, services=[WEB], endpoints=[*mesh.endpoints, third])
    stop = threading.Event()
    errors: list[BaseException] = []
    answers: list[str] = []

    def load(address: str) -> None:
        def loop() -> None:
            while not stop.is_set():
                try:
                    with socket.create_connection((address, 8080), timeout=3) as s:
                        answers.append(line(s).split()[0])
                except OSError as e:
                    errors.append(e)

        within(mesh.client, loop)

    threads = [threading.Thread(target=load, args=(node.address,)) for node in mesh.nodes]
    for t in threads:
        t.start()
    try:
        held = None
        while held is None:
            s = connect(mesh.client, mesh.nodes[0].address, 8080)
            if line(s).startswith("10.0.0.7"):
                held = s
            else:
                s.close()
        for _ in range(20):
            gone = endpoint("web", third.node_id, third.address, serving=False)
            apply_all(mesh, services=[WEB], endpoints=[*mesh.endpoints, gone])
            apply_all(mesh, services=[WEB], endpoints=[*mesh.endpoints, third])
        apply_all(mesh, services=[WEB], endpoints=[*mesh.endpoints, gone])
        count = len(answers)
        while len(answers) < count + 50 and not errors:
            pass
        assert "10.0.0.7" not in answers[count + len(threads) :], "a connection came to a backend that was out of the maps"
        held.sendall(b"still here\n")
        assert line(held) == "still here"
        mesh.nodes[2].run(mesh.nodes[2].datapath.detach("10-0-0-7"))
        apply_all(mesh, services=[WEB], endpoints=mesh.endpoints)
        count = len(answers)
        while len(answers) < count + 50 and not errors:
            pass
    finally:
        stop.set()
        for t in threads:
            t.join()
    assert not errors
    held.close()


def test_connections_to_a_backend_that_is_gone_are_reset(mesh: Lab) -> None:
    """A node that died says nothing: its connections must not hang."""
    held = []
    while not held:
        s = connect(mesh.client, mesh.nodes[2].address, 8080)
        if line(s).startswith("10.0.0.6"):
            held.append(s)
        else:
            s.close()
    cut = mesh.nodes[1]
    within(cut.path, lambda: _down("eth0"))
    apply_all(mesh, services=[WEB], endpoints=mesh.endpoints[:1])
    with pytest.raises(ConnectionResetError):
        for _ in range(20):
            held[0].sendall(b"are you there?\n")
            held[0].recv(100)
    held[0].close()
    # the address comes back to life for another task
    again = backend(mesh, mesh.nodes[2], "10.0.0.6")
    apply_all(mesh, services=[WEB], endpoints=[again])
    assert ask(mesh.client, mesh.nodes[2].address, 8080) == ("10.0.0.6", CLIENT)
    assert ask(mesh.client, mesh.nodes[0].address, 8080) == ("10.0.0.6", CLIENT)


def _down(link: str) -> None:
    from skep.datapath import netlink

    with netlink.Socket() as net:
        message = netlink.set_link(net.index(link), link, up=False)
        body = netlink._link(net.index(link), 0, netlink.IFF_UP)
        net.send([message._replace(body=body)])


def test_udp_flows_move_on_when_their_backend_leaves_and_others_stay(mesh: Lab) -> None:
    def flow(port: int) -> socket.socket:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.bind((CLIENT, port))
        s.settimeout(3)
        s.connect((mesh.nodes[2].address, 8053))
        return s

    def backend_of(s: socket.socket) -> str:
        s.send(b"x")
        return s.recv(100).decode().split()[0]

    flows = within(mesh.client, lambda: [flow(41000 + i) for i in range(16)])
    try:
        first = [backend_of(s) for s in flows]
        assert first == [backend_of(s) for s in flows], "a flow stays with its backend"
        assert set(first) == {"10.0.0.5", "10.0.0.6"}
        gone = endpoint("web", "node1", "10.0.0.5", serving=False)
        third = backend(mesh, mesh.nodes[2], "10.0.0.7")
        apply_all(mesh, services=[WEB], endpoints=[gone, mesh.endpoints[1], third])
        after = [backend_of(s) for s in flows]
        assert "10.0.0.5" not in after
        assert [b for a, b in zip(first, after, strict=True) if a == "10.0.0.6"] == [a for a in first if a == "10.0.0.6"]
    finally:
        for s in flows:
            s.close()


def test_a_restart_keeps_connections_and_finds_everything(mesh: Lab) -> None:
    """skepd dies and comes back: new object, same folder. Before its first snapshot and after it, nothing is cut."""
    held = [connect(mesh.client, node.address, 8080) for node in mesh.nodes]
    for s in held:
        line(s)
    node = mesh.nodes[0]
    node.run(node.datapath.shut_down())
    node.datapath = node.new_datapath()
    node.run(node.datapath.start_up())
    assert node.run(node.datapath.sandboxes()) == ["10-0-0-5"]
    for _ in range(8):
        assert ask(mesh.client, node.address, 8080)[1] == CLIENT
    # a container of its own before anything is known of the cluster
    attach(node, "10.0.0.9")
    assert {ask(mesh.client, node.address, 8080)[0] for _ in range(24)} == {"10.0.0.5", "10.0.0.6"}
    apply_all(mesh, services=[WEB], endpoints=[*mesh.endpoints, endpoint("other", node.id, "10.0.0.9")])
    for i, s in enumerate(held):
        s.sendall(f"after {i}\n".encode())
        assert line(s) == f"after {i}"
        s.close()
    assert {ask(mesh.client, node.address, 8080)[0] for _ in range(24)} == {"10.0.0.5", "10.0.0.6"}
    assert ask(node.sandbox("10-0-0-9"), "10.0.0.6", 80) == ("10.0.0.6", "10.0.0.9")


def test_a_restart_brings_what_changed_meanwhile(mesh: Lab) -> None:
    node = mesh.nodes[2]
    node.run(node.datapath.shut_down())
    third = backend(mesh, mesh.nodes[1], "10.0.0.8")
    other = service("other", (9090, 80, "tcp"))
    node.datapath = node.new_datapath()
    node.run(node.datapath.start_up())
    moved = endpoint("other", "node2", third.address)
    apply_all(mesh, services=[other], endpoints=[moved])
    assert ask(mesh.client, node.address, 9090) == ("10.0.0.8", CLIENT)
    with pytest.raises(ConnectionRefusedError):
        ask(mesh.client, node.address, 8080)


def test_the_mesh_works_when_the_state_in_the_kernel_was_damaged(mesh: Lab) -> None:
    """Someone flushes our routes and our table's elements; the next start finds the drift and mends it."""
    from skep.datapath import netlink

    node = mesh.nodes[2]

    def damage() -> None:
        with netlink.Socket() as net:
            index = net.index("vx4096")
            net.send([netlink.route("10.0.0.5", 32, index=index, via="169.254.0.1", delete=True)])
            net.send([netlink.neighbour(index, "169.254.0.2", "02:fe:00:00:00:02", delete=True)])
            net.send([netlink.forwarding(index, "02:fe:00:00:00:01", mesh.nodes[0].address, delete=True)])

    within(node.run_root / "router", damage)
    node.run(node.datapath.shut_down())
    node.datapath = node.new_datapath()
    node.run(node.datapath.start_up())
    apply_all(mesh, services=[WEB], endpoints=mesh.endpoints)
    assert {ask(mesh.client, node.address, 8080)[0] for _ in range(24)} == {"10.0.0.5", "10.0.0.6"}


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


@pytest.mark.parametrize("gap", [True, False], ids=["with a time between", "in one change"])
def test_ingress_is_removed_and_made_again_under_another_subnet_and_number(mesh: Lab, gap: bool) -> None:
    again = network(0, subnet="10.77.0.0/24", gateway="10.77.0.1", vni=4200)
    again = msgspec.structs.replace(again, network=msgspec.structs.replace(again.network, id="again"))
    mesh.nodes[0].run(mesh.nodes[0].datapath.detach("10-0-0-5"))
    mesh.nodes[1].run(mesh.nodes[1].datapath.detach("10-0-0-6"))
    if gap:
        apply_all(mesh, networks=[], services=[WEB])
        for node in mesh.nodes:
            with pytest.raises(ConnectionRefusedError):
                ask(mesh.client, node.address, 8080)
            assert "vx4096" not in within(node.run_root / "router", _links)
    apply_all(mesh, networks=[again], services=[WEB])
    ends = []
    for node in mesh.nodes[:2]:
        sandbox = attach(node, f"10.77.0.{node.index + 4}", "again")
        address = f"10.77.0.{node.index + 4}"
        mesh.serve(node.sandbox(sandbox), 80, address)
        mesh.serve(node.sandbox(sandbox), 53, address, "udp")
        ends.append(endpoint("web", node.id, address, network_id="again"))
    apply_all(mesh, networks=[again], services=[WEB], endpoints=ends)
    for node in mesh.nodes:
        assert {ask(mesh.client, node.address, 8080) for _ in range(24)} == {("10.77.0.5", CLIENT), ("10.77.0.6", CLIENT)}
        assert ask_udp(mesh.client, node.address, 8053)[1] == CLIENT
        links = within(node.run_root / "router", _links)
        assert "vx4200" in links and "vx4096" not in links
        assert node.run(node.datapath.compare()) == []


def _links() -> list[str]:
    from skep.datapath import netlink

    with netlink.Socket() as net:
        return list(net.links())


def test_a_datagram_flow_that_began_before_the_port_was_published_and_goes_on_after(mesh: Lab) -> None:
    """Conntrack remembers where a flow went: a port that comes, goes, or has nobody for a while must not leave it stuck there."""
    node = mesh.nodes[2]

    def flow() -> socket.socket:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.settimeout(3)
        s.connect((node.address, 8053))
        return s

    def said(s: socket.socket) -> str:
        try:
            s.send(b"x")
            return s.recv(100).decode().split()[0]
        except ConnectionRefusedError:
            return "refused"

    with within(mesh.client, flow) as s:
        assert said(s) in ("10.0.0.5", "10.0.0.6")
        apply_all(mesh, services=[], endpoints=mesh.endpoints)
        assert said(s) == "refused"
        host = mesh.serve(node.path, 8053, "host", "udp")
        assert said(s) == "host", "the port is the host's own again"
        host.close()
        assert said(s) == "refused"
        apply_all(mesh, services=[WEB], endpoints=mesh.endpoints)
        assert said(s) in ("10.0.0.5", "10.0.0.6")
        apply_all(mesh, services=[WEB], endpoints=[])
        assert said(s) == "refused"
        apply_all(mesh, services=[WEB], endpoints=mesh.endpoints)
        assert said(s) in ("10.0.0.5", "10.0.0.6")


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
