# ruff: noqa: ASYNC240 - tests may block
"""Archives for tests, made and read in memory."""

from __future__ import annotations

import io
import tarfile
from collections.abc import AsyncIterator


def pack(*members: tuple[str, bytes | str | None], **fields: object) -> bytes:
    """(name, content | None for a directory | text: the target of a link)."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.mtime, header.mode = 1_000_000_000, 0o640
            if content is None:
                header.type, header.mode = tarfile.DIRTYPE, 0o750
            elif isinstance(content, str):
                header.type, header.linkname = tarfile.SYMTYPE, content
            else:
                header.size = len(content)
            for field, value in fields.items():
                setattr(header, field, value)
            archive.addfile(header, io.BytesIO(content) if isinstance(content, bytes) else None)
    return whole.getvalue()


async def sent(data: bytes, piece: int = 1000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), piece):
        yield data[at : at + piece]


async def read(stream: AsyncIterator[bytes]) -> dict[str, tarfile.TarInfo]:
    whole = b"".join([chunk async for chunk in stream])
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        found = {}
        for member in archive:
            member.pax_headers["content"] = archive.extractfile(member).read().decode(errors="replace") if member.isfile() else ""  # type: ignore[union-attr]
            found[member.name] = member
        return found
