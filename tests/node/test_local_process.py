"""A process on a terminal: all of what it printed arrives, though its end goes at the same moment."""

from __future__ import annotations

import asyncio

from skep.local.process import NodeProcess

LINES = 40


async def printed() -> bytes:
    process = NodeProcess()
    out = b""
    async with asyncio.TaskGroup() as group:
        await process.start(group, ["sh", "-c", f"for i in $(seq {LINES}); do echo line $i; done"], tty=True, stdin=False)
        async for _, data in process.streams.output():
            out += data
        assert await process.wait() == 0
    return out


def test_the_last_words_on_a_terminal_arrive() -> None:
    wanted = "".join(f"line {i}\r\n" for i in range(1, LINES + 1)).encode()

    async def main() -> None:
        async with asyncio.timeout(60):
            for _ in range(150):
                assert await printed() == wanted

    asyncio.run(main())
