"""What a dispatcher writes of a node: that it is there, that it is not, and that nobody knows; and how it greets it."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from skep.link.messages import Welcome
from skep.manager.session import Session
from skep.model.cluster import Cluster
from skep.model.defaults import DATA_PATH_PORT
from skep.model.enums import NodeState
from skep.model.node import Node, NodeDescription, NodeStatus
from skep.plan.ops import Change, Op
from skep.plan.view import View

UNKNOWN = 'Node moved to "unknown" state due to leadership change in cluster'


def nodes_to_wait_for(view: View) -> Iterator[Node]:
    """At a manager's start: those that were there when the last one was."""
    for node in view.all(Node):
        if node.status.state is not NodeState.DOWN and node.description is not None:
            yield node


def doubted(node: Node, now: int) -> Op | None:
    """A manager has just started, and does not know whether the node is there. None: that is what is written already."""
    if node.status.state is NodeState.UNKNOWN:
        return None
    status = msgspec.structs.replace(node.status, state=NodeState.UNKNOWN, message=UNKNOWN, since=now)
    return Change(Node, node.id, {"status": status}, "a manager has started and waits for the node's session")


def down(node: Node | None, message: str, now: int, *, left: bool = False) -> list[Op]:
    """Nothing where it is gone, or down already. `left`: it said so itself, and does not come back."""
    if node is None or node.status.state is NodeState.DOWN:
        return []
    status = msgspec.structs.replace(node.status, state=NodeState.DOWN, message=message, since=now, left=left)
    return [Change(Node, node.id, {"status": status}, message)]


def described(node: Node, status: NodeStatus, description: NodeDescription, applied: int, because: str) -> Op | None:
    """What the node is, and says of itself. None: nothing of it is new."""
    if status.state is node.status.state:
        status = msgspec.structs.replace(status, since=node.status.since)
    fields: dict[str, object] = {}
    if status != node.status:
        fields["status"] = status
    if description != node.description:
        fields["description"] = description
    if fields and applied > node.applied_version:
        fields["applied_version"] = applied
    return Change(Node, node.id, fields, because) if fields else None


def welcome(session: Session, node: Node, period: int, managers: tuple[str, ...], cluster: Cluster | None) -> Welcome:
    return Welcome(
        session_id=session.id,
        node_id=node.id,
        heartbeat_period=period,
        spec=node.spec,
        managers=managers,
        data_path_port=cluster.data_path_port if cluster else DATA_PATH_PORT,
    )
