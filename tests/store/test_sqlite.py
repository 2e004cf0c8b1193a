"""The file on disk: its mode, its lock, its versions, and what a failing disk does."""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

import pytest

from skep.errors import ConfigError, StoreFailed
from skep.model.service import Service
from skep.model.spec import ServiceSpec
from skep.plan.ops import Change, Create, Delete
from skep.store.base import Write
from skep.store.memory import MemoryStore
from skep.store.sqlite import MIGRATIONS, SqliteBackend


class Clock:
    def now(self) -> int:
        return 5

    async def sleep(self, ns: int) -> None:
        raise NotImplementedError


def service(name: str) -> Service:
    return Service(id=name, spec=ServiceSpec(name=name, labels={"a": "b"}))


def rows(backend: SqliteBackend) -> list[Write]:
    return list(backend.load())


def test_what_is_written_is_read_again_in_order(tmp_path: Path) -> None:
    store = MemoryStore(SqliteBackend(tmp_path / "s.db"), Clock())
    store.apply([Create(service(name), "t") for name in "zab"])
    store.flush()
    store.apply([Change(Service, "z", {"spec_version": 4}, "t"), Delete(Service, "a", "t"), Create(service("m"), "t")])
    store.flush()
    store.apply([Delete(Service, "m", "t")])
    store.close()
    again = MemoryStore(SqliteBackend(tmp_path / "s.db"), Clock())
    assert list(again.all(Service)) == list(store.all(Service))
    assert [s.id for s in again.all(Service)] == ["z", "b"]
    assert again.version == 3
    again.close()


def test_an_empty_store_keeps_its_version(tmp_path: Path) -> None:
    store = MemoryStore(SqliteBackend(tmp_path / "s.db"), Clock())
    store.apply([Create(service("a"), "t")])
    store.apply([Delete(Service, "a", "t")])
    store.close()
    again = MemoryStore(SqliteBackend(tmp_path / "s.db"), Clock())
    assert again.version == 2
    again.close()


def test_the_file_is_private_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        (tmp_path / "loose.db").touch(0o644)
        for name in ("new.db", "loose.db"):
            backend = SqliteBackend(tmp_path / name)
            backend.write([Write("service", "a", 1, b"x")], 1)
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob(f"{name}*")}
            assert f"{name}-wal" in modes
            assert set(modes.values()) == {0o600}, modes
            backend.close()
    finally:
        os.umask(old)


def test_the_file_has_one_owner(tmp_path: Path) -> None:
    first = SqliteBackend(tmp_path / "s.db")
    with pytest.raises(ConfigError, match="in use by another process"):
        SqliteBackend(tmp_path / "s.db")
    first.close()
    SqliteBackend(tmp_path / "s.db").close()


def test_synchronous_full_and_wal(tmp_path: Path) -> None:
    backend = SqliteBackend(tmp_path / "s.db")
    assert backend._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert backend._db.execute("PRAGMA synchronous").fetchone() == (2,)
    backend.close()


def test_a_newer_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    backend = SqliteBackend(path, [*MIGRATIONS, lambda db: None])
    backend.write([Write("service", "a", 1, b"x")], 1)
    backend.close()
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"written by a newer skep \(schema 2, this one knows 1\)"):
        SqliteBackend(path)
    assert path.read_bytes() == before


def test_migration_goes_forward_once_and_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    backend = SqliteBackend(path)
    backend.write([Write("service", "a", 1, b"old")], 1)
    backend.close()

    def second(db: sqlite3.Connection) -> None:
        db.execute("UPDATE objects SET data = CAST(data || x'21' AS BLOB)")

    def broken(db: sqlite3.Connection) -> None:
        second(db)
        raise sqlite3.OperationalError("disk I/O error")

    with pytest.raises(StoreFailed, match="disk I/O error"):
        SqliteBackend(path, [*MIGRATIONS, broken])
    for _ in range(2):
        backend = SqliteBackend(path, [*MIGRATIONS, second])
        assert rows(backend)[1].data == b"old!"
        backend.close()


@pytest.mark.parametrize("content", [b"something else entirely" * 100, None])
def test_not_our_file(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "s.db"
    if content is None:
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE theirs (x)")
        db.close()
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="not a store of skep"):
        SqliteBackend(path)
    assert path.read_bytes() == before


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(StoreFailed, match="No such file or directory"):
        SqliteBackend(tmp_path / "none" / "s.db")


def test_a_full_disk_is_a_clear_error_and_loses_nothing_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    backend = SqliteBackend(path)
    backend._db.execute("PRAGMA max_page_count = 40")
    store = MemoryStore(backend, Clock())
    acknowledged = 0
    with pytest.raises(StoreFailed, match="cannot be written: database or disk is full"):
        for n in range(10_000):
            store.apply([Create(service(f"s{n}"), "t")])
            store.flush()
            acknowledged += 1
    assert acknowledged > 10
    with pytest.raises(StoreFailed):
        store.apply([Create(service("more"), "t")])
    store.close()
    again = MemoryStore(SqliteBackend(path), Clock())
    assert len(again.all(Service)) == acknowledged
    assert again.version == acknowledged
    again.close()
