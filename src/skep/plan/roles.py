"""The role of a node follows the one its spec asks for (SwarmKit manager/role_manager.go).

`node.spec.role` is the user's, `node.role` the one in force: certificates are given for it. Promotion is refused by the control API until
there is a store for several managers; whoever brings that store says here when a node has become, or ceased to be, one of its members.
"""

from __future__ import annotations

from skep.model.enums import Role
from skep.model.node import Node
from skep.plan.ops import NOTHING, Change, Plan
from skep.plan.view import View


def plan_role(view: View, node_id: str) -> Plan:
    """To be asked when a node's spec or role has changed. The last manager keeps its role whatever is asked."""
    node = view.get(Node, node_id)
    if node is None:
        return NOTHING
    wanted = Role(node.spec.role or Role.WORKER)
    if wanted is node.role:
        return NOTHING
    if node.role is Role.MANAGER and sum(1 for other in view.all(Node) if other.role is Role.MANAGER) < 2:
        return NOTHING
    return Plan((Change(Node, node.id, {"role": wanted}, f"its spec asks for the role {wanted}"),))
