"""`/images…`: list, inspect, history, names, removal, prune. What moves images is in transfers.py. See docs/images.md."""

from __future__ import annotations

from fnmatch import fnmatchcase

from aiohttp import web

from skep.api.filters import Filters, has_label
from skep.api.localevents import message
from skep.api.query import cutoff, loose_bool
from skep.api.routing import Call, Routes, answer, nothing
from skep.api.wire import images as wire
from skep.engine.base import Image
from skep.errors import Conflict, Invalid, NotFound, NotImplementedHere

ROUTES = Routes()
NO_MANIFESTS = "skep keeps one platform of an image: the manifests of others cannot be shown"
ONE_PLATFORM = "skep keeps one platform of an image"


def find(call: Call, name: str) -> Image:
    image = call.context.engine.images.get(name)
    if image is None:
        raise NotFound(f"No such image: {wire.tagged(name)}")
    return image


def event(call: Call, action: str, id: str, name: str, image: Image | None = None) -> None:
    labels = image.config.labels if image is not None else {}
    call.context.events.publish(message("image", action, id, {**labels, "name": name}, call.context.clock.now()))


def _passes(call: Call, wanted: Filters, image: Image) -> bool:
    dangling = wanted.truth("dangling")
    for key, later in (("before", False), ("since", True)):
        for name in wanted.get(key):
            other = find(call, name)
            if image.id == other.id or (image.created > other.created) != later:
                return False
    references = wanted.get("reference")
    if references and not any(_like(pattern, tag) for pattern in references for tag in (*image.tags, *image.digests)):
        return False
    limit = cutoff(wanted.get("until"), call.context.clock.now())
    if limit and image.created > limit:
        return False
    return (dangling is None or dangling == (not image.tags)) and wanted.labels("label", image.config.labels)


def _like(pattern: str, tag: str) -> bool:
    """As `docker images --filter reference=`: shell patterns over the name, or over name and tag where the pattern has one."""
    name = tag.partition("@")[0].rpartition(":")[0] if "@" not in tag else tag.partition("@")[0]
    return fnmatchcase(tag, pattern) or fnmatchcase(name, pattern)


@ROUTES.add("GET", "/images/json", refuses={"manifests": NO_MANIFESTS})
async def ls(call: Call) -> web.StreamResponse:
    """`all` and `digests` change nothing: there are no intermediate images, and digests are always given."""
    wanted = call.filters("before", "dangling", "label", "reference", "since", "until")
    images = [i for i in call.context.engine.images.all() if _passes(call, wanted, i)]
    shown = [wire.image_summary(i) for i in sorted(images, key=lambda i: -i.created)]
    if loose_bool(call.query, "shared-size"):
        _, own = await call.context.engine.images.usage()
        shown = [s | {"SharedSize": max(0, s["Size"] - own.get(s["Id"], 0))} for s in shown]
    return answer(shown)


@ROUTES.add("GET", "/images/search")
async def search(call: Call) -> web.StreamResponse:
    raise NotImplementedHere("skep does not search registries")


@ROUTES.add("GET", "/images/{name*}/json", refuses={"manifests": NO_MANIFESTS})
async def inspect(call: Call) -> web.StreamResponse:
    driver = str(call.context.host.info().get("Driver", ""))
    return answer(wire.image_details(find(call, call.path["name"]), driver, call.version))


@ROUTES.add("GET", "/images/{name*}/history", refuses={"platform": ONE_PLATFORM})
async def history(call: Call) -> web.StreamResponse:
    return answer(wire.history(find(call, call.path["name"])))


@ROUTES.add("POST", "/images/{name*}/tag")
async def tag(call: Call) -> web.StreamResponse:
    repository, word = call.query.get("repo", ""), call.query.get("tag", "")
    if not repository:
        raise Invalid("repository name must have at least one component")
    name = f"{repository}:{word}" if word else repository
    wire.split_reference(name)
    image = find(call, call.path["name"])
    await call.context.engine.images.tag(call.path["name"], name)
    event(call, "tag", image.id, wire.familiar(wire.tagged(name)), image)
    return nothing(201)


@ROUTES.add("DELETE", "/images/{name*}", refuses={"platforms": ONE_PLATFORM})
async def remove(call: Call) -> web.StreamResponse:
    """`noprune` changes nothing: there are no parent images to prune."""
    image = find(call, call.path["name"])
    done = await call.context.engine.images.remove(call.path["name"], force=loose_bool(call.query, "force"))
    _told(call, image, done)
    return answer(done)


def _told(call: Call, image: Image, done: list[dict[str, str]]) -> None:
    for step in done:
        if "Untagged" in step:
            event(call, "untag", image.id, image.id, image)
        elif step.get("Deleted") == image.id:
            event(call, "delete", image.id, image.id, image)


@ROUTES.add("POST", "/images/prune")
async def prune(call: Call) -> web.StreamResponse:
    """Images without a tag that no container was made from; with `dangling=false` those with a tag too."""
    wanted = call.filters("dangling", "label", "label!", "until")
    dangling = wanted.truth("dangling")
    images, used = call.context.engine.images, {container.config.image for container in call.context.engine.all()}
    limit = cutoff(wanted.get("until"), call.context.clock.now())
    before, _ = await images.usage()
    deleted: list[dict[str, str]] = []
    for image in list(images.all()):
        labels = image.config.labels
        if image.id in used or (image.tags and dangling is not False) or (limit and image.created > limit):
            continue
        if not wanted.labels("label", labels) or any(has_label(labels, item) for item in wanted.get("label!")):
            continue
        try:
            done = await images.remove(image.id, force=True)
        except (Conflict, NotFound):
            # a container was made from it meanwhile, or somebody else has removed it
            continue
        _told(call, image, done)
        deleted += done
    reclaimed = max(0, before - (await images.usage())[0])
    call.context.events.publish(message("image", "prune", "", {"reclaimed": str(reclaimed)}, call.context.clock.now()))
    return answer({"ImagesDeleted": deleted or None, "SpaceReclaimed": reclaimed})
