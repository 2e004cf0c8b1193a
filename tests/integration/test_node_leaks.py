"""Clients that go away in the midst of every call that streams, either way: nothing of theirs stays. See node_leaks_world.py."""

from __future__ import annotations

import io
import json
import socket
import struct
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from node_leaks_world import LeaksWorld

pytestmark = pytest.mark.root
LARGE = 24 << 20
HIJACK = "Connection: Upgrade\r\nUpgrade: tcp\r\n"
FLOOD = "until [ -e /stop ]; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done"


@pytest.fixture(scope="module")
def world() -> Iterator[LeaksWorld]:
    with LeaksWorld() as found:
        if not found.docker_program:
            pytest.skip("no docker command")
        found.docker("network", "create", "net1")
        make = f"dd if=/dev/urandom of=/large bs=1M count={LARGE >> 20} 2>/dev/null; while :; do echo line; usleep 20000; done"
        found.docker("run", "-d", "--name", "busy", "box:1", "sh", "-c", make)
        found.docker("run", "-d", "-i", "--name", "reads", "box:1", "sh", "-c", "cat > /dev/null; sleep 1000")
        found.docker("run", "-d", "-it", "--name", "term", "box:1", "sh", "-c", FLOOD)
        found.docker("create", "--name", "still", "box:1", "sleep", "1")
        with tarfile.open(found.folder / "large.tar", "w") as archive:
            member = tarfile.TarInfo("large")
            member.size = LARGE
            archive.addfile(member, io.BytesIO(bytes(LARGE)))
        found.docker("import", str(found.folder / "large.tar"), "large:1")
        found.until(lambda: "line" in found.out("logs", "--tail", "1", "busy"), "the large file is there", 60)
        yield found


class Streaming(NamedTuple):
    head: str
    body: bytes = b""
    more: str = ""
    endless: bool = True
    """It sends more than fits into any buffer, or goes on until the client goes."""


def _json(**fields: object) -> bytes:
    return json.dumps(fields).encode()


DOWN: list[Streaming] = [
    Streaming("GET /containers/busy/export"),
    Streaming("GET /containers/still/export", endless=False),
    Streaming("GET /containers/busy/archive?path=/large"),
    Streaming("GET /containers/still/archive?path=/", endless=False),
    Streaming("HEAD /containers/still/archive?path=/bin", endless=False),
    Streaming("GET /images/large:1/get"),
    Streaming("GET /images/get?names=large:1&names=box:1"),
    Streaming("GET /containers/busy/logs?stdout=1&stderr=1&follow=1"),
    Streaming("GET /containers/busy/logs?stdout=1&follow=1&tail=1&until=9999999999"),
    Streaming("GET /containers/term/logs?stdout=1"),
    Streaming("GET /containers/still/logs?stdout=1&follow=1"),
    Streaming("GET /containers/busy/stats"),
    Streaming("GET /containers/still/stats"),
    Streaming("GET /containers/busy/stats?stream=0", endless=False),
    Streaming("GET /events"),
    Streaming("GET /events?since=1&until=9999999999"),
    Streaming("POST /containers/busy/wait"),
    Streaming("POST /containers/busy/wait?condition=removed"),
    Streaming("POST /containers/still/wait?condition=next-exit"),
    Streaming("POST /containers/busy/attach?stream=1&stdout=1&stderr=1", more=HIJACK),
    Streaming("POST /containers/busy/attach?stream=1&stdout=1&stderr=1&logs=1", more=HIJACK),
    Streaming("POST /containers/term/attach?stream=1&stdin=1&stdout=1", more=HIJACK),
    Streaming("POST /containers/reads/attach?stream=1&stdin=1&stdout=1", more=HIJACK),
    Streaming("POST /containers/still/attach?stream=1&stdout=1", more=HIJACK),
    Streaming("GET /containers/busy/top", endless=False),
    Streaming("GET /containers/busy/changes", endless=False),
    Streaming("GET /containers/busy/json?size=1", endless=False),
    Streaming("GET /containers/json?size=1&all=1", endless=False),
    Streaming("GET /system/df", endless=False),
]


