"""Exec instances: made by one call, started by another, asked about by a third. Finished ones are kept a while for their exit code."""

from __future__ import annotations

from skep.clock import MINUTE, Clock
from skep.engine.base import Exec, ExecConfig
from skep.errors import Conflict, NotFound
from skep.ids import Random, new_hex

KEPT = 5 * MINUTE
MOST = 1000
"""Instances that may wait to be started, or run, at a time."""


class ExecInstance:
    def __init__(self, id: str, container_id: str, config: ExecConfig, created_at: int) -> None:
        self.id = id
        self.container_id = container_id
        self.config = config
        self.created_at = created_at
        self.attach_stdout = True
        self.attach_stderr = True
        self.detach_keys = ""
        self.process: Exec | None = None
        self.started = False
        self.exit_code: int | None = None
        self.ended_at = 0

    @property
    def running(self) -> bool:
        return self.process is not None and self.exit_code is None

    @property
    def pid(self) -> int:
        """0 until there is a process."""
        return self.process.pid if self.process is not None else 0

    def end(self, code: int, at: int) -> None:
        self.exit_code = code
        self.ended_at = at


class Execs:
    def __init__(self, rng: Random, clock: Clock) -> None:
        self._rng = rng
        self._clock = clock
        self._kept: dict[str, ExecInstance] = {}

    def create(self, container_id: str, config: ExecConfig) -> ExecInstance:
        now = self._clock.now()
        for old in [e for e in self._kept.values() if e.exit_code is not None and now - e.ended_at > KEPT]:
            del self._kept[old.id]
        if len(self._kept) >= MOST:
            unused = next((e for e in self._kept.values() if not e.running), None)
            if unused is None:
                raise Conflict(f"{MOST} exec processes run already on this node")
            del self._kept[unused.id]
        instance = ExecInstance(new_hex(self._rng), container_id, config, now)
        self._kept[instance.id] = instance
        return instance

    def get(self, id: str) -> ExecInstance:
        found = self._kept.get(id)
        if found is None:
            raise NotFound(f"No such exec instance: {id}")
        return found

    def of(self, container_id: str) -> list[str]:
        return [e.id for e in self._kept.values() if e.container_id == container_id and e.running]
