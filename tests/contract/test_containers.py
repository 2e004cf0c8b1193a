"""Recorded exec, logs and inspect of a container, byte for byte, against the server with a container in memory."""

from __future__ import annotations

import asyncio
import base64
import random
from typing import Any

from api_compare import Bindings, same
from api_replay import load

from skep.clock import SECOND
from skep.engine.base import ContainerConfig, Image, ImageConfig
from skep.ids import new_hex
from skep.testing.api_client import Client, chunked, serving
from skep.testing.fake_context import FakeContext, StepClock
from skep.testing.scripted_engine import ScriptedStreams

ARGS = ("sh", "-c", "echo line1; echo line2 >&2; sleep 60")
FOLLOWED = 1_795_406_116_584_188_903
"""When the recorded line was written."""

SKIPPED = {
    504: "no such container: part of the errors",
    653: "docker attach: a plain container",
    **dict.fromkeys(range(548, 551), "plain containers"),
}
TRULY_AT = {651: 652.5}
"""It names the process of 652, and was written down first because that one's connection closed later."""


async def hostname(streams: ScriptedStreams) -> int:
    streams.emit(b"5a11d67b2fb3\n")
    return 0


async def shell(streams: ScriptedStreams) -> int:
    streams.emit(b"out\n", 1)
    streams.emit(b"err\n", 2)
    return 4


async def terminal(streams: ScriptedStreams) -> int:
    streams.emit(b"tty\r\n/dev/pts/0\r\n")
    return 0


async def cat(streams: ScriptedStreams) -> int:
    while data := await streams.read():
        streams.emit(data)
    return 0


async def true(streams: ScriptedStreams) -> int:
    return 0


async def world() -> FakeContext:
    context = FakeContext(StepClock(1_795_406_120 * SECOND), random.Random(3))
    engine = context.engine
    engine.images.add(Image(id="sha256:" + "2d" * 32, tags=("local:1",), config=ImageConfig(exposed_ports=("80/tcp",))))
    id = "5a11d67b2fb31f94ec5bd9c362d72e2485d7dc193f0e3de3dcb0c60b8ff6a0fc"
    await engine.create(ContainerConfig(id=id, name="c1", image="sha256:" + "2d" * 32, args=ARGS, labels={"k": "v"}))
    await engine.start(id)
    engine.write(id, b"line2\n", stream=2, at=FOLLOWED - 1000)
    engine.write(id, b"line1\n", stream=1, at=FOLLOWED)
    engine.scripts = {"hostname": hostname, "sh": shell, "cat": cat, "true": true}
    return context


def recorded_bytes(body: Any) -> bytes:
    if isinstance(body, dict):
        return base64.b64decode(body["b64"])
    return (body or "").encode("latin-1")


async def hijack(client: Client, path: str, tty: bool, stdin: bytes | None) -> tuple[int, dict[str, str], bytes]:
    """As the CLI does: upgrade, write, half-close, read to the end."""
    status, headers, reader, writer = await client.open(
        "POST", path, {"Detach": False, "Tty": tty}, {"Connection": "Upgrade", "Upgrade": "tcp"}
    )
    if stdin is not None:
        writer.write(stdin)
    if not tty:
        writer.write_eof()
    data = await reader.read()
    writer.close()
    return status, headers, data