def vanish(connection: socket.socket, abruptly: bool) -> None:
    if abruptly:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("row", DOWN, ids=lambda row: row.head)
def test_who_reads_and_goes(world: LeaksWorld, row: Streaming) -> None:
    """At once, after the first bytes, and when the buffers between are full."""
    before = world.at_rest()
    for _ in range(3):
        vanish(world.send(row.head, row.body, more=row.more), True)
        connection = world.send(row.head, row.body, more=row.more)
        assert connection.recv(16).startswith(b"HTTP/1.1 ")
        vanish(connection, False)
    if row.endless:
        stalled = [world.send(row.head, row.body, more=row.more) for _ in range(3)]
        for connection in stalled:
            assert connection.recv(16).startswith(b"HTTP/1.1 ")
        for connection in stalled:
            vanish(connection, True)
    world.settle(before, row.head)


def executed(world: LeaksWorld, tty: bool, stdin: bool) -> str:
    body = {"Cmd": ["sh", "-c", FLOOD], "AttachStdout": True, "AttachStderr": True, "AttachStdin": stdin, "Tty": tty}
    status, answer = world.api("POST", "/containers/reads/exec", body)
    assert status == 201
    return str(answer["Id"])


@pytest.mark.parametrize("tty", [False, True])
@pytest.mark.parametrize("stdin", [False, True])
def test_who_leaves_an_exec(world: LeaksWorld, tty: bool, stdin: bool) -> None:
    """The process goes on, as Docker's does, and what it says is nobody's; when it ends nothing of it stays."""
    before = world.at_rest()
    begun = [executed(world, tty, stdin) for _ in range(4)]
    for number, id in enumerate(begun):
        connection = world.send(f"POST /exec/{id}/start", _json(Detach=False, Tty=tty), more=HIJACK + "Content-Type: application/json\r\n")
        if number:
            assert connection.recv(1) == b"H"
        if number > 1:
            world.until(lambda id=id: world.api("GET", f"/exec/{id}/json")[1]["Pid"], "it runs")  # type: ignore[misc]
        vanish(connection, number % 2 == 0)
    world.settle_tasks(before)
    for id in begun[2:]:
        said = world.until(lambda id=id: world.api("GET", f"/exec/{id}/json")[1], "it is known")  # type: ignore[misc]
        assert said["Running"], "who leaves does not end it"
    world.docker("exec", "reads", "touch", "/stop")
    for id in begun:
        world.until(lambda id=id: not world.api("GET", f"/exec/{id}/json")[1]["Running"], "it ends")  # type: ignore[misc]
    world.docker("exec", "reads", "rm", "/stop")
    world.settle(before, "exec")


UP = [
    "PUT /containers/busy/archive?path=/tmp",
    "PUT /containers/still/archive?path=/tmp",
    "POST /images/load",
    "POST /images/create?fromSrc=-&repo=part",
]


@pytest.mark.parametrize("head", UP)
def test_who_sends_and_goes(world: LeaksWorld, head: str) -> None:
    whole = (world.folder / "large.tar").read_bytes()
    before = world.at_rest()
    for size in (0, 1, 511, 700, 1 << 20, LARGE // 2):
        for abruptly in (False, True):
            vanish(world.send(head, whole[:size], length=len(whole), more="Content-Type: application/x-tar\r\n"), abruptly)
    world.settle(before, head)
    assert not [name for name in world.out("images", "--format", "{{.Repository}}").split() if name == "part"]
    assert not list((world.folder / "d" / "images" / "layers").glob("*.tmp"))


def test_it_says_nothing_of_it(world: LeaksWorld) -> None:
    signs = (
        "Traceback",
        "Task exception",
        "never awaited",
        "Unclosed",
        "ResourceWarning",
        "Exception ignored",
        "never retrieved",
        "Unknown child",
    )
    assert [line for line in world.log.read_text().splitlines() if any(sign in line for sign in signs)] == []
