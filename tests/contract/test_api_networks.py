"""Networks over the API: of the cluster and of the node, what is refused and how, and what inspect shows of who is there."""

from __future__ import annotations

from typing import Any

import pytest
from api_world import World
from networks_world import overlay, play, running, service

from skep.model.network import Network
from skep.model.spec import IPAMConfig, NetworkSpec
from skep.testing.api_client import Client

VXLAN = "com.docker.network.driver.overlay.vxlanid_list"


IN = "rpc error: code = InvalidArgument desc = "


NO_SWARM = 'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.'


def test_an_overlay_as_docker_shows_it() -> None:
    async def scene(client: Client, world: World) -> None:
        id = await overlay(
            client,
            "net1",
            Attachable=True,
            Internal=True,
            Labels={"a": "b"},
            Options={"x": "y", "com.docker.network.driver.mtu": "1400"},
            IPAM={
                "Driver": "default",
                "Options": {"foo": "bar"},
                "Config": [
                    {"Subnet": "10.9.0.0/16", "IPRange": "10.9.4.0/24", "Gateway": "10.9.4.9", "AuxiliaryAddresses": {"r": "10.9.4.1"}}
                ],
            },
        )
        world.decide()
        shown = (await client.ask("GET", "/networks/net1")).body
        assert shown == {
            "Name": "net1",
            "Id": id,
            "Created": shown["Created"],
            "Scope": "swarm",
            "Driver": "overlay",
            "EnableIPv4": True,
            "EnableIPv6": False,
            "IPAM": {
                "Driver": "default",
                "Options": {"foo": "bar", "com.docker.network.ipam.serial": "true"},
                "Config": [
                    {"Subnet": "10.9.0.0/16", "IPRange": "10.9.4.0/24", "Gateway": "10.9.4.9", "AuxiliaryAddresses": {"r": "10.9.4.1"}}
                ],
            },
            "Internal": True,
            "Attachable": True,
            "Ingress": False,
            "ConfigFrom": {"Network": ""},
            "ConfigOnly": False,
            "Containers": {},
            "Options": {"x": "y", "com.docker.network.driver.mtu": "1400", VXLAN: "4097"},
            "Labels": {"a": "b"},
        }
        await service(client, "web", [{"Target": "net1"}])
        (task,) = await running(client, world, "web")
        assert task["NetworksAttachments"][0]["Addresses"] == ["10.9.4.2/16"], "the range only: .0 is the service's, .1 reserved"
        again = (await client.ask("GET", f"/networks/{id}")).body
        assert again["Created"] == shown["Created"]
        assert set(again["Containers"]) == {task["Status"]["ContainerStatus"]["ContainerID"], "lb-net1"}

    play(scene)


