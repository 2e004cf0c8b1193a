"""What a decision returns: operations on the store, each with its reason, and when to look again.

`because` is a sentence for a person: it reaches the log and `skep explain`. `look_again` is a time (ns since 1970), None = only when
something changes. A loop applies the operations of one plan in one transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from skep.model.base import Object


class Create(msgspec.Struct, frozen=True):
    object: Object
    because: str


class Change(msgspec.Struct, frozen=True):
    """Set the named fields of one object, leave the others."""

    kind: type[Object]
    id: str
    fields: dict[str, Any]
    because: str


class Delete(msgspec.Struct, frozen=True):
    kind: type[Object]
    id: str
    because: str


Op = Create | Change | Delete


class Plan(msgspec.Struct, frozen=True):
    ops: tuple[Op, ...] = ()
    look_again: int | None = None

    @staticmethod
    def of(plans: Iterable[Plan]) -> Plan:
        """Several plans as one: all operations, the earliest time."""
        ops: list[Op] = []
        times: list[int] = []
        for plan in plans:
            ops.extend(plan.ops)
            if plan.look_again is not None:
                times.append(plan.look_again)
        return Plan(tuple(ops), min(times, default=None))


NOTHING = Plan()
