"""Port 2377: one TLS listener for everything that managers and nodes say to each other.

A client certificate is optional for TLS and required by path: `GET /ca` and `POST /join` are for nodes that have none yet; `POST /renew`,
`GET /session` and `GET /logs/<stream>` take a node's. What is asked of the manager goes through `Gate`. Every input is bounded: body and
frame sizes, connections that have not shown who they are, attempts to join. See docs/link.md.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol, TypeVar

import msgspec
from aiohttp import web

from skep.clock import SECOND, Clock
from skep.errors import Invalid, SkepError, Unauthorized
from skep.link.channel import FROM_AGENT_LIMIT, LOG_FRAME_LIMIT, Channel, Closed, Identity, Refused, encode
from skep.link.messages import Closing, Failed, JoinCall, Joined, RenewCall, Renewed
from skep.link.socket import CLOSE_SECONDS, Doorkeeper, SmallTls, SocketChannel
from skep.link.tls import MANAGER_NAME, WORKER_NAME, peer_identity

log = logging.getLogger(__name__)
T = TypeVar("T")

BODY_LIMIT = 64 << 10
JOIN_BURST = 20
JOINS_PER_SECOND = 2
ADDRESSES = 4096
"""How many addresses are remembered for the rate of joins."""


class Gate(Protocol):
    """The manager, as its port sees it (`skep.manager.gate`). Errors are SkepErrors."""

    def root_certificate(self) -> str: ...

    async def join(self, call: JoinCall, peer: str) -> Joined: ...

    async def renew(self, identity: Identity, call: RenewCall) -> Renewed: ...

    def admit(self, identity: Identity) -> None:
        """Raises Refused for a certificate that is no longer good."""
        ...

    async def session(self, identity: Identity, channel: Channel, peer: str) -> None:
        """Until it ends."""
        ...

    async def logs(self, identity: Identity, stream: str, channel: Channel) -> None: ...


class JoinRate:
    """So many attempts per address at once, and then so many a second."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._left: dict[str, tuple[float, int]] = {}

    def take(self, address: str) -> bool:
        now = self._clock.now()
        left, at = self._left.pop(address, (float(JOIN_BURST), now))
        left = min(JOIN_BURST, left + (now - at) * JOINS_PER_SECOND / SECOND)
        self._left[address] = (max(left - 1, 0), now)
        if len(self._left) > ADDRESSES:
            del self._left[next(iter(self._left))]
        return left >= 1


class Server:
    """`await start()` listens (OSError when it cannot: `address already in use`), `await close()` ends it."""

    def __init__(self, gate: Gate, context: ssl.SSLContext, clock: Clock, *, door: Doorkeeper | None = None) -> None:
        """`context`: `Certificates.server_context()`."""
        self._gate = gate
        self._context = context
        self._joins = JoinRate(clock)
        self._door = door or Doorkeeper()
        self._runner: web.AppRunner | None = None
        self._listening: asyncio.Server | None = None

    async def start(self, address: str, port: int) -> int:
        """Returns the port (useful when 0 was asked for)."""
        app = web.Application(client_max_size=BODY_LIMIT)
        app.router.add_get("/ca", self._answering(self._ca))
        app.router.add_post("/join", self._answering(self._join))
        app.router.add_post("/renew", self._answering(self._renew))
        app.router.add_get("/session", self._answering(self._session))
        app.router.add_get("/logs/{stream}", self._answering(self._logs))
        runner = web.AppRunner(app, access_log=None, keepalive_timeout=5.0, shutdown_timeout=CLOSE_SECONDS)
        self._runner = runner
        try:
            await runner.setup()
            handlers = runner.server
            assert handlers is not None
            self._listening = await asyncio.get_running_loop().create_server(
                lambda: SmallTls(handlers(), self._context, self._door),
                *(address, port),
                backlog=1024,
                reuse_address=True,
                start_serving=False,  # asyncio forgets a listening socket when it is cancelled in the last step of this
            )
            await self._listening.start_serving()
        except BaseException:
            await self.close()
            raise
        return int(self._listening.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Sessions are ended by their own side first (`Sessions.stop`); what is left is cut off."""
        if self._listening is not None:
            self._listening.close()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._listening is not None:
            await self._listening.wait_closed()
        self._listening = self._runner = None

    def _answering(
        self, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answer(request: web.Request) -> web.StreamResponse:
            try:
                return await handler(request)
            except SkepError as error:
                return _failure(error.message, error.status, removed=isinstance(error, Refused) and error.removed)

        return answer

    async def _ca(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text=self._gate.root_certificate(), content_type="application/x-pem-file")

    async def _join(self, request: web.Request) -> web.StreamResponse:
        peer = request.remote or ""
        if not self._joins.take(peer):
            log.warning("too many attempts to join", extra={"address": peer})
            return _failure("too many attempts to join from this address; try again in a few seconds", 429)
        call = await _body(request, JoinCall)
        try:
            joined = await self._gate.join(call, peer)
        except SkepError as error:
            log.warning("a node was not let in", extra={"address": peer, "reason": error.message})
            raise
        return _json(joined)

    async def _renew(self, request: web.Request) -> web.StreamResponse:
        identity = self._identity(request)
        self._gate.admit(identity)
        return _json(await self._gate.renew(identity, await _body(request, RenewCall)))

    async def _session(self, request: web.Request) -> web.StreamResponse:
        """A node that is refused is told so on the socket: an HTTP error would reach it without the reason."""
        identity = self._identity(request)
        socket = web.WebSocketResponse(max_msg_size=FROM_AGENT_LIMIT, compress=False, timeout=CLOSE_SECONDS)
        await socket.prepare(request)
        channel = SocketChannel(socket, transport=request.transport)
        try:
            self._gate.admit(identity)
            self._door.settle(request.protocol)
            await self._gate.session(identity, channel, request.remote or "")
            await channel.close()
        except Refused as error:
            log.warning("a node was refused", extra={"node": identity.node_id, "address": request.remote, "reason": error.message})
            with suppress(Closed):
                await channel.send(encode(Closing(reason=error.message, removed=error.removed)))
            await channel.close(error.message)
        except SkepError as error:
            await channel.close(error.message)
        return socket

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        identity = self._identity(request)
        self._gate.admit(identity)
        socket = web.WebSocketResponse(max_msg_size=LOG_FRAME_LIMIT, compress=False, timeout=CLOSE_SECONDS)
        await socket.prepare(request)
        self._door.settle(request.protocol)
        channel = SocketChannel(socket, transport=request.transport)
        try:
            await self._gate.logs(identity, request.match_info["stream"], channel)
            await channel.close()
        except SkepError as error:
            await channel.close(error.message)
        return socket

    def _identity(self, request: web.Request) -> Identity:
        transport = request.transport
        identity = peer_identity(transport.get_extra_info("ssl_object")) if transport else None
        if identity is None:
            raise Unauthorized("a node's certificate is needed here")
        if identity.role not in (WORKER_NAME, MANAGER_NAME):
            raise Refused(f"the certificate's role {identity.role!r} is none of a node's")
        return identity


async def _body(request: web.Request, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Invalid(f"the request cannot be read: {error}") from None


def _json(thing: msgspec.Struct, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(thing), content_type="application/json", status=status)


def _failure(message: str, status: int, *, removed: bool = False) -> web.Response:
    return _json(Failed(message=message, removed=removed), status)
