"""The node's own networks over the API, and what happens to networks that are in use."""

from __future__ import annotations

from typing import Any

import msgspec
from api_world import World
from networks_world import overlay, play, running, service

from skep.engine.base import ContainerConfig
from skep.model.enums import TaskState
from skep.model.network import Network
from skep.model.spec import AttachmentSpec, PortConfig, TaskSpec
from skep.model.task import Attachment, Task, TaskStatus
from skep.node.container import TASK_ID
from skep.plan.ops import Create
from skep.testing.api_client import Client


def test_a_node_s_own_networks() -> None:
    async def scene(client: Client, world: World) -> None:
        made = await client.ask(
            "POST",
            "/networks/create",
            {
                "Name": "br1",
                "Driver": "bridge",
                "IPAM": {"Driver": "default", "Options": {}, "Config": []},
                "Labels": {"k": "v"},
                "ConfigFrom": None,
            },
        )
        id = made.body["Id"]
        assert (made.status, len(id)) == (201, 64)
        shown = (await client.ask("GET", "/networks/br1")).body
        assert (shown["Id"], shown["Scope"], shown["Driver"], shown["Labels"]) == (id, "local", "bridge", {"k": "v"})
        assert shown["IPAM"] == {"Driver": "default", "Options": {}, "Config": [{"Subnet": "172.18.0.0/16", "Gateway": "172.18.0.1"}]}
        for task in ("t" * 25, "c" * 64):
            await world.networks.reserve(id, task)
        places = (await client.ask("GET", f"/networks/{id[:10]}")).body["Containers"]
        assert [(key, place["IPv4Address"]) for key, place in places.items()] == [("t" * 25, "172.18.0.2/16"), ("c" * 64, "172.18.0.3/16")]
        assert places["c" * 64]["MacAddress"] == "02:42:ac:12:00:03"
        in_use = await client.ask("DELETE", "/networks/br1")
        assert in_use.status == 403 and "has active endpoints" in in_use.body["message"]
        await world.networks.release("t" * 25)
        await world.networks.release("c" * 64)
        config = {"Name": "cfg", "ConfigOnly": True, "IPAM": {"Config": [{"Subnet": "10.77.0.0/24"}]}}
        assert (await client.ask("POST", "/networks/create", config)).status == 201
        assert (await client.ask("POST", "/networks/create", {"Name": "made", "ConfigFrom": {"Network": "cfg"}})).status == 201
        derived = (await client.ask("GET", "/networks/made")).body
        assert (derived["ConfigFrom"], derived["IPAM"]["Config"][0]["Subnet"]) == ({"Network": "cfg"}, "10.77.0.0/24")
        assert (await client.ask("GET", "/networks/cfg")).body["ConfigOnly"] is True
        assert (await client.ask("DELETE", "/networks/br1")).status == 204
        assert (await client.ask("GET", "/networks/br1")).status == 404
        told = [(e["Action"], e["Actor"]["Attributes"]) for e in world.events.past() if e["Type"] == "network" and e["scope"] == "local"]
        assert told == [
            ("create", {"name": "br1", "type": "bridge"}),
            ("create", {"name": "made", "type": "bridge"}),
            ("destroy", {"name": "br1", "type": "bridge"}),
        ]

    play(scene, swarm=False)


def test_in_use_removed_and_made_again_at_once() -> None:
    async def scene(client: Client, world: World) -> None:
        subnet = {"IPAM": {"Config": [{"Subnet": "10.50.0.0/24"}]}}
        id = await overlay(client, "net1", **subnet)
        web = await service(client, "web", [{"Target": "net1"}])
        await running(client, world, "web")
        refused = await client.ask("DELETE", "/networks/net1")
        text = f"rpc error: code = FailedPrecondition desc = network {id} is in use by service {web}"
        assert (refused.status, refused.body) == (400, {"message": text})
        for _ in range(3):
            # no time goes by: the controllers have not even seen that the service is gone
            assert (await client.ask("DELETE", "/services/web")).status == 200
            assert (await client.ask("DELETE", "/networks/net1")).status == 204
            assert (await client.ask("DELETE", "/networks/net1")).status == 404
            await overlay(client, "net1", **subnet)
            await service(client, "web", [{"Target": "net1"}])
        (task,) = await running(client, world, "web")
        assert task["NetworksAttachments"][0]["Addresses"][0].startswith("10.50.0.")

    play(scene)


