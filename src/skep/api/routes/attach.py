"""`/containers/{id}/attach`, `wait`, `resize`: what `docker run` holds open while its container lives."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from aiohttp import web

from skep.api.query import loose_bool, number
from skep.api.routes.containers import find
from skep.api.routes.lifecycle import owned
from skep.api.routing import ENCODER, Call, Routes, nothing
from skep.api.streams import Hijacked, begin, close_writer, detach_keys, pump, stream_type, take_over
from skep.engine.base import Container, Exit, LogRecord, Streams
from skep.errors import Conflict, Invalid, NotImplementedHere, SkepError

ROUTES = Routes()


@ROUTES.add("POST", "/containers/{id}/wait")
async def wait(call: Call) -> web.StreamResponse:
    """Headers at once: `docker run` opens this before it starts the container."""
    condition = call.query.get("condition", "") or "not-running"
    if condition not in ("not-running", "next-exit", "removed"):
        raise Invalid(f'invalid condition: "{condition}"')
    container = find(call)
    waiting = _Waiting(call, container, condition)
    try:
        response = await begin(call, "application/json")
        try:
            ended = await waiting.result()
        except SkepError as error:
            shown: dict[str, Any] = {"StatusCode": 0, "Error": {"Message": error.message}}
        else:
            shown = {"StatusCode": ended.code}
            if ended.error and not ended.oom:  # the docker command takes it for a failure of waiting, and exits with 125
                shown["Error"] = {"Message": ended.error}
        await response.write(ENCODER.encode(shown) + b"\n")
    finally:
        waiting.close()
    return response


class _Waiting:
    """Subscribed before the headers go out, so that nothing is missed between the two."""

    def __init__(self, call: Call, container: Container, condition: str) -> None:
        self.engine = call.context.engine
        self.id = container.config.id
        self.condition = condition
        self.container = container
        self.plain = owned(call, container)
        self.queue = self.engine.subscribe()

    def close(self) -> None:
        self.engine.unsubscribe(self.queue)

    async def result(self) -> Exit:
        if self.condition == "not-running" and self.plain is not None:
            return await self.plain.settled(self.id)
        if self.condition == "not-running" and not self.container.running:
            return self.container.exit or Exit(code=0, at=0)
        last = self.container.exit
        while True:
            action, id, ended = await self.queue.get()
            if id != self.id:
                continue
            if action == "die" and ended is not None:
                last = ended
                if self.condition != "removed":
                    return ended
            elif action == "destroy":
                if last is None and self.condition != "removed":
                    raise SkepError(f"container {self.id} was removed")
                return last or Exit(code=0, at=0)


@ROUTES.add("POST", "/containers/{id}/resize")
async def resize(call: Call) -> web.StreamResponse:
    container = find(call)
    if not container.running:
        raise Conflict(f"container {container.config.id} is not running")
    height, width = number(call.query, "h"), number(call.query, "w")
    if not 0 <= height <= 65535 or not 0 <= width <= 65535:
        raise Invalid(f"invalid resize width or height: {width}x{height}")
    await call.context.engine.resize(container.config.id, height, width)
    call.context.events.container("resize", container, {"height": str(height), "width": str(width)})
    return nothing()


@ROUTES.add("POST", "/containers/{id}/attach")
async def attach(call: Call) -> web.StreamResponse:
    """Also before the start, and before it is started again: nothing of its output is missed then."""
    container = find(call)
    config = container.config
    plain = owned(call, container)
    if container.paused:
        raise Conflict(f"container {config.id} is paused, unpause the container before attach")
    if plain is not None and plain.is_restarting(config.id):
        raise Conflict(f"container {config.id} is restarting, wait until the container is running")
    if plain is None and container.exit is not None:
        raise Conflict(f"container {config.id} is not running")
    try:
        keys = detach_keys(call.query.get("detachKeys", ""))
    except ValueError as error:
        raise Invalid(f"Invalid escape keys ({call.query.get('detachKeys', '')}) provided: {error}") from None
    live = loose_bool(call.query, "stream")
    chosen = {name: loose_bool(call.query, name) for name in ("stdin", "stdout", "stderr")}
    replay = loose_bool(call.query, "logs")
    if replay and live and config.tty:
        raise NotImplementedHere("skep does not replay the log of a terminal on attach: read it with docker logs first")
    streams: Streams = await call.context.engine.attach(config.id)
    if replay:
        call.state.spawn(_drain(streams))
        streams = _Replayed(streams, call.context.engine.logs(config.id, follow=live))
    try:
        reader, writer = await take_over(call, stream_type(call, config.tty))
        call.context.events.container("attach", container, {})
        try:
            if live or replay:
                stdin = chosen["stdin"] and config.stdin
                ended = await pump(
                    streams, reader, writer, tty=config.tty, stdin=stdin, stdout=chosen["stdout"], stderr=chosen["stderr"], keys=keys
                )
                now = call.context.engine.get(config.id)
                if not ended and now is not None and now.running:
                    call.context.events.container("detach", now, {})
        finally:
            await close_writer(reader, writer)
    finally:
        await streams.close()
    return Hijacked()


async def _drain(streams: Streams) -> None:
    """Its output is read from the log; here it must not stand in the process' way."""
    async with aclosing(streams.output()) as output:
        async for _ in output:
            pass


class _Replayed:
    """Streams whose output is the log from its beginning on: what was written is shown once, before as after attaching."""

    def __init__(self, streams: Streams, records: AsyncGenerator[LogRecord, None]) -> None:
        self._streams = streams
        self._records = records

    async def output(self) -> AsyncGenerator[tuple[int, bytes], None]:
        async for record in self._records:
            yield record.stream, record.data

    async def write(self, data: bytes) -> None:
        await self._streams.write(data)

    async def close_stdin(self) -> None:
        await self._streams.close_stdin()

    async def close(self) -> None:
        await self._records.aclose()
        await self._streams.close()


@ROUTES.add("GET", "/containers/{id}/attach/ws")
async def attach_by_websocket(call: Call) -> web.StreamResponse:
    find(call)
    raise NotImplementedHere("skep does not attach over WebSocket: use POST .../attach")
