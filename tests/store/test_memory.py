"""Transactions, stamps, watches and durability of the store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from skep.errors import Conflict, NotFound, SkepError, StoreFailed, Unavailable
from skep.model.base import Object
from skep.model.enums import TaskState
from skep.model.node import Node
from skep.model.service import Service
from skep.model.spec import NodeSpec, ServiceSpec
from skep.model.tables import SERVICE_BY_NAME, TASK_BY_NODE
from skep.model.task import Task, TaskStatus
from skep.plan.ops import Change, Create, Delete, Op
from skep.store.base import Write
from skep.store.memory import MemoryBackend, MemoryStore, NullBackend
from skep.store.watch import EventQueue


class Clock:
    def __init__(self) -> None:
        self.time = 1_000

    def now(self) -> int:
        self.time += 1
        return self.time

    async def sleep(self, ns: int) -> None:
        self.time += ns


def store() -> MemoryStore:
    return MemoryStore(NullBackend(), Clock())


def service(name: str, id: str = "") -> Service:
    return Service(id=id or name, spec=ServiceSpec(name=name))


def create(*objects: Object) -> list[Op]:
    return [Create(object, "test") for object in objects]


def test_stamps() -> None:
    s = store()
    assert s.apply(create(service("a"), service("b"))) == 1
    a = s.get(Service, "a")
    assert a is not None
    assert (a.version, a.spec_index, a.created_at, a.updated_at) == (1, 1, a.created_at, a.created_at)
    assert s.apply([Change(Service, "a", {"update_status": None, "spec_version": 7}, "test")]) == 2
    b = s.get(Service, "a")
    assert b is not None
    assert (b.version, b.spec_index, b.created_at) == (2, 1, a.created_at)
    assert b.updated_at > a.updated_at
    assert s.apply([Change(Service, "a", {"spec": ServiceSpec(name="a", labels={"x": "y"})}, "test")]) == 3
    c = s.get(Service, "a")
    assert c is not None
    assert c.spec_index == 3


def test_nothing_to_do_is_no_version() -> None:
    s = store()
    s.apply(create(service("a")))
    assert s.apply([]) == 1
    assert s.apply([Change(Service, "a", {"spec": ServiceSpec(name="a")}, "same")]) == 1
    assert s.apply([Create(service("b"), "in"), Delete(Service, "b", "and out")]) == 1
    assert s.version == 1


def test_stamps_are_the_stores_own() -> None:
    s = store()
    s.apply(create(service("a")))
    with pytest.raises(ValueError, match="version"):
        s.apply([Change(Service, "a", {"version": 9}, "test")])
    assert s.version == 1


@pytest.mark.parametrize(
    ("ops", "error", "text"),
    [
        (create(service("a", "x")), Conflict, "name conflicts with an existing object: service a already exists"),
        (create(service("A", "x")), Conflict, "service A already exists"),
        (create(service("z", "a")), Conflict, "object already exists"),
        (create(service("n", "x"), service("N", "y")), Conflict, "service N already exists"),
        ([Change(Service, "none", {"spec_version": 1}, "test")], NotFound, "service none not found"),
        ([Delete(Service, "none", "test")], NotFound, "service none not found"),
        ([Delete(Service, "a", "test"), Change(Service, "a", {"spec_version": 1}, "test")], NotFound, "service a not found"),
        ([Change(Service, "b", {"spec": ServiceSpec(name="a")}, "test")], Conflict, "service a already exists"),
    ],
)
def test_refused_transactions_leave_nothing(ops: list[Op], error: type[SkepError], text: str) -> None:
    s = store()
    s.apply(create(service("a"), service("b")))
    watch = s.watch(applied=True)
    before = [*s.all(Service)]
    with pytest.raises(error, match=text):
        s.apply([*create(Node(id="n", spec=NodeSpec()), service("new")), *ops])
    assert s.version == 1
    assert [*s.all(Service)] == before
    assert not s.all(Node)
    assert not s.find(SERVICE_BY_NAME, "new")
    assert watch.take() == []
    assert s.flush() == 2


def test_a_name_can_change_hands_in_one_transaction() -> None:
    s = store()
    s.apply(create(service("a"), service("b")))
    s.apply([Delete(Service, "a", "test"), *create(service("a", "other"))])
    assert [x.id for x in s.find(SERVICE_BY_NAME, "a")] == ["other"]
    s.apply([Change(Service, "other", {"spec": ServiceSpec(name="b")}, "t"), Change(Service, "b", {"spec": ServiceSpec(name="a")}, "t")])
    assert [x.id for x in s.find(SERVICE_BY_NAME, "a")] == ["b"]
    assert [x.id for x in s.find(SERVICE_BY_NAME, "b")] == ["other"]


def test_results_come_in_order_of_creation() -> None:
    s = store()
    tasks = [Task(id=id) for id in "zmabq"]
    s.apply(create(*tasks))
    for id in "qzbam":
        s.apply([Change(Task, id, {"node_id": "n"}, "test")])
    assert [task.id for task in s.find(TASK_BY_NODE, "n")] == list("zmabq")
    s.apply([Change(Task, "m", {"node_id": "other"}, "test")])
    s.apply([Change(Task, "m", {"node_id": "n"}, "test")])
    assert [task.id for task in s.find(TASK_BY_NODE, "n")] == list("zmabq")
    assert [task.id for task in s.all(Task)] == list("zmabq")


def test_watchers_hear_what_is_durable_in_order() -> None:
    s = store()
    durable, applied, nodes = s.watch(), s.watch(applied=True), s.watch(Node)
    s.apply(create(service("a")))
    s.apply([Change(Service, "a", {"spec_version": 2}, "test")])
    s.apply([Delete(Service, "a", "test"), *create(Node(id="n", spec=NodeSpec()))])
    assert [(e.action, e.id, e.version) for e in applied.take()] == [
        ("create", "a", 1),
        ("update", "a", 2),
        ("delete", "a", 3),
        ("create", "n", 3),
    ]
    assert durable.take() == []
    s.flush()
    assert [(e.action, e.id) for e in durable.take()] == [("create", "a"), ("update", "a"), ("delete", "a"), ("create", "n")]
    assert [e.id for e in nodes.take()] == ["n"]
    assert s.durable_version == 3
    late = s.watch()
    assert late.take() == []
    late.close()
    s.apply(create(service("b")))
    s.flush()
    assert late.take() == []


def test_a_reader_that_stopped_reading_is_dropped() -> None:
    s = store()
    forgotten: list[EventQueue] = []
    queue = EventQueue(frozenset(), forgotten.append, limit=3)
    s.apply(create(*[service(str(n)) for n in range(4)]))
    watch = s.watch(applied=True)
    s.apply(create(*[service(f"x{n}") for n in range(4)]))
    queue.put(watch.take())
    assert forgotten == [queue]
    with pytest.raises(Unavailable, match="behind"):
        queue.take()


def test_async_readers() -> None:
    async def main() -> list[str]:
        s = store()
        watch = s.watch(Service)
        seen: list[str] = []

        async def read() -> None:
            async for events in watch:
                seen.extend(event.id for event in events)

        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            await s.commit(create(service("a")))
            await s.commit(create(Node(id="n", spec=NodeSpec())))
            await s.commit(create(service("b"), service("c")))
            watch.close()
        return seen

    assert asyncio.run(main()) == ["a", "b", "c"]


class Slow(MemoryBackend):
    """Writes wait until they are let through, one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Semaphore(0)
        self.entered = threading.Event()
        self.sizes: list[int] = []

    def write(self, batch: Sequence[Write], version: int) -> None:
        self.entered.set()
        assert self.gate.acquire(timeout=10)
        self.sizes.append(len(batch))
        super().write(batch, version)


