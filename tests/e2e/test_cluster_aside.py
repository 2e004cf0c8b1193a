"""A whole cluster on a host on which dockerd has been: FORWARD at DROP, bridge-nf-call-iptables at 1. The host is played by a network
namespace, its client by another one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_tools import SKEP, cluster_name, remains, until
from conftest import ECHO

from skep.local import calls, cluster
from skep.local.layout import layout

HOST, MOVED, CLIENT = "192.168.77.2", "192.168.77.3", "192.168.77.9"
FORWARD = "/proc/sys/net/ipv4/ip_forward"
BRIDGE_CALLS = "/proc/sys/net/bridge/bridge-nf-call-iptables"
ANSWER = 'printf "HTTP/1.0 200 OK\\r\\n\\r\\n"; netstat -tn | grep ":8080 .*ESTABLISHED" | head -1'
LISTEN = ["nc", "-ll", "-p", "8080", "-e", "sh", "-c", ANSWER]
"""It goes on listening while it answers."""

TELL = """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Tell(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.client_address[0].encode())
    def log_message(self, *_):
        pass
HTTPServer(("", 8099), Tell).serve_forever()
"""


class Place:
    """A network namespace."""

    def __init__(self, name: str) -> None:
        self.name = name
        subprocess.run(["ip", "netns", "add", name], check=True)
        self.run("ip", "link", "set", "lo", "up")

    def run(self, *line: str, check: bool = True, timeout: float = 240) -> str:
        # not `ip netns exec`, which mounts /sys anew: the cgroups would be hidden
        done = subprocess.run(["nsenter", f"--net=/run/netns/{self.name}", *line], capture_output=True, text=True, timeout=timeout)
        if check and done.returncode:
            raise AssertionError(f"{line}: {done.returncode}: {done.stderr}")
        return done.stdout

    def write(self, path: str, text: str) -> None:
        self.run(sys.executable, "-c", f"open({path!r}, 'w').write({text!r})")

    def gone(self) -> None:
        subprocess.run(["ip", "netns", "del", self.name], check=True)


@pytest.fixture
def places() -> Iterator[tuple[Place, Place]]:
    made: list[Place] = []
    try:
        for kind in "hc":
            made.append(Place(f"skt{os.getpid()}{kind}"))
        host, client = made
        host.run("ip", "link", "add", "wan0", "type", "veth", "peer", "name", "eth0", "netns", client.name)
        for place, link, address in ((host, "wan0", HOST), (client, "eth0", CLIENT)):
            place.run("ip", "address", "add", f"{address}/24", "dev", link)
            place.run("ip", "link", "set", link, "up")
        yield host, client
    finally:
        for place in made:
            place.gone()


def counted(host: Place) -> str:
    """The rules with what they have counted: the host's own see no packet of ours."""
    return re.sub(r"(?m)^#.*\n", "", host.run("iptables-save"))


def rules(host: Place) -> str:
    """Without what they have counted: while the host has no address, a packet of a node goes where it should not and is dropped."""
    return re.sub(r"\[\d+:\d+\]", "", counted(host))


def seen(said: str) -> str:
    """The client's address as the task saw it (netstat's fifth column)."""
    columns = said.split()
    return columns[4].rpartition(":")[0].removeprefix("::ffff:") if len(columns) > 4 else ""


@pytest.mark.parametrize("forwards", ["1", "0"], ids=["as dockerd leaves it", "forwarding off"])
def test_a_cluster_where_dockerd_has_been(places: tuple[Place, Place], forwards: str) -> None:
    """A namespace begins with what this machine has: what matters is set in the one that plays the host, and goes with it.
    One cluster for all that is asked of it: it takes long to make.
    """
    if shutil.which("iptables") is None:
        pytest.skip("no iptables")
    host, client = places
    host.write(FORWARD, forwards)
    host.run("iptables", "-P", "FORWARD", "DROP")
    host.run("iptables", "-N", "DOCKER-USER")
    host.run("iptables", "-A", "FORWARD", "-j", "DOCKER-USER")
    host.run("iptables", "-t", "nat", "-A", "POSTROUTING", "-s", "172.17.0.0/16", "!", "-o", "docker0", "-j", "MASQUERADE")
    # without the module there is nothing that could be in the way
    bridged = Path(BRIDGE_CALLS).exists()
    if bridged:
        host.write(BRIDGE_CALLS, "1")
    before, nothing = rules(host), counted(host)
    assert ":FORWARD DROP" in before

    with cluster_name("d") as name:
        host.run(*SKEP, "cluster", "up", "--name", name, "--workers", "1", "--registry", "--publish", "8000:8000")
        at = layout(name)
        try:
            spec = {
                "Name": "who",
                "TaskTemplate": {
                    "ContainerSpec": {"Image": ECHO, "Command": LISTEN, "StopGracePeriod": 1},
                    "Placement": {"Constraints": ["node.role==worker"]},
                },
                "Mode": {"Replicated": {"Replicas": 1}},
                "EndpointSpec": {"Ports": [{"Protocol": "tcp", "TargetPort": 8080, "PublishedPort": 8000}]},
            }
            calls.call(at.socket("manager"), "POST", "/services/create", spec)

            def asked(place: Place, address: str) -> str:
                return seen(place.run("curl", "-s", "--connect-timeout", "3", "-m", "60", f"http://{address}:8000/", check=False))

            assert until(lambda: asked(client, HOST), "it answers a client outside") == CLIENT
            assert asked(host, HOST) == HOST
            assert asked(host, "127.0.0.1") == at.host_address(254)

            # what a node asks of the world comes with this host's address, also when that changes
            def asks() -> str:
                line = [*SKEP, "cluster", "exec", "--name", name, "worker01", "--", "curl", "-s", "-m", "2", f"http://{CLIENT}:8099/"]
                return host.run(*line, check=False)

            with subprocess.Popen(["nsenter", f"--net=/run/netns/{client.name}", sys.executable, "-c", TELL]) as telling:
                try:
                    assert until(asks, "the world answers") == HOST
                    assert counted(host) == nothing
                    host.run("ip", "address", "del", f"{HOST}/24", "dev", "wan0")
                    host.run("ip", "address", "add", f"{MOVED}/24", "dev", "wan0")
                    assert until(asks, "the world answers again") == MOVED
                    assert asked(client, MOVED) == CLIENT
                finally:
                    telling.kill()
            assert rules(host) == before, "while the cluster runs"
            assert host.run("cat", FORWARD).strip() == forwards
            if bridged:
                assert host.run("cat", BRIDGE_CALLS) == "1\n"
        finally:
            host.run(*SKEP, "cluster", "down", "--name", name)
        assert remains(name) == []
        assert rules(host) == before, "and afterwards"
        assert "skep" not in host.run("nft", "list", "tables")
        assert cluster.Underlay(name).link not in host.run("ip", "link")