def test_a_place_of_a_container_keeps_the_network() -> None:
    async def scene(client: Client, world: World) -> None:
        id = await overlay(client, "net1", Attachable=True)
        world.decide()
        assert world.store is not None
        place = Task(
            id="p" * 25,
            node_id=world.swarm.info().node_id,
            spec=TaskSpec(network_attachment_spec=AttachmentSpec(container_id="c" * 64)),
            attachments=(Attachment(network_id=id, addresses=("10.0.1.99/24",)),),
            status=TaskStatus(state=TaskState.RUNNING),
        )
        world.store.apply([Create(place, "a container's place")])
        refused = await client.ask("DELETE", "/networks/net1")
        assert refused.body == {"message": f"rpc error: code = FailedPrecondition desc = network {id} is in use by task {'p' * 25}"}
        shown = (await client.ask("GET", "/networks/net1?verbose=1")).body
        assert [t["EndpointIP"] for t in shown["Services"][""]["Tasks"]] == ["10.0.1.99"]
        # clients take an image for granted in what they list: a place is shown to who asks for it
        filters = {"": 0, f'{{"node":["{place.node_id}"]}}': 0, '{"runtime":["container",""]}': 0, '{"runtime":["attachment"]}': 1}
        for filter, number in filters.items():
            listed = (await client.ask("GET", f"/tasks?filters={filter}".removesuffix("?filters="))).body
            assert len(listed) == number, filter
        assert (await client.ask("GET", f"/tasks/{place.id}")).body["Spec"]["NetworkAttachmentSpec"] == {"ContainerID": "c" * 64}
        assert (await client.ask("POST", "/networks/prune")).body == {"NetworksDeleted": None}

    play(scene)


def test_prune() -> None:
    async def scene(client: Client, world: World) -> None:
        for name, labels in (("old", {"keep": "no"}), ("kept", {"keep": "yes"}), ("used", {})):
            await overlay(client, name, Labels=labels)
        await client.ask("POST", "/networks/create", {"Name": "br1"})
        await client.ask("POST", "/networks/create", {"Name": "br2"})
        used = (await client.ask("GET", "/networks/br2")).body["Id"]
        await world.networks.reserve(used, "c" * 64)
        await service(client, "web", [{"Target": "used"}])

        async def prune(filters: str = "") -> Any:
            return (await client.ask("POST", "/networks/prune" + (f"?filters={filters}" if filters else ""))).body

        assert await prune('{"until":["1h"]}') == {"NetworksDeleted": None}
        assert await prune('{"bogus":["1h"]}') == {"message": "invalid filter 'bogus'"}
        assert await prune('{"until":["1h","2h"]}') == {"message": "more than one until filter specified"}
        assert await prune('{"label!":["keep=yes"],"label":["keep"]}') == {"NetworksDeleted": ["old"]}
        assert await prune() == {"NetworksDeleted": ["br1", "kept"]}
        left = sorted(n["Name"] for n in (await client.ask("GET", "/networks")).body)
        assert left == ["br2", "bridge", "host", "ingress", "none", "used"]
        world.steps.time += 7_200_000_000_000
        await world.networks.release("c" * 64)
        assert await prune('{"until":["1h30m"]}') == {"NetworksDeleted": ["br2"]}

    play(scene)


def test_services_and_networks_of_a_node() -> None:
    async def scene(client: Client, world: World) -> None:
        await client.ask("POST", "/networks/create", {"Name": "br1"})
        bridge = (await client.ask("GET", "/networks/bridge")).body["Id"]

        async def create(name: str, target: str) -> tuple[int, str]:
            template = {"ContainerSpec": {"Image": "local:1"}, "Networks": [{"Target": target}]}
            answer = await client.ask("POST", "/services/create", {"Name": name, "TaskTemplate": template})
            return answer.status, answer.body.get("message", "")

        only = "Only networks scoped to the swarm can be used, such as those created with the overlay driver."
        assert await create("a", "br1") == (403, f"The network br1 cannot be used with services. {only}")
        assert await create("b", "nosuch") == (404, "network nosuch not found")
        assert (await create("c", "ingress"))[0] == 400
        assert (await create("d", bridge))[0] == 201
        assert (await create("e", "host"))[0] == 201
        (task,) = await running(client, world, "e")
        assert task["NetworksAttachments"][0]["Network"]["ID"] == "host"
        spec = (await client.ask("GET", "/services/d")).body["Spec"]
        assert spec["TaskTemplate"]["Networks"] == [{"Target": "bridge"}]

    play(scene)