def test_who_is_there() -> None:
    async def scene(client: Client, world: World) -> None:
        world.join("node-2", "10.0.99.2")
        await overlay(client, "net1")
        await overlay(client, "net2")
        id = await service(
            client,
            "web",
            [{"Target": "net1", "Aliases": ["al"], "DriverOpts": {"o": "1"}}, {"Target": "net2"}],
            Mode={"Replicated": {"Replicas": 2}},
            EndpointSpec={"Ports": [{"TargetPort": 80, "PublishedPort": 8080}]},
        )
        await service(client, "rr", [{"Target": "net1"}], EndpointSpec={"Mode": "dnsrr"})
        tasks = await running(client, world, "web", 2)
        (alone,) = await running(client, world, "rr")
        places = [(a["Network"]["Spec"]["Name"], a["Network"]["ID"]) for a in tasks[0]["NetworksAttachments"]]
        assert [name for name, _ in places] == ["ingress", "net1", "net2"]
        assert tasks[0]["Spec"]["Networks"][0] == {"Target": places[1][1], "Aliases": ["al"], "DriverOpts": {"o": "1"}}
        vips = (await client.ask("GET", f"/services/{id}")).body["Endpoint"]["VirtualIPs"]
        assert len(vips) == 3
        assert "VirtualIPs" not in (await client.ask("GET", "/services/rr")).body["Endpoint"]
        shown = (await client.ask("GET", "/networks/net1?verbose=true&scope=swarm")).body
        assert [peer["IP"] for peer in shown["Peers"]] == ["10.0.99.1"]
        assert set(shown["Services"]) == {"web", "rr"}
        web, rr = shown["Services"]["web"], shown["Services"]["rr"]
        assert (web["VIP"], web["Ports"], rr["VIP"]) == (vips[1]["Addr"].partition("/")[0], [], "<nil>")
        assert web["LocalLBIndex"] != rr["LocalLBIndex"]
        assert {entry["Name"] for entry in web["Tasks"]} == {f"web.{t['Slot']}.{t['ID']}" for t in tasks}
        own = shown["Containers"]
        for task in tasks:
            place = own[task["Status"]["ContainerStatus"]["ContainerID"]]
            entry = next(e for e in web["Tasks"] if e["Name"] == place["Name"])
            assert (entry["EndpointID"], entry["EndpointIP"]) == (place["EndpointID"], place["IPv4Address"].partition("/")[0])
            assert entry["Info"] == {"Host IP": "10.0.99.1"}
        lb = own["lb-net1"]
        assert (lb["Name"], lb["IPv4Address"], len(own)) == ("net1-endpoint", f"{shown['IPAM']['Config'][0]['Gateway']}/24", 4)
        assert alone["Status"]["ContainerStatus"]["ContainerID"] in own
        ingress = (await client.ask("GET", "/networks/ingress?verbose=true")).body
        assert (ingress["Containers"]["ingress-sbox"]["Name"], len(ingress["Peers"])) == ("ingress-endpoint", 2)
        assert ingress["Services"]["web"]["Ports"] == ["Target: 80, Publish: 8080"]

    play(scene)


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"Name": ""}, 400, "invalid name: name is empty"),
    ({"Name": "net1", "Driver": "overlay"}, 409, "network with name net1 already exists"),
    ({"Name": "net1"}, 409, "network with name net1 already exists"),
    ({"Name": "br1"}, 409, "network with name br1 already exists"),
    ({"Name": "br1", "Driver": "overlay"}, 409, "network with name br1 already exists"),
    ({"Name": "bridge"}, 409, "network with name bridge already exists"),
    ({"Name": "n", "Driver": "overlay", "EnableIPv6": True}, 501, "skep's overlay networks carry IPv4 only: leave IPv6 out"),
    ({"Name": "n", "Driver": "overlay", "EnableIPv4": False}, 400, "IPv4 cannot be disabled in a Swarm scoped network"),
    (
        {"Name": "n", "Driver": "overlay", "Options": {"encrypted": ""}},
        501,
        "skep does not encrypt overlay networks: leave the option encrypted out, and encrypt between the hosts",
    ),
    (
        {"Name": "n", "Driver": "overlay", "IPAM": {"Config": [{"Subnet": "10.0.0.0/24"}]}},
        400,
        IN + "invalid pool request: Pool overlaps with other one on this address space",
    ),
    (
        {"Name": "n", "Driver": "overlay", "IPAM": {"Config": [{"Subnet": "10.0.0.7/24", "Gateway": "10.1.0.1", "IPRange": "10.0.0.0/8"}]}},
        400,
        "invalid network config:\ninvalid subnet 10.0.0.7/24: it should be 10.0.0.0/24\n"
        "invalid ip-range 10.0.0.0/8: CIDR block is bigger than its parent subnet 10.0.0.0/24\n"
        "invalid gateway 10.1.0.1: parent subnet 10.0.0.0/24 doesn't contain this address",
    ),
    (
        {"Name": "n", "IPAM": {"Config": [{"Subnet": "10.0.0.0"}]}},
        400,
        "invalid network config:\ninvalid subnet 10.0.0.0: invalid CIDR block notation",
    ),
    (
        {"Name": "n", "Driver": "overlay", "IPAM": {"Driver": "dhcp"}},
        400,
        IN + "invalid IPAM specified: dhcp",
    ),
    (
        {"Name": "n9", "Driver": "overlay", "Ingress": True},
        409,
        "rpc error: code = AlreadyExists desc = ingress network (INGRESS) is already present",
    ),
    ({"Name": "a b", "Driver": "overlay"}, 400, IN + "name must be valid as a DNS name component"),
    (
        {"Name": "n", "Driver": "bridge", "Scope": "swarm"},
        501,
        "skep's cluster networks are overlay networks: it has none with driver bridge",
    ),
    (
        {"Name": "n", "Driver": "overlay", "Scope": "local"},
        400,
        "overlay networks belong to the cluster: leave the scope out, or say swarm",
    ),
    (
        {"Name": "n", "Driver": "overlay", "ConfigFrom": {"Network": "br1"}},
        501,
        "skep's cluster networks take no configuration from a network of a node: give the options themselves",
    ),
    ({"Name": "n", "Driver": "host"}, 403, 'only one instance of "host" network is allowed'),
    (
        {"Name": "n", "Driver": "macvlan"},
        501,
        "skep has no network driver macvlan: a node's own networks are bridges, the cluster's are overlays",
    ),
    ({"Name": "n", "EnableIPv6": True}, 501, "skep's bridge networks carry IPv4 only: leave IPv6 out"),
    ({"Name": "n", "IPAM": {"Driver": "dhcp"}}, 501, "skep has no IPAM driver dhcp: use default"),
    ({"Name": "n", "ConfigFrom": {"Network": "nosuch"}}, 404, 'configuration network "nosuch" does not exist'),
]


