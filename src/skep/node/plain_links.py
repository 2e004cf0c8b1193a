"""`--link`: names of a container's own for another one. On `bridge` it is the other's address at the start, so the other runs there; on
any other network a link is another word for a name, asked for anew each time: the other may come later, or be on another network."""

from __future__ import annotations

from typing import NamedTuple

from skep.engine.base import Engine
from skep.errors import Conflict, Invalid
from skep.node.plain_config import Joined, Record, record_of
from skep.node.plain_files import SHORT


class Link(NamedTuple):
    address: str
    """Of the other on this network, now; empty: none."""
    names: tuple[str, ...]
    meaning: str
    """A name that the other has on every network of the user's."""


def links_of(engine: Engine, record: Record, one: Joined, *, predefined: bool) -> list[Link]:
    """The containers that this one is linked to on this network. Raises Invalid and Conflict in Docker's words, for `bridge` alone."""
    found = []
    main = record.host.network_mode in (one.network, one.network_id)
    for link in dict.fromkeys([*one.settings.links, *(record.host.links if main else ())]):
        reference, _, alias = link.partition(":")
        reference = reference.removeprefix("/")
        other = engine.get(reference)
        theirs = record_of(other.config) if other is not None else None
        if other is None or theirs is None:
            if predefined:
                raise Invalid(f"could not get container for {reference}: No such container: {reference}")
            found.append(Link("", (alias.rpartition("/")[2] or reference,), reference.lower()))
            continue
        alias = alias.rpartition("/")[2] or other.config.name
        if predefined and not other.running:
            raise Conflict(f"Cannot link to a non running container: /{other.config.name} AS /{record.config.hostname}/{alias}")
        place = next((p for p in theirs.joined if p.network_id == one.network_id and p.address), None)
        if predefined and place is None:
            raise Conflict(f"Cannot link to /{other.config.name}, as it does not belong to the default network")
        id = other.config.id[:SHORT]
        address = place.address.partition("/")[0] if place is not None else ""
        found.append(Link(address, tuple(dict.fromkeys((alias, id, other.config.name))), id))
    return found
