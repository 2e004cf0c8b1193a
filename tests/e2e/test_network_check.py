"""`skep network check` on four real nodes: what is broken on purpose is found, named with its reason, and mended when asked."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cluster_tools import skep
from conftest import World

from skep.datapath import orders
from skep.datapath.resolver_process import Line
from skep.local import cluster

NODES = ("manager", "worker01", "worker02", "worker03")


@pytest.fixture(scope="module")
def net(world: World) -> Iterator[World]:
    """Two overlays, a service with a task on each node on each of them."""
    for name in ("c1", "c2"):
        made = world.api("POST", "/networks/create", {"Name": name, "Driver": "overlay", "Attachable": True})
        world.create(f"on-{name}", 4, template={"Networks": [{"Target": made["Id"]}]})
    for name in ("on-c1", "on-c2"):
        world.until(lambda name=name: len(world.running(name)) == 4, f"{name} runs")  # type: ignore[misc]
    yield world
    for name in ("c1", "c2"):
        world.remove(f"on-{name}")
        world.until(lambda name=name: removed(world, name), f"{name} is removed")  # type: ignore[misc]


def removed(world: World, network: str) -> bool:
    return network in world.docker("network", "rm", network, check=False).split()[:1]


def check(world: World, *more: str, node: str = "manager") -> tuple[int, str]:
    done = skep("-H", f"unix://{world.at.socket(node)}", "network", "check", *more, check=False)
    return done.returncode, done.stdout + done.stderr


def router(world: World, node: str, *command: str) -> str:
    line = ["nsenter", f"--mount={world.at.namespace(node, 'mnt')}", "nsenter", "--net=/run/skep/network/router", *command]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout


def mended(world: World, node: str) -> int:
    """How often its log says so, of its kernel or (by its own comparison) of anything."""
    said = world.at.log(node).read_bytes()
    return said.count(b" mended: ") + said.count(b" network: ")


def broken_and_mended(world: World, node: str, breaks: Callable[[], object], judge: Callable[[int, str], None], *said_of: str) -> None:
    """`breaks` something on `node`; `judge` is given what a check then says; a second one that may repair says each of `said_of`.

    Each node compares by itself once a minute and mends what it finds. Where that came before one of the two checks, which its log tells,
    what they say is about something else: all of it again, which a minute leaves time for.
    """
    for _ in range(3):
        before = mended(world, node)
        breaks()
        found = check(world)
        if mended(world, node) != before:
            continue
        code, said = check(world, "--repair")
        if ": mended" not in said and mended(world, node) != before:
            continue
        judge(*found)
        assert code == 0 and all(words in said for words in (": mended", *said_of)), said
        assert check(world)[0] == 0
        return
    raise AssertionError(f"{node} mended itself before each of three checks")


@contextmanager
def dropping(world: World, node: str, rule: str) -> Iterator[None]:
    """A firewall on a node, while this is entered."""
    where = ["nsenter", f"--net={world.at.namespace(node, 'net')}", "nft"]
    rules = f"add table ip blk; add chain ip blk i {{ type filter hook input priority 0; }}; add rule ip blk i {rule} drop"
    subprocess.run([*where, rules], check=True)
    try:
        yield
    finally:
        subprocess.run([*where, "delete table ip blk"], check=True)


def test_all_is_well(net: World) -> None:
    code, said = check(net)
    assert code == 0 and "All is well" in said, said
    table = [line.split() for line in said.splitlines()]
    for network in ("c1", "c2"):
        start = table.index(["NETWORK", network, *NODES])
        assert table[start + 1 : start + 5] == [[node, "ok", "ok", "ok", "ok"] for node in NODES]
    code, said = check(net, "c1", "--format", "json")
    lines: list[dict[str, Any]] = [json.loads(line) for line in said.splitlines()]
    assert code == 0 and [line["Network"]["Name"] for line in lines if "Network" in line] == ["c1"]
    assert {
        line["Node"]["Hostname"]: line["Node"]["Tried"] == line["Node"]["Answered"] > 8 for line in lines if "Node" in line
    } == dict.fromkeys(NODES, True)
    assert lines[-1]["Done"]["Problems"] == 0


def test_refusals(net: World) -> None:
    assert check(net, "nosuch") == (1, "Error response from daemon: network nosuch not found\n")
    code, said = check(net, node="worker01")
    assert code == 1 and "This node is not a swarm manager" in said
    assert check(net, "--format", "xml") == (1, "--format xml: must be table or json\n")


def test_a_route_that_somebody_took_away(net: World) -> None:
    task = next(t for t in net.running("on-c1") if t["NodeID"] == node_id(net, "worker01"))
    address = task["NetworksAttachments"][0]["Addresses"][0].partition("/")[0]
    name = f"{address} (on-c1.{task['Slot']} on worker01)"

    def judge(code: int, said: str) -> None:
        assert code == 1
        assert f"worker02: route {name} via 169.254" in said and "is missing" in said
        assert f"worker02: {name} on c1 does not answer" in said

    broken_and_mended(
        net,
        "worker02",
        lambda: router(net, "worker02", "ip", "route", "del", address),
        judge,
        "was missing: mended",
        "All is well, 1 mended",
    )


@pytest.mark.parametrize(
    "command", ["nft flush ruleset", "ip link del {vx}", "ip link set {vx} down", "nft flush set ip skep_skep samenet"]
)
def test_a_kernel_that_somebody_meddled_with(net: World, command: str) -> None:
    def breaks() -> None:
        shown = router(net, "worker03", "ip", "-o", "link", "show", "type", "vxlan")
        vx = sorted(line.split(": ")[1].split("@")[0] for line in shown.splitlines())[-1]
        router(net, "worker03", *command.format(vx=vx).split())

    def judge(code: int, said: str) -> None:
        assert code == 1 and any(line.startswith("worker03: ") for line in said.splitlines()), said

    broken_and_mended(net, "worker03", breaks, judge)


def node_id(world: World, hostname: str) -> str:
    return str(next(n["ID"] for n in world.api("GET", "/nodes") if n["Description"]["Hostname"] == hostname))


def test_names_that_are_not_what_the_store_says(net: World) -> None:
    """Its resolver is told lies, by the socket that skepd uses."""
    task = next(t for t in net.running("on-c2") if t["NodeID"] == node_id(net, "worker01"))
    key = f"endpoint/{task['ID']}/{task['NetworksAttachments'][0]['Network']['ID']}"

    def lies() -> None:
        line = Line(Path(net.at.run_of("worker02")) / "skep" / "resolver" / orders.SOCKET, 5)
        try:
            version = line.ask(orders.Hello()).version
            line.ask(orders.Change(version=version, drop=(key,)))
        finally:
            line.close()

    def judge(code: int, said: str) -> None:
        assert code == 1 and "worker02: the name tasks.on-c2 on network c2 means 10." in said, said
        assert f"the name {task['Slot']}.on-c2 on network c2 means nothing, not 10." in said

    broken_and_mended(net, "worker02", lies, judge)


def test_a_firewall_between_nodes(net: World) -> None:
    address = net.at.address("worker02")
    with dropping(net, "worker02", "udp dport 4789"):
        code, said = check(net)
    assert code == 1
    lines = [line for line in said.splitlines() if "no answer" in line]
    assert len(lines) == 3 and all("although the underlay answers: is UDP port 4789 blocked?" in line for line in lines), said
    with dropping(net, "worker02", f"ip saddr {net.at.address('worker01')}"):
        code, said = check(net)
    assert code == 1 and f"worker01: no answer between worker01 and worker02 ({address}), neither to ping nor to TCP" in said
    assert sum("no answer" in line for line in said.splitlines()) == 1
    assert check(net)[0] == 0


def test_a_wire_that_is_narrower_than_it_says(net: World) -> None:
    with dropping(net, "worker03", "udp dport 4789 meta length > 1000"):
        code, said = check(net)
    assert code == 1
    assert "bytes do not get from manager to worker03, though small ones do" in said, said
    assert check(net)[0] == 0


def test_a_node_that_is_away_is_named(net: World) -> None:
    cluster.stop_node(net.at, "worker03")
    try:
        code, said = check(net)
        assert code == 1 and "worker03: worker03 " in said and "is its skepd running" in said
        assert "worker03   -" in said
        assert not any("does not answer" in line for line in said.splitlines()), "its tasks answer all the same"
    finally:
        cluster.start_node(net.at, "worker03")
        cluster.wait_for_socket(net.at, "worker03")
    net.until(lambda: check(net)[0] == 0, "all is well again")
