"""All routes in one table."""

from __future__ import annotations

from skep.api.routes import (
    containers,
    distribution,
    events,
    exec,
    images,
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
for _module in (system, swarm, nodes, services, tasks, networks, distribution, images, containers, exec, events, volumes, refused):
    ROUTES.include(_module.ROUTES)
