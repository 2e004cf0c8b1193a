"""What changing and removing a node means for the store."""

from __future__ import annotations

from skep.errors import Invalid, NotImplementedHere, OutOfSequence
from skep.manager.control_services import in_sequence
from skep.manager.control_validate import quoted
from skep.model.cluster import Cluster, Revoked
from skep.model.enums import Availability, NodeState, Role
from skep.model.node import Node
from skep.model.spec import NodeSpec
from skep.plan.ops import Change, Delete, Op
from skep.plan.view import View


def update_node(view: View, current: Node, version: int, spec: NodeSpec) -> Change:
    if spec.role not in list(Role):
        raise Invalid(f"invalid Role: {quoted(spec.role)}")
    if spec.availability not in list(Availability):
        raise Invalid(f"invalid Availability: {quoted(spec.availability)}")
    managers = [node for node in view.all(Node) if node.role is Role.MANAGER]
    if current.spec.role == Role.MANAGER and spec.role == Role.WORKER and [node.id for node in managers] == [current.id]:
        raise Invalid("attempting to demote the last manager of the swarm", rpc="FailedPrecondition")
    if not in_sequence(version, current.spec_index, current.version):
        raise OutOfSequence
    if spec.role == Role.MANAGER and current.spec.role != Role.MANAGER:
        raise NotImplementedHere("a node cannot be promoted yet: skep keeps its state on one manager until it has a store for several")
    return Change(Node, current.id, {"spec": spec}, "updated by the user")


def remove_node(cluster: Cluster, node: Node, force: bool, now: int) -> list[Op]:
    """Its certificate is refused until it expires, so that the node does not come back. Its tasks are `liveness`' to give up."""
    if node.spec.role == Role.MANAGER or node.role is Role.MANAGER:
        raise Invalid(
            f"node {node.id} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal",
            rpc="FailedPrecondition",
        )
    if node.status.state is NodeState.READY and not force:
        raise Invalid(f"node {node.id} is not down and can't be removed", rpc="FailedPrecondition")
    ops: list[Op] = [Delete(Node, node.id, "removed by the user")]
    if node.certificate is not None and node.certificate.serial:
        revoked = [entry for entry in cluster.revoked if entry.until > now]
        revoked.append(Revoked(serial=node.certificate.serial, until=node.certificate.not_after))
        ops.append(Change(Cluster, cluster.id, {"revoked": tuple(revoked)}, f"the certificate of {node.hostname or node.id} is refused"))
    return ops
