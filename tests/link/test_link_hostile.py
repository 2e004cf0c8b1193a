"""What a node with a good certificate can do to the others, to the manager's memory and to the log: nothing; and full disks."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from link_world import START, StillClock, World, node, ready, status, task
from member_world import outcome
from tls_world import CLOCK, Manager

from skep.agent.renewal import keep_renewed
from skep.agent.state import FileState
from skep.clock import MILLISECOND, SECOND
from skep.errors import Invalid
from skep.link.channel import Closed, Refused, decode_from_agent, decode_lines, encode
from skep.link.memory import pair
from skep.link.messages import Closing, Described, FromManager, Heartbeat, Hello
from skep.manager.bounds import DESCRIPTION_LIMIT, OUTBOX_LIMIT
from skep.manager.sessions import BURST, RATE, Sessions
from skep.model.enums import TaskState
from skep.model.node import EngineDescription, Node, NodeDescription
from skep.model.spec import PortConfig
from skep.model.task import ContainerStatus
from skep.plan.ops import Create
from skep.store.backends import NullBackend
from skep.store.memory import MemoryStore
from skep.system import TextFormatter


def closings(messages: list[FromManager]) -> list[str]:
    return [message.reason for message in messages if isinstance(message, Closing)]


# what a node says of itself


@pytest.mark.parametrize("address", ["10.0.0", "0.0.0.0", "224.0.0.1", "::", "10.0.0.5:4789", "evil.example", "fe80::1%eth0", "1" * 5000])
def test_an_address_that_is_none_never_reaches_the_other_nodes(address: str) -> None:
    world = World()
    world.put(node("n1", 1))
    with pytest.raises(Refused, match="is not the address of a node"):
        world.connect("n1", address=address)
    assert world.node("n1").status.addr == ""


@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::1", "127.0.0.1", ""])
def test_an_address_that_is_one_is_taken(address: str) -> None:
    world = World()
    world.put(node("n1", 1))
    world.connect("n1", address=address)
    assert world.node("n1").status.addr == (address or "192.0.2.1")


def test_a_description_is_bounded_when_a_session_begins_and_later() -> None:
    world = World()
    world.put(node("n1", 1))
    huge = NodeDescription(hostname="n1", engine=EngineDescription(labels={"x": "y" * DESCRIPTION_LIMIT}))
    hello = Hello(description=huge)
    with pytest.raises(Refused, match="bytes, 65536 are allowed"):
        world.dispatcher.connect("n1", hello, world.clock.now(), "192.0.2.1")
    session = world.connect("n1")
    world.hear(session, 2 * SECOND)
    world.say(session, Described(description=huge))
    assert "bytes, 65536 are allowed" in closings(world.hear(session))[0]
    assert world.node("n1").description == NodeDescription(hostname="n1")


def test_a_node_that_describes_itself_over_and_over_is_stopped() -> None:
    world = World()
    world.put(node("n1", 1))
    session = world.connect("n1")
    world.hear(session, 2 * SECOND)
    world.say(session, Described(description=NodeDescription(hostname="one")))
    assert closings(world.hear(session, 500 * MILLISECOND)) == []
    world.say(session, Described(description=NodeDescription(hostname="two")))
    assert closings(world.hear(session)) == ["the node describes itself too often"]
    assert world.node("n1").hostname == "one"


@pytest.mark.parametrize(
    "said",
    [
        {"container": ContainerStatus(container_id="c" * 300)},
        {"ports": tuple(PortConfig(name="p" * 100, published_port=n) for n in range(1000))},
    ],
    ids=["id", "ports"],
)
def test_a_status_is_bounded(said: dict[str, object]) -> None:
    world = World()
    world.put(ready("n1"), task("t1", "n1"))
    session = world.connect("n1", {"t1": status(TaskState.RUNNING, **said)})
    assert "too large" in closings(world.hear(session))[0]
    assert world.task("t1").status.state is TaskState.ASSIGNED


# what a node may not do to the manager


def test_a_node_that_speaks_and_does_not_listen_costs_no_memory() -> None:
    world = World()
    world.put(node("n1", 1))
    session = world.connect("n1")
    for _ in range(3 * OUTBOX_LIMIT):
        world.say(session, Heartbeat())
    assert len(session.outbox) <= OUTBOX_LIMIT
    assert closings(world.dispatcher.pending_messages(session)) == ["the node does not read what it is sent"]


def test_a_node_that_floods_is_read_slowly() -> None:
    async def body() -> None:
        clock = StillClock()
        store = MemoryStore(NullBackend(), clock)
        store.apply([Create(node("n1", 1), "for the test")])
        sessions = Sessions(store, clock, random.Random(1))
        ours, theirs = pair()
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(sessions.serve("n1", theirs, "192.0.2.1"))
            listening = group.create_task(listen(ours))
            await ours.send(encode(Hello(description=NodeDescription(hostname="n1"))))
            beat = encode(Heartbeat())
            for _ in range(BURST + 10 * RATE):
                await ours.send(beat)
            await ours.close()
            await serving
            listening.cancel()
        assert clock.time - START > 9 * SECOND, "ten seconds' worth of frames"

    async def listen(channel) -> None:  # type: ignore[no-untyped-def]
        try:
            while True:
                await channel.receive()
        except Closed:
            pass

    asyncio.run(body())


def test_no_session_begins_with_a_manager_that_stops() -> None:
    """It would keep the manager from closing its port until it is cut off."""

    async def body() -> None:
        clock = StillClock()
        store = MemoryStore(NullBackend(), clock)
        store.apply([Create(node("n1", 1), "for the test")])
        sessions = Sessions(store, clock, random.Random(1))
        ours, theirs = pair()
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(outcome(sessions.serve("n1", theirs, "192.0.2.1")))
            await asyncio.sleep(0)
            sessions.stop()
            await ours.send(encode(Hello(description=NodeDescription(hostname="n1"))))
            async with asyncio.timeout(5):
                refused = await serving
        assert isinstance(refused, Refused) and not refused.removed
        assert refused.text == "this manager stops"

    asyncio.run(body())


def test_frames_that_nest_without_end_are_nonsense_not_a_failure() -> None:
    deep = b"\x91" * 100_000
    frame = b"\x82\xa1t\xa5hello\xabdescription\x81\xa1x" + deep
    with pytest.raises(Invalid, match="cannot be read"):
        decode_from_agent(frame)
    with pytest.raises(Invalid, match="cannot be read"):
        decode_lines(deep)


def test_a_removed_node_is_forgotten_whether_it_is_there_or_not() -> None:
    world = World()
    world.put(node("n1", 1), node("n2", 2))
    session = world.connect("n1")
    world.connect("n2")
    world.say(session, Heartbeat(applied_version=7))
    for id in ("n1", "n2"):
        world.delete(Node, id)
    world.settle()
    dispatcher = world.dispatcher
    assert (dispatcher.sessions, dispatcher.applied, dispatcher._registrations.times) == ({}, {}, {})


# certificates


def test_a_request_for_a_certificate_with_another_kind_of_key_is_refused(tmp_path: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed448

    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(ed448.Ed448PrivateKey.generate(), None)
    pem = csr.public_bytes(serialization.Encoding.PEM).decode()
    manager = Manager(tmp_path)
    for text in (pem, "", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "\ud800"):
        with pytest.raises(Invalid, match="P-256"):
            asyncio.run(manager.authority.join(manager.token, text))


def test_a_renewal_is_tried_again_when_the_disk_was_full(tmp_path: Path) -> None:
    async def body() -> None:
        manager = Manager(tmp_path)
        certificates = manager.issue("n1", life=3600 * SECOND)
        tries = 0
        done = asyncio.Event()

        class Late(StillClock):
            def now(self) -> int:
                return CLOCK.now() + 3600 * SECOND + self.time - START

        async def renew() -> None:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise OSError(28, "No space left on device")
            done.set()
            await asyncio.Event().wait()

        async with asyncio.TaskGroup() as group, asyncio.timeout(5):
            renewing = group.create_task(keep_renewed(certificates, renew, Late(), random.Random(1)))
            await done.wait()
            renewing.cancel()

    asyncio.run(body())


# full disks


@contextmanager
def room(size: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_an_agent_could_not_remember_is_caught_up_with(tmp_path: Path) -> None:
    path = tmp_path / "agent.state"
    state = FileState(path)
    state.put_status("t1", status(TaskState.RUNNING))
    state.flush()
    state.put_status("t2", status(TaskState.RUNNING, "m" * 200))
    with room(path.stat().st_size + 50), pytest.raises(OSError, match="File too large"):
        state.flush()
    state.put_status("t3", status(TaskState.RUNNING))
    state.flush()
    state.put_status("t4", status(TaskState.RUNNING))
    state.close()
    again = FileState(path)
    assert sorted(again.load()[1]) == ["t1", "t2", "t3", "t4"]
    again.close()


def test_what_is_written_after_a_torn_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "agent.state"
    state = FileState(path)
    state.put_status("t1", status(TaskState.RUNNING))
    state.close()
    with path.open("ab") as file:
        file.write(b"\0\0\1\0torn")
    state = FileState(path)
    state.put_status("t2", status(TaskState.RUNNING))
    state.close()
    again = FileState(path)
    assert sorted(again.load()[1]) == ["t1", "t2"]
    again.close()


def test_a_failed_rewrite_keeps_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "agent.state"
    state = FileState(path)
    state.put_status("t1", status(TaskState.RUNNING))
    state.flush()
    with room(10), pytest.raises(OSError, match="File too large"):
        state.clear()
    assert os.listdir(tmp_path) == ["agent.state"]
    state.put_status("t2", status(TaskState.RUNNING))
    state.close()
    again = FileState(path)
    assert sorted(again.load()[1]) == ["t2"]
    again.close()


# the log


def test_a_line_of_the_log_stays_one_line() -> None:
    record = logging.LogRecord("skep.x", logging.INFO, "", 0, "its node reports: %s", ("ok\n2026 info skep.x: forged\x1b[2J\r",), None)
    record.node = "a\nb"
    text = TextFormatter().format(record)
    assert text.isprintable()
    assert "ok\\n2026 info skep.x: forged\\x1b[2J\\r node=a\\nb" in text
