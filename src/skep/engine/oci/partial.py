"""Downloads that broke off: what came of a blob is kept, and the next pull goes on from there.

    <root>/partial/<hex>    the first bytes of the blob of this digest

Only while it is downloaded, and after a failure that another try may mend (a lost connection, a cancelled pull, a kill). What is wrong in
itself is not kept. Small blobs are not worth it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from concurrent.futures import Executor
from contextlib import aclosing, suppress
from pathlib import Path
from typing import BinaryIO

from skep.engine.oci.manifest import Descriptor
from skep.engine.oci.registry import Registry

WORTH_IT = 2 << 20
CHUNK = 1 << 20


class Partials:
    def __init__(self, root: Path, executor: Executor) -> None:
        self._folder = root / "partial"
        self._executor = executor
        self._active: set[str] = set()

    def _path(self, blob: Descriptor) -> Path:
        return self._folder / blob.digest.partition(":")[2]

    def size(self, blob: Descriptor) -> int:
        """Bytes that are here."""
        try:
            return self._path(blob).stat().st_size
        except OSError:
            return 0

    def discard(self, blob: Descriptor) -> None:
        self._path(blob).unlink(missing_ok=True)

    def clear(self) -> int:
        """Remove all that nobody downloads now; returns the bytes."""
        freed = 0
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                if path.name not in self._active:
                    with suppress(FileNotFoundError):
                        freed += path.stat().st_size
                        path.unlink()
        return freed

    async def fetch(self, blob: Descriptor, registry: Registry) -> AsyncGenerator[bytes, None]:
        """The whole blob: what is here, then the rest from the registry, kept as it comes."""
        path = self._path(blob)
        if blob.size < WORTH_IT or path.name in self._active:
            async with aclosing(registry.blob(blob)) as rest:
                async for chunk in rest:
                    yield chunk
            return
        self._active.add(path.name)
        try:
            async with aclosing(self._kept(path, blob, registry)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self._active.discard(path.name)

    async def _kept(self, path: Path, blob: Descriptor, registry: Registry) -> AsyncGenerator[bytes, None]:
        loop = asyncio.get_running_loop()
        file = await loop.run_in_executor(self._executor, _open, path, blob.size)
        try:
            have = 0
            while file is not None and (chunk := await loop.run_in_executor(self._executor, file.read, CHUNK)):
                have += len(chunk)
                yield chunk
            if have == blob.size:
                return
            async with aclosing(registry.blob(blob, have)) as rest:
                async for chunk in rest:
                    if file is not None:
                        try:
                            written = await loop.run_in_executor(self._executor, file.write, chunk)
                        except OSError:
                            written = 0
                        if written != len(chunk):
                            # no room for it twice: then without
                            file.close()
                            file = None
                            self.discard(blob)
                    yield chunk
        finally:
            if file is not None:
                file.close()


def _open(path: Path, size: int) -> BinaryIO | None:
    """To be read from its beginning and then written at its end; None when there is no room even for that."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)  # noqa: SIM115
    except OSError:
        return None
    if os.fstat(file.fileno()).st_size > size:
        file.truncate(0)
    return file
