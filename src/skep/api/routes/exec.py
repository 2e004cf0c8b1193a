"""Exec: create, start (a taken-over connection, or detached), resize, inspect."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import msgspec
from aiohttp import web

from skep.api.execs import ExecInstance
from skep.api.query import number
from skep.api.routes.containers import find
from skep.api.routes.lifecycle import owned
from skep.api.routing import Call, Routes, answer, nothing
from skep.api.streams import Hijacked, close_writer, detach_keys, frame, pump, stream_type, take_over
from skep.engine.base import Exec, ExecConfig
from skep.errors import Conflict, Invalid, NotFound, SkepError, Unavailable
from skep.model.base import Spec

ROUTES = Routes()


class ExecBody(Spec, frozen=True, kw_only=True):
    user: str = ""
    privileged: bool = False
    tty: bool = msgspec.field(default=False, name="Tty")
    attach_stdin: bool = False
    attach_stderr: bool = False
    attach_stdout: bool = False
    detach: bool = False
    detach_keys: str = ""
    env: tuple[str, ...] = ()
    working_dir: str = ""
    cmd: tuple[str, ...] = ()
    console_size: tuple[int, int] | None = None


class StartBody(Spec, frozen=True, kw_only=True):
    detach: bool = False
    tty: bool = msgspec.field(default=False, name="Tty")
    console_size: tuple[int, int] | None = None


def _size(size: tuple[int, int] | None) -> tuple[int, int]:
    """(rows, columns); Docker's ConsoleSize is [height, width]."""
    rows, columns = size or (0, 0)
    if not 0 <= rows <= 65535 or not 0 <= columns <= 65535:
        raise Invalid(f"invalid ConsoleSize [{rows} {columns}]")
    return rows, columns


def _publish(call: Call, instance: ExecInstance, action: str, **more: str) -> None:
    container = call.context.engine.get(instance.container_id)
    if container is not None:
        call.context.events.container(action, container, {"execID": instance.id, **more})


@ROUTES.add("POST", "/containers/{id}/exec")
async def create(call: Call) -> web.StreamResponse:
    body = await call.body(ExecBody)
    if not body.cmd:
        raise Invalid("No exec command specified")
    try:
        detach_keys(body.detach_keys)
    except ValueError as error:
        raise Invalid(f"Invalid escape keys ({body.detach_keys}) provided: {error}") from None
    container = find(call)
    plain = owned(call, container)
    if plain is not None and plain.is_restarting(container.config.id):
        raise Conflict(f"Container {container.config.id} is restarting, wait until the container is running")
    if not container.running:
        raise Conflict(f"container {container.config.id} is not running")
    if container.paused:
        raise Conflict(f"container {container.config.id} is paused, unpause the container before exec")
    rows, columns = _size(body.console_size)
    config = ExecConfig(
        args=body.cmd,
        env=body.env,
        cwd=body.working_dir,
        user=body.user,
        tty=body.tty,
        stdin=body.attach_stdin,
        privileged=body.privileged,
        rows=rows,
        columns=columns,
    )
    instance = call.state.execs.create(container.config.id, config)
    instance.attach_stdout, instance.attach_stderr = body.attach_stdout, body.attach_stderr
    instance.detach_keys = body.detach_keys
    _publish(call, instance, f"exec_create: {' '.join(body.cmd)}")
    return answer({"Id": instance.id}, 201)


@ROUTES.add("POST", "/exec/{id}/start")
async def start(call: Call) -> web.StreamResponse:
    body = await call.body(StartBody)
    instance = call.state.execs.get(call.path["id"])
    if instance.started:
        state = "is already running" if instance.running else "has already run"
        raise Conflict(f"exec command {instance.id} {state}")
    container = call.context.engine.get(instance.container_id)
    if container is None:
        raise NotFound(f"No such container: {instance.container_id}")
    if not container.running:
        raise Conflict(f"container {container.config.id} is not running")
    instance.started = True
    config = instance.config
    if body.console_size is not None:
        rows, columns = _size(body.console_size)
        config = msgspec.structs.replace(config, rows=rows, columns=columns)
    if body.detach:
        return await _start_detached(call, instance, config)
    return await _start_attached(call, instance, config)


