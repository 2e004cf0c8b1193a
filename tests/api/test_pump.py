"""A process that wants no more input still has something to say."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

from skep.api.streams import frame, pump
from skep.errors import SkepError


class Deaf:
    """Its standard input is closed; its output comes after somebody has tried to write."""

    def __init__(self) -> None:
        self.written = asyncio.Event()

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        await self.written.wait()
        await asyncio.sleep(0)
        yield 1, b"still here\n"

    async def write(self, data: bytes) -> None:
        self.written.set()
        raise SkepError("cannot write to the process: Broken pipe")

    async def close_stdin(self) -> None:
        return None

    async def close(self) -> None:
        return None


def test_output_reaches_the_client_after_the_process_closed_its_input() -> None:
    async def body() -> None:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            theirs.sendall(b"typed on")
            async with asyncio.timeout(5):
                assert await pump(Deaf(), reader, writer, tty=False, stdin=True)
            theirs.setblocking(False)
            assert theirs.recv(100) == frame(1, b"still here\n")
        finally:
            writer.close()
            await writer.wait_closed()
            theirs.close()

    asyncio.run(body())
