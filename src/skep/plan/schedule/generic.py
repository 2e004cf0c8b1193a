"""Generic resources of a node: so many of a kind (`ssd=3`), or named ones (`gpu=UUID1`, `gpu=UUID2`).

A task reserves a number of a kind; where the node's are named it is given that many names, in the node's order. A reservation that names
one gets exactly that one.
"""

from __future__ import annotations

from collections.abc import Sequence

from skep.model.node import Node
from skep.model.spec import DiscreteGenericResource, GenericResource, NamedGenericResource
from skep.plan.view import Load

UNLIMITED = 1 << 60


class Stock:
    """What is still free on one node. Changed as a plan claims from it."""

    __slots__ = ("discrete", "named")

    def __init__(self, node: Node, load: Load) -> None:
        self.discrete: dict[str, int] = {}
        self.named: dict[str, list[str]] = {}
        description = node.description
        for offer in (description.resources.generic_resources if description else None) or ():
            if offer.discrete_resource_spec is not None:
                kind = offer.discrete_resource_spec.kind
                self.discrete[kind] = self.discrete.get(kind, 0) + offer.discrete_resource_spec.value
            if offer.named_resource_spec is not None:
                self.named.setdefault(offer.named_resource_spec.kind, []).append(offer.named_resource_spec.value)
        for kind, number in load.generic.items():
            if kind in self.discrete:
                self.discrete[kind] -= number
        for kind, names in load.named.items():
            if kind in self.named:
                self.named[kind] = [name for name in self.named[kind] if name not in names]

    def free(self, kind: str) -> int:
        return len(self.named[kind]) if kind in self.named else self.discrete.get(kind, 0)

    def room(self, wanted: Sequence[GenericResource]) -> int:
        """How many tasks with this reservation fit."""
        numbers: dict[str, int] = {}
        room = UNLIMITED
        for want in wanted:
            if want.discrete_resource_spec is not None:
                kind = want.discrete_resource_spec.kind
                numbers[kind] = numbers.get(kind, 0) + want.discrete_resource_spec.value
            elif want.named_resource_spec is not None:
                room = min(room, 1)
                if want.named_resource_spec.value not in self.named.get(want.named_resource_spec.kind, ()):
                    return 0
        for kind, number in numbers.items():
            if number > 0:
                room = min(room, max(0, self.free(kind)) // number)
        return room

    def claim(self, wanted: Sequence[GenericResource]) -> tuple[GenericResource, ...]:
        """Take them out of the stock (there must be room); what the task is given."""
        given: list[GenericResource] = []
        for want in wanted:
            if want.named_resource_spec is not None:
                self.named[want.named_resource_spec.kind].remove(want.named_resource_spec.value)
                given.append(want)
        for want in wanted:
            discrete = want.discrete_resource_spec
            if discrete is None or discrete.value <= 0:
                continue
            if discrete.kind in self.named:
                names = self.named[discrete.kind]
                for name in names[: discrete.value]:
                    given.append(GenericResource(named_resource_spec=NamedGenericResource(kind=discrete.kind, value=name)))
                del names[: discrete.value]
            else:
                self.discrete[discrete.kind] -= discrete.value
                given.append(GenericResource(discrete_resource_spec=DiscreteGenericResource(kind=discrete.kind, value=discrete.value)))
        return tuple(given)
