"""Published ports while something changes: tasks that leave, flows that move, a daemon that starts anew. Real namespaces, real packets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest
from mesh_world import CLIENT, WEB, backend, meshed
from netlab import PATIENCE, Lab, apply_all, ask, ask_udp, attach, connect, line, within
from netlab_objects import endpoint, network, service

pytestmark = pytest.mark.root


@pytest.fixture
def mesh() -> Iterator[Lab]:
    with meshed() as it:
        yield it


def test_a_backend_leaves_under_load_without_one_error(mesh: Lab) -> None:
    """Out of the maps first, stopped after: clients that connect all the time notice nothing, and open connections live on."""
    third = backend(mesh, mesh.nodes[2], "10.0.0.7")
    apply_all(mesh, services=[WEB], endpoints=[*mesh.endpoints, third])
    stop = threading.Event()
    errors: list[BaseException] = []
    answers: list[tuple[int, str]] = []
    """In which part of the story it was asked for, and who answered."""
    part, more = 0, threading.Condition()

    def load(address: str) -> None:
        def loop() -> None:
            while not stop.is_set():
                asked = part
                try:
                    with socket.create_connection((address, 8080), timeout=PATIENCE) as s:
                        answer = line(s).split()[0]
                except OSError as e:
                    errors.append(e)
                else:
                    answers.append((asked, answer))
                with more:
                    more.notify()

        within(mesh.client, loop)

    def fifty_more() -> list[str]:
        """Who answers those that ask from now on."""
        nonlocal part
        part += 1
        with more:
            assert more.wait_for(lambda: errors or sum(asked == part for asked, _ in answers) >= 50, 60)
        return [answer for asked, answer in answers if asked == part]

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
        assert "10.0.0.7" not in fifty_more(), "a connection came to a backend that was out of the maps"
        held.sendall(b"still here\n")
        assert line(held) == "still here"
        mesh.nodes[2].run(mesh.nodes[2].datapath.detach("10-0-0-7"))
        apply_all(mesh, services=[WEB], endpoints=mesh.endpoints)
        assert "10.0.0.7" not in fifty_more()
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

    flows = within(mesh.client, lambda: [flow(41000 + i) for i in range(32)])
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
