"""`docker stack` and `docker network` with the real command: what is made, what is printed, and that nothing is left."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from test_docker_cli import WEB_1, Docker, docker_version, playing

pytestmark = pytest.mark.skipif(docker_version() < 26, reason="needs the docker command, 26 or newer")
WEB_2 = WEB_1.replace(":1", ":2")

STACK = f"""
services:
  one:
    image: {WEB_1}
    command: top
    labels: {{c: d}}
    networks: {{front: {{aliases: [uno]}}, default: {{}}}}
    ports: ["8080:80"]
    depends_on: [two]
    restart: on-failure
    deploy: {{replicas: 2, labels: {{a: b}}, update_config: {{order: start-first, monitor: 1s}}}}
  two:
    image: {WEB_1}
    command: top
    deploy: {{mode: global, endpoint_mode: dnsrr, update_config: {{monitor: 1s}}}}
networks:
  front:
    driver_opts: {{x: y}}
    attachable: true
    labels: {{n: l}}
    ipam: {{config: [{{subnet: 10.77.0.0/16}}]}}
"""
SECOND = f"""
services:
  one:
    image: {WEB_2}
    command: top
    networks: [front]
    deploy: {{replicas: 2, update_config: {{monitor: 1s}}}}
networks:
  front:
    attachable: true
"""


def play(scene: Callable[[Docker], Awaitable[None]]) -> None:
    async def run() -> None:
        async with playing() as docker:
            await ok(docker, "swarm", "init", "--advertise-addr", "10.0.99.1")
            docker.world.join("node-2", "10.0.99.2")
            await scene(docker)

    asyncio.run(run())


async def ok(docker: Docker, *words: str) -> str:
    status, output = await docker.run(*words)
    assert status == 0, (words, output)
    return output


async def refused(docker: Docker, *words: str) -> str:
    status, output = await docker.run(*words)
    assert status == 1, (words, output)
    return output


def cells(table: str) -> list[list[str]]:
    return [re.split(r" {2,}", line.strip()) for line in table.splitlines()]


def test_deploy_look_again_prune_and_remove(tmp_path: Path) -> None:
    """A stack's life, whole: each step needs the one before."""
    file, second = tmp_path / "stack.yml", tmp_path / "second.yml"
    file.write_text(STACK)
    second.write_text(SECOND)

    async def scene(docker: Docker) -> None:
        output = await ok(docker, "stack", "deploy", "--detach=false", "-c", str(file), "demo")
        lines = output.splitlines()
        assert {
            "Creating network demo_default",
            "Creating network demo_front",
            "Creating service demo_one",
            "Creating service demo_two",
        } <= {line.strip() for line in lines}
        assert len(re.findall(r"Service [0-9a-z]{25} converged", output)) == 2, output
        assert cells(await ok(docker, "stack", "ls")) == [["NAME", "SERVICES"], ["demo", "2"]]
        services = cells(await ok(docker, "stack", "services", "demo"))
        assert [row[1:] for row in services[1:]] == [
            ["demo_one", "replicated", "2/2", WEB_1, "*:8080->80/tcp"],
            ["demo_two", "global", "2/2", WEB_1],
        ]
        assert len(cells(await ok(docker, "stack", "ps", "demo"))) == 5
        listed = await ok(
            docker, "network", "ls", "--filter", "label=com.docker.stack.namespace=demo", "--format", "{{.Name}} {{.Driver}} {{.Scope}}"
        )
        assert listed.split("\n")[:2] == ["demo_default overlay swarm", "demo_front overlay swarm"]
        front = await ok(
            docker, "network", "inspect", "-f", "{{json .IPAM.Config}} {{.Attachable}} {{.Labels.n}} {{.Options.x}}", "demo_front"
        )
        assert front.strip() == '[{"Subnet":"10.77.0.0/16","Gateway":"10.77.0.1"}] true l y'
        one = await ok(docker, "service", "inspect", "-f", "{{json .Spec.TaskTemplate.Networks}} {{len .Endpoint.VirtualIPs}}", "demo_one")
        assert '"Aliases":["uno","one"]' in one and one.strip().endswith(" 3")
        assert (await ok(docker, "service", "inspect", "-f", "{{json .Endpoint.VirtualIPs}}", "demo_two")).strip() == "null"
        assert "Networks:" in await ok(docker, "service", "inspect", "--pretty", "demo_one")

        same = await ok(docker, "stack", "deploy", "-d", "-c", str(file), "demo")
        assert len(re.findall(r"Updating service demo_(?:one|two) \(id: [0-9a-z]{25}\)", same)) == 2 and "Creating" not in same
        assert len(cells(await ok(docker, "stack", "ps", "demo"))) == 5, "the same again replaces nothing"

        pruned = await ok(docker, "stack", "deploy", "--detach=false", "--prune", "-c", str(second), "demo")
        assert "Removing service demo_two" in pruned and "Updating service demo_one" in pruned, pruned
        rows = cells(await ok(docker, "stack", "services", "demo"))[1:]
        assert [row[1:] for row in rows] == [["demo_one", "replicated", "2/2", WEB_2]]
        assert (await ok(docker, "network", "rm", "demo_default")).strip() == "demo_default"
        in_use = await refused(docker, "network", "rm", "demo_front")
        assert re.search(r"rpc error: code = FailedPrecondition desc = network [0-9a-z]{25} is in use by service [0-9a-z]{25}", in_use)

        removed = await ok(docker, "stack", "rm", "demo")
        assert sorted(removed.splitlines()) == ["Removing network demo_front", "Removing service demo_one"]
        again = await ok(docker, "stack", "deploy", "-d", "-c", str(file), "demo")
        assert "Creating network demo_front" in again, "at once, with the same subnet, while the old tasks go down"
        waited = await ok(docker, "stack", "rm", "--detach=false", "demo")
        assert len(re.findall("Removing", waited)) == 4
        assert cells(await ok(docker, "stack", "ls")) == [["NAME", "SERVICES"]]
        assert (await ok(docker, "network", "ls", "-q", "--filter", "label=com.docker.stack.namespace=demo")) == ""
        assert "Nothing found in stack: demo" in await ok(docker, "stack", "rm", "demo")
        while (gone := await docker.run("stack", "ps", "demo"))[0] == 0:
            pass  # the command stops waiting when as many have stopped as are left
        assert "nothing found in stack: demo" in gone[1]
        assert "Nothing found in stack: demo" in await ok(docker, "stack", "services", "demo")

    play(scene)


