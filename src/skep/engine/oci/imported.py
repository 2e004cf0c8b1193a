"""An image from a tar of a root file system (`docker import`): its config, and how the tar is compressed."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from skep.engine.oci.compression import LONGEST_MAGIC
from skep.engine.oci.manifest import parse_platform


def imported_config(config: dict[str, Any], diff_id: str, message: str, created: str, machine: str) -> bytes:
    """An image config with one layer; the same input gives the same bytes."""
    platform = parse_platform("", machine)
    said = {"comment": message} if message else {}
    whole = {
        "architecture": platform.architecture,
        "os": platform.os,
        "created": created,
        "config": config,
        "history": [{"created": created, **said}],
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        **said,
    }
    return json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()


async def sniffed(data: AsyncIterator[bytes]) -> tuple[bytes, AsyncIterator[bytes]]:
    """What a stream begins with, and all of it."""
    head = b""
    async for chunk in data:
        head += chunk
        if len(head) >= LONGEST_MAGIC:
            break

    async def whole() -> AsyncGenerator[bytes, None]:
        if head:
            yield head
        async for chunk in data:
            yield chunk

    return head, whole()
