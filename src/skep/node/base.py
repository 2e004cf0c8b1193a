"""What the agent needs of a node to run a task. One implementation: `skep.node.tasks.TaskRuntime`, over an engine and a data path."""

from __future__ import annotations

from typing import Protocol

from skep.engine.base import Exit
from skep.model.assignment import TaskItem
from skep.model.task import TaskStatus


class Tasks(Protocol):
    """Each call is one transition of a task and may take long; cancelling one leaves a state from which it can be called again.

    Errors are skep.errors; their one line becomes `Status.Err`.
    """

    async def prepare(self, item: TaskItem) -> None:
        """Image, network, mounts, container: everything but starting it. An image that is missing and cannot be pulled raises
        NotFound `No such image: REF: <the registry's reason>`; where a pull fails and the image is here, the local one is used."""
        ...

    async def start(self, item: TaskItem) -> None:
        """Start its container; with a health check, wait until it is healthy. Fine if it runs already (re-adoption)."""
        ...

    async def wait(self, item: TaskItem) -> Exit:
        """Until it ends. Raises SkepError (`unhealthy container`) when its health check fails for good."""
        ...

    async def shutdown(self, item: TaskItem) -> None:
        """Stop signal, grace period, SIGKILL. Fine if there is no container, or it has ended."""
        ...

    async def remove(self, task_id: str) -> None:
        """Container, network place, everything. Idempotent."""
        ...

    def status(self, task_id: str) -> TaskStatus | None:
        """Container id, pid, exit code and host ports as they are now (state and times are the caller's)."""
        ...

    def known(self) -> list[str]:
        """Ids of all tasks that have a container or a network place here, running or not: what a restart finds."""
        ...