def test_external_networks_and_what_is_refused(tmp_path: Path) -> None:
    def stack(text: str) -> str:
        file = tmp_path / "stack.yml"
        file.write_text(text)
        return str(file)

    external = f"services: {{a: {{image: '{WEB_1}', networks: [n]}}}}\nnetworks: {{n: {{external: true, name: NAME}}}}\n"

    async def scene(docker: Docker) -> None:
        async def deploy(text: str) -> str:
            return await refused(docker, "stack", "deploy", "-d", "-c", stack(text), "s")

        assert 'network "nonet" is declared as external, but could not be found' in await deploy(external.replace("NAME", "nonet"))
        await ok(docker, "network", "create", "br1")
        wrong = await deploy(external.replace("NAME", "br1"))
        assert 'network "br1" is declared as external, but it is not in the right scope: "local" instead of "swarm"' in wrong
        await ok(docker, "network", "create", "-d", "overlay", "net1")
        await ok(docker, "stack", "deploy", "-d", "-c", stack(external.replace("NAME", "net1")), "s")
        assert (await ok(docker, "stack", "rm", "s")).strip() == "Removing service s_a"
        await ok(docker, "network", "inspect", "net1")

        bridge = f"services: {{a: {{image: '{WEB_1}', networks: [s]}}}}\nnetworks: {{s: {{driver: bridge}}}}\n"
        said = await deploy(bridge)
        assert "The network s_s cannot be used with services. Only networks scoped to the swarm can be used" in said
        await ok(docker, "stack", "rm", "s")

        secret = f"services: {{a: {{image: '{WEB_1}', secrets: [pw]}}}}\nsecrets: {{pw: {{file: ./pw}}}}\n"
        (tmp_path / "pw").write_text("x")
        said = await deploy(secret)
        assert "skep does not keep secrets yet" in said, said
        config = f"services: {{a: {{image: '{WEB_1}', configs: [app]}}}}\nconfigs: {{app: {{file: ./pw}}}}\n"
        assert "skep does not keep configs yet" in await deploy(config)
        labelled = f"services: {{a: {{image: '{WEB_1}', deploy: {{labels: {{skep.drian: 5s}}}}}}}}\n"
        assert 'skep knows no label "skep.drian": the known ones are' in await deploy(labelled)
        await ok(docker, "stack", "rm", "s")
        shown = await ok(docker, "stack", "config", "-c", stack(STACK))
        assert "10.77.0.0/16" in shown

    play(scene)