def test_exec_and_logs_as_recorded() -> None:
    async def run() -> int:
        context = await world()
        bound = Bindings()
        compared = 0
        async with serving(context) as client:
            for entry in sorted(load("containers.jsonl"), key=lambda e: TRULY_AT.get(e["n"], e["n"])):
                request, answer, n = entry["req"], entry["resp"], entry["n"]
                path = bound.translate(request["path"])
                if n in SKIPPED or not 637 <= n <= 663:
                    continue
                compared += 1
                if path.endswith("/start") and entry.get("hijacked"):
                    tty = answer["headers"]["Content-Type"].endswith("raw-stream")
                    context.engine.scripts["sh"] = terminal if tty else shell
                    stdin = b"hi\n" if entry["cmd"] == "docker exec -i c1 cat" else None
                    status, headers, data = await hijack(client, path, tty, stdin)
                    assert (status, headers["Content-Type"], headers["Upgrade"]) == (101, answer["headers"]["Content-Type"], "tcp"), n
                    assert without_reason(data) == without_reason(recorded_bytes(answer.get("body"))), n
                    continue
                if "/logs" in path:
                    status, headers, reader, writer = await client.open("GET", path)
                    assert (status, headers["Content-Type"]) == (200, answer["headers"]["Content-Type"]), n
                    assert await chunked(reader) == recorded_bytes(answer["body"]), n
                    writer.close()
                    continue
                ours = await client.ask(request["method"], path, request.get("body"))
                assert ours.status == answer["status"], (n, ours.raw)
                if path.endswith("c1/json"):
                    inspected(answer["body"], ours.body)
                elif answer.get("body") is not None:
                    theirs, mine = answer["body"], ours.body
                    if path.startswith("/v1.50/exec/"):
                        theirs, mine = {**theirs, "Pid": 0}, {**mine, "Pid": 0}
                    same(theirs, mine, bound, f"#{n}")
        return compared

    assert asyncio.run(run()) == 26


def without_reason(data: bytes) -> bytes:
    """The runtime's own sentence about a missing program differs: ours comes from the engine; frame length goes with it."""
    if b"OCI runtime exec failed" in data:
        assert b'"nosuchcmd": executable file not found in $PATH' in data and data[0] == 1
        return b"failed"
    return data


