"""A container's files and figures, for `docker cp`, `export`, `diff`, `ps --size` and `stats`."""

from __future__ import annotations

from collections.abc import AsyncIterator

from skep.engine.base import PathStat, Stats
from skep.engine.oci.core import Core
from skep.errors import NotImplementedHere


class Contents(Core):
    async def stats(self, id: str) -> Stats:
        raise NotImplementedHere("stats are not built yet")

    async def stat_path(self, id: str, path: str) -> PathStat:
        raise NotImplementedHere("copying is not built yet")

    def read_archive(self, id: str, path: str) -> AsyncIterator[bytes]:
        raise NotImplementedHere("copying is not built yet")

    async def write_archive(
        self, id: str, path: str, data: AsyncIterator[bytes], *, keep_type: bool = False, copy_owner: bool = False
    ) -> None:
        raise NotImplementedHere("copying is not built yet")

    def export(self, id: str) -> AsyncIterator[bytes]:
        raise NotImplementedHere("exporting is not built yet")

    async def changes(self, id: str) -> list[tuple[int, str]]:
        raise NotImplementedHere("diff is not built yet")

    async def size(self, id: str) -> tuple[int, int]:
        raise NotImplementedHere("sizes are not built yet")
