"""All routes in one table."""

from __future__ import annotations

from skep.api.routes import (
    attach,
    containers,
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
    volumes,
)
from skep.api.routing import Routes

ROUTES = Routes()
for _module in (
    system,
    swarm,
    nodes,
    services,
    tasks,
    networks,
    distribution,
    images,
    containers,
    lifecycle,
    attach,
    files,
    exec,
    events,
    volumes,
    refused,
):
    ROUTES.include(_module.ROUTES)