def inspected(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """The same members everywhere the engine is asked, and the same facts about the container itself."""
    for part in ((), ("State",), ("Config",), ("NetworkSettings",), ("GraphDriver",)):
        a, b = theirs, ours
        for name in part:
            a, b = a[name], b[name]
        assert a.keys() - b.keys() == set(), part
    for name in ("Id", "Name", "Path", "Args", "RestartCount", "Platform"):
        assert ours[name] == theirs[name], name
    for name in ("Tty", "OpenStdin", "Cmd", "Image", "Labels", "Hostname", "ExposedPorts"):
        assert ours["Config"][name] == theirs["Config"][name], name
    for name in ("Status", "Running", "Paused", "ExitCode", "OOMKilled", "FinishedAt"):
        assert ours["State"][name] == theirs["State"][name], name


def test_a_detached_exec_runs_on_without_a_client() -> None:
    async def run() -> None:
        context = await world()
        released = asyncio.Event()

        async def waits(streams: ScriptedStreams) -> int:
            streams.emit(b"x" * 100_000)
            await released.wait()
            return 9

        context.engine.scripts["waits"] = waits
        async with serving(context) as client:
            made = (await client.ask("POST", "/containers/c1/exec", {"Cmd": ["waits"]})).body["Id"]
            assert (await client.ask("GET", f"/exec/{made}/json")).body["ExitCode"] is None, "it has not begun"
            assert (await client.ask("POST", f"/exec/{made}/start", {"Detach": True})).status == 200
            shown = (await client.ask("GET", f"/exec/{made}/json")).body
            assert (shown["Running"], shown["ExitCode"]) == (True, None)
            queue = context.events.subscribe()
            released.set()
            while (event := await queue.get())["Action"] != "exec_die":
                pass
            assert event["Actor"]["Attributes"]["exitCode"] == "9"
            assert (await client.ask("GET", f"/exec/{made}/json")).body["ExitCode"] == 9
            again = await client.ask("POST", f"/exec/{made}/start", {"Detach": True})
            assert (again.status, again.body["message"]) == (409, f"exec command {made} has already run")

    asyncio.run(run())


def test_five_megabytes_go_through_a_hijacked_connection_unchanged() -> None:
    async def run() -> None:
        context = await world()
        sent = random.Random(1).randbytes(5 << 20)
        async with serving(context) as client:
            made = (await client.ask("POST", "/containers/c1/exec", {"Cmd": ["cat"], "AttachStdin": True, "AttachStdout": True})).body["Id"]
            status, _, reader, writer = await client.open("POST", f"/exec/{made}/start", {}, {"Connection": "Upgrade", "Upgrade": "tcp"})
            assert status == 101

            async def feed() -> None:
                writer.write(sent)
                await writer.drain()
                writer.write_eof()

            async with asyncio.TaskGroup() as group:
                group.create_task(feed())
                data = await reader.read()
            writer.close()
        received = bytearray()
        while data:
            size = int.from_bytes(data[4:8], "big")
            assert data[:4] == b"\1\0\0\0"
            received += data[8 : 8 + size]
            data = data[8 + size :]
        assert bytes(received) == sent

    asyncio.run(run())


def test_detach_keys_end_a_tty_and_leave_the_process() -> None:
    async def run() -> None:
        context = await world()
        typed: list[bytes] = []

        async def echo(streams: ScriptedStreams) -> int:
            while data := await streams.read():
                typed.append(data)
                streams.emit(data)
            return 0

        context.engine.scripts["cat"] = echo
        async with serving(context) as client:
            body = {"Cmd": ["cat"], "AttachStdin": True, "AttachStdout": True, "Tty": True}
            made = (await client.ask("POST", "/containers/c1/exec", body)).body["Id"]
            headers = {"Connection": "Upgrade", "Upgrade": "tcp"}
            _, _, reader, writer = await client.open("POST", f"/exec/{made}/start", {"Tty": True}, headers)
            writer.write(b"a\x10")
            assert await reader.readexactly(1) == b"a"
            writer.write(b"b\x10\x11c")
            assert await reader.read() in (b"", b"\x10b")
            writer.close()
            assert typed == [b"a", b"\x10b"]
            shown = (await client.ask("GET", f"/exec/{made}/json")).body
            assert shown["Running"] is True

    asyncio.run(run())


def test_wait_sends_its_headers_before_the_end() -> None:
    async def run() -> None:
        context = await world()
        async with serving(context) as client:
            status, headers, reader, writer = await client.open("POST", "/containers/c1/wait?condition=next-exit")
            assert (status, headers["Transfer-Encoding"]) == (200, "chunked")
            id = context.engine.get("c1").config.id  # type: ignore[union-attr]
            context.engine.end(id, 7)
            assert await chunked(reader) == b'{"StatusCode":7}\n'
            writer.close()
            again = await client.ask("POST", "/containers/c1/wait")
            assert again.body == {"StatusCode": 7}

    asyncio.run(run())


def test_logs_follow_a_container_line_by_line_to_its_end() -> None:
    async def run() -> None:
        context = await world()
        async with serving(context) as client:
            _, _, reader, writer = await client.open("GET", "/containers/c1/logs?stdout=1&follow=1&tail=0")
            id = context.engine.get("c1").config.id  # type: ignore[union-attr]
            context.engine.write(id, b"later\n")
            size = int((await reader.readline()).strip(), 16)
            assert await reader.readexactly(size) == b"\1\0\0\0\0\0\0\6later\n"
            await reader.readline()
            context.engine.end(id, 0)
            assert await chunked(reader) == b""
            writer.close()

    asyncio.run(run())


def test_a_random_container_id_is_not_one() -> None:
    async def run() -> None:
        context = await world()
        async with serving(context) as client:
            name = new_hex(random.Random(5))
            for method, path in (("GET", "json"), ("POST", "stop"), ("POST", "wait"), ("POST", "exec")):
                body = {"Cmd": ["true"]} if path == "exec" else None
                answer = await client.ask(method, f"/containers/{name}/{path}", body)
                assert (answer.status, answer.body) == (404, {"message": f"No such container: {name}"})

    asyncio.run(run())
