"""The manager's port is there while the server is, and free as soon as it is not, however it ended."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from member_world import free_port
from tls_world import CLOCK, Manager

from skep.link.server import Server


def test_a_server_that_is_cancelled_while_it_starts_leaves_the_port_free(tmp_path: Path) -> None:
    async def body() -> None:
        manager = Manager(tmp_path)
        started = 0
        for steps in range(12):
            port = free_port()
            server = Server(manager.gate, manager.certificates.server_context(), CLOCK)
            async with asyncio.TaskGroup() as group:
                starting = group.create_task(server.start("127.0.0.1", port))
                for _ in range(steps):
                    await asyncio.sleep(0)
                started += starting.done()
                starting.cancel()
                await asyncio.wait([starting])
                if not starting.cancelled():
                    await server.close()
            with socket.socket() as taken:
                taken.bind(("127.0.0.1", port))
                taken.listen()
        assert 0 < started < 12, "some were cancelled and some were not"

    asyncio.run(body())


def test_a_port_that_is_taken_is_an_error_and_costs_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        manager = Manager(tmp_path)
        server = Server(manager.gate, manager.certificates.server_context(), CLOCK)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(OSError, match="address already in use"):
                await server.start("127.0.0.1", port)
        assert await server.start("127.0.0.1", port) == port
        await server.close()
        await server.close()

    asyncio.run(body())
