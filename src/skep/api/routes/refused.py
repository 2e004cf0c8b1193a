"""What Docker serves and skep does not (yet): reads answer sensibly, everything else is refused with one sentence.

`docker inspect`, `stack deploy` and others go on only after an exact 404, so objects that cannot exist are not found.
"""

from __future__ import annotations

from aiohttp import web

from skep.api.routing import Call, Handler, Routes, answer
from skep.errors import Invalid, NotFound, NotImplementedHere

ROUTES = Routes()


def _refuse(methods: str, path: str, sentence: str, *, manager: bool = False) -> None:
    async def refused(call: Call) -> web.StreamResponse:
        if manager:
            _ = call.cluster
        raise NotImplementedHere(sentence)

    for method in methods.split():
        ROUTES.add(method, path)(refused)


def _missing(methods: str, path: str, kind: str, *, manager: bool) -> None:
    async def missing(call: Call) -> web.StreamResponse:
        if manager:
            _ = call.cluster
        raise NotFound(f"{kind} {call.path['id']} not found")

    for method in methods.split():
        ROUTES.add(method, path)(missing)


def _empty_list(kind: str, *filters: str) -> Handler:
    async def empty(call: Call) -> web.StreamResponse:
        _ = call.cluster
        call.filters(*filters)
        return answer([])

    return ROUTES.add("GET", f"/{kind}")(empty)


_empty_list("secrets", "id", "label", "name", "names")
_empty_list("configs", "id", "label", "name")
for _kind in ("secret", "config"):
    _refuse("POST", f"/{_kind}s/create", f"skep does not keep {_kind}s yet", manager=True)
    _missing("GET DELETE", f"/{_kind}s/{{id}}", _kind, manager=True)
    _missing("POST", f"/{_kind}s/{{id}}/update", _kind, manager=True)


@ROUTES.add("GET", "/plugins")
async def plugins(call: Call) -> web.StreamResponse:
    call.filters("capability", "enabled")
    return answer([])


@ROUTES.add("GET", "/plugins/{id*}/json")
async def plugin(call: Call) -> web.StreamResponse:
    raise NotFound(f'plugin "{call.path["id"]}" not found')


_NO_PLUGINS = "skep does not run engine plugins"
_refuse("GET", "/plugins/privileges", _NO_PLUGINS)
_refuse("POST", "/plugins/{id*}", _NO_PLUGINS)
_refuse("DELETE", "/plugins/{id*}", _NO_PLUGINS)


@ROUTES.add("POST", "/build/prune")
async def prune_builds(call: Call) -> web.StreamResponse:
    """There is no build cache: pruning it is done already."""
    return answer({"CachesDeleted": None, "SpaceReclaimed": 0})


@ROUTES.add("POST", "/session")
async def session(call: Call) -> web.StreamResponse:
    if not call.request.headers.get("Upgrade"):
        raise Invalid("no upgrade proto in request")
    raise NotImplementedHere("skep does not build images: build them elsewhere and push them to a registry")


for _path in ("/build", "/build/cancel", "/grpc", "/commit"):
    _refuse("POST", _path, "skep does not build images: build them elsewhere and push them to a registry")
