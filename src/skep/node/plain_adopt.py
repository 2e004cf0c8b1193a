"""A container that has run on while the daemon was away has the networks and ports that its record says, in the kernel too.

The daemon may have been killed amid `docker network connect` or `disconnect`, or a rename: nobody got an answer, so it counts as not
done. The record is written last and is right; what was done beyond it is undone, what was undone is done again. For the cluster's networks
the same is done once a manager answers: `adopt_attached` for what the record has, `is_on` for what it does not have.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress

import msgspec

from skep.datapath.base import Datapath, Place, Resolving
from skep.engine.base import Container, Engine
from skep.errors import Conflict, SkepError
from skep.node.base import Attachments, LocalNetworks
from skep.node.plain_config import Joined, Record, record_of
from skep.node.plain_files import own_names

log = logging.getLogger(__name__)
Lock = Callable[[str], AbstractAsyncContextManager[None]]
"""On one container, by its id."""


async def adopt(
    container: Container,
    record: Record,
    networks: LocalNetworks,
    datapath: Datapath,
    resolving: Callable[[], Resolving],
    published: Joined | None,
) -> Record:
    """The record as it is now. `published`: the place its ports lead to. What cannot be is logged."""
    id = container.config.id
    local = [one for one in record.joined if one.address and networks.get(one.network_id) is not None]
    for endpoint in networks.endpoints_of(id):
        if endpoint.network_id not in {one.network_id for one in local}:
            await datapath.disconnect(id, endpoint.network_id)
            await networks.release(id, endpoint.network_id)
    names = {one.network_id: own_names(container, record, one.settings) for one in local}
    for one in local:
        try:
            await networks.reserve(
                one.network_id, id, address=one.address.partition("/")[0], mac=one.mac, names=names[one.network_id] if one.names else ()
            )
            with suppress(Conflict):  # it is there, as a rule
                await datapath.connect(id, _place(one), resolving())
        except SkepError as error:
            log.warning("container %s: its place on network %s: %s", id[:12], one.network, error.message)
    try:
        if record.ports and published is not None:
            await datapath.publish(id, published.address.partition("/")[0], record.ports)
        elif local:
            await datapath.unpublish(id)
    except SkepError as error:
        log.warning("container %s: its ports: %s", id[:12], error.message)
    joined = tuple(
        msgspec.structs.replace(one, names=names[one.network_id]) if one.names and one.network_id in names else one for one in record.joined
    )
    return msgspec.structs.replace(record, joined=joined)


async def adopt_attached(
    id: str,
    one: Joined,
    engine: Engine,
    attachments: Attachments,
    datapath: Datapath,
    resolving: Callable[[Container, Record, Sequence[Joined]], Resolving],
) -> None:
    """The cluster has given it the place that it had: it is there in the kernel too, unless it has left meanwhile."""
    container = engine.get(id)
    record = record_of(container.config) if container is not None and container.running else None
    now = next((other for other in record.joined if other.network_id == one.network_id and other.address), None) if record else None
    if container is None or record is None or now is None:
        await attachments.detach(id, one.network_id)
    elif now.address == one.address:
        with suppress(Conflict):
            await datapath.connect(id, _place(now), resolving(container, record, record.joined))


def is_on(engine: Engine, id: str, network_id: str) -> bool:
    """Whether its record has a place there."""
    container = engine.get(id)
    record = record_of(container.config) if container is not None else None
    return record is not None and any(one.network_id == network_id and one.address for one in record.joined)


def _place(one: Joined) -> Place:
    return Place(
        network_id=one.network_id,
        address=one.address,
        gateway=one.gateway,
        mac=one.mac,
        network_name=one.network,
        priority=one.settings.gw_priority,
    )
