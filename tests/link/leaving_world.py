"""What the tests of leaving share."""

from __future__ import annotations

from typing import Any

from link_world import World, network, ready, task

from skep.clock import MILLISECOND
from skep.link.messages import Applied, Assignments, Heartbeat, Left
from skep.model.enums import TaskState as S
from skep.model.task import Task

ON_OV = ("ov", "10.0.1.3/24")


class Cluster(World):
    """n1 runs `t`, n2 and n3 have tasks on its network, n4 does not. Every session has heard all there is."""

    def __init__(self, *, ingress: bool = False) -> None:
        super().__init__()
        self.put(*(ready(f"n{n}", n) for n in range(1, 5)), network("ov", "10.0.1.0/24", ingress=ingress), network("x", "10.0.2.0/24"))
        self.put(task("t", "n1", S.RUNNING, ON_OV), task("plain", "n1", S.RUNNING, service="db"))
        self.put(task("u", "n2", S.RUNNING, ("ov", "10.0.1.4/24")), task("v", "n3", S.RUNNING, ("ov", "10.0.1.5/24")))
        self.put(task("w", "n4", S.RUNNING, ("x", "10.0.2.3/24")))
        self.nodes = {f"n{n}": self.connect(f"n{n}") for n in range(1, 5)}
        self.hear_all()

    def hear_all(self) -> dict[str, list[Any]]:
        self.pass_time(60 * MILLISECOND)
        return {id: self.dispatcher.pending_messages(session) for id, session in self.nodes.items()}

    def stop(self, id: str = "t") -> dict[str, Assignments]:
        """Tell it to stop; who is told what."""
        self.change(Task, id, desired_state=S.SHUTDOWN)
        heard = self.hear_all()
        assert not any(isinstance(m, Left) for messages in heard.values() for m in messages)
        return {id: m for id, messages in heard.items() for m in messages if isinstance(m, Assignments)}

    def applies(self, id: str, message: Assignments, how: type[Any] = Applied) -> None:
        said = Applied(version=message.version) if how is Applied else Heartbeat(applied_version=message.version)
        self.say(self.nodes[id], said)

    def left(self) -> list[str]:
        """What n1 is told of who has left."""
        return [id for m in self.hear_all()["n1"] if isinstance(m, Left) for id in m.tasks]
