"""Placement constraints: `key == value` and `key != value`, as SwarmKit reads them (manager/constraint/constraint.go).

Values are compared whole and without regard to case; there is no pattern matching. An absent label counts as the empty string, an unknown
key matches no node. See docs/scheduling.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import ip_address, ip_network

import msgspec

from skep.errors import Invalid
from skep.model.node import Node

NODE_LABEL = "node.labels."
ENGINE_LABEL = "engine.labels."
OPERATORS = ("==", "!=")
_KEY = re.compile(r"[a-z_][a-z0-9\-_.]+", re.IGNORECASE | re.ASCII)
_VALUE = re.compile(r"[a-z0-9:\-_\s.*()?+\[\]\\^$|/]+", re.IGNORECASE | re.ASCII)


class BadConstraint(Invalid):
    """Docker lets this one through as an unknown error of the store: HTTP 500."""

    status = 500
    rpc = "Unknown"


class Constraint(msgspec.Struct, frozen=True):
    key: str
    equal: bool
    """`==`, else `!=`."""
    value: str

    @property
    def text(self) -> str:
        return f"{self.key}{'==' if self.equal else '!='}{self.value}"


def parse_constraint(text: str) -> Constraint:
    """Raises BadConstraint in SwarmKit's words."""
    operator = next((operator for operator in OPERATORS if operator in text), None)
    if operator is None:
        raise BadConstraint(f"constraint expected one operator from {', '.join(OPERATORS)}")
    key, _, value = (part.strip() for part in text.partition(operator))
    if not _KEY.fullmatch(key):
        raise BadConstraint(f"key '{key}' is invalid")
    if not _VALUE.fullmatch(value):
        raise BadConstraint(f"value '{value}' is invalid")
    return Constraint(key, operator == "==", value)


def validate_constraints(constraints: Iterable[str]) -> None:
    """What the control API asks before it stores a spec. Raises BadConstraint."""
    for text in constraints:
        parse_constraint(text)


@lru_cache(maxsize=1024)
def parsed(constraints: tuple[str, ...]) -> tuple[Constraint, ...] | None:
    """None when one of them cannot be read (they are validated before they are stored)."""
    try:
        return tuple(parse_constraint(text) for text in constraints)
    except BadConstraint:
        return None


def subject(key: str, node: Node) -> str | None:
    """The node's value of a key, "" when it has none; None for a key that nobody knows."""
    lower = key.lower()
    if lower.startswith(NODE_LABEL) and len(key) > len(NODE_LABEL):
        return (node.spec.labels or {}).get(key[len(NODE_LABEL) :], "")
    description = node.description
    if lower.startswith(ENGINE_LABEL) and len(key) > len(ENGINE_LABEL):
        return (description and description.engine.labels or {}).get(key[len(ENGINE_LABEL) :], "")
    match lower:
        case "node.id":
            return node.id
        case "node.hostname":
            return node.hostname
        case "node.ip":
            return node.status.addr
        case "node.role":
            return node.role.value
        case "node.platform.os":
            return description.platform.os if description else ""
        case "node.platform.arch":
            return description.platform.architecture if description else ""
    return None


def holds(constraint: Constraint, node: Node) -> bool:
    value = subject(constraint.key, node)
    if value is None:
        return False
    if constraint.key.lower() == "node.ip":
        return _address_holds(constraint, value)
    return (constraint.value.casefold() == value.casefold()) is constraint.equal


def _address_holds(constraint: Constraint, address: str) -> bool:
    """An address is compared as one, a network by membership; text that is neither matches no node, whatever the operator."""
    try:
        wanted = ip_network(constraint.value, strict=False)
    except ValueError:
        return False
    try:
        inside = ip_address(address) in wanted
    except ValueError:
        inside = False
    return inside is constraint.equal


def broken(constraints: Sequence[str], node: Node) -> str | None:
    """The first constraint that the node does not meet, as text; None = it meets them all."""
    known = parsed(tuple(constraints))
    if known is None:
        return "unreadable constraint"
    for constraint in known:
        if not holds(constraint, node):
            return constraint.text
    return None


def node_matches(constraints: Sequence[str] | None, node: Node) -> bool:
    """Does the node meet all of them? For global services and the constraint enforcer too."""
    return not constraints or broken(constraints, node) is None
