"""A WebSocket as a channel, and TLS connections that do not eat the machine.

asyncio's TLS keeps 292 KB of buffers a connection, 52 KB with `max_size` at one TLS record: five thousand nodes are 260 MB. Before a
connection has shown who it is, it has a time limit and a limit on its number.
"""

from __future__ import annotations

import asyncio
import ssl
from asyncio.sslproto import SSLProtocol
from collections import Counter
from typing import Any

import aiohttp
from aiohttp import web

from skep.link.channel import Closed, cut

CLOSE_SECONDS = 2.0
"""How long the other side may take to answer a close."""


class SocketChannel:
    """`skep.link.channel.Channel` over either end of a WebSocket."""

    def __init__(
        self,
        socket: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
        *,
        held: aiohttp.ClientSession | None = None,
        transport: asyncio.Transport | None = None,
    ) -> None:
        """`held` is closed with the channel; `transport` is cut off when the other side does not take part in closing."""
        self._socket = socket
        self._held = held
        self._transport = transport

    async def send(self, frame: bytes) -> None:
        try:
            await self._socket.send_bytes(frame)
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            raise Closed(f"the connection was lost: {error}") from None

    async def receive(self) -> bytes:
        message = await self._socket.receive()
        if message.type is aiohttp.WSMsgType.BINARY:
            return bytes(message.data)
        if message.type is aiohttp.WSMsgType.CLOSE:
            raise Closed(str(message.extra or ""), clean=message.data == aiohttp.WSCloseCode.OK)
        if message.type is aiohttp.WSMsgType.TEXT:
            raise Closed("a text frame where msgpack was expected")
        error = self._socket.exception()
        raise Closed(f"the connection was lost: {error}" if error else "the connection was lost")

    async def close(self, reason: str = "") -> None:
        try:
            async with asyncio.timeout(CLOSE_SECONDS + 1):
                await self._socket.close(code=aiohttp.WSCloseCode.OK, message=cut(reason))
        except (OSError, RuntimeError, TimeoutError, aiohttp.ClientError):
            if self._transport is not None:
                self._transport.abort()
        finally:
            if self._held is not None:
                await self._held.close()


class Doorkeeper:
    """Connections that have not shown who they are: how many there may be, per address and in all, and for how long."""

    def __init__(self, *, limit: int = 1024, per_address: int = 256, seconds: float = 20.0) -> None:
        self.limit = limit
        self.per_address = per_address
        self.seconds = seconds
        self._waiting: dict[Any, tuple[str, asyncio.TimerHandle]] = {}
        self._addresses: Counter[str] = Counter()

    def enter(self, key: Any, address: str, transport: asyncio.Transport) -> bool:
        """False: no more are let in."""
        if len(self._waiting) >= self.limit or self._addresses[address] >= self.per_address:
            return False
        self._addresses[address] += 1
        self._waiting[key] = (address, asyncio.get_running_loop().call_later(self.seconds, transport.abort))
        return True

    def settle(self, key: Any) -> None:
        """It is known now, or gone."""
        address, timer = self._waiting.pop(key, ("", None))
        if timer is not None:
            timer.cancel()
            self._addresses[address] -= 1
            if not self._addresses[address]:
                del self._addresses[address]


class SmallTls(SSLProtocol):
    """asyncio's TLS with small buffers, and the doorkeeper in front. It leans on private names: tests hold it against each Python."""

    max_size = 16384

    def __init__(self, app: asyncio.Protocol, context: ssl.SSLContext, door: Doorkeeper) -> None:
        self._door = door
        self._app = app
        loop = asyncio.get_running_loop()
        super().__init__(loop, app, context, None, server_side=True, ssl_handshake_timeout=int(door.seconds))  # type: ignore[arg-type]

    def connection_made(self, transport: Any) -> None:
        peer = transport.get_extra_info("peername")
        if not self._door.enter(self._app, peer[0] if peer else "", transport):
            transport.abort()
        super().connection_made(transport)

    def _on_handshake_complete(self, handshake_exc: BaseException | None) -> None:
        """asyncio drops the connection without sending the alert that says why: the other side would see a lost connection."""
        if handshake_exc is not None:
            self._process_outgoing()  # type: ignore[attr-defined]
        super()._on_handshake_complete(handshake_exc)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._door.settle(self._app)
        super().connection_lost(exc)
