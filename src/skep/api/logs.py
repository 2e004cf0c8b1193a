"""Service and task logs: one frame a line, with the three details that `docker service logs` needs to name a line's task."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from aiohttp import web

from skep.api.context import Cluster, LogOptions
from skep.api.query import loose_bool, tail, when
from skep.api.routing import Call
from skep.api.streams import LogText, begin, log_details, send_lines, stream_type
from skep.errors import SkepError
from skep.model.spec import TaskSpec
from skep.model.tables import TASK_BY_SERVICE
from skep.model.task import Task

NO_STREAM = "Bad parameters: you must choose at least one stream"


def options(call: Call) -> LogOptions | None:
    """None when neither stream was chosen, which each caller refuses with its own status."""
    stdout, stderr = loose_bool(call.query, "stdout"), loose_bool(call.query, "stderr")
    if not stdout and not stderr:
        return None
    return LogOptions(
        stdout=stdout,
        stderr=stderr,
        follow=loose_bool(call.query, "follow"),
        since=when(call.query, "since"),
        until=when(call.query, "until"),
        tail=tail(call.query),
    )


async def service_logs(call: Call) -> web.StreamResponse:
    """Logs of a service's tasks, those that start later included when following."""
    cluster, chosen = call.cluster, _chosen(call)
    service = cluster.service(call.path["id"])
    return await _stream(
        call, cluster, chosen, list(cluster.view.find(TASK_BY_SERVICE, service.id)), service.spec.task_template, service.id
    )


async def task_logs(call: Call) -> web.StreamResponse:
    cluster, chosen = call.cluster, _chosen(call)
    task = cluster.task(call.path["id"])
    return await _stream(call, cluster, chosen, [task], task.spec, "")


def _chosen(call: Call) -> LogOptions:
    """The stream is chosen before the object is looked up, as Docker does."""
    chosen = options(call)
    if chosen is None:
        raise SkepError(NO_STREAM)
    return chosen


async def _stream(
    call: Call, cluster: Cluster, chosen: LogOptions, tasks: Sequence[Task], spec: TaskSpec, service_id: str
) -> web.StreamResponse:
    tty = spec.container_spec is not None and spec.container_spec.tty
    text = LogText(tty=tty, timestamps=loose_bool(call.query, "timestamps"))
    detailed = loose_bool(call.query, "details")
    by_id = {task.id: task for task in tasks}

    def details(task_id: str, more: dict[str, str]) -> str:
        task = by_id.get(task_id) or cluster.view.get(Task, task_id)
        if task is not None:
            by_id[task_id] = task
        return log_details(
            {
                **more,
                "com.docker.swarm.node.id": task.node_id if task is not None else "",
                "com.docker.swarm.service.id": task.service_id if task is not None else "",
                "com.docker.swarm.task.id": task_id,
            }
        )

    async def lines() -> AsyncGenerator[bytes, None]:
        source = cluster.logs(tasks, chosen, service_id=service_id)
        try:
            async with aclosing(source):
                async for line in source:
                    yield text.render(line.at, line.stream, line.data, details(line.task_id, line.details) if detailed else None)
        except SkepError as error:
            yield text.failure(error.message)

    response = await begin(call, stream_type(call, tty))
    await send_lines(response, lines())
    return response