async def _run(call: Call, instance: ExecInstance, config: ExecConfig) -> Exec:
    """Start it, and see to it that its exit code is noted whoever is still attached then. Raises SkepError where it cannot start."""
    try:
        process = await call.context.engine.exec(instance.container_id, config)
    except SkepError as error:
        missing = "not found" in error.text or "no such file" in error.text
        instance.end(127 if missing else 126, call.context.clock.now())
        raise
    instance.process = process
    _publish(call, instance, f"exec_start: {' '.join(config.args)}")

    async def note_exit() -> None:
        try:
            code = await process.wait()
        except SkepError:
            code = 255
        instance.end(code, call.context.clock.now())
        _publish(call, instance, "exec_die", exitCode=str(code))

    try:
        call.state.spawn(note_exit())
    except Unavailable:
        await process.streams.close()
        raise
    return process


async def _start_detached(call: Call, instance: ExecInstance, config: ExecConfig) -> web.StreamResponse:
    process = await _run(call, instance, config)

    async def drain() -> None:
        """Nobody reads its output, and it must not block on it."""
        async with aclosing(process.streams.output()) as output:
            async for _ in output:
                pass
        await process.streams.close()

    call.state.spawn(drain())
    if reason := await process.begun():
        raise Invalid(reason)
    return nothing()


async def _start_attached(call: Call, instance: ExecInstance, config: ExecConfig) -> web.StreamResponse:
    reader, writer = await take_over(call, stream_type(call, config.tty))
    try:
        try:
            process = await _run(call, instance, config)
        except SkepError as error:
            text = f"{error.message}\r\n".encode()
            writer.write(text if config.tty else frame(1, text))
            await writer.drain()
            return Hijacked()
        try:
            ended = await pump(
                process.streams,
                reader,
                writer,
                tty=config.tty,
                stdin=config.stdin,
                stdout=instance.attach_stdout,
                stderr=instance.attach_stderr,
                keys=detach_keys(instance.detach_keys),
            )
            if ended:
                await _settled(instance)
        finally:
            await process.streams.close()
    finally:
        await close_writer(reader, writer)
    return Hijacked()


async def _settled(instance: ExecInstance) -> None:
    """The client asks for the exit code as soon as the connection ends: let it be there."""
    if instance.process is not None and instance.exit_code is None:
        code = await instance.process.wait()
        if instance.exit_code is None:
            instance.exit_code = code


@ROUTES.add("POST", "/exec/{id}/resize")
async def resize(call: Call) -> web.StreamResponse:
    instance = call.state.execs.get(call.path["id"])
    if instance.process is None or not instance.running:
        raise Conflict(f"exec process {instance.id} is not running")
    await instance.process.resize(number(call.query, "h"), number(call.query, "w"))
    return nothing()


@ROUTES.add("GET", "/exec/{id}/json")
async def inspect(call: Call) -> web.StreamResponse:
    instance = call.state.execs.get(call.path["id"])
    config = instance.config
    process: dict[str, Any] = {
        "tty": config.tty,
        "entrypoint": config.args[0],
        "arguments": list(config.args[1:]),
        "privileged": config.privileged,
    }
    if config.user:
        process["user"] = config.user
    shown = {
        "ID": instance.id,
        "Running": instance.running,
        "ExitCode": instance.exit_code,
        "ProcessConfig": process,
        "OpenStdin": config.stdin,
        "OpenStderr": instance.attach_stderr,
        "OpenStdout": instance.attach_stdout,
        "CanRemove": False,
        "ContainerID": instance.container_id,
        "DetachKeys": "",
        "Pid": instance.pid,
    }
    return answer(shown)
