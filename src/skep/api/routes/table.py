"""All routes in one table."""

from __future__ import annotations

from skep.api.routes import (
    attach,
    check,
    containers,
    diskusage,
    distribution,
    events,
    exec,
    files,
    images,
    lifecycle,
    networks,
    nodes,
    refused,
    services,
    swarm,
    system,
    tasks,
    transfers,
    volumes,
)
from skep.api.routing import Routes

ROUTES = Routes()
for _module in (
    system,
    diskusage,
    swarm,
    nodes,
    services,
    tasks,
    networks,
    distribution,
    images,
    transfers,
    containers,
    lifecycle,
    attach,
    files,
    exec,
    events,
    volumes,
    check,
    refused,
):
    ROUTES.include(_module.ROUTES)