def test_commits_wait_for_the_disk_and_are_written_in_groups() -> None:
    async def main() -> None:
        backend = Slow()
        s = MemoryStore(backend, Clock())
        watch = s.watch()
        async with asyncio.TaskGroup() as group:
            runner = group.create_task(s.run())
            await asyncio.sleep(0)
            first = group.create_task(s.commit(create(service("a"))))
            assert await asyncio.to_thread(backend.entered.wait, 10)
            others = [group.create_task(s.commit(create(service(f"s{n}")))) for n in range(5)]
            for _ in range(20):
                await asyncio.sleep(0)
            assert s.get(Service, "s4") is not None
            assert s.durable_version == 0
            assert watch.take() == []
            assert not first.done()
            with pytest.raises(RuntimeError):
                s.flush()
            backend.gate.release()
            assert await first == 1
            assert [event.id for event in watch.take()] == ["a"]
            assert not any(task.done() for task in others)
            backend.gate.release()
            assert [await task for task in others] == [2, 3, 4, 5, 6]
            assert backend.sizes == [1, 5]
            runner.cancel()
        assert s.durable_version == 6

    asyncio.run(main())


def test_cancelling_the_flusher_lets_the_write_end() -> None:
    async def main() -> None:
        backend = Slow()
        s = MemoryStore(backend, Clock())
        watch = s.watch()
        async with asyncio.TaskGroup() as group:
            runner = group.create_task(s.run())
            await asyncio.sleep(0)
            s.apply(create(service("a")))
            assert await asyncio.to_thread(backend.entered.wait, 10)
            runner.cancel()
            await asyncio.sleep(0)
            assert watch.take() == []
            backend.gate.release()
        assert [event.id for event in watch.take()] == ["a"]
        assert s.durable_version == 1
        s.close()

    asyncio.run(main())


