"""The Docker Engine API as an aiohttp application over a Context. See docs/api.md for a request's way and for how to add an endpoint.

One catch-all handler: strips and checks the version prefix, finds the route, turns errors of skep.errors into Docker's answers. A client
that goes away cancels its request, as Docker does; what must not stop half way (swarm init) runs in the server's own task group.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from skep.api import clusterevents, tls
from skep.api.body import LARGEST
from skep.api.context import Context
from skep.api.routes.table import ROUTES
from skep.api.routing import Call, Routes, answer, check_query
from skep.api.state import API_VERSION, OLDEST_VERSION, State, written
from skep.errors import SkepError
from skep.node.health import Health

STATE: web.AppKey[State] = web.AppKey("state", State)
LOG = logging.getLogger("skep.api")
HTTP_LOG = logging.getLogger("skep.api.http")
LONGEST_HEADER = 1 << 20
"""Bytes of a request line or a header, as in Go: filters and registry credentials may be long."""
_VERSIONED = re.compile(r"/v([0-9]+(?:\.[0-9]+)*)(/.*)")


def make_app(context: Context, *, health: Callable[[str], Health | None] | None = None) -> web.Application:
    """The application; serve it with `serve_unix`. `health`: of a task's container, by task id (`TaskRuntime.health`)."""
    app = web.Application(client_max_size=LARGEST)
    app[STATE] = State(context, health)
    app.router.add_route("*", r"/{path:[\s\S]*}", _Dispatcher(app[STATE], ROUTES).handle)
    return app


def _one_line(record: logging.LogRecord) -> bool:
    """What is no HTTP is the client's affair: no traceback for it, and nothing of what it sent, which may hold credentials."""
    error = record.exc_info[1] if record.exc_info else None
    if not isinstance(error, HttpProcessingError | web.RequestPayloadError):
        return True
    LOG.info("a request could not be read: %s", type(error).__name__)
    return False


HTTP_LOG.addFilter(_one_line)


class _Dispatcher:
    def __init__(self, state: State, routes: Routes) -> None:
        self.state = state
        self.routes = routes

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        version, said = API_VERSION, ""
        if match := _VERSIONED.fullmatch(path):
            said, path = match[1], match[2]
            version = _parsed(said)
        found = self.routes.find(request.method, path)
        response: web.StreamResponse
        call: Call | None = None
        if found is None:
            response = _error(404, "page not found")
            response.headers["Server"] = self.state.headers["Server"]
            return response
        try:
            if version > API_VERSION:
                response = _error(400, f"client version {said} is too new. Maximum supported API version is {written(API_VERSION)}")
            elif version < OLDEST_VERSION:
                response = web.Response(
                    status=400,
                    text=f"client version {said} is too old. Minimum supported API version is {written(OLDEST_VERSION)}, "
                    "please upgrade your client to a newer version\n",
                )
            else:
                route, parts = found
                check_query(route, request.query)
                call = Call(request, self.state, version, parts)
                response = await route.handler(call)
        except SkepError as error:
            if error.status >= 500 and error.status not in (501, 503):
                LOG.info("%s %s: %s", request.method, path, error.message)
            response = _error(error.status, error.message)
        except web.HTTPRequestEntityTooLarge:
            response = _error(413, f"request body is larger than {LARGEST} bytes")
        except Exception as raised:
            cause, begun = _cause(raised), call.begun if call is not None else None
            if isinstance(cause, ConnectionError) and _gone(request):
                return begun or _error(400, "the client is gone")
            malformed = isinstance(cause, web.RequestPayloadError)
            if not malformed:
                LOG.exception("%s %s failed", request.method, path)
            if begun is not None and request.transport is not None:
                request.transport.abort()
                return begun
            response = (
                _error(400, "the body is not what its headers say") if malformed else _error(500, "internal error: see this node's log")
            )
        if not response.prepared:
            self.state.dress(response)
        return response


def _cause(error: BaseException) -> BaseException:
    """Of a group with one error, that error: where a handler works in a task group, its errors come in one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _gone(request: web.Request) -> bool:
    """Whether there is nobody any more to be told anything."""
    return request.transport is None or request.transport.is_closing()


def _parsed(said: str) -> tuple[int, int]:
    parts = [int(p[:9]) for p in said.split(".")]
    return (parts[0], parts[1] if len(parts) > 1 else 0)


def _error(status: int, message: str) -> web.Response:
    return answer({"message": message}, status)


@contextlib.asynccontextmanager
async def _running(app: web.Application) -> AsyncIterator[web.AppRunner]:
    """A runner, with the application's own task group beside it (the event feed, exits of detached execs)."""
    state = app[STATE]
    runner = web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=1.0,
        logger=HTTP_LOG,
        auto_decompress=False,  # Docker takes no Content-Encoding, and a few bytes may unpack to many
        max_line_size=LONGEST_HEADER,
        max_field_size=LONGEST_HEADER,
    )
    await runner.setup()
    try:
        if state.group is not None:
            yield runner
            return
        async with asyncio.TaskGroup() as group:
            state.group = group
            feed = group.create_task(clusterevents.run(state.context, state.cluster_changed))
            try:
                yield runner
            finally:
                state.group = None
                feed.cancel()
    finally:
        await runner.cleanup()


async def serve_unix(app: web.Application, path: str, mode: int = 0o660, *, ready: asyncio.Event | None = None) -> None:
    """Serve on a unix socket until cancelled; `ready` is set when clients can connect. A stale socket file is replaced.

    Raises OSError (EADDRINUSE) when another process answers there.
    """
    _remove_stale(path)
    async with _running(app) as runner:
        site = web.SockSite(runner, _listener(path, mode), backlog=1024)
        await site.start()
        try:
            if ready is not None:
                ready.set()
            await asyncio.Event().wait()
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


async def serve_tcp(app: web.Application, host: str, port: int, context: ssl.SSLContext, *, ready: asyncio.Event | None = None) -> None:
    """Serve on TCP with mutual TLS until cancelled. Raises OSError when the address cannot be had."""
    listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024)
    listener.setblocking(False)
    async with _running(app) as runner:
        assert runner.server is not None
        server = await tls.start_server(runner.server, context, listener)
        try:
            if ready is not None:
                ready.set()
            await asyncio.Event().wait()
        finally:
            server.close()


def _listener(path: str, mode: int) -> socket.socket:
    """Nobody else can connect before it has its mode: Linux makes the file with the socket's own (the umask is the whole process', and
    other threads make files meanwhile)."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        os.fchmod(listener.fileno(), 0o600 & mode)
        listener.bind(path)
        os.chmod(path, mode)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_stale(path: str) -> None:
    probe = socket.socket(socket.AF_UNIX)
    try:
        probe.connect(path)
    except ConnectionRefusedError:
        os.unlink(path)
    except FileNotFoundError:
        return
    else:
        raise OSError(98, f"{path}: another process serves this socket")
    finally:
        probe.close()