def test_networks() -> None:
    async def scene(docker: Docker) -> None:
        id = (
            await ok(docker, "network", "create", "-d", "overlay", "--attachable", "--subnet", "10.9.0.0/24", "--label", "a=b", "net1")
        ).strip()
        assert re.fullmatch("[0-9a-z]{25}", id)
        assert "network with name net1 already exists" in await refused(docker, "network", "create", "net1")
        assert "IPv4 only" in await refused(docker, "network", "create", "-d", "overlay", "--ipv6", "net2")
        assert "does not encrypt" in await refused(docker, "network", "create", "-d", "overlay", "-o", "encrypted", "net2")
        local = (await ok(docker, "network", "create", "--subnet", "172.30.0.0/16", "--ip-range", "172.30.5.0/24", "br1")).strip()
        assert re.fullmatch("[0-9a-f]{64}", local)
        table = cells(await ok(docker, "network", "ls"))
        assert [row[1:] for row in table] == [
            ["NAME", "DRIVER", "SCOPE"],
            ["br1", "bridge", "local"],
            ["bridge", "bridge", "local"],
            ["host", "host", "local"],
            ["ingress", "overlay", "swarm"],
            ["net1", "overlay", "swarm"],
            ["none", "null", "local"],
        ]
        create = (
            "service",
            "create",
            "-q",
            "--name",
            "web",
            "--network",
            "name=net1,alias=al1,driver-opt=k=v",
            "--endpoint-mode",
            "dnsrr",
            "--update-monitor",
            "1s",
        )
        await ok(docker, *create, WEB_1, "top")
        spec = await ok(docker, "service", "inspect", "-f", "{{json .Spec.TaskTemplate.Networks}} {{.Spec.EndpointSpec.Mode}}", "web")
        assert spec.strip() == f'[{{"Target":"{id}","Aliases":["al1"],"DriverOpts":{{"k":"v"}}}}] dnsrr'
        await ok(docker, "network", "create", "-d", "overlay", "net2")
        await ok(docker, "service", "update", "-q", "--network-rm", "net1", "--network-add", "net2", "--endpoint-mode", "vip", "web")
        shown = await ok(docker, "network", "inspect", "-v", "-f", "{{json .Services}}", "net2")
        assert '"VIP":"10.0.' in shown and "web.1." in shown
        assert (await ok(docker, "network", "inspect", "-f", "{{len .Containers}}", "net1")).strip() == "0"
        assert (await ok(docker, "network", "rm", "net1")).strip() == "net1"
        assert f"network {local} not found" in await refused(docker, "service", "update", "-d", "--network-add", local, "web")
        pruned = await ok(docker, "network", "prune", "-f")
        assert pruned.split() == ["Deleted", "Networks:", "br1"]
        assert "is a pre-defined network and cannot be removed" in await refused(docker, "network", "rm", "bridge")
        assert (await ok(docker, "network", "rm", "-f", "nosuch")) == ""
        assert "depends on it" not in await ok(docker, "service", "rm", "web")
        await ok(docker, "network", "rm", "net2")

    play(scene)