class Full(MemoryBackend):
    def write(self, batch: Sequence[Write], version: int) -> None:
        raise StoreFailed("disk full")


def test_a_failing_disk_is_fatal() -> None:
    async def main() -> None:
        s = MemoryStore(Full(), Clock())
        watch = s.watch()
        runner = asyncio.ensure_future(s.run())
        await asyncio.sleep(0)
        with pytest.raises(StoreFailed, match="disk full"):
            await s.commit(create(service("a")))
        with pytest.raises(StoreFailed, match="disk full"):
            await runner
        with pytest.raises(StoreFailed):
            s.apply(create(service("b")))
        with pytest.raises(StoreFailed):
            await s.durable(1)
        assert watch.take() == []
        s.close()

    asyncio.run(main())


def test_what_cannot_be_written_leaves_nobody_waiting() -> None:
    """A number that the file's form has no place for should have been refused long before; the waiting must end all the same."""

    async def main() -> None:
        s = MemoryStore(NullBackend(), Clock())
        runner = asyncio.ensure_future(s.run())
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            with pytest.raises(StoreFailed, match="could not be written"):
                await s.commit(create(Service(id="a", spec=ServiceSpec(name="a"), spec_version=10**30)))
            with pytest.raises(StoreFailed, match="could not be written"):
                await runner
        with pytest.raises(StoreFailed):
            s.apply(create(service("b")))

    asyncio.run(main())


def test_a_new_store_over_the_same_rows_is_the_same() -> None:
    backend = MemoryBackend()
    s = MemoryStore(backend, Clock())
    s.apply(create(*[Task(id=id, node_id="n", status=TaskStatus(state=TaskState.RUNNING)) for id in "cab"]))
    s.apply([Change(Task, "a", {"node_id": "m"}, "test"), Delete(Task, "b", "test")])
    s.flush()
    s.apply(create(service("lost, it was never written")))
    again = MemoryStore(backend, Clock())
    assert again.version == 2
    assert [task.id for task in again.all(Task)] == ["c", "a"]
    assert not again.all(Service)
    assert again.load("m").tasks == 1
    assert again.durable_version == 2


def test_the_version_never_goes_back() -> None:
    backend = MemoryBackend()
    s = MemoryStore(backend, Clock())
    s.apply(create(service("a")))
    s.apply([Delete(Service, "a", "test")])
    s.flush()
    again = MemoryStore(backend, Clock())
    assert again.version == 2
    assert again.apply(create(service("b"))) == 3


def test_a_guard_sees_each_operation_and_may_refuse() -> None:
    seen: list[tuple[str, str, bool]] = []

    def guard(by: str, op: Op, old: Object | None) -> None:
        seen.append((by, type(op).__name__, old is not None))
        if by == "stranger":
            raise SkepError("not yours")

    s = MemoryStore(NullBackend(), Clock(), guard)
    s.apply([*create(service("a")), Change(Service, "a", {"spec_version": 1}, "test")], by="me")
    assert seen == [("me", "Create", False), ("me", "Change", True)]
    with pytest.raises(SkepError, match="not yours"):
        s.apply([Delete(Service, "a", "test")], by="stranger")
    assert s.get(Service, "a") is not None
