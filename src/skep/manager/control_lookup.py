"""What a reference means: a full id, else a name (nodes: host name), else a prefix of one id, in this order, as Docker looks things up."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from skep.errors import Invalid, NotFound
from skep.model.base import Object
from skep.model.network import Network
from skep.model.node import Node
from skep.model.service import Service
from skep.model.tables import NAMES, NETWORK_BY_NAME, NODE_BY_HOSTNAME, SERVICE_BY_NAME
from skep.model.task import Task
from skep.plan.view import View

T = TypeVar("T", bound=Object)


def find_service(view: View, reference: str) -> Service:
    return _one(view, Service, reference, view.find(SERVICE_BY_NAME, reference.lower()))


def find_node(view: View, reference: str) -> Node:
    return _one(view, Node, reference, view.find(NODE_BY_HOSTNAME, reference.lower()) if reference else ())


def find_network(view: View, reference: str) -> Network:
    return _one(view, Network, reference, view.find(NETWORK_BY_NAME, reference.lower()))


def find_task(view: View, reference: str) -> Task:
    """A task's name ends in its id."""
    named = view.get(Task, reference.rpartition(".")[2])
    return _one(view, Task, reference, (named,) if named is not None and named.name == reference else ())


def _one(view: View, kind: type[T], reference: str, named: Collection[T]) -> T:
    """Raises NotFound, or Invalid when several are meant."""
    found = view.get(kind, reference)
    if found is not None:
        return found
    candidates: Collection[T] = named
    if not candidates and reference:
        candidates = [candidate for candidate in view.all(kind) if candidate.id.startswith(reference)]
    if not candidates:
        raise NotFound(f"{NAMES[kind]} {reference} not found")
    if len(candidates) > 1:
        raise Invalid(f"{NAMES[kind]} {reference} is ambiguous ({len(candidates)} matches found)")
    return next(iter(candidates))