def test_what_is_refused_and_how() -> None:
    async def scene(client: Client, world: World) -> None:
        await overlay(client, "net1")
        assert (await client.ask("POST", "/networks/create", {"Name": "br1"})).status == 201
        world.decide()
        ingress = (await client.ask("GET", "/networks/ingress")).body["Id"]
        before = (await client.ask("GET", "/networks")).body
        for request, status, text in REFUSED:
            answer = await client.ask("POST", "/networks/create", request)
            assert (answer.status, answer.body) == (status, {"message": text.replace("INGRESS", ingress)}), request
        for path, status, text in (
            ("nosuch", 404, "network nosuch not found"),
            ("bridge", 403, "bridge is a pre-defined network and cannot be removed"),
        ):
            answer = await client.ask("DELETE", f"/networks/{path}")
            assert (answer.status, answer.body) == (status, {"message": text})
        assert (await client.ask("GET", "/networks")).body == before

    play(scene)


def test_outside_of_a_swarm_and_on_a_worker() -> None:
    async def scene(client: Client, world: World) -> None:
        wanted = {"Name": "net1", "Driver": "overlay"}
        refused = await client.ask("POST", "/networks/create", wanted)
        assert (refused.status, refused.body) == (403, {"message": NO_SWARM})
        predefined = await client.ask("POST", "/networks/create", {"Name": "bridge"})
        assert (predefined.status, predefined.body) == (403, {"message": "operation is not permitted on predefined bridge network "})
        world.swarm.tokens.add("t")
        assert (await client.ask("POST", "/swarm/join", {"JoinToken": "t", "RemoteAddrs": ["10.0.99.9:2377"]})).status == 200
        refused = await client.ask("POST", "/networks/create", wanted)
        assert (refused.status, refused.body) == (403, {"message": NO_SWARM})
        spec = NetworkSpec(name="net1", attachable=True, scope="swarm")
        world.attachments.known.append(
            Network(id="n" * 25, spec=spec, ipam=(IPAMConfig(subnet="10.0.1.0/24", gateway="10.0.1.1"),), vni=4097)
        )
        listed = (await client.ask("GET", '/networks?filters={"scope":["swarm"]}')).body
        assert [(n["Name"], n["Id"]) for n in listed] == [("net1", "n" * 25)]
        shown = (await client.ask("GET", "/networks/net1")).body
        assert (shown["IPAM"]["Config"][0]["Subnet"], shown["Options"], shown["Containers"]) == ("10.0.1.0/24", {VXLAN: "4097"}, {})
        assert (await client.ask("POST", "/networks/create", {"Name": "net1"})).status == 409
        removed = await client.ask("DELETE", "/networks/net1")
        assert (removed.status, "Worker nodes can't be used to view or modify cluster state." in removed.body["message"]) == (503, True)
        assert (await client.ask("DELETE", "/networks/nosuch")).status == 404
        bridge = (await client.ask("GET", "/networks/bridge")).body["Id"]
        named = Network(id="z" * 25, spec=NetworkSpec(name=bridge[0], attachable=True, scope="swarm"), vni=4099)
        world.attachments.elsewhere.append(named)
        assert (await client.ask("GET", f"/networks/{bridge[0]}")).body["Id"] == named.id, "a name, before the beginning of an id"
        assert (await client.ask("GET", f"/networks/{bridge[:12]}")).body["Id"] == bridge
        world.attachments.closed.append(Network(id="c" * 25, spec=NetworkSpec(name="closed", scope="swarm"), vni=4098))
        assert (await client.ask("GET", "/networks/closed")).status == 404, "it is not told of what does not concern it"
        refused = await client.ask("POST", "/networks/closed/connect", {"Container": "c1"})
        why = "rpc error: code = PermissionDenied desc = network closed not manually attachable"
        assert (refused.status, refused.body["message"]) == (403, f"Could not attach to network closed: {why}")

    play(scene, swarm=False)


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ('{"scope":["swarm"]}', ["ingress", "net1", "net2"]),
        ('{"scope":["global"]}', ["ingress", "net1", "net2"]),
        ('{"scope":["local"]}', ["br1", "bridge", "host", "none"]),
        ('{"driver":{"overlay":true}}', ["ingress", "net1", "net2"]),
        ('{"driver":["null"]}', ["none"]),
        ('{"type":["custom"]}', ["br1", "net1", "net2"]),
        ('{"type":["builtin"]}', ["bridge", "host", "ingress", "none"]),
        ('{"name":["net"]}', ["net1", "net2"]),
        ('{"name":["^net1$","br1"]}', ["br1", "net1"]),
        ('{"label":["a=b"]}', ["net1"]),
        ('{"label":["a"]}', ["br1", "net1"]),
        ('{"label":["a","a=b"]}', ["net1"]),
        ('{"dangling":["true"]}', ["br1", "net2"]),
        ('{"idOrName":["net2"]}', ["net2"]),
        ('{"id":["NET1"]}', ["net1"]),
    ],
)
def test_filters(filters: str, names: list[str]) -> None:
    async def scene(client: Client, world: World) -> None:
        id = await overlay(client, "net1", Labels={"a": "b"})
        await overlay(client, "net2")
        await client.ask("POST", "/networks/create", {"Name": "br1", "Labels": {"a": "c"}})
        await service(client, "web", [{"Target": "net1"}])
        await running(client, world, "web")
        shown = (await client.ask("GET", "/networks?filters=" + filters.replace("NET1", id[:9]))).body
        assert sorted(n["Name"] for n in shown) == names

    play(scene)


