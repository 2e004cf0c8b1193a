"""The state of a single manager in one SQLite file: what `write` got is on the platter when it returns. See docs/store.md.

WAL with synchronous FULL: one fsync per group of transactions. Rows have a rowid (11 us an insert; 27 without), which also keeps the order
of creation. The file is ours alone: mode 0600, because it holds the CA's key and registry credentials, and locked, because two managers
on one state would each destroy what the other wrote. The schema's version moves forward only: an older skep refuses a newer file.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from skep.errors import ConfigError, StoreFailed
from skep.store.base import Write

APPLICATION = 0x736B6570
"""`skep`: tells our file from any other SQLite database."""

Migration = Callable[[sqlite3.Connection], None]


def _first(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE objects (row INTEGER PRIMARY KEY, kind TEXT NOT NULL, id TEXT NOT NULL, version INTEGER NOT NULL,"
               " data BLOB NOT NULL, UNIQUE (kind, id))")  # fmt: skip
    db.execute("CREATE TABLE last (only INTEGER PRIMARY KEY CHECK (only = 1), version INTEGER NOT NULL)")
    db.execute("INSERT INTO last VALUES (1, 0)")


MIGRATIONS: tuple[Migration, ...] = (_first,)
"""The n-th brings a file of schema n to schema n + 1. A new field with a default needs none, but a skep that does not know the field would
drop it when it writes: add an empty migration, so that it refuses the file instead."""

UPSERT = (
    "INSERT INTO objects (kind, id, version, data) VALUES (?, ?, ?, ?)"
    " ON CONFLICT (kind, id) DO UPDATE SET version = excluded.version, data = excluded.data"
)


class SqliteBackend:
    """`skep.store.base.Backend` in the file `path`, which is made when it is missing.

    Raises ConfigError (not a file of ours, of a newer skep, in use) and StoreFailed (the disk fails).
    """

    def __init__(self, path: Path | str, migrations: Sequence[Migration] = MIGRATIONS) -> None:
        self._path = Path(path)
        self._prepare_file()
        try:
            self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=0)
        except sqlite3.Error as error:
            raise StoreFailed(f"the cluster's state {self._path} cannot be opened: {error}") from error
        try:
            self._open(migrations)
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise self._explained(error) from error
        except BaseException:
            self._db.close()
            raise

    def load(self) -> Iterator[Write]:
        try:
            (version,) = self._db.execute("SELECT version FROM last").fetchone()
            yield Write("", "", version, None)
            for kind, id, version, data in self._db.execute("SELECT kind, id, version, data FROM objects ORDER BY row"):
                yield Write(kind, id, version, data)
        except sqlite3.Error as error:
            raise StoreFailed(f"the cluster's state {self._path} cannot be read: {error}") from error

    def write(self, batch: Sequence[Write], version: int) -> None:
        put = [(row.table, row.id, row.version, row.data) for row in batch if row.data is not None]
        gone = [(row.table, row.id) for row in batch if row.data is None]
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            if gone:
                db.executemany("DELETE FROM objects WHERE kind = ? AND id = ?", gone)
            if put:
                db.executemany(UPSERT, put)
            db.execute("UPDATE last SET version = ?", (version,))
            db.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            raise StoreFailed(f"the cluster's state {self._path} cannot be written: {error}") from error

    def close(self) -> None:
        """Folds the write-ahead log into the file."""
        self._db.close()

    def _prepare_file(self) -> None:
        """Made with its mode, never opened to others for a moment; SQLite gives the log the same mode."""
        try:
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            os.chmod(self._path, 0o600)
        except OSError as error:
            raise StoreFailed(f"the cluster's state {self._path} cannot be opened: {error.strerror}") from error

    def _open(self, migrations: Sequence[Migration]) -> None:
        db = self._db
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        schema = self._schema(len(migrations))
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("BEGIN IMMEDIATE")
        try:
            db.execute(f"PRAGMA application_id = {APPLICATION}")
            for step in migrations[schema:]:
                step(db)
            db.execute(f"PRAGMA user_version = {len(migrations)}")
            db.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def _schema(self, known: int) -> int:
        """The file's schema version. Looks only: a file that is not ours stays as it is."""
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (schema,) = self._db.execute("PRAGMA user_version").fetchone()
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != APPLICATION and (application or schema or tables):
            raise ConfigError(f"{self._path} is not a store of skep")
        if schema > known:
            raise ConfigError(
                f"{self._path} was written by a newer skep (schema {schema}, this one knows {known}):"
                " install that version again, the state is never moved backward"
            )
        return int(schema)

    def _roll_back(self) -> None:
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except sqlite3.Error:
            pass  # The error that led here says what is wrong.

    def _explained(self, error: sqlite3.DatabaseError) -> ConfigError | StoreFailed:
        code = getattr(error, "sqlite_errorcode", 0)
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return ConfigError(f"{self._path} is in use by another process (another skepd on the same data directory?)")
        if code == sqlite3.SQLITE_NOTADB:
            return ConfigError(f"{self._path} is not a store of skep")
        return StoreFailed(f"the cluster's state {self._path} cannot be opened: {error}")
