"""The recorded exchanges of a real engine, replayed in their order against one running server. What is left out, and why, is in SKIPPED."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

from api_replay import Replay, load
from api_world import World

from skep.link.messages import LogLine
from skep.model.enums import NodeState
from skep.testing.api_client import Client, serving

VXLAN = "com.docker.network.driver.overlay.vxlanid_list"

SKIPPED: dict[str, dict[str, str]] = {
    "swarm-and-nodes.jsonl": {
        "25-30": "autolock: skep refuses it (501)",
        "41-44": "promotion and demotion: refused (501) until there is a store for several managers",
    },
    "updates.jsonl": {
        "583 586-587 591 605-606": "half-way through a rollout: which slot goes first is chance in SwarmKit (it walks a map)",
    },
    "raw.jsonl": {
        "807-817": "secrets and configs: not kept yet",
        "819 823": "what earlier commands, not replayed here, had left behind",
        "848": "a subnet that another network has: Docker takes it, and never gives it to anybody; skep refuses it (400)",
        "849": "a bridge of the cluster: skep's cluster networks are overlays (501)",
        "832 864": "what earlier commands, not replayed here, had left behind",
        "847": "the recorded connection broke",
        "863 870": "the swarm had been made anew by then, with another address pool",
        "867": "what the recorded images share: those of the world have no layers",
        "868": "volumes that earlier commands, not replayed here, had left",
    },
    "not-a-manager.jsonl": {"889": "a second recording of the same command: the node has left by then"},
    "stacks.jsonl": {
        "242-247 263-268 276-277 280-281 304-305 312-313": "secrets and configs: not kept yet",
        "254-255": "the recorded tasks failed: they had a secret with the same target",
        "258-259": "nodes whose ids earlier commands, not replayed here, had told",
        "285 298": "net1 with the tasks of services that are not replayed here",
        "286": "a network that was removed and is still there: ours is gone when its removal is answered",
        "294-295": "which node: SwarmKit counts the tasks of other services",
        "307-309": "the recorded service was in that update: its tasks took their time to end",
        "302": "an update that drops Platforms alone: no task is replaced whose node still fits",
    },
    "services.jsonl": {
        "56 61 221": "local networks and endpoints differ: no docker_gwbridge, no ingress-sbox (tests/contract/test_api_networks.py)",
        "112 117 120-121 125 213": "half-way through a rollout: which slot goes first is chance in SwarmKit (it walks a map)",
        "79-80 218-219": "secrets and configs: not kept yet",
        "141-151 159-163 185-186 223 225": "jobs: refused (501)",
    },
}


def numbers(text: str) -> set[int]:
    found: set[int] = set()
    for part in text.split():
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


Hook = Callable[[World, Client], Awaitable[None]]


async def play(file: str, hooks: dict[int, Hook], **options: Any) -> tuple[Replay, list[str]]:
    skipped = {n for part in SKIPPED.get(file, {}) for n in numbers(part)}
    world = World()
    async with serving(world) as client:
        replay = Replay(client, world, **options)
        for entry in load(file):
            if (hook := hooks.get(entry["n"])) is not None:
                await hook(world, client)
            if entry["n"] not in skipped:
                await replay.run(entry)
    return replay, replay.failures


def check(file: str, hooks: dict[int, Hook], **options: Any) -> None:
    replay, failures = asyncio.run(play(file, hooks, **options))
    assert not failures, f"{len(failures)} of {replay.compared + len(failures)} differ\n" + "\n".join(failures)


async def join_node_2(world: World, client: Client) -> None:
    world.join("node-2", "10.0.99.2")


def info_only_swarm(body: Any, path: str) -> Any:
    """Of /info and /version only what is not the host's: the swarm's part, the API's versions, the keys. Networks are made `comparable`."""
    if re.search(r"/version$", path) and isinstance(body, dict):
        return {"keys": sorted(body), "ApiVersion": body["ApiVersion"], "MinAPIVersion": body["MinAPIVersion"], "Os": body["Os"]}
    if re.search(r"/info$", path) and isinstance(body, dict):
        return {"Swarm": body.get("Swarm"), "keys": "Name" in body}
    if re.search(r"/networks(?:[/?]|$)", path):
        return [comparable(item) for item in body] if isinstance(body, list) else comparable(body)
    return body