def test_a_name_that_begins_another_network_s_id() -> None:
    async def scene(client: Client, world: World) -> None:
        id = await overlay(client, "net1")
        name = next(id[:n] for n in range(3, 25) if not id[:n].isdigit())
        await overlay(client, name)
        assert (await client.ask("GET", f"/networks/{name}")).body["Name"] == name
        assert (await client.ask("DELETE", f"/networks/{name}")).status == 204
        assert (await client.ask("GET", f"/networks/{name}")).body["Name"] == "net1"

    play(scene)


def test_ingress_removed_and_made_again_with_another_subnet() -> None:
    async def scene(client: Client, world: World) -> None:
        ports = {"EndpointSpec": {"Ports": [{"TargetPort": 80, "PublishedPort": 8080}]}}
        web = await service(client, "web", [], **ports)
        await running(client, world, "web")
        refused = await client.ask("DELETE", "/networks/ingress")
        assert (refused.status, refused.body["message"]) == (
            400,
            f"rpc error: code = FailedPrecondition desc = ingress network cannot be removed because service {web} depends on it",
        )
        assert (await client.ask("DELETE", "/services/web")).status == 200
        assert (await client.ask("DELETE", "/networks/ingress")).status == 204
        template = {"ContainerSpec": {"Image": "local:1"}}
        none = await client.ask("POST", "/services/create", {"Name": "web", "TaskTemplate": template, **ports})
        assert (none.status, "no ingress network is present" in none.body["message"]) == (400, True)
        plain = await client.ask("POST", "/services/create", {"Name": "plain", "TaskTemplate": template})
        assert plain.status == 201
        shown = (await client.ask("GET", "/services/plain")).body
        added = await client.ask("POST", f"/services/plain/update?version={shown['Version']['Index']}", {**shown["Spec"], **ports})
        assert (added.status, "no ingress network is present" in added.body["message"]) == (400, True)
        await overlay(
            client,
            "front",
            Ingress=True,
            IPAM={"Config": [{"Subnet": "10.11.0.0/16", "Gateway": "10.11.0.2"}]},
            Options={"com.docker.network.driver.mtu": "1200"},
        )
        await service(client, "web", [], **ports)
        (task,) = await running(client, world, "web")
        place = task["NetworksAttachments"][0]
        assert (place["Network"]["Spec"]["Name"], place["Addresses"][0].startswith("10.11.0.")) == ("front", True)
        vip = (await client.ask("GET", "/services/web")).body["Endpoint"]["VirtualIPs"][0]["Addr"]
        assert vip.startswith("10.11.0.") and vip.endswith("/16")
        sandbox = (await client.ask("GET", "/networks/front")).body["Containers"]["ingress-sbox"]
        assert sandbox["IPv4Address"] == "10.11.0.2/16"

    play(scene)


def test_no_address_is_left_is_said_on_the_task() -> None:
    async def scene(client: Client, world: World) -> None:
        await overlay(client, "tiny", IPAM={"Config": [{"Subnet": "10.60.0.0/29"}]})
        await service(client, "web", [{"Target": "tiny"}], Mode={"Replicated": {"Replicas": 6}})
        await running(client, world, "web", 4)
        for _ in range(8):
            world.step()
        tasks = (await client.ask("GET", '/tasks?filters={"service":["web"]}')).body
        waiting = [task["Status"] for task in tasks if task["Status"]["State"] == "new"]
        assert len(waiting) == 2
        assert waiting[0]["Err"] == "could not find an available IP while allocating the task's address in network tiny (10.60.0.0/29)"

    play(scene)