def test_a_container_on_the_host_s_network_has_no_port_of_its_own() -> None:
    """As `docker ps` shows it; Prometheus takes a port that is listed without an address for one to scrape."""

    async def scene(client: Client, world: World) -> None:
        networks = {n["Name"]: n["Id"] for n in (await client.ask("GET", "/networks")).body}
        for mode in ("bridge", "host", "none", "container:bridge"):
            body = {"Image": "local:1", "HostConfig": {"NetworkMode": mode}}
            assert (await client.ask("POST", f"/containers/create?name={mode[:9]}", body)).status == 201
            assert (await client.ask("POST", f"/containers/{mode[:9]}/start")).status == 204
        for name, kept in (("task", "host"), ("other", networks["bridge"])):
            config = ContainerConfig(
                id=name[0] * 64,
                name=name,
                image="local:1",
                args=("serve",),
                labels={TASK_ID: name},
                host_network=kept == "host",
                extra={
                    "networks": [{"id": kept, "addresses": [], "aliases": []}],
                    "ports": msgspec.to_builtins(
                        [PortConfig(protocol="tcp", target_port=80, published_port=8080)] if kept != "host" else []
                    ),
                },
            )
            await world.engine.create(config)
            await world.engine.start(config.id)
        listed = {c["Names"][0]: c for c in (await client.ask("GET", "/containers/json")).body}
        exposed = [{"PrivatePort": 80, "Type": "tcp"}]
        assert {name: c["Ports"] for name, c in listed.items()} == {
            "/bridge": exposed,
            "/host": [],
            "/none": [],
            "/container": [],
            "/task": [],
            "/other": [{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}],
        }
        for name in ("host", "task"):
            shown = (await client.ask("GET", f"/containers/{name}/json")).body["NetworkSettings"]
            assert (shown["Ports"], shown["Networks"]["host"]["NetworkID"]) == ({}, networks["host"])
        found = (await client.ask("GET", '/containers/json?filters={"network":["host"]}')).body
        assert sorted(c["Names"][0] for c in found) == ["/host", "/task"]

    play(scene)


def test_containers_are_connected_and_disconnected() -> None:
    async def scene(client: Client, world: World) -> None:
        await client.ask("POST", "/networks/create", {"Name": "br1"})
        closed = await overlay(client, "closed")
        await overlay(client, "open", Attachable=True)
        world.decide()
        assert world.store is not None
        world.attachments.known += world.store.all(Network)
        made = await client.ask("POST", "/containers/create?name=c1", {"Image": "local:1"})
        assert made.status == 201, made.body
        id = made.body["Id"]
        assert (await client.ask("POST", f"/containers/{id}/start")).status == 204

        async def connect(network: str, container: str = "c1", verb: str = "connect", **more: Any) -> tuple[int, str]:
            answer = await client.ask("POST", f"/networks/{network}/{verb}", {"Container": container, **more})
            return answer.status, answer.body["message"] if answer.body else ""

        assert await connect("nosuch") == (404, "network nosuch not found")
        assert await connect("br1", "nosuch") == (404, "No such container: nosuch")
        denied = "rpc error: code = PermissionDenied desc = network closed not manually attachable"
        for reference in ("closed", closed, closed[:8]):
            assert await connect(reference) == (403, f"Could not attach to network closed: {denied}")
        assert await connect("br1", EndpointConfig={"Aliases": ["a"], "IPAMConfig": {"IPv4Address": "172.18.0.9"}}) == (200, "")
        assert await connect("open", EndpointConfig={"IPAMConfig": {}, "Links": None}) == (200, "")
        assert (await connect("br1"))[0] == 403
        places = (await client.ask("GET", "/networks/br1")).body["Containers"]
        assert {key: (place["Name"], place["IPv4Address"]) for key, place in places.items()} == {id: ("c1", "172.18.0.9/16")}
        places = (await client.ask("GET", "/networks/open")).body["Containers"]
        assert [(key, place["Name"]) for key, place in places.items()] == [(id, "c1"), ("lb-open", "open-endpoint")]
        attached = (await client.ask("GET", "/containers/c1/json")).body["NetworkSettings"]["Networks"]
        assert sorted(attached) == ["br1", "bridge", "open"]
        assert (await client.ask("DELETE", "/networks/br1")).status == 403
        assert await connect("br1", verb="disconnect") == (200, "")
        assert (await connect("br1", verb="disconnect"))[0] == 403
        assert await connect("nosuch", verb="disconnect") == (404, "network nosuch not found")
        assert (await client.ask("DELETE", "/networks/br1")).status == 204
        told = [
            (e["Action"], e["Actor"]["Attributes"]["name"]) for e in world.events.past() if e["Type"] == "network" and e["scope"] == "local"
        ]
        assert [t for t in told if t[1] == "br1"] == [(a, "br1") for a in ("create", "connect", "disconnect", "destroy")]

    play(scene)
