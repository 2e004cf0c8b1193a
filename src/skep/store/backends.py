"""Back ends that keep nothing on disk: for simulations and tests. The one for real is `skep.store.sqlite`.

`MemoryBackend` is the disk of a simulated manager: build a new store over the same one to start again after a kill.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from skep.store.base import Write


class NullBackend:
    """Forgets everything."""

    def load(self) -> Iterator[Write]:
        return iter(())

    def write(self, batch: Sequence[Write], version: int) -> None:
        pass

    def close(self) -> None:
        pass


class MemoryBackend:
    """A dictionary of encoded rows in order of creation."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Write] = {}
        self.version = 0

    def load(self) -> Iterator[Write]:
        yield Write("", "", self.version, None)
        yield from list(self.rows.values())

    def write(self, batch: Sequence[Write], version: int) -> None:
        for row in batch:
            if row.data is None:
                self.rows.pop((row.table, row.id), None)
            else:
                self.rows[row.table, row.id] = row
        self.version = version

    def close(self) -> None:
        pass
