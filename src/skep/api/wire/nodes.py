"""Nodes as Docker's clients see them."""

from __future__ import annotations

from typing import Any

import msgspec

from skep.api.wire.services import head
from skep.model.enums import NodeState, Role
from skep.model.node import Node

_NOT_DESCRIBED: dict[str, dict[str, str]] = {"Platform": {}, "Resources": {}, "Engine": {}, "TLSInfo": {}}


def node(object: Node, leader: str) -> dict[str, Any]:
    """`leader`: id of the leading manager's node."""
    shown = head(object)
    shown["Spec"] = object.spec
    described = object.description
    shown["Description"] = msgspec.structs.replace(described, underlay_mtu=0) if described is not None else _NOT_DESCRIBED
    status: dict[str, Any] = {"State": object.status.state.value}
    if object.status.message:
        status["Message"] = object.status.message
    status["Addr"] = object.status.addr
    shown["Status"] = status
    if object.manager_addr and (object.role is Role.MANAGER or object.id == leader):
        manager: dict[str, Any] = {}
        if object.id == leader:
            manager["Leader"] = True
        reachable = object.id == leader or object.status.state is NodeState.READY
        manager["Reachability"] = "reachable" if reachable else "unreachable"
        manager["Addr"] = object.manager_addr
        shown["ManagerStatus"] = manager
    return shown
