"""How many slots, and which: scaling of replicated services (SwarmKit orchestrator/replicated)."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from skep.model.enums import TaskState
from skep.plan.restart import refusal, runs_once
from skep.plan.slots import Slot


class Scale(msgspec.Struct, frozen=True):
    kept: list[Slot]
    """Slots that stay, in order of their numbers."""
    surplus: list[Slot]
    """Filled slots that go, in the order in which they were chosen."""
    dead: list[Slot]
    """Slots that nothing stands in any more: their history goes."""
    empty: list[Slot]
    """To be filled; with their history where there is one."""


def filled(slot: Slot) -> bool:
    """Does the slot count? A task is meant to run there, or the last one has ended and is not to have a successor (a finished
    `restart: none` slot is not filled again)."""
    newest = slot.newest
    return bool(slot.wanted) or (newest is not None and newest.desired_state < TaskState.REMOVE and bool(refusal(newest)))


def filled_here(slot: Slot) -> bool:
    """The same for a global service's slot, whose node is there: a task that was only stopped with its node comes back with it, whatever
    attempts were used before; one that ended by itself does not."""
    newest = slot.newest
    if slot.wanted or newest is None or newest.desired_state >= TaskState.REMOVE:
        return bool(slot.wanted)
    ended = TaskState.RUNNING < newest.status.state <= TaskState.REJECTED and newest.status.state is not TaskState.SHUTDOWN
    return bool(refusal(newest) if ended else runs_once(newest))


def scale(slots: Iterable[Slot], replicas: int) -> Scale:
    """What becomes of each slot when there are to be `replicas`. Missing ones take the lowest free numbers."""
    here: list[Slot] = []
    dead: dict[int | str, Slot] = {}
    for slot in sorted(slots, key=lambda s: s.key):
        if filled(slot):
            here.append(slot)
        else:
            dead[slot.key] = slot
    surplus: list[Slot] = []
    if len(here) > replicas:
        ordered = in_order_of_worth(here)
        surplus = ordered[replicas:][::-1]
        keys = {slot.key for slot in surplus}
        here = [slot for slot in here if slot.key not in keys]
    taken = {slot.key for slot in here} | {slot.key for slot in surplus}
    empty: list[Slot] = []
    number = 0
    while len(here) + len(empty) < replicas:
        number += 1
        if number not in taken:
            empty.append(dead.pop(number, Slot(number)))
    return Scale(here, surplus, list(dead.values()), empty)


def in_order_of_worth(slots: Iterable[Slot]) -> list[Slot]:
    """The most worth keeping first: running before not running, lower numbers first, then first copies on their nodes before second ones.
    Slots with several tasks, or with one that has no node, come last. So what goes first is what does not run, then what is on the nodes
    with the most copies, then the highest numbers. Every sort is stable."""
    running_first = sorted(slots, key=lambda s: (not s.running, s.key))
    copies: dict[str, int] = {}
    indexed: list[tuple[float, Slot]] = []
    for slot in running_first:
        standing = slot.standing
        if len(standing) == 1 and standing[0].node_id:
            node_id = standing[0].node_id
            copies[node_id] = copies.get(node_id, 0) + 1
            indexed.append((copies[node_id], slot))
        else:
            indexed.append((float("inf"), slot))
    return [slot for _, slot in sorted(indexed, key=lambda pair: pair[0])]
