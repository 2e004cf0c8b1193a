"""`GET /system/df`: what images, containers and volumes take on this node's disk."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from aiohttp import web

from skep.api.routes.containers import summary
from skep.api.routing import Call, Routes, answer
from skep.api.wire.images import image_summary
from skep.api.wire.volumes import volume_form, with_usage
from skep.engine.base import Container
from skep.errors import Invalid, SkepError

ROUTES = Routes()
KINDS = ("container", "image", "volume", "build-cache")
PARALLEL = 4


@ROUTES.add("GET", "/system/df", refuses={"verbose": "GET /system/df?verbose is newer than API 1.50"})
async def disk_usage(call: Call) -> web.StreamResponse:
    wanted = call.request.query.getall("type", KINDS)
    for kind in wanted:
        if kind not in KINDS:
            raise Invalid(f"unknown object type: {kind}")
    total, images = await _images(call) if "image" in wanted else (0, [])
    return answer(
        {
            "LayersSize": total,
            "Images": images,
            "Containers": await _containers(call) if "container" in wanted else [],
            "Volumes": await _volumes(call) if "volume" in wanted else [],
            "BuildCache": [],
        }
    )


async def _images(call: Call) -> tuple[int, list[dict[str, Any]]]:
    """What other images share is what is not the image's own alone."""
    engine = call.context.engine
    users = Counter(container.config.image for container in engine.all())
    total, own = await engine.images.usage()
    images = sorted(engine.images.all(), key=lambda image: -image.created)
    shared = {image.id: max(0, image.size - own.get(image.id, 0)) for image in images}
    return total, [image_summary(i) | {"Containers": users.get(i.id, 0), "SharedSize": shared[i.id]} for i in images]


async def _containers(call: Call) -> list[dict[str, Any]]:
    slots = asyncio.Semaphore(PARALLEL)

    async def one(container: Container) -> dict[str, Any]:
        shown = summary(call, container)
        try:
            async with slots:
                written, whole = await call.context.engine.size(container.config.id)
        except SkepError:
            # it has just gone
            return shown
        return shown | ({"SizeRw": written} if written else {}) | ({"SizeRootFs": whole} if whole else {})

    async with asyncio.TaskGroup() as group:
        latest = sorted(call.context.engine.all(), key=lambda container: -container.created_at)
        running = [group.create_task(one(container)) for container in latest]
    return [task.result() for task in running]


async def _volumes(call: Call) -> list[dict[str, Any]]:
    volumes = call.context.volumes
    sizes = await volumes.usage()
    users = Counter(name for c in call.context.engine.all() for name in {mount.volume for mount in c.config.mounts if mount.volume})
    return [
        with_usage(volume_form(volume, volumes.mountpoint(volume)), sizes.get(volume.name, -1), users.get(volume.name, 0))
        for volume in volumes.all()
    ]