def comparable(network: Any) -> Any:
    """What Docker leaves empty until a task runs here (and counts as no IPv4) is always told; who is there comes in no order; node names,
    and the numbers that addresses and load balancers have, are another cluster's."""
    if not isinstance(network, dict) or "IPAM" not in network:
        return network
    shown = {key: value for key, value in network.items() if key not in ("EnableIPv4", "Peers", "Services")}
    shown["Labels"] = network["Labels"] or {}
    shown["Options"] = {**network["Options"], VXLAN: "4097"} if VXLAN in (network["Options"] or {}) else network["Options"]
    places = network["Containers"] or {}
    shown["Containers"] = sorted(
        ({"Key": key, **_without_mac(place)} for key, place in places.items()), key=lambda place: str(place["Name"])
    )
    shown["Peers"] = sorted(peer["IP"] for peer in network.get("Peers") or ()) if places else []
    services = network.get("Services") or {}
    shown["Services"] = {
        name: {**service, "VIP": bool(service["VIP"]), "LocalLBIndex": 0, "Tasks": sorted((_placed(t) for t in service["Tasks"]), key=str)}
        for name, service in services.items()
    }
    return shown


def _without_mac(place: dict[str, Any]) -> dict[str, Any]:
    """Docker's rule for it holds: it follows from the address."""
    numbers = place["IPv4Address"].partition("/")[0].split(".")
    assert place["MacAddress"] == "02:42:" + ":".join(f"{int(number):02x}" for number in numbers)
    return {**place, "MacAddress": ""}


def _placed(task: dict[str, Any]) -> dict[str, Any]:
    return {
        "EndpointIP": task["EndpointIP"].startswith("10.0."),
        "Info": task["Info"],
        "Name": task["Name"],
        "EndpointID": task["EndpointID"],
    }


def test_swarm_and_nodes() -> None:
    check("swarm-and-nodes.jsonl", {32: join_node_2}, ignored=info_only_swarm)


async def two_nodes(world: World, client: Client) -> None:
    await client.ask("POST", "/swarm/init", {"AdvertiseAddr": "10.0.99.1"})
    world.join("node-2", "10.0.99.2")
    node = (await client.ask("GET", "/nodes/node-2")).body
    spec = {**node["Spec"], "Labels": {"zone": "b"}}
    await client.ask("POST", f"/nodes/node-2/update?version={node['Version']['Index']}", spec)


async def four_kept(world: World, client: Client) -> None:
    swarm = (await client.ask("GET", "/swarm")).body
    spec = {**swarm["Spec"], "Orchestration": {"TaskHistoryRetentionLimit": 4}}
    assert (await client.ask("POST", f"/swarm/update?version={swarm['Version']['Index']}", spec)).status == 200


async def say_lines(world: World, client: Client) -> None:
    """What the task of the service `say` has said."""
    tasks = (await client.ask("GET", '/tasks?filters={"service":["say"]}')).body
    for stream, text in ((1, b"out1\n"), (2, b"err1\n")):
        world.logs.lines.append(LogLine(task_id=tasks[0]["ID"], stream=stream, at=world.clock.now(), data=text))


def test_services() -> None:
    check("services.jsonl", {56: two_nodes, 199: say_lines}, ignored=info_only_swarm)


async def settled(world: World, client: Client) -> None:
    """Some seconds go by."""
    for _ in range(12):
        world.step()


async def node_2_down(world: World, client: Client) -> None:
    node = (await client.ask("GET", "/nodes/node-2")).body
    world.report(node["ID"], NodeState.DOWN, "node-2")


def test_failing_updates_and_drained_nodes() -> None:
    hooks = {22: two_nodes, 579: settled, 581: settled, 611: settled, 636: node_2_down}
    check("updates.jsonl", hooks, ignored=info_only_swarm)


def test_errors() -> None:
    check("raw.jsonl", {22: two_nodes, 771: settled}, ignored=info_only_swarm)


def test_stacks() -> None:
    """Secrets and configs are left out of them."""
    check("stacks.jsonl", {57: two_nodes, 238: four_kept}, ignored=info_only_swarm)


async def manager(world: World, client: Client) -> None:
    await client.ask("POST", "/swarm/init", {"AdvertiseAddr": "10.0.99.1"})


async def token(world: World, client: Client) -> None:
    world.swarm.address = "10.0.99.2"
    world.swarm.tokens.add(f"SWMTKN-1-{'1a2b3c4d5e' * 5}-{'w' * 25}")


def test_not_a_manager() -> None:
    check("not-a-manager.jsonl", {875: manager, 879: token}, ignored=info_only_swarm)
