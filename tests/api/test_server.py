"""The server itself: paths and versions, headers, bodies, what is refused, events, and clients that go away."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import Awaitable, Callable

import msgspec

from skep.api.localevents import PAST, LocalEvents, message
from skep.engine.base import ContainerConfig, Image
from skep.model.enums import TaskState
from skep.model.spec import ServiceSpec, TaskSpec
from skep.model.task import Task
from skep.plan.ops import Change, Create
from skep.testing.api_client import Client, next_chunk, serving
from skep.testing.fake_context import FakeContext, StepClock

INIT = {"AdvertiseAddr": "10.0.99.1"}
SPEC = {"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "local:1"}}}


def context() -> FakeContext:
    return FakeContext(StepClock(), random.Random(1))


def play(scene: Callable[[Client, FakeContext], Awaitable[None]]) -> None:
    async def run() -> None:
        world = context()
        async with serving(world) as client:
            await scene(client, world)

    asyncio.run(run())


def test_every_answer_carries_docker_s_headers_but_an_unknown_path() -> None:
    async def scene(client: Client, world: FakeContext) -> None:
        for path in ("/_ping", "/info", "/v1.24/version", "/nodes", "/v1.99/info"):
            headers = (await client.ask("GET", path)).headers
            assert (headers["Api-Version"], headers["Ostype"], headers["Docker-Experimental"]) == ("1.50", "linux", "false"), path
            assert headers["Server"].startswith("skep/"), path
        answer = await client.ask("GET", "/nosuch")
        assert (answer.status, answer.raw) == (404, b'{"message":"page not found"}\n')
        assert "Api-Version" not in answer.headers

    play(scene)


def test_methods_that_docker_does_not_serve_are_not_found() -> None:
    async def scene(client: Client, world: FakeContext) -> None:
        for method, path in (("PUT", "/services"), ("PATCH", "/info"), ("DELETE", "/_ping"), ("GET", "/services/create/x")):
            assert (await client.ask(method, path)).body == {"message": "page not found"}, (method, path)

    play(scene)


def test_ping_says_where_the_node_stands() -> None:
    async def scene(client: Client, world: FakeContext) -> None:
        assert (await client.ask("HEAD", "/_ping")).headers["Swarm"] == "inactive"
        await client.ask("POST", "/swarm/init", INIT)
        assert (await client.ask("GET", "/_ping")).headers["Swarm"] == "active/manager"

    play(scene)


def test_bodies_must_be_json_of_bounded_size() -> None:
    async def scene(client: Client, world: FakeContext) -> None:
        await client.ask("POST", "/swarm/init", INIT)
        wrong = await client.ask("POST", "/services/create", "x", {"Content-Type": "text/plain"})
        assert (wrong.status, wrong.body["message"]) == (400, "unsupported Content-Type header (text/plain): must be 'application/json'")
        broken = await client.ask("POST", "/services/create", "{bad")
        assert broken.body["message"] == "invalid JSON: invalid character 'b' looking for beginning of object key string"
        mistyped = await client.ask("POST", "/services/create", {"Name": 7})
        assert mistyped.status == 400 and mistyped.body["message"].startswith("invalid JSON: ")
        negative = await client.ask("POST", "/services/create", {**SPEC, "Mode": {"Replicated": {"Replicas": -1}}})
        assert negative.status == 400 and "-1" in negative.body["message"]
        charset = await client.ask("POST", "/services/create", SPEC, {"Content-Type": "application/json; charset=utf-8"})
        assert charset.status == 201
        huge = await client.ask("POST", "/services/create", b" " * (17 << 20))
        assert huge.status == 413

    play(scene)


def test_a_body_after_expect_100_continue_is_read() -> None:
    async def scene(client: Client, world: FakeContext) -> None:
        status, _, reader, writer = await client.open("POST", "/swarm/init", INIT, {"Expect": "100-continue"})
        assert status == 100
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()

    play(scene)


def test_nulls_are_zero_values() -> None:
    async def scene(client: Client, world: FakeContext) -> None:
        await client.ask("POST", "/swarm/init", {"ListenAddr": None, **INIT, "Spec": {"Labels": None}})
        made = await client.ask("POST", "/services/create", {**SPEC, "Labels": None, "Mode": None, "EndpointSpec": {"Ports": None}})
        assert made.status == 201
        shown = (await client.ask("GET", "/services/web")).body
        assert (shown["Spec"]["Labels"], shown["Spec"]["Mode"]) == ({}, {"Replicated": {"Replicas": 1}})

    play(scene)


def test_a_login_is_the_registrys_to_take() -> None:
    async def scene(client: Client, world: FakeContext) -> None:
        asked = {"username": "ann", "password": "s3cret", "email": "", "serveraddress": "registry:5000"}
        taken = await client.ask("POST", "/auth", asked)
        assert (taken.status, taken.body) == (200, {"Status": "Login Succeeded", "IdentityToken": ""})
        ((server, auth),) = world.engine.images.logins
        assert (server, json.loads(base64.urlsafe_b64decode(auth))["password"]) == ("registry:5000", "s3cret")
        refused = await client.ask("POST", "/auth", {**asked, "serveraddress": "closed:5000"})
        assert refused.status == 401 and "unauthorized: incorrect username or password" in refused.body["message"]

    play(scene)


def test_what_is_not_built_is_refused_and_reads_answer() -> None:
    async def scene(client: Client, world: FakeContext) -> None:
        await client.ask("POST", "/swarm/init", INIT)
        for method, path in (
            ("POST", "/secrets/create"), ("POST", "/configs/create"),
            ("POST", "/build"),
            ("GET", "/images/json?manifests=1"), ("POST", "/images/create?fromSrc=http://x/y"),
        ):  # fmt: skip
            answer = await client.ask(method, path, {} if method == "POST" else None)
            assert answer.status == 501 and answer.body["message"].startswith("skep "), (path, answer.raw)
        for path, body in (
            ("/secrets", []), ("/configs", []), ("/plugins", []), ("/volumes", {"Volumes": [], "Warnings": None}),
            ("/system/df", {"LayersSize": 0, "Images": [], "Containers": [], "Volumes": [], "BuildCache": []}),
            ("/services", []), ("/tasks", []), ("/containers/json", []), ("/images/json", []),
        ):  # fmt: skip
            answer = await client.ask("GET", path)
            assert (answer.status, answer.body) == (200, body), path
        for path in (
            "/secrets/x",
            "/configs/x",
            "/volumes/x",
            "/plugins/x/json",
            "/networks/x",
            "/images/x/json",
            "/services/x",
            "/tasks/x",
        ):
            assert (await client.ask("GET", path)).status == 404, path

    play(scene)


def test_networks_of_a_node_outside_any_swarm() -> None:
    async def scene(client: Client, world: FakeContext) -> None:
        shown = (await client.ask("GET", "/networks")).body
        assert [n["Name"] for n in shown] == ["bridge", "host", "none"]
        assert (await client.ask("GET", f"/networks/{shown[1]['Id']}")).body["Name"] == "host"
        assert (await client.ask("GET", f"/networks/{shown[1]['Id'][:12]}?scope=local")).body["Driver"] == "host"
        assert (await client.ask("GET", "/networks/host?scope=swarm")).status == 404
        assert (await client.ask("DELETE", "/networks/bridge")).body == {"message": "bridge is a pre-defined network and cannot be removed"}
        refused = await client.ask("POST", "/networks/create", {"Name": "o", "Driver": "overlay"})
        assert refused.status == 403
        await client.ask("POST", "/swarm/init", INIT)
        named = (await client.ask("GET", '/networks?filters={"name":["ing"],"scope":["swarm"]}')).body
        assert [n["Name"] for n in named] == ["ingress"]
        assert (await client.ask("GET", '/networks?filters={"type":["custom"]}')).body == []
        ingress = (await client.ask("GET", "/networks/ingress?verbose=true")).body
        assert (ingress["Ingress"], ingress["Scope"], ingress["Driver"], ingress["Services"]) == (True, "swarm", "overlay", {})
        swarm_host = (await client.ask("GET", "/networks/host?scope=swarm")).body
        assert (swarm_host["Scope"], swarm_host["Driver"]) == ("swarm", "host")

    play(scene)


def test_a_pull_streams_progress_and_fails_with_a_status_or_a_line() -> None:
    async def scene(client: Client, world: FakeContext) -> None:
        image = Image(id="sha256:" + "1" * 64, tags=("registry:5000/web:1",), digests=("registry:5000/web@sha256:" + "2" * 64,))
        world.engine.images.remote["registry:5000/web:1"] = image
        answer = await client.ask("POST", "/images/create?fromImage=registry:5000/web&tag=1")
        lines = [msgspec.json.decode(line) for line in answer.raw.splitlines()]
        assert lines[0] == {"status": "Pulling from web", "id": "1"}
        assert lines[-1] == {"status": "Status: Downloaded newer image for registry:5000/web:1"}
        assert answer.headers["Content-Type"] == "application/json"
        missing = await client.ask("POST", "/images/create?fromImage=nosuch&tag=1")
        assert (missing.status, missing.body["message"]) == (404, "manifest for nosuch:1 not found: manifest unknown: manifest unknown")
        assert (await client.ask("POST", "/images/create?fromImage=BAD")).status == 400

    play(scene)


def test_events_come_at_once_and_end_at_until() -> None:
    async def scene(client: Client, world: FakeContext) -> None:
        await client.ask("POST", "/swarm/init", INIT)
        while not any(e["scope"] == "swarm" for e in world.events.past()):
            assert (await client.ask("POST", "/services/create", {**SPEC, "Name": ""})).status == 201
        status, headers, reader, writer = await client.open("GET", '/events?filters={"type":["service"],"event":["create"]}')
        assert (status, headers["Transfer-Encoding"]) == (200, "chunked")
        await client.ask("POST", "/services/create", SPEC)
        while True:
            event = msgspec.json.decode(await next_chunk(reader))
            if event["Actor"]["Attributes"]["name"] == "web":
                break
        assert (event["Type"], event["Action"], event["scope"]) == ("service", "create", "swarm")
        assert event["timeNano"] // 10**9 == event["time"]
        writer.close()
        now = world.clock.now()
        past = await client.ask("GET", f"/events?since=1&until={now // 10**9}.{now % 10**9:09d}")
        assert any(b'"web"' in line for line in past.raw.splitlines())
        assert (await client.ask("GET", "/events?until=1")).raw == b""
        assert (await client.ask("GET", "/events?since=5&until=1")).status == 400

    play(scene)


def test_container_events_carry_labels_and_exit_codes() -> None:
    async def scene(client: Client, world: FakeContext) -> None:
        queue = world.events.subscribe()
        config = ContainerConfig(id="c" * 64, name="web.1.x", image="sha256:1", args=("a",), labels={"l": "v"}, extra={"image": "local:1"})
        await world.engine.create(config)
        told = [await queue.get()]
        await world.engine.start(config.id)
        told.append(await queue.get())
        world.engine.end(config.id, 3)
        told.append(await queue.get())
        await world.engine.remove(config.id)
        told.append(await queue.get())
        assert [e["Action"] for e in told] == ["create", "start", "die", "destroy"]
        assert told[2]["Actor"]["Attributes"] == {"execDuration": "0", "exitCode": "3", "image": "local:1", "l": "v", "name": "web.1.x"}
        assert (told[0]["status"], told[0]["id"], told[0]["from"]) == ("create", config.id, "local:1")

    play(scene)


def test_a_listener_that_does_not_read_is_cut_off_and_the_ring_is_bounded() -> None:
    async def run() -> None:
        world = context()
        events = LocalEvents(world.engine, world.clock)
        slow, quick = events.subscribe(), events.subscribe()
        for number in range(2000):
            events.publish(message("container", "start", str(number), {}, number))
            quick.get_nowait()
        assert len(events.past()) == PAST and events.past()[-1]["id"] == "1999"
        seen = [slow.get_nowait() for _ in range(slow.qsize())]
        assert seen[-1] is None and len(seen) == 1025
        assert events.listeners == 1

    asyncio.run(run())


def test_a_client_that_goes_away_ends_its_request() -> None:
    async def scene(client: Client, world: FakeContext) -> None:
        _, _, _, writer = await client.open("GET", "/events")
        assert world.events.listeners == 1
        writer.close()
        async with asyncio.timeout(10):
            while world.events.listeners:
                assert (await client.ask("GET", "/_ping")).status == 200

    play(scene)


def test_init_goes_on_when_its_client_has_gone() -> None:
    async def scene(client: Client, world: FakeContext) -> None:
        begun, go = asyncio.Event(), asyncio.Event()

        async def slowly() -> None:
            begun.set()
            await go.wait()

        world.on_init = slowly  # type: ignore[method-assign]
        reader, writer = await asyncio.open_unix_connection(client.path)
        writer.write(b"POST /swarm/init HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
        await begun.wait()
        writer.close()
        await writer.wait_closed()
        assert (await client.ask("GET", "/_ping")).status == 200
        go.set()
        assert (await client.ask("GET", "/swarm")).status == 200

    play(scene)


def test_tasks_show_what_has_changed_since_they_were_kept() -> None:
    async def scene(client: Client, world: FakeContext) -> None:
        await client.ask("POST", "/swarm/init", INIT)
        assert world.store is not None
        world.store.apply([Create(Task(id="t" * 25, service_id="s" * 25, service_name="web", slot=1, spec=TaskSpec()), "test")])
        assert (await client.ask("GET", "/tasks/" + "t" * 25)).body["DesiredState"] == "running"
        world.store.apply([Change(Task, "t" * 25, {"desired_state": TaskState.SHUTDOWN}, "test")])
        assert (await client.ask("GET", "/tasks")).body[0]["DesiredState"] == "shutdown"
        assert (await client.ask("GET", '/tasks?filters={"desired-state":["running"]}')).body == []

    play(scene)


def test_a_spec_comes_back_as_it_went_in() -> None:
    async def scene(client: Client, world: FakeContext) -> None:
        await client.ask("POST", "/swarm/init", INIT)
        spec = {
            "Name": "full",
            "Labels": {"b": "1", "a": "2"},
            "TaskTemplate": {
                "ContainerSpec": {
                    "Image": "local:1", "Labels": {"c": "1"}, "Command": ["sh"], "Args": ["-c", "x"], "Hostname": "{{.Task.Slot}}",
                    "Env": ["B=2", "A=1", "C"], "Dir": "/", "User": "0:0", "Groups": ["0"], "Init": False, "StopSignal": "SIGINT",
                    "TTY": True, "ReadOnly": True,
                    "Mounts": [{"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 1048576, "Mode": 1016}}],
                    "StopGracePeriod": 3000000000, "Healthcheck": {"Test": ["CMD-SHELL", "true"], "Interval": 5000000000},
                    "Hosts": ["1.2.3.4 a"], "DNSConfig": {"Nameservers": ["1.1.1.1"]}, "Isolation": "default", "Sysctls": {"a": "1"},
                    "CapabilityAdd": ["CAP_NET_ADMIN"], "CapabilityDrop": ["CAP_MKNOD"],
                    "Ulimits": [{"Name": "nofile", "Hard": 2048, "Soft": 1024}], "OomScoreAdj": 10,
                    "Privileges": {"CredentialSpec": None, "SELinuxContext": None, "NoNewPrivileges": False},
                },
                "Resources": {"Limits": {"NanoCPUs": 500000000, "Pids": 30}, "Reservations": {"MemoryBytes": 4194304}},
                "RestartPolicy": {"Condition": "on-failure", "Delay": 2000000000, "MaxAttempts": 3, "Window": 9000000000},
                "Placement": {"Constraints": ["node.role==manager"], "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.z"}}]},
                "LogDriver": {"Name": "json-file", "Options": {"max-size": "1m"}}, "ForceUpdate": 0, "Runtime": "container",
            },
            "Mode": {"Replicated": {"Replicas": 2}},
            "UpdateConfig": {
                "Parallelism": 2, "Delay": 1, "FailureAction": "rollback", "Monitor": 2, "MaxFailureRatio": 0.1, "Order": "start-first",
            },
            "EndpointSpec": {"Mode": "vip", "Ports": [{"Protocol": "udp", "TargetPort": 81, "PublishedPort": 8091, "PublishMode": "host"}]},
        }  # fmt: skip
        made = await client.ask("POST", "/services/create", spec)
        assert made.status == 201, made.raw
        shown = (await client.ask("GET", "/services/full")).body
        assert shown["Spec"] == spec
        version = shown["Version"]["Index"]
        assert (await client.ask("POST", f"/services/full/update?version={version}", shown["Spec"])).status == 200
        again = (await client.ask("GET", "/services/full")).body
        assert again["Spec"] == spec and again["PreviousSpec"] == spec
        stored = world.control.service("full") if world.control is not None else None
        assert stored is not None and isinstance(stored.spec, ServiceSpec) and stored.spec_version < stored.version

    play(scene)


def test_a_ratio_of_nothing_is_written_as_go_writes_it() -> None:
    async def scene(client: Client, world: FakeContext) -> None:
        await client.ask("POST", "/swarm/init", INIT)
        await client.ask("POST", "/services/create", {**SPEC, "UpdateConfig": {"MaxFailureRatio": 0}})
        for path in ("/services/web", "/services/web?insertDefaults=true"):
            raw = (await client.ask("GET", path)).raw
            assert b'"MaxFailureRatio":0,' in raw and b"0.0" not in raw

    play(scene)


def test_credentials_are_kept_and_never_shown() -> None:
    async def scene(client: Client, world: FakeContext) -> None:
        await client.ask("POST", "/swarm/init", INIT)
        made = await client.ask("POST", "/services/create", SPEC, {"X-Registry-Auth": "c2VjcmV0"})
        assert made.status == 201
        assert world.control is not None and world.control.service("web").registry_auth == "c2VjcmV0"
        for path in ("/services/web", "/services", "/tasks", "/info", "/swarm"):
            assert b"c2VjcmV0" not in (await client.ask("GET", path)).raw
            assert b"PRIVATE KEY" not in (await client.ask("GET", path)).raw

    play(scene)
